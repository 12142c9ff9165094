//! `Gather` — slices of `data` along `axis`, picked by index.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Gather.html> (opsets 1, 11, 13)
//! Inputs: data, any type, rank ≥ 1; indices int32 or int64 of any shape, negative ones count from the end.
//! Output: `data.shape[..axis] + indices.shape + data.shape[axis+1..]`. Attribute: axis, default 0.
//! Quantized: selects elements, so the output has the data's parameters.
//! Errors: an index or the axis out of range.

use super::call::axis;
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, ensure};
use crate::ir::Dim;
use crate::tensor::{Tensor, count, strided};
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Gather",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Gather", |b| b.moved(&[0]))];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match (ctx.shape(0), ctx.shape(1)) {
        (Some(d), Some(i)) => {
            let at = axis(ctx.attrs.int("axis").unwrap_or(0), d.len())?;
            Some([&d[..at], i, &d[at + 1..]].concat())
        }
        _ => None,
    };
    if let (Some(v), Some(i)) = (ctx.values(0), ctx.ints(1))
        && ctx.rank(0) == Some(1)
        && ctx.rank(1).is_some_and(|r| r <= 1)
    {
        let picked: Option<Vec<Dim>> = i.iter().map(|&k| Some(v[checked(k, v.len()).ok()?].clone())).collect();
        if let Some(p) = picked {
            ctx.set_values(0, p);
        }
    }
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

/// A possibly negative index into `n` elements.
///
/// # Errors
/// It lies outside `[-n, n)`.
#[inline]
pub(crate) fn checked(index: i64, n: usize) -> Result<usize> {
    let i = if index < 0 { index + n as i64 } else { index };
    ensure!(i >= 0 && (i as usize) < n, "index {index} is out of range for size {n}");
    Ok(i as usize)
}

/// Slices of `x` along an axis.
///
/// # Errors
/// An index is out of range.
pub(crate) fn gather(x: &Tensor, indices: &[i64], index_shape: &[usize], at: usize) -> Result<Tensor> {
    let shape = [&x.shape()[..at], index_shape, &x.shape()[at + 1..]].concat();
    let n_out = count(&shape)?;
    let n = x.shape()[at];
    let indices = indices.iter().map(|&i| checked(i, n)).collect::<Result<Vec<_>>>().context("input 1 (indices)")?;
    let outer: usize = x.shape()[..at].iter().product();
    let inner: usize = x.shape()[at + 1..].iter().product();
    with_data!(x.data(), T, b => {
        let src = b.as_slice();
        let mut out: Vec<T> = Vec::with_capacity(n_out);
        if n_out > 0 {
            for o in 0..outer {
                let block = &src[o * n * inner..(o + 1) * n * inner];
                if inner == 1 {
                    out.extend(indices.iter().map(|&i| block[i].clone()));
                } else {
                    for &i in &indices {
                        out.extend_from_slice(&block[i * inner..(i + 1) * inner]);
                    }
                }
            }
        }
        strided::typed::<T>(x.dtype(), &shape, out)
    })
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let indices = call.ints(1)?;
    let x = call.input(0)?;
    let at = axis(call.int("axis", 0), x.rank())?;
    Ok(gather(x, &indices, call.input(1)?.shape(), at)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn picks_slices() {
        let x = Tensor::of(&[3, 2], vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let case =
            |indices: Tensor, axis: i64| Case::new("Gather", 13).input(x.clone()).input(indices).attr("axis", axis);
        case(Tensor::vector(vec![2i64, -3]), 0).expect(&[Tensor::of(&[2, 2], vec![5.0f32, 6.0, 1.0, 2.0])]);
        case(Tensor::scalar(1i32), 1).expect(&[Tensor::vector(vec![2.0f32, 4.0, 6.0])]);
        case(Tensor::of(&[0], Vec::<i64>::new()), -1).expect(&[Tensor::of(&[3, 0], Vec::<f32>::new())]);
        case(Tensor::scalar(3i64), 0).fails("index 3 is out of range for size 3");
        case(Tensor::scalar(1.0f32), 0).fails("input 1");
        case(Tensor::scalar(0i64), 2).fails("axis 2");
    }
}
