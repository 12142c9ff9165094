//! `TopK` — the k largest or smallest elements along `axis`, with their indices.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__TopK.html> (opsets 1, 10, 11, 24)
//! Inputs: X, any number type; K int64 `[1]` (attribute k before opset 10). Outputs: Values of X's type, Indices int64,
//! both X's shape with k along axis. Attributes: axis, default -1; largest (default 1) and sorted from opset 11.
//! Of equal elements the one with the lower index comes first; NaN counts as the largest. Always sorted.
//! Quantized: selects elements, so Values has the input's parameters.
//! Errors: k negative or larger than the dimension; axis out of range.

use std::cmp::Ordering;

use super::call::axis;
use super::gather_elements::element_offsets;
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::order::Ordered;
use crate::tensor::{DType, Tensor, count, strided};
use crate::with_data;

const TOP_K: OpDef = OpDef {
    name: "TopK",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::range(1, 2),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
};

pub(super) const OPS: &[OpDef] = &[
    TOP_K,
    OpDef { since: 10, inputs: Arity::exactly(2), ..TOP_K },
    OpDef { since: 11, inputs: Arity::exactly(2), ..TOP_K },
];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("TopK", reverse)];

/// The elements that were taken.
fn reverse(b: &Back<'_>) -> Result<Gradients> {
    let (x, indices) = (b.input(0)?, b.output(1)?);
    let offsets = element_offsets(x.shape(), indices.shape(), &indices.to_i64s()?, b.int("axis", -1))?;
    let mut dx = vec![0.0f32; x.len()];
    offsets.into_iter().zip(b.gradient()?).for_each(|(at, g)| dx[at] += g);
    Ok(vec![b.made(0, || Ok(dx))?])
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let k = if ctx.opset < 10 {
        ctx.attrs.int("k").map(sym::of_int)
    } else {
        ctx.values(1).and_then(|v| v.first().cloned())
    };
    let shape = match ctx.shape(0) {
        None => None,
        Some(s) => {
            let mut out = s.to_vec();
            let at = axis(ctx.attrs.int("axis").unwrap_or(-1), s.len())?;
            out[at] = k.as_ref().map_or(Dim::Unknown, sym::as_size);
            Some(out)
        }
    };
    ctx.set_tensor(0, ctx.dtype(0), shape.clone());
    ctx.set_tensor(1, Some(DType::I64), shape);
    Ok(())
}

/// The places of the k first elements along the middle one of three dimensions, in the order that `compare` gives to
/// places. Behind a reference, so that sorting is compiled once and not for each type.
fn top([outer, n, inner]: [usize; 3], k: usize, compare: &dyn Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut places = vec![0; outer * k * inner];
    let mut order: Vec<usize> = Vec::with_capacity(n);
    for o in 0..outer {
        for i in 0..inner {
            // Places grow with the index: of equal elements the lower comes first.
            let compare = |&a: &usize, &b: &usize| compare(a, b).then(a.cmp(&b));
            order.clear();
            order.extend((0..n).map(|j| (o * n + j) * inner + i));
            if k < n && k > 0 {
                order.select_nth_unstable_by(k - 1, compare);
            }
            let first = &mut order[..k];
            first.sort_unstable_by(compare);
            for (r, &at) in first.iter().enumerate() {
                places[(o * k + r) * inner + i] = at;
            }
        }
    }
    places
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let k = if call.opset < 10 { call.required_int("k")? } else { call.input(1)?.to_i64().context("input 1 (K)")? };
    let x = call.input(0)?;
    let at = axis(call.int("axis", -1), x.rank())?;
    let n = x.shape()[at];
    let k = usize::try_from(k).map_err(|_| anyhow!("input 1 (K) is {k}"))?;
    ensure!(k <= n, "input 1 (K) is {k}, expected at most the dimension's size {n}");
    let mut shape = x.shape().to_vec();
    shape[at] = k;
    count(&shape)?;
    let dims = [x.shape()[..at].iter().product(), n, x.shape()[at + 1..].iter().product()];
    let largest = call.flag("largest", true);
    let (values, places) = with_data!(x.data(), T, b => {
        let v: &[T] = b.as_slice();
        let places = top(dims, k, &|a, b| if largest { v[b].order(&v[a]) } else { v[a].order(&v[b]) });
        (strided::typed::<T>(x.dtype(), &shape, places.iter().map(|&at| v[at].clone()).collect())?, places)
    });
    let indices: Vec<i64> = places.into_iter().map(|at| (at / dims[2] % n) as i64).collect();
    let mut out: Vec<Item> = vec![values.into(), Tensor::new(&shape, indices)?.into()];
    out.truncate(call.n_outputs().max(1));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn selects_with_ties_by_index() {
        let x = Tensor::of(&[2, 4], vec![1.0f32, 3.0, 3.0, 2.0, 5.0, 4.0, 6.0, 4.0]);
        let case = |k: i64| Case::new("TopK", 11).input(x.clone()).input(Tensor::vector(vec![k])).outputs(2);
        case(2).expect(&[Tensor::of(&[2, 2], vec![3.0f32, 3.0, 6.0, 5.0]), Tensor::of(&[2, 2], vec![1i64, 2, 2, 0])]);
        case(2)
            .attr("largest", 0)
            .expect(&[Tensor::of(&[2, 2], vec![1.0f32, 2.0, 4.0, 4.0]), Tensor::of(&[2, 2], vec![0i64, 3, 1, 3])]);
        case(1)
            .attr("axis", 0)
            .expect(&[Tensor::of(&[1, 4], vec![5.0f32, 4.0, 6.0, 4.0]), Tensor::of(&[1, 4], vec![1i64, 1, 1, 1])]);
        case(0).expect(&[Tensor::of(&[2, 0], Vec::<f32>::new()), Tensor::of(&[2, 0], Vec::<i64>::new())]);
        Case::new("TopK", 9)
            .input(Tensor::vector(vec![1.0f32, f32::NAN]))
            .attr("k", 1)
            .outputs(2)
            .expect(&[Tensor::vector(vec![f32::NAN]), Tensor::vector(vec![1i64])]);
        case(5).fails("expected at most the dimension's size 4");
        case(-1).fails("input 1 (K) is -1");
    }
}
