//! `DFT` and `STFT` — discrete Fourier transforms of any length.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__DFT.html> (opsets 17: axis as attribute; 20: axis as input),
//! `onnx__STFT.html` (17). Inputs: a signal of floats whose last dimension is 1 (real) or 2 (complex).
//! Output: complex (last dimension 2), or real for an inverse one-sided transform. Computed in 64 bits.
//! Quantized: no. Errors: an axis out of range; lengths that are no positive numbers.

use rustfft::FftPlanner;
use rustfft::num_complex::Complex64;

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule, call};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::cast::from_f64s;
use crate::tensor::{Tensor, count};

const FOURIER: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 17,
    inputs: Arity::range(1, 2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_dft,
    eval: dft,
    quant: QuantRule::Keep { why: "is a Fourier transform" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "DFT", ..FOURIER },
    OpDef { name: "DFT", since: 20, inputs: Arity::range(1, 3), ..FOURIER },
    OpDef { name: "STFT", inputs: Arity::range(2, 4), infer: infer_stft, eval: stft, ..FOURIER },
];

/// The transformed axis; the last dimension is none.
fn axis_of(axis: i64, rank: usize) -> Result<usize> {
    let axis = call::axis(axis, rank)?;
    ensure!(axis + 1 < rank, "axis {axis} is the dimension of real and imaginary parts");
    Ok(axis)
}

fn infer_dft(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype(0);
    let inverse = ctx.attrs.int("inverse").unwrap_or(0) != 0;
    let onesided = ctx.attrs.int("onesided").unwrap_or(0) != 0;
    let mut shape = ctx.shape(0).map(<[Dim]>::to_vec);
    let axis = match (ctx.opset >= 20, ctx.has(2)) {
        (false, _) => Some(ctx.attrs.int("axis").unwrap_or(1)),
        (true, false) => Some(-2),
        (true, true) => ctx.ints(2).and_then(|v| v.first().copied()),
    };
    if let Some(s) = &mut shape {
        ensure!(s.len() >= 2, "input 0 has rank {}, expected at least 2", s.len());
        let given = ctx.values(1).and_then(|v| v.first().cloned());
        match axis {
            Some(axis) => {
                let axis = axis_of(axis, s.len())?;
                let n = match (ctx.has(1), given) {
                    (true, Some(n)) => n,
                    (true, None) => Dim::Unknown,
                    (false, _) if inverse && onesided => sym::mul(&Dim::Known(2), &sym::sub(&s[axis], &Dim::Known(1))),
                    (false, _) => s[axis].clone(),
                };
                s[axis] = if onesided && !inverse { bins(&n) } else { n };
            }
            None => s.fill(Dim::Unknown),
        }
        if let Some(last) = s.last_mut() {
            *last = Dim::Known(if inverse && onesided { 1 } else { 2 });
        }
    }
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

/// Bins of a one-sided transform of length `n`.
fn bins(n: &Dim) -> Dim {
    sym::add(&sym::floor_div(n, &Dim::Known(2)), &Dim::Known(1))
}

/// What a transform does.
#[derive(Clone, Copy)]
struct Transform {
    /// Length.
    n: usize,
    inverse: bool,
    onesided: bool,
}

impl Transform {
    /// Values that come out of one transform.
    fn n_out(self) -> usize {
        if self.onesided && !self.inverse { self.n / 2 + 1 } else { self.n }
    }

    /// Parts of an output value: real and imaginary, or real only.
    fn parts(self) -> usize {
        if self.onesided && self.inverse { 1 } else { 2 }
    }

    /// Fills a signal up, or cuts it, to the length; for the one-sided inverse with the mirrored other side.
    fn prepare(self, signal: &mut Vec<Complex64>) {
        let n = self.n;
        if !(self.inverse && self.onesided) {
            signal.resize(n, Complex64::default());
            return;
        }
        signal.resize(n / 2 + 1, Complex64::default());
        signal[0].im = 0.0;
        if n.is_multiple_of(2) {
            signal[n / 2].im = 0.0;
        }
        for k in n / 2 + 1..n {
            signal.push(signal[n - k].conj());
        }
    }
}

fn length(t: &Tensor, slot: usize) -> Result<usize> {
    let n = t.to_i64().with_context(|| format!("input {slot}"))?;
    usize::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| anyhow!("input {slot} is {n}, expected a positive number"))
}

fn complex(v: &[f64], i: usize, parts: usize) -> Complex64 {
    Complex64::new(v[i * parts], if parts == 2 { v[i * parts + 1] } else { 0.0 })
}

fn dft(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    ensure!(x.dtype().is_float(), "input 0 has element type {}, expected a floating-point type", x.dtype());
    let &[.., parts @ (1 | 2)] = x.shape() else {
        bail!("input 0 has shape {:?}, expected a last dimension of 1 or 2", x.shape())
    };
    let axis = match (call.opset >= 20, call.optional(2)?) {
        (false, _) => call.int("axis", 1),
        (true, None) => -2,
        (true, Some(t)) => t.to_i64().context("input 2 (axis)")?,
    };
    let axis = axis_of(axis, x.rank())?;
    let (inverse, onesided) = (call.flag("inverse", false), call.flag("onesided", false));
    let size = x.shape()[axis];
    let n = match call.optional(1)? {
        Some(t) => length(t, 1)?,
        None if inverse && onesided => 2 * size.saturating_sub(1),
        None => size,
    };
    ensure!(n > 0, "input 0 has shape {:?}, which leaves nothing to transform", x.shape());
    let t = Transform { n, inverse, onesided };
    let v = x.to_f64s()?;
    let inner: usize = x.shape()[axis + 1..x.rank() - 1].iter().product();
    let outer: usize = x.shape()[..axis].iter().product();
    let mut shape = x.shape().to_vec();
    shape[axis] = t.n_out();
    let last = shape.len() - 1;
    shape[last] = t.parts();
    let mut out = vec![0.0; count(&shape)?];
    let mut planner = FftPlanner::new();
    let fft = if inverse { planner.plan_fft_inverse(n) } else { planner.plan_fft_forward(n) };
    let mut scratch = vec![Complex64::default(); fft.get_inplace_scratch_len()];
    let factor = if inverse { 1.0 / n as f64 } else { 1.0 };
    for o in 0..outer {
        for i in 0..inner {
            let mut signal: Vec<Complex64> =
                (0..size.min(n)).map(|k| complex(&v, (o * size + k) * inner + i, parts)).collect();
            t.prepare(&mut signal);
            fft.process_with_scratch(&mut signal, &mut scratch);
            for (k, y) in signal.iter().take(t.n_out()).enumerate() {
                let at = ((o * t.n_out() + k) * inner + i) * t.parts();
                out[at] = y.re * factor;
                if t.parts() == 2 {
                    out[at + 1] = y.im * factor;
                }
            }
        }
    }
    Ok(from_f64s(x.dtype(), &shape, out)?.into())
}

fn infer_stft(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype(0);
    let onesided = ctx.attrs.int("onesided").unwrap_or(1) != 0;
    let Some(s) = ctx.shape(0).map(<[Dim]>::to_vec) else {
        ctx.set_tensor(0, dtype, None);
        return Ok(());
    };
    ensure!(s.len() == 3 || s.len() == 2, "input 0 has rank {}, expected 3", s.len());
    let frame = match (ctx.has(3), ctx.has(2)) {
        (true, _) => ctx.values(3).and_then(|v| v.first().cloned()).unwrap_or(Dim::Unknown),
        (_, true) => ctx.shape(2).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown),
        _ => s[1].clone(),
    };
    let step = ctx.values(1).and_then(|v| v.first().cloned()).unwrap_or(Dim::Unknown);
    let frames = sym::add(&sym::floor_div(&sym::sub(&s[1], &frame), &step), &Dim::Known(1));
    let n = if onesided { bins(&frame) } else { frame };
    ctx.set_tensor(0, dtype, Some(vec![s[0].clone(), frames, n, Dim::Known(2)]));
    Ok(())
}

fn stft(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    ensure!(x.dtype().is_float(), "input 0 has element type {}, expected a floating-point type", x.dtype());
    let (batch, len, parts) = match *x.shape() {
        [b, l] => (b, l, 1),
        [b, l, p @ (1 | 2)] => (b, l, p),
        _ => bail!("input 0 has shape {:?}, expected [batch, length, 1 or 2]", x.shape()),
    };
    let step = length(call.input(1)?, 1)?;
    let window = call.optional(2)?.map(Tensor::to_f64s).transpose()?;
    let n = match (call.optional(3)?, &window) {
        (Some(t), _) => length(t, 3)?,
        (None, Some(w)) => w.len(),
        (None, None) => len,
    };
    if let Some(w) = &window {
        ensure!(w.len() == n, "input 2 has {} elements, expected {n} as input 3 says", w.len());
    }
    ensure!(n > 0 && n <= len, "input 0 has {len} samples, expected at least one frame of {n}");
    let t = Transform { n, inverse: false, onesided: call.flag("onesided", true) };
    let frames = (len - n) / step + 1;
    let shape = [batch, frames, t.n_out(), 2];
    let mut out = Vec::with_capacity(count(&shape)?);
    let v = x.to_f64s()?;
    let fft = FftPlanner::new().plan_fft_forward(n);
    let mut scratch = vec![Complex64::default(); fft.get_inplace_scratch_len()];
    let mut signal = Vec::with_capacity(n);
    for b in 0..batch {
        for f in 0..frames {
            let start = b * len + f * step;
            signal.clear();
            signal.extend((0..n).map(|i| complex(&v, start + i, parts) * window.as_ref().map_or(1.0, |w| w[i])));
            fft.process_with_scratch(&mut signal, &mut scratch);
            out.extend(signal.iter().take(t.n_out()).flat_map(|y| [y.re, y.im]));
        }
    }
    Ok(from_f64s(x.dtype(), &shape, out)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn transforms() {
        let x = Tensor::of(&[1, 3, 1], vec![1.0f32, 2.0, 4.0]);
        let r = 3f32.sqrt();
        let full = vec![7.0f32, 0.0, -2.0, r, -2.0, -r];
        let y = Tensor::of(&[1, 3, 2], full.clone());
        Case::new("DFT", 20).input(x.clone()).tolerance(1e-6).expect(&[y.clone()]);
        Case::new("DFT", 17).input(x.clone()).tolerance(1e-6).expect(&[y.clone()]);
        let half = Tensor::of(&[1, 2, 2], full[..4].to_vec());
        Case::new("DFT", 20).attr("onesided", 1i64).input(x.clone()).tolerance(1e-6).expect(&[half.clone()]);
        let back = Tensor::of(&[1, 3, 2], vec![1.0f32, 0.0, 2.0, 0.0, 4.0, 0.0]);
        Case::new("DFT", 20).attr("inverse", 1i64).input(y).tolerance(1e-6).expect(&[back]);
        Case::new("DFT", 20)
            .attr("inverse", 1i64)
            .attr("onesided", 1i64)
            .input(half)
            .input(Tensor::scalar(3i64))
            .tolerance(1e-6)
            .expect(&[x.clone()]);
        let padded = Tensor::of(&[1, 4, 2], vec![7.0f32, 0.0, -3.0, -2.0, 3.0, 0.0, -3.0, 2.0]);
        Case::new("DFT", 20).input(x.clone()).input(Tensor::scalar(4i64)).tolerance(1e-6).expect(&[padded]);
        Case::new("DFT", 20)
            .input(x.clone())
            .skip()
            .input(Tensor::scalar(2i64))
            .fails("axis 2 is the dimension of real");
        Case::new("DFT", 20).input(x).input(Tensor::scalar(0i64)).fails("input 1 is 0");
    }

    #[test]
    fn short_time() {
        let x = Tensor::of(&[1, 4, 1], vec![1.0f32, 2.0, 3.0, 4.0]);
        let y = Tensor::of(&[1, 3, 2, 2], vec![3.0f32, 0.0, -1.0, 0.0, 5.0, 0.0, -1.0, 0.0, 7.0, 0.0, -1.0, 0.0]);
        let case = || Case::new("STFT", 17).input(x.clone()).input(Tensor::scalar(1i64));
        case().skip().input(Tensor::scalar(2i64)).tolerance(1e-6).expect(&[y.clone()]);
        case().input(Tensor::vector(vec![1.0f32; 2])).tolerance(1e-6).expect(&[y]);
        case().skip().input(Tensor::scalar(5i64)).fails("expected at least one frame of 5");
    }
}
