//! Products of types that are too rare for kernels of their own: 64-bit floats and integers. Plain loops over rows
//! that the compiler vectorises.

use std::ops::{AddAssign, Mul};

use super::conv::{Geometry, for_each_index};

/// A number that products are made of; integers wrap.
pub trait Number: Copy + Default + Mul<Output = Self> + AddAssign + Send + Sync {}

impl<T: Copy + Default + Mul<Output = T> + AddAssign + Send + Sync> Number for T {}

/// A number that is multiplied and summed as ONNX Runtime does it: integers wrap.
pub trait Sums: Copy {
    /// `self + a * b`.
    #[must_use]
    fn plus_product(self, a: Self, b: Self) -> Self;
}

impl Sums for f64 {
    #[inline]
    fn plus_product(self, a: Self, b: Self) -> Self {
        self + a * b
    }
}

macro_rules! wrapping {
    ($($t:ty)*) => { $(impl Sums for $t {
        #[inline]
        fn plus_product(self, a: Self, b: Self) -> Self {
            self.wrapping_add(a.wrapping_mul(b))
        }
    })* };
}

wrapping!(i8 i16 i32 i64 u8 u16 u32 u64);

/// `C[m, n] += A[m, k] * B[k, n]`, all row-major.
pub fn matmul<T: Sums>(k: usize, n: usize, a: &[T], b: &[T], c: &mut [T]) {
    if k == 0 || n == 0 {
        return;
    }
    for (a, c) in a.chunks_exact(k).zip(c.chunks_exact_mut(n)) {
        for (&x, row) in a.iter().zip(b.chunks_exact(n)) {
            for (c, &b) in c.iter_mut().zip(row) {
                *c = c.plus_product(x, b);
            }
        }
    }
}

/// The part of an output row whose tap lies inside the input, and the first input element: `(first, end, from)`.
#[must_use]
pub fn valid(output: usize, input: usize, shift: usize, stride: usize, begin: usize) -> (usize, usize, usize) {
    let first = begin.saturating_sub(shift).div_ceil(stride).min(output);
    // o * stride + shift - begin < input
    let end = (input + begin).saturating_sub(shift).div_ceil(stride).min(output).max(first);
    (first, end, (first * stride + shift).saturating_sub(begin))
}

/// `Y += W * X` as a convolution; `y` holds what it is added to.
///
/// # Panics
/// A slice is shorter than the geometry says.
pub fn conv<T: Number>(g: &Geometry, x: &[T], w: &[T], y: &mut [T]) {
    let (cg, mg) = (g.channels / g.groups, g.filters / g.groups);
    let (rank, taps) = (g.input.len(), g.kernel.iter().product::<usize>());
    let (in_size, out_size) = (g.input.iter().product::<usize>(), g.output.iter().product::<usize>());
    if in_size == 0 || out_size == 0 {
        return;
    }
    let last = rank - 1;
    for (i, y) in y.chunks_exact_mut(out_size).enumerate() {
        let (n, m) = (i / g.filters, i % g.filters);
        for c in 0..cg {
            let x = &x[(n * g.channels + m / mg * cg + c) * in_size..][..in_size];
            let w = &w[(m * cg + c) * taps..][..taps];
            let mut tap = 0;
            for_each_index(&g.kernel, |k| {
                let weight = w[tap];
                tap += 1;
                let (first, end, from) =
                    valid(g.output[last], g.input[last], k[last] * g.dilation[last], g.stride[last], g.begin[last]);
                let mut row = 0;
                for_each_index(&g.output[..last], |o| {
                    let y = &mut y[row * g.output[last]..(row + 1) * g.output[last]];
                    row += 1;
                    let mut at = 0;
                    for d in 0..last {
                        let i = o[d] * g.stride[d] + k[d] * g.dilation[d];
                        if i < g.begin[d] || i - g.begin[d] >= g.input[d] {
                            return;
                        }
                        at = at * g.input[d] + i - g.begin[d];
                    }
                    let x = &x[at * g.input[last]..(at + 1) * g.input[last]];
                    if first < end {
                        for (y, &x) in y[first..end].iter_mut().zip(x[from..].iter().step_by(g.stride[last])) {
                            *y += weight * x;
                        }
                    }
                });
            });
        }
    }
}
