//! Which weights take 8 bits where the others take fewer: those that would lose most for their size.
//!
//! A weight's loss is the error of its product's output relative to that output: with second moments of the data, where
//! there are any, and otherwise as if all input channels were alike and independent. Every layer adds its own relative
//! error to what it hands on, so the losses of a model add up; what is to be chosen is a knapsack, and it is filled by
//! loss per element.

use super::algo::block_gptq::output_noise;
use super::algo::blocks::{Blocked, Weight};
use super::algo::moments::Moments;
use crate::error::Result;

/// A weight that may take more bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Elements.
    pub len: usize,
    /// What is lost with few bits.
    pub loss: f64,
}

/// The candidates that take more bits, those that lose most for their size first, so that these hold at most `percent` of
/// all elements.
#[must_use]
pub fn choose(candidates: &[Candidate], percent: u8) -> Vec<usize> {
    let total: usize = candidates.iter().map(|c| c.len).sum();
    let mut left = total as u128 * u128::from(percent.min(100)) / 100;
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    let gain = |i: usize| candidates[i].loss / candidates[i].len.max(1) as f64;
    order.sort_by(|&a, &b| gain(b).total_cmp(&gain(a)));
    // What does not fit leaves its room to smaller ones; what loses nothing needs none.
    order.retain(|&i| {
        let fits = candidates[i].loss > 0.0 && candidates[i].len as u128 <= left;
        if fits {
            left -= candidates[i].len as u128;
        }
        fits
    });
    order
}

/// The fewest of `most` candidates in their order that hold a floor, by bisection: with more of them less is lost. All of
/// them where that is not enough.
///
/// # Errors
/// Those of `holds`.
pub fn fewest(most: usize, holds: &mut dyn FnMut(usize) -> Result<bool>) -> Result<usize> {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = usize::midpoint(low, high);
        if holds(middle)? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(low)
}

/// What a quantized weight loses.
#[must_use]
pub fn loss(w: &Weight<'_>, b: &Blocked, m: Option<&Moments>, threads: usize) -> f64 {
    let (noise, signal) = match m {
        None => (b.noise, b.signal),
        Some(m) => {
            let rows = w.rows(0, w.n);
            let errors: Vec<f32> = rows.iter().enumerate().map(|(i, x)| x - b.value(i / w.k, i % w.k)).collect();
            (output_noise(&errors, m, threads), output_noise(&rows, m, threads))
        }
    };
    if noise > 0.0 { noise / signal.max(f64::MIN_POSITIVE) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::algo::blocks::{Method, Scheme, quantize};
    use crate::tensor::DType;

    fn candidates(of: &[(usize, f64)]) -> Vec<Candidate> {
        of.iter().map(|&(len, loss)| Candidate { len, loss }).collect()
    }

    #[test]
    fn the_worst_for_their_size_are_chosen_until_the_room_is_used() {
        let even = candidates(&[(100, 0.01), (100, 0.5), (100, 0.02), (100, 0.03)]);
        assert_eq!(choose(&even, 25), [1]);
        assert_eq!(choose(&even, 50), [1, 3]);
        assert_eq!(choose(&even, 24), [] as [usize; 0]);
        assert_eq!(choose(&even, 0), [] as [usize; 0]);
        assert_eq!(choose(&even, 100), [1, 3, 2, 0]);
        // Two small ones save more than the large one that loses most; the large one does not fit any more.
        let sizes = candidates(&[(800, 0.3), (100, 0.2), (100, 0.2)]);
        assert_eq!(choose(&sizes, 80), [1, 2]);
        assert_eq!(choose(&candidates(&[(10, 0.0), (10, 0.0)]), 100), [] as [usize; 0]);
    }

    #[test]
    fn no_more_than_the_floor_needs() {
        for (most, needed) in [(0, 0), (1, 0), (1, 1), (5, 0), (5, 3), (5, 5), (5, 9)] {
            let mut tried = 0;
            let found = fewest(most, &mut |n| {
                tried += 1;
                Ok(n >= needed)
            });
            assert_eq!(found.unwrap(), needed.min(most), "{needed} of {most}");
            assert!(tried <= 3);
        }
        assert!(fewest(2, &mut |_| crate::error::bail!("does not run")).is_err());
    }

    #[test]
    fn data_decides_what_an_error_costs() {
        let (n, k) = (8, 32);
        let scheme = Scheme::new(DType::I4, 32);
        // Whole numbers up to 7 are met exactly; the last channel alone is off.
        let mut data: Vec<f32> = (0..n * k).map(|i| (i * 5 % 15) as f32 - 7.0).collect();
        data.iter_mut().skip(k - 1).step_by(k).for_each(|x| *x = 0.4);
        data.iter_mut().step_by(k).for_each(|x| *x = 7.0);
        let w = Weight { data: &data, n, k, is_kn: false };
        let b = quantize(&w, scheme, Method::Rtn, None).unwrap();
        let moments = |last: f64| {
            let mut energy = vec![1.0; k];
            energy[k - 1] = last;
            Moments { k, mean: vec![0.0; k], energy, h: Vec::new(), rows: 9 }
        };
        let white = loss(&w, &b, None, 1);
        assert!(white > 0.0);
        assert!((loss(&w, &b, Some(&moments(1.0)), 1) / white - 1.0).abs() < 1e-4);
        assert!(loss(&w, &b, Some(&moments(0.0)), 1) < 0.1 * white);
        assert!(loss(&w, &b, Some(&moments(100.0)), 1) > 10.0 * white);
    }
}
