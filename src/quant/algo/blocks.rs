//! Weights in blocks: a few elements along the input axis share a scale and, when the type is unsigned, a zero point.
//!
//! A weight is looked at as `[N, K]`, one row per output channel (of an embedding: per entry), whatever its layout in
//! the file. Rows are quantized independently and in parallel; the result does not depend on the number of threads.

use super::hqq;
use super::weight_clip::{Grid, Search, search};
use crate::error::{Result, ensure};
use crate::kernels;
use crate::tensor::DType;

/// Integer type and block size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    /// int8, int4, int2: symmetric; uint8, uint4, uint2: with zero points.
    pub dtype: DType,
    /// Elements along K that share parameters.
    pub block: usize,
    /// Whether zero points of an unsigned type are float32 numbers: they need not be whole, nor lie in the type's range.
    pub float_zeros: bool,
}

impl Scheme {
    /// A scheme whose zero points, if it has any, are integers of the type.
    #[must_use]
    pub fn new(dtype: DType, block: usize) -> Self {
        Scheme { dtype, block, float_zeros: false }
    }

    /// Bits of an element.
    #[must_use]
    pub fn bits(self) -> usize {
        self.dtype.bits()
    }

    /// Whether zero is the middle of the range, so that no zero points are stored.
    #[must_use]
    pub fn is_symmetric(self) -> bool {
        matches!(self.dtype, DType::I8 | DType::I4 | DType::I2)
    }

    /// The code (see [`Blocked::codes`]) that stands for zero when there are no zero points.
    #[must_use]
    pub fn middle(self) -> u8 {
        1 << (self.bits() - 1)
    }

    /// Smallest and largest code. Of int8 the smallest is left out, as everywhere in this crate.
    #[must_use]
    pub fn codes(self) -> (f32, f32) {
        let hi = ((1u32 << self.bits()) - 1) as f32;
        (if self.dtype == DType::I8 { 1.0 } else { 0.0 }, hi)
    }

    /// The number of blocks in a row.
    #[must_use]
    pub fn n_blocks(self, k: usize) -> usize {
        k.div_ceil(self.block)
    }

    /// Bits that an element takes with its share of scales (float32) and zero points.
    #[must_use]
    pub fn bits_per_weight(self, k: usize) -> f64 {
        let zero = match (self.is_symmetric(), self.float_zeros) {
            (true, _) => 0.0,
            (false, true) => 32.0,
            (false, false) => self.bits() as f64,
        };
        let per_block = 32.0 + zero;
        self.bits() as f64 + per_block * self.n_blocks(k) as f64 / k.max(1) as f64
    }
}

/// How scales and zero points are chosen without data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Round to nearest, with the scale that the block's range asks for.
    Covering,
    /// Round to nearest, with the scale of the least squared error.
    Rtn,
    /// Half-quadratic: the least error in a norm that forgives outliers.
    Hqq,
}

/// A float weight as `[N, K]`.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    /// Elements.
    pub data: &'a [f32],
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Whether it lies in memory as `[K, N]`.
    pub is_kn: bool,
}

impl Weight<'_> {
    /// Rows `[from, to)`, each contiguous.
    #[must_use]
    pub fn rows(&self, from: usize, to: usize) -> Vec<f32> {
        if !self.is_kn {
            return self.data[from * self.k..to * self.k].to_vec();
        }
        let mut out = vec![0.0; (to - from) * self.k];
        for (k, row) in self.data.chunks_exact(self.n).enumerate() {
            for (i, &x) in row[from..to].iter().enumerate() {
                out[i * self.k + k] = x;
            }
        }
        out
    }
}

/// A quantized weight `[N, K]`.
#[derive(Debug, Clone)]
pub struct Blocked {
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Type and block size.
    pub scheme: Scheme,
    /// Elements `[N, K]` as unsigned numbers: signed types are moved up by half of their range.
    pub codes: Vec<u8>,
    /// Scales `[N, blocks]`, positive and finite.
    pub scales: Vec<f32>,
    /// Zero points `[N, blocks]`, as codes: whole numbers in the range of the type unless they are stored as floats, and
    /// the middle of the range where the type is signed.
    pub zeros: Vec<f32>,
    /// Sum of squares of the float weight.
    pub signal: f64,
    /// Sum of squared errors.
    pub noise: f64,
}

impl Blocked {
    /// An element as a float.
    #[must_use]
    pub fn value(&self, n: usize, k: usize) -> f32 {
        let b = n * self.scheme.n_blocks(self.k) + k / self.scheme.block;
        (f32::from(self.codes[n * self.k + k]) - self.zeros[b]) * self.scales[b]
    }
}

/// Rows that one task takes: enough to read `[K, N]` by cache lines.
const ROWS: usize = 32;

struct Tile {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    signal: f64,
    noise: f64,
}

/// Quantizes a weight. `importance`, one number per input channel (its mean square), weighs the errors.
///
/// # Errors
/// An element is not finite.
pub fn quantize(w: &Weight<'_>, scheme: Scheme, method: Method, importance: Option<&[f32]>) -> Result<Blocked> {
    let tiles = kernels::try_map(w.n.div_ceil(ROWS), |t| {
        tile(w, t * ROWS, w.n.min((t + 1) * ROWS), scheme, method, importance)
    })?;
    let blocks = scheme.n_blocks(w.k);
    let mut out = Blocked {
        n: w.n,
        k: w.k,
        scheme,
        codes: Vec::with_capacity(w.n * w.k),
        scales: Vec::with_capacity(w.n * blocks),
        zeros: Vec::with_capacity(w.n * blocks),
        signal: 0.0,
        noise: 0.0,
    };
    for t in tiles {
        out.codes.extend(t.codes);
        out.scales.extend(t.scales);
        out.zeros.extend(t.zeros);
        out.signal += t.signal;
        out.noise += t.noise;
    }
    Ok(out)
}

fn tile(
    w: &Weight<'_>,
    from: usize,
    to: usize,
    scheme: Scheme,
    method: Method,
    importance: Option<&[f32]>,
) -> Result<Tile> {
    let rows = w.rows(from, to);
    ensure!(rows.iter().all(|x| x.is_finite()), "the weight holds a number that is not finite");
    let n_blocks = (to - from) * scheme.n_blocks(w.k);
    let mut t = Tile {
        codes: vec![0; rows.len()],
        scales: Vec::with_capacity(n_blocks),
        zeros: Vec::with_capacity(n_blocks),
        signal: 0.0,
        noise: 0.0,
    };
    let ones = vec![1.0f32; w.k];
    let importance = importance.unwrap_or(&ones);
    for (row, codes) in rows.chunks(w.k.max(1)).zip(t.codes.chunks_mut(w.k.max(1))) {
        let parts = row.chunks(scheme.block).zip(codes.chunks_mut(scheme.block)).zip(importance.chunks(scheme.block));
        for ((x, codes), h) in parts {
            let p = match method {
                Method::Covering => covering(x, scheme, 1.0).unwrap_or(Params::of_nothing(scheme)),
                Method::Rtn => fit(x, h, scheme),
                Method::Hqq => hqq::fit(x, scheme),
            };
            for (c, &x) in codes.iter_mut().zip(x) {
                *c = p.code(x, scheme) as u8;
                let e = f64::from(x - (f32::from(*c) - p.zero) * p.scale);
                t.signal += f64::from(x) * f64::from(x);
                t.noise += e * e;
            }
            t.scales.push(p.scale);
            t.zeros.push(p.zero);
        }
    }
    Ok(t)
}

/// Scale and zero point of a block; the zero point is a whole number unless the scheme stores floats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// Positive and finite.
    pub scale: f32,
    /// The code that stands for zero.
    pub zero: f32,
}

/// Adding and subtracting it rounds half to even where the magnitude is below 2^22.
const MAGIC: f32 = 12_582_912.0;

/// The largest zero point that is a float: what is added to it keeps a hundredth of a step.
const LARGEST_ZERO: f32 = 65_536.0;

impl Params {
    /// The code that stands for zero where everything is zero.
    fn of_nothing(scheme: Scheme) -> Self {
        Params { scale: 1.0, zero: f32::from(scheme.middle()) }
    }

    /// The nearest code.
    #[must_use]
    #[inline]
    pub fn code(self, x: f32, scheme: Scheme) -> f32 {
        let (lo, hi) = scheme.codes();
        (x / self.scale + self.zero).round_ties_even().clamp(lo, hi)
    }

    /// The sum of weighted squared errors of a block.
    #[must_use]
    pub fn error(self, x: &[f32], importance: &[f32], scheme: Scheme) -> f32 {
        let (lo, hi) = scheme.codes();
        let inverse = 1.0 / self.scale;
        let mut sums = [0f32; 8];
        let one = |x: f32, h: f32| {
            let q = (x * inverse + self.zero).clamp(lo, hi);
            let e = x - ((q + MAGIC) - MAGIC - self.zero) * self.scale;
            h * e * e
        };
        let (xs, hs) = (x.chunks_exact(8), importance.chunks_exact(8));
        let rest: f32 = xs.remainder().iter().zip(hs.remainder()).map(|(&x, &h)| one(x, h)).sum();
        for (x, h) in xs.zip(hs) {
            for i in 0..8 {
                sums[i] += one(x[i], h[i]);
            }
        }
        sums.iter().sum::<f32>() + rest
    }

    /// The scale of the least squared error for the codes that these parameters give, and the zero point where that is
    /// a float: a line through the codes.
    #[must_use]
    fn refined(self, x: &[f32], importance: &[f32], scheme: Scheme) -> Self {
        if scheme.float_zeros && !scheme.is_symmetric() {
            let points = x.iter().zip(importance).map(|(&x, &h)| (self.code(x, scheme), x, h));
            return Line::through(points).params().unwrap_or(self);
        }
        let (mut xq, mut qq) = (0f32, 0f32);
        for (&x, &h) in x.iter().zip(importance) {
            let q = self.code(x, scheme) - self.zero;
            xq += h * x * q;
            qq += h * q * q;
        }
        let scale = xq / qq;
        if scale.is_finite() && scale >= f32::MIN_POSITIVE { Params { scale, ..self } } else { self }
    }
}

/// Weighted sums of codes `c` and weights `x`, which give the line `x = scale * (c - zero)` of the least squares.
#[derive(Debug, Clone, Copy, Default)]
pub struct Line {
    h: f64,
    c: f64,
    x: f64,
    cc: f64,
    cx: f64,
}

impl Line {
    /// Of points with their code, their weight and what that counts.
    #[must_use]
    pub fn through(points: impl Iterator<Item = (f32, f32, f32)>) -> Self {
        let mut s = Line::default();
        for (c, x, h) in points {
            let (c, x, h) = (f64::from(c), f64::from(x), f64::from(h));
            s.h += h;
            s.c += h * c;
            s.x += h * x;
            s.cc += h * c * c;
            s.cx += h * c * x;
        }
        s
    }

    /// Slope and code of zero; `None` where the points give no rising line.
    #[must_use]
    pub fn params(self) -> Option<Params> {
        let scale = (self.h * self.cx - self.c * self.x) / (self.h * self.cc - self.c * self.c);
        let p = Params { scale: scale as f32, zero: ((self.c - self.x / scale) / self.h) as f32 };
        (p.scale.is_finite() && p.scale >= f32::MIN_POSITIVE && p.zero.is_finite()).then_some(p)
    }
}

/// Steps of the search for a scale, and by how much the smallest clips.
fn grid(bits: usize) -> Grid {
    let (steps, smallest) = match bits {
        0..=2 => (28, 0.25),
        3..=4 => (22, 0.55),
        _ => (6, 0.94),
    };
    Grid { steps, smallest }
}

/// Parameters that cover a block's range times `shrink`. Zero belongs to the range where its code has to be whole.
#[must_use]
pub fn covering(x: &[f32], scheme: Scheme, shrink: f32) -> Option<Params> {
    if scheme.float_zeros && !scheme.is_symmetric() {
        let (min, max) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)));
        let (lo, hi) = scheme.codes();
        let scale = (max - min) * shrink / (hi - lo);
        // The middle of the range has the middle code.
        let p = Params { scale, zero: f32::midpoint(lo, hi) - f32::midpoint(min, max) / scale };
        // Elements that are all the same span nothing: they are at the end of a range with zero.
        if scale >= f32::MIN_POSITIVE && scale.is_finite() && p.zero.abs() < LARGEST_ZERO {
            return Some(p);
        }
    }
    let (min, max) = x.iter().fold((0f32, 0f32), |(lo, hi), &x| (lo.min(x), hi.max(x)));
    let (lo, hi) = scheme.codes();
    let p = if scheme.is_symmetric() {
        let zero = f32::from(scheme.middle());
        Params { scale: max.max(-min) * shrink / (hi - zero), zero }
    } else {
        let scale = (max - min) * shrink / (hi - lo);
        Params { scale, zero: (lo - min * shrink / scale).round_ties_even().clamp(lo, hi) }
    };
    (p.scale >= f32::MIN_POSITIVE && p.scale.is_finite() && p.zero.is_finite()).then_some(p)
}

/// Scale and zero point of the least weighted squared error, by the search of [`super::weight_clip`] with neighbouring
/// zero points.
#[must_use]
pub fn fit(x: &[f32], importance: &[f32], scheme: Scheme) -> Params {
    let (lo, hi) = scheme.codes();
    let (down, up) = (
        |p: Params| Params { zero: (p.zero - 1.0).clamp(lo, hi), ..p },
        |p: Params| Params { zero: (p.zero + 1.0).clamp(lo, hi), ..p },
    );
    let moves: [&dyn Fn(Params) -> Params; 2] = [&down, &up];
    let found = search(&Search {
        grid: grid(scheme.bits()),
        covering: &|share| covering(x, scheme, share),
        error: &|p| f64::from(p.error(x, importance, scheme)),
        neighbours: if scheme.is_symmetric() || scheme.float_zeros { &[] } else { &moves },
        refined: &|p| p.refined(x, importance, scheme),
        starts: 1,
        rounds: 3,
    });
    found.unwrap_or(Params::of_nothing(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f32> {
        let mut seed = 9u64;
        (0..n)
            .map(|_| {
                let mut next = || {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5
                };
                next() + next() + next() + next()
            })
            .collect()
    }

    fn sqnr(b: &Blocked) -> f64 {
        10.0 * (b.signal / b.noise).log10()
    }

    #[test]
    fn every_type_comes_close_and_clipping_helps() {
        let w = numbers(64 * 96);
        let w = Weight { data: &w, n: 96, k: 64, is_kn: true };
        for (dtype, least) in [
            (DType::I8, 43.0),
            (DType::U8, 43.0),
            (DType::I4, 19.0),
            (DType::U4, 20.0),
            (DType::I2, 6.0),
            (DType::U2, 7.5),
        ] {
            let scheme = Scheme::new(dtype, 32);
            let b = quantize(&w, scheme, Method::Rtn, None).unwrap();
            assert!(sqnr(&b) > least, "{dtype}: {:.2} dB", sqnr(&b));
            assert!(b.scales.iter().all(|&s| s > 0.0 && s.is_finite()));
            // What is claimed of the error is what the codes give.
            let noise: f64 =
                (0..96 * 64).map(|i| f64::from(w.data[i % 64 * 96 + i / 64] - b.value(i / 64, i % 64)).powi(2)).sum();
            assert!((noise - b.noise).abs() <= 1e-6 * noise, "{dtype}");
            let plain = quantize(&w, scheme, Method::Covering, None).unwrap();
            assert!(b.noise < plain.noise, "{dtype}: {} and {} without clipping", b.noise, plain.noise);
            // Nothing is further off than half a step; with a zero point of its own a step may be cut off at an end.
            let most = if scheme.is_symmetric() { 0.501 } else { 1.001 };
            for (i, row) in w.rows(0, 96).chunks(64).enumerate() {
                let off = |k: usize| (row[k] - plain.value(i, k)).abs() / plain.scales[2 * i + k / 32];
                assert!((0..64).all(|k| off(k) < most), "{dtype} row {i}");
            }
        }
    }

    #[test]
    fn zero_points_that_are_floats_lose_less_and_reach_blocks_far_from_zero() {
        for (dtype, offset) in [(DType::U4, 0.0), (DType::U4, 9.0), (DType::U2, -6.0), (DType::U8, 100.0)] {
            let w: Vec<f32> = numbers(64 * 96).iter().map(|x| x + offset).collect();
            let w = Weight { data: &w, n: 96, k: 64, is_kn: false };
            let whole = Scheme::new(dtype, 32);
            let float = Scheme { float_zeros: true, ..whole };
            for method in [Method::Rtn, Method::Hqq] {
                let noise = |scheme| quantize(&w, scheme, method, None).unwrap().noise;
                // Without an offset the code of zero is somewhere between two whole numbers; with one, the range from zero
                // to the block is what whole zero points waste.
                let most = if offset == 0.0 { 0.95 } else { 0.3 };
                assert!(noise(float) < most * noise(whole), "{dtype} {offset} {method:?}");
            }
        }
        // Elements that are all the same are met as with whole zero points.
        let w = Weight { data: &[0.7; 32], n: 1, k: 32, is_kn: false };
        let scheme = Scheme { float_zeros: true, ..Scheme::new(DType::U4, 32) };
        assert!(quantize(&w, scheme, Method::Rtn, None).unwrap().noise < 1e-10);
        assert_eq!(scheme.bits_per_weight(32), 6.0);
    }

    #[test]
    fn a_line_through_codes_is_the_least_squares() {
        let line = |points: &[(f32, f32, f32)]| Line::through(points.iter().copied()).params();
        let p = line(&[(0.0, -3.0, 1.0), (1.0, -1.0, 1.0), (4.0, 5.0, 2.0)]).unwrap();
        assert!((p.scale - 2.0).abs() < 1e-6 && (p.zero - 1.5).abs() < 1e-6);
        // What counts nothing changes nothing.
        assert_eq!(line(&[(0.0, -3.0, 1.0), (1.0, -1.0, 1.0), (4.0, 5.0, 2.0), (9.0, 0.0, 0.0)]), Some(p));
        assert_eq!(line(&[(2.0, 1.0, 1.0), (2.0, 3.0, 1.0)]), None);
        assert_eq!(line(&[(0.0, 1.0, 1.0), (2.0, -3.0, 1.0)]), None);
    }

    #[test]
    fn layouts_agree_and_blocks_may_be_cut_off() {
        let w = numbers(40 * 5);
        let kn = Weight { data: &w, n: 5, k: 40, is_kn: true };
        let rows = kn.rows(0, 5);
        let nk = Weight { data: &rows, n: 5, k: 40, is_kn: false };
        let scheme = Scheme::new(DType::U4, 16);
        let (a, b) =
            (quantize(&kn, scheme, Method::Rtn, None).unwrap(), quantize(&nk, scheme, Method::Rtn, None).unwrap());
        assert_eq!((a.codes, &a.scales, a.zeros), (b.codes, &b.scales, b.zeros));
        assert_eq!(a.scales.len(), 5 * 3);
    }

    #[test]
    fn zeros_stay_zero_and_what_is_not_finite_is_refused() {
        let scheme = Scheme::new(DType::I4, 16);
        let w = Weight { data: &[0.0; 32], n: 2, k: 16, is_kn: false };
        let b = quantize(&w, scheme, Method::Rtn, None).unwrap();
        assert!(b.codes.iter().all(|&c| c == 8) && b.noise == 0.0);
        let w = Weight { data: &[f32::NAN; 16], n: 1, k: 16, is_kn: false };
        assert!(quantize(&w, scheme, Method::Hqq, None).is_err());
    }

    #[test]
    fn importance_decides_where_errors_go() {
        let x: Vec<f32> = numbers(32);
        let mut h = vec![1.0f32; 32];
        h[3] = 1e4;
        let scheme = Scheme::new(DType::I4, 32);
        let error = |p: Params| (x[3] - (p.code(x[3], scheme) - p.zero) * p.scale).abs();
        assert!(error(fit(&x, &h, scheme)) < error(fit(&x, &[1.0; 32], scheme)));
    }
}
