//! `BiasGelu` and `FastGelu` of ONNX Runtime — a GELU of a sum.
//!
//! Spec: ONNX Runtime's ContribOperators.md (`com.microsoft`, version 1)
//! Inputs: A of floats, any shape; B `[size of A's last dimension]` (optional for `FastGelu`). Output: as A.
//! `BiasGelu` is exact, `FastGelu` the form with tanh. Quantized: no. Errors: a bias that does not fit.

use super::elementwise::{KEEP, infer_same, is_half, map_tensor, scalars, zip_in_place};
use super::{Arity, Call, Item, OpDef, OpDomain};
use crate::error::{Result, ensure};
use crate::kernels::math;
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor};

const BIASED: OpDef = OpDef {
    name: "BiasGelu",
    domain: OpDomain::Microsoft,
    since: 1,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_same,
    eval: exact,
    quant: KEEP,
};

pub(super) const OPS: &[OpDef] =
    &[BIASED, OpDef { name: "FastGelu", inputs: Arity::range(1, 2), eval: fast, ..BIASED }];

scalars! {
    Exact {} |x| math::gelu(x), 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
    Fast {} |x| math::gelu_tanh(x),
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh());
}

/// A with the bias added, in 32 bits where it is narrower; and its type.
fn sum(call: &mut Call<'_>) -> Result<(Tensor, DType)> {
    let x = call.take(0)?;
    let dtype = x.dtype();
    let wide = if is_half(dtype) { cast(&x, DType::F32, true)? } else { x };
    let Some(b) = call.optional(1)? else { return Ok((wide, dtype)) };
    ensure!(
        b.rank() == 1 && wide.shape().last() == b.shape().first(),
        "input 1 has shape {:?}, which does not fit {:?}",
        b.shape(),
        wide.shape()
    );
    let b = cast(b, wide.dtype(), true)?;
    let sum = match wide.dtype() {
        DType::F64 => zip_in_place::<f64>(wide, b, call.threads, |a, b| a + b)?,
        _ => zip_in_place::<f32>(wide, b, call.threads, |a, b| a + b)?,
    };
    Ok((sum, dtype))
}

fn exact(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, dtype) = sum(call)?;
    Ok(cast(&map_tensor(x, call.threads, Exact {})?, dtype, true)?.into())
}

fn fast(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, dtype) = sum(call)?;
    Ok(cast(&map_tensor(x, call.threads, Fast {})?, dtype, true)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn of_a_sum() {
        let v = |v: [f32; 2]| Tensor::vector(v.to_vec());
        let case = |op: &str| Case::new(op, 1).domain("com.microsoft").input(v([0.5, -1.0])).tolerance(1e-6);
        case("BiasGelu").input(v([0.5, 1.0])).expect(&[v([0.841_344_7, 0.0])]);
        case("FastGelu").input(v([0.5, 1.0])).expect(&[v([0.841_192, 0.0])]);
        case("FastGelu").expect(&[v([0.345_714, -0.158_808])]);
        case("BiasGelu").input(Tensor::scalar(1.0f32)).fails("input 1 has shape []");
    }
}
