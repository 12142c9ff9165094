//! Quantizing and dequantizing arrays: the only place where floats are rounded to quantized integers.
//!
//! `q = saturate(round_half_even(x / scale) + zero_point)` and `x = (q - zero_point) * scale`, as ONNX
//! `QuantizeLinear` and `DequantizeLinear` define them. Kernels and the quantizer share it, so what the plan predicts
//! is what the model computes.

/// The quantized integer of `x`: rounded half to even, shifted, saturated to `[lo, hi]`; a NaN gives `lo`.
#[must_use]
#[inline]
pub fn quantize_one(x: f32, scale: f32, zero_point: i32, lo: i32, hi: i32) -> i32 {
    // In float: what exceeds i32 saturates instead of wrapping. Adding the zero point after rounding is exact here,
    // since beyond 2^24 the value is saturated anyway (types of up to 16 bits).
    let q = (x / scale).round_ties_even() + zero_point as f32;
    if q.is_nan() { lo } else { q.clamp(lo as f32, hi as f32) as i32 }
}

/// The real value of a quantized integer.
#[must_use]
#[inline]
pub fn dequantize_one(q: i32, scale: f32, zero_point: i32) -> f32 {
    (q - zero_point) as f32 * scale
}

/// What `x` becomes when it is quantized and dequantized.
#[must_use]
#[inline]
pub fn fake_one(x: f32, scale: f32, zero_point: i32, lo: i32, hi: i32) -> f32 {
    dequantize_one(quantize_one(x, scale, zero_point, lo, hi), scale, zero_point)
}

/// The quantized bias: `x / scale` rounded half to even and saturated to int32. In 64-bit floats, since a bias may
/// need all 32 bits.
#[must_use]
#[inline]
pub fn quantize_bias_one(x: f32, scale: f32) -> i32 {
    (f64::from(x) / f64::from(scale)).round_ties_even() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_half_to_even_and_saturates() {
        let q = |x| quantize_one(x, 2.0, 1, 0, 255);
        assert_eq!(q(1.0), 1, "0.5 rounds to 0");
        assert_eq!(q(3.0), 3, "1.5 rounds to 2");
        assert_eq!(q(5.0), 3, "2.5 rounds to 2");
        assert_eq!(q(1e30), 255);
        assert_eq!(q(-1e30), 0);
        assert_eq!(q(f32::NAN), 0);
        assert_eq!(quantize_bias_one(1e30, 1.0), i32::MAX);
    }
}
