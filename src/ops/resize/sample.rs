//! Sampling positions and weights of `Resize` along one dimension, and their application.

use std::borrow::Cow;

use ndarray::NdFloat;

use crate::error::{Result, bail};
use crate::kernels::for_each_chunk;

/// Elements from which several threads are worth starting.
const PARALLEL: usize = 1 << 15;

/// How a coordinate of the output becomes one of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    TfHalfPixelForNn,
    TfCropAndResize,
}

impl Coordinates {
    pub(super) fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "half_pixel" => Self::HalfPixel,
            "half_pixel_symmetric" => Self::HalfPixelSymmetric,
            "pytorch_half_pixel" => Self::PytorchHalfPixel,
            "align_corners" => Self::AlignCorners,
            "asymmetric" => Self::Asymmetric,
            "tf_half_pixel_for_nn" => Self::TfHalfPixelForNn,
            "tf_crop_and_resize" => Self::TfCropAndResize,
            m => bail!(
                "attribute \"coordinate_transformation_mode\" is \"{m}\", which the specification does not define"
            ),
        })
    }
}

/// Which element is the nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nearest {
    RoundPreferFloor,
    RoundPreferCeil,
    Floor,
    Ceil,
    /// Before opset 11: the lower one, or the upper one when the output is smaller, as ONNX Runtime has it.
    Simple,
}

impl Nearest {
    pub(super) fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "round_prefer_floor" => Self::RoundPreferFloor,
            "round_prefer_ceil" => Self::RoundPreferCeil,
            "floor" => Self::Floor,
            "ceil" => Self::Ceil,
            m => bail!(
                "attribute \"nearest_mode\" is \"{m}\", expected round_prefer_floor, round_prefer_ceil, floor or ceil"
            ),
        })
    }
}

/// How one dimension changes.
pub(super) struct Axis {
    /// Size of the input.
    pub n: usize,
    /// Size of the output.
    pub size: usize,
    /// Output size by input size, as given or as the sizes make it.
    pub scale: f64,
    /// The part of the input that is sampled, as fractions of it.
    pub region: (f64, f64),
    pub coordinates: Coordinates,
}

impl Axis {
    pub(super) fn is_identity(&self) -> bool {
        self.size == self.n && (self.scale - 1.0).abs() < 1e-9 && self.region == (0.0, 1.0)
    }

    /// The coordinate in the input of element `i` of the output, and whether it lies outside the input. In 32-bit
    /// floats where ONNX Runtime has them: which element is the nearest depends on the rounding.
    fn original(&self, i: usize) -> (f64, bool) {
        let (n, x) = (self.n as f64, i as f64);
        // The output's size before it is rounded down.
        let length = self.scale * n;
        let single = |x: f32, scale: f32, shift: f32| f64::from(x / scale - shift);
        let (xs, scale) = (i as f32, self.scale as f32);
        let original = match self.coordinates {
            Coordinates::HalfPixel => single(xs + 0.5, scale, 0.5),
            Coordinates::HalfPixelSymmetric => {
                let adjustment = self.size as f64 / length;
                n / 2.0 * (1.0 - adjustment) + (x + 0.5) / self.scale - 0.5
            }
            Coordinates::PytorchHalfPixel if self.size > 1 => single(xs + 0.5, scale, 0.5),
            Coordinates::PytorchHalfPixel => 0.0,
            Coordinates::AlignCorners if self.size > 1 => x * (n - 1.0) / (length - 1.0),
            Coordinates::AlignCorners => 0.0,
            Coordinates::Asymmetric => single(xs, scale, 0.0),
            Coordinates::TfHalfPixelForNn => single(xs + 0.5, scale, 0.0),
            Coordinates::TfCropAndResize => {
                let (start, end) = self.region;
                let x = if self.size > 1 {
                    start * (n - 1.0) + x * (end - start) * (n - 1.0) / (length - 1.0)
                } else {
                    0.5 * (start + end) * (n - 1.0)
                };
                return (x, x < 0.0 || x > n - 1.0);
            }
        };
        (original, false)
    }

    /// For each element of the output the nearest of the input; `None` outside.
    pub(super) fn nearest(&self, mode: Nearest) -> Vec<Option<usize>> {
        if self.is_identity() {
            return (0..self.n).map(Some).collect();
        }
        let pick = |i| {
            let (x, outside) = self.original(i);
            if outside {
                return None;
            }
            let x = match mode {
                Nearest::RoundPreferFloor => (x - 0.5).ceil(),
                Nearest::RoundPreferCeil => (x + 0.5).floor(),
                Nearest::Ceil => x.ceil(),
                Nearest::Simple if self.scale < 1.0 => x.ceil(),
                Nearest::Floor | Nearest::Simple => x.floor(),
            };
            Some((x.max(0.0) as usize).min(self.n - 1))
        };
        (0..self.size).map(pick).collect()
    }
}

/// The elements that the maps of all dimensions select; a `None` gives `fill`.
pub(super) fn select<T: Clone>(src: &[T], shape: &[usize], maps: &[Vec<Option<usize>>], fill: &T) -> Vec<T> {
    // Dimensions at the end that do not change move as one block.
    let is_same = |d: usize| maps[d].len() == shape[d] && maps[d].iter().enumerate().all(|(i, m)| *m == Some(i));
    let mut rank = shape.len();
    while rank > 0 && is_same(rank - 1) {
        rank -= 1;
    }
    let inner: usize = shape[rank..].iter().product();
    let mut steps = vec![inner; rank];
    let mut out_steps = vec![inner; rank];
    for d in (1..rank).rev() {
        steps[d - 1] = steps[d] * shape[d];
        out_steps[d - 1] = out_steps[d] * maps[d].len();
    }
    let mut out = Vec::with_capacity(inner * maps[..rank].iter().map(Vec::len).product::<usize>());
    emit(&mut out, src, 0, &maps[..rank], &steps, &out_steps, fill);
    out
}

fn emit<T: Clone>(
    out: &mut Vec<T>,
    src: &[T],
    offset: usize,
    maps: &[Vec<Option<usize>>],
    steps: &[usize],
    out_steps: &[usize],
    fill: &T,
) {
    let Some((map, rest)) = maps.split_first() else {
        out.extend_from_slice(&src[offset..]);
        return;
    };
    let (step, out_step) = (steps[0], out_steps[0]);
    if rest.is_empty() && step == 1 {
        out.extend(map.iter().map(|m| m.map_or(fill, |i| &src[offset + i]).clone()));
        return;
    }
    for (k, m) in map.iter().enumerate() {
        match m {
            None => out.extend(std::iter::repeat_n(fill, out_step).cloned()),
            // The same rows again are there already.
            Some(_) if k > 0 && map[k - 1] == *m => out.extend_from_within(out.len() - out_step..),
            Some(i) if rest.is_empty() => out.extend_from_slice(&src[offset + i * step..offset + (i + 1) * step]),
            Some(i) => emit(out, src, offset + i * step, rest, &steps[1..], &out_steps[1..], fill),
        }
    }
}

/// The kernel of an average.
pub(super) struct Filter {
    /// The coefficient `a` of a cubic kernel; linear without.
    pub cubic: Option<f64>,
    pub antialias: bool,
    pub exclude_outside: bool,
    pub extrapolation: f64,
}

impl Filter {
    fn kernel(&self, x: f64) -> f64 {
        let x = x.abs();
        match self.cubic {
            None => (1.0 - x).max(0.0),
            Some(a) if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            Some(a) if x < 2.0 => ((x - 5.0) * x + 8.0) * x * a - 4.0 * a,
            Some(_) => 0.0,
        }
    }

    /// For each element of the output `width` elements of the input with weights; no weight at all outside.
    fn taps(&self, axis: &Axis) -> (usize, Vec<usize>, Vec<f64>, Vec<bool>) {
        let stretch = if self.antialias { axis.scale.min(1.0) } else { 1.0 };
        let support = if self.cubic.is_some() { 2.0 } else { 1.0 };
        let first = (-support / stretch).floor() as i64 + 1;
        let width = (2 - 2 * first) as usize;
        let (mut indices, mut weights) = (Vec::new(), Vec::new());
        let mut outside = Vec::with_capacity(axis.size);
        for i in 0..axis.size {
            let (x, is_outside) = axis.original(i);
            outside.push(is_outside);
            // An integer coordinate belongs to the interval below it.
            let base = x.ceil() - 1.0;
            let at = weights.len();
            for k in first..first + width as i64 {
                let j = base as i64 + k;
                let inside = (0..axis.n as i64).contains(&j);
                let w = self.kernel((base + k as f64 - x) * stretch);
                indices.push(j.clamp(0, axis.n as i64 - 1) as usize);
                weights.push(if self.exclude_outside && !inside { 0.0 } else { w });
            }
            let sum: f64 = weights[at..].iter().sum();
            if sum != 0.0 && (self.antialias || self.exclude_outside) {
                weights[at..].iter_mut().for_each(|w| *w /= sum);
            }
        }
        (width, indices, weights, outside)
    }
}

/// The averages along every dimension, the last one first: for an enlargement it then has the fewest rows.
pub(super) fn average<T: NdFloat>(threads: usize, v: &[T], plan: &[Axis], filter: &Filter) -> Vec<T> {
    let mut v = Cow::Borrowed(v);
    let mut shape: Vec<usize> = plan.iter().map(|a| a.n).collect();
    let real = |x: f64| T::from(x).unwrap_or_else(T::nan);
    for (d, axis) in plan.iter().enumerate().rev() {
        if axis.is_identity() {
            continue;
        }
        let (width, indices, weights, outside) = filter.taps(axis);
        let weights: Vec<T> = weights.into_iter().map(real).collect();
        let outer: usize = shape[..d].iter().product();
        let inner: usize = shape[d + 1..].iter().product();
        let mut out = vec![T::zero(); outer * axis.size * inner];
        let threads = if out.len() < PARALLEL { 1 } else { threads };
        for_each_chunk(threads, &mut out, axis.size * inner, &|o, dst| {
            let src = &v[o * axis.n * inner..(o + 1) * axis.n * inner];
            if inner == 1 {
                for (y, (i, w)) in dst.iter_mut().zip(indices.chunks_exact(width).zip(weights.chunks_exact(width))) {
                    *y = i.iter().zip(w).fold(T::zero(), |sum, (&i, &w)| sum + src[i] * w);
                }
            } else {
                for (k, row) in dst.chunks_exact_mut(inner).enumerate() {
                    for (&i, &w) in indices[k * width..(k + 1) * width].iter().zip(&weights[k * width..]) {
                        if w != T::zero() {
                            let from = &src[i * inner..(i + 1) * inner];
                            row.iter_mut().zip(from).for_each(|(y, &x)| *y += x * w);
                        }
                    }
                }
            }
            for (k, row) in dst.chunks_exact_mut(inner).enumerate().filter(|(k, _)| outside[*k]) {
                debug_assert!(k < axis.size);
                row.fill(real(filter.extrapolation));
            }
        });
        shape[d] = axis.size;
        v = Cow::Owned(out);
    }
    v.into_owned()
}

/// The transpose of [`average`]: the gradients of the averages, spread over the elements with the weights.
pub(super) fn spread(mut g: Vec<f32>, plan: &[Axis], filter: &Filter) -> Vec<f32> {
    let mut shape: Vec<usize> = plan.iter().map(|a| a.size).collect();
    for (d, axis) in plan.iter().enumerate() {
        if axis.is_identity() {
            continue;
        }
        let (width, indices, weights, outside) = filter.taps(axis);
        let inner: usize = shape[d + 1..].iter().product();
        let outer: usize = shape[..d].iter().product();
        let mut out = vec![0.0f32; outer * axis.n * inner];
        for (o, dst) in out.chunks_exact_mut((axis.n * inner).max(1)).enumerate() {
            for k in (0..axis.size).filter(|&k| !outside[k]) {
                let row = &g[(o * axis.size + k) * inner..][..inner];
                for (&i, &w) in indices[k * width..(k + 1) * width].iter().zip(&weights[k * width..]) {
                    let w = w as f32;
                    dst[i * inner..(i + 1) * inner].iter_mut().zip(row).for_each(|(x, g)| *x += w * g);
                }
            }
        }
        shape[d] = axis.n;
        g = out;
    }
    g
}
