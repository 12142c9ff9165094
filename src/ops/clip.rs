//! `Clip` — bounds each element.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Clip.html> (opsets 6: attributes; 11, 12, 13: inputs)
//! Inputs: X of T, any shape; min?, max? scalars of T. Output: as X. T: every number type. Where min exceeds max, max.
//! Quantized: bounds its input, so it may vanish into the saturation of the quantization after it.
//! Errors: a bound that is no scalar or has another type.

use super::elementwise::{UNARY, each, map_within, scalars, wrong_type};
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, Item, OpDef, QuantRule};
use crate::error::{Result, ensure};
use crate::tensor::{DType, Tensor};
use crate::with_numbers;

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "Clip", eval: eval_attributes, quant: QuantRule::Bound, ..UNARY },
    OpDef { name: "Clip", since: 11, inputs: Arity::range(1, 3), eval: eval_inputs, quant: QuantRule::Bound, ..UNARY },
];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Clip", reverse)];

fn reverse(b: &Back<'_>) -> Result<Gradients> {
    let bound = |slot: usize, name: &str, open: f32| match b.optional(slot) {
        Some(t) => t.to_f64().map(|x| x as f32),
        None => Ok(b.float(name, open)),
    };
    let (lo, hi) = (bound(1, "min", f32::NEG_INFINITY)?, bound(2, "max", f32::INFINITY)?);
    b.each(|x, _| if x < lo || x > hi { 0.0 } else { 1.0 })
}

scalars! {
    /// A NaN stays.
    Clamp { lo, hi } |x| clamp(x, lo, hi), clamp(x, lo, hi);
}

#[inline(always)]
fn clamp<T: PartialOrd>(x: T, lo: T, hi: T) -> T {
    let x = if x < lo { lo } else { x };
    if x > hi { hi } else { x }
}

fn eval_attributes(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (lo, hi) = (call.float("min", f32::NEG_INFINITY), call.float("max", f32::INFINITY));
    let x = call.take(0)?;
    map_within(call, x, Clamp { lo, hi }, Some((lo, hi)))
}

fn bound(call: &Call<'_>, slot: usize, dtype: DType) -> Result<Option<Tensor>> {
    let Some(t) = call.optional(slot)? else { return Ok(None) };
    ensure!(t.dtype() == dtype, "input {slot} has element type {}, expected {dtype} as input 0", t.dtype());
    ensure!(t.len() == 1, "input {slot} has shape {:?}, expected a scalar", t.shape());
    Ok(Some(t.clone()))
}

fn eval_inputs(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let mut x = call.take(0)?;
    let dtype = x.dtype();
    let (lo, hi) = (bound(call, 1, dtype)?, bound(call, 2, dtype)?);
    if matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        let value = |t: &Option<Tensor>, or: f32| t.as_ref().map_or(Ok(or), |t| t.to_f64().map(|x| x as f32));
        let (lo, hi) = (value(&lo, f32::NEG_INFINITY)?, value(&hi, f32::INFINITY)?);
        return map_within(call, x, Clamp { lo, hi }, Some((lo, hi)));
    }
    with_numbers!(x.data_mut(), T, b => {
        let value = |t: &Option<Tensor>| t.as_ref().map(|t| t.slice::<T>().map(|v| v[0])).transpose();
        if let Some(lo) = value(&lo)? {
            each(b, |x| if x < lo { lo } else { x });
        }
        if let Some(hi) = value(&hi)? {
            each(b, |x| if x > hi { hi } else { x });
        }
    }, _ => return wrong_type(0, dtype, "a number type"));
    Ok(x.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn bounds() {
        let x = || Tensor::vector(vec![-2.0f32, 0.5, 9.0]);
        let s = Tensor::scalar;
        let y = Tensor::vector(vec![0.0f32, 0.5, 6.0]);
        Case::new("Clip", 6).attr("min", 0.0f32).attr("max", 6.0f32).input(x()).expect(&[y.clone()]);
        Case::new("Clip", 13).input(x()).input(s(0.0f32)).input(s(6.0f32)).expect(&[y]);
        let y = Tensor::vector(vec![-2.0f32, 0.5, 6.0]);
        Case::new("Clip", 13).input(x()).skip().input(s(6.0f32)).expect(&[y]);
        Case::new("Clip", 13).input(x()).expect(&[x()]);
        let i = Tensor::vector(vec![-2i8, 3, 100]);
        let y = Tensor::vector(vec![-1i8, 3, 50]);
        Case::new("Clip", 13).input(i).input(Tensor::scalar(-1i8)).input(Tensor::scalar(50i8)).expect(&[y]);
        let y = Tensor::vector(vec![1.0f32; 3]);
        Case::new("Clip", 13).input(x()).input(s(2.0f32)).input(s(1.0f32)).expect(&[y]);
        Case::new("Clip", 13).input(x()).input(Tensor::scalar(1i64)).fails("input 1 has element type int64");
        Case::new("Clip", 13).input(x()).input(Tensor::vector(vec![1.0f32, 2.0])).fails("expected a scalar");
    }
}
