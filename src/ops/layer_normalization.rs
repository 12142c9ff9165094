//! Normalisation over the last dimensions: `LayerNormalization`, `RMSNormalization`, and ONNX Runtime's
//! `SimplifiedLayerNormalization`, `SkipLayerNormalization`, `SkipSimplifiedLayerNormalization`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__LayerNormalization.html> (17), `onnx__RMSNormalization.html` (23), and
//! ONNX Runtime's ContribOperators.md
//! Inputs: X of T, any shape; scale and bias, which broadcast to X. Outputs: Y as X, Mean and InvStdDev of float with
//! the normalised dimensions 1. T: f16, bf16, f32, f64; without a mean, scale and Y may have another of them than X.
//! Deviation: doubles are computed in doubles whatever `stash_type`, as ONNX Runtime does.
//! Quantized: no; means and square roots have no integer arithmetic.
//! Errors: an axis out of range; a scale that does not broadcast.

use super::elementwise::{infer_same_dtype, is_half, zip_in_place};
use super::reverse::{Back, Gradients, Reverse, normalized, summed};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule, call};
use crate::error::{Result, bail, ensure};
use crate::ir::Dim;
use crate::kernels::rows::{self, Norm};
use crate::tensor::broadcast::{broadcast, for_each_row};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor};

const NORM: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::range(2, 3),
    outputs: Arity::range(1, 3),
    is_pure: true,
    infer: infer_norm,
    eval: |_| bail!("no evaluation"),
    quant: QuantRule::Keep { why: "normalises: a mean and a square root have no integer arithmetic" },
};
const SKIP: OpDef = OpDef {
    domain: OpDomain::Microsoft,
    inputs: Arity::range(3, 5),
    outputs: Arity::range(1, 4),
    infer: infer_skip,
    ..NORM
};

pub(super) const OPS: &[OpDef] = &[
    // ONNX Runtime wrote it into older opsets, too, before the specification had it.
    OpDef { name: "LayerNormalization", eval: |c| eval_norm(c, true), ..NORM },
    OpDef {
        name: "RMSNormalization",
        since: 23,
        inputs: Arity::exactly(2),
        outputs: Arity::exactly(1),
        eval: |c| eval_norm(c, false),
        ..NORM
    },
    OpDef {
        name: "SimplifiedLayerNormalization",
        inputs: Arity::exactly(2),
        outputs: Arity::range(1, 2),
        eval: |c| eval_norm(c, false),
        ..NORM
    },
    OpDef {
        name: "SimplifiedLayerNormalization",
        domain: OpDomain::Microsoft,
        inputs: Arity::exactly(2),
        outputs: Arity::range(1, 2),
        eval: |c| eval_norm(c, false),
        ..NORM
    },
    OpDef { name: "SkipLayerNormalization", eval: |c| eval_skip(c, true), ..SKIP },
    OpDef {
        name: "SkipSimplifiedLayerNormalization",
        inputs: Arity::range(3, 4),
        eval: |c| eval_skip(c, false),
        ..SKIP
    },
];

pub(super) const REVERSE: &[Reverse] = &[
    Reverse::of("LayerNormalization", |b| reverse_norm(b, true)),
    Reverse::of("RMSNormalization", |b| reverse_norm(b, false)),
    Reverse::of("SimplifiedLayerNormalization", |b| reverse_norm(b, false)),
    Reverse::microsoft("SimplifiedLayerNormalization", |b| reverse_norm(b, false)),
    Reverse::microsoft("SkipLayerNormalization", |b| reverse_skip(b, true)),
    Reverse::microsoft("SkipSimplifiedLayerNormalization", |b| reverse_skip(b, false)),
];

/// From the gradient of `norm(x) * scale + bias` to those of `x` and `scale`.
fn reverse_rows(g: &[f32], x: &Tensor, n: usize, norm: Norm, scale: &Tensor) -> Result<(Vec<f32>, Vec<f32>)> {
    let (mut v, s) = (x.to_f32s()?.into_owned(), scale.to_f32s()?);
    let mut dx = g.to_vec();
    for_each_row(x.shape(), [scale.shape()], |o, [at], n, [step]| {
        dx[o..o + n].iter_mut().enumerate().for_each(|(i, g)| *g *= s[at + i * step]);
    });
    normalized(&mut v, &mut dx, n, norm.epsilon, norm.centered);
    v.iter_mut().zip(g).for_each(|(v, g)| *v *= g);
    Ok((dx, summed(&v, x.shape(), scale.shape())))
}

fn reverse_norm(b: &Back<'_>, centered: bool) -> Result<Gradients> {
    ensure!(b.gradients.iter().skip(1).all(Option::is_none), "there is no rule for the statistics");
    let (x, g) = (b.input(0)?, b.gradient()?);
    let axis = call::axis(b.int("axis", -1), x.rank())?;
    let norm = Norm { epsilon: b.float("epsilon", 1e-5), centered };
    let (dx, ds) = reverse_rows(g, x, x.shape()[axis..].iter().product(), norm, b.input(1)?)?;
    let mut out = vec![b.made(0, || Ok(dx))?, b.made(1, || Ok(ds))?];
    if let Some(bias) = b.optional(2) {
        out.push(b.made(2, || Ok(summed(g, x.shape(), bias.shape())))?);
    }
    Ok(out)
}

/// To input and skip, which enter as their sum; the gradient of the sum itself (output 3) is added.
fn reverse_skip(b: &Back<'_>, centered: bool) -> Result<Gradients> {
    ensure!(b.gradients.iter().skip(1).take(2).all(Option::is_none), "there is no rule for the statistics");
    let (x, skip) = (b.input(0)?, b.input(1)?);
    let n = x.shape().last().copied().unwrap_or(1);
    let norm = Norm { epsilon: b.float("epsilon", 1e-12), centered };
    let add = |a: Tensor, b: &Tensor| zip_in_place::<f32>(a, cast(b, DType::F32, true)?, 1, |a, b| a + b);
    let mut sum = add(cast(x, DType::F32, true)?, skip)?;
    if let Some(bias) = b.optional(if centered { 4 } else { 3 }) {
        sum = add(sum, bias)?;
    }
    let mut dx = vec![0.0; x.len()];
    if b.gradients.first().is_some_and(Option::is_some) {
        dx = reverse_rows(b.gradient()?, &sum, n, norm, b.input(2)?)?.0;
    }
    if let Some(Some(g)) = b.gradients.get(3) {
        dx.iter_mut().zip(g.slice::<f32>()?).for_each(|(d, g)| *d += g);
    }
    let to_skip = b.made(1, || Ok(summed(&dx, x.shape(), skip.shape())))?;
    Ok(vec![b.made(0, || Ok(dx))?, to_skip])
}

fn infer_norm(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = if ctx.op_type == "LayerNormalization" { ctx.dtype(0) } else { ctx.dtype(1) };
    ctx.set_tensor(0, dtype, ctx.shape(0).map(<[Dim]>::to_vec));
    let Some(shape) = ctx.shape(0).map(<[Dim]>::to_vec) else { return Ok(()) };
    let axis = call::axis(ctx.attrs.int("axis").unwrap_or(-1), shape.len())?;
    let stats: Vec<Dim> =
        shape.iter().enumerate().map(|(i, d)| if i < axis { d.clone() } else { Dim::Known(1) }).collect();
    let simplified = ctx.inputs.len() == 2 && ctx.outputs.len() == 2;
    ctx.set_tensor(1, Some(DType::F32), Some(stats.clone()));
    if !simplified {
        ctx.set_tensor(2, Some(DType::F32), Some(stats));
    }
    Ok(())
}

/// The row length, and the stored type.
fn eval_norm(call: &mut Call<'_>, centered: bool) -> Result<Vec<Item>> {
    let x = call.take(0)?;
    let axis = call::axis(call.int("axis", -1), x.rank())?;
    let norm = Norm { epsilon: call.float("epsilon", 1e-5), centered };
    let bias = if centered { call.optional(2)? } else { None };
    // Only the form without a mean lets the scale have another type, which the output has then.
    let out_dtype = if centered { x.dtype() } else { call.input(1)?.dtype() };
    let wide = if out_dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let x = if matches!(x.dtype(), d if d == out_dtype || d == DType::F64) { x } else { cast(&x, wide, true)? };
    let n: usize = x.shape()[axis..].iter().product();
    let mut stats_shape = x.shape().to_vec();
    stats_shape[axis..].fill(1);
    let (y, mean, inv) = normalize(x, n, norm, call.input(1)?, bias)?;
    let mean = Tensor::new(&stats_shape, mean)?.into();
    let inv = Tensor::new(&stats_shape, inv)?.into();
    let y = if y.dtype() == out_dtype { y } else { cast(&y, out_dtype, true)? };
    let mut out: Vec<Item> = vec![y.into()];
    // Only the centered form has a mean to give.
    if centered {
        out.push(mean);
    }
    out.push(inv);
    out.truncate(call.n_outputs());
    Ok(out)
}

/// The normalised rows of `n` elements, with the means and inverse standard deviations.
pub(super) fn normalize(
    x: Tensor,
    n: usize,
    norm: Norm,
    scale: &Tensor,
    bias: Option<&Tensor>,
) -> Result<(Tensor, Vec<f32>, Vec<f32>)> {
    let dtype = x.dtype();
    ensure!(
        is_half(dtype) || matches!(dtype, DType::F32 | DType::F64),
        "input 0 has element type {dtype}, expected a floating-point type"
    );
    for (slot, t) in [(1, Some(scale)), (2, bias)] {
        let Some(t) = t else { continue };
        let fits = broadcast(x.shape(), t.shape()).is_ok_and(|s| s.as_slice() == x.shape());
        ensure!(fits, "input {slot} has shape {:?}, which does not broadcast to {:?}", t.shape(), x.shape());
    }
    if dtype == DType::F64 {
        return normalize_doubles(x, n, norm, scale, bias);
    }
    let mut y = cast(&x, DType::F32, true)?;
    drop(x);
    let (mut means, mut invs) = (Vec::new(), Vec::new());
    let mut stats = |m, i| {
        means.push(m);
        invs.push(i);
    };
    // A scale of one row is multiplied on the way; one that varies over rows afterwards.
    let is_row = |t: &Tensor| t.len() == n && t.shape().iter().rev().zip(y.shape().iter().rev()).all(|(a, b)| a == b);
    if is_row(scale) && bias.is_none_or(is_row) {
        let scale = scale.to_f32s()?;
        let bias = bias.map(Tensor::to_f32s).transpose()?;
        rows::normalize(y.slice_mut()?, n, norm, (Some(&*scale), bias.as_deref()), &mut stats);
    } else {
        rows::normalize(y.slice_mut()?, n, norm, (None, None), &mut stats);
        y = zip_in_place::<f32>(y, cast(scale, DType::F32, true)?, 1, |x, s| x * s)?;
        if let Some(b) = bias {
            y = zip_in_place::<f32>(y, cast(b, DType::F32, true)?, 1, |x, b| x + b)?;
        }
    }
    Ok((cast(&y, dtype, true)?, means, invs))
}

/// [`normalize`] of doubles, in doubles.
fn normalize_doubles(
    mut y: Tensor,
    n: usize,
    norm: Norm,
    scale: &Tensor,
    bias: Option<&Tensor>,
) -> Result<(Tensor, Vec<f32>, Vec<f32>)> {
    let (mut means, mut invs) = (Vec::new(), Vec::new());
    rows::normalize_f64(y.slice_mut()?, n, norm, &mut |m, i| {
        means.push(m as f32);
        invs.push(i as f32);
    });
    y = zip_in_place::<f64>(y, cast(scale, DType::F64, true)?, 1, |x, s| x * s)?;
    if let Some(b) = bias {
        y = zip_in_place::<f64>(y, cast(b, DType::F64, true)?, 1, |x, b| x + b)?;
    }
    Ok((y, means, invs))
}

fn infer_skip(ctx: &mut InferCtx<'_>) -> Result<()> {
    infer_same_dtype(ctx, 0..2)?;
    ctx.same_as(0);
    let Some(ty) = ctx.ty(0).cloned() else { return Ok(()) };
    if let Some(shape) = ty.shape() {
        let mut stats = shape.to_vec();
        ensure!(!stats.is_empty(), "input 0 has rank 0, expected 2 or 3");
        if let Some(last) = stats.last_mut() {
            *last = Dim::Known(1);
        }
        ctx.set_tensor(1, Some(DType::F32), Some(stats.clone()));
        ctx.set_tensor(2, Some(DType::F32), Some(stats));
    }
    ctx.set(3, ty);
    Ok(())
}

/// `norm(input + skip + bias)`; output 3 is the sum.
fn eval_skip(call: &mut Call<'_>, centered: bool) -> Result<Vec<Item>> {
    let x = call.take(0)?;
    let (shape, dtype) = (x.shape().to_vec(), x.dtype());
    let Some(&n) = shape.last() else { bail!("input 0 has rank 0, expected 2 or 3") };
    let skip = call.input(1)?;
    let fits = broadcast(&shape, skip.shape()).is_ok_and(|s| s.as_slice() == shape);
    ensure!(fits, "input 1 has shape {:?}, which does not broadcast to {shape:?}", skip.shape());
    let add = |a: Tensor, b: &Tensor| zip_in_place::<f32>(a, cast(b, DType::F32, true)?, 1, |a, b| a + b);
    let mut sum = add(cast(&x, DType::F32, true)?, skip)?;
    let (beta, bias) = if centered { (call.optional(3)?, 4) } else { (None, 3) };
    if let Some(b) = call.optional(bias)? {
        ensure!(b.len() == n, "input {bias} has shape {:?}, expected [{n}]", b.shape());
        sum = add(sum, b)?;
    }
    let norm = Norm { epsilon: call.float("epsilon", 1e-12), centered };
    let kept = if call.wants(3) { Some(cast(&sum, dtype, true)?) } else { None };
    let (y, mean, inv) = normalize(sum, n, norm, call.input(2)?, beta)?;
    let mut stats_shape = shape;
    if let Some(last) = stats_shape.last_mut() {
        *last = 1;
    }
    let mut out: Vec<Item> = cast(&y, dtype, true)?.into();
    out.push(Tensor::new(&stats_shape, mean)?.into());
    out.push(Tensor::new(&stats_shape, inv)?.into());
    out.extend(kept.map(Item::from));
    out.truncate(call.n_outputs());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn x() -> Tensor {
        Tensor::of(&[2, 2], vec![1.0f32, 3.0, 10.0, 20.0])
    }

    #[test]
    fn layer_norm() {
        let one = Tensor::vector(vec![1.0f32, 2.0]);
        let bias = Tensor::vector(vec![0.5f32, 0.0]);
        let case = || Case::new("LayerNormalization", 17).input(x()).input(one.clone());
        let column = |a: f32, b: f32| Tensor::of(&[2, 1], vec![a, b]);
        let y = Tensor::of(&[2, 2], vec![-0.5f32, 2.0, -0.5, 2.0]);
        case().input(bias).attr("epsilon", 0.0f32).outputs(3).tolerance(1e-6).expect(&[
            y,
            column(2.0, 15.0),
            column(1.0, 0.2),
        ]);
        let y = Tensor::of(&[2, 2], vec![-1.0f32, 2.0, -1.0, 2.0]);
        case().attr("epsilon", 0.0f32).tolerance(1e-6).expect(&[y]);
        case().attr("axis", 2i64).fails("axis 2 is out of range");
        let bad = Tensor::vector(vec![1.0f32; 3]);
        Case::new("LayerNormalization", 17).input(x()).input(bad).fails("input 1 has shape [3]");
        Case::new("LayerNormalization", 17).input(Tensor::scalar(1i64)).input(one).fails("axis -1 is out of range");
    }

    #[test]
    fn rms_norm() {
        let s = Tensor::scalar(2.0f32);
        let r = (5.0f32).sqrt();
        let t = (250.0f32).sqrt();
        let y = Tensor::of(&[2, 2], vec![2.0 / r, 6.0 / r, 20.0 / t, 40.0 / t]);
        Case::new("RMSNormalization", 23).attr("epsilon", 0.0f32).input(x()).input(s).tolerance(1e-6).expect(&[y]);
    }

    #[test]
    fn with_skip() {
        let gamma = Tensor::vector(vec![1.0f32, 1.0]);
        let zero = Tensor::of(&[2, 2], vec![0.0f32, -1.0, 0.0, 0.0]);
        let y = Tensor::of(&[2, 2], vec![-1.0f32, 1.0, -1.0, 1.0]);
        Case::new("SkipLayerNormalization", 1)
            .domain("com.microsoft")
            .input(x())
            .input(zero)
            .input(gamma)
            .tolerance(1e-6)
            .expect(&[y]);
    }
}
