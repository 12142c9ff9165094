//! Arithmetic of two broadcast tensors: `Add`, `Sub`, `Mul`, `Div`, `Mod`, `Pow`, `PRelu`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Add.html> and so on (opsets 7, 13, 14; later ones only add types)
//! Inputs: A, B of T, broadcast. Output: C of T, the broadcast shape.
//! T: every number type. `Pow`: the exponent may have another type (opset 12). `PRelu`: the slope broadcasts to X.
//! Quantized: `Add`, `Sub`, `Mul`, `Div` with an observed output range.
//! Errors: other or different element types; shapes that do not broadcast; an integer division by 0.

use super::elementwise::{
    KEEP, infer_broadcast, infer_same_dtype, is_half, same_dtype, work_type, wrong_type, zip, zip_either, zip_in_place,
};
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, OutputRange, QuantRule, Slots};
use crate::error::{Result, bail, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::broadcast::broadcast;
use crate::tensor::cast::{cast, from_f64s};
use crate::tensor::{DType, Tensor};
use crate::with_numbers;

const BINARY: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_broadcast,
    eval: |_| bail!("no evaluation"),
    quant: KEEP,
};

const OBSERVED: QuantRule = QuantRule::Combine { data: Slots::All, output: OutputRange::Observed };

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "Add", infer: |c| infer_arithmetic(c, sym::add), eval: add, quant: OBSERVED, ..BINARY },
    OpDef { name: "Div", infer: |c| infer_arithmetic(c, sym::floor_div), eval: div, quant: OBSERVED, ..BINARY },
    OpDef { name: "Mod", since: 10, eval: modulo, ..BINARY },
    OpDef { name: "Mul", infer: |c| infer_arithmetic(c, sym::mul), eval: mul, quant: OBSERVED, ..BINARY },
    OpDef { name: "PRelu", infer: infer_prelu, eval: prelu_by_channel, ..BINARY },
    OpDef { name: "PRelu", since: 7, infer: infer_prelu, eval: prelu, ..BINARY },
    OpDef { name: "Pow", infer: infer_pow, eval: pow, ..BINARY },
    OpDef { name: "Sub", infer: |c| infer_arithmetic(c, sym::sub), eval: sub, quant: OBSERVED, ..BINARY },
];

pub(super) const REVERSE: &[Reverse] = &[
    Reverse::of("Add", |b| Ok(vec![b.broadcast(0, |g, _, _| g)?, b.broadcast(1, |g, _, _| g)?])),
    Reverse::of("Div", |b| Ok(vec![b.broadcast(0, |g, _, y| g / y)?, b.broadcast(1, |g, x, y| -g * x / (y * y))?])),
    Reverse::of("Mul", |b| Ok(vec![b.broadcast(0, |g, _, y| g * y)?, b.broadcast(1, |g, x, _| g * x)?])),
    Reverse::of("PRelu", reverse_prelu),
    Reverse::of("Pow", reverse_pow),
    Reverse::of("Sub", |b| Ok(vec![b.broadcast(0, |g, _, _| g)?, b.broadcast(1, |g, _, _| -g)?])),
];

fn reverse_prelu(b: &Back<'_>) -> Result<Gradients> {
    ensure!(b.opset >= 7 || b.input(1)?.len() == 1, "there is no rule for slopes of channels before opset 7");
    let dx = b.broadcast(0, |g, x, s| if x < 0.0 { g * s } else { g })?;
    Ok(vec![dx, b.broadcast(1, |g, x, _| if x < 0.0 { g * x } else { 0.0 })?])
}

/// To the base, and to an exponent of floats where the base is positive.
fn reverse_pow(b: &Back<'_>) -> Result<Gradients> {
    let slope = |x: f32, y: f32| {
        if y == 2.0 {
            2.0 * x
        } else if y == 0.0 {
            0.0
        } else {
            y * x.powf(y - 1.0)
        }
    };
    let dx = b.broadcast(0, |g, x, y| g * slope(x, y))?;
    let dy = |g: f32, x: f32, y: f32| if x > 0.0 { g * x.powf(y) * x.ln() } else { 0.0 };
    Ok(vec![dx, if b.input(1)?.dtype().is_float() { b.broadcast(1, dy)? } else { None }])
}

/// Types and shapes, and the elements when both are shapes.
fn infer_arithmetic(ctx: &mut InferCtx<'_>, op: fn(&Dim, &Dim) -> Dim) -> Result<()> {
    infer_broadcast(ctx)?;
    let (Some(a), Some(b)) = (ctx.values(0), ctx.values(1)) else { return Ok(()) };
    let n = match (a.len(), b.len()) {
        (x, y) if x == y => x,
        (1, y) => y,
        (x, 1) => x,
        _ => return Ok(()),
    };
    let at = |v: &[Dim], i: usize| v[if v.len() == 1 { 0 } else { i }].clone();
    let out: Vec<Dim> = (0..n).map(|i| op(&at(&a, i), &at(&b, i))).collect();
    if out.iter().any(|d| *d != Dim::Unknown) {
        ctx.set_values(0, out);
    }
    Ok(())
}

/// Evaluates with one function for floats and one for integers, in place where possible.
macro_rules! arithmetic {
    ($call:expr, $zip:ident, $float:expr, $int:expr) => {{
        let dtype = same_dtype($call)?;
        let work = work_type(dtype);
        let (a, b, threads) = ($call.take(0)?, $call.take(1)?, $call.threads);
        let (a, b) = if work == dtype { (a, b) } else { (cast(&a, work, true)?, cast(&b, work, true)?) };
        let c = match work {
            DType::F32 => $zip::<f32>(a, b, threads, $float)?,
            DType::F64 => $zip::<f64>(a, b, threads, $float)?,
            DType::I64 => $zip::<i64>(a, b, threads, $int)?,
            DType::U64 => $zip::<u64>(a, b, threads, $int)?,
            d => return wrong_type(0, d, "a number type"),
        };
        Ok(cast(&c, dtype, true)?.into())
    }};
}

fn add(call: &mut Call<'_>) -> Result<Vec<Item>> {
    arithmetic!(call, zip_either, |a, b| a + b, |a, b| a.wrapping_add(b))
}

fn sub(call: &mut Call<'_>) -> Result<Vec<Item>> {
    arithmetic!(call, zip_in_place, |a, b| a - b, |a, b| a.wrapping_sub(b))
}

fn mul(call: &mut Call<'_>) -> Result<Vec<Item>> {
    arithmetic!(call, zip_either, |a, b| a * b, |a, b| a.wrapping_mul(b))
}

/// Integers are truncated towards zero.
fn div(call: &mut Call<'_>) -> Result<Vec<Item>> {
    no_zero_divisor(call.input(1)?)?;
    // A divisor of 0 was refused; `checked_div` is `None` for the overflowing `MIN / -1` too, which wraps.
    arithmetic!(call, zip_in_place, |a, b| a / b, |a, b| a.checked_div(b).unwrap_or(a))
}

fn no_zero_divisor(b: &Tensor) -> Result<()> {
    if b.dtype().is_integer() && with_numbers!(b.data(), T, v => v.as_slice().contains(&T::default()), _ => false) {
        bail!("input 1 has a 0, and an integer cannot be divided by 0");
    }
    Ok(())
}

/// `fmod` 0: the sign of the divisor (Python's `%`); `fmod` 1: the sign of the dividend (C's `fmod`).
fn modulo(call: &mut Call<'_>) -> Result<Vec<Item>> {
    no_zero_divisor(call.input(1)?)?;
    if call.flag("fmod", false) {
        return arithmetic!(call, zip_in_place, |a, b| a % b, |a, b| a.checked_rem(b).unwrap_or(a));
    }
    arithmetic!(
        call,
        zip_in_place,
        |a, b| {
            let r = a % b;
            if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
        },
        |a, b| {
            #[allow(unused_comparisons, reason = "the same text serves unsigned types")]
            match a.checked_rem(b) {
                Some(r) if r != 0 && (r < 0) != (b < 0) => r.wrapping_add(b),
                Some(r) => r,
                None => 0,
            }
        }
    )
}

fn infer_pow(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = ctx.broadcast(0..2)?;
    let dtype = ctx.dtype(0);
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

fn pow(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (a, b, threads) = (call.take(0)?, call.take(1)?, call.threads);
    let dtype = a.dtype();
    let c = match dtype {
        DType::F32 | DType::F16 | DType::BF16 => {
            let a = cast(&a, DType::F32, true)?;
            let c = match (b.len() == 1 && b.rank() <= a.rank()).then(|| b.to_f64()).transpose()? {
                Some(y) => pow_by(a, y as f32, threads)?,
                None => zip_in_place(a, cast(&b, DType::F32, true)?, threads, f32::powf)?,
            };
            if is_half(dtype) { cast(&c, dtype, true)? } else { c }
        }
        DType::F64 => zip_in_place(a, cast(&b, DType::F64, true)?, threads, f64::powf)?,
        d if d.is_integer() && b.dtype().is_integer() => {
            let wide = zip::<i64, i64>(&cast(&a, DType::I64, true)?, &cast(&b, DType::I64, true)?, threads, int_pow)?;
            cast(&wide, d, true)?
        }
        d if d.is_integer() => {
            let wide = zip_in_place(cast(&a, DType::F64, true)?, cast(&b, DType::F64, true)?, threads, f64::powf)?;
            from_f64s(d, wide.shape(), wide.to_f64s()?)?
        }
        d => return wrong_type(0, d, "a number type"),
    };
    Ok(c.into())
}

/// One exponent for all: the frequent ones without a call of `powf`.
fn pow_by(a: Tensor, y: f32, threads: usize) -> Result<Tensor> {
    let zero = Tensor::scalar(0.0f32);
    if y == 2.0 {
        zip_in_place::<f32>(a, zero, threads, |x, _| x * x)
    } else if y == 0.5 {
        // Not quite a square root: +0 for -0 and infinity for -infinity.
        zip_in_place::<f32>(a, zero, threads, |x, _| if x == f32::NEG_INFINITY { -x } else { x.sqrt() + 0.0 })
    } else if y == -1.0 {
        zip_in_place::<f32>(a, zero, threads, |x, _| 1.0 / x)
    } else if y == 1.0 {
        Ok(a)
    } else {
        zip_in_place::<f32>(a, Tensor::scalar(y), threads, f32::powf)
    }
}

/// Wraps on overflow; a negative exponent truncates to -1, 0 or 1.
fn int_pow(&x: &i64, &y: &i64) -> i64 {
    match u32::try_from(y) {
        Ok(n) => x.wrapping_pow(n),
        Err(_) if x == 1 => 1,
        Err(_) if x == -1 => 1 - 2 * (y & 1),
        Err(_) => 0,
    }
}

fn infer_prelu(ctx: &mut InferCtx<'_>) -> Result<()> {
    infer_same_dtype(ctx, 0..2)?;
    ctx.same_as(0);
    Ok(())
}

/// Before opset 7 the slopes belong to the channels, axis 1.
fn prelu_by_channel(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (rank, slope) = (call.input(0)?.rank(), call.take(1)?);
    if slope.rank() == 1 && slope.len() > 1 && rank > 2 {
        let mut shape = vec![1; rank - 1];
        shape[0] = slope.len();
        call.inputs[1] = Some(slope.reshaped(&shape)?.into());
    } else {
        call.inputs[1] = Some(slope.into());
    }
    prelu(call)
}

fn prelu(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let dtype = same_dtype(call)?;
    let (x, slope) = (call.input(0)?, call.input(1)?);
    let shape = broadcast(x.shape(), slope.shape())?;
    ensure!(
        shape.as_slice() == x.shape(),
        "input 1 has shape {:?}, which does not broadcast to {:?}",
        slope.shape(),
        x.shape()
    );
    match dtype {
        // Never negative.
        DType::U32 | DType::U64 => Ok(call.take(0)?.into()),
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 | DType::I32 | DType::I64 => {
            arithmetic!(call, zip_in_place, |x, s| if x < 0.0 { x * s } else { x }, |x, s| if x < Default::default() {
                x.wrapping_mul(s)
            } else {
                x
            })
        }
        d => wrong_type(0, d, "a float type or an integer type of 32 or 64 bits"),
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn v(v: &[f32]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    #[test]
    fn floats_broadcast() {
        let a = Tensor::of(&[2, 2], vec![1.0f32, 2.0, 3.0, 4.0]);
        for (op, y) in [
            ("Add", vec![11.0f32, 22.0, 13.0, 24.0]),
            ("Sub", vec![-9.0, -18.0, -7.0, -16.0]),
            ("Mul", vec![10.0, 40.0, 30.0, 80.0]),
            ("Div", vec![0.1, 0.1, 0.3, 0.2]),
        ] {
            Case::new(op, 14).input(a.clone()).input(v(&[10.0, 20.0])).expect(&[Tensor::of(&[2, 2], y)]);
        }
        let column = Tensor::of(&[2, 1], vec![1.0f32, 2.0]);
        Case::new("Sub", 14)
            .input(v(&[10.0, 20.0]))
            .input(column)
            .expect(&[Tensor::of(&[2, 2], vec![9.0f32, 19.0, 8.0, 18.0])]);
        Case::new("Add", 14).input(a).input(v(&[1.0, 2.0, 3.0])).fails("do not broadcast");
    }

    #[test]
    fn integers() {
        let i = |v: &[i32]| Tensor::vector(v.to_vec());
        Case::new("Div", 14).input(i(&[7, -7, i32::MIN])).input(i(&[2, 2, -1])).expect(&[i(&[3, -3, i32::MIN])]);
        Case::new("Div", 14).input(i(&[7])).input(i(&[0])).fails("input 1 has a 0");
        Case::new("Mod", 13)
            .input(i(&[-4, 7, 5, 4, -7, 8]))
            .input(i(&[2, -3, 8, -2, 3, 5]))
            .expect(&[i(&[0, -2, 5, 0, 2, 3])]);
        Case::new("Mod", 13).attr("fmod", 1i64).input(i(&[-4, 7, -7])).input(i(&[3, -3, 3])).expect(&[i(&[-1, 1, -1])]);
        Case::new("Add", 14).input(i(&[1])).input(v(&[1.0])).fails("input 1 has element type float, expected int32");
        Case::new("Add", 14).input(Tensor::scalar(200u8)).input(Tensor::scalar(100u8)).expect(&[Tensor::scalar(44u8)]);
    }

    #[test]
    fn powers_keep_the_base_type() {
        let x = v(&[1.0, 2.0, 3.0]);
        for (y, expected) in [(2.0, [1.0, 4.0, 9.0]), (3.0, [1.0, 8.0, 27.0]), (0.5, [1.0, 2f32.sqrt(), 3f32.sqrt()])] {
            Case::new("Pow", 13).input(x.clone()).input(v(&[y])).tolerance(1e-6).expect(&[v(&expected)]);
        }
        Case::new("Pow", 13).input(x).input(Tensor::vector(vec![4i64, 5, 6])).expect(&[v(&[1.0, 32.0, 729.0])]);
        let i = Tensor::vector(vec![1i32, 2, 3]);
        Case::new("Pow", 13).input(i.clone()).input(v(&[4.0, 5.0, 6.0])).expect(&[Tensor::vector(vec![1i32, 32, 729])]);
        Case::new("Pow", 13).input(i.clone()).input(i).expect(&[Tensor::vector(vec![1i32, 4, 27])]);
    }

    #[test]
    fn slopes() {
        let x = Tensor::of(&[2, 2], vec![-1.0f32, 2.0, -3.0, -4.0]);
        Case::new("PRelu", 16)
            .input(x.clone())
            .input(v(&[0.5, 0.25]))
            .expect(&[Tensor::of(&[2, 2], vec![-0.5f32, 2.0, -1.5, -1.0])]);
        let image = Tensor::of(&[1, 2, 1, 1], vec![-1.0f32, -2.0]);
        let y = Tensor::of(&[1, 2, 1, 1], vec![-0.5f32, -0.5]);
        Case::new("PRelu", 6).input(image).input(v(&[0.5, 0.25])).expect(&[y]);
        Case::new("PRelu", 16).input(v(&[1.0, 2.0])).input(x).fails("does not broadcast to [2]");
    }
}
