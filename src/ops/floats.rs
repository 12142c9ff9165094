//! Evaluating in 32-bit floats what may be stored in 16 bits.

use half::{bf16, f16};

use crate::error::{Result, bail};
use crate::tensor::{DType, Tensor};

/// A tensor of a floating-point type with the values nearest to 32-bit floats.
///
/// # Errors
/// `dtype` is no floating-point type of 16 bits or more; the shape does not fit.
pub(super) fn from_f32s(dtype: DType, shape: &[usize], v: Vec<f32>) -> Result<Tensor> {
    match dtype {
        DType::F32 => Tensor::new(shape, v),
        DType::F16 => Tensor::new(shape, v.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>()),
        DType::BF16 => Tensor::new(shape, v.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
        DType::F64 => Tensor::new(shape, v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()),
        other => bail!("element type is {other}, expected float, float16, bfloat16 or double"),
    }
}

/// Checks that inputs have one element type, and that it is one of `allowed`.
///
/// # Errors
/// Names the input that differs.
pub(super) fn same_dtype(inputs: &[(&str, Option<&Tensor>)], allowed: &[DType]) -> Result<DType> {
    let mut first = None;
    for (i, (name, t)) in inputs.iter().enumerate() {
        let Some(t) = t else { continue };
        match first {
            None if !allowed.contains(&t.dtype()) => {
                let names: Vec<&str> = allowed.iter().map(|d| d.name()).collect();
                bail!("input {i} ({name}) has element type {}, expected {}", t.dtype(), names.join(", "))
            }
            None => first = Some(t.dtype()),
            Some(d) if d != t.dtype() => bail!("input {i} ({name}) has element type {}, expected {d}", t.dtype()),
            Some(_) => {}
        }
    }
    first.ok_or_else(|| crate::error::anyhow!("no input is connected"))
}

/// The floating-point types that convolutions and pools take.
pub(super) const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::F64];
