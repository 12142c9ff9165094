//! `FlexAttention` — scaled dot-product attention with bodies that change scores and probabilities.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxpreview_FlexAttention.html> (`ai.onnx.preview` 1)
//! Inputs: Q `[B, Hq, L, D]`, K `[B, Hkv, S, D]`, V `[B, Hkv, S, Dv]` of one floating-point type; Hq a multiple of Hkv.
//! Output: Y `[B, Hq, L, Dv]`. Bodies `score_mod` and `prob_mod`: `[B, Hq, L, S]` to the same, in the type of
//! `softmax_precision` (float, or double for doubles).
//! Errors: ranks other than 4, sizes that do not fit, a body that changes the shape or type.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, ensure};
use crate::ir::ValueType;
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor, count};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "FlexAttention",
    domain: OpDomain::Preview,
    since: 1,
    inputs: Arity::exactly(3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "its bodies see scores and probabilities as floats" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match (ctx.shape(0), ctx.shape(2)) {
        (Some([b, h, l, _]), Some([_, _, _, d])) => Some(vec![b.clone(), h.clone(), l.clone(), d.clone()]),
        _ => None,
    };
    let dtype = match precision(ctx.attrs.int("softmax_precision"), ctx.dtype(0)) {
        Ok(d) => Some(d),
        Err(_) => None,
    };
    if let (Some(d), Some([b, h, l, _]), Some([_, _, s, _])) = (dtype, ctx.shape(0), ctx.shape(1)) {
        let scores = ValueType::tensor(d, vec![b.clone(), h.clone(), l.clone(), s.clone()]);
        for name in ["score_mod", "prob_mod"] {
            if let Some(body) = ctx.attrs.graph(name) {
                ctx.bodies.infer(body, &[Some(scores.clone())])?;
            }
        }
    }
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

/// The type that scores and probabilities have.
fn precision(attr: Option<i64>, input: Option<DType>) -> Result<DType> {
    let default = if input == Some(DType::F64) { DType::F64 } else { DType::F32 };
    let Some(code) = attr else { return Ok(default) };
    let dtype = i32::try_from(code).ok().and_then(DType::from_code);
    let dtype = dtype.with_context(|| format!("attribute \"softmax_precision\" is {code}, which names no type"))?;
    ensure!(
        matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16),
        "attribute \"softmax_precision\" is {dtype}, expected a floating-point type"
    );
    Ok(dtype)
}

/// The scores or probabilities as a body changes them.
fn modify(call: &Call<'_>, name: &str, v: Vec<f64>, shape: &[usize], dtype: DType) -> Result<Vec<f64>> {
    let rounded = cast(&Tensor::new(shape, v)?, dtype, true)?;
    let Some(body) = call.attrs.graph(name) else { return rounded.to_f64s() };
    let outputs = call.bodies.run(body, vec![rounded.into()])?;
    let [out] = <[Item; 1]>::try_from(outputs).ok().with_context(|| format!("body \"{name}\" must have one output"))?;
    let out = out.into_tensor().with_context(|| format!("output of body \"{name}\""))?;
    ensure!(
        out.shape() == shape && out.dtype() == dtype,
        "body \"{name}\" gives {} {:?}, expected {dtype} {shape:?}",
        out.dtype(),
        out.shape()
    );
    out.to_f64s()
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (q, k, v) = (call.input(0)?, call.input(1)?, call.input(2)?);
    for (i, t) in [q, k, v].into_iter().enumerate() {
        ensure!(t.rank() == 4, "input {i} has rank {}, expected 4", t.rank());
        ensure!(t.dtype().is_float() && t.dtype() == q.dtype(), "input {i} is {}, expected one float type", t.dtype());
    }
    let dtype = precision(call.attrs.int("softmax_precision"), Some(q.dtype()))?;
    let (qs, ks, vs) = (q.shape(), k.shape(), v.shape());
    let (b, hq, l, d) = (qs[0], qs[1], qs[2], qs[3]);
    let (hk, s, dv) = (ks[1], ks[2], vs[3]);
    ensure!(
        ks[0] == b && vs[0] == b && vs[1] == hk && vs[2] == s && ks[3] == d,
        "shapes {qs:?}, {ks:?} and {vs:?} do not fit together"
    );
    ensure!(hk > 0 && hq % hk == 0, "{hq} query heads are no multiple of {hk} key heads");
    let scale = call.attrs.float("scale").map_or(1.0 / (d as f64).sqrt(), f64::from);
    let (q64, k64, v64) = (q.to_f64s()?, k.to_f64s()?, v.to_f64s()?);
    let group = hq / hk;
    let shape = [b, hq, l, s];
    let mut scores = Vec::with_capacity(count(&shape)?);
    for row in 0..b * hq * l {
        let head = row / l;
        let from = (head / hq * hk + head % hq / group) * s * d;
        let q = &q64[row * d..(row + 1) * d];
        scores.extend((0..s).map(|j| {
            let k = &k64[from + j * d..from + (j + 1) * d];
            scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
        }));
    }
    let mut probs = modify(call, "score_mod", scores, &shape, dtype)?;
    for row in probs.chunks_mut(s.max(1)) {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|x| *x = (*x - max).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
    }
    let probs = modify(call, "prob_mod", probs, &shape, dtype)?;
    let out_shape = [b, hq, l, dv];
    let mut out = Vec::with_capacity(count(&out_shape)?);
    for row in 0..b * hq * l {
        let head = row / l;
        let from = (head / hq * hk + head % hq / group) * s * dv;
        let p = &probs[row * s..(row + 1) * s];
        out.extend((0..dv).map(|j| p.iter().enumerate().map(|(i, p)| p * v64[from + i * dv + j]).sum::<f64>()));
    }
    Ok(cast(&Tensor::new(&out_shape, out)?, q.dtype(), true)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn groups_of_query_heads_share_a_key_head() {
        let q = Tensor::of(&[1, 2, 1, 1], vec![0.0f32, 0.0]);
        let k = Tensor::of(&[1, 1, 2, 1], vec![1.0f32, 2.0]);
        let v = Tensor::of(&[1, 1, 2, 1], vec![4.0f32, 8.0]);
        let case = Case::new("FlexAttention", 1).domain("ai.onnx.preview");
        case.clone()
            .input(q.clone())
            .input(k.clone())
            .input(v.clone())
            .expect(&[Tensor::of(&[1, 2, 1, 1], vec![6.0f32, 6.0])]);
        case.input(k.clone()).input(q).input(v).fails("do not fit together");
    }
}
