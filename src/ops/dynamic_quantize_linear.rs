//! `DynamicQuantizeLinear` — quantizes to uint8 with the range of the tensor itself.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html> (opset 11)
//! Input: x f32, any shape. Outputs: y uint8 as x, y_scale f32 scalar, y_zero_point uint8 scalar.
//! Quantized: it is quantization. Deviation: a tensor of zeros gets scale 1 instead of 0, as in ONNX Runtime.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::Result;
use crate::kernels::rows;
use crate::tensor::affine::{self, Params};
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "DynamicQuantizeLinear",
    domain: OpDomain::Onnx,
    since: 11,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(3),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "is quantization itself" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = ctx.shape(0).map(<[_]>::to_vec);
    ctx.set_tensor(0, Some(DType::U8), shape);
    ctx.set_tensor(1, Some(DType::F32), Some(Vec::new()));
    ctx.set_tensor(2, Some(DType::U8), Some(Vec::new()));
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let v = x.slice::<f32>()?;
    let (y, scale, zero_point) = quantize(v);
    Ok(vec![Tensor::new(x.shape(), y)?.into(), Tensor::scalar(scale).into(), Tensor::scalar(zero_point).into()])
}

/// The values in uint8 with the scale and zero point of their range.
pub(super) fn quantize(v: &[f32]) -> (Vec<u8>, f32, u8) {
    // The range always has 0 in it.
    let (lo, hi) = (rows::min(v).min(0.0), rows::max(v).max(0.0));
    let scale = if hi == lo { 1.0 } else { (hi - lo) / 255.0 };
    let zero_point = affine::quantize_one(-lo, scale, 0, 0, 255);
    let mut y = vec![0u8; v.len()];
    affine::quantize_slice(v, Params { scale: &[scale], zero_point: &[zero_point], range: (0, 255) }, &mut y);
    (y, scale, zero_point as u8)
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn takes_the_range_from_the_tensor() {
        let x = Tensor::vector(vec![0.0f32, 2.0, -3.0, -2.5, 1.34, 0.5]);
        let y = Tensor::vector(vec![153u8, 255, 0, 26, 221, 179]);
        Case::new("DynamicQuantizeLinear", 11).outputs(3).input(x).tolerance(1e-6).expect(&[
            y,
            Tensor::scalar(5.0f32 / 255.0),
            Tensor::scalar(153u8),
        ]);
        let zeros = Tensor::vector(vec![0.0f32; 2]);
        let y = Tensor::vector(vec![0u8; 2]);
        Case::new("DynamicQuantizeLinear", 11).outputs(3).input(zeros).expect(&[
            y,
            Tensor::scalar(1.0f32),
            Tensor::scalar(0u8),
        ]);
        Case::new("DynamicQuantizeLinear", 11).input(Tensor::scalar(1i64)).fails("expected float");
    }
}
