//! From a range to scale and zero point, and from a weight to quantized integers.

use super::algo::layout::Layout;
use super::scheme::{WeightForm, float8_max};
use crate::error::{Result, bail, ensure};
use crate::tensor::affine::{self, Params, Quantized};
use crate::tensor::{DType, Element, Tensor, minifloat};

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
    /// Integer type of at most 16 bits, or an 8-bit float type (whose zero point is 0).
    pub dtype: DType,
    /// Step, positive and finite.
    pub scale: f32,
    /// The integer that stands for 0.
    pub zero_point: i32,
}

impl QParams {
    /// Smallest and largest integer; of no meaning for a float type.
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
    pub fn fixed(range: Range, dtype: DType, symmetric: bool) -> Result<Self> {
        ensure!(range.min.is_finite() && range.max.is_finite(), "range is not finite");
        if symmetric || dtype.is_float8() {
            let mut p = Self::symmetric(range, dtype)?;
            // 1/128 and 1/32768: the end itself saturates.
            if let Some((_, hi)) = dtype.int_range() {
                let steps = (hi - i64::from(p.zero_point)) as f32;
                p.scale *= steps / (steps + 1.0);
            }
            return Ok(p);
        }
        let Some((lo, hi)) = dtype.int_range() else { bail!("{dtype} is no integer type") };
        let scale = (range.max - range.min) / (hi - lo + 1) as f32;
        let zero_point = lo as i32 - (range.min / scale).round_ties_even() as i32;
        Ok(QParams { dtype, scale, zero_point })
    }

    /// Parameters that cover a range with the zero point in the middle of the type (0 for signed types, 128 for uint8),
    /// or at 0 for an 8-bit float type. An empty range gives scale 1.
    ///
    /// # Errors
    /// The range is not finite, or the type is none to quantize to.
    pub fn symmetric(range: Range, dtype: DType) -> Result<Self> {
        let max = range.max.abs().max(range.min.abs());
        ensure!(max.is_finite(), "range [{}, {}] is not finite", range.min, range.max);
        let (zero_point, steps) = if dtype.is_float8() {
            (0, float8_max(dtype))
        } else {
            let Some((lo, hi)) = dtype.int_range() else { bail!("{dtype} is no integer type") };
            let middle = (lo + hi + 1) / 2;
            (middle as i32, (hi - middle) as f32)
        };
        let scale = max / steps;
        Ok(QParams { dtype, scale: if scale < f32::MIN_POSITIVE { 1.0 } else { scale }, zero_point })
    }

    /// [`QParams::symmetric`] or [`QParams::asymmetric`].
    ///
    /// # Errors
    /// As theirs.
    pub fn covering(range: Range, dtype: DType, symmetric: bool) -> Result<Self> {
        if symmetric || dtype.is_float8() { Self::symmetric(range, dtype) } else { Self::asymmetric(range, dtype) }
    }

    /// What a value becomes when it is quantized and dequantized.
    #[must_use]
    pub fn fake(self, x: f32) -> f32 {
        if self.dtype.is_float8() {
            return minifloat::decode(self.dtype, minifloat::encode(self.dtype, x / self.scale, true)) * self.scale;
        }
        let (lo, hi) = self.bounds();
        affine::fake_one(x, self.scale, self.zero_point, lo, hi)
    }

    /// The real values at the ends of the type.
    #[must_use]
    pub fn covered(self) -> Range {
        if self.dtype.is_float8() {
            let max = float8_max(self.dtype) * self.scale;
            return Range { min: -max, max };
        }
        let (lo, hi) = self.bounds();
        Range {
            min: affine::dequantize_one(lo, self.scale, self.zero_point),
            max: affine::dequantize_one(hi, self.scale, self.zero_point),
        }
    }

    /// A whole tensor quantized with these parameters.
    ///
    /// # Errors
    /// The type is neither an 8- or 16-bit integer nor an 8-bit float.
    pub fn quantize(self, x: &[f32], shape: &[usize]) -> Result<Tensor> {
        if self.dtype.is_float8() {
            return float8(self.dtype, shape, x.iter().map(|x| x / self.scale));
        }
        let (lo, hi) = self.bounds();
        let q = x.iter().map(|x| affine::quantize_one(*x, self.scale, self.zero_point, lo, hi)).collect();
        integers(self.dtype, shape, q)
    }

    /// The zero point as a scalar tensor of the type.
    ///
    /// # Errors
    /// As [`QParams::quantize`].
    pub fn zero_point_tensor(self) -> Result<Tensor> {
        if self.dtype.is_float8() {
            return float8(self.dtype, &[], [0.0].into_iter());
        }
        integers(self.dtype, &[], vec![self.zero_point])
    }
}

/// Integers that are known to fit, stored as a type of 8 or 16 bits, or int32.
///
/// # Errors
/// It is another type, or the shape does not fit.
pub fn integers(dtype: DType, shape: &[usize], q: Vec<i32>) -> Result<Tensor> {
    match dtype {
        DType::U8 => Tensor::new(shape, q.into_iter().map(|q| q as u8).collect()),
        DType::I8 => Tensor::new(shape, q.into_iter().map(|q| q as i8).collect()),
        DType::U16 => Tensor::new(shape, q.into_iter().map(|q| q as u16).collect()),
        DType::I16 => Tensor::new(shape, q.into_iter().map(|q| q as i16).collect()),
        DType::I32 => Tensor::new(shape, q),
        d => bail!("cannot quantize to {d}"),
    }
}

fn float8(dtype: DType, shape: &[usize], x: impl Iterator<Item = f32>) -> Result<Tensor> {
    let bits: Vec<u8> = x.map(|x| minifloat::encode(dtype, x, true)).collect();
    Tensor::from_buf(dtype, shape, u8::wrap(bits.into()))
}

/// Scales and zero points of a weight: one per index of `axis`, or a single one.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightParams {
    /// Element type and integers in use.
    pub form: WeightForm,
    /// Output-channel axis; `None` for one scale for all.
    pub axis: Option<usize>,
    /// Positive and finite.
    pub scales: Vec<f32>,
    /// As many as scales.
    pub zero_points: Vec<i32>,
}

/// The smallest scale of a weight: small enough for any weight that matters, large enough that its product with an
/// activation's scale is a normal number.
pub const MIN_WEIGHT_SCALE: f32 = 1e-12;

/// What two neighbouring int8 weights, in steps, may add up to in magnitude before they are rounded, so that products
/// with uint8 do not saturate in 16 bits: 128 with a rounding of each.
const PAIR_LIMIT: f32 = 127.5;

/// The smallest scale with which no two neighbours of a row, in the order in which they are summed, add up to more than
/// [`PAIR_LIMIT`] steps, when each is clipped to `most` steps: either the whole sum fits, or the larger of the two is
/// clipped and the smaller fits beside it. With any larger scale they fit as well. 0 for fewer than two weights, whose
/// products are never added in pairs.
#[must_use]
pub fn least_pair_scale(row: &[f32], most: f32) -> f32 {
    if row.len() < 2 {
        return 0.0;
    }
    let of_sign = |a: f32, b: f32| {
        let (a, b) = (a.max(0.0), b.max(0.0));
        ((a + b) / PAIR_LIMIT).min(a.min(b) / (PAIR_LIMIT - most))
    };
    row.chunks(2).fold(0f32, |m, p| {
        let (a, b) = (p[0], p.get(1).copied().unwrap_or(0.0));
        m.max(of_sign(a, b)).max(of_sign(-a, -b))
    })
}

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

/// The smallest and largest value in each channel, 0 among them.
#[must_use]
pub fn channel_range(data: &[f32], shape: &[usize], axis: Option<usize>) -> Vec<Range> {
    let n = axis.map_or(1, |a| shape[a]);
    let (mut min, mut max) = (vec![0f32; n], vec![0f32; n]);
    let least = |a: &mut f32, x: f32| *a = if x < *a { x } else { *a };
    let most = |a: &mut f32, x: f32| *a = if x > *a { x } else { *a };
    match runs(shape, axis) {
        1 => {
            for row in data.chunks_exact(n.max(1)) {
                min.iter_mut().zip(row).for_each(|(a, &x)| least(a, x));
                max.iter_mut().zip(row).for_each(|(a, &x)| most(a, x));
            }
        }
        inner => {
            for (row, run) in data.chunks(inner.max(1)).enumerate() {
                let (a, b) = (&mut min[row % n], &mut max[row % n]);
                run.iter().for_each(|&x| least(a, x));
                run.iter().for_each(|&x| most(b, x));
            }
        }
    }
    min.into_iter().zip(max).map(|(min, max)| Range { min, max }).collect()
}

/// The largest magnitude in each channel.
#[must_use]
pub fn channel_max(data: &[f32], shape: &[usize], axis: Option<usize>) -> Vec<f32> {
    channel_range(data, shape, axis).into_iter().map(|r| r.max.max(-r.min)).collect()
}

/// Elements of one channel that follow each other in a row-major tensor.
fn runs(shape: &[usize], axis: Option<usize>) -> usize {
    shape[axis.map_or(0, |a| a + 1)..].iter().product()
}

impl WeightParams {
    /// Scales that cover each channel: its largest magnitude, or its range where the form is not symmetric.
    #[must_use]
    pub fn covering(data: &[f32], shape: &[usize], axis: Option<usize>, form: WeightForm) -> Self {
        Self::of_ranges(&channel_range(data, shape, axis), axis, form)
    }

    /// Scales that cover these ranges, one for each channel.
    #[must_use]
    pub fn of_ranges(ranges: &[Range], axis: Option<usize>, form: WeightForm) -> Self {
        let of = |r: &Range| if form.symmetric { r.max.max(-r.min) / form.steps() } else { form.step_of(*r) };
        let scales: Vec<f32> =
            ranges.iter().map(|r| if r.min == r.max { 1.0 } else { of(r).max(MIN_WEIGHT_SCALE) }).collect();
        let mut out = WeightParams { form, axis, zero_points: vec![form.middle(); scales.len()], scales };
        out.place_zero(ranges);
        out
    }

    /// Zero points for the scales as they are; a symmetric form has them in the middle already.
    fn place_zero(&mut self, ranges: &[Range]) {
        if self.form.symmetric {
            return;
        }
        for ((z, s), r) in self.zero_points.iter_mut().zip(&self.scales).zip(ranges) {
            let low = f64::from(self.form.low) - f64::from(r.min) / f64::from(*s);
            *z = (low.round_ties_even() as i32).clamp(self.form.low, self.form.high);
        }
    }

    /// Raises scales where the bias would not fit int32: `|bias| / (x_scale * scale)` must stay below 2^31. A bias of
    /// one element per channel, or of any length when there is one scale. Zero points stay right: a larger scale
    /// covers more on either side of 0.
    pub fn fit_bias(&mut self, bias: &[f32], x_scale: f32) {
        for (i, b) in bias.iter().enumerate() {
            let c = if self.axis.is_some() { i } else { 0 };
            let least = (f64::from(b.abs()) * 1.0001 / f64::from(i32::MAX) / f64::from(x_scale)) as f32;
            if let Some(s) = self.scales.get_mut(c) {
                *s = s.max(least);
            }
        }
    }

    /// Raises scales until no two neighbours in the order of summation add up to more than 128 in magnitude: kernels for
    /// x86 without VNNI add the products of pairs in 16 bits, which saturate beyond 255 * 128. `layout` tells which
    /// elements an output sums; input channels are summed innermost. Costs about 2 dB of a weight's accuracy, where 7-bit
    /// weights cost 6.
    pub fn fit_pairs(&mut self, data: &[f32], shape: &[usize], layout: Layout) {
        if !self.adds_pairs(layout, shape) {
            return;
        }
        for o in 0..layout.n_outputs(shape) {
            let least = least_pair_scale(&layout.row(data, shape, o), self.form.steps());
            if let Some(s) = self.scales.get_mut(if self.axis.is_some() { o } else { 0 }) {
                *s = s.max(least);
            }
        }
    }

    /// Whether kernels for x86 add products with such a weight in 16 bits. Depthwise kernels add in 32 bits; those for
    /// other types than int8 do not saturate.
    #[must_use]
    pub fn adds_pairs(&self, layout: Layout, shape: &[usize]) -> bool {
        let is_depthwise = matches!(layout, Layout::Conv { group } if group > 1) && shape[1] == 1;
        !is_depthwise && self.form.dtype == DType::I8 && self.form.symmetric
    }

    /// The weight in its form.
    ///
    /// # Errors
    /// The shape does not fit the data.
    pub fn quantize(&self, data: &[f32], shape: &[usize]) -> Result<Tensor> {
        if self.form.dtype.is_float8() {
            let mut x = Vec::with_capacity(data.len());
            for_each_channel(data, shape, self.axis, |c, w| x.push(w / self.scales[c]));
            return float8(self.form.dtype, shape, x.into_iter());
        }
        match self.form.dtype {
            DType::U8 => Tensor::new(shape, self.integers::<u8>(data, shape)),
            DType::I8 => Tensor::new(shape, self.integers::<i8>(data, shape)),
            DType::U16 => Tensor::new(shape, self.integers::<u16>(data, shape)),
            DType::I16 => Tensor::new(shape, self.integers::<i16>(data, shape)),
            d => bail!("cannot quantize to {d}"),
        }
    }

    fn integers<T: Quantized>(&self, data: &[f32], shape: &[usize]) -> Vec<T> {
        let range = (self.form.low, self.form.high);
        let mut q = vec![T::of(0); data.len()];
        let (n, inner) = (self.scales.len().max(1), runs(shape, self.axis).max(1));
        if inner == 1 {
            let p = Params { scale: &self.scales, zero_point: &self.zero_points, range };
            data.chunks(n).zip(q.chunks_mut(n)).for_each(|(x, q)| affine::quantize_slice(x, p, q));
        } else {
            for (row, (x, q)) in data.chunks(inner).zip(q.chunks_mut(inner)).enumerate() {
                let c = row % n;
                let p = Params { scale: &self.scales[c..=c], zero_point: &self.zero_points[c..=c], range };
                affine::quantize_slice(x, p, q);
            }
        }
        q
    }

    /// The real values of a quantized weight.
    ///
    /// # Errors
    /// The tensor has another element type than the form.
    pub fn dequantize(&self, q: &Tensor) -> Result<Vec<f32>> {
        ensure!(q.dtype() == self.form.dtype, "a weight of type {} instead of {}", q.dtype(), self.form.dtype);
        let mut x = Vec::with_capacity(q.len());
        let stored = q.to_f32s()?;
        for_each_channel(&stored, q.shape(), self.axis, |c, q| {
            x.push((q - self.zero_points[c] as f32) * self.scales[c]);
        });
        Ok(x)
    }

    /// The zero points as the tensor beside the scales: a vector, or a scalar.
    ///
    /// # Errors
    /// The form's type is none to quantize to.
    pub fn zero_point_tensor(&self) -> Result<Tensor> {
        let shape: &[usize] = if self.axis.is_some() { &[self.scales.len()] } else { &[] };
        if self.form.dtype.is_float8() {
            return float8(self.form.dtype, shape, self.scales.iter().map(|_| 0.0));
        }
        integers(self.form.dtype, shape, self.zero_points.clone())
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
        let p = QParams::fixed(Range { min: 0.0, max: 1.0 }, DType::U8, false).unwrap();
        assert_eq!((p.scale, p.zero_point), (1.0 / 256.0, 0));
        let p = QParams::fixed(Range { min: -1.0, max: 1.0 }, DType::U8, false).unwrap();
        assert_eq!((p.scale, p.zero_point), (1.0 / 128.0, 128));
        let p = QParams::fixed(Range { min: 0.0, max: 1.0 }, DType::I16, true).unwrap();
        assert_eq!((p.scale, p.zero_point), (1.0 / 32768.0, 0));
    }

    #[test]
    fn pairs_of_neighbours_do_not_saturate() {
        // Two outputs; the first has its large weights side by side, the second apart.
        let form = WeightForm::new(DType::I8, true, false).unwrap();
        let w = [1.0, 0.9, 0.1, -0.2, 1.0, -0.9, 0.1, 0.2];
        let mut p = WeightParams::covering(&w, &[2, 4, 1, 1], Some(0), form);
        let before = p.scales.clone();
        p.fit_pairs(&w, &[2, 4, 1, 1], Layout::Conv { group: 1 });
        assert!(p.scales[0] > before[0] * 1.8 && p.scales[1] == before[1], "{:?}", p.scales);
        let q = p.quantize(&w, &[2, 4, 1, 1]).unwrap();
        let q = q.slice::<i8>().unwrap();
        assert!(i32::from(q[0]) + i32::from(q[1]) <= 128, "{q:?}");
        // Of a [K, N] weight neighbours stand in one column.
        let mut p = WeightParams::covering(&w, &[4, 2], Some(1), form);
        p.fit_pairs(&w, &[4, 2], Layout::Kn);
        assert!((p.scales[0] - 1.1f32.max(127.5 / 127.0) / 127.5).abs() < 1e-6, "{:?}", p.scales);
    }

    #[test]
    fn weights_per_channel_and_bias_fits() {
        let w = [1.0, -2.0, 0.5, 0.25, 0.0, 0.0];
        let form = WeightForm::new(DType::I8, true, false).unwrap();
        let p = WeightParams::covering(&w, &[3, 2], Some(0), form);
        assert_eq!(p.scales, vec![2.0 / 127.0, 0.5 / 127.0, 1.0]);
        assert_eq!(p.quantize(&w, &[3, 2]).unwrap().slice::<i8>().unwrap(), &[64, -127, 127, 64, 0, 0]);
        let p = WeightParams::covering(&w, &[3, 2], Some(1), form);
        assert_eq!(p.scales, vec![1.0 / 127.0, 2.0 / 127.0]);
        let mut p = WeightParams { form, axis: Some(0), scales: vec![1e-9, 1.0], zero_points: vec![0; 2] };
        p.fit_bias(&[1e4, 1.0], 1e-3);
        let q = affine::quantize_bias_one(1e4, 1e-3 * p.scales[0]);
        assert!(q < i32::MAX && q > i32::MAX / 2);
        assert_eq!(p.scales[1], 1.0);
    }

    #[test]
    fn every_form_of_a_weight_comes_back_within_half_a_step() {
        let w = [0.9, -0.2, 0.5, 0.25, -3.0, -1.0, 0.0, 0.0];
        let forms = [DType::I8, DType::U8, DType::I16, DType::U16].into_iter().flat_map(|d| {
            [(true, false), (false, false), (true, true), (false, true)].map(|(s, r)| WeightForm::new(d, s, r).unwrap())
        });
        for form in forms {
            let p = WeightParams::covering(&w, &[4, 2], Some(0), form);
            let q = p.quantize(&w, &[4, 2]).unwrap();
            assert_eq!((q.dtype(), p.zero_point_tensor().unwrap().dtype()), (form.dtype, form.dtype));
            for (i, (x, y)) in w.iter().zip(p.dequantize(&q).unwrap()).enumerate() {
                // Half a step for rounding; the zero point's own rounding may cost the ends as much again.
                let most = p.scales[i / 2] * if form.symmetric { 0.501 } else { 1.001 };
                assert!((x - y).abs() <= most, "{form:?}: {x} became {y}");
            }
            assert!(q.to_i64s().unwrap().iter().all(|&q| (i64::from(form.low)..=form.high.into()).contains(&q)));
        }
        let p = WeightParams::covering(&w, &[4, 2], None, WeightForm::new(DType::F8E4M3FN, true, false).unwrap());
        let back = p.dequantize(&p.quantize(&w, &[4, 2]).unwrap()).unwrap();
        assert!(w.iter().zip(&back).all(|(x, y)| (x - y).abs() <= x.abs() / 16.0), "3 bits of significand: {back:?}");
    }

    #[test]
    fn symmetric_parameters() {
        let r = Range { min: -1.0, max: 2.0 };
        for (dtype, zero_point, steps) in
            [(DType::I8, 0, 127.0), (DType::U8, 128, 127.0), (DType::U16, 32768, 32767.0), (DType::I16, 0, 32767.0)]
        {
            let p = QParams::symmetric(r, dtype).unwrap();
            assert_eq!((p.zero_point, p.scale), (zero_point, 2.0 / steps));
            assert_eq!(p.fake(0.0), 0.0);
        }
        let p = QParams::symmetric(r, DType::F8E4M3FN).unwrap();
        assert_eq!((p.scale, p.fake(2.0), p.fake(100.0)), (2.0 / 448.0, 2.0, 2.0));
        assert_eq!(QParams::symmetric(Range { min: 0.0, max: 0.0 }, DType::I8).unwrap().scale, 1.0);
    }
}
