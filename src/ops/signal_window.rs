//! Windows of signals, and the mel filter bank: `HannWindow`, `HammingWindow`, `BlackmanWindow`, `MelWeightMatrix`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__HannWindow.html> and so on (opset 17)
//! Inputs: sizes and frequencies, scalars. Output: `[size]`, or `[dft_length / 2 + 1, num_mel_bins]`, of
//! `output_datatype`. Quantized: no; constants. Errors: a size that is negative or no scalar.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::cast::from_f64s;
use crate::tensor::{DType, count};

const WINDOW: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 17,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_window,
    eval: |_| bail!("no evaluation"),
    quant: QuantRule::Keep { why: "gives a constant" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "BlackmanWindow", eval: |c| window(c, [0.42, 0.5, 0.08]), ..WINDOW },
    OpDef { name: "HammingWindow", eval: |c| window(c, [25.0 / 46.0, 21.0 / 46.0, 0.0]), ..WINDOW },
    OpDef { name: "HannWindow", eval: |c| window(c, [0.5, 0.5, 0.0]), ..WINDOW },
    OpDef { name: "MelWeightMatrix", inputs: Arity::exactly(5), infer: infer_mel, eval: mel, ..WINDOW },
];

fn first(ctx: &InferCtx<'_>, slot: usize) -> Dim {
    ctx.values(slot).and_then(|v| v.first().cloned()).unwrap_or(Dim::Unknown)
}

fn infer_window(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype_attr("output_datatype")?.unwrap_or(DType::F32);
    let n = sym::as_size(&first(ctx, 0));
    ctx.set_tensor(0, Some(dtype), Some(vec![n]));
    Ok(())
}

fn infer_mel(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype_attr("output_datatype")?.unwrap_or(DType::F32);
    let bins = sym::add(&sym::floor_div(&first(ctx, 1), &Dim::Known(2)), &Dim::Known(1));
    let shape = vec![sym::as_size(&bins), sym::as_size(&first(ctx, 0))];
    ctx.set_tensor(0, Some(dtype), Some(shape));
    Ok(())
}

fn size(call: &Call<'_>, slot: usize) -> Result<usize> {
    let n = call.input(slot)?.to_i64().with_context(|| format!("input {slot}"))?;
    let n = usize::try_from(n).map_err(|_| anyhow!("input {slot} is {n}, expected a size"))?;
    ensure!(n < 1 << 32, "input {slot} is {n}, which is too large");
    Ok(n)
}

/// `a - b cos(2 pi i / n) + c cos(4 pi i / n)`, where `n` is the size, or one less for a symmetric window.
fn window(call: &mut Call<'_>, [a, b, c]: [f64; 3]) -> Result<Vec<Item>> {
    let n = size(call, 0)?;
    let dtype = call.dtype("output_datatype", DType::F32)?;
    let period = if call.flag("periodic", true) { n } else { n.saturating_sub(1) }.max(1) as f64;
    let at = |i: usize| {
        let w = 2.0 * std::f64::consts::PI * i as f64 / period;
        a - b * w.cos() + c * (2.0 * w).cos()
    };
    Ok(from_f64s(dtype, &[n], (0..n).map(at).collect())?.into())
}

/// Triangles on the mel scale.
fn mel(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (n_mel, dft) = (size(call, 0)?, size(call, 1)?);
    let dtype = call.dtype("output_datatype", DType::F32)?;
    let value = |slot: usize| call.input(slot)?.to_f64().with_context(|| format!("input {slot}"));
    let (rate, lower, upper) = (value(2)?, value(3)?, value(4)?);
    ensure!(rate > 0.0, "input 2 is {rate}, expected a positive sample rate");
    let bins = dft / 2 + 1;
    let to_mel = |hertz: f64| 2595.0 * (hertz / 700.0).ln_1p() / std::f64::consts::LN_10;
    let (low, high) = (to_mel(lower), to_mel(upper));
    let step = (high - low) / (n_mel + 2) as f64;
    let edges: Vec<usize> = (0..n_mel + 2)
        .map(|i| {
            let mel = i as f64 * step + low;
            let hertz = 700.0 * (mel / 2595.0 * std::f64::consts::LN_10).exp_m1();
            ((dft as f64 + 1.0) * hertz / rate).floor().max(0.0) as usize
        })
        .collect();
    ensure!(edges.iter().all(|e| *e <= bins), "input 4 is {upper}, expected at most half the sample rate of {rate}");
    let mut out = vec![0.0; count(&[bins, n_mel])?];
    let mut set = |bin: usize, i: usize, v: f64| {
        if bin < bins {
            out[bin * n_mel + i] = v;
        }
    };
    for i in 0..n_mel {
        let (left, center, right) = (edges[i], edges[i + 1], edges[i + 2]);
        if left == center {
            set(center, i, 1.0);
        } else {
            (left..=center).for_each(|j| set(j, i, (j - left) as f64 / (center - left) as f64));
        }
        if right > center {
            (center..right).for_each(|j| set(j, i, (right - j) as f64 / (right - center) as f64));
        }
    }
    Ok(from_f64s(dtype, &[bins, n_mel], out)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn windows() {
        let case = |op: &str| Case::new(op, 17).input(Tensor::scalar(4i64)).tolerance(1e-6);
        case("HannWindow").expect(&[Tensor::vector(vec![0.0f32, 0.5, 1.0, 0.5])]);
        case("HannWindow").attr("periodic", 0i64).expect(&[Tensor::vector(vec![0.0f32, 0.75, 0.75, 0.0])]);
        case("BlackmanWindow").expect(&[Tensor::vector(vec![0.0f32, 0.34, 1.0, 0.34])]);
        case("HammingWindow").expect(&[Tensor::vector(vec![0.086_956_52f32, 0.543_478_26, 1.0, 0.543_478_26])]);
        Case::new("HannWindow", 17).input(Tensor::scalar(-1i64)).fails("input 0 is -1");
    }

    #[test]
    fn mel_weights() {
        let case = |upper: f32| {
            let i = |n: i64| Tensor::scalar(n);
            Case::new("MelWeightMatrix", 17)
                .input(i(2))
                .input(i(8))
                .input(i(8))
                .input(Tensor::scalar(0.0f32))
                .input(Tensor::scalar(upper))
        };
        let y = case(4.0).run().unwrap();
        assert_eq!(y[0].shape(), &[5, 2]);
        case(4000.0).fails("input 4 is 4000");
    }
}
