//! `MatMulNBits` — product with a weight of 2, 4 or 8 bits in blocks.
//!
//! Spec: <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md> (com.microsoft 1)
//! Inputs: A `[…, K]` of T, B uint8 `[N, blocks, block_size * bits / 8]`, scales `[N * blocks]` of T, zero_points?
//! uint8 `[N * ceil(blocks * bits / 8)]` (packed by row) or `[N * blocks]` of T, g_idx? int32 `[K]`, bias? `[N]` of T.
//! Output: Y `[…, N]` of T: `A * transpose((B - zero_point) * scale) + bias`. Elements are packed from the low bits up;
//! without zero points the middle of the range is 0. T: float, float16, bfloat16.
//! Quantized: its weight is quantized already.
//! Errors: another number of bits; sizes that do not fit K, N and block_size.

use super::floats::from_f32s;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::ir::Dim;
use crate::kernels::gemm::{Init, PackedB, gemm};
use crate::tensor::{DType, Tensor, buffer};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "MatMulNBits",
    domain: OpDomain::Microsoft,
    since: 1,
    inputs: Arity::range(3, 6),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "its weight is quantized already" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = ctx.attrs.int("N").and_then(|n| usize::try_from(n).ok());
    let shape = match ctx.shape(0) {
        Some([batch @ .., _]) => {
            let mut s = batch.to_vec();
            s.push(n.map_or(Dim::Unknown, Dim::Known));
            Some(s)
        }
        _ => None,
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

/// The weight's sizes.
struct Sizes {
    k: usize,
    n: usize,
    bits: usize,
    block: usize,
    blocks: usize,
}

impl Sizes {
    fn new(call: &Call<'_>) -> Result<Self> {
        let size = |name: &str| match usize::try_from(call.required_int(name)?) {
            Ok(n @ 1..) if n < 1 << 31 => Ok(n),
            _ => bail!("attribute \"{name}\" is {}, expected at least 1", call.int(name, 0)),
        };
        let (k, n, block) = (size("K")?, size("N")?, size("block_size")?);
        let bits = call.int("bits", 4);
        ensure!(matches!(bits, 2 | 4 | 8), "attribute \"bits\" is {bits}, expected 2, 4 or 8");
        let bits = bits as usize;
        ensure!((block * bits).is_multiple_of(8), "attribute \"block_size\" is {block}, which fills no whole bytes");
        Ok(Sizes { k, n, bits, block, blocks: k.div_ceil(block) })
    }

    /// Element `i` of packed bytes.
    fn element(&self, bytes: &[u8], i: usize) -> u8 {
        let per_byte = 8 / self.bits;
        let mask = ((1u16 << self.bits) - 1) as u8;
        bytes[i / per_byte] >> (i % per_byte * self.bits) & mask
    }

    /// The zero points `[N, blocks]`.
    fn zero_points(&self, t: Option<&Tensor>) -> Result<Vec<f32>> {
        let count = self.n * self.blocks;
        let Some(t) = t else { return Ok(vec![(1u32 << (self.bits - 1)) as f32; count]) };
        if t.dtype() != DType::U8 {
            ensure!(t.len() == count, "input 3 (zero_points) has shape {:?}, expected {count} elements", t.shape());
            return Ok(t.to_f32s()?.into_owned());
        }
        let row = (self.blocks * self.bits).div_ceil(8);
        ensure!(
            t.len() == self.n * row,
            "input 3 (zero_points) has shape {:?}, expected {} bytes",
            t.shape(),
            self.n * row
        );
        let bytes = t.slice::<u8>()?;
        let at = |i: usize| self.element(&bytes[i / self.blocks * row..], i % self.blocks).into();
        Ok((0..count).map(at).collect())
    }

    /// The weight `[N, K]` in floats.
    fn weight(&self, call: &Call<'_>) -> Result<Vec<f32>> {
        let (b, scales) = (call.input(1)?, call.input(2)?);
        let row = self.blocks * self.block * self.bits / 8;
        ensure!(b.len() == self.n * row, "input 1 (B) has shape {:?}, expected {} bytes", b.shape(), self.n * row);
        let count = self.n * self.blocks;
        ensure!(scales.len() == count, "input 2 (scales) has shape {:?}, expected {count} elements", scales.shape());
        let (bytes, scales, zeros) = (b.slice::<u8>()?, scales.to_f32s()?, self.zero_points(call.optional(3)?)?);
        let groups: Vec<usize> = match call.optional(4)? {
            None => (0..self.k).map(|k| k / self.block).collect(),
            Some(t) => {
                ensure!(t.len() >= self.k, "input 4 (g_idx) has shape {:?}, expected {} elements", t.shape(), self.k);
                let index = |g: i64| usize::try_from(g).ok().filter(|&g| g < self.blocks);
                let groups: Option<Vec<usize>> = t.to_i64s()?.into_iter().take(self.k).map(index).collect();
                match groups {
                    Some(g) => g,
                    None => bail!("input 4 (g_idx) has an element outside 0..{}", self.blocks),
                }
            }
        };
        let mut w = Vec::with_capacity(self.n * self.k);
        for (n, bytes) in bytes.chunks_exact(row).enumerate() {
            let at = n * self.blocks;
            w.extend((0..self.k).map(|k| {
                let g = at + groups[k];
                (f32::from(self.element(bytes, k)) - zeros[g]) * scales[g]
            }));
        }
        Ok(w)
    }
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let s = Sizes::new(call)?;
    let a = call.input(0)?;
    ensure!(a.shape().last() == Some(&s.k), "input 0 (A) has shape {:?}, expected {} columns", a.shape(), s.k);
    let pack = || Ok(PackedB::new(&s.weight(call)?, s.k, s.n, 1, s.k));
    let made;
    let packed = if super::mat_mul_integer::fixed(call, &[1, 2, 3, 4]) {
        call.shared(pack)?
    } else {
        made = pack()?;
        &made
    };
    let bias = call.optional(5)?.map(Tensor::to_f32s).transpose()?;
    if let Some(b) = &bias {
        ensure!(b.len() == s.n, "input 5 (bias) has {} elements, expected {}", b.len(), s.n);
    }
    let m = a.len() / s.k;
    let mut shape = a.shape().to_vec();
    shape.pop();
    shape.push(s.n);
    let mut y = buffer(crate::tensor::count(&shape)?);
    let init = bias.as_deref().map_or(Init::Zero, Init::Columns);
    gemm(call.threads, m, &a.to_f32s()?, packed, init, &mut y);
    Ok(from_f32s(a.dtype(), &shape, y)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Element, Tensor};

    fn t<T: Element>(shape: &[usize], v: &[T]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    /// K = 3 in two blocks of 2, one column, elements 9, 6, 10.
    fn case() -> Case {
        Case::new("MatMulNBits", 1)
            .domain("com.microsoft")
            .attr("K", 3i64)
            .attr("N", 1i64)
            .attr("bits", 4i64)
            .attr("block_size", 2i64)
            .input(t(&[1, 3], &[1.0f32, 10.0, 100.0]))
            .input(t(&[1, 2, 1], &[0x69u8, 0x0a]))
            .input(t(&[2], &[1.0f32, 0.5]))
    }

    #[test]
    fn all_forms_of_zero_points() {
        case().expect(&[t(&[1, 1], &[81.0f32])]);
        case().input(t(&[1], &[0x86u8])).expect(&[t(&[1, 1], &[103.0f32])]);
        case().input(t(&[2], &[6.5f32, 9.0])).expect(&[t(&[1, 1], &[47.5f32])]);
    }

    #[test]
    fn permuted_groups_and_bias() {
        case().skip().input(t(&[3], &[1i32, 0, 0])).expect(&[t(&[1, 1], &[180.5f32])]);
        case().skip().skip().input(t(&[1], &[0.5f32])).expect(&[t(&[1, 1], &[81.5f32])]);
        case().skip().input(t(&[3], &[2i32, 0, 0])).fails("input 4 (g_idx)");
    }

    #[test]
    fn two_and_eight_bits() {
        let base = |bits: i64| {
            Case::new("MatMulNBits", 1)
                .domain("com.microsoft")
                .attr("K", 4i64)
                .attr("N", 1i64)
                .attr("bits", bits)
                .attr("block_size", 4i64)
                .input(t(&[1, 4], &[1.0f32, 10.0, 100.0, 1000.0]))
        };
        // 3, 0, 2, 1 around 2.
        base(2).input(t(&[1, 1, 1], &[0b01_10_00_11u8])).input(t(&[1], &[1.0f32])).expect(&[t(&[1, 1], &[-1019.0f32])]);
        base(8)
            .input(t(&[1, 1, 4], &[129u8, 128, 127, 128]))
            .input(t(&[1], &[2.0f32]))
            .expect(&[t(&[1, 1], &[-198.0f32])]);
        base(3).input(t(&[1, 1, 4], &[0u8; 4])).input(t(&[1], &[2.0f32])).fails("\"bits\"");
        base(8).input(t(&[1, 1, 3], &[0u8; 3])).input(t(&[1], &[2.0f32])).fails("input 1 (B)");
    }
}
