//! Exact sums of products of 8-bit integers, on the kernels for 32-bit floats.
//!
//! Values after their zero points lie in [-255, 255], so a sum of 258 products stays within 2^24 and is exact in a
//! 32-bit float, in any order. Longer sums are cut into blocks whose exact results are added as integers, wrapping in
//! 32 bits as ONNX allows.

use super::conv::{Filters, Geometry, conv};
use super::gemm::{Init, PackedB, gemm};
use super::plain;
use crate::tensor::{buffer, keep};

/// Products that surely sum up exactly.
const EXACT: usize = 256;

/// A matrix `[k, n]` of small integers, cut along `k` and packed.
#[derive(Debug)]
pub struct PackedInts {
    k: usize,
    n: usize,
    blocks: Vec<PackedB>,
}

impl PackedInts {
    /// Packs a row-major matrix.
    #[must_use]
    pub fn new(b: &[f32], k: usize, n: usize) -> Self {
        let block = |k0: usize| PackedB::new(&b[k0 * n..], EXACT.min(k - k0), n, n, 1);
        PackedInts { k, n, blocks: (0..k).step_by(EXACT).map(block).collect() }
    }
}

/// `C[m, n] = A[m, k] * B`; all values are integers in [-255, 255].
///
/// # Panics
/// A slice is too short.
pub fn gemm_exact(threads: usize, m: usize, a: &[f32], b: &PackedInts, c: &mut [i32]) {
    let c = &mut c[..m * b.n];
    c.fill(0);
    let mut sums = buffer(m * b.n);
    let mut part = buffer(m * EXACT.min(b.k));
    for (i, block) in b.blocks.iter().enumerate() {
        let k = block.k();
        for (to, from) in part.chunks_exact_mut(k).zip(a.chunks_exact(b.k)) {
            to.copy_from_slice(&from[i * EXACT..][..k]);
        }
        gemm(threads, m, &part, block, Init::Zero, &mut sums);
        add(&sums, c);
    }
    keep(sums);
    keep(part);
}

multiversion! {
    fn add(sums: &[f32], c: &mut [i32]) {
        c.iter_mut().zip(sums).for_each(|(c, &x)| *c = c.wrapping_add(x as i32));
    }
}

/// `Y = W * X` as a convolution; all values are integers in [-255, 255].
///
/// # Panics
/// A slice has not the length that the sizes say.
pub fn conv_exact(threads: usize, g: &Geometry, x: &[f32], w: &[f32], y: &mut [i32]) {
    let (taps, per_group) = (g.kernel.iter().product::<usize>().max(1), g.channels / g.groups);
    let (in_size, k) = (g.input.iter().product::<usize>(), g.k());
    if taps > EXACT {
        let ints = |v: &[f32]| v.iter().map(|&x| std::num::Wrapping(x as i32)).collect::<Vec<_>>();
        let mut sums = vec![std::num::Wrapping(0); y.len()];
        plain::conv(g, &ints(x), &ints(w), &mut sums);
        y.iter_mut().zip(sums).for_each(|(y, s)| *y = s.0);
        return;
    }
    y.fill(0);
    let mut sums = buffer(y.len());
    let step = (EXACT / taps).min(per_group).max(1);
    for c0 in (0..per_group).step_by(step) {
        let n = step.min(per_group - c0);
        if n == per_group {
            conv(threads, g, x, &Filters::new(w, g), None, &mut sums);
        } else {
            // Some channels of every group.
            let part = Geometry { channels: n * g.groups, ..g.clone() };
            let xs: Vec<f32> = x
                .chunks_exact((per_group * in_size).max(1))
                .flat_map(|group| &group[c0 * in_size..(c0 + n) * in_size])
                .copied()
                .collect();
            let ws: Vec<f32> =
                w.chunks_exact(k.max(1)).flat_map(|filter| &filter[c0 * taps..(c0 + n) * taps]).copied().collect();
            conv(threads, &part, &xs, &Filters::new(&ws, &part), None, &mut sums);
        }
        add(&sums, y);
    }
    keep(sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_sums_are_exact() {
        for k in [1, 256, 257, 3000] {
            let (m, n) = (3, 5);
            let a: Vec<f32> = (0..m * k).map(|i| 255.0 - (i % 3) as f32).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i % 5) as f32 - 255.0).collect();
            let mut c = vec![7; m * n];
            gemm_exact(1, m, &a, &PackedInts::new(&b, k, n), &mut c);
            for i in 0..m {
                for j in 0..n {
                    let sum: i32 = (0..k).map(|x| a[i * k + x] as i32 * b[x * n + j] as i32).sum();
                    assert_eq!(c[i * n + j], sum);
                }
            }
        }
    }

    #[test]
    fn long_convolutions_are_exact() {
        for (channels, groups, kernel) in [(200, 1, 3), (200, 2, 3), (4, 4, 3), (2, 1, 300)] {
            let g = Geometry {
                batch: 2,
                channels,
                filters: 4,
                groups,
                input: vec![310],
                output: vec![310 + 2 - kernel + 1],
                kernel: vec![kernel],
                stride: vec![1],
                dilation: vec![1],
                begin: vec![1],
            };
            let x: Vec<f32> = (0..2 * channels * 310).map(|i| 255.0 - (i % 7) as f32).collect();
            let w: Vec<f32> = (0..4 * g.k()).map(|i| (i % 5) as f32 - 255.0).collect();
            let mut expected = vec![0i64; 2 * 4 * g.output[0]];
            let ints = |v: &[f32]| v.iter().map(|&x| x as i64).collect::<Vec<_>>();
            plain::conv(&g, &ints(&x), &ints(&w), &mut expected);
            let mut y = vec![0; expected.len()];
            conv_exact(1, &g, &x, &w, &mut y);
            assert!(y.iter().zip(&expected).all(|(&y, &e)| i64::from(y) == e), "{channels} {groups} {kernel}");
        }
    }
}
