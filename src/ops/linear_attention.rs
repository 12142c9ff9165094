//! `LinearAttention` — attention by a recurrent state, with decay and delta rule.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__LinearAttention.html> (opset 27)
//! Inputs: query `[B, T, Hq * K]`, key `[B, T, H * K]`, value `[B, T, H * V]`, past_state? `[B, H, K, V]`, decay?
//! `[B, T, H]` or `[B, T, H * K]`, beta? `[B, T, H]` or `[B, T, 1]`. Outputs: `[B, T, Hq * V]`, present_state.
//! Computed in 32 bits. Quantized: no. Errors: shapes that do not fit; a rule without its inputs.

use super::attention::{WHY, heads};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::Tensor;
use crate::tensor::cast::cast;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "LinearAttention",
    domain: OpDomain::Onnx,
    since: 27,
    inputs: Arity::range(3, 6),
    outputs: Arity::range(1, 2),
    is_pure: true,
    infer,
    eval,
    quant: WHY,
}];

fn n_heads(attr: Option<i64>, name: &str) -> Result<usize> {
    heads(attr, name)?.ok_or_else(|| anyhow!("attribute \"{name}\" is missing"))
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let (hq, h) = (
        n_heads(ctx.attrs.int("q_num_heads"), "q_num_heads")?,
        n_heads(ctx.attrs.int("kv_num_heads"), "kv_num_heads")?,
    );
    let dtype = ctx.dtype(0);
    let state_type = if ctx.has(3) { ctx.dtype(3) } else { dtype };
    let (Some([b, t, wq]), Some([.., wv])) = (ctx.shape(0), ctx.shape(2)) else {
        ctx.set_tensor(0, dtype, None);
        return Ok(());
    };
    let size = |w: &Dim, h: usize| sym::floor_div(w, &Dim::Known(h));
    let (k, v) = (size(wq, hq), size(wv, h));
    let y = vec![b.clone(), t.clone(), sym::mul(&Dim::Known(hq), &v)];
    let state = vec![b.clone(), Dim::Known(h), k, v];
    ctx.set_tensor(0, dtype, Some(y));
    ctx.set_tensor(1, state_type, Some(state));
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let hq = n_heads(call.attrs.int("q_num_heads"), "q_num_heads")?;
    let h = n_heads(call.attrs.int("kv_num_heads"), "kv_num_heads")?;
    ensure!(hq % h == 0, "attribute \"q_num_heads\" is {hq}, expected a multiple of {h}");
    let (gated, delta) = match call.str("update_rule", "gated_delta") {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => bail!("attribute \"update_rule\" is \"{other}\", expected linear, gated, delta or gated_delta"),
    };
    for (slot, needed) in [(4, gated), (5, delta)] {
        ensure!(call.optional(slot)?.is_some() == needed, "input {slot} does not go with the update rule");
    }
    let dims = |slot: usize| match *call.input(slot)?.shape() {
        [b, t, w] => Ok((b, t, w)),
        _ => Err(anyhow!("input {slot} has rank {}, expected 3", call.input(slot)?.rank())),
    };
    let ((b, t, wq), (_, _, wk), (_, _, wv)) = (dims(0)?, dims(1)?, dims(2)?);
    let (k, v) = (wq / hq, wv / h);
    ensure!(wq == hq * k && wk == h * k && wv == h * v, "widths {wq}, {wk} and {wv} do not fit {hq} and {h} heads");
    for slot in [1, 2] {
        ensure!(
            call.input(slot)?.shape()[..2] == [b, t],
            "input {slot} has shape {:?}, expected [{b}, {t}, …]",
            call.input(slot)?.shape()
        );
    }
    let (query, key, value) = (call.input(0)?.to_f32s()?, call.input(1)?.to_f32s()?, call.input(2)?.to_f32s()?);
    let gate = |slot: usize| -> Result<Option<(std::borrow::Cow<'_, [f32]>, usize)>> {
        let Some(g) = call.optional(slot)? else { return Ok(None) };
        let &[gb, gt, w] = g.shape() else { bail!("input {slot} has rank {}, expected 3", g.rank()) };
        let fits = w == h || (slot == 4 && w == h * k) || (slot == 5 && w == 1);
        ensure!(gb == b && gt == t && fits, "input {slot} has shape {:?}, which does not fit", g.shape());
        Ok(Some((g.to_f32s()?, w)))
    };
    let (decay, beta) = (gate(4)?, gate(5)?);
    let scale = match call.float("scale", 0.0) {
        0.0 => 1.0 / (k as f32).sqrt(),
        s => s,
    };
    let dtype = call.input(0)?.dtype();
    let (mut state, state_type) = match call.optional(3)? {
        Some(p) => {
            ensure!(p.shape() == [b, h, k, v], "input 3 has shape {:?}, expected {:?}", p.shape(), [b, h, k, v]);
            (p.to_f32s()?.into_owned(), p.dtype())
        }
        None => (vec![0.0f32; b * h * k * v], dtype),
    };
    let mut out = vec![0.0f32; b * t * hq * v];
    let mut write = vec![0.0f32; v];
    for bi in 0..b {
        for hi in 0..h {
            let s = &mut state[(bi * h + hi) * k * v..][..k * v];
            for ti in 0..t {
                let row = bi * t + ti;
                let kt = &key[row * wk + hi * k..][..k];
                write.copy_from_slice(&value[row * wv + hi * v..][..v]);
                if let Some((g, w)) = &decay {
                    for (d, s) in s.chunks_exact_mut(v.max(1)).enumerate() {
                        let f = g[row * w + if *w == h { hi } else { hi * k + d }].exp();
                        s.iter_mut().for_each(|x| *x *= f);
                    }
                }
                if let Some((beta, w)) = &beta {
                    for (s, &kd) in s.chunks_exact(v.max(1)).zip(kt) {
                        write.iter_mut().zip(s).for_each(|(x, s)| *x -= s * kd);
                    }
                    let f = beta[row * w + if *w == 1 { 0 } else { hi }];
                    write.iter_mut().for_each(|x| *x *= f);
                }
                for (s, &kd) in s.chunks_exact_mut(v.max(1)).zip(kt) {
                    s.iter_mut().zip(&write).for_each(|(s, x)| *s += kd * x);
                }
                for head in hi * (hq / h)..(hi + 1) * (hq / h) {
                    let qt = &query[row * wq + head * k..][..k];
                    let y = &mut out[(row * hq + head) * v..][..v];
                    for (s, &qd) in s.chunks_exact(v.max(1)).zip(qt) {
                        y.iter_mut().zip(s).for_each(|(y, s)| *y += qd * scale * s);
                    }
                }
            }
        }
    }
    let y = cast(&Tensor::new(&[b, t, hq * v], out)?, dtype, true)?;
    let state = cast(&Tensor::new(&[b, h, k, v], state)?, state_type, true)?;
    Ok(vec![y.into(), state.into()])
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn case(rule: &str) -> Case {
        let t = |v: [f32; 2]| Tensor::of(&[1, 2, 1], v.to_vec());
        Case::new("LinearAttention", 27)
            .attr("q_num_heads", 1i64)
            .attr("kv_num_heads", 1i64)
            .attr("update_rule", rule)
            .outputs(2)
            .tolerance(1e-6)
            .input(t([1.0, 1.0]))
            .input(t([1.0, 2.0]))
            .input(t([3.0, 5.0]))
    }

    #[test]
    fn recurrences() {
        let y = |a: f32, b: f32| Tensor::of(&[1, 2, 1], vec![a, b]);
        let s = |x: f32| Tensor::of(&[1, 1, 1, 1], vec![x]);
        case("linear").expect(&[y(3.0, 13.0), s(13.0)]);
        let half = || y(0.0, 0.5f32.ln());
        case("gated").skip().input(half()).expect(&[y(3.0, 11.5), s(11.5)]);
        case("delta").skip().skip().input(y(1.0, 0.5)).expect(&[y(3.0, 2.0), s(2.0)]);
        case("gated").fails("input 4 does not go with the update rule");
        case("cubic").fails("\"update_rule\" is \"cubic\"");
    }
}
