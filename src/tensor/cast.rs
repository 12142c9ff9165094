//! Conversion between element types, as ONNX `Cast` defines it.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{Buf, DType, Data, Element, Tensor, minifloat};
use crate::error::{Result, bail};
use crate::{with_data, with_numbers};

/// A real number that converts to and from 64-bit floats and integers.
pub trait Number: Element + Copy + PartialOrd {
    /// The value as a 64-bit float (64-bit integers are rounded).
    fn to_f64(self) -> f64;
    /// The nearest value that the type holds (floats), or the truncated and then wrapped one (integers).
    fn from_f64(x: f64) -> Self;
    /// The value as a 64-bit integer, truncated.
    fn to_i64(self) -> i64;
    /// The value from a 64-bit integer, wrapped as a C cast does.
    fn from_i64(x: i64) -> Self;
    /// Whether it is a floating-point type.
    const IS_FLOAT: bool;
}

macro_rules! float_number {
    ($($t:ty)*) => { $(impl Number for $t {
        fn to_f64(self) -> f64 { f64::from(self) }
        fn from_f64(x: f64) -> Self { x as $t }
        fn to_i64(self) -> i64 { self as i64 }
        fn from_i64(x: i64) -> Self { x as $t }
        const IS_FLOAT: bool = true;
    })* };
}

macro_rules! half_number {
    ($($t:ty)*) => { $(impl Number for $t {
        fn to_f64(self) -> f64 { self.to_f64() }
        fn from_f64(x: f64) -> Self { <$t>::from_f64(x) }
        fn to_i64(self) -> i64 { self.to_f64() as i64 }
        fn from_i64(x: i64) -> Self { <$t>::from_f64(x as f64) }
        const IS_FLOAT: bool = true;
    })* };
}

macro_rules! int_number {
    ($($t:ty)*) => { $(impl Number for $t {
        fn to_f64(self) -> f64 { self as f64 }
        // Through i64 first: what lies outside the type wraps, as in ONNX Runtime.
        fn from_f64(x: f64) -> Self { (x as i64) as $t }
        fn to_i64(self) -> i64 { self as i64 }
        fn from_i64(x: i64) -> Self { x as $t }
        const IS_FLOAT: bool = false;
    })* };
}

float_number!(f32 f64);
half_number!(f16 bf16);
int_number!(i8 i16 i32 i64 u8 u16 u32);

impl Number for u64 {
    fn to_f64(self) -> f64 {
        self as f64
    }
    fn from_f64(x: f64) -> Self {
        if x < 0.0 { (x as i64).cast_unsigned() } else { x as u64 }
    }
    fn to_i64(self) -> i64 {
        self.cast_signed()
    }
    fn from_i64(x: i64) -> Self {
        x.cast_unsigned()
    }
    const IS_FLOAT: bool = false;
}

/// The elements as 64-bit floats; see [`Tensor::to_f64s`].
pub(super) fn to_f64s(t: &Tensor) -> Result<Vec<f64>> {
    if is_minifloat(t.dtype()) {
        return Ok(t.slice::<u8>()?.iter().map(|&b| minifloat::decode(t.dtype(), b).into()).collect());
    }
    if let Data::Bool(b) = t.data() {
        return Ok(b.as_slice().iter().map(|&x| f64::from(u8::from(x))).collect());
    }
    with_numbers!(t.data(), T, b => Ok(b.as_slice().iter().map(|&x: &T| Number::to_f64(x)).collect()),
        _ => bail!("element type is {}, expected a number type", t.dtype()))
}

/// Half floats as floats, many at a time.
pub(super) fn widened<T>(v: &[T]) -> Vec<f32>
where
    [T]: HalfFloatSliceExt,
{
    let mut out = vec![0.0; v.len()];
    v.convert_to_f32_slice(&mut out);
    out
}

fn is_minifloat(dtype: DType) -> bool {
    dtype.is_float() && dtype.bits() <= 8
}

/// A tensor of `dtype` with the values nearest to 64-bit floats: rounded for floats (small floats saturate), truncated
/// and wrapped for integers, `x != 0` for bool.
///
/// # Errors
/// `dtype` is string or complex; the shape does not fit.
pub fn from_f64s(dtype: DType, shape: &[usize], v: Vec<f64>) -> Result<Tensor> {
    from_f64s_saturating(dtype, shape, v, true)
}

fn from_f64s_saturating(dtype: DType, shape: &[usize], v: Vec<f64>, saturate: bool) -> Result<Tensor> {
    fn as_t<T: Number>(v: &[f64]) -> Data {
        T::wrap(Buf::from(v.iter().map(|&x| T::from_f64(x)).collect::<Vec<T>>()))
    }
    let data = match dtype {
        DType::F32 => as_t::<f32>(&v),
        DType::F64 => f64::wrap(v.into()),
        DType::F16 => as_t::<f16>(&v),
        DType::BF16 => as_t::<bf16>(&v),
        DType::I8 => as_t::<i8>(&v),
        DType::I16 => as_t::<i16>(&v),
        DType::I32 => as_t::<i32>(&v),
        DType::I64 => as_t::<i64>(&v),
        DType::U8 => as_t::<u8>(&v),
        DType::U16 => as_t::<u16>(&v),
        DType::U32 => as_t::<u32>(&v),
        DType::U64 => as_t::<u64>(&v),
        DType::I4 | DType::I2 => {
            let shift = 8 - dtype.bits() as u32;
            i8::wrap(v.iter().map(|&x| ((x as i64 as i8) << shift) >> shift).collect::<Vec<_>>().into())
        }
        DType::U4 | DType::U2 => {
            let mask = (1u8 << dtype.bits()) - 1;
            u8::wrap(v.iter().map(|&x| x as i64 as u8 & mask).collect::<Vec<_>>().into())
        }
        DType::Bool => bool::wrap(v.iter().map(|&x| x != 0.0).collect::<Vec<_>>().into()),
        d if is_minifloat(d) => {
            u8::wrap(v.iter().map(|&x| minifloat::encode(d, x as f32, saturate)).collect::<Vec<_>>().into())
        }
        d => bail!("numbers cannot become {d}"),
    };
    Tensor::from_buf(dtype, shape, data)
}

/// The tensor with its elements converted to `dtype`, as ONNX `Cast` (opset 25) does. `saturate` concerns the
/// 8-bit floats only. Complex numbers convert to complex numbers only.
///
/// # Errors
/// A string does not parse as a number; a conversion that ONNX does not define.
pub fn cast(t: &Tensor, dtype: DType, saturate: bool) -> Result<Tensor> {
    if t.dtype() == dtype {
        return Ok(t.clone());
    }
    let shape = t.shape();
    match (t.data(), dtype) {
        (Data::Str(b), _) => {
            let v = b.as_slice().iter().map(|s| parse(s, dtype)).collect::<Result<Vec<f64>>>()?;
            // 64-bit integers do not survive a detour through floats.
            if dtype == DType::I64 {
                let v = b.as_slice().iter().zip(&v).map(|(s, &x)| s.trim().parse().unwrap_or(x as i64)).collect();
                return Tensor::new::<i64>(shape, v);
            }
            from_f64s_saturating(dtype, shape, v, saturate)
        }
        (_, DType::Str) => {
            let v = (0..t.len()).map(|i| format_element(t, i)).collect::<Result<Vec<_>>>()?;
            Tensor::new::<String>(shape, v)
        }
        (Data::C64(b), DType::C128) => {
            Tensor::new(shape, b.as_slice().iter().map(|c| super::C128::new(c.re.into(), c.im.into())).collect())
        }
        (Data::C128(b), DType::C64) => {
            Tensor::new(shape, b.as_slice().iter().map(|c| super::C64::new(c.re as f32, c.im as f32)).collect())
        }
        (Data::F32(b), DType::F16) => {
            let mut v = vec![f16::ZERO; b.as_slice().len()];
            v.convert_from_f32_slice(b.as_slice());
            Tensor::new(shape, v)
        }
        (Data::F32(b), DType::BF16) => {
            Tensor::new(shape, b.as_slice().iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>())
        }
        (Data::Bool(b), DType::F32) => {
            Tensor::new(shape, b.as_slice().iter().map(|&x| f32::from(u8::from(x))).collect::<Vec<_>>())
        }
        (Data::F16(b), DType::F32) => Tensor::new(shape, widened(b.as_slice())),
        (Data::BF16(b), DType::F32) => Tensor::new(shape, widened(b.as_slice())),
        (_, DType::F32 | DType::F64 | DType::F16 | DType::BF16) => {
            if is_minifloat(t.dtype()) || matches!(t.data(), Data::Bool(_)) {
                return from_f64s(dtype, shape, to_f64s(t)?);
            }
            with_numbers!(t.data(), T, b => {
                let v = b.as_slice();
                match dtype {
                    DType::F32 => Tensor::new(shape, v.iter().map(|&x: &T| to_f32(x)).collect::<Vec<f32>>()),
                    DType::F64 => Tensor::new(shape, v.iter().map(|&x: &T| Number::to_f64(x)).collect::<Vec<f64>>()),
                    DType::F16 => Tensor::new(shape, v.iter().map(|&x: &T| f16::from_f64(Number::to_f64(x))).collect()),
                    _ => Tensor::new(shape, v.iter().map(|&x: &T| bf16::from_f64(Number::to_f64(x))).collect()),
                }
            }, _ => bail!("{} cannot become {dtype}", t.dtype()))
        }
        // Integers to integers exactly, without a detour through floats.
        _ if (t.dtype().is_integer() || t.dtype() == DType::Bool) && !is_minifloat(dtype) => {
            integers(&t.to_i64s()?, dtype, shape)
        }
        _ => from_f64s_saturating(dtype, shape, to_f64s(t)?, saturate),
    }
}

fn to_f32<T: Number>(x: T) -> f32 {
    if T::IS_FLOAT { x.to_f64() as f32 } else { x.to_i64() as f32 }
}

fn integers(v: &[i64], dtype: DType, shape: &[usize]) -> Result<Tensor> {
    fn as_t<T: Number>(v: &[i64]) -> Data {
        T::wrap(Buf::from(v.iter().map(|&x| T::from_i64(x)).collect::<Vec<T>>()))
    }
    let data = match dtype {
        DType::I8 => as_t::<i8>(v),
        DType::I16 => as_t::<i16>(v),
        DType::I32 => as_t::<i32>(v),
        DType::I64 => as_t::<i64>(v),
        DType::U8 => as_t::<u8>(v),
        DType::U16 => as_t::<u16>(v),
        DType::U32 => as_t::<u32>(v),
        DType::U64 => as_t::<u64>(v),
        DType::Bool => bool::wrap(v.iter().map(|&x| x != 0).collect::<Vec<_>>().into()),
        d => return from_f64s(d, shape, v.iter().map(|&x| x as f64).collect()),
    };
    Tensor::from_buf(dtype, shape, data)
}

fn parse(s: &str, dtype: DType) -> Result<f64> {
    let s = s.trim();
    let v = match s.to_ascii_lowercase().as_str() {
        "inf" | "+inf" => f64::INFINITY,
        "-inf" => f64::NEG_INFINITY,
        "nan" => f64::NAN,
        _ => match s.parse() {
            Ok(v) => v,
            Err(_) => bail!("string \"{s}\" cannot become {dtype}"),
        },
    };
    Ok(v)
}

fn format_element(t: &Tensor, i: usize) -> Result<String> {
    fn float(x: f64, shown: String) -> String {
        if x.is_nan() {
            "NaN".into()
        } else if x.is_infinite() {
            if x > 0.0 { "INF".into() } else { "-INF".into() }
        } else {
            shown
        }
    }
    Ok(match t.data() {
        Data::F32(b) => float(b.as_slice()[i].into(), b.as_slice()[i].to_string()),
        Data::F64(b) => float(b.as_slice()[i], b.as_slice()[i].to_string()),
        Data::F16(b) => float(b.as_slice()[i].to_f64(), b.as_slice()[i].to_string()),
        Data::BF16(b) => float(b.as_slice()[i].to_f64(), b.as_slice()[i].to_string()),
        Data::Bool(b) => if b.as_slice()[i] { "1" } else { "0" }.into(),
        Data::U8(b) if is_minifloat(t.dtype()) => {
            let x = minifloat::decode(t.dtype(), b.as_slice()[i]);
            float(x.into(), x.to_string())
        }
        d => with_data!(d, T, b => format!("{:?}", b.as_slice()[i])),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_wrap_and_floats_truncate() {
        let c = |t: Tensor, d| cast(&t, d, true).unwrap();
        assert_eq!(c(Tensor::vector(vec![300i64, -1]), DType::U8), Tensor::vector(vec![44u8, 255]));
        assert_eq!(c(Tensor::vector(vec![2.9f32, -2.9]), DType::I32), Tensor::vector(vec![2i32, -2]));
        assert_eq!(c(Tensor::vector(vec![i64::MAX]), DType::U64), Tensor::vector(vec![i64::MAX as u64]));
        assert_eq!(c(Tensor::vector(vec![0.0f32, 0.5]), DType::Bool), Tensor::vector(vec![false, true]));
        assert_eq!(
            c(Tensor::vector(vec!["-inf".to_owned(), "1e3".to_owned()]), DType::F32),
            Tensor::vector(vec![f32::NEG_INFINITY, 1000.0])
        );
    }
}
