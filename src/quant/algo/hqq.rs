//! Half-quadratic quantization: scale and zero point of a block without data, in a norm that forgives outliers.
//!
//! Paper: Badri and Shaji 2023, *Half-Quadratic Quantization of Large Machine Learning Models*. The error is split into
//! a sparse part `e`, found by shrinking in the norm `p < 1`, and a rest that is fitted in squares, by turns, while the
//! weight of the second grows. Deviation: the paper fits a real zero point at a fixed scale; here the scale is fitted as
//! well, and the zero point is rounded where ONNX's is a whole number. Signed types have none.

use super::blocks::{Line, Params, Scheme, covering, fit as least_squares};

/// The norm.
const P: f32 = 0.7;
/// The first weight of the squares, relative to a step of the quantizer, and its growth.
const BETA: f32 = 1.0;
const KAPPA: f32 = 1.05;
const ROUNDS: usize = 20;

/// `argmin |e|^p + beta/2 (e - x)^2`, the generalized soft threshold.
fn shrink(x: f32, beta: f32) -> f32 {
    if x == 0.0 {
        return 0.0;
    }
    x.signum() * (x.abs() - x.abs().powf(P - 1.0) / beta).max(0.0)
}

/// The error in the norm, in units of `unit`.
fn norm(x: &[f32], p: Params, scheme: Scheme, unit: f32) -> f32 {
    x.iter().map(|&x| ((x - (p.code(x, scheme) - p.zero) * p.scale) / unit).abs().powf(P)).sum()
}

/// Scale and zero point of a block.
#[must_use]
pub fn fit(x: &[f32], scheme: Scheme) -> Params {
    let ones = vec![1.0f32; x.len()];
    let start = least_squares(x, &ones, scheme);
    let Some(unit) = covering(x, scheme, 1.0).map(|p| p.scale) else { return start };
    let (mut best, mut least) = (start, norm(x, start, scheme, unit));
    let (mut p, mut beta) = (start, BETA);
    let (lo, hi) = scheme.codes();
    for _ in 0..ROUNDS {
        // Codes, and the weight without its sparse error.
        let points = x.iter().map(|&x| {
            let c = p.code(x, scheme);
            (c, x - unit * shrink((x - (c - p.zero) * p.scale) / unit, beta), 1.0)
        });
        let next = if scheme.is_symmetric() {
            let (wq, qq) = points.fold((0f32, 0f32), |(wq, qq), (c, w, _)| {
                let q = c - p.zero;
                (wq + w * q, qq + q * q)
            });
            Params { scale: wq / qq, ..p }
        } else {
            let Some(line) = Line::through(points).params() else { break };
            let zero = if scheme.float_zeros { line.zero } else { line.zero.round_ties_even().clamp(lo, hi) };
            Params { zero, ..line }
        };
        if !next.scale.is_finite() || next.scale < f32::MIN_POSITIVE || !next.zero.is_finite() || next == p {
            break;
        }
        p = next;
        let error = norm(x, p, scheme, unit);
        if error < least {
            (best, least) = (p, error);
        }
        beta *= KAPPA;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn an_outlier_costs_less_than_with_squares() {
        // Values on a grid of 0.1, and one far away from it that cannot be met.
        for dtype in [DType::I4, DType::U4] {
            let scheme = Scheme::new(dtype, 32);
            let mut x: Vec<f32> = (0..31).map(|i| (i % 13) as f32 * 0.1 - 0.6).collect();
            x.push(1.13);
            let (h, s) = (fit(&x, scheme), least_squares(&x, &[1.0; 32], scheme));
            let (with, without) = (norm(&x, h, scheme, 0.1), norm(&x, s, scheme, 0.1));
            if scheme.is_symmetric() {
                // Where only the scale is free, least squares have found it already: a smaller one clips the outlier more
                // than it gains, in either norm.
                assert_eq!(h, s);
            } else {
                // Nearer to the grid, and worth it, though with whole zero points not by much: 10.756 and 10.800.
                assert!((h.scale - 0.1).abs() < (s.scale - 0.1).abs(), "{h:?} {s:?}");
                assert!(with < without && (with - 10.756).abs() < 0.005 && (without - 10.8).abs() < 0.005);
            }
        }
        assert_eq!(fit(&[0.0; 8], Scheme::new(DType::U4, 8)).scale, 1.0);
    }

    #[test]
    fn shrinking_keeps_large_errors_and_drops_small_ones() {
        assert_eq!(shrink(0.1, 1.0), 0.0);
        assert!((shrink(100.0, 1.0) - 100.0).abs() < 1.0);
    }
}
