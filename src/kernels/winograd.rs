//! Convolution with kernels of 3 by 3 and stride 1 in a quarter of the multiplications: F(4x4, 3x3) of A. Lavin and S. Gray,
//! "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), after S. Winograd.
//!
//! Tiles of 4 by 4 outputs are made from 6 by 6 inputs `d` and the filter `g` as `Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`, where the
//! product in the middle, summed over channels, is 36 products of matrices: [`super::micro`] does them. Tiles lie side by side in the
//! columns of these matrices, so that the transforms work on vectors of tiles: rows of the input are split by the
//! column's place in its tile, and rows of the output are put together again.
//!
//! The polynomials are taken at 0, ±3/4, ±3/2 and infinity, where they lose a quarter of what they lose at the paper's 0, ±1, ±2
//! (B. Barabasz and others, "Error Analysis and Improving the Accuracy of Winograd Convolution", 2020): some 1e-6 of the largest
//! output, a few times what a direct convolution loses. That is for floats that stand for themselves, not for integers that
//! have to be exact.

use std::sync::atomic::{AtomicBool, Ordering};

use super::conv::{Geometry, Then};
use super::micro::{Operands, Rows, Start, Tile};
use super::{Isa, Slots, for_each};
use crate::tensor::{buffer, keep};

/// Outputs of a tile in each direction.
const OUT: usize = 4;
/// Inputs of a tile in each direction.
const IN: usize = 6;
/// Products of matrices.
const POINTS: usize = IN * IN;
/// Tiles of a vector in the transforms, at most.
const N: usize = 16;
/// Where polynomials are taken beside 0 and infinity: at these and at their negatives.
const P: [f32; 2] = [0.75, 1.5];
/// Their squares.
const P2: [f32; 2] = [P[0] * P[0], P[1] * P[1]];
/// Tiles that are worked on together, about: what they take has to stay in the second or third cache level.
const BLOCK: usize = 128;
/// Filters whose sums are transformed together, about.
const FILTERS: usize = 48;
/// Channels, and filters, from which on it pays.
const LEAST_CHANNELS: usize = 16;
/// Pairs of channel and filter beyond which the filters, four times as large as they were, take too much memory.
const MOST_PAIRS: usize = 1 << 17;
/// Multiplications of a direct convolution that one of these must replace to pay: the transforms take time, too.
const LEAST_SAVED: f64 = 1.6;

/// Elements of the filters that [`transformed`] makes; 0 where this way is not gone whatever the size of the input.
pub(super) fn size(channels: usize, filters: usize) -> usize {
    let pairs = channels.saturating_mul(filters);
    if channels.min(filters) >= LEAST_CHANNELS && pairs <= MOST_PAIRS { POINTS * pairs } else { 0 }
}

/// Whether this way is faster.
pub(super) fn pays(g: &Geometry) -> bool {
    if Isa::get() == Isa::Base {
        return false;
    }
    if g.groups != 1 || g.kernel != [3, 3] || g.stride != [1, 1] || g.dilation != [1, 1] {
        return false;
    }
    let blocks = Blocks::new(g);
    let tiles = blocks.n * blocks.width.next_multiple_of(Tile::best().columns / 2);
    size(g.channels, g.filters) > 0 && (9 * g.output[0] * g.output[1]) as f64 > LEAST_SAVED * (POINTS * tiles) as f64
}

/// The tiles of an image in blocks: some rows of tiles, or a part of one row.
struct Blocks {
    /// Tiles in each direction.
    tiles: [usize; 2],
    /// Rows of tiles of a block.
    rows: usize,
    /// Parts of a row.
    parts: usize,
    /// Blocks.
    n: usize,
    /// Tiles of a block at most.
    width: usize,
}

impl Blocks {
    fn new(g: &Geometry) -> Self {
        let tiles = [g.output[0].div_ceil(OUT), g.output[1].div_ceil(OUT)];
        let parts = tiles[1].div_ceil(BLOCK).max(1);
        let most = (BLOCK / tiles[1].max(1)).clamp(1, tiles[0].max(1));
        let rows = tiles[0].div_ceil(tiles[0].div_ceil(most).max(1)).max(1);
        Blocks {
            tiles,
            rows,
            parts,
            n: parts * tiles[0].div_ceil(rows),
            width: if parts > 1 { tiles[1].div_ceil(parts) } else { rows * tiles[1] },
        }
    }

    fn block(&self, i: usize) -> Block {
        let (row, part) = (i / self.parts * self.rows, i % self.parts);
        let [height, width] = self.tiles;
        let (from, to) = (width * part / self.parts, width * (part + 1) / self.parts);
        Block { row, rows: self.rows.min(height - row), column: from, columns: to - from }
    }
}

/// Tiles: where the first one lies, and how many there are in each direction.
struct Block {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

/// `G g Gᵀ` of each filter and channel, `[36, panel, channels, height]`. `weight` gives the nine of a filter and channel.
pub(super) fn transformed(
    threads: usize,
    g: &Geometry,
    panels: &[(usize, usize)],
    weight: &(dyn Fn(usize, usize) -> [f32; 9] + Sync),
) -> Vec<f32> {
    fn column([a, b, c]: [f64; 3]) -> [f64; IN] {
        let [p, q] = P.map(f64::from);
        let at = |x: f64, over: f64| (a + b * x + c * x * x) / over;
        let (of_p, of_q) = (2.0 * p * p * (p * p - q * q), 2.0 * q * q * (q * q - p * p));
        [a / (p * p * q * q), at(p, of_p), at(-p, of_p), at(q, of_q), at(-q, of_q), c]
    }
    let (channels, filters) = (g.channels, g.filters);
    let mut out = vec![0.0f32; size(channels, filters)];
    let slots = Slots::new(&mut out);
    for_each(threads, panels.len(), |i| {
        let (start, height) = panels[i];
        // SAFETY: the panels have different filters.
        let parts: [_; IN * IN] =
            std::array::from_fn(|at| unsafe { slots.part((at * filters + start) * channels, height * channels) });
        for c in 0..channels {
            for m in 0..height {
                let w = weight(start + m, c).map(f64::from);
                let across: [[f64; IN]; 3] = std::array::from_fn(|i| column([w[3 * i], w[3 * i + 1], w[3 * i + 2]]));
                for v in 0..IN {
                    for (u, x) in column([across[0][v], across[1][v], across[2][v]]).into_iter().enumerate() {
                        parts[u * IN + v][c * height + m] = x as f32;
                    }
                }
            }
        }
    });
    out
}

/// The convolution with filters that [`transformed`] made. Whether all is finite: where something is not, a tile's outputs
/// are not what the formula says, and `then` was not done.
#[must_use]
pub(super) fn conv(
    threads: usize,
    g: &Geometry,
    x: &[f32],
    (panels, filters): (&[(usize, usize)], &[f32]),
    bias: Option<&[f32]>,
    y: &mut [f32],
    then: Then<'_>,
) -> bool {
    let blocks = Blocks::new(g);
    let out = Slots::new(y);
    let strange = AtomicBool::new(false);
    let (in_size, out_size) = (g.input[0] * g.input[1], g.output[0] * g.output[1]);
    for_each(threads, g.batch * blocks.n, |i| {
        let n = i / blocks.n;
        let job = Job {
            g,
            x: &x[n * g.channels * in_size..(n + 1) * g.channels * in_size],
            panels,
            filters,
            bias,
            y: n * g.filters * out_size,
            out: &out,
            then,
            block: blocks.block(i % blocks.n),
        };
        if !job.run() {
            strange.store(true, Ordering::Relaxed);
        }
    });
    !strange.into_inner()
}

/// A block of an image.
struct Job<'a> {
    g: &'a Geometry,
    x: &'a [f32],
    panels: &'a [(usize, usize)],
    filters: &'a [f32],
    bias: Option<&'a [f32]>,
    y: usize,
    out: &'a Slots<'a, f32>,
    then: Then<'a>,
    block: Block,
}

impl Job<'_> {
    fn run(&self) -> bool {
        let tile = Tile::best();
        let (channels, b) = (self.g.channels, &self.block);
        let tiles = b.rows * b.columns;
        // A vector behind the last tile is written, and another row starts where caches do not collide.
        let pitch = (tiles + N).next_multiple_of(tile.columns) + N;
        let mut inputs = buffer(POINTS * channels * pitch);
        self.inputs(&mut inputs, pitch);
        let highest = self.panels.iter().map(|p| p.1).max().unwrap_or(1);
        let together = (FILTERS / highest).max(1);
        let mut sums = buffer(POINTS * together * highest * pitch);
        let mut is_finite = true;
        for panels in self.panels.chunks(together) {
            let first = panels[0].0;
            let rows: usize = panels.iter().map(|p| p.1).sum();
            for point in 0..POINTS {
                for &(m0, height) in panels {
                    for t in (0..tiles).step_by(tile.columns) {
                        let o = Operands {
                            k: channels,
                            a: self.filters[(point * self.g.filters + m0) * channels..].as_ptr(),
                            a_stride: 0,
                            b: inputs[point * channels * pitch + t..].as_ptr(),
                            rows: Rows::Every(pitch),
                            c: sums[(point * rows + m0 - first) * pitch + t..].as_mut_ptr(),
                            c_stride: pitch,
                            start: Start::Zero,
                            clamp: None,
                        };
                        // SAFETY: a panel holds `channels` rows of `height` filters; the inputs of a point are
                        // `channels` rows and its sums `rows` rows of `pitch`, which is a multiple of the tile's
                        // columns and more.
                        unsafe { tile.run(height, tiles - t <= tile.columns / 2, &o) };
                    }
                }
            }
            is_finite &= self.outputs(&sums, rows, first, pitch);
        }
        keep(inputs);
        keep(sums);
        is_finite
    }

    /// `Bᵀ d B` of every tile, `[36, channels, pitch]`.
    fn inputs(&self, to: &mut [f32], pitch: usize) {
        let (g, b) = (self.g, &self.block);
        let [height, width] = [g.input[0], g.input[1]];
        let rows = OUT * b.rows + 2;
        // Columns of a row by their place in a tile; the last two of a tile are the first of the next.
        let length = b.columns + 1;
        let phase = length + N;
        let mut line = vec![0.0f32; OUT * length];
        let mut split = vec![0.0f32; rows * OUT * phase];
        let left = (OUT * b.column) as isize - g.begin[1] as isize;
        let from = left.max(0).min(width as isize) as usize;
        let to_column = (left + (OUT * length) as isize).clamp(from as isize, width as isize) as usize;
        let at = (from as isize - left) as usize;
        for c in 0..g.channels {
            let channel = &self.x[c * height * width..][..height * width];
            for r in 0..rows {
                let split = &mut split[r * OUT * phase..][..OUT * phase];
                let row = (OUT * b.row + r).checked_sub(g.begin[0]).filter(|&i| i < height);
                let Some(row) = row else {
                    split.fill(0.0);
                    continue;
                };
                // What lies beside the input stays 0.
                line[at..at + to_column - from].copy_from_slice(&channel[row * width + from..row * width + to_column]);
                split_line(&line, phase, split);
            }
            let to = &mut to[c * pitch..];
            for r in 0..b.rows {
                let split = &split[r * OUT * OUT * phase..][..IN * OUT * phase];
                transform_in(split, phase, b.columns, &mut to[r * b.columns..], g.channels * pitch);
            }
        }
    }

    /// Writes `Aᵀ s A` of the sums `[36, rows, pitch]` of some filters, `first` and following; whether all is finite.
    fn outputs(&self, sums: &[f32], rows: usize, first: usize, pitch: usize) -> bool {
        let (g, b) = (self.g, &self.block);
        let [height, width] = [g.output[0], g.output[1]];
        let phase = b.columns + N;
        let mut split = vec![0.0f32; OUT * OUT * phase];
        let mut line = vec![0.0f32; OUT * b.columns];
        let column = OUT * b.column;
        let n = (OUT * b.columns).min(width - column);
        let mut largest = 0u32;
        for m in 0..rows {
            let bias = self.bias.map_or(0.0, |b| b[first + m]);
            for r in 0..b.rows {
                transform_out(&sums[m * pitch + r * b.columns..], rows * pitch, phase, b.columns, &mut split);
                for i in 0..OUT {
                    let row = OUT * (b.row + r) + i;
                    if row >= height {
                        break;
                    }
                    join_line(&split[i * OUT * phase..][..OUT * phase], phase, bias, &mut line, &mut largest);
                    let at = self.y + ((first + m) * height + row) * width + column;
                    // SAFETY: the tiles of this block and these filters, which no other task has.
                    let to = unsafe { self.out.part(at, n) };
                    to.copy_from_slice(&line[..n]);
                    self.then.apply(to);
                }
            }
        }
        largest < f32::INFINITY.to_bits()
    }
}

multiversion! {
    /// Splits a row into the columns with each place in a tile, `[4, phase]`.
    fn split_line(line: &[f32], phase: usize, to: &mut [f32]) {
        let line = line.as_chunks::<OUT>().0;
        let n = line.len();
        let (a, rest) = to.split_at_mut(phase);
        let (b, rest) = rest.split_at_mut(phase);
        let (c, d) = rest.split_at_mut(phase);
        let (a, b, c, d) = (&mut a[..n], &mut b[..n], &mut c[..n], &mut d[..n]);
        for i in 0..n {
            [a[i], b[i], c[i], d[i]] = line[i];
        }
    }
}

multiversion! {
    /// Puts a row together again, adds the bias, and raises `largest` to the bits of the largest magnitude.
    fn join_line(from: &[f32], phase: usize, bias: f32, line: &mut [f32], largest: &mut u32) {
        let line = line.as_chunks_mut::<OUT>().0;
        let n = line.len();
        let row = |i: usize| &from[i * phase..][..n];
        let (a, b, c, d) = (row(0), row(1), row(2), row(3));
        for i in 0..n {
            line[i] = [a[i] + bias, b[i] + bias, c[i] + bias, d[i] + bias];
        }
        *largest = line.as_flattened().iter().fold(*largest, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
    }
}

/// The transforms of a row of tiles.
mod x86 {
    use std::arch::x86_64::{__m256, __m512};

    use super::super::lanes::Lanes;
    use super::{IN, OUT, P, P2};

    /// `Bᵀ d`.
    ///
    /// # Safety
    /// As for [`Lanes`]. So for all functions here.
    #[inline(always)]
    unsafe fn columns_in<L: Lanes>([d0, d1, d2, d3, d4, d5]: [L; IN]) -> [L; IN] {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (d2.mul_add(L::splat(-P2[1]), d4), d1.mul_add(L::splat(-P2[1]), d3));
            let (c, d) = (d2.mul_add(L::splat(-P2[0]), d4), d1.mul_add(L::splat(-P2[0]), d3));
            let (product, sum) = (L::splat(P2[0] * P2[1]), L::splat(-P2[0] - P2[1]));
            [
                d0.mul_add(product, d2.mul_add(sum, d4)),
                b.mul_add(L::splat(P[0]), a),
                b.mul_add(L::splat(-P[0]), a),
                d.mul_add(L::splat(P[1]), c),
                d.mul_add(L::splat(-P[1]), c),
                d1.mul_add(product, d3.mul_add(sum, d5)),
            ]
        }
    }

    /// `Aᵀ s`.
    #[inline(always)]
    unsafe fn columns_out<L: Lanes>([s0, s1, s2, s3, s4, s5]: [L; IN]) -> [L; OUT] {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (s1.add(s2), s1.sub(s2));
            let (c, d) = (s3.add(s4), s3.sub(s4));
            let zero = L::splat(0.0);
            let both = |x: L, y: L, power: i32, or: L| {
                x.mul_add(L::splat(P[0].powi(power)), y.mul_add(L::splat(P[1].powi(power)), or))
            };
            [s0.add(a).add(c), both(b, d, 1, zero), both(a, c, 2, zero), both(b, d, 3, s5)]
        }
    }

    #[inline(always)]
    unsafe fn inputs<L: Lanes>(from: *const f32, phase: usize, tiles: usize, to: *mut f32, step: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            for t in (0..tiles).step_by(L::N) {
                let mut rows = [[L::splat(0.0); IN]; IN];
                for (r, to) in rows.iter_mut().enumerate() {
                    let row = from.add(r * OUT * phase + t);
                    let at = |s: usize| L::load(row.add(s % OUT * phase + s / OUT));
                    *to = columns_in([at(0), at(1), at(2), at(3), at(4), at(5)]);
                }
                for v in 0..IN {
                    let r = |i: usize| rows[i][v];
                    let column = columns_in([r(0), r(1), r(2), r(3), r(4), r(5)]);
                    for u in 0..IN {
                        column[u].store(to.add((u * IN + v) * step + t));
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn outputs<L: Lanes>(from: *const f32, step: usize, phase: usize, tiles: usize, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            for t in (0..tiles).step_by(L::N) {
                let mut columns = [[L::splat(0.0); OUT]; IN];
                for (v, to) in columns.iter_mut().enumerate() {
                    let at = |u: usize| L::load(from.add((u * IN + v) * step + t));
                    *to = columns_out([at(0), at(1), at(2), at(3), at(4), at(5)]);
                }
                for i in 0..OUT {
                    let c = |v: usize| columns[v][i];
                    let row = columns_out([c(0), c(1), c(2), c(3), c(4), c(5)]);
                    for p in 0..OUT {
                        row[p].store(to.add((i * OUT + p) * phase + t));
                    }
                }
            }
        }
    }

    macro_rules! versions {
        ($f:ident, $avx512:ident, $avx2:ident, ($($arg:ident: $ty:ty),*)) => {
            #[target_feature(enable = "avx512f")]
            pub(super) unsafe fn $avx512($($arg: $ty),*) {
                // SAFETY: the caller's promise.
                unsafe { $f::<__m512>($($arg),*) }
            }
            #[target_feature(enable = "avx2,fma")]
            pub(super) unsafe fn $avx2($($arg: $ty),*) {
                // SAFETY: the caller's promise.
                unsafe { $f::<__m256>($($arg),*) }
            }
        };
    }
    versions!(inputs, inputs512, inputs256, (from: *const f32, phase: usize, tiles: usize, to: *mut f32, step: usize));
    versions!(outputs, outputs512, outputs256, (from: *const f32, step: usize, phase: usize, tiles: usize, to: *mut f32));
}

/// `Bᵀ d B` of a row of tiles, from six rows `[6, 4, phase]`, to places `step` apart.
fn transform_in(from: &[f32], phase: usize, tiles: usize, to: &mut [f32], step: usize) {
    assert!(phase > tiles + N && from.len() >= IN * OUT * phase && to.len() >= (POINTS - 1) * step + tiles + N);
    // SAFETY: the processor has the instructions; a vector that starts before the last tile's end lies inside, by the check.
    unsafe {
        match Isa::get() {
            Isa::Avx512 => x86::inputs512(from.as_ptr(), phase, tiles, to.as_mut_ptr(), step),
            _ => x86::inputs256(from.as_ptr(), phase, tiles, to.as_mut_ptr(), step),
        }
    }
}

/// `Aᵀ s A` of a row of tiles, from places `step` apart, to four rows `[4, 4, phase]`.
fn transform_out(from: &[f32], step: usize, phase: usize, tiles: usize, to: &mut [f32]) {
    assert!(phase >= tiles + N && to.len() >= OUT * OUT * phase && from.len() >= (POINTS - 1) * step + tiles + N);
    // SAFETY: as in `transform_in`.
    unsafe {
        match Isa::get() {
            Isa::Avx512 => x86::outputs512(from.as_ptr(), step, phase, tiles, to.as_mut_ptr()),
            _ => x86::outputs256(from.as_ptr(), step, phase, tiles, to.as_mut_ptr()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conv::{Filters, conv_then};
    use super::*;

    fn geometry(channels: usize, filters: usize, input: [usize; 2], begin: usize, end: usize) -> Geometry {
        Geometry {
            batch: 2,
            channels,
            filters,
            groups: 1,
            input: input.to_vec(),
            output: input.map(|i| i + begin + end - 2).to_vec(),
            kernel: vec![3, 3],
            stride: vec![1, 1],
            dilation: vec![1, 1],
            begin: vec![begin, begin],
        }
    }

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn agrees_with_the_direct_convolution() {
        // Whole and cut tiles, padding on both sides or none, rows of more tiles than a block, blocks of several rows,
        // filters in more than one chunk.
        let cases = [
            geometry(16, 16, [24, 32], 1, 1),
            geometry(17, 100, [25, 31], 1, 1),
            geometry(16, 19, [38, 35], 0, 0),
            geometry(20, 16, [30, 30], 2, 0),
            geometry(16, 18, [9, 700], 1, 1),
        ];
        for g in cases {
            let (x, w) = (numbers(2 * g.channels * g.input[0] * g.input[1], 1), numbers(g.filters * g.k(), 2));
            let bias = numbers(g.filters, 3);
            let (direct, fast) = (Filters::new(&w, &g), Filters::new(&w, &g).in_any_order());
            let relu = |v: &mut [f32]| v.iter_mut().for_each(|x| *x = x.max(0.0));
            let mut most = 0.0f32;
            for then in [Then::Nothing, Then::Clamp(-0.5, 1.0), Then::Each(&relu)] {
                let run = |threads: usize, filters: &Filters| {
                    let mut y = vec![9.0; 2 * g.filters * g.output[0] * g.output[1]];
                    conv_then(threads, &g, &x, filters, Some(&bias), &mut y, then);
                    y
                };
                let (expected, found) = (run(1, &direct), run(1, &fast));
                // Of the sums before they are bounded.
                most = expected.iter().fold(most, |most, y| most.max(y.abs()));
                for (a, b) in expected.iter().zip(&found) {
                    assert!((a - b).abs() < 4e-6 * most, "{g:?}: {a} {b} of {most}");
                }
                // Sums in another order differ somewhere, if that was the way.
                assert_eq!(pays(&g), expected != found, "{g:?}");
                assert_eq!(run(3, &fast), found, "on three threads: {g:?}");
            }
            assert_eq!(pays(&g), Isa::get() != Isa::Base, "{g:?}");
        }
    }

    #[test]
    fn infinities_stay_where_they_are() {
        let g = geometry(16, 16, [24, 32], 1, 1);
        let w = numbers(16 * g.k(), 2);
        for strange in [f32::INFINITY, f32::NAN, 3e38] {
            let mut x = numbers(2 * 16 * 24 * 32, 1);
            x[32 * 5 + 7] = strange;
            let [direct, fast] = [Filters::new(&w, &g), Filters::new(&w, &g).in_any_order()].map(|filters| {
                let mut y = vec![0.0; 2 * 16 * 24 * 32];
                conv_then(1, &g, &x, &filters, None, &mut y, Then::Nothing);
                y.iter().filter(|y| !y.is_finite()).count()
            });
            assert_eq!(direct, fast, "{strange}");
            assert!(strange == 3e38 || direct == 9 * 16, "{direct}");
        }
    }

    #[test]
    fn other_convolutions_do_not_go_this_way() {
        let good = geometry(16, 16, [24, 32], 1, 1);
        let cases = [
            Geometry { groups: 2, ..good.clone() },
            Geometry { kernel: vec![1, 3], ..good.clone() },
            Geometry { stride: vec![2, 1], ..good.clone() },
            Geometry { dilation: vec![1, 2], ..good.clone() },
            Geometry { channels: 3, ..good.clone() },
            // One tile of sixteen that a vector holds.
            geometry(64, 64, [3, 3], 1, 1),
            // Filters of 150 MB.
            geometry(1024, 1024, [24, 32], 1, 1),
        ];
        for g in cases {
            assert!(!pays(&g), "{g:?}");
        }
    }
}
