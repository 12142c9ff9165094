//! Matrix products of 32-bit floats: `C = A * B`, `B` packed once into panels of columns.

use super::micro::{Operands, Rows, Start, Tile};
use super::{Slots, for_each};

/// Length of the sums that are done in one go, so that a panel of `B` stays in the first cache levels.
const K_BLOCK: usize = 512;
/// Rows of `A` that share a block of `B`, so that they stay in the second level.
const M_BLOCK: usize = 192;

/// A matrix `[k, n]` in panels of [`Tile::columns`] columns, each `[k, columns]`, the last one filled up with zeros.
#[derive(Debug)]
pub struct PackedB {
    k: usize,
    n: usize,
    columns: usize,
    data: Vec<f32>,
}

impl PackedB {
    /// Packs a matrix whose element `[k, n]` lies at `k * k_stride + n * n_stride`.
    ///
    /// # Panics
    /// The slice is too short.
    #[must_use]
    pub fn new(b: &[f32], k: usize, n: usize, k_stride: usize, n_stride: usize) -> Self {
        let columns = Tile::best().columns;
        let n_panels = n.div_ceil(columns);
        let mut data = vec![0.0f32; n_panels * k * columns];
        if k > 0 {
            for (panel, out) in data.chunks_exact_mut(k * columns).enumerate() {
                let n0 = panel * columns;
                let width = columns.min(n - n0);
                if n_stride == 1 {
                    for (row, out) in out.chunks_exact_mut(columns).enumerate() {
                        let from = row * k_stride + n0;
                        out[..width].copy_from_slice(&b[from..from + width]);
                    }
                } else {
                    for j in 0..width {
                        let column = &b[(n0 + j) * n_stride..];
                        for (row, out) in out.chunks_exact_mut(columns).enumerate() {
                            out[j] = column[row * k_stride];
                        }
                    }
                }
            }
        }
        PackedB { k, n, columns, data }
    }

    /// Rows.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Init<'a> {
    /// Nothing.
    Zero,
    /// A value for each column.
    Columns(&'a [f32]),
    /// What the output holds.
    Output,
}

/// `C[m, n] = init + A[m, k] * B`, all row-major and without gaps.
///
/// # Panics
/// A slice is too short.
pub fn gemm(threads: usize, m: usize, a: &[f32], b: &PackedB, init: Init<'_>, c: &mut [f32]) {
    let (k, n) = (b.k, b.n);
    assert!(a.len() >= m * k && c.len() >= m * n, "operands are too short");
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        match init {
            Init::Zero => c[..m * n].fill(0.0),
            Init::Columns(bias) => c[..m * n].chunks_exact_mut(n).for_each(|row| row.copy_from_slice(&bias[..n])),
            Init::Output => {}
        }
        return;
    }
    if let Init::Columns(bias) = init {
        assert!(bias.len() >= n, "the bias is too short");
    }
    let n_panels = n.div_ceil(b.columns);
    let m_blocks = m.div_ceil(M_BLOCK);
    // Several threads share the panels when there are too few blocks of rows.
    let n_groups = if threads > 1 { (4 * threads).div_ceil(m_blocks).min(n_panels) } else { 1 };
    let out = Slots::new(c);
    for_each(threads, m_blocks * n_groups, |task| {
        let (mb, group) = (task / n_groups, task % n_groups);
        let rows = mb * M_BLOCK..m.min((mb + 1) * M_BLOCK);
        let panels = n_panels * group / n_groups..n_panels * (group + 1) / n_groups;
        block(rows, panels, a, b, init, &out);
    });
}

/// One block of rows times some panels.
fn block(
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
    a: &[f32],
    b: &PackedB,
    init: Init<'_>,
    out: &Slots<'_, f32>,
) {
    let tile = Tile::best();
    let (k, n, columns) = (b.k, b.n, b.columns);
    let row_panels = tile.panels(rows.len());
    let mut edge = vec![0.0f32; tile.rows * columns];
    for k0 in (0..k).step_by(K_BLOCK) {
        let length = K_BLOCK.min(k - k0);
        for panel in panels.clone() {
            let n0 = panel * columns;
            let width = columns.min(n - n0);
            let half = width <= columns / 2;
            let full = width == columns || width * 2 == columns;
            let packed = &b.data[(panel * k + k0) * columns..][..length * columns];
            for &(m0, height) in &row_panels {
                let m0 = rows.start + m0;
                let at = m0 * n + n0;
                let (target, stride) = if full { (out.at(at), n) } else { (edge.as_mut_ptr(), columns) };
                let start = match init {
                    _ if k0 > 0 => Start::Output,
                    Init::Output => Start::Output,
                    Init::Zero => Start::Zero,
                    Init::Columns(_) if !full => Start::Output,
                    Init::Columns(bias) => Start::PerColumn(bias[n0..].as_ptr()),
                };
                if !full && matches!(start, Start::Output) {
                    for i in 0..height {
                        let row = &mut edge[i * columns..][..width];
                        match init {
                            Init::Columns(bias) if k0 == 0 => row.copy_from_slice(&bias[n0..n0 + width]),
                            // SAFETY: tasks have disjoint rows and panels, and this part lives only here.
                            _ => row.copy_from_slice(unsafe { out.part(at + i * n, width) }),
                        }
                    }
                }
                let o = Operands {
                    k: length,
                    a: a[m0 * k + k0..].as_ptr(),
                    a_stride: k,
                    b: packed.as_ptr(),
                    rows: Rows::Every(columns),
                    c: target,
                    c_stride: stride,
                    start,
                    clamp: None,
                };
                // SAFETY: `a` holds rows of `k` values each, `height` of them from `m0` (checked by the caller); the
                // panel holds `length` rows of `columns`; a full tile lies inside the output, others go to `edge`,
                // which holds a whole tile; the bias holds `n` values. Tasks write disjoint tiles.
                unsafe { tile.run(height, half, &o) };
                if !full {
                    for i in 0..height {
                        // SAFETY: tasks have disjoint rows and panels, and this part lives only here.
                        let row = unsafe { out.part(at + i * n, width) };
                        row.copy_from_slice(&edge[i * columns..][..width]);
                    }
                }
            }
        }
    }
}

multiversion! {
    /// `y[n] = x[k] * B[k, n]` with `B` row-major: reads `B` once, in its order.
    ///
    /// # Panics
    /// A slice is too short.
    pub fn gemv(x: &[f32], b: &[f32], y: &mut [f32]) {
        let n = y.len();
        y.fill(0.0);
        if n == 0 {
            return;
        }
        let mut rows = b.chunks_exact(4 * n);
        let mut values = x.chunks_exact(4);
        for (x, rows) in values.by_ref().zip(rows.by_ref()) {
            let (r0, rest) = rows.split_at(n);
            let (r1, rest) = rest.split_at(n);
            let (r2, r3) = rest.split_at(n);
            for i in 0..n {
                y[i] += (x[0] * r0[i] + x[1] * r1[i]) + (x[2] * r2[i] + x[3] * r3[i]);
            }
        }
        for (x, row) in values.remainder().iter().zip(rows.remainder().chunks_exact(n)) {
            for i in 0..n {
                y[i] += x * row[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(m: usize, k: usize, n: usize, transposed: bool, init: usize, threads: usize) -> Vec<f32> {
        let a: Vec<f32> = (0..m * k).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
        let b: Vec<f32> = (0..k * n).map(|i| ((i * 5) % 13) as f32 - 6.0).collect();
        let bias: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let packed = if transposed { PackedB::new(&b, k, n, 1, k) } else { PackedB::new(&b, k, n, n, 1) };
        let mut c = vec![3.0f32; m * n];
        let start = [Init::Zero, Init::Columns(&bias), Init::Output][init];
        gemm(threads, m, &a, &packed, start, &mut c);
        for i in 0..m {
            for j in 0..n {
                let first = [0.0, bias[j], 3.0][init];
                let sum: f32 =
                    (0..k).map(|x| a[i * k + x] * if transposed { b[j * k + x] } else { b[x * n + j] }).sum();
                assert_eq!(c[i * n + j], first + sum, "{m} {k} {n} [{i}, {j}]");
            }
        }
        c
    }

    #[test]
    fn products_of_all_shapes_are_right_on_any_number_of_threads() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 70), (13, 600, 33), (200, 7, 16), (5, 0, 9), (25, 1100, 31)] {
            for init in 0..3 {
                for transposed in [false, true] {
                    let one = check(m, k, n, transposed, init, 1);
                    assert_eq!(one, check(m, k, n, transposed, init, 3));
                }
            }
        }
    }

    #[test]
    fn vector_times_matrix() {
        let x: Vec<f32> = (0..7).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..7 * 37).map(|i| (i % 9) as f32).collect();
        let mut y = vec![0.0; 37];
        gemv(&x, &b, &mut y);
        for (j, y) in y.iter().enumerate() {
            assert_eq!(*y, (0..7).map(|i| x[i] * b[i * 37 + j]).sum::<f32>());
        }
    }
}
