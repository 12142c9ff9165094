//! From a range to scale and zero point, and from a weight to quantized integers.

use crate::error::{Result, bail, ensure};
use crate::tensor::{DType, Tensor, affine};

/// The real values that a quantized tensor covers. Always holds 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Lowest value, at most 0.
    pub min: f32,
    /// Highest value, at least 0.
    pub max: f32,
}

impl Range {
    /// A range widened to hold 0, which must be exactly representable (padding, Relu).
    #[must_use]
    pub fn new(min: f32, max: f32) -> Self {
        Range { min: min.min(0.0), max: max.max(0.0) }
    }

    /// Both ranges together.
    #[must_use]
    pub fn union(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// Scale and zero point of a tensor quantized as a whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QParams {
    /// Integer type of at most 16 bits.
    pub dtype: DType,
    /// Step, positive and finite.
    pub scale: f32,
    /// The integer that stands for 0.
    pub zero_point: i32,
}

impl QParams {
    /// Smallest and largest integer.
    #[must_use]
    pub fn bounds(self) -> (i32, i32) {
        let (lo, hi) = self.dtype.int_range().unwrap_or((0, 255));
        (lo as i32, hi as i32)
    }

    /// Asymmetric parameters that cover a range: the zero point is rounded, so that 0 is exact. An empty range gives
    /// scale 1 (any value does: everything is 0).
    ///
    /// # Errors
    /// The range is not finite.
    pub fn asymmetric(range: Range, dtype: DType) -> Result<Self> {
        let Range { min, max } = Range::new(range.min, range.max);
        ensure!(min.is_finite() && max.is_finite(), "range [{min}, {max}] is not finite");
        let Some((lo, hi)) = dtype.int_range() else { bail!("{dtype} is no integer type") };
        let steps = (hi - lo) as f64;
        let scale = ((f64::from(max) - f64::from(min)) / steps) as f32;
        if scale < f32::MIN_POSITIVE {
            // Nothing but zeros (or what rounds to them).
            return Ok(QParams { dtype, scale: 1.0, zero_point: lo as i32 });
        }
        let zero_point = (lo as f64 - f64::from(min) / f64::from(scale)).round_ties_even();
        Ok(QParams { dtype, scale, zero_point: zero_point.clamp(lo as f64, hi as f64) as i32 })
    }

    /// Parameters for a range that an operator's definition fixes (`[0, 1]`, `[-1, 1]`): the step is a power-of-two
    /// fraction of the width, as runtimes expect it of Softmax and Sigmoid (1/256 for 8 bits).
    ///
    /// # Errors
    /// The range is not finite.
    pub fn fixed(range: Range, dtype: DType) -> Result<Self> {
        let Some((lo, hi)) = dtype.int_range() else { bail!("{dtype} is no integer type") };
        ensure!(range.min.is_finite() && range.max.is_finite(), "range is not finite");
        let scale = (range.max - range.min) / (hi - lo + 1) as f32;
        let zero_point = lo as i32 - (range.min / scale).round_ties_even() as i32;
        Ok(QParams { dtype, scale, zero_point })
    }

    /// What a value becomes when it is quantized and dequantized.
    #[must_use]
    pub fn fake(self, x: f32) -> f32 {
        let (lo, hi) = self.bounds();
        affine::fake_one(x, self.scale, self.zero_point, lo, hi)
    }

    /// The real values at the ends of the integer type.
    #[must_use]
    pub fn covered(self) -> Range {
        let (lo, hi) = self.bounds();
        Range {
            min: affine::dequantize_one(lo, self.scale, self.zero_point),
            max: affine::dequantize_one(hi, self.scale, self.zero_point),
        }
    }

    /// A whole tensor quantized with these parameters.
    ///
    /// # Errors
    /// The type is not int8 or uint8.
    pub fn quantize(self, x: &[f32], shape: &[usize]) -> Result<Tensor> {
        let (lo, hi) = self.bounds();
        let q = |x: &f32| affine::quantize_one(*x, self.scale, self.zero_point, lo, hi);
        match self.dtype {
            DType::U8 => Tensor::new(shape, x.iter().map(|x| q(x) as u8).collect()),
            DType::I8 => Tensor::new(shape, x.iter().map(|x| q(x) as i8).collect()),
            DType::U16 => Tensor::new(shape, x.iter().map(|x| q(x) as u16).collect()),
            DType::I16 => Tensor::new(shape, x.iter().map(|x| q(x) as i16).collect()),
            d => bail!("cannot quantize to {d}"),
        }
    }

    /// The zero point as a scalar tensor of the type.
    ///
    /// # Errors
    /// The type is not an 8- or 16-bit integer.
    pub fn zero_point_tensor(self) -> Result<Tensor> {
        Ok(match self.dtype {
            DType::U8 => Tensor::scalar(self.zero_point as u8),
            DType::I8 => Tensor::scalar(self.zero_point as i8),
            DType::U16 => Tensor::scalar(self.zero_point as u16),
            DType::I16 => Tensor::scalar(self.zero_point as i16),
            d => bail!("cannot quantize to {d}"),
        })
    }
}

/// Symmetric scales of a weight: one per index of `axis`, or a single one.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightParams {
    /// Output-channel axis; `None` for one scale for all.
    pub axis: Option<usize>,
    /// Positive and finite.
    pub scales: Vec<f32>,
}

/// Largest magnitude of symmetric int8: -128 is not used, so that negation stays exact and runtimes without it agree.
pub const WEIGHT_MAX: f32 = 127.0;

/// The smallest scale of a weight: small enough for any weight that matters, large enough that its product with an
/// activation's scale is a normal number.
pub const MIN_WEIGHT_SCALE: f32 = 1e-12;

/// Calls `f(channel, element)` for every element of a row-major tensor.
pub fn for_each_channel<T: Copy>(data: &[T], shape: &[usize], axis: Option<usize>, mut f: impl FnMut(usize, T)) {
    let Some(axis) = axis else {
        data.iter().for_each(|&x| f(0, x));
        return;
    };
    let inner: usize = shape[axis + 1..].iter().product();
    let n = shape[axis];
    for (row, chunk) in data.chunks(inner.max(1)).enumerate() {
        for &x in chunk {
            f(row % n, x);
        }
    }
}

/// The largest magnitude in each channel.
#[must_use]
pub fn channel_max(data: &[f32], shape: &[usize], axis: Option<usize>) -> Vec<f32> {
    let mut max = vec![0f32; axis.map_or(1, |a| shape[a])];
    for_each_channel(data, shape, axis, |c, x| max[c] = max[c].max(x.abs()));
    max
}

impl WeightParams {
    /// Scales that cover the largest magnitude in each channel.
    #[must_use]
    pub fn max_abs(data: &[f32], shape: &[usize], axis: Option<usize>) -> Self {
        let scales = channel_max(data, shape, axis)
            .into_iter()
            .map(|m| if m == 0.0 { 1.0 } else { (m / WEIGHT_MAX).max(MIN_WEIGHT_SCALE) })
            .collect();
        WeightParams { axis, scales }
    }

    /// Raises scales where the bias would not fit int32: `|bias| / (x_scale * scale)` must stay below 2^31. A bias of
    /// one element per channel, or of any length when there is one scale.
    pub fn fit_bias(&mut self, bias: &[f32], x_scale: f32) {
        for (i, b) in bias.iter().enumerate() {
            let c = if self.axis.is_some() { i } else { 0 };
            let least = (f64::from(b.abs()) * 1.0001 / f64::from(i32::MAX) / f64::from(x_scale)) as f32;
            if let Some(s) = self.scales.get_mut(c) {
                *s = s.max(least);
            }
        }
    }

    /// The weight as int8.
    ///
    /// # Errors
    /// The shape does not fit the data.
    pub fn quantize(&self, data: &[f32], shape: &[usize]) -> Result<Tensor> {
        let mut q = Vec::with_capacity(data.len());
        for_each_channel(data, shape, self.axis, |c, x| {
            q.push(affine::quantize_one(x, self.scales[c], 0, -(WEIGHT_MAX as i32), WEIGHT_MAX as i32) as i8);
        });
        Tensor::new(shape, q)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_exact_and_ends_are_covered() {
        for (min, max) in [(0.0, 6.0), (-1.0, 3.0), (-0.3, 0.0), (2.0, 5.0), (-7.0, -2.0)] {
            let p = QParams::asymmetric(Range { min, max }, DType::U8).unwrap();
            assert_eq!(p.fake(0.0), 0.0);
            let (r, want) = (p.covered(), Range::new(min, max));
            assert!(
                (r.min - want.min).abs() <= p.scale / 2.0 + 1e-6 && (r.max - want.max).abs() <= p.scale / 2.0 + 1e-6
            );
        }
        assert_eq!(QParams::asymmetric(Range { min: 0.0, max: 0.0 }, DType::U8).unwrap().scale, 1.0);
        assert!(QParams::asymmetric(Range { min: 0.0, max: f32::INFINITY }, DType::U8).is_err());
        let p = QParams::fixed(Range { min: 0.0, max: 1.0 }, DType::U8).unwrap();
        assert_eq!((p.scale, p.zero_point), (1.0 / 256.0, 0));
        let p = QParams::fixed(Range { min: -1.0, max: 1.0 }, DType::U8).unwrap();
        assert_eq!((p.scale, p.zero_point), (1.0 / 128.0, 128));
    }

    #[test]
    fn weights_per_channel_and_bias_fits() {
        let w = [1.0, -2.0, 0.5, 0.25, 0.0, 0.0];
        let p = WeightParams::max_abs(&w, &[3, 2], Some(0));
        assert_eq!(p.scales, vec![2.0 / 127.0, 0.5 / 127.0, 1.0]);
        assert_eq!(p.quantize(&w, &[3, 2]).unwrap().slice::<i8>().unwrap(), &[64, -127, 127, 64, 0, 0]);
        let p = WeightParams::max_abs(&w, &[3, 2], Some(1));
        assert_eq!(p.scales, vec![1.0 / 127.0, 2.0 / 127.0]);
        let mut p = WeightParams { axis: Some(0), scales: vec![1e-9, 1.0] };
        p.fit_bias(&[1e4, 1.0], 1e-3);
        let q = affine::quantize_bias_one(1e4, 1e-3 * p.scales[0]);
        assert!(q < i32::MAX && q > i32::MAX / 2);
        assert_eq!(p.scales[1], 1.0);
    }
}
