//! `ConstantOfShape` — a tensor of one value.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html> (opsets 9, 20, 21, 23, 24, 25)
//! Input: input int64 `[n]`, the shape. Output: a tensor of that shape. Attribute: value, a tensor of one element, default
//! float 0.
//! Quantized: its output is constant once the shape is, so nothing.
//! Errors: a negative dimension; more elements than fit; value has not one element.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::{DType, Tensor, count, strided};
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "ConstantOfShape",
    domain: OpDomain::Onnx,
    since: 9,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "gives one value for every element" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.attrs.tensor("value").map_or(DType::F32, |t| t.dtype());
    let shape = match (ctx.values(0), ctx.shape(0)) {
        (Some(v), _) => Some(v.iter().map(sym::as_size).collect::<Vec<_>>()),
        (None, Some([Dim::Known(n)])) => Some(vec![Dim::Unknown; *n]),
        _ => None,
    };
    if let (Some([Dim::Known(n @ ..=64)]), true) = (shape.as_deref(), dtype.is_integer()) {
        let value = ctx.attrs.tensor("value").and_then(|t| t.get().ok()?.to_i64().ok());
        if let Some(v) = value {
            ctx.set_values(0, vec![sym::of_int(v); *n]);
        }
    }
    ctx.set_tensor(0, Some(dtype), shape);
    Ok(())
}

/// Sizes from the elements of a shape input.
///
/// # Errors
/// One is negative, or there are too many elements.
pub(crate) fn to_shape(v: &[i64], input: usize) -> Result<Vec<usize>> {
    let shape = v
        .iter()
        .map(|&n| usize::try_from(n).map_err(|_| anyhow!("input {input} (shape) has the dimension {n}")))
        .collect::<Result<Vec<_>>>()?;
    let n = count(&shape)?;
    // A shape that no machine holds is a mistake in the model, not a reason to be killed.
    ensure!(n <= 1 << 36, "input {input} (shape) is {v:?}: {n} elements are too many");
    Ok(shape)
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let shape = to_shape(&call.ints(0)?, 0)?;
    let n = count(&shape)?;
    let Some(value) = call.attrs.tensor("value") else {
        return Ok(Tensor::zeros(DType::F32, &shape)?.into());
    };
    let value = value.get()?;
    ensure!(value.len() == 1, "attribute \"value\" has shape {:?}, expected one element", value.shape());
    let y = with_data!(value.data(), T, b => {
        strided::typed::<T>(value.dtype(), &shape, vec![b.as_slice()[0].clone(); n])
    })?;
    Ok(y.into())
}

#[cfg(test)]
mod tests {
    use crate::ir::TensorRef;
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn fills() {
        let case = |shape: &[i64]| Case::new("ConstantOfShape", 9).input(Tensor::vector(shape.to_vec()));
        case(&[2, 2]).expect(&[Tensor::of(&[2, 2], vec![0.0f32; 4])]);
        case(&[]).attr("value", TensorRef::from(Tensor::vector(vec![7i32]))).expect(&[Tensor::scalar(7i32)]);
        case(&[0, 2]).expect(&[Tensor::of(&[0, 2], Vec::<f32>::new())]);
        case(&[-1]).fails("input 0 (shape) has the dimension -1");
        case(&[1 << 40, 1 << 40]).fails("too many");
        case(&[1 << 40]).fails("too many");
        case(&[1]).attr("value", TensorRef::from(Tensor::vector(vec![7i32, 8]))).fails("expected one element");
    }
}
