//! `Attention` — scaled dot-product attention with masks, grouped heads and a cache.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Attention.html> (opsets 23, 24, 25), and `com.microsoft` (whose operator
//! of this name projects its input first). Inputs: Q, K, V `[B, H, S, D]` or `[B, S, H * D]`, attn_mask?, past_key?,
//! past_value?, nonpad_kv_seqlen? Outputs: Y as Q, present_key, present_value, qk_matmul_output.
//! Computed in 32 bits, doubles in 64, whatever `softmax_precision` is.
//! Quantized: no. Errors: shapes that do not fit; a cache without its other half.

use super::attention_core::{Attend, Bias, Heads, Real, Stage};
use super::multi_head_attention::scale;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Dim, sym};
use crate::kernels::gemm::{Init, PackedB, gemm};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor};

pub(super) const WHY: QuantRule = QuantRule::Keep { why: "is attention, whose scores have no fixed scale" };

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "Attention",
        domain: OpDomain::Onnx,
        since: 23,
        inputs: Arity::range(3, 7),
        outputs: Arity::range(1, 4),
        is_pure: true,
        infer,
        eval,
        quant: WHY,
    },
    OpDef {
        name: "Attention",
        domain: OpDomain::Microsoft,
        since: 1,
        inputs: Arity::range(2, 7),
        outputs: Arity::range(1, 2),
        is_pure: true,
        infer: infer_projected,
        eval: eval_projected,
        quant: WHY,
    },
];

/// A number of heads from an attribute.
pub(super) fn heads(attr: Option<i64>, name: &str) -> Result<Option<usize>> {
    match attr {
        None | Some(0) => Ok(None),
        Some(n) => match usize::try_from(n) {
            Ok(n) => Ok(Some(n)),
            Err(_) => bail!("attribute \"{name}\" is {n}, expected a positive number"),
        },
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype(0);
    let (q_heads, kv_heads) =
        (heads(ctx.attrs.int("q_num_heads"), "q_num_heads")?, heads(ctx.attrs.int("kv_num_heads"), "kv_num_heads")?);
    let (Some(q), Some(k), Some(v)) = (ctx.shape(0), ctx.shape(1), ctx.shape(2)) else {
        ctx.set_tensor(0, dtype, None);
        return Ok(());
    };
    // [B, H, S, D] of each.
    let by_head = |s: &[Dim], n: Option<usize>| match (s, n) {
        ([b, h, s, d], _) => Ok([b.clone(), h.clone(), s.clone(), d.clone()]),
        ([b, s, w], Some(n)) => Ok([b.clone(), Dim::Known(n), s.clone(), sym::floor_div(w, &Dim::Known(n))]),
        _ => Err(anyhow!("rank {} without a number of heads, expected 4", s.len())),
    };
    let ([b, h, s, _], k4, v4) = (by_head(q, q_heads)?, by_head(k, kv_heads)?, by_head(v, kv_heads)?);
    let y = if q.len() == 4 {
        vec![b.clone(), h.clone(), s.clone(), v4[3].clone()]
    } else {
        vec![b.clone(), s.clone(), sym::mul(&h, &v4[3])]
    };
    let past =
        if ctx.has(4) { ctx.shape(4).and_then(|p| p.get(2).cloned()).unwrap_or(Dim::Unknown) } else { Dim::Known(0) };
    let total = sym::add(&past, &k4[2]);
    let (k_type, v_type) = (ctx.dtype(1), ctx.dtype(2));
    let [kb, kh, _, kd] = k4;
    let [vb, vh, _, vd] = v4;
    ctx.set_tensor(0, dtype, Some(y));
    ctx.set_tensor(1, k_type, Some(vec![kb, kh, total.clone(), kd]));
    ctx.set_tensor(2, v_type, Some(vec![vb, vh, total.clone(), vd]));
    ctx.set_tensor(3, dtype, Some(vec![b, h, s, total]));
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    if call.input(0)?.dtype() == DType::F64 { attend::<f64>(call) } else { attend::<f32>(call) }
}

fn attend<T: Real>(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (q_heads, kv_heads) =
        (heads(call.attrs.int("q_num_heads"), "q_num_heads")?, heads(call.attrs.int("kv_num_heads"), "kv_num_heads")?);
    let (dtype, k_type, v_type) = (call.input(0)?.dtype(), call.input(1)?.dtype(), call.input(2)?.dtype());
    let is_flat = call.input(0)?.rank() == 3;
    let q = Heads::of(T::DTYPE, call.input(0)?, q_heads, "input 0")?;
    let mut k = Heads::of(T::DTYPE, call.input(1)?, kv_heads, "input 1")?;
    let mut v = Heads::of(T::DTYPE, call.input(2)?, kv_heads, "input 2")?;
    let mut past = 0;
    match (call.optional(4)?, call.optional(5)?) {
        (Some(pk), Some(pv)) => {
            past = pk.shape().get(2).copied().unwrap_or(0);
            (k, v) = (k.behind(pk, "input 4")?, v.behind(pv, "input 5")?);
        }
        (None, None) => {}
        _ => bail!("inputs 4 and 5 (past_key, past_value) go together"),
    }
    let valid = call.optional(6)?.map(Tensor::to_i64s).transpose()?;
    if let Some(n) = &valid {
        ensure!(
            n.len() == q.batch(),
            "input 6 has {} elements, expected one for each of {} samples",
            n.len(),
            q.batch()
        );
    }
    let scores = [q.batch(), q.heads(), q.len(), k.len()];
    let mut biases = Vec::new();
    if let Some(mask) = call.optional(3)? {
        biases.push(Bias::new(mask, scores, f32::NEG_INFINITY, "input 3")?);
    }
    let (causal, left, right) =
        (call.flag("is_causal", false), call.int("left_window_size", -1), call.int("right_window_size", -1));
    let (n_q, n_k) = (q.len() as i64, k.len() as i64);
    let has_past = call.optional(4)?.is_some();
    let visible = |batch: usize, query: usize| {
        let n = valid.as_ref().map_or(n_k, |v| v[batch].clamp(0, n_k));
        // The position of the query among the keys.
        let offset = match &valid {
            Some(v) if !has_past => v[batch] - n_q,
            _ => past as i64,
        };
        let at = offset + query as i64;
        let mut to = n;
        if causal {
            to = to.min(at + 1);
        }
        if right >= 0 {
            to = to.min(at.saturating_add(right).saturating_add(1));
        }
        let from = if left >= 0 { at.saturating_sub(left).max(0) } else { 0 };
        from as usize..to.max(0) as usize
    };
    let keep = match call.int("qk_matmul_output_mode", 0) {
        _ if !call.wants(3) => None,
        0 => Some(Stage::Raw),
        1 => Some(Stage::Capped),
        2 => Some(Stage::Masked),
        3 => Some(Stage::Softmax),
        other => bail!("attribute \"qk_matmul_output_mode\" is {other}, expected 0 to 3"),
    };
    let attend = Attend {
        scale: call.attrs.float("scale").map_or(T::inverse_root(q.size()), T::of),
        softcap: call.float("softcap", 0.0),
        biases: &biases,
        sinks: None,
        visible: &visible,
        keep,
        threads: call.threads,
    };
    let (y, kept) = attend.run(&q, &k, &v)?;
    let y = if is_flat { y.merged()? } else { y.data };
    let mut out: Vec<Item> = cast(&y, dtype, true)?.into();
    if call.n_outputs() > 1 {
        out.push(cast(&k.data, k_type, true)?.into());
        out.push(cast(&v.data, v_type, true)?.into());
        if let Some(kept) = kept {
            out.push(cast(&kept, dtype, true)?.into());
        }
    }
    out.truncate(call.n_outputs());
    Ok(out)
}

fn infer_projected(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype(0);
    let width = match ctx.attrs.ints("qkv_hidden_sizes") {
        Some([_, _, v]) => usize::try_from(*v).map_or(Dim::Unknown, Dim::Known),
        _ => ctx.shape(1).and_then(|w| w.last().cloned()).map_or(Dim::Unknown, |w| sym::floor_div(&w, &Dim::Known(3))),
    };
    let shape = match ctx.shape(0) {
        Some([b, s, _]) => Some(vec![b.clone(), s.clone(), width]),
        Some(s) => bail!("input 0 has rank {}, expected 3", s.len()),
        None => None,
    };
    ctx.set_tensor(0, dtype, shape);
    ctx.set_tensor(1, dtype, Some(vec![Dim::Unknown; 5]));
    Ok(())
}

/// ONNX Runtime's operator: projects the input to queries, keys and values with one weight.
fn eval_projected(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let dtype = x.dtype();
    ensure!(!call.flag("do_rotary", false), "attribute \"do_rotary\" is not supported");
    let &[batch, len, width] = x.shape() else { bail!("input 0 has rank {}, expected 3", x.rank()) };
    let n = heads(call.attrs.int("num_heads"), "num_heads")?
        .ok_or_else(|| anyhow!("attribute \"num_heads\" is missing"))?;
    let weight = call.input(1)?;
    let &[rows, columns] = weight.shape() else { bail!("input 1 has rank {}, expected 2", weight.rank()) };
    ensure!(rows == width, "input 1 has {rows} rows, expected {width} as input 0 has columns");
    let sizes = call.sizes("qkv_hidden_sizes", || vec![columns / 3; 3])?;
    ensure!(
        sizes.len() == 3 && sizes.iter().sum::<usize>() == columns,
        "input 1 has {columns} columns for widths {sizes:?}"
    );
    let weight = weight.to_f32s()?;
    let packed = PackedB::new(&weight, rows, columns, columns, 1);
    let x32 = x.to_f32s()?;
    let bias = call.optional(2)?.map(Tensor::to_f32s).transpose()?;
    if let Some(b) = &bias {
        ensure!(b.len() == columns, "input 2 has {} elements, expected {columns}", b.len());
    }
    let mut all = vec![0.0f32; batch * len * columns];
    let init = bias.as_deref().map_or(Init::Zero, Init::Columns);
    gemm(call.threads, batch * len, &x32, &packed, init, &mut all);
    let part = |from: usize, size: usize| {
        let v: Vec<f32> = all.chunks_exact(columns.max(1)).flat_map(|r| r[from..from + size].iter().copied()).collect();
        Heads::new(&Tensor::new(&[batch, len, size], v)?, Some(n), "the projection")
    };
    let q = part(0, sizes[0])?;
    let (mut k, mut v) = (part(sizes[0], sizes[1])?, part(sizes[0] + sizes[1], sizes[2])?);
    let mut past = 0;
    ensure!(!call.flag("past_present_share_buffer", false), "attribute \"past_present_share_buffer\" is not supported");
    if let Some(p) = call.optional(4)? {
        let &[2, b, h, s, d] = p.shape() else {
            bail!("input 4 has shape {:?}, expected [2, batch, heads, length, size]", p.shape())
        };
        past = s;
        let all = p.to_f32s()?;
        let half = |i: usize| Tensor::new(&[b, h, s, d], all[i * b * h * s * d..(i + 1) * b * h * s * d].to_vec());
        (k, v) = (k.behind(&half(0)?, "input 4")?, v.behind(&half(1)?, "input 4")?);
    }
    let scores = [batch, n, len, k.len()];
    let filter = call.float("mask_filter_value", -10_000.0);
    let mut biases = Vec::new();
    if let Some(mask) = call.optional(3)? {
        biases.push(padding_mask(mask, scores, filter, "input 3")?);
    }
    if let Some(b) = call.optional(5)? {
        biases.push(Bias::new(b, scores, f32::NEG_INFINITY, "input 5")?);
    }
    let causal = call.flag("unidirectional", false);
    let visible = |_: usize, query: usize| 0..if causal { past + query + 1 } else { usize::MAX };
    let attend = Attend {
        scale: scale(call, q.size()),
        softcap: 0.0,
        biases: &biases,
        sinks: None,
        visible: &visible,
        keep: None,
        threads: call.threads,
    };
    let (y, _) = attend.run(&q, &k, &v)?;
    let mut out: Vec<Item> = cast(&y.merged()?, dtype, true)?.into();
    if call.n_outputs() > 1 {
        let mut both = k.data.slice::<f32>()?.to_vec();
        both.extend_from_slice(v.data.slice::<f32>()?);
        let shape = [2, batch, n, k.len(), k.size()];
        out.push(cast(&Tensor::new(&shape, both)?, dtype, true)?.into());
    }
    Ok(out)
}

/// The mask of ONNX Runtime's operators: lengths `[batch]`, or 0 where masked: `[batch, keys]`,
/// `[batch, queries, keys]`, `[batch, 1, …, …]`.
pub(super) fn padding_mask(mask: &Tensor, scores: [usize; 4], filter: f32, what: &str) -> Result<Bias<f32>> {
    let [batch, _, queries, keys] = scores;
    let v = mask.to_i64s()?;
    let (shape, flags): (Vec<usize>, Vec<bool>) = match *mask.shape() {
        [b] if b == batch || b == 2 * batch || b == 3 * batch + 2 => {
            // Lengths, and behind them perhaps the starts; or sums of lengths, for kernels that leave out the padding.
            let start = |i: usize| if b == 2 * batch { v[batch + i] } else { 0 };
            let flags = (0..batch).flat_map(|i| {
                let (from, to) = (start(i), v[i]);
                (0..keys as i64).map(move |k| k >= from && k < to)
            });
            (vec![batch, 1, 1, keys], flags.collect())
        }
        [b, k] if k == keys => (vec![b, 1, 1, k], v.iter().map(|&x| x != 0).collect()),
        [b, q, k] if k == keys && q == queries => (vec![b, 1, q, k], v.iter().map(|&x| x != 0).collect()),
        [b, 1, q, k] if k >= keys && q >= keys => {
            // The rows and columns that belong to these queries and keys.
            let from = keys - queries;
            let at = |i: usize, r: usize, c: usize| v[(i * q + from + r) * k + c] != 0;
            let flags = (0..b).flat_map(|i| (0..queries).flat_map(move |r| (0..keys).map(move |c| (i, r, c))));
            (vec![b, 1, queries, keys], flags.map(|(i, r, c)| at(i, r, c)).collect())
        }
        _ => bail!("{what} has shape {:?}, expected a mask for scores of {scores:?}", mask.shape()),
    };
    Bias::new(&Tensor::new(&shape, flags)?, scores, filter, what)
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn t(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::of(shape, v.to_vec())
    }

    #[test]
    fn attends() {
        let q = t(&[1, 1, 2, 1], &[0.0, 1.0]);
        let k = t(&[1, 1, 2, 1], &[0.0, 3f32.ln()]);
        let v = t(&[1, 1, 2, 1], &[0.0, 4.0]);
        let case = || Case::new("Attention", 24).input(q.clone()).input(k.clone()).input(v.clone()).tolerance(1e-6);
        case().expect(&[t(&[1, 1, 2, 1], &[2.0, 3.0])]);
        case().attr("is_causal", 1i64).expect(&[t(&[1, 1, 2, 1], &[0.0, 3.0])]);
        let mask = Tensor::of(&[2, 2], vec![false, false, false, true]);
        case().input(mask).expect(&[t(&[1, 1, 2, 1], &[0.0, 4.0])]);
        let flat = |x: &Tensor| x.clone().reshaped(&[1, 2, 1]).unwrap();
        Case::new("Attention", 24)
            .attr("q_num_heads", 1i64)
            .attr("kv_num_heads", 1i64)
            .input(flat(&q))
            .input(flat(&k))
            .input(flat(&v))
            .tolerance(1e-6)
            .expect(&[t(&[1, 2, 1], &[2.0, 3.0])]);
        let past = || t(&[1, 1, 1, 1], &[0.0]);
        case().skip().input(past()).fails("go together");
        case().outputs(3).skip().input(past()).input(past()).expect(&[
            t(&[1, 1, 2, 1], &[4.0 / 3.0, 2.4]),
            t(&[1, 1, 3, 1], &[0.0, 0.0, 3f32.ln()]),
            t(&[1, 1, 3, 1], &[0.0, 0.0, 4.0]),
        ]);
        Case::new("Attention", 24).input(q).input(k).input(flat(&v)).fails("input 2 has rank 3");
    }

    #[test]
    fn projects() {
        // One head of size 1: q = x, k = x, v = 2x.
        Case::new("Attention", 1)
            .domain("com.microsoft")
            .attr("num_heads", 1i64)
            .input(t(&[1, 2, 1], &[0.0, 1.0]))
            .input(t(&[1, 3], &[1.0, 1.0, 2.0]))
            .input(Tensor::vector(vec![0.0f32; 3]))
            .tolerance(1e-6)
            .expect(&[t(&[1, 2, 1], &[1.0, 1.462_117_2])]);
    }
}
