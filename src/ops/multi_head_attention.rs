//! `MultiHeadAttention` and `GroupQueryAttention` of ONNX Runtime.
//!
//! Spec: ONNX Runtime's ContribOperators.md (`com.microsoft`, version 1)
//! `MultiHeadAttention`: query `[B, S, N * H]` (or queries, keys and values packed `[B, S, N, 3, H]`), key
//! `[B, L, N * H]` (`[B, L, N, 2, H]` with the values, `[B, N, L, H]`), value, bias?, key_padding_mask?,
//! attention_bias?, past_key?, past_value?; `GroupQueryAttention`: query, key, value, past_key?, past_value?,
//! seqlens_k, total_sequence_length, cos_cache?, sin_cache?. Outputs: `[B, S, N * H]`, present_key, present_value.
//! Computed in 32 bits. Quantized: no. Errors: shapes that do not fit; inputs that are not implemented.

use super::attention::{WHY, heads, padding_mask};
use super::attention_core::{Attend, Bias, Heads};
use super::rotary_embedding::{Layout, Rotation};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor};

const MULTI: OpDef = OpDef {
    name: "MultiHeadAttention",
    domain: OpDomain::Microsoft,
    since: 1,
    inputs: Arity::range(1, 10),
    outputs: Arity::range(1, 4),
    is_pure: true,
    infer,
    eval: eval_multi,
    quant: WHY,
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "GroupQueryAttention", inputs: Arity::range(1, 14), infer: infer_group, eval: eval_group, ..MULTI },
    MULTI,
];

fn required_heads(attr: Option<i64>, name: &str) -> Result<usize> {
    heads(attr, name)?.ok_or_else(|| anyhow!("attribute \"{name}\" is missing"))
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = required_heads(ctx.attrs.int("num_heads"), "num_heads")?;
    let dtype = ctx.dtype(0);
    let shape = match (ctx.shape(0), ctx.shape(2)) {
        (Some([b, s, n, _, h]), _) => Some(vec![b.clone(), s.clone(), sym::mul(n, h)]),
        (Some([b, s, _]), Some([_, _, w])) => Some(vec![b.clone(), s.clone(), w.clone()]),
        (Some([b, s, _]), Some([_, _, _, h])) => Some(vec![b.clone(), s.clone(), sym::mul(&Dim::Known(n), h)]),
        (Some([b, s, w]), None) if !ctx.has(2) => Some(vec![b.clone(), s.clone(), w.clone()]),
        _ => None,
    };
    ctx.set_tensor(0, dtype, shape);
    for slot in [1, 2] {
        ctx.set_tensor(slot, dtype, Some(vec![Dim::Unknown; 4]));
    }
    Ok(())
}

/// Slices `[B, S, N, parts, H]` into its parts, each `[B, N, S, H]`.
fn unpack(x: &Tensor, parts: usize, what: &str) -> Result<Vec<Heads>> {
    let &[b, s, n, p, h] = x.shape() else { bail!("{what} has rank {}, expected 5", x.rank()) };
    ensure!(p == parts, "{what} has shape {:?}, expected {parts} parts", x.shape());
    let v = x.to_f32s()?;
    (0..parts)
        .map(|part| {
            let mut out = Vec::with_capacity(b * s * n * h);
            for row in v.chunks_exact((parts * h).max(1)) {
                out.extend_from_slice(&row[part * h..(part + 1) * h]);
            }
            Heads::new(&Tensor::new(&[b, s, n * h], out)?, Some(n), what)
        })
        .collect()
}

/// A tensor `[B, S, W]` with a part of the bias added.
fn biased(x: &Tensor, bias: Option<&[f32]>, from: usize, what: &str) -> Result<Tensor> {
    let mut x = cast(x, DType::F32, true)?;
    if let Some(b) = bias {
        let w = x.shape().last().copied().unwrap_or(0);
        let b = b
            .get(from..from + w)
            .ok_or_else(|| anyhow!("input 3 has {} elements, which do not fit {what}", b.len()))?;
        for row in x.slice_mut::<f32>()?.chunks_exact_mut(w.max(1)) {
            row.iter_mut().zip(b).for_each(|(x, b)| *x += b);
        }
    }
    Ok(x)
}

fn eval_multi(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let n = required_heads(call.attrs.int("num_heads"), "num_heads")?;
    ensure!(
        call.optional(8)?.is_none() && call.optional(9)?.is_none(),
        "a shared cache (input 8 or 9) is not supported"
    );
    let query = call.input(0)?;
    let dtype = query.dtype();
    let bias = call.optional(3)?.map(Tensor::to_f32s).transpose()?;
    let (q, mut k, mut v) = if query.rank() == 5 {
        ensure!(bias.is_none(), "input 3 does not go with packed queries, keys and values");
        let mut all = unpack(query, 3, "input 0")?.into_iter();
        let mut next = || all.next().ok_or_else(|| anyhow!("input 0 has too few parts"));
        (next()?, next()?, next()?)
    } else {
        let width = query.shape().last().copied().unwrap_or(0);
        let q = Heads::new(&biased(query, bias.as_deref(), 0, "input 0")?, Some(n), "input 0")?;
        let key = call.input(1)?;
        if key.rank() == 5 {
            let mut all = unpack(key, 2, "input 1")?.into_iter();
            let mut next = || all.next().ok_or_else(|| anyhow!("input 1 has too few parts"));
            (q, next()?, next()?)
        } else {
            let add = |t: &Tensor, from: usize, what: &str| match t.rank() {
                4 => Heads::new(t, None, what),
                _ => Heads::new(&biased(t, bias.as_deref(), from, what)?, Some(n), what),
            };
            (q, add(key, width, "input 1")?, add(call.input(2)?, 2 * width, "input 2")?)
        }
    };
    let mut past = 0;
    if let (Some(pk), Some(pv)) = (call.optional(6)?, call.optional(7)?) {
        past = pk.shape().get(2).copied().unwrap_or(0);
        (k, v) = (k.behind(pk, "input 6")?, v.behind(pv, "input 7")?);
    }
    let scores = [q.batch(), n, q.len(), k.len()];
    let filter = call.float("mask_filter_value", -10_000.0);
    let mut biases = Vec::new();
    if let Some(mask) = call.optional(4)? {
        biases.push(padding_mask(mask, scores, filter, "input 4")?);
    }
    if let Some(b) = call.optional(5)? {
        biases.push(Bias::new(b, scores, f32::NEG_INFINITY, "input 5")?);
    }
    let causal = call.flag("unidirectional", false);
    let visible = |_: usize, query: usize| 0..if causal { past + query + 1 } else { usize::MAX };
    let scale = call.attrs.float("scale").filter(|s| *s != 0.0).unwrap_or(1.0 / (q.size() as f32).sqrt());
    let attend = Attend { scale, softcap: 0.0, biases: &biases, visible: &visible, keep: None, threads: call.threads };
    let (y, _) = attend.run(&q, &k, &v)?;
    ensure!(!call.wants(3), "output 3 (qk) is not supported");
    outputs(call, y, k, v, dtype)
}

fn outputs(call: &Call<'_>, y: Heads, k: Heads, v: Heads, dtype: DType) -> Result<Vec<Item>> {
    let mut out: Vec<Item> = cast(&y.merged()?, dtype, true)?.into();
    out.push(cast(&k.data, dtype, true)?.into());
    out.push(cast(&v.data, dtype, true)?.into());
    out.truncate(call.n_outputs());
    Ok(out)
}

fn infer_group(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = required_heads(ctx.attrs.int("num_heads"), "num_heads")?;
    let kv = required_heads(ctx.attrs.int("kv_num_heads"), "kv_num_heads")?;
    let dtype = ctx.dtype(0);
    let packed = !ctx.has(1);
    let shape = match ctx.shape(0) {
        Some([b, s, w]) if packed => {
            let size = sym::floor_div(w, &Dim::Known(n + 2 * kv));
            Some(vec![b.clone(), s.clone(), sym::mul(&Dim::Known(n), &size)])
        }
        Some(s) => Some(s.to_vec()),
        None => None,
    };
    ctx.set_tensor(0, dtype, shape);
    for slot in [1, 2] {
        ctx.set_tensor(slot, dtype, Some(vec![Dim::Unknown, Dim::Known(kv), Dim::Unknown, Dim::Unknown]));
    }
    Ok(())
}

fn eval_group(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let n = required_heads(call.attrs.int("num_heads"), "num_heads")?;
    let kv = required_heads(call.attrs.int("kv_num_heads"), "kv_num_heads")?;
    for (slot, what) in [(11, "a head sink"), (12, "scales of a quantized cache"), (13, "scales of a quantized cache")]
    {
        ensure!(call.optional(slot)?.is_none(), "{what} (input {slot}) is not supported");
    }
    ensure!(call.int("smooth_softmax", 0) <= 0, "attribute \"smooth_softmax\" is not supported");
    let query = call.input(0)?;
    let dtype = query.dtype();
    let (q, k, v) = match (call.optional(1)?, call.optional(2)?) {
        (Some(k), Some(v)) => (
            Heads::new(query, Some(n), "input 0")?,
            Heads::new(k, Some(kv), "input 1")?,
            Heads::new(v, Some(kv), "input 2")?,
        ),
        _ => split_heads(query, n, kv)?,
    };
    let (batch, len, size) = (q.batch(), q.len(), q.size());
    let totals: Vec<usize> = call.input(5)?.to_i64s()?.iter().map(|&l| usize::try_from(l + 1).unwrap_or(0)).collect();
    ensure!(totals.len() == batch, "input 5 has {} lengths, expected {batch}", totals.len());
    let total = usize::try_from(call.input(6)?.to_i64()?).map_err(|_| anyhow!("input 6 is negative"))?;
    ensure!(totals.iter().all(|&t| t <= total), "input 5 has a length beyond the total of {total} that input 6 gives");
    let is_prompt = len > 1 && len == total;
    // Where the first new key goes.
    let start = |b: usize| if is_prompt { 0 } else { totals[b].saturating_sub(len) };
    let (mut q, mut k) = (q, k);
    if call.flag("do_rotary", false) {
        let (cos, sin) = (call.input(7)?, call.input(8)?);
        let half = cos.shape().last().copied().unwrap_or(0);
        ensure!(
            2 * half <= size && cos.shape() == sin.shape(),
            "input 7 has shape {:?}, which does not fit heads of {size}",
            cos.shape()
        );
        let (cos, sin) = (cos.to_f32s()?, sin.to_f32s()?);
        let r = Rotation { cos: &cos, sin: &sin, size: 2 * half, interleaved: call.flag("rotary_interleaved", false) };
        let ids = call.optional(9)?.map(Tensor::to_i64s).transpose()?;
        let row = |b: usize, s: usize| match &ids {
            Some(ids) => ids.get(b * len + s).copied().unwrap_or(-1),
            None => (start(b) + s) as i64,
        };
        for (x, heads) in [(&mut q, n), (&mut k, kv)] {
            let layout = Layout { batch, len, heads, size, heads_first: true };
            r.apply(x.data.slice_mut()?, layout, row)?;
        }
    }
    let k = cached(call, 3, k, total, start)?;
    let v = cached(call, 4, v, total, start)?;
    let scores = [batch, n, len, k.len()];
    let mut biases = Vec::new();
    if let Some(b) = call.optional(10)? {
        biases.push(Bias::new(b, scores, f32::NEG_INFINITY, "input 10")?);
    }
    let window = call.int("local_window_size", -1);
    let visible = |b: usize, query: usize| {
        let at = start(b) + query;
        let from = if window > 0 { (at + 1).saturating_sub(window as usize) } else { 0 };
        from..at + 1
    };
    let attend = Attend {
        scale: call.attrs.float("scale").filter(|s| *s != 0.0).unwrap_or(1.0 / (size as f32).sqrt()),
        softcap: call.float("softcap", 0.0),
        biases: &biases,
        visible: &visible,
        keep: None,
        threads: call.threads,
    };
    let (y, _) = attend.run(&q, &k, &v)?;
    outputs(call, y, k, v, dtype)
}

/// `[B, S, (N + 2 * KV) * H]` into queries, keys and values.
fn split_heads(x: &Tensor, n: usize, kv: usize) -> Result<(Heads, Heads, Heads)> {
    let &[b, s, w] = x.shape() else { bail!("input 0 has rank {}, expected 3", x.rank()) };
    let total = n + 2 * kv;
    ensure!(w.is_multiple_of(total), "input 0 has width {w}, which {total} heads do not divide");
    let size = w / total;
    let v = x.to_f32s()?;
    let part = |from: usize, heads: usize| {
        let rows = v.chunks_exact(w.max(1)).flat_map(|r| r[from * size..(from + heads) * size].iter().copied());
        Heads::new(&Tensor::new(&[b, s, heads * size], rows.collect::<Vec<f32>>())?, Some(heads), "input 0")
    };
    Ok((part(0, n)?, part(n, kv)?, part(n + kv, kv)?))
}

/// The cache with the new rows written where they belong, as long as the longer of both.
fn cached(call: &Call<'_>, slot: usize, new: Heads, total: usize, start: impl Fn(usize) -> usize) -> Result<Heads> {
    let (batch, heads, len, size) = (new.batch(), new.heads(), new.len(), new.size());
    let past = call.optional(slot)?;
    let room = past.map_or(0, |p| p.shape().get(2).copied().unwrap_or(0));
    if let Some(p) = past {
        let expected = [batch, heads, room, size];
        ensure!(p.shape() == expected, "input {slot} has shape {:?}, expected {expected:?}", p.shape());
    }
    let rows = total.max(room);
    let mut out = vec![0.0f32; batch * heads * rows * size];
    let old = past.map(Tensor::to_f32s).transpose()?;
    let fresh = new.data.slice::<f32>()?;
    for b in 0..batch {
        let at = start(b);
        ensure!(at + len <= rows, "input 5 has lengths that leave no room for {len} new positions");
        for h in 0..heads {
            let i = b * heads + h;
            let to = &mut out[i * rows * size..(i + 1) * rows * size];
            if let Some(old) = &old {
                to[..room * size].copy_from_slice(&old[i * room * size..(i + 1) * room * size]);
            }
            to[at * size..(at + len) * size].copy_from_slice(&fresh[i * len * size..(i + 1) * len * size]);
        }
    }
    Ok(Heads { data: Tensor::new(&[batch, heads, rows, size], out)? })
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn t(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::of(shape, v.to_vec())
    }

    #[test]
    fn multi_head() {
        let l = 3f32.ln();
        let case = || {
            Case::new("MultiHeadAttention", 1)
                .domain("com.microsoft")
                .attr("num_heads", 1i64)
                .tolerance(1e-6)
                .input(t(&[1, 2, 1], &[0.0, 1.0]))
                .input(t(&[1, 2, 1], &[0.0, l]))
                .input(t(&[1, 2, 1], &[0.0, 4.0]))
        };
        case().expect(&[t(&[1, 2, 1], &[2.0, 3.0])]);
        case().attr("unidirectional", 1i64).expect(&[t(&[1, 2, 1], &[0.0, 3.0])]);
        case().skip().input(Tensor::of(&[1, 2], vec![1i32, 0])).expect(&[t(&[1, 2, 1], &[0.0, 0.0])]);
        case().input(Tensor::vector(vec![0.0f32; 2])).fails("input 3 has 2 elements");
        let packed = t(&[1, 2, 1, 3, 1], &[0.0, 0.0, 0.0, 1.0, l, 4.0]);
        Case::new("MultiHeadAttention", 1)
            .domain("com.microsoft")
            .attr("num_heads", 1i64)
            .tolerance(1e-6)
            .input(packed)
            .expect(&[t(&[1, 2, 1], &[2.0, 3.0])]);
    }

    #[test]
    fn group_query() {
        let l = 3f32.ln();
        // One new position behind a cache of one, two heads of queries on one head of keys.
        Case::new("GroupQueryAttention", 1)
            .domain("com.microsoft")
            .attr("num_heads", 2i64)
            .attr("kv_num_heads", 1i64)
            .outputs(3)
            .tolerance(1e-6)
            .input(t(&[1, 1, 2], &[0.0, 1.0]))
            .input(t(&[1, 1, 1], &[l]))
            .input(t(&[1, 1, 1], &[4.0]))
            .input(t(&[1, 1, 1, 1], &[0.0]))
            .input(t(&[1, 1, 1, 1], &[0.0]))
            .input(Tensor::vector(vec![1i32]))
            .input(Tensor::vector(vec![2i32]))
            .expect(&[t(&[1, 1, 2], &[2.0, 3.0]), t(&[1, 1, 2, 1], &[0.0, l]), t(&[1, 1, 2, 1], &[0.0, 4.0])]);
    }
}
