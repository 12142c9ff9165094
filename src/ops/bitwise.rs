//! Operations on bits of integers: `BitwiseAnd`, `BitwiseOr`, `BitwiseXor`, `BitwiseNot`, `BitShift`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__BitwiseAnd.html> and so on (opset 18; `BitShift` 11, 28)
//! Inputs: of T, broadcast. Output: of T. T: integers.
//! Quantized: no.
//! Errors: another element type; a `direction` other than `LEFT` or `RIGHT`.

use super::elementwise::{each, KEEP, UNARY, infer_broadcast, same_dtype, wrong_type, zip_either, zip_in_place};
use super::{Arity, Call, Item, OpDef, OpDomain};
use crate::error::{Result, bail};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Data};

const BITWISE: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 18,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_broadcast,
    eval: |_| bail!("no evaluation"),
    quant: KEEP,
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "BitShift", since: 11, eval: shift, ..BITWISE },
    OpDef { name: "BitwiseAnd", eval: |c| bitwise!(c, |a, b| a & b), ..BITWISE },
    OpDef { name: "BitwiseNot", since: 18, eval: not, ..UNARY },
    OpDef { name: "BitwiseOr", eval: |c| bitwise!(c, |a, b| a | b), ..BITWISE },
    OpDef { name: "BitwiseXor", eval: |c| bitwise!(c, |a, b| a ^ b), ..BITWISE },
];

/// In 64 bits: these operations do not mix bits, so what is cut off afterwards was of no use.
macro_rules! bitwise {
    ($call:expr, $f:expr) => {{
        let dtype = same_dtype($call)?;
        if !dtype.is_integer() {
            return wrong_type(0, dtype, "an integer type");
        }
        let (a, b) = (cast($call.input(0)?, DType::I64, true)?, cast($call.input(1)?, DType::I64, true)?);
        let c = zip_either::<i64>(a, b, $call.threads, $f)?;
        Ok(cast(&c, dtype, true)?.into())
    }};
}
use bitwise;

fn not(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let mut t = call.take(0)?;
    match t.data_mut() {
        Data::I8(b) => each(b, |x| !x),
        Data::I16(b) => each(b, |x| !x),
        Data::I32(b) => each(b, |x| !x),
        Data::I64(b) => each(b, |x| !x),
        Data::U8(b) => each(b, |x| !x),
        Data::U16(b) => each(b, |x| !x),
        Data::U32(b) => each(b, |x| !x),
        Data::U64(b) => each(b, |x| !x),
        _ => return wrong_type(0, t.dtype(), "an integer type"),
    }
    Ok(t.into())
}

fn shift(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let is_left = match call.str("direction", "") {
        "LEFT" => true,
        "RIGHT" => false,
        other => bail!("attribute \"direction\" is \"{other}\", expected \"LEFT\" or \"RIGHT\""),
    };
    let dtype = same_dtype(call)?;
    if !dtype.is_integer() {
        return wrong_type(0, dtype, "an integer type");
    }
    let bits = dtype.bits() as u32;
    let wide = if dtype == DType::U64 { DType::U64 } else { DType::I64 };
    let (a, b, threads) = (cast(call.input(0)?, wide, true)?, cast(call.input(1)?, DType::I64, true)?, call.threads);
    // A shift by the width or more, or by less than nothing, leaves the sign.
    let within = move |n: i64| u32::try_from(n).ok().filter(|n| *n < bits);
    let c = if wide == DType::U64 {
        let by = move |x: u64, n: u64| match within(n.cast_signed()) {
            Some(n) if is_left => x << n,
            Some(n) => x >> n,
            None => 0,
        };
        zip_in_place::<u64>(a, cast(&b, DType::U64, true)?, threads, by)?
    } else {
        let by = move |x: i64, n: i64| match within(n) {
            Some(n) if is_left => x << n,
            Some(n) => x >> n,
            None if is_left => 0,
            None => x >> 63,
        };
        zip_in_place::<i64>(a, b, threads, by)?
    };
    Ok(cast(&c, dtype, true)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn bits() {
        let i = |v: &[i32]| Tensor::vector(v.to_vec());
        for (op, y) in [("BitwiseAnd", [8, 1]), ("BitwiseOr", [14, -1]), ("BitwiseXor", [6, -2])] {
            Case::new(op, 18).input(i(&[12, -1])).input(i(&[10, 1])).expect(&[i(&y)]);
        }
        Case::new("BitwiseNot", 18).input(i(&[0, 5])).expect(&[i(&[-1, -6])]);
        Case::new("BitwiseAnd", 18).input(Tensor::scalar(1.0f32)).input(Tensor::scalar(1.0f32)).fails("integer type");
    }

    #[test]
    fn shifts() {
        let u = |v: &[u8]| Tensor::vector(v.to_vec());
        let case = || Case::new("BitShift", 11).input(u(&[16, 4, 1])).input(u(&[1, 2, 9]));
        case().attr("direction", "LEFT").expect(&[u(&[32, 16, 0])]);
        case().attr("direction", "RIGHT").expect(&[u(&[8, 1, 0])]);
        case().attr("direction", "UP").fails("\"direction\" is \"UP\"");
        let i = |v: &[i8]| Tensor::vector(v.to_vec());
        let signed = || Case::new("BitShift", 28).input(i(&[-16, 4, -1, 64])).input(i(&[1, 9, -1, 1]));
        signed().attr("direction", "RIGHT").expect(&[i(&[-8, 0, -1, 32])]);
        signed().attr("direction", "LEFT").expect(&[i(&[-32, 0, 0, -128])]);
    }
}
