//! `Expand` — repeated to the shape that the input and `shape` broadcast to.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Expand.html> (opsets 8, 13)
//! Inputs: input, any type; shape int64 `[n]`. Output: output. No copy when nothing repeats.
//! Quantized: repeats elements, so the output has the input's parameters.
//! Errors: the shapes do not broadcast.

use super::constant_of_shape::to_shape;
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::Result;
use crate::ir::{Dim, sym};
use crate::tensor::broadcast::{broadcast, broadcast_strides};
use crate::tensor::{Tensor, count, strided};
use crate::with_data;

use super::infer_ctx::broadcast_dims;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Expand",
    domain: OpDomain::Onnx,
    since: 8,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Expand", |b| b.moved(&[0]))];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let target = ctx.values(1).map(|v| v.iter().map(sym::as_size).collect::<Vec<_>>());
    let target = target.or_else(|| match ctx.shape(1) {
        Some([Dim::Known(n)]) => Some(vec![Dim::Unknown; *n]),
        _ => None,
    });
    let shape = match (ctx.shape(0), target) {
        (Some(s), Some(t)) => Some(broadcast_dims(s, &t)?),
        _ => None,
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

/// The tensor repeated to a shape that it broadcasts to.
///
/// # Errors
/// The shape has too many elements.
pub(crate) fn expand(x: Tensor, shape: &[usize]) -> Result<Tensor> {
    if count(shape)? == x.len() {
        return x.reshaped(shape);
    }
    let steps: Vec<isize> = broadcast_strides(x.shape(), shape).iter().map(|&s| s as isize).collect();
    with_data!(x.data(), T, b => strided::typed::<T>(x.dtype(), shape, strided::gather(b.as_slice(), 0, shape, &steps)))
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let target = to_shape(&call.ints(1)?, 1)?;
    let shape = broadcast(call.input(0)?.shape(), &target)?;
    count(&shape)?;
    Ok(expand(call.take(0)?, &shape)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn repeats() {
        let case = |t: Tensor, shape: &[i64]| Case::new("Expand", 13).input(t).input(Tensor::vector(shape.to_vec()));
        let x = Tensor::of(&[2, 1], vec![1i8, 2]);
        case(x.clone(), &[3]).expect(&[Tensor::of(&[2, 3], vec![1i8, 1, 1, 2, 2, 2])]);
        case(x.clone(), &[2, 1, 2]).expect(&[Tensor::of(&[2, 2, 2], vec![1i8, 1, 2, 2, 1, 1, 2, 2])]);
        case(x.clone(), &[1, 1, 1]).expect(&[x.clone().reshaped(&[1, 2, 1]).unwrap()]);
        case(x.clone(), &[0]).expect(&[Tensor::of(&[2, 0], Vec::<i8>::new())]);
        case(x.clone(), &[3, 2]).fails("do not broadcast");
        case(x, &[-1]).fails("input 1 (shape) has the dimension -1");
    }
}
