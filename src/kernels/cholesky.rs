//! Cholesky factors of symmetric positive definite matrices in 64-bit floats.

use super::{Slots, for_each};

/// Columns that are finished together.
const BLOCK: usize = 48;
/// Length of the sums that are done in one go, so that the block's rows stay in the second cache level.
const SUM: usize = 512;
/// Rows that are multiplied at once.
const ROWS: usize = 4;
/// Lanes that a sum is split into; also fixes the order of additions.
const LANES: usize = 8;

/// Replaces the lower triangle of a symmetric matrix `[n, n]` by `L` with `L Lᵀ` = matrix; what is above the diagonal is
/// left alone. Gives `false`, and leaves the matrix half done, when it is not positive definite.
///
/// # Panics
/// The slice is shorter than `n * n`.
#[must_use]
pub fn cholesky(threads: usize, n: usize, a: &mut [f64]) -> bool {
    assert!(a.len() >= n * n, "the matrix is too short");
    let mut top = vec![0.0; BLOCK * n];
    for first in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - first);
        // The block's own rows are read by every task, so they are copied.
        for (i, row) in top.chunks_exact_mut(n).take(width).enumerate() {
            row[..first].copy_from_slice(&a[(first + i) * n..][..first]);
        }
        let rows = &mut a[first * n..n * n];
        let slots = Slots::new(rows);
        let groups = (n - first).div_ceil(ROWS);
        for_each(threads, groups, |group| {
            let count = ROWS.min(n - first - group * ROWS);
            // SAFETY: each group of rows is one task.
            let part = unsafe { slots.part(group * ROWS * n, count * n) };
            subtract_products(part, &top, n, first, width);
        });
        if !finish_diagonal(&mut a[first * n..], n, first, width) {
            return false;
        }
        for (i, row) in top.chunks_exact_mut(n).take(width).enumerate() {
            row[first..first + width].copy_from_slice(&a[(first + i) * n + first..][..width]);
        }
        let below = &mut a[(first + width) * n..n * n];
        super::for_each_chunk(threads, below, n * ROWS, &|_, rows| {
            for row in rows.chunks_exact_mut(n) {
                solve(row, &top, n, first, width);
            }
        });
    }
    true
}

multiversion! {
    /// `rows[i, first + j] -= rows[i, ..first] · top[j, ..first]` for every row and every column of the block.
    fn subtract_products(rows: &mut [f64], top: &[f64], n: usize, first: usize, width: usize) {
        for k in (0..first).step_by(SUM) {
            let length = SUM.min(first - k);
            for j in (0..width).step_by(2) {
                let both = j + 1 < width;
                let (t0, t1) = (&top[j * n + k..][..length], &top[if both { j + 1 } else { j } * n + k..][..length]);
                for row in rows.chunks_exact_mut(n) {
                    let (mut s0, mut s1) = ([0.0f64; LANES], [0.0f64; LANES]);
                    let x = &row[k..k + length];
                    let (mut x8, mut t08, mut t18) =
                        (x.chunks_exact(LANES), t0.chunks_exact(LANES), t1.chunks_exact(LANES));
                    for ((x, t0), t1) in x8.by_ref().zip(t08.by_ref()).zip(t18.by_ref()) {
                        for l in 0..LANES {
                            s0[l] += x[l] * t0[l];
                            s1[l] += x[l] * t1[l];
                        }
                    }
                    let (mut sum0, mut sum1) = (s0.iter().sum::<f64>(), s1.iter().sum::<f64>());
                    for ((x, t0), t1) in x8.remainder().iter().zip(t08.remainder()).zip(t18.remainder()) {
                        sum0 += x * t0;
                        sum1 += x * t1;
                    }
                    row[first + j] -= sum0;
                    if both {
                        row[first + j + 1] -= sum1;
                    }
                }
            }
        }
    }
}

/// The factor of the block on the diagonal, whose rows start at `a`; `false` when a pivot is not positive.
fn finish_diagonal(a: &mut [f64], n: usize, first: usize, width: usize) -> bool {
    for i in 0..width {
        let (above, row) = a.split_at_mut(i * n);
        for j in 0..i {
            let other = &above[j * n + first..];
            let sum: f64 = (0..j).map(|l| row[first + l] * other[l]).sum();
            row[first + j] = (row[first + j] - sum) / other[j];
        }
        let pivot = row[first + i] - row[first..first + i].iter().map(|x| x * x).sum::<f64>();
        if !(pivot > 0.0 && pivot.is_finite()) {
            return false;
        }
        row[first + i] = pivot.sqrt();
    }
    true
}

/// One row below the block: forward substitution with the block's factor in `top`.
fn solve(row: &mut [f64], top: &[f64], n: usize, first: usize, width: usize) {
    for j in 0..width {
        let other = &top[j * n + first..];
        let sum: f64 = (0..j).map(|l| row[first + l] * other[l]).sum();
        row[first + j] = (row[first + j] - sum) / other[j];
    }
}

multiversion! {
    /// `y[r] = row · x[r]` for as many rows `x[r, stride]` as `y` has; every sum has the length of `row`.
    ///
    /// # Panics
    /// A slice is too short.
    pub fn dots(row: &[f64], x: &[f64], stride: usize, y: &mut [f64]) {
        let length = row.len();
        for (r, y) in y.iter_mut().enumerate() {
            let x = &x[r * stride..][..length];
            let mut sums = [0.0f64; LANES];
            let (mut a8, mut x8) = (row.chunks_exact(LANES), x.chunks_exact(LANES));
            for (a, x) in a8.by_ref().zip(x8.by_ref()) {
                for l in 0..LANES {
                    sums[l] += a[l] * x[l];
                }
            }
            let rest: f64 = a8.remainder().iter().zip(x8.remainder()).map(|(a, x)| a * x).sum();
            *y = sums.iter().sum::<f64>() + rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A positive definite matrix from a fixed formula.
    fn matrix(n: usize) -> Vec<f64> {
        let x: Vec<f64> = (0..n * n).map(|i| ((i * 7919 + 13) % 101) as f64 / 50.0 - 1.0).collect();
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                a[i * n + j] = (0..n).map(|k| x[i * n + k] * x[j * n + k]).sum::<f64>();
            }
            a[i * n + i] += 0.5;
        }
        a
    }

    #[test]
    fn factor_times_its_transpose_is_the_matrix() {
        for n in [1, 2, 7, 48, 49, 131, 600] {
            let a = matrix(n);
            let mut l = a.clone();
            assert!(cholesky(1, n, &mut l), "{n}");
            for i in (0..n).step_by(1 + n / 40) {
                for j in 0..=i {
                    let sum: f64 = (0..=j).map(|k| l[i * n + k] * l[j * n + k]).sum();
                    assert!((sum - a[i * n + j]).abs() < 1e-9 * n as f64, "{n} [{i}, {j}]: {sum} {}", a[i * n + j]);
                }
            }
            let mut other = a.clone();
            assert!(cholesky(3, n, &mut other));
            assert!(l == other, "{n}: another number of threads gives other bits");
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_refused() {
        assert!(!cholesky(1, 2, &mut [1.0, 2.0, 2.0, 1.0]));
        assert!(!cholesky(1, 2, &mut [1.0, 0.0, 0.0, 0.0]));
        assert!(!cholesky(1, 1, &mut [f64::NAN]));
        assert!(cholesky(1, 0, &mut []));
    }

    #[test]
    fn dots_of_every_length() {
        for n in 0..20 {
            let x: Vec<f64> = (0..3 * 20).map(f64::from).collect();
            let mut y = [0.0; 3];
            dots(&x[..n], &x, 20, &mut y);
            for (r, y) in y.iter().enumerate() {
                assert_eq!(*y, (0..n).map(|i| x[i] * x[r * 20 + i]).sum::<f64>());
            }
        }
    }
}
