//! Error-compensating rounding of weights in blocks: GPTQ with scales and zero points that are fixed beforehand.
//!
//! Paper: Frantar et al. 2023, *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers*; the
//! procedure itself is in [`super::compensate`]. Scales are those of round-to-nearest with each input channel weighed by
//! its mean square; since they are known before, weights can be rounded in any order (the paper's activation order)
//! without storing a permutation.

use super::blocks::{Blocked, Method, Params, Scheme, Weight, quantize};
use super::compensate::{Factor, Grid, compensate, losses};
use super::moments::Moments;
use crate::error::Result;

/// Codes of blocks. A weight that is 0 stays as near to it as its block allows: pruning is not undone.
struct Blocks<'a> {
    start: &'a Blocked,
    n_blocks: usize,
    weights: &'a [f32],
}

impl Grid for Blocks<'_> {
    fn round(&self, row: usize, k: usize, x: f32) -> (i32, f32) {
        let b = row * self.n_blocks + k / self.start.scheme.block;
        let p = Params { scale: self.start.scales[b], zero: self.start.zeros[b] };
        let x = if self.weights[row * self.start.k + k] == 0.0 { 0.0 } else { x };
        let code = p.code(x, self.start.scheme);
        (code as i32, (code - p.zero) * p.scale)
    }
}

/// Quantizes a weight whose inputs have these second moments, whole and with their factor, or only on the diagonal. A
/// row keeps the nearest integers where the compensated ones lose more at the output.
///
/// # Errors
/// A weight is not finite.
pub fn gptq(w: &Weight<'_>, scheme: Scheme, m: &Moments, factor: Option<&Factor>, threads: usize) -> Result<Blocked> {
    let energy: Vec<f32> = importance(m);
    let mut b = quantize(w, scheme, Method::Rtn, Some(&energy))?;
    let Some(factor) = factor else { return Ok(b) };
    let rows = w.rows(0, w.n);
    let grid = Blocks { start: &b, n_blocks: scheme.n_blocks(w.k), weights: &rows };
    let integers = compensate(threads, &rows, factor, &grid)?;
    let before: Vec<f32> = (0..rows.len()).map(|i| rows[i] - b.value(i / w.k, i % w.k)).collect();
    let value = |i: usize, code: u8| {
        let at = i / w.k * grid.n_blocks + i % w.k / scheme.block;
        (f32::from(code) - b.zeros[at]) * b.scales[at]
    };
    let after: Vec<f32> = integers.iter().enumerate().map(|(i, &q)| rows[i] - value(i, q as u8)).collect();
    let (lost, loses) = (losses(threads, &before, &m.h, w.k), losses(threads, &after, &m.h, w.k));
    b.noise = 0.0;
    for row in 0..w.n {
        let at = row * w.k..(row + 1) * w.k;
        let is_better = loses[row] < lost[row];
        if is_better {
            for i in at.clone() {
                b.codes[i] = integers[i] as u8;
            }
        }
        let errors = if is_better { &after[at] } else { &before[at] };
        b.noise += errors.iter().map(|&e| f64::from(e) * f64::from(e)).sum::<f64>();
    }
    Ok(b)
}

/// The mean square of each input channel; a channel that never was anything still has a little.
#[must_use]
pub fn importance(m: &Moments) -> Vec<f32> {
    let mean = m.energy.iter().sum::<f64>() / m.energy.len().max(1) as f64;
    let least = if mean > 0.0 { 1e-4 * mean } else { 1.0 };
    m.energy.iter().map(|&e| e.max(least) as f32).collect()
}

/// The mean square of what the outputs are off by, summed over the rows.
#[must_use]
pub fn output_noise(errors: &[f32], m: &Moments, threads: usize) -> f64 {
    if m.is_full() {
        return losses(threads, errors, &m.h, m.k).iter().sum();
    }
    let square = |(e, h): (&f32, &f64)| f64::from(*e) * f64::from(*e) * h;
    errors.chunks_exact(m.k.max(1)).map(|row| row.iter().zip(&m.energy).map(square).sum::<f64>()).sum()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::quant::algo::compensate::{DAMPING, Order};
    use crate::tensor::DType;

    /// Correlated inputs, some channels much larger than the others.
    pub(crate) fn moments(k: usize) -> Moments {
        let mut seed = 11u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let n = 4 * k;
        let mut m = Moments { k, mean: vec![0.0; k], energy: vec![0.0; k], h: vec![0.0; k * k], rows: n as u64 };
        for _ in 0..n {
            let shared = next();
            let x: Vec<f32> = (0..k).map(|i| (next() + shared) * if i % 17 == 0 { 12.0 } else { 1.0 }).collect();
            for i in 0..k {
                m.energy[i] += f64::from(x[i] * x[i]) / n as f64;
                for j in 0..k {
                    m.h[i * k + j] += x[i] * x[j] / n as f32;
                }
            }
        }
        m
    }

    pub(crate) fn weights(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + i * i * 31) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    #[test]
    fn loses_less_at_the_output_than_rounding() {
        let (n, k) = (24, 64);
        let (m, data) = (moments(k), weights(n * k));
        let w = Weight { data: &data, n, k, is_kn: false };
        let factor = Factor::new(1, &m.h, k, Order::Energy, DAMPING).unwrap();
        for dtype in [DType::I4, DType::U4, DType::I2] {
            let scheme = Scheme::new(dtype, 32);
            let noise = |b: &Blocked| {
                let e: Vec<f32> = (0..n * k).map(|i| data[i] - b.value(i / k, i % k)).collect();
                output_noise(&e, &m, 1)
            };
            let near = quantize(&w, scheme, Method::Rtn, None).unwrap();
            let weighed = gptq(&w, scheme, &m, None, 1).unwrap();
            let ours = gptq(&w, scheme, &m, Some(&factor), 1).unwrap();
            assert!(noise(&weighed) < noise(&near), "{dtype}: {} {}", noise(&weighed), noise(&near));
            assert!(noise(&ours) < 0.6 * noise(&weighed), "{dtype}: {} {}", noise(&ours), noise(&weighed));
        }
    }
}
