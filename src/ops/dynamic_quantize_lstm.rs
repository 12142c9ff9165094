//! `DynamicQuantizeLSTM` (com.microsoft) — an LSTM whose weights are 8-bit integers.
//!
//! Spec: <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.DynamicQuantizeLSTM>
//! Inputs: X float `[T, N, I]`; W, R int8 or uint8 `[D, I, 4*H]`, `[D, H, 4*H]` (transposed against LSTM's); B,
//! sequence_lens, initial_h, initial_c, P as LSTM has them; W_scale, W_zero_point, R_scale, R_zero_point `[D]` or
//! `[D, 4*H]`. Outputs and attributes: LSTM's.
//! X and the state are quantized to uint8 before each product, with the range that they have there.
//! Quantized: is quantized already.
//! Errors: shapes that do not fit.

use super::rnn;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, bail, ensure};
use crate::tensor::affine::fake_one;
use crate::tensor::{Tensor, strided};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "DynamicQuantizeLSTM",
    domain: OpDomain::Microsoft,
    since: 1,
    inputs: Arity::range(3, 12),
    outputs: Arity::range(0, 3),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "is quantized already" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    rnn::infer_transposed(ctx)
}

/// The values as uint8 of their own range would hold them; 0 is held exactly.
pub(super) fn fake_quantize(v: &mut [f32]) {
    let (lo, hi) = v.iter().fold((0.0f32, 0.0f32), |(lo, hi), &x| (lo.min(x), hi.max(x)));
    if lo < hi {
        let scale = (hi - lo) / 255.0;
        let zero_point = (-lo / scale).round_ties_even().clamp(0.0, 255.0) as i32;
        v.iter_mut().for_each(|x| *x = fake_one(*x, scale, zero_point, 0, 255));
    }
}

/// A weight `[D, K, N]` of integers as floats `[D, N, K]`.
fn weight(call: &Call<'_>, slot: usize, scale: usize) -> Result<Tensor> {
    let w = call.input(slot)?;
    let &[d, k, n] = w.shape() else { bail!("input {slot} has rank {}, expected 3", w.rank()) };
    let (scales, zeros) = (call.input(scale)?.to_f32s()?, call.optional_ints(scale + 1)?);
    let per = |len: usize, what: usize| -> Result<usize> {
        ensure!(len == d || len == d * n, "input {what} has {len} elements, expected {d} or {}", d * n);
        Ok(if len == d { 0 } else { 1 })
    };
    let scale_step = per(scales.len(), scale)?;
    let zero_step = zeros.as_ref().map_or(Ok(0), |z| per(z.len(), scale + 1))?;
    let at = |dir: usize, j: usize, step: usize| if step == 0 { dir } else { dir * n + j };
    let values: Vec<f32> = w
        .to_i64s()
        .with_context(|| format!("input {slot}"))?
        .iter()
        .enumerate()
        .map(|(i, &q)| {
            let (dir, j) = (i / (k * n), i % n);
            let z = zeros.as_ref().map_or(0, |z| z[at(dir, j, zero_step)]);
            (q - z) as f32 * scales[at(dir, j, scale_step)]
        })
        .collect();
    let moved = strided::gather(&values, 0, &[d, n, k], &[(k * n) as isize, 1, n as isize]);
    Tensor::new(&[d, n, k], moved)
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (w, r) = (weight(call, 1, 8)?, weight(call, 2, 10)?);
    call.inputs[1] = Some(w.into());
    call.inputs[2] = Some(r.into());
    call.inputs.truncate(8);
    let mut x = call.take(0)?;
    fake_quantize(x.slice_mut::<f32>().context("input 0 (X)")?);
    call.inputs[0] = Some(x.into());
    rnn::run_quantized(call)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    #[test]
    fn is_near_the_float_layer() {
        let t = |shape: &[usize], v: Vec<f32>| Tensor::of(shape, v);
        let case = |w: &[usize]| {
            Case::new("DynamicQuantizeLSTM", 1)
                .domain("com.microsoft")
                .input(t(&[1, 1, 1], vec![2.0]))
                .input(Tensor::of(w, vec![10i8, 20, 30, 40]))
                .input(Tensor::of(&[1, 1, 4], vec![50i8, 60, 70, 80]))
                .skip()
                .skip()
                .input(t(&[1, 1, 1], vec![0.5]))
                .input(t(&[1, 1, 1], vec![0.25]))
                .skip()
                .input(Tensor::vector(vec![0.01f32]))
                .input(Tensor::vector(vec![0i8]))
                .input(Tensor::vector(vec![0.01f32]))
                .input(Tensor::vector(vec![0i8]))
                .attr("hidden_size", 1)
        };
        // The float layer's value, as the test of LSTM computes it.
        let s = |x: f64| 1.0 / (1.0 + (-x).exp());
        let c = s(0.6 + 0.35) * 0.25 + s(0.2 + 0.25) * (0.8f64 + 0.4).tanh();
        let h = (s(0.4 + 0.3) * c.tanh()) as f32;
        case(&[1, 1, 4]).tolerance(1e-3).expect(&[t(&[1, 1, 1, 1], vec![h])]);
        case(&[4]).fails("input 1 has rank 1");
    }
}
