//! Quantizing and dequantizing arrays: the only place where floats are rounded to quantized integers.
//!
//! `q = saturate(round_half_even(x / scale) + zero_point)` and `x = (q - zero_point) * scale`, as ONNX
//! `QuantizeLinear` and `DequantizeLinear` define them. Kernels and the quantizer share it, so what the plan predicts
//! is what the model computes.

use crate::kernels::simd::{self, Kernel};

/// `x` rounded half to even. [`f32::round_ties_even`] is a call into the C library where the processor is not known to
/// have an instruction for it; this is not, and vectorises.
#[must_use]
#[inline(always)]
pub fn round(x: f32) -> f32 {
    // From here on floats are whole numbers. Below, adding it leaves no bits for a fraction.
    const WHOLE: f32 = 8_388_608.0;
    let shift = WHOLE.copysign(x);
    if x.abs() < WHOLE { (x + shift) - shift } else { x }
}

/// The quantized integer of `x`: rounded half to even, shifted, saturated to `[lo, hi]`; a NaN gives `lo`.
#[must_use]
#[inline]
pub fn quantize_one(x: f32, scale: f32, zero_point: i32, lo: i32, hi: i32) -> i32 {
    // In float: what exceeds i32 saturates instead of wrapping. Adding the zero point after rounding is exact here,
    // since beyond 2^24 the value is saturated anyway (types of up to 16 bits).
    let q = round(x / scale) + zero_point as f32;
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

/// Adding and subtracting it gives the integer in the low bits; exact below 2^22.
const MAGIC: f32 = 12_582_912.0;

/// [`quantize_one`] for a finite range of at most 16 bits, in a form that the compiler vectorises; the same bits.
#[inline(always)]
fn quantize_fast(x: f32, scale: f32, zero_point: f32, lo: f32, hi: f32) -> i32 {
    let q = (x / scale).round_ties_even() + zero_point;
    // Written so that a NaN gives `lo`.
    let q = if q > lo { q } else { lo };
    let q = if q < hi { q } else { hi };
    (q + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed()
}

/// An integer type that quantized values are stored as.
pub trait Quantized: Copy + Send + Sync {
    /// The value, which is known to fit.
    fn of(q: i32) -> Self;
    /// The value.
    fn get(self) -> i32;
}

macro_rules! quantized {
    ($($t:ty)*) => { $(impl Quantized for $t {
        #[inline(always)]
        fn of(q: i32) -> Self { q as $t }
        #[inline(always)]
        fn get(self) -> i32 { self as i32 }
    })* };
}
quantized!(i8 u8 i16 u16 i32);

/// Parameters of a run of elements: one for all, or one each.
#[derive(Debug, Clone, Copy)]
pub struct Params<'a> {
    /// Scales: one, or as many as elements.
    pub scale: &'a [f32],
    /// Zero points, as many as scales.
    pub zero_point: &'a [i32],
    /// Smallest and largest quantized value.
    pub range: (i32, i32),
}

struct Quantize<'a, T> {
    x: &'a [f32],
    p: Params<'a>,
    out: &'a mut [T],
}

impl<T: Quantized> Kernel for Quantize<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Quantize { x, p, out } = self;
        let (lo, hi) = (p.range.0 as f32, p.range.1 as f32);
        if let ([scale], [zero_point]) = (p.scale, p.zero_point) {
            let zero_point = *zero_point as f32;
            for (q, &x) in out.iter_mut().zip(x) {
                *q = T::of(quantize_fast(x, *scale, zero_point, lo, hi));
            }
        } else {
            for (((q, &x), &scale), &zero_point) in out.iter_mut().zip(x).zip(p.scale).zip(p.zero_point) {
                *q = T::of(quantize_fast(x, scale, zero_point as f32, lo, hi));
            }
        }
    }
}

/// [`quantize_one`] of each element. The range has at most 16 bits.
pub fn quantize_slice<T: Quantized>(x: &[f32], p: Params<'_>, out: &mut [T]) {
    simd::run(Quantize { x, p, out });
}

struct Round<'a> {
    x: &'a mut [f32],
    scale: f32,
    zero_point: f32,
    range: (f32, f32),
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Round { x, scale, zero_point, range: (lo, hi) } = self;
        for x in x {
            let q = (*x / scale).round_ties_even() + zero_point;
            // Written so that a NaN gives `lo`.
            let q = if q > lo { q } else { lo };
            *x = if q < hi { q } else { hi };
        }
    }
}

/// [`quantize_one`] of each element, which stays a float. The range has at most 16 bits.
pub fn round_slice(x: &mut [f32], scale: f32, zero_point: i32, range: (i32, i32)) {
    simd::run(Round { x, scale, zero_point: zero_point as f32, range: (range.0 as f32, range.1 as f32) });
}

struct Scale<'a> {
    q: &'a mut [f32],
    scale: f32,
    zero_point: f32,
}

impl Kernel for Scale<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for q in self.q {
            *q = (*q - self.zero_point) * self.scale;
        }
    }
}

/// [`dequantize_one`] of each integer of at most 16 bits, which is given as a float.
pub fn scale_slice(q: &mut [f32], scale: f32, zero_point: i32) {
    simd::run(Scale { q, scale, zero_point: zero_point as f32 });
}

struct Dequantize<'a, T> {
    q: &'a [T],
    p: Params<'a>,
    out: &'a mut [f32],
}

impl<T: Quantized> Kernel for Dequantize<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Dequantize { q, p, out } = self;
        if let ([scale], [zero_point]) = (p.scale, p.zero_point) {
            for (x, &q) in out.iter_mut().zip(q) {
                *x = q.get().wrapping_sub(*zero_point) as f32 * scale;
            }
        } else {
            for (((x, &q), &scale), &zero_point) in out.iter_mut().zip(q).zip(p.scale).zip(p.zero_point) {
                *x = q.get().wrapping_sub(zero_point) as f32 * scale;
            }
        }
    }
}

/// [`dequantize_one`] of each element.
pub fn dequantize_slice<T: Quantized>(q: &[T], p: Params<'_>, out: &mut [f32]) {
    simd::run(Dequantize { q, p, out });
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

    #[test]
    fn slices_give_what_single_elements_give() {
        let mut x: Vec<f32> = (-3000..3000).map(|i| i as f32 * 0.173).collect();
        x.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.5, 1.5, 2.5, -0.5, 1e30]);
        for (scale, zero_point, lo, hi) in [(0.5, 3, -128, 127), (1.0, 0, 0, 65535), (0.037, -7, -32768, 32767)] {
            let p = Params { scale: &[scale], zero_point: &[zero_point], range: (lo, hi) };
            let mut q = vec![0i32; x.len()];
            quantize_slice(&x, p, &mut q);
            let mut y = vec![0.0; x.len()];
            dequantize_slice(&q, p, &mut y);
            for ((&x, &q), &y) in x.iter().zip(&q).zip(&y) {
                assert_eq!(q, quantize_one(x, scale, zero_point, lo, hi), "{x}");
                assert_eq!(y.to_bits(), dequantize_one(q, scale, zero_point).to_bits(), "{q}");
            }
            let mut fake = x.clone();
            round_slice(&mut fake, scale, zero_point, (lo, hi));
            assert!(fake.iter().zip(&q).all(|(&f, &q)| f == q as f32));
            scale_slice(&mut fake, scale, zero_point);
            // Only the sign of a zero may differ: an integer has none.
            assert!(fake.iter().zip(&y).all(|(f, y)| f == y));
            let scales = vec![scale; x.len()];
            let zero_points = vec![zero_point; x.len()];
            let mut each = vec![0i32; x.len()];
            quantize_slice(&x, Params { scale: &scales, zero_point: &zero_points, ..p }, &mut each);
            assert_eq!(q, each);
        }
    }
}
