//! `EmbedLayerNormalization` of ONNX Runtime — sums word, position and segment embeddings and normalises them.
//!
//! Spec: ONNX Runtime's ContribOperators.md (`com.microsoft`, version 1)
//! Inputs: input_ids `[B, S]`, segment_ids? `[B, S]`, word `[V, H]`, position `[P, H]`, segment? `[T, H]`, gamma `[H]`,
//! beta `[H]`, mask? `[B, S]`, position_ids? `[B, S]`. Outputs: `[B, S, H]`, mask_index `[B]` int32, the sum? `[B, S, H]`.
//! Quantized: no; it gathers and normalises. Errors: an index out of range; sizes that differ.

use super::layer_normalization::normalize;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::Dim;
use crate::kernels::rows::Norm;
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "EmbedLayerNormalization",
    domain: OpDomain::Microsoft,
    since: 1,
    inputs: Arity::range(1, 9),
    outputs: Arity::range(1, 3),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "gathers and normalises" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype(2);
    let shape = match (ctx.shape(0), ctx.shape(2)) {
        (Some([b, s]), Some([_, h])) => Some(vec![b.clone(), s.clone(), h.clone()]),
        _ => None,
    };
    let batch = ctx.shape(0).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown);
    ctx.set_tensor(0, dtype, shape.clone());
    ctx.set_tensor(1, Some(DType::I32), Some(vec![batch]));
    ctx.set_tensor(2, dtype, shape);
    Ok(())
}

/// Adds rows of a table to the rows of `sum`.
fn add_rows(call: &Call<'_>, slot: usize, ids: &[i64], sum: &mut [f32], width: usize) -> Result<()> {
    let table = call.input(slot)?;
    let &[n, w] = table.shape() else { bail!("input {slot} has rank {}, expected 2", table.rank()) };
    ensure!(w == width, "input {slot} has rows of {w}, expected {width}");
    let v = table.to_f32s()?;
    for (row, &id) in sum.chunks_exact_mut(width.max(1)).zip(ids) {
        let i = usize::try_from(id).ok().filter(|i| *i < n);
        let i = i.ok_or_else(|| anyhow!("index {id} is out of range for the {n} rows of input {slot}"))?;
        row.iter_mut().zip(&v[i * w..(i + 1) * w]).for_each(|(x, t)| *x += t);
    }
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let ids = call.input(0)?;
    let &[batch, len] = ids.shape() else { bail!("input 0 has rank {}, expected 2", ids.rank()) };
    let dtype = call.input(2)?.dtype();
    let width = call.input(2)?.shape().last().copied().unwrap_or(0);
    let mut sum = vec![0.0f32; crate::tensor::count(&[batch, len, width])?];
    add_rows(call, 2, &ids.to_i64s()?, &mut sum, width)?;
    let positions = match call.optional(8)? {
        Some(t) if t.len() == batch * len => t.to_i64s()?,
        Some(t) if t.len() == len => t.to_i64s()?.repeat(batch),
        Some(t) => bail!("input 8 has shape {:?}, expected [{batch}, {len}]", t.shape()),
        None => (0..batch).flat_map(|_| 0..len as i64).collect(),
    };
    add_rows(call, 3, &positions, &mut sum, width)?;
    if call.optional(4)?.is_some() {
        let segments = match call.optional(1)? {
            Some(t) => t.to_i64s()?,
            None => vec![0; batch * len],
        };
        ensure!(segments.len() == batch * len, "input 1 has {} elements, expected {}", segments.len(), batch * len);
        add_rows(call, 4, &segments, &mut sum, width)?;
    }
    let sum = Tensor::new(&[batch, len, width], sum)?;
    let lengths = match call.optional(7)? {
        Some(m) => {
            ensure!(m.shape() == [batch, len], "input 7 has shape {:?}, expected [{batch}, {len}]", m.shape());
            let v = m.to_i64s()?;
            // The number of positions that are not masked.
            (0..batch).map(|b| v[b * len..(b + 1) * len].iter().filter(|x| **x == 1).count() as i32).collect()
        }
        None => vec![0i32; batch],
    };
    let norm = Norm { epsilon: call.float("epsilon", 1e-12), centered: true };
    let (y, ..) = normalize(sum.clone(), width, norm, call.input(5)?, Some(call.input(6)?))?;
    let mut out: Vec<Item> = cast(&y, dtype, true)?.into();
    out.push(Tensor::new(&[batch], lengths)?.into());
    out.push(cast(&sum, dtype, true)?.into());
    out.truncate(call.n_outputs());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn case(id: i32) -> Case {
        let table = |v: [f32; 4]| Tensor::of(&[2, 2], v.to_vec());
        Case::new("EmbedLayerNormalization", 1)
            .domain("com.microsoft")
            .outputs(3)
            .tolerance(1e-5)
            .input(Tensor::of(&[1, 2], vec![1i32, id]))
            .skip()
            .input(table([0.0, 4.0, 1.0, 3.0]))
            .input(table([0.0, 0.0, 1.0, 1.0]))
            .skip()
            .input(Tensor::vector(vec![1.0f32, 2.0]))
            .input(Tensor::vector(vec![0.0f32, 0.5]))
            .input(Tensor::of(&[1, 2], vec![1i32, 0]))
    }

    #[test]
    fn sums_and_normalises() {
        let y = Tensor::of(&[1, 2, 2], vec![-1.0f32, 2.5, -1.0, 2.5]);
        let sum = Tensor::of(&[1, 2, 2], vec![1.0f32, 3.0, 1.0, 5.0]);
        case(0).expect(&[y, Tensor::vector(vec![1i32]), sum]);
        case(2).fails("index 2 is out of range for the 2 rows of input 2");
    }
}
