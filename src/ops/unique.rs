//! `Unique` — each element (or slice along `axis`) once.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Unique.html> (opsets 11, 28)
//! Input: X, any type. Outputs: Y of X's type; int64 vectors: indices of first occurrences, inverse_indices (for each
//! element of X its place in Y), counts. Attributes: axis; sorted (default 1, ascending), else by first occurrence.
//! NaNs count as equal and come last.
//! Quantized: selects elements, so Y has the input's parameters.
//! Errors: axis out of range.

use std::cmp::Ordering;

use super::call::axis;
use super::gather::gather;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::Result;
use crate::ir::Dim;
use crate::tensor::order::Ordered;
use crate::tensor::{DType, Tensor};
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Unique",
    domain: OpDomain::Onnx,
    since: 11,
    inputs: Arity::exactly(1),
    outputs: Arity::range(1, 4),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match (ctx.attrs.int("axis"), ctx.shape(0)) {
        (None, _) => Some(vec![Dim::Unknown]),
        (Some(a), Some(s)) => {
            let mut out = s.to_vec();
            out[axis(a, s.len())?] = Dim::Unknown;
            Some(out)
        }
        _ => None,
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    for i in 1..4 {
        ctx.set_tensor(i, Some(DType::I64), Some(vec![Dim::Unknown]));
    }
    Ok(())
}

/// How slices `a` and `b` of the `n` of `[outer, n, inner]` compare.
fn compare<T: Ordered>(v: &[T], [outer, n, inner]: [usize; 3], a: usize, b: usize) -> Ordering {
    (0..outer)
        .flat_map(|o| {
            let row = |k: usize| &v[(o * n + k) * inner..(o * n + k + 1) * inner];
            row(a).iter().zip(row(b))
        })
        .map(|(x, y)| x.order(y))
        .find(|o| o.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// Which of `n` slices are equal: the numbers of the slices, ordered, equal ones next to each other and by number, and
/// whether each starts a new group. Behind a reference, so that sorting is compiled once and not for each type.
fn groups(n: usize, compare: &dyn Fn(usize, usize) -> Ordering) -> (Vec<usize>, Vec<bool>) {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| compare(a, b));
    let is_new = (0..n).map(|i| i == 0 || compare(order[i - 1], order[i]).is_ne()).collect();
    (order, is_new)
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.take(0)?;
    let x = match call.attrs.int("axis") {
        Some(_) => x,
        None => {
            let n = x.len();
            x.reshaped(&[n])?
        }
    };
    let at = axis(call.int("axis", 0), x.rank())?;
    let n = x.shape()[at];
    let dims = [x.shape()[..at].iter().product(), n, x.shape()[at + 1..].iter().product()];
    let (order, is_new) = with_data!(x.data(), T, v => groups(n, &|a, b| compare::<T>(v.as_slice(), dims, a, b)));
    // First occurrence, count, and members of each group, in ascending order.
    let mut found: Vec<Vec<usize>> = Vec::new();
    for (i, new) in order.into_iter().zip(is_new) {
        if new {
            found.push(Vec::new());
        }
        if let Some(g) = found.last_mut() {
            g.push(i);
        }
    }
    if !call.flag("sorted", true) {
        found.sort_by_key(|g| g[0]);
    }
    let first: Vec<i64> = found.iter().map(|g| g[0] as i64).collect();
    let counts = found.iter().map(|g| g.len() as i64).collect();
    let mut inverse = vec![0i64; n];
    for (k, g) in found.iter().enumerate() {
        for &i in g {
            inverse[i] = k as i64;
        }
    }
    let y = gather(&x, &first, &[first.len()], at)?;
    let mut out: Vec<Item> =
        vec![y.into(), Tensor::vector(first).into(), Tensor::vector(inverse).into(), Tensor::vector(counts).into()];
    out.truncate(call.n_outputs().max(1));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn finds_each_once() {
        let v = |v: &[i64]| Tensor::vector(v.to_vec());
        let x = Tensor::vector(vec![2.0f32, 1.0, 1.0, 3.0, 4.0, 3.0]);
        Case::new("Unique", 11).input(x.clone()).attr("sorted", 0).outputs(4).expect(&[
            Tensor::vector(vec![2.0f32, 1.0, 3.0, 4.0]),
            v(&[0, 1, 3, 4]),
            v(&[0, 1, 1, 2, 3, 2]),
            v(&[1, 2, 2, 1]),
        ]);
        Case::new("Unique", 11)
            .input(x)
            .outputs(2)
            .expect(&[Tensor::vector(vec![1.0f32, 2.0, 3.0, 4.0]), v(&[1, 0, 3, 4])]);
        let x = Tensor::of(&[3, 2], vec![2u8, 3, 1, 0, 2, 3]);
        Case::new("Unique", 11).input(x.clone()).attr("axis", 0).outputs(4).expect(&[
            Tensor::of(&[2, 2], vec![1u8, 0, 2, 3]),
            v(&[1, 0]),
            v(&[1, 0, 1]),
            v(&[1, 2]),
        ]);
        Case::new("Unique", 11).input(x).attr("axis", 2).fails("axis 2");
        let x = Tensor::vector(vec![f32::NAN, 1.0, f32::NAN]);
        Case::new("Unique", 11).input(x).expect(&[Tensor::vector(vec![1.0, f32::NAN])]);
        Case::new("Unique", 11).input(Tensor::vector(Vec::<i32>::new())).expect(&[Tensor::vector(Vec::<i32>::new())]);
    }
}
