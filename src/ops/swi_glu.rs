//! `SwiGLU` — a gate's Swish times a value.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__SwiGLU.html> (opset 28)
//! Inputs: A, B of floats, the same shape. Output: `A * sigmoid(alpha * A) * B`.
//! Quantized: no. Errors: shapes or types that differ.

use super::elementwise::{KEEP, UNARY, infer_same_dtype, same_dtype, work_type, wrong_type, zip_in_place};
use super::{Arity, Call, InferCtx, Item, OpDef};
use crate::error::{Result, ensure};
use crate::ir::Dim;
use crate::kernels::math;
use crate::tensor::DType;
use crate::tensor::cast::cast;

pub(super) const OPS: &[OpDef] =
    &[OpDef { name: "SwiGLU", since: 28, inputs: Arity::exactly(2), infer, eval, quant: KEEP, ..UNARY }];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    infer_same_dtype(ctx, 0..2)?;
    if let (Some(a), Some(b)) = (ctx.shape(0), ctx.shape(1)) {
        let differ = |(x, y): (&Dim, &Dim)| matches!((x, y), (Dim::Known(x), Dim::Known(y)) if x != y);
        ensure!(a.len() == b.len() && !a.iter().zip(b).any(differ), "inputs 0 and 1 have different shapes");
    }
    ctx.same_as(0);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let alpha = call.float("alpha", 1.0);
    let dtype = same_dtype(call)?;
    let work = work_type(dtype);
    let (a, b, threads) = (cast(&call.take(0)?, work, true)?, cast(&call.take(1)?, work, true)?, call.threads);
    ensure!(a.shape() == b.shape(), "input 1 has shape {:?}, expected {:?} as input 0", b.shape(), a.shape());
    let y = match work {
        DType::F32 => zip_in_place::<f32>(a, b, threads, |a, b| a * math::sigmoid(alpha * a) * b)?,
        DType::F64 => {
            let alpha = f64::from(alpha);
            zip_in_place::<f64>(a, b, threads, |a, b| a / (1.0 + (-alpha * a).exp()) * b)?
        }
        d => return wrong_type(0, d, "a floating-point type"),
    };
    Ok(cast(&y, dtype, true)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn gates() {
        let (a, b) = (Tensor::vector(vec![0.0f32, 1.0]), Tensor::vector(vec![5.0f32, 2.0]));
        let y = Tensor::vector(vec![0.0f32, 1.462_117_2]);
        Case::new("SwiGLU", 28).input(a.clone()).input(b).tolerance(1e-6).expect(&[y]);
        Case::new("SwiGLU", 28).input(a).input(Tensor::scalar(1.0f32)).fails("input 1 has shape []");
    }
}
