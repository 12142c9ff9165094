//! `RotaryEmbedding` — rotates pairs of elements by an angle that depends on the position.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html> (opset 23), and `com.microsoft` (whose positions
//! come second). Inputs: X `[B, H, S, D]` or `[B, S, H * D]`, cos and sin `[positions, D' / 2]`, or `[B, S, D' / 2]`
//! without position ids. Output: as X. Computed in 32 bits.
//! Quantized: no. Errors: shapes that do not fit; a position out of range.

use super::attention::heads;
use super::elementwise::infer_same;
use super::{Arity, Call, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "RotaryEmbedding",
        domain: OpDomain::Onnx,
        since: 23,
        inputs: Arity::range(3, 4),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer: infer_same,
        eval: |c| eval(c, [1, 2, 3]),
        quant: QuantRule::Keep { why: "rotates pairs of elements" },
    },
    OpDef {
        name: "RotaryEmbedding",
        domain: OpDomain::Microsoft,
        since: 1,
        inputs: Arity::exactly(4),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer: infer_same,
        eval: |c| eval(c, [2, 3, 1]),
        quant: QuantRule::Keep { why: "rotates pairs of elements" },
    },
];

/// How a tensor's elements lie: `[batch, length, heads, size]` with the stride of a position and of a head.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) batch: usize,
    pub(super) len: usize,
    pub(super) heads: usize,
    pub(super) size: usize,
    /// Whether heads come before positions.
    pub(super) heads_first: bool,
}

/// What is rotated, and by which angles.
pub(super) struct Rotation<'a> {
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
    /// Elements of a head that are rotated.
    pub(super) size: usize,
    pub(super) interleaved: bool,
}

impl Rotation<'_> {
    /// Rotates in place; `row` gives the row of cosines for a sample and position.
    ///
    /// # Errors
    /// A row that does not exist.
    pub(super) fn apply(&self, x: &mut [f32], l: Layout, row: impl Fn(usize, usize) -> i64) -> Result<()> {
        let half = self.size / 2;
        for b in 0..l.batch {
            for s in 0..l.len {
                let position = row(b, s);
                let from = usize::try_from(position).ok().and_then(|p| p.checked_mul(half));
                let angles = from.and_then(|f| self.cos.get(f..f + half).zip(self.sin.get(f..f + half)));
                let (cos, sin) = angles.ok_or_else(|| anyhow!("position {position} has no cosines"))?;
                for h in 0..l.heads {
                    let at = if l.heads_first { (b * l.heads + h) * l.len + s } else { (b * l.len + s) * l.heads + h };
                    let head = &mut x[at * l.size..at * l.size + self.size];
                    for i in 0..half {
                        let (p, q) = if self.interleaved { (2 * i, 2 * i + 1) } else { (i, half + i) };
                        let (re, im) = (head[p], head[q]);
                        head[p] = cos[i] * re - sin[i] * im;
                        head[q] = sin[i] * re + cos[i] * im;
                    }
                }
            }
        }
        Ok(())
    }
}

fn eval(call: &mut Call<'_>, [cos, sin, ids]: [usize; 3]) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let dtype = x.dtype();
    let rotated = heads(call.attrs.int("rotary_embedding_dim"), "rotary_embedding_dim")?.unwrap_or(0);
    let n_heads = heads(call.attrs.int("num_heads"), "num_heads")?.unwrap_or(0);
    let (cos_t, sin_t) = (call.input(cos)?, call.input(sin)?);
    ensure!(
        cos_t.shape() == sin_t.shape() && matches!(cos_t.rank(), 2 | 3),
        "inputs {cos} and {sin} have shapes {:?} and {:?}, expected the same of rank 2 or 3",
        cos_t.shape(),
        sin_t.shape()
    );
    let width = cos_t.shape()[cos_t.rank() - 1];
    let layout = match *x.shape() {
        [batch, heads, len, size] => Layout { batch, len, heads, size, heads_first: true },
        [batch, len, total] => {
            let heads = match (n_heads, rotated) {
                (0, 0) => total / (2 * width).max(1),
                (0, _) => bail!("attribute \"num_heads\" is missing, which a partial rotation of rank 3 needs"),
                (n, _) => n,
            };
            ensure!(heads > 0 && total % heads == 0, "input 0 has width {total}, which {heads} heads do not divide");
            Layout { batch, len, heads, size: total / heads, heads_first: false }
        }
        _ => bail!("input 0 has rank {}, expected 3 or 4", x.rank()),
    };
    let size = if rotated == 0 { layout.size } else { rotated };
    ensure!(
        size <= layout.size,
        "attribute \"rotary_embedding_dim\" is {size}, but heads have {} elements",
        layout.size
    );
    ensure!(size.is_multiple_of(2) && width == size / 2, "input {cos} has rows of {width}, expected {}", size / 2);
    let positions = call.optional(ids)?.map(Tensor::to_i64s).transpose()?;
    match &positions {
        Some(p) => ensure!(
            cos_t.rank() == 2 && (p.len() == 1 || p.len() == layout.batch * layout.len),
            "input {ids} has {} positions, expected {}",
            p.len(),
            layout.batch * layout.len
        ),
        None => ensure!(
            cos_t.len() == layout.batch * layout.len * width,
            "input {cos} has shape {:?}, expected a row for each position of {:?}",
            cos_t.shape(),
            x.shape()
        ),
    }
    let (cos, sin) = (cos_t.to_f32s()?, sin_t.to_f32s()?);
    let rotation = Rotation { cos: &cos, sin: &sin, size, interleaved: call.flag("interleaved", false) };
    let mut y = cast(x, DType::F32, true)?;
    rotation.apply(y.slice_mut()?, layout, |b, s| match &positions {
        // One number is where the sequence starts.
        Some(p) if p.len() == 1 && layout.batch * layout.len != 1 => p[0] + s as i64,
        Some(p) => p[b * layout.len + s],
        None => (b * layout.len + s) as i64,
    })?;
    Ok(cast(&y, dtype, true)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn rotates() {
        let x = Tensor::of(&[1, 1, 2, 4], vec![1.0f32, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
        // Position 0: no rotation; position 1: a quarter turn.
        let cos = Tensor::of(&[2, 2], vec![1.0f32, 1.0, 0.0, 0.0]);
        let sin = Tensor::of(&[2, 2], vec![0.0f32, 0.0, 1.0, 1.0]);
        let ids = || Tensor::of(&[1, 2], vec![0i64, 1]);
        let case = || Case::new("RotaryEmbedding", 23).input(x.clone()).input(cos.clone()).input(sin.clone());
        let y = Tensor::of(&[1, 1, 2, 4], vec![1.0f32, 2.0, 3.0, 4.0, -3.0, -4.0, 1.0, 2.0]);
        case().input(ids()).expect(&[y.clone()]);
        let pairs = Tensor::of(&[1, 1, 2, 4], vec![1.0f32, 2.0, 3.0, 4.0, -2.0, 1.0, -4.0, 3.0]);
        case().input(ids()).attr("interleaved", 1i64).expect(&[pairs]);
        case().input(Tensor::of(&[1, 2], vec![0i64, 2])).fails("position 2 has no cosines");
        case().input(ids()).attr("rotary_embedding_dim", 2i64).fails("rows of 2, expected 1");
        let flat = x.clone().reshaped(&[1, 2, 4]).unwrap();
        Case::new("RotaryEmbedding", 1)
            .domain("com.microsoft")
            .input(flat)
            .input(Tensor::vector(vec![0i64]))
            .input(cos)
            .input(sin)
            .expect(&[y.reshaped(&[1, 2, 4]).unwrap()]);
    }
}
