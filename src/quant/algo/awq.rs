//! Activation-aware scaling: input channels that matter are made larger in the weight, and smaller in the data, before
//! the weight is rounded, so that they lose less.
//!
//! Paper: Lin et al. 2023, *AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration*. A channel is
//! multiplied with `s = magnitude^a`; `a` is the one that loses least at the outputs of all products that read the same
//! data. Deviation: the magnitude is the root of the mean square instead of the mean magnitude, the loss is predicted
//! from second moments instead of run, and the data's factors are a `Mul` of their own unless it is taken over elsewhere.

use super::block_gptq::{importance, output_noise};
use super::blocks::{Method, Scheme, Weight, quantize};
use super::moments::Moments;
use crate::error::Result;

/// Exponents that are tried.
const STEPS: usize = 10;
/// Rows of a weight that the search looks at, spread evenly.
const ROWS: usize = 192;
/// What a factor must gain to be worth a node, as a share of the loss.
const LEAST_GAIN: f64 = 0.02;

/// What each input channel of these weights, which read the same data, is best multiplied with; `None` where it gains
/// nothing.
///
/// # Errors
/// A weight is not finite.
pub fn factors(weights: &[Weight<'_>], scheme: Scheme, m: &Moments, threads: usize) -> Result<Option<Vec<f32>>> {
    let energy = importance(m);
    let mut picked = Vec::new();
    for w in weights {
        let step = w.n.div_ceil(ROWS).max(1);
        let rows: Vec<f32> = (0..w.n).step_by(step).flat_map(|r| w.rows(r, r + 1)).collect();
        picked.push(rows);
    }
    let mut best: Option<(f64, Option<Vec<f32>>)> = None;
    for i in 0..=STEPS {
        let s = powers(&energy, i as f32 / STEPS as f32);
        let mut loss = 0.0;
        for rows in &picked {
            let k = m.k;
            let scaled: Vec<f32> = rows.iter().enumerate().map(|(i, x)| x * s[i % k]).collect();
            let weighed: Vec<f32> = energy.iter().zip(&s).map(|(e, s)| e / (s * s)).collect();
            let w = Weight { data: &scaled, n: rows.len() / k, k, is_kn: false };
            let b = quantize(&w, scheme, Method::Rtn, Some(&weighed))?;
            let errors: Vec<f32> = rows.iter().enumerate().map(|(i, x)| x - b.value(i / k, i % k) / s[i % k]).collect();
            loss += output_noise(&errors, m, threads);
        }
        let needed = if i == 0 { f64::INFINITY } else { best.as_ref().map_or(f64::INFINITY, |b| b.0) };
        if loss < needed {
            best = Some((if i == 0 { loss * (1.0 - LEAST_GAIN) } else { loss }, (i > 0).then_some(s)));
        }
    }
    Ok(best.and_then(|b| b.1))
}

/// `magnitude^a` of every channel, centered around 1.
fn powers(energy: &[f32], a: f32) -> Vec<f32> {
    let s: Vec<f32> = energy.iter().map(|e| e.sqrt().powf(a).max(1e-4)).collect();
    let (lo, hi) = s.iter().fold((f32::INFINITY, 0f32), |(lo, hi), &x| (lo.min(x), hi.max(x)));
    let center = (lo * hi).sqrt();
    s.iter().map(|x| x / center).collect()
}

#[cfg(test)]
mod tests {
    use super::super::block_gptq::tests::{moments, weights};
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn large_channels_become_larger_and_even_ones_stay() {
        let (n, k) = (24, 64);
        let data = weights(n * k);
        let w = Weight { data: &data, n, k, is_kn: false };
        let scheme = Scheme::new(DType::I4, 32);
        let s = factors(&[w, w], scheme, &moments(k), 1).unwrap().unwrap();
        // The root of the mean square of each channel to one and the same power, which is one of those that are tried.
        // Channels 0, 17, 34, 51 are the large ones.
        let m = importance(&moments(k));
        let (largest, smallest) = (17, 1);
        let power = (s[largest] / s[smallest]).ln() / (m[largest] / m[smallest]).sqrt().ln();
        // With less channels of little magnitude lose more than the large ones gain, with more the other way round.
        assert!((power - 0.1).abs() < 1e-4, "{power}");
        for (i, s_i) in s.iter().enumerate() {
            let want = s[smallest] * (m[i] / m[smallest]).sqrt().powf(power);
            assert!((s_i / want - 1.0).abs() < 1e-4, "channel {i}: {s_i} instead of {want}");
        }
        let even = Moments { k, mean: vec![0.0; k], energy: vec![1.0; k], h: Vec::new(), rows: 9 };
        assert_eq!(factors(&[w], scheme, &even, 1).unwrap(), None);
    }
}
