//! Sums, maxima and fused normalisations of contiguous rows of `f32`.
//!
//! Sums run in a fixed number of lanes whatever the machine's vectors are, so that the bits are the same everywhere.

use super::math;
use super::simd::{self, Kernel};

/// Independent partial results per row: enough to hide the latency of an addition.
const LANES: usize = 32;

/// The fold of `f(x)` over a row, in lanes that are combined at the end.
#[inline(always)]
fn fold(row: &[f32], init: f32, f: impl Fn(f32) -> f32, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut acc = [init; LANES];
    let mut chunks = row.chunks_exact(LANES);
    for c in &mut chunks {
        for (a, &x) in acc.iter_mut().zip(c) {
            *a = combine(*a, f(x));
        }
    }
    for (a, &x) in acc.iter_mut().zip(chunks.remainder()) {
        *a = combine(*a, f(x));
    }
    halve(acc, combine)
}

/// The lanes combined.
#[inline(always)]
fn halve(mut acc: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            acc[i] = combine(acc[i], acc[i + n]);
        }
    }
    acc[0]
}

/// The sum of `f(x)` over a row: in 32 bits within blocks, in 64 bits over them.
#[inline(always)]
pub fn sum_of(row: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    row.chunks(4096).map(|c| f64::from(fold(c, 0.0, &f, |a, b| a + b))).sum()
}

/// The largest element, or negative infinity; a NaN wins.
#[inline(always)]
pub fn max(row: &[f32]) -> f32 {
    fold(row, f32::NEG_INFINITY, |x| x, |a, b| if a > b || a.is_nan() { a } else { b })
}

/// The smallest element, or infinity; a NaN wins.
#[inline(always)]
pub fn min(row: &[f32]) -> f32 {
    fold(row, f32::INFINITY, |x| x, |a, b| if a < b || a.is_nan() { a } else { b })
}

struct Softmax<'a> {
    data: &'a mut [f32],
    n: usize,
    log: bool,
}

impl Kernel for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for row in self.data.chunks_exact_mut(self.n) {
            // A NaN makes the whole row NaN through the sum, so the maximum may ignore it.
            let m = fold(row, f32::NEG_INFINITY, |x| x, |a, b| if a > b { a } else { b });
            if self.log {
                let sum = sum_of(row, |x| math::exp(x - m)) as f32;
                let l = math::log(sum);
                for x in row {
                    *x = *x - m - l;
                }
            } else {
                // The sum on the way, in lanes as in `fold`, and in 64 bits over blocks.
                let mut sum = 0.0f64;
                for block in row.chunks_mut(4096) {
                    let mut acc = [0.0f32; LANES];
                    let mut chunks = block.chunks_exact_mut(LANES);
                    for c in &mut chunks {
                        for (a, x) in acc.iter_mut().zip(c) {
                            *x = math::exp(*x - m);
                            *a += *x;
                        }
                    }
                    for (a, x) in acc.iter_mut().zip(chunks.into_remainder()) {
                        *x = math::exp(*x - m);
                        *a += *x;
                    }
                    sum += f64::from(halve(acc, |a, b| a + b));
                }
                let r = (1.0 / sum) as f32;
                for x in row {
                    *x *= r;
                }
            }
        }
    }
}

/// Softmax, or its logarithm, of each row of `n` elements, in place.
pub fn softmax(data: &mut [f32], n: usize, log: bool) {
    if n > 0 {
        simd::run(Softmax { data, n, log });
    }
}

/// How a row is normalised.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether the mean is subtracted (layer norm) or not (RMS norm).
    pub centered: bool,
}

struct Normalize<'a> {
    data: &'a mut [f32],
    n: usize,
    norm: Norm,
    stats: &'a mut dyn FnMut(f32, f32),
    scale: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
}

impl Kernel for Normalize<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Normalize { data, n, norm, stats, scale, bias } = self;
        for row in data.chunks_exact_mut(n) {
            let mean = if norm.centered { (sum_of(row, |x| x) / n as f64) as f32 } else { 0.0 };
            let var = (sum_of(row, |x| (x - mean) * (x - mean)) / n as f64) as f32;
            let inv = 1.0 / (var + norm.epsilon).sqrt();
            stats(mean, inv);
            match (scale, bias) {
                (Some(s), Some(b)) => {
                    for ((x, s), b) in row.iter_mut().zip(s).zip(b) {
                        *x = (*x - mean) * inv * s + b;
                    }
                }
                (Some(s), None) => {
                    for (x, s) in row.iter_mut().zip(s) {
                        *x = (*x - mean) * inv * s;
                    }
                }
                _ => {
                    for x in row {
                        *x = (*x - mean) * inv;
                    }
                }
            }
        }
    }
}

/// Normalises each row of `n` elements in place, then multiplies with `scale` and adds `bias`, both of `n` elements.
/// `stats` is told each row's mean and inverse standard deviation. A bias needs a scale.
pub fn normalize(
    data: &mut [f32],
    n: usize,
    norm: Norm,
    affine: (Option<&[f32]>, Option<&[f32]>),
    stats: &mut dyn FnMut(f32, f32),
) {
    debug_assert!(affine.0.is_some() || affine.1.is_none());
    if n > 0 {
        simd::run(Normalize { data, n, norm, stats, scale: affine.0, bias: affine.1 });
    }
}

/// [`normalize`] in 64 bits, without scale and bias.
pub fn normalize_f64(data: &mut [f64], n: usize, norm: Norm, stats: &mut dyn FnMut(f64, f64)) {
    for row in data.chunks_exact_mut(n.max(1)) {
        let len = row.len() as f64;
        let mean = if norm.centered { row.iter().sum::<f64>() / len } else { 0.0 };
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / len;
        let inv = 1.0 / (variance + f64::from(norm.epsilon)).sqrt();
        row.iter_mut().for_each(|x| *x = (*x - mean) * inv);
        stats(mean, inv);
    }
}

multiversion! {
    /// Adds the products of all pairs of rows of `x`, `[k, n]`, to the lower triangle of `h`, `[k, k]`.
    ///
    /// # Panics
    /// A slice is too short.
    pub fn add_products(x: &[f32], k: usize, n: usize, h: &mut [f32]) {
        let row = |i: usize| &x[i * n..][..n];
        for i in 0..k {
            let (a, a_rest) = row(i).as_chunks::<LANES>();
            for j in 0..=i {
                let (b, b_rest) = row(j).as_chunks::<LANES>();
                let mut sums = [0.0f32; LANES];
                for c in 0..a.len() {
                    for l in 0..LANES {
                        sums[l] += a[c][l] * b[c][l];
                    }
                }
                let mut sum = 0.0;
                for l in 0..LANES {
                    sum += sums[l];
                }
                for l in 0..a_rest.len() {
                    sum += a_rest[l] * b_rest[l];
                }
                h[i * k + j] += sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_summed_and_normalised() {
        let v: Vec<f32> = (0..100).map(|i| i as f32).collect();
        assert_eq!(sum_of(&v, |x| x), 4950.0);
        assert_eq!((max(&v), min(&v)), (99.0, 0.0));
        assert!(max(&[1.0, f32::NAN, 2.0]).is_nan());
        let mut x = vec![1.0, 2.0, 3.0, 4.0, 4.0, 4.0];
        let mut seen = Vec::new();
        let norm = Norm { epsilon: 0.0, centered: true };
        normalize(&mut x[..3], 3, norm, (None, None), &mut |m, s| seen.push((m, s)));
        assert!((x[2] - 1.5f32.sqrt()).abs() < 1e-6 && x[1] == 0.0);
        assert_eq!(seen[0].0, 2.0);
        softmax(&mut x[3..], 3, false);
        assert_eq!(&x[3..], &[1.0 / 3.0; 3]);
    }

    #[test]
    fn products_of_all_pairs_of_rows() {
        for (k, n) in [(1, 1), (3, 7), (5, 2 * LANES), (4, 2 * LANES + 3), (9, 100)] {
            let x: Vec<f32> = (0..k * n).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
            let mut h = vec![1.0f32; k * k];
            add_products(&x, k, n, &mut h);
            for i in 0..k {
                for j in 0..k {
                    let sum: f32 = (0..n).map(|r| x[i * n + r] * x[j * n + r]).sum();
                    assert_eq!(h[i * k + j], if j <= i { 1.0 + sum } else { 1.0 }, "{k} {n} {i} {j}");
                }
            }
        }
    }
}
