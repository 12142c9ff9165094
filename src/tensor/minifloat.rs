//! Floats of 8, 6 and 4 bits: decoding, and encoding with round half to even and ONNX's saturation rules.
//!
//! Spec: <https://onnx.ai/onnx/technical/float8.html>, `float4.html`, and the OCP MX formats for E8M0, E2M3 and E3M2.

use super::DType;

/// The bit layout of a small float.
#[derive(Debug, Clone, Copy)]
struct Format {
    exp: u32,
    man: u32,
    bias: i32,
    specials: Specials,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Specials {
    /// Infinities and NaNs as in IEEE 754 (E5M2).
    Ieee,
    /// No infinity; all ones but the sign is NaN (E4M3FN).
    NanAllOnes,
    /// No infinity, no negative zero; its bit pattern is the NaN (FNUZ).
    NanIsNegZero,
    /// Finite values only (float6, float4).
    None,
}

fn format(dtype: DType) -> Option<Format> {
    let f = |exp, man, bias, specials| Some(Format { exp, man, bias, specials });
    match dtype {
        DType::F8E4M3FN => f(4, 3, 7, Specials::NanAllOnes),
        DType::F8E4M3FNUZ => f(4, 3, 8, Specials::NanIsNegZero),
        DType::F8E5M2 => f(5, 2, 15, Specials::Ieee),
        DType::F8E5M2FNUZ => f(5, 2, 16, Specials::NanIsNegZero),
        DType::F6E2M3 => f(2, 3, 1, Specials::None),
        DType::F6E3M2 => f(3, 2, 3, Specials::None),
        DType::F4E2M1 => f(2, 1, 1, Specials::None),
        _ => None,
    }
}

impl Format {
    fn sign_bit(self) -> u8 {
        1 << (self.exp + self.man)
    }

    /// The magnitude bits of the largest finite value.
    fn max_bits(self) -> u8 {
        let ones = self.sign_bit() - 1;
        match self.specials {
            Specials::Ieee => ones - (1 << self.man),
            Specials::NanAllOnes => ones - 1,
            Specials::NanIsNegZero | Specials::None => ones,
        }
    }

    fn magnitude(self, bits: u8) -> f32 {
        let (e, m) = (u32::from(bits) >> self.man, u32::from(bits) & ((1 << self.man) - 1));
        let (lead, e) = if e == 0 { (0, 1) } else { (1, e) };
        let significand = ((lead << self.man) + m) as f32;
        significand * 2f32.powi(e as i32 - self.bias - self.man as i32)
    }
}

/// The value of a bit pattern.
///
/// # Panics
/// `dtype` is not an 8-, 6- or 4-bit float: a bug in the caller.
#[must_use]
pub fn decode(dtype: DType, bits: u8) -> f32 {
    if dtype == DType::F8E8M0 {
        return if bits == 255 { f32::NAN } else { 2f64.powi(i32::from(bits) - 127) as f32 };
    }
    let f = format(dtype).expect("a small float type");
    let sign = bits & f.sign_bit();
    let mag = bits & (f.sign_bit() - 1);
    let is_nan = match f.specials {
        Specials::Ieee if mag == f.max_bits() + 1 => {
            return if sign == 0 { f32::INFINITY } else { f32::NEG_INFINITY };
        }
        Specials::Ieee => mag > f.max_bits(),
        Specials::NanAllOnes => mag > f.max_bits(),
        Specials::NanIsNegZero => sign != 0 && mag == 0,
        Specials::None => false,
    };
    if is_nan {
        return f32::NAN;
    }
    let v = f.magnitude(mag);
    if sign == 0 { v } else { -v }
}

/// The bit pattern nearest to `x`, ties to even. Out of range: the largest finite value when `saturate`, else infinity
/// or NaN, as the type has them (types without either always saturate). For E8M0 the exponent is rounded to nearest.
///
/// # Panics
/// `dtype` is not an 8-, 6- or 4-bit float: a bug in the caller.
#[must_use]
pub fn encode(dtype: DType, x: f32, saturate: bool) -> u8 {
    if dtype == DType::F8E8M0 {
        return encode_e8m0(x, saturate);
    }
    let f = format(dtype).expect("a small float type");
    let sign = if x.is_sign_negative() { f.sign_bit() } else { 0 };
    let nan = match f.specials {
        Specials::Ieee | Specials::NanAllOnes => sign | (f.sign_bit() - 1),
        Specials::NanIsNegZero => f.sign_bit(),
        // Nothing stands for it; negative zero is what onnx's own conversion gives.
        Specials::None => f.sign_bit(),
    };
    if x.is_nan() {
        return nan;
    }
    let overflow = || match f.specials {
        Specials::None => sign | f.max_bits(),
        _ if saturate => sign | f.max_bits(),
        Specials::Ieee => sign | (f.max_bits() + 1),
        _ => nan,
    };
    let a = f64::from(x.abs());
    if a.is_infinite() {
        return overflow();
    }
    // The exponent of the binade that `a` lies in, not below that of the subnormals.
    let min_exp = 1 - f.bias;
    let exp = if a == 0.0 { min_exp } else { (a.log2().floor() as i32).max(min_exp) };
    let exp = if a != 0.0 && a < 2f64.powi(exp) && exp > min_exp { exp - 1 } else { exp };
    let significand = (a * 2f64.powi(f.man as i32 - exp)).round_ties_even() as u32;
    // A subnormal has exponent field 0; a carry out of the significand moves into the exponent by itself.
    let field = (exp - min_exp) as u32 * (1 << f.man) + significand;
    if field > u32::from(f.max_bits()) {
        return overflow();
    }
    let bits = field as u8;
    if bits == 0 && f.specials == Specials::NanIsNegZero { 0 } else { sign | bits }
}

fn encode_e8m0(x: f32, saturate: bool) -> u8 {
    if x.is_nan() {
        return 255;
    }
    let a = x.abs();
    if a.is_infinite() {
        return if saturate { 254 } else { 255 };
    }
    if a == 0.0 {
        return 0;
    }
    // Round to the nearest power of two by value, half way up.
    let e = f64::from(a).log2().floor() as i32;
    let up = f64::from(a) >= 1.5 * 2f64.powi(e);
    let e = e + i32::from(up) + 127;
    if e > 254 { if saturate { 254 } else { 255 } } else { e.max(0) as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_pattern_survives() {
        for dtype in [
            DType::F8E4M3FN,
            DType::F8E4M3FNUZ,
            DType::F8E5M2,
            DType::F8E5M2FNUZ,
            DType::F6E2M3,
            DType::F6E3M2,
            DType::F4E2M1,
            DType::F8E8M0,
        ] {
            for bits in 0..=((1u32 << dtype.bits()) - 1) as u8 {
                let v = decode(dtype, bits);
                if v.is_finite() {
                    assert_eq!(encode(dtype, v, true), bits, "{dtype} {bits:#x} {v}");
                }
            }
        }
    }

    #[test]
    fn known_values() {
        assert_eq!(decode(DType::F8E4M3FN, 0x7e), 448.0);
        assert_eq!(encode(DType::F8E4M3FN, 1e6, true), 0x7e);
        assert_eq!(encode(DType::F8E4M3FN, 1e6, false), 0x7f);
        assert_eq!(decode(DType::F8E5M2, 0x7b), 57344.0);
        assert_eq!(encode(DType::F8E5M2, 1e6, false), 0x7c);
        assert_eq!(decode(DType::F4E2M1, 7), 6.0);
        assert_eq!(encode(DType::F4E2M1, 5.0, true), 6, "tie to even: 4");
        assert_eq!(encode(DType::F8E4M3FNUZ, -0.0, true), 0);
        assert!(decode(DType::F8E4M3FNUZ, 0x80).is_nan());
        assert_eq!(decode(DType::F8E8M0, 127), 1.0);
    }
}
