//! One or more broadcast tensors reduced elementwise: `Max`, `Min`, `Sum`, `Mean`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Max.html> and so on (opsets 8, 12, 13; later ones only add types)
//! Inputs: one or more of T, broadcast. Output: of T, the broadcast shape.
//! T: `Max`, `Min`: every number type; `Sum`, `Mean`: floats. NaN wins in `Max` and `Min`.
//! Quantized: `Max`, `Min` no; `Sum` and `Mean` with an observed output range.

use super::elementwise::{
    KEEP, infer_broadcast, map_tensor, same_dtype, scalars, trace_zip, work_type, wrong_type, zip_either,
};
use super::reverse::{Back, Gradients, Reverse, summed};
use super::{Arity, Call, Item, OpDef, OpDomain, OutputRange, QuantRule, Slots};
use crate::error::{Result, bail};
use crate::tensor::DType;
use crate::tensor::broadcast::for_each_row;
use crate::tensor::cast::cast;

const VARIADIC: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::at_least(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_broadcast,
    eval: |_| bail!("no evaluation"),
    quant: KEEP,
};

const OBSERVED: QuantRule = QuantRule::Combine { data: Slots::All, output: OutputRange::Observed };

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "Max", eval: max, ..VARIADIC },
    OpDef { name: "Mean", eval: mean, quant: OBSERVED, ..VARIADIC },
    OpDef { name: "Min", eval: min, ..VARIADIC },
    OpDef { name: "Sum", eval: sum, quant: OBSERVED, ..VARIADIC },
];

pub(super) const REVERSE: &[Reverse] = &[
    Reverse::of("Max", |b| select(b, |new, best| new > best)),
    Reverse::of("Mean", |b| share(b, b.inputs.len() as f32)),
    Reverse::of("Min", |b| select(b, |new, best| new < best)),
    Reverse::of("Sum", |b| share(b, 1.0)),
];

/// Each input takes a part of the whole gradient.
fn share(b: &Back<'_>, n: f32) -> Result<Gradients> {
    let (g, shape) = (b.gradient()?, b.output(0)?.shape());
    let part: Vec<f32> = g.iter().map(|g| g / n).collect();
    (0..b.inputs.len()).map(|slot| b.made(slot, || Ok(summed(&part, shape, b.input(slot)?.shape())))).collect()
}

/// The input whose element was taken, the first of equal ones, takes the gradient.
fn select(b: &Back<'_>, is_better: fn(f32, f32) -> bool) -> Result<Gradients> {
    let (g, shape) = (b.gradient()?, b.output(0)?.shape());
    let mut best = vec![0.0f32; g.len()];
    let mut from = vec![0usize; g.len()];
    for slot in 0..b.inputs.len() {
        let x = b.input(slot)?;
        let v = x.to_f32s()?;
        for_each_row(shape, [x.shape()], |o, [at], n, [step]| {
            for i in 0..n {
                let new = v[at + i * step];
                if slot == 0 || is_better(new, best[o + i]) {
                    (best[o + i], from[o + i]) = (new, slot);
                }
            }
        });
    }
    let of =
        |slot: usize| -> Vec<f32> { g.iter().zip(&from).map(|(&g, &f)| if f == slot { g } else { 0.0 }).collect() };
    (0..b.inputs.len()).map(|slot| b.made(slot, || Ok(summed(&of(slot), shape, b.input(slot)?.shape())))).collect()
}

/// Folds the inputs with one function for floats and one for integers.
macro_rules! fold {
    ($call:expr, $float:expr, $int:expr, $integers:expr) => {{
        let dtype = same_dtype($call)?;
        let work = work_type(dtype);
        if !($integers && dtype.is_integer()) && !matches!(work, DType::F32 | DType::F64) {
            return wrong_type(0, dtype, if $integers { "a number type" } else { "a floating-point type" });
        }
        let threads = $call.threads;
        let mut acc = cast(&$call.take(0)?, work, true)?;
        for i in 1..$call.n_inputs() {
            let x = cast(&$call.take(i)?, work, true)?;
            acc = match work {
                DType::F32 => zip_either::<f32>(acc, x, threads, $float)?,
                DType::F64 => zip_either::<f64>(acc, x, threads, $float)?,
                DType::U64 => zip_either::<u64>(acc, x, threads, $int)?,
                _ => zip_either::<i64>(acc, x, threads, $int)?,
            };
        }
        (acc, dtype)
    }};
}

/// Records an operator with two inputs of 32-bit floats, when it is traced.
fn trace(call: &Call<'_>, f: impl Fn(f32, f32) -> f32 + Copy + Send + Sync + 'static) -> Result<Option<Vec<Item>>> {
    match (call.fusion.trace, call.n_inputs(), call.input(0)?.dtype()) {
        (Some(trace), 2, DType::F32) => trace_zip(trace, call.input(0)?, call.input(1)?, f).map(Some),
        _ => Ok(None),
    }
}

fn max(call: &mut Call<'_>) -> Result<Vec<Item>> {
    if let Some(traced) = trace(call, |a, b| if a > b || a.is_nan() { a } else { b })? {
        return Ok(traced);
    }
    let (t, dtype) = fold!(call, |a, b| if a > b || a.is_nan() { a } else { b }, |a, b| a.max(b), true);
    Ok(cast(&t, dtype, true)?.into())
}

fn min(call: &mut Call<'_>) -> Result<Vec<Item>> {
    if let Some(traced) = trace(call, |a, b| if a < b || a.is_nan() { a } else { b })? {
        return Ok(traced);
    }
    let (t, dtype) = fold!(call, |a, b| if a < b || a.is_nan() { a } else { b }, |a, b| a.min(b), true);
    Ok(cast(&t, dtype, true)?.into())
}

fn sum(call: &mut Call<'_>) -> Result<Vec<Item>> {
    if let Some(traced) = trace(call, |a, b| a + b)? {
        return Ok(traced);
    }
    let (t, dtype) = fold!(call, |a, b| a + b, |a, _| a, false);
    Ok(cast(&t, dtype, true)?.into())
}

scalars! {
    DivideBy { n } |x| x / n, x / n;
}

fn mean(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let n = call.n_inputs() as f32;
    let threads = call.threads;
    let (t, dtype) = fold!(call, |a, b| a + b, |a, _| a, false);
    Ok(cast(&map_tensor(t, threads, DivideBy { n })?, dtype, true)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn v(v: &[f32]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    #[test]
    fn one_to_three_inputs() {
        let (a, b, c) = (v(&[3.0, 2.0]), v(&[1.0, 4.0]), v(&[2.0]));
        for (op, y) in [("Max", [3.0, 4.0]), ("Min", [1.0, 2.0]), ("Sum", [6.0, 8.0]), ("Mean", [2.0, 8.0 / 3.0])] {
            Case::new(op, 13).input(a.clone()).input(b.clone()).input(c.clone()).expect(&[v(&y)]);
            Case::new(op, 13).input(a.clone()).expect(&[a.clone()]);
        }
        Case::new("Max", 13).input(v(&[f32::NAN, 1.0])).input(v(&[1.0, f32::NAN])).expect(&[v(&[f32::NAN, f32::NAN])]);
        let i = |x: &[i64]| Tensor::vector(x.to_vec());
        Case::new("Max", 13).input(i(&[1, 5])).input(i(&[3, 2])).expect(&[i(&[3, 5])]);
        Case::new("Min", 13).input(i(&[1])).input(v(&[1.0])).fails("input 1 has element type float");
        Case::new("Sum", 13).input(Tensor::scalar(true)).fails("input 0 has element type bool");
    }
}
