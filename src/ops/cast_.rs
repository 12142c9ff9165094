//! Conversion of element types: `Cast`, `CastLike` by value, `BitCast` by bits.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Cast.html> (opsets 6, 9, 13, 19, 21, 23, 24, 25, 28),
//! `onnx__CastLike.html` (15 and on), `onnx__BitCast.html` (26)
//! Input: any type and shape; `CastLike`: a tensor whose type is the target. Output: the target type, same shape.
//! Quantized: no; casts of floats stay as they are.
//! Errors: a missing or unknown `to`; a conversion that is not defined; `BitCast` between different widths.

use bytes::Bytes;

use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::tensor::cast::cast;
use crate::tensor::{Buf, C64, C128, DType, Data, Element, Tensor};

const CAST: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_to,
    eval: |_| bail!("no evaluation"),
    quant: QuantRule::Keep { why: "converts the element type" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "BitCast", since: 26, infer: infer_bits, eval: bit_cast, ..CAST },
    OpDef { name: "Cast", eval: cast_to, ..CAST },
    OpDef { name: "CastLike", since: 15, inputs: Arity::exactly(2), infer: infer_like, eval: cast_like, ..CAST },
];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Cast", floats), Reverse::of("CastLike", floats)];

/// A change of the float type changes nothing but the rounding; through an integer type no gradient passes.
fn floats(b: &Back<'_>) -> Result<Gradients> {
    if b.output(0)?.dtype().is_float() { b.reshaped() } else { Ok(Vec::new()) }
}

fn infer_to(ctx: &mut InferCtx<'_>) -> Result<()> {
    let to = ctx.dtype_attr("to")?;
    ensure!(to.is_some(), "attribute \"to\" is missing");
    infer_as(ctx, to)
}

fn infer_bits(ctx: &mut InferCtx<'_>) -> Result<()> {
    let to = ctx.dtype_attr("to")?;
    ensure!(to.is_some(), "attribute \"to\" is missing");
    let shape = ctx.shape(0).map(<[_]>::to_vec);
    ctx.set_tensor(0, to, shape);
    Ok(())
}

fn infer_like(ctx: &mut InferCtx<'_>) -> Result<()> {
    let to = ctx.dtype(1);
    infer_as(ctx, to)
}

fn infer_as(ctx: &mut InferCtx<'_>, to: Option<DType>) -> Result<()> {
    let shape = ctx.shape(0).map(<[_]>::to_vec);
    ctx.set_tensor(0, to, shape);
    // Exporters cast shapes to floats and back; the sizes stay what they are.
    if let Some(v) = ctx.values(0) {
        ctx.set_values(0, v);
    }
    Ok(())
}

fn to_attr(call: &Call<'_>) -> Result<DType> {
    call.required_int("to")?;
    call.dtype("to", DType::F32)
}

fn cast_to(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let to = to_attr(call)?;
    Ok(convert(&call.take(0)?, to, call)?.into())
}

fn cast_like(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let to = call.input(1)?.dtype();
    Ok(convert(&call.take(0)?, to, call)?.into())
}

fn convert(x: &Tensor, to: DType, call: &Call<'_>) -> Result<Tensor> {
    let saturate = call.flag("saturate", true);
    if to == DType::F8E8M0 && x.dtype() != to {
        return to_powers(x, call.str("round_mode", "up"), saturate);
    }
    cast(x, to, saturate)
}

/// Powers of two by the exponent alone, rounded as `round_mode` says; the sign is dropped, infinities become NaN.
fn to_powers(x: &Tensor, round_mode: &str, saturate: bool) -> Result<Tensor> {
    let power = |v: f32| {
        let (exponent, fraction) = ((v.to_bits() >> 23) & 0xff, v.to_bits() & 0x7f_ffff);
        let up = match round_mode {
            "up" => fraction > 0,
            "down" => false,
            // Half way goes up, but for the smallest power.
            "nearest" => fraction > 0x40_0000 || (fraction == 0x40_0000 && exponent > 0),
            other => bail!("attribute \"round_mode\" is \"{other}\", expected \"up\", \"down\" or \"nearest\""),
        };
        let stays = exponent == 0xff || (saturate && exponent == 0xfe);
        Ok((exponent + u32::from(up && !stays)) as u8)
    };
    let v = cast(x, DType::F32, true)?;
    let powers = v.slice::<f32>()?.iter().map(|&v| power(v)).collect::<Result<Vec<u8>>>()?;
    Tensor::new(x.shape(), powers)?.retyped(DType::F8E8M0)
}

fn bit_cast(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let to = to_attr(call)?;
    let x = call.take(0)?;
    let from = x.dtype();
    ensure!(
        from != DType::Str && from.bits() == to.bits(),
        "input 0 has element type {from}, which is not as wide as {to}"
    );
    let shape = x.shape().to_vec();
    // Types of less than a byte are stored sign-extended or not: only the low bits are theirs.
    let bytes = match x.data() {
        Data::Bool(b) => b.as_slice().iter().map(|&b| u8::from(b)).collect::<Vec<u8>>(),
        Data::Str(_) => bail!("input 0 has element type string, which has no bits"),
        Data::F32(b) => bytes_of(b.as_slice()),
        Data::F64(b) => bytes_of(b.as_slice()),
        Data::F16(b) => bytes_of(b.as_slice()),
        Data::BF16(b) => bytes_of(b.as_slice()),
        Data::I8(b) => bytes_of(b.as_slice()),
        Data::I16(b) => bytes_of(b.as_slice()),
        Data::I32(b) => bytes_of(b.as_slice()),
        Data::I64(b) => bytes_of(b.as_slice()),
        Data::U8(b) => bytes_of(b.as_slice()),
        Data::U16(b) => bytes_of(b.as_slice()),
        Data::U32(b) => bytes_of(b.as_slice()),
        Data::U64(b) => bytes_of(b.as_slice()),
        Data::C64(b) => bytes_of(b.as_slice()),
        Data::C128(b) => bytes_of(b.as_slice()),
    };
    let low = |b: u8| if to.bits() < 8 { b & ((1 << to.bits()) - 1) } else { b };
    let signed = |b: u8| {
        let shift = 8 - to.bits().min(8) as u32;
        (b.cast_signed() << shift) >> shift
    };
    let data = match to {
        DType::Bool => bool::wrap(bytes.iter().map(|&b| b != 0).collect::<Vec<_>>().into()),
        DType::I8 | DType::I4 | DType::I2 => i8::wrap(bytes.iter().map(|&b| signed(b)).collect::<Vec<_>>().into()),
        d if d.bits() <= 8 && d != DType::Str => u8::wrap(bytes.iter().map(|&b| low(b)).collect::<Vec<_>>().into()),
        DType::F16 => of_bytes::<half::f16>(bytes),
        DType::BF16 => of_bytes::<half::bf16>(bytes),
        DType::I16 => of_bytes::<i16>(bytes),
        DType::U16 => of_bytes::<u16>(bytes),
        DType::F32 => of_bytes::<f32>(bytes),
        DType::I32 => of_bytes::<i32>(bytes),
        DType::U32 => of_bytes::<u32>(bytes),
        DType::F64 => of_bytes::<f64>(bytes),
        DType::I64 => of_bytes::<i64>(bytes),
        DType::U64 => of_bytes::<u64>(bytes),
        DType::C64 => of_bytes::<C64>(bytes),
        DType::C128 => of_bytes::<C128>(bytes),
        d => return Err(anyhow!("{d} has no bits")),
    };
    Ok(Tensor::from_buf(to, &shape, data)?.into())
}

fn bytes_of<T: bytemuck::NoUninit>(v: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(v).to_vec()
}

fn of_bytes<T: Element + bytemuck::AnyBitPattern>(bytes: Vec<u8>) -> Data {
    T::wrap(Buf::from_bytes(Bytes::from(bytes)))
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{DType, Tensor};

    #[test]
    fn by_value() {
        let x = Tensor::vector(vec![1.7f32, -2.0]);
        let to = |d: DType| i64::from(d.code());
        Case::new("Cast", 13).attr("to", to(DType::I32)).input(x.clone()).expect(&[Tensor::vector(vec![1i32, -2])]);
        Case::new("CastLike", 15).input(x.clone()).input(Tensor::scalar(true)).expect(&[Tensor::vector(vec![true; 2])]);
        Case::new("Cast", 13).input(x.clone()).attr("to", 99i64).fails("99");
        Case::new("Cast", 13).input(x).fails("\"to\" is missing");
        let bad = Tensor::scalar("x1".to_owned());
        Case::new("Cast", 13).input(bad).attr("to", to(DType::F32)).fails("\"x1\" cannot become float");
    }

    #[test]
    fn powers_of_two() {
        let x = Tensor::vector(vec![3.0f32, 2.5, -4.0, f32::INFINITY]);
        let case = || Case::new("Cast", 24).attr("to", i64::from(DType::F8E8M0.code())).input(x.clone());
        let y = |v: [u8; 4]| Tensor::vector(v.to_vec()).retyped(DType::F8E8M0).unwrap();
        case().expect(&[y([129, 129, 129, 255])]);
        case().attr("round_mode", "down").expect(&[y([128, 128, 129, 255])]);
        case().attr("round_mode", "nearest").expect(&[y([129, 128, 129, 255])]);
        case().attr("round_mode", "odd").fails("\"round_mode\" is \"odd\"");
    }

    #[test]
    fn by_bits() {
        let to = |d: DType| i64::from(d.code());
        let x = Tensor::vector(vec![1.0f32]);
        Case::new("BitCast", 26)
            .attr("to", to(DType::U32))
            .input(x.clone())
            .expect(&[Tensor::vector(vec![0x3f80_0000u32])]);
        Case::new("BitCast", 26).attr("to", to(DType::U8)).input(x).fails("not as wide as uint8");
        let u4 = Tensor::vector(vec![15u8]).retyped(DType::U4).unwrap();
        let i4 = Tensor::vector(vec![-1i8]).retyped(DType::I4).unwrap();
        Case::new("BitCast", 26).attr("to", to(DType::I4)).input(u4).expect(&[i4]);
    }
}
