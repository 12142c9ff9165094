//! `CausalConvWithState` — depthwise convolution over time that looks back only, with a state between calls.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__CausalConvWithState.html> (opset 27)
//! Inputs: input `[N, C, L]`, weight `[C, 1, k]`, bias? `[C]`, past_state? `[N, C, k - 1]` (zeros), of T.
//! Outputs: output `[N, C, L]`, present_state? `[N, C, k - 1]`: the last values of past_state and input. `activation`
//! `silu` or `swish` multiplies with the sigmoid. T: float16, bfloat16, float, double.
//! Quantized: stays float; its state crosses calls.
//! Errors: other ranks; sizes that differ; another activation.

use super::conv::convolve;
use super::floats::{FLOATS, from_f32s, same_dtype};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::Dim;
use crate::kernels::conv::Geometry;
use crate::kernels::math::sigmoid;
use crate::tensor::{DType, Tensor, cast};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "CausalConvWithState",
    domain: OpDomain::Onnx,
    since: 27,
    inputs: Arity::range(2, 4),
    outputs: Arity::range(1, 2),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "its state crosses calls" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    if let Some(rank) = ctx.rank(0) {
        ensure!(rank == 3, "input 0 (input) has rank {rank}, expected 3");
    }
    ctx.same_as(0);
    let dim = |slot: usize, i: usize| ctx.shape(slot).and_then(|s| s.get(i)).cloned().unwrap_or(Dim::Unknown);
    let state = dim(1, 2).known().map_or(Dim::Unknown, |k| Dim::Known(k.saturating_sub(1)));
    let shape = vec![dim(0, 0), dim(0, 1), state];
    ctx.set_tensor(1, ctx.dtype(0), Some(shape));
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, w, bias, past) = (call.input(0)?, call.input(1)?, call.optional(2)?, call.optional(3)?);
    let named = [("input", Some(x)), ("weight", Some(w)), ("bias", bias), ("past_state", past)];
    let dtype = same_dtype(&named, FLOATS)?;
    let &[n, c, length] = x.shape() else {
        return Err(anyhow!("input 0 (input) has shape {:?}, expected rank 3", x.shape()));
    };
    let k = match *w.shape() {
        [wc, 1, k] if wc == c && k >= 1 => k,
        _ => bail!("input 1 (weight) has shape {:?}, expected [{c}, 1, k]", w.shape()),
    };
    if let Some(b) = bias {
        ensure!(b.shape() == [c], "input 2 (bias) has shape {:?}, expected [{c}]", b.shape());
    }
    if let Some(p) = past {
        ensure!(
            p.shape() == [n, c, k - 1],
            "input 3 (past_state) has shape {:?}, expected [{n}, {c}, {}]",
            p.shape(),
            k - 1
        );
    }
    let activation = match call.str("activation", "none") {
        "none" | "" => false,
        "silu" | "swish" => true,
        other => bail!("attribute \"activation\" is \"{other}\", expected silu, swish or none"),
    };
    // Past and present side by side. Every type but double goes through 32-bit floats, which hold 16-bit ones exactly.
    let values = x.to_f64s()?;
    let past = past.map(Tensor::to_f64s).transpose()?;
    let whole = length + k - 1;
    let (mut both, mut state) = (Vec::with_capacity(n * c * whole), Vec::with_capacity(n * c * (k - 1)));
    for row in 0..n * c {
        match &past {
            Some(p) => both.extend_from_slice(&p[row * (k - 1)..(row + 1) * (k - 1)]),
            None => both.resize(both.len() + k - 1, 0.0),
        }
        both.extend_from_slice(&values[row * length..(row + 1) * length]);
        state.extend_from_slice(&both[both.len() - (k - 1)..]);
    }
    let both = cast::from_f64s(dtype, &[n, c, whole], both)?;
    let g = Geometry {
        batch: n,
        channels: c,
        filters: c,
        groups: c.max(1),
        input: vec![whole],
        output: vec![length],
        kernel: vec![k],
        stride: vec![1],
        dilation: vec![1],
        begin: vec![0],
    };
    let mut y = if length == 0 || c == 0 {
        Tensor::zeros(dtype, &[n, c, length])?
    } else {
        convolve(call, dtype, &g, &both, w, bias, None)?
    };
    if activation {
        y = if dtype == DType::F64 {
            let v = y.into_vec::<f64>()?;
            Tensor::new(&[n, c, length], v.into_iter().map(|x| x / (1.0 + (-x).exp())).collect())?
        } else {
            from_f32s(dtype, &[n, c, length], y.to_f32s()?.iter().map(|&x| x * sigmoid(x)).collect())?
        };
    }
    Ok(vec![y.into(), cast::from_f64s(dtype, &[n, c, k - 1], state)?.into()])
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Tensor, cast};

    fn t(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    #[test]
    fn looks_back_and_carries_the_state() {
        for dtype in super::FLOATS {
            let c = |t: Tensor| cast::cast(&t, *dtype, true).unwrap();
            let case = |x: &[f32]| {
                let w = c(t(&[1, 1, 3], &[1., 10., 100.]));
                Case::new("CausalConvWithState", 27).outputs(2).input(c(t(&[1, 1, x.len()], x))).input(w)
            };
            case(&[1., 2.]).expect(&[c(t(&[1, 1, 2], &[100., 210.])), c(t(&[1, 1, 2], &[1., 2.]))]);
            let past = || c(t(&[1, 1, 2], &[3., 4.]));
            let y = [c(t(&[1, 1, 1], &[144.])), c(t(&[1, 1, 2], &[4., 1.]))];
            case(&[1.]).input(c(t(&[1], &[1.]))).input(past()).expect(&[c(t(&[1, 1, 1], &[144.])), y[1].clone()]);
            case(&[1.])
                .skip()
                .input(past())
                .attr("activation", "silu")
                .tolerance(1e-2)
                .expect(&[c(t(&[1, 1, 1], &[143.])), y[1].clone()]);
        }
    }

    #[test]
    fn contradictions_are_errors() {
        let case = || Case::new("CausalConvWithState", 27).input(t(&[1, 1, 2], &[1., 2.]));
        case().input(t(&[2, 1, 3], &[1.; 6])).fails("input 1 (weight)");
        let w = t(&[1, 1, 3], &[1.; 3]);
        case().input(w.clone()).skip().input(t(&[1, 1, 3], &[1.; 3])).fails("input 3 (past_state)");
        case().input(w).attr("activation", "relu").fails("\"activation\"");
    }
}
