//! `MultiHeadAttention` and `GroupQueryAttention` of ONNX Runtime.
//!
//! Spec: ONNX Runtime's ContribOperators.md (`com.microsoft`, version 1)
//! `MultiHeadAttention`: query `[B, S, N * H]` (or queries, keys and values packed `[B, S, N, 3, H]`), key
//! `[B, L, N * H]` (`[B, L, N, 2, H]` with the values, `[B, N, L, H]`), value, bias?, key_padding_mask?,
//! attention_bias?, past_key?, past_value?, past_sequence_length?, cache_indirection?; `GroupQueryAttention`: query,
//! key, value, past_key?, past_value?, seqlens_k, total_sequence_length, cos_cache?, sin_cache?, position_ids?,
//! attention_bias?, head_sink?, k_scale?, v_scale?, q_norm_weight?, k_norm_weight?, query_seqlens?.
//! Outputs: `[B, S, N * H]`, present_key, present_value, scores `[B, N, S, L]`.
//! Computed in 32 bits. Quantized: no.
//! Errors: shapes that do not fit; a quantized, windowed or ragged cache of `GroupQueryAttention`, which only kernels
//! for graphics processors take.

use super::attention::{WHY, heads, padding_mask};
use super::attention_core::{Attend, Bias, Heads, Real, Stage};
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
    OpDef {
        name: "GroupQueryAttention",
        inputs: Arity::range(1, 17),
        outputs: Arity::range(1, 4),
        infer: infer_group,
        eval: eval_group,
        ..MULTI
    },
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
    for slot in 1..4 {
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
    // A shared buffer has room behind the keys that are there, and is passed on as a whole.
    let mut buffers = None;
    match (call.optional(6)?, call.optional(7)?, call.optional(8)?) {
        (Some(pk), Some(pv), Some(n)) => {
            past = usize::try_from(n.to_i64()?).map_err(|_| anyhow!("input 8 is negative"))?;
            let (pk, pv) = (written(pk, &k, past, "input 6")?, written(pv, &v, past, "input 7")?);
            let beams = call.optional(9)?.map(|c| Beams::new(c, q.batch())).transpose()?;
            (k, v) = (
                filled(&pk, past + k.len(), past, beams.as_ref())?,
                filled(&pv, past + v.len(), past, beams.as_ref())?,
            );
            buffers = Some((pk, pv));
        }
        (Some(pk), Some(pv), None) => {
            past = pk.shape().get(2).copied().unwrap_or(0);
            (k, v) = (k.behind(pk, "input 6")?, v.behind(pv, "input 7")?);
        }
        _ => {}
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
    let attend = Attend {
        scale: scale(call, q.size()),
        softcap: 0.0,
        biases: &biases,
        sinks: None,
        visible: &visible,
        keep: call.wants(3).then_some(Stage::Masked),
        threads: call.threads,
    };
    let (y, kept) = attend.run(&q, &k, &v)?;
    let (k, v) = buffers.unwrap_or((k, v));
    outputs(call, y, k, v, kept, dtype)
}

/// The factor of the scores: an attribute of 0 is none.
pub(super) fn scale(call: &Call<'_>, size: usize) -> f32 {
    call.attrs.float("scale").filter(|s| *s != 0.0).unwrap_or(f32::inverse_root(size))
}

fn outputs(call: &Call<'_>, y: Heads, k: Heads, v: Heads, kept: Option<Tensor>, dtype: DType) -> Result<Vec<Item>> {
    let mut out: Vec<Item> = cast(&y.merged()?, dtype, true)?.into();
    out.push(cast(&k.data, dtype, true)?.into());
    out.push(cast(&v.data, dtype, true)?.into());
    if let Some(kept) = kept {
        out.push(cast(&kept, dtype, true)?.into());
    }
    out.truncate(call.n_outputs());
    Ok(out)
}

/// A buffer `[B, N, room, H]` with new rows from position `at` on.
fn written(buffer: &Tensor, new: &Heads, at: usize, what: &str) -> Result<Heads> {
    let (size, len) = (new.size(), new.len());
    let room = buffer.shape().get(2).copied().unwrap_or(0);
    let expected = [new.batch(), new.heads(), room, size];
    ensure!(buffer.shape() == expected, "{what} has shape {:?}, expected {expected:?}", buffer.shape());
    ensure!(
        at.checked_add(len).is_some_and(|end| end <= room),
        "{what} has room for {room} positions, which leaves none for {len} from {at} on"
    );
    let mut data = cast(buffer, DType::F32, true)?;
    let fresh = new.data.slice::<f32>()?;
    if len * size > 0 {
        let heads = data.slice_mut::<f32>()?.chunks_exact_mut(room * size);
        for (to, from) in heads.zip(fresh.chunks_exact(len * size)) {
            to[at * size..(at + len) * size].copy_from_slice(from);
        }
    }
    Ok(Heads { data })
}

/// For a sample and a position of its past, the sample that the rows come from: beams share their past.
struct Beams {
    sources: Vec<i64>,
    width: usize,
    room: usize,
}

impl Beams {
    fn new(indirection: &Tensor, batch: usize) -> Result<Self> {
        let &[samples, width, room] = indirection.shape() else {
            bail!("input 9 has rank {}, expected 3", indirection.rank())
        };
        ensure!(
            samples.checked_mul(width) == Some(batch),
            "input 9 has shape {:?}, which does not fit a batch of {batch}",
            indirection.shape()
        );
        Ok(Beams { sources: indirection.to_i64s()?, width, room })
    }

    fn source(&self, sample: usize, position: usize) -> Result<usize> {
        let beam = (position < self.room).then(|| self.sources[sample * self.room + position]);
        let beam = beam.and_then(|b| usize::try_from(b).ok()).filter(|b| *b < self.width);
        let beam = beam.ok_or_else(|| anyhow!("input 9 names no beam for position {position} of sample {sample}"))?;
        Ok(sample / self.width * self.width + beam)
    }
}

/// The first `total` positions of a buffer; those of the past from where the beams say.
fn filled(buffer: &Heads, total: usize, past: usize, beams: Option<&Beams>) -> Result<Heads> {
    let (batch, heads, room, size) = (buffer.batch(), buffer.heads(), buffer.len(), buffer.size());
    let v = buffer.data.slice::<f32>()?;
    let mut out = Vec::with_capacity(batch * heads * total * size);
    for b in 0..batch {
        for h in 0..heads {
            for position in 0..total {
                let from = match beams {
                    Some(beams) if position < past => beams.source(b, position)?,
                    _ => b,
                };
                let at = ((from * heads + h) * room + position) * size;
                out.extend_from_slice(&v[at..at + size]);
            }
        }
    }
    Ok(Heads { data: Tensor::new(&[batch, heads, total, size], out)? })
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
    ctx.set_tensor(3, dtype, Some(vec![Dim::Unknown, Dim::Known(n), Dim::Unknown, Dim::Unknown]));
    Ok(())
}

fn eval_group(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let n = required_heads(call.attrs.int("num_heads"), "num_heads")?;
    let kv = required_heads(call.attrs.int("kv_num_heads"), "kv_num_heads")?;
    for (slot, what) in [(12, "a quantized cache"), (13, "a quantized cache"), (16, "a ragged batch")] {
        ensure!(call.optional(slot)?.is_none(), "{what} (input {slot}) is not supported");
    }
    ensure!(!call.flag("sliding_window_cache", false), "attribute \"sliding_window_cache\" is not supported");
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
    normalized(call, [&mut q, &mut k])?;
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
    let causal = call.flag("causal", true);
    let visible = |b: usize, query: usize| {
        if !causal {
            return 0..totals[b];
        }
        let at = start(b) + query;
        let from = if window > 0 { (at + 1).saturating_sub(window as usize) } else { 0 };
        from..at + 1
    };
    let keep = match call.int("qk_output", 0) {
        _ if !call.wants(3) => None,
        1 => Some(Stage::Masked),
        2 => Some(Stage::Softmax),
        other => bail!("attribute \"qk_output\" is {other}, expected 1 or 2 where output 3 is wanted"),
    };
    let sinks = sinks(call, n)?;
    let attend = Attend {
        scale: scale(call, size),
        softcap: call.float("softcap", 0.0),
        biases: &biases,
        sinks: sinks.as_deref(),
        visible: &visible,
        keep,
        threads: call.threads,
    };
    let (y, kept) = attend.run(&q, &k, &v)?;
    let kept = kept.map(|s| seen(s, total, &visible)).transpose()?;
    outputs(call, y, k, v, kept, dtype)
}

/// A score for each head that takes its share of the softmax: given, or 0 for a smooth softmax.
fn sinks(call: &Call<'_>, heads: usize) -> Result<Option<Vec<f32>>> {
    match call.optional(11)? {
        Some(s) => {
            ensure!(s.len() == heads, "input 11 has {} elements, expected one for each of {heads} heads", s.len());
            Ok(Some(s.to_f32s()?.into_owned()))
        }
        None => Ok((call.int("smooth_softmax", 0) == 1).then(|| vec![0.0; heads])),
    }
}

/// Queries and keys with each head divided by its root mean square, where there are weights for it.
fn normalized(call: &Call<'_>, parts: [&mut Heads; 2]) -> Result<()> {
    let both = call.float("qk_norm_epsilon", 1e-6);
    for (i, x) in parts.into_iter().enumerate() {
        let Some(w) = call.optional(14 + i)? else { continue };
        let size = x.size();
        ensure!(w.shape() == [size], "input {} has shape {:?}, expected [{size}]", 14 + i, w.shape());
        let epsilon = call.float(["q_norm_epsilon", "k_norm_epsilon"][i], both);
        let w = w.to_f32s()?;
        for head in x.data.slice_mut::<f32>()?.chunks_exact_mut(size.max(1)) {
            let square = head.iter().map(|x| x * x).sum::<f32>() / size as f32;
            let r = 1.0 / (square + epsilon).sqrt();
            head.iter_mut().zip(w.iter()).for_each(|(x, w)| *x *= r * w);
        }
    }
    Ok(())
}

/// The scores of the first `total` keys, 0 where a query does not see the key.
fn seen(scores: Tensor, total: usize, visible: &dyn Fn(usize, usize) -> std::ops::Range<usize>) -> Result<Tensor> {
    let &[batch, heads, queries, keys] = scores.shape() else { bail!("the scores have rank {}", scores.rank()) };
    let v = scores.slice::<f32>()?;
    let n = total.min(keys);
    let mut out = vec![0.0f32; batch * heads * queries * n];
    for (i, (to, from)) in out.chunks_exact_mut(n.max(1)).zip(v.chunks_exact(keys.max(1))).enumerate() {
        let seen = visible(i / (heads * queries), i % queries);
        let (first, end) = (seen.start.min(n), seen.end.min(n));
        if first < end {
            to[first..end].copy_from_slice(&from[first..end]);
        }
    }
    Tensor::new(&[batch, heads, queries, n], out)
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

    #[test]
    fn sinks_take_their_share() {
        // One head of size 1; scores 0 and ln 3, and a sink of 0 or ln 4.
        let case = || {
            Case::new("GroupQueryAttention", 1)
                .domain("com.microsoft")
                .attr("num_heads", 1i64)
                .attr("kv_num_heads", 1i64)
                .tolerance(1e-6)
                .input(t(&[1, 2, 1], &[1.0, 1.0]))
                .input(t(&[1, 2, 1], &[0.0, 3f32.ln()]))
                .input(t(&[1, 2, 1], &[0.0, 4.0]))
                .skip()
                .skip()
                .input(Tensor::vector(vec![1i32]))
                .input(Tensor::vector(vec![2i32]))
        };
        case().attr("smooth_softmax", 1i64).expect(&[t(&[1, 2, 1], &[0.0, 12.0 / 5.0])]);
        let sink = |x: f32| case().skip().skip().skip().skip().input(Tensor::vector(vec![x]));
        sink(4f32.ln()).attr("causal", 0i64).expect(&[t(&[1, 2, 1], &[12.0 / 8.0, 12.0 / 8.0])]);
        sink(0.0).input(Tensor::vector(vec![1f32])).fails("input 12");
        case().attr("qk_output", 3i64).outputs(4).fails("\"qk_output\" is 3");
    }

    #[test]
    fn shared_buffer() {
        // Two beams with room for three positions, one of which is filled; each looks at the other's past.
        let case = || {
            Case::new("MultiHeadAttention", 1)
                .domain("com.microsoft")
                .attr("num_heads", 1i64)
                .tolerance(1e-6)
                .input(t(&[2, 1, 1], &[0.0, 0.0]))
                .input(t(&[2, 1, 1], &[5.0, 6.0]))
                .input(t(&[2, 1, 1], &[5.0, 6.0]))
                .skip()
                .skip()
                .skip()
                .input(t(&[2, 1, 3, 1], &[1.0, 0.0, 9.0, 2.0, 0.0, 9.0]))
                .input(t(&[2, 1, 3, 1], &[1.0, 0.0, 9.0, 2.0, 0.0, 9.0]))
        };
        let past = || Tensor::vector(vec![1i32]);
        let buffer = t(&[2, 1, 3, 1], &[1.0, 5.0, 9.0, 2.0, 6.0, 9.0]);
        case().input(past()).outputs(3).expect(&[t(&[2, 1, 1], &[3.0, 4.0]), buffer.clone(), buffer]);
        let swapped = Tensor::of(&[1, 2, 3], vec![1i32, 0, 0, 0, 0, 0]);
        case().input(past()).input(swapped).expect(&[t(&[2, 1, 1], &[3.5, 3.5])]);
        case().input(Tensor::vector(vec![3i32])).fails("leaves none for 1 from 3 on");
    }
}
