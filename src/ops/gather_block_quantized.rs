//! `GatherBlockQuantized` (com.microsoft) — slices of a table that is stored in blocks of small integers, as floats.
//!
//! Spec: <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GatherBlockQuantized>
//! Inputs: data uint4, int4 or uint8; indices int32 or int64; scales, a float type, of data's shape with
//! `ceil(n / block_size)` along quantize_axis; zero_points? of data's type and scales' shape.
//! Output: scales' type, `data.shape[..g] + indices.shape + data.shape[g+1..]`.
//! Attributes: gather_axis (default 0), quantize_axis (default 1), block_size (default 128), bits of uint8 data: 4
//! (default; two elements in a byte of the last dimension, the lower half first) or 8. Without zero_points uint8 data
//! has 8 or 128, others 0.
//! Quantized: is quantized already.
//! Errors: axes out of range or equal; shapes that do not fit; an index out of range.

use super::call::axis;
use super::gather::gather;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::ir::{Attrs, Dim, sym};
use crate::tensor::broadcast::strides;
use crate::tensor::{DType, Tensor, cast};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "GatherBlockQuantized",
    domain: OpDomain::Microsoft,
    since: 1,
    inputs: Arity::range(3, 4),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "is quantized already" },
}];

/// Elements in a byte of the data.
fn packing(attrs: &Attrs, dtype: Option<DType>) -> Result<usize> {
    match (dtype, attrs.int("bits").unwrap_or(4)) {
        (Some(DType::U8), 4) => Ok(2),
        (_, 4 | 8) => Ok(1),
        (_, b) => bail!("attribute \"bits\" is {b}, expected 4 or 8"),
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match (ctx.shape(0), ctx.shape(1)) {
        (Some(d), Some(i)) => {
            let at = axis(ctx.attrs.int("gather_axis").unwrap_or(0), d.len())?;
            let mut out = [&d[..at], i, &d[at + 1..]].concat();
            if let Some(last) = out.last_mut() {
                *last = sym::mul(last, &Dim::Known(packing(ctx.attrs, ctx.dtype(0))?));
            }
            Some(out)
        }
        _ => None,
    };
    ctx.set_tensor(0, ctx.dtype(2), shape);
    Ok(())
}

/// Two elements from each byte, along the last dimension.
fn unpacked(t: &Tensor) -> Result<Tensor> {
    let mut shape = t.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last *= 2;
    }
    Tensor::new(&shape, t.slice::<u8>()?.iter().flat_map(|b| [b & 15, b >> 4]).collect::<Vec<u8>>())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (data, scales) = (call.input(0)?, call.input(2)?);
    let per_byte = packing(call.attrs, Some(data.dtype()))?;
    let rank = data.rank();
    let at = axis(call.int("gather_axis", 0), rank)?;
    let along = axis(call.int("quantize_axis", 1), rank)?;
    ensure!(at != along, "gather_axis and quantize_axis are both {at}");
    ensure!(per_byte == 1 || (along == rank - 1), "packed data is quantized along axis {along}, expected the last");
    let block = usize::try_from(call.int("block_size", 128)).unwrap_or(0);
    ensure!(block >= 1, "attribute \"block_size\" is {}", call.int("block_size", 128));
    let mut expected = data.shape().to_vec();
    expected[along] = (expected[along] * per_byte).div_ceil(block);
    ensure!(scales.shape() == expected, "input 2 (scales) has shape {:?}, expected {expected:?}", scales.shape());
    let (indices, index_shape) = (call.ints(1)?, call.input(1)?.shape().to_vec());
    let pick = |t: &Tensor| gather(t, &indices, &index_shape, at);
    let unpack = |t: Tensor| if per_byte == 2 { unpacked(&t) } else { Ok(t) };
    let q = unpack(pick(data)?)?;
    let default = match (data.dtype(), per_byte) {
        (DType::U8, 2) => 8,
        (DType::U8, _) => 128,
        _ => 0,
    };
    let s = pick(scales)?;
    // Where the quantized axis stands after the indices' dimensions have taken the gathered one's place.
    let along = if along < at { along } else { along + index_shape.len() - 1 };
    let zero_points = match call.optional(3)? {
        None => None,
        Some(z) => {
            let z = unpack(pick(z)?)?;
            let n = z.shape().get(along).copied().unwrap_or(0);
            ensure!(n >= s.shape()[along], "input 3 (zero_points) has shape {:?}", z.shape());
            Some((z.to_i64s()?, n))
        }
    };
    let (values, factors) = (q.to_i64s()?, s.to_f32s()?);
    let st = strides(q.shape());
    let (n, n_blocks, inner) = (q.shape()[along], s.shape()[along], st[along]);
    let out = values
        .iter()
        .enumerate()
        .map(|(i, &v)| {
            let (o, k, r) = (i / (n * inner), (i / inner) % n / block, i % inner);
            let z = zero_points.as_ref().map_or(default, |(z, m)| z[(o * m + k) * inner + r]);
            (v - z) as f32 * factors[(o * n_blocks + k) * inner + r]
        })
        .collect::<Vec<f32>>();
    Ok(cast::cast(&Tensor::new(q.shape(), out)?, scales.dtype(), true)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{DType, Tensor};

    fn case(data: Tensor, scales: Tensor) -> Case {
        Case::new("GatherBlockQuantized", 1)
            .domain("com.microsoft")
            .input(data)
            .input(Tensor::vector(vec![1i64]))
            .input(scales)
            .attr("block_size", 2)
    }

    #[test]
    fn picks_and_dequantizes() {
        let s = || Tensor::of(&[2, 2], vec![1.0f32, 2.0, 10.0, 100.0]);
        let row = |v: &[f32]| [Tensor::of(&[1, 4], v.to_vec())];
        let data = Tensor::of(&[2, 4], vec![0i8, 0, 0, 0, 1, -2, 3, 4]).retyped(DType::I4).unwrap();
        case(data.clone(), s()).expect(&row(&[10.0, -20.0, 300.0, 400.0]));
        let packed = Tensor::of(&[2, 2], vec![0u8, 0, 0xa9, 0x87]);
        case(packed.clone(), s()).expect(&row(&[10.0, 20.0, -100.0, 0.0]));
        case(packed, s()).input(Tensor::of(&[2, 1], vec![0u8, 0x79])).expect(&row(&[0.0, 10.0, 0.0, 100.0]));
        case(data.clone(), Tensor::of(&[2, 1], vec![1.0f32, 2.0])).fails("input 2 (scales)");
        case(data, s()).attr("quantize_axis", 0).fails("both 0");
    }
}
