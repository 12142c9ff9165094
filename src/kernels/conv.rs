//! Convolution of 32-bit floats in any number of spatial dimensions.
//!
//! The filters are packed once into interleaved panels. The input of one image and group is copied once into a padded
//! buffer that is split by the phase of the stride, so that every tap of the kernel reads a shifted, contiguous run:
//! the tile of [`super::micro`] takes the places from a table of offsets and no im2col matrix exists. Outputs are
//! computed on the grid of padded rows, and the few columns between rows are dropped when a tile is stored. A kernel
//! of size 1 with stride 1 reads the input itself.

use std::ops::Range;

use super::micro::{Operands, Rows, Start, Tile};
use super::{Slots, depthwise, for_each, for_each_chunk};
use crate::tensor::{buffer, keep};

/// Bytes of filters that stay in the second cache level while all columns pass by.
const FILTER_BLOCK: usize = 320 << 10;
/// Bytes of outputs that are still in the second level when a stretch of columns is over.
const OUTPUT_BLOCK: usize = 128 << 10;
/// Bytes of columns at most that are copied together for all blocks of filters at once.
const COLUMN_BLOCK: usize = 8 << 20;
/// Longest sum that is done in one go, so that what a tile's columns read stays in the first levels.
const K_BLOCK: usize = 640;

/// Sizes of a convolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Images.
    pub batch: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Channels of the output.
    pub filters: usize,
    /// Groups of channels.
    pub groups: usize,
    /// Spatial sizes of the input.
    pub input: Vec<usize>,
    /// Spatial sizes of the output.
    pub output: Vec<usize>,
    /// Spatial sizes of the kernel.
    pub kernel: Vec<usize>,
    /// Strides.
    pub stride: Vec<usize>,
    /// Dilations.
    pub dilation: Vec<usize>,
    /// Padding in front of each spatial dimension.
    pub begin: Vec<usize>,
}

impl Geometry {
    /// Length of the sum for one output element.
    #[must_use]
    pub fn k(&self) -> usize {
        self.channels / self.groups * self.kernel.iter().product::<usize>()
    }
}

/// Filters, packed for this processor.
#[derive(Debug)]
pub struct Filters {
    k: usize,
    per_group: usize,
    panels: Vec<(usize, usize)>,
    /// Panels, or, when there is one channel a group, the filters as they come.
    data: Vec<f32>,
    depthwise: bool,
}

impl Filters {
    /// Packs filters `[filters, channels / groups, kernel…]`. Of `g`, the sizes of images do not matter.
    ///
    /// # Panics
    /// The slice has another length.
    #[must_use]
    pub fn new(w: &[f32], g: &Geometry) -> Self {
        if g.channels == g.groups && g.filters / g.groups < 4 {
            assert_eq!(w.len(), g.filters * g.k(), "length of the filters");
            let (k, per_group) = (g.k(), g.filters / g.groups);
            return Filters { k, per_group, panels: Vec::new(), data: w.to_vec(), depthwise: true };
        }
        Self::of_matrix(w, g.groups, g.filters / g.groups, g.k())
    }

    /// Packs `groups` matrices `[per_group, k]`.
    ///
    /// # Panics
    /// The slice has another length.
    #[must_use]
    pub fn of_matrix(w: &[f32], groups: usize, per_group: usize, k: usize) -> Self {
        assert_eq!(w.len(), groups * per_group * k, "length of the filters");
        let panels = Tile::best().panels(per_group);
        let mut data = vec![0.0f32; w.len()];
        for g in 0..groups {
            for &(start, height) in &panels {
                let at = (g * per_group + start) * k;
                let (from, to) = (&w[at..at + height * k], &mut data[at..at + height * k]);
                for (m, row) in from.chunks_exact(k.max(1)).enumerate() {
                    for (i, &x) in row.iter().enumerate() {
                        to[i * height + m] = x;
                    }
                }
            }
        }
        Filters { k, per_group, panels, data, depthwise: false }
    }
}

/// Where the taps of a convolution lie in the padded buffer.
pub(super) struct Layout {
    /// Whether the input is read as it is.
    direct: bool,
    /// For each `k`, its offset.
    pub(super) offsets: Vec<u32>,
    /// For each spatial dimension, the phases of the stride that some tap reads.
    phases: Vec<Vec<usize>>,
    /// Elements of a row, of a plane … of one phase, innermost last.
    pitch: Vec<usize>,
    /// Rows of each spatial dimension (all but the last).
    extent: Vec<usize>,
    /// Elements of one phase of one channel.
    phase_size: usize,
    /// Elements of one channel.
    channel_size: usize,
    /// Elements of the padded buffer.
    pub(super) size: usize,
    /// Starts of planes (dimensions before the last two) in the buffer.
    pub(super) planes: Vec<usize>,
    /// Rows of output in a plane and their length.
    pub(super) grid: (usize, usize),
    /// Distance of the grid's rows.
    pub(super) grid_pitch: usize,
}

impl Layout {
    /// The layout for tiles that read `columns` columns at once.
    pub(super) fn new(g: &Geometry, columns: usize) -> Self {
        let rank = g.input.len();
        let per_group = g.channels / g.groups;
        let direct = g.kernel.iter().all(|&k| k == 1)
            && g.stride.iter().all(|&s| s == 1)
            && g.begin.iter().all(|&b| b == 0)
            && g.input == g.output;
        if direct {
            let size: usize = g.input.iter().product();
            return Layout {
                direct,
                offsets: (0..per_group).map(|c| (c * size) as u32).collect(),
                phases: Vec::new(),
                pitch: Vec::new(),
                extent: Vec::new(),
                phase_size: size,
                channel_size: size,
                size: per_group * size,
                planes: vec![0],
                grid: (1, size),
                grid_pitch: size,
            };
        }
        let phases: Vec<Vec<usize>> = (0..rank)
            .map(|d| {
                let mut v: Vec<usize> = (0..g.kernel[d]).map(|t| t * g.dilation[d] % g.stride[d]).collect();
                v.sort_unstable();
                v.dedup();
                v
            })
            .collect();
        let need = |d: usize| (g.output[d] - 1) * g.stride[d] + (g.kernel[d] - 1) * g.dilation[d] + 1;
        let mut extent: Vec<usize> = (0..rank).map(|d| need(d).div_ceil(g.stride[d])).collect();
        let last = rank - 1;
        let mut slack = columns;
        if g.stride[last] == 1 {
            // The zeros at the end of a row and at the start of the next one are the same zeros.
            let end = need(last).saturating_sub(g.begin[last] + g.input[last]);
            let shared = end.min(g.begin[last]).min(extent[last] - g.output[last]);
            extent[last] -= shared;
            slack += shared;
        }
        let mut pitch = vec![1; rank];
        for d in (0..last).rev() {
            pitch[d] = pitch[d + 1] * extent[d + 1];
        }
        let phase_size = pitch[0] * extent[0];
        let channel_size = phase_size * phases.iter().map(Vec::len).product::<usize>();
        let mut offsets = Vec::with_capacity(g.k());
        for c in 0..per_group {
            for_each_index(&g.kernel, |tap| {
                let mut phase = 0;
                let mut at = 0;
                for d in 0..rank {
                    let shift = tap[d] * g.dilation[d];
                    let index = phases[d].iter().position(|&p| p == shift % g.stride[d]).unwrap_or(0);
                    phase = phase * phases[d].len() + index;
                    at += shift / g.stride[d] * pitch[d];
                }
                offsets.push((c * channel_size + phase * phase_size + at) as u32);
            });
        }
        let outer = rank.saturating_sub(2);
        let mut planes = Vec::new();
        for_each_index(&g.output[..outer], |i| planes.push((0..outer).map(|d| i[d] * pitch[d]).sum()));
        Layout {
            direct,
            offsets,
            phases,
            grid: (if rank >= 2 { g.output[rank - 2] } else { 1 }, g.output[last]),
            grid_pitch: extent[last],
            pitch,
            extent,
            phase_size,
            channel_size,
            size: per_group * channel_size + slack,
            planes,
        }
    }

    /// Columns of the grid of one plane.
    pub(super) fn grid_size(&self) -> usize {
        (self.grid.0 - 1) * self.grid_pitch + self.grid.1
    }

    /// Writes one channel of the padded buffer.
    pub(super) fn pad(&self, g: &Geometry, x: &[f32], padding: f32, to: &mut [f32]) {
        let rank = g.input.len();
        let last = rank - 1;
        let n_phases: Vec<usize> = self.phases.iter().map(Vec::len).collect();
        let mut phase_at = 0;
        for_each_index(&n_phases, |p| {
            let phase: Vec<usize> = (0..rank).map(|d| self.phases[d][p[d]]).collect();
            for_each_index(&self.extent[..last], |row| {
                let at = phase_at + (0..last).map(|d| row[d] * self.pitch[d]).sum::<usize>();
                let to = &mut to[at..at + self.extent[last]];
                let mut from = 0;
                for d in 0..last {
                    let i = row[d] * g.stride[d] + phase[d];
                    if i < g.begin[d] || i - g.begin[d] >= g.input[d] {
                        to.fill(padding);
                        return;
                    }
                    from = from * g.input[d] + i - g.begin[d];
                }
                let n = g.input[last];
                copy_row(&x[from * n..(from + 1) * n], g.begin[last], phase[last], g.stride[last], padding, to);
            });
            phase_at += self.phase_size;
        });
    }
}

/// `to[j] = row[j * stride + phase - begin]`, `padding` outside the row.
fn copy_row(row: &[f32], begin: usize, phase: usize, stride: usize, padding: f32, to: &mut [f32]) {
    let first = begin.saturating_sub(phase).div_ceil(stride).min(to.len());
    let (zeros, to) = to.split_at_mut(first);
    zeros.fill(padding);
    let start = (first * stride + phase).saturating_sub(begin);
    let n = row.len().saturating_sub(start).div_ceil(stride).min(to.len());
    let (to, zeros) = to.split_at_mut(n);
    zeros.fill(padding);
    match stride {
        _ if n == 0 => {}
        1 => to.copy_from_slice(&row[start..start + n]),
        2 => every_second(&row[start..], to),
        s => {
            for (to, x) in to.iter_mut().zip(row[start..].iter().step_by(s)) {
                *to = *x;
            }
        }
    }
}

multiversion! {
    /// `to[j] = from[2 * j]`.
    fn every_second(from: &[f32], to: &mut [f32]) {
        let (pairs, rest) = from.as_chunks::<2>();
        let n = pairs.len().min(to.len());
        for (to, pair) in to[..n].iter_mut().zip(&pairs[..n]) {
            *to = pair[0];
        }
        if let (Some(to), Some(&x)) = (to.get_mut(n), rest.first()) {
            *to = x;
        }
    }
}

/// Calls `f` for every index below `sizes`, the last one fastest.
pub(crate) fn for_each_index(sizes: &[usize], mut f: impl FnMut(&[usize])) {
    if sizes.contains(&0) {
        return;
    }
    let mut index = vec![0; sizes.len()];
    loop {
        f(&index);
        let mut d = sizes.len();
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            index[d] += 1;
            if index[d] < sizes[d] {
                break;
            }
            index[d] = 0;
        }
    }
}

/// What is done with stretches of the output while they are in the cache.
pub type Then<'a> = Option<&'a (dyn Fn(&mut [f32]) + Sync)>;

/// `Y[n, m, …] = bias[m] + sum over channels and taps of W[m, c, …] * X[n, c, …]`; `y` is overwritten.
///
/// # Panics
/// A slice has not the length that `g` says.
pub fn conv(threads: usize, g: &Geometry, x: &[f32], w: &Filters, bias: Option<&[f32]>, y: &mut [f32]) {
    conv_then(threads, g, x, w, bias, y, None);
}

/// [`conv`], and then `then` with every element of the output.
///
/// # Panics
/// A slice has not the length that `g` says.
pub fn conv_then(
    threads: usize,
    g: &Geometry,
    x: &[f32],
    w: &Filters,
    bias: Option<&[f32]>,
    y: &mut [f32],
    then: Then<'_>,
) {
    let in_size: usize = g.input.iter().product();
    let out_size: usize = g.output.iter().product();
    assert_eq!(x.len(), g.batch * g.channels * in_size, "length of the input");
    assert_eq!(y.len(), g.batch * g.filters * out_size, "length of the output");
    assert_eq!((w.k, w.per_group * g.groups), (g.k(), g.filters), "shape of the filters");
    assert!(bias.is_none_or(|b| b.len() == g.filters), "length of the bias");
    if y.is_empty() {
        return;
    }
    if w.k == 0 || x.is_empty() {
        for (i, y) in y.chunks_exact_mut(out_size).enumerate() {
            y.fill(bias.map_or(0.0, |b| b[i % g.filters]));
        }
        then.into_iter().for_each(|f| f(y));
    } else if w.depthwise {
        depthwise::conv(threads, g, x, &w.data, bias, y, then);
    } else {
        tiled(threads, g, x, w, bias, y, then);
    }
}

/// Image after image and group after group.
fn tiled(threads: usize, g: &Geometry, x: &[f32], w: &Filters, bias: Option<&[f32]>, y: &mut [f32], then: Then<'_>) {
    let tile = Tile::best();
    let in_size: usize = g.input.iter().product();
    let out_size: usize = g.output.iter().product();
    let layout = Layout::new(g, tile.columns);
    let per_group = g.channels / g.groups;
    let mut padded = buffer(if layout.direct { 0 } else { layout.size });
    // What the tiles read beyond the last channel.
    let end = padded.len().min(per_group * layout.channel_size);
    padded[end..].fill(0.0);
    let out = Slots::new(y);
    for n in 0..g.batch {
        for group in 0..g.groups {
            let from = (n * g.channels + group * per_group) * in_size;
            let x = &x[from..from + per_group * in_size];
            if !layout.direct {
                let slots = Slots::new(&mut padded);
                for_each(threads, per_group, |c| {
                    // SAFETY: each channel is written by one task.
                    let to = unsafe { slots.part(c * layout.channel_size, layout.channel_size) };
                    layout.pad(g, &x[c * in_size..(c + 1) * in_size], 0.0, to);
                });
            }
            let job = Job {
                tile,
                layout: &layout,
                b: if layout.direct { x } else { &padded },
                panels: &w.panels,
                filters: &w.data[group * w.per_group * w.k..(group + 1) * w.per_group * w.k],
                bias: bias.map(|b| &b[group * w.per_group..(group + 1) * w.per_group]),
                k: w.k,
                out_size,
                y: (n * g.filters + group * w.per_group) * out_size,
                out: &out,
                then,
            };
            job.run(threads);
        }
    }
    keep(padded);
}

/// One image and group.
struct Job<'a> {
    tile: &'static Tile,
    layout: &'a Layout,
    b: &'a [f32],
    panels: &'a [(usize, usize)],
    filters: &'a [f32],
    bias: Option<&'a [f32]>,
    k: usize,
    out_size: usize,
    y: usize,
    out: &'a Slots<'a, f32>,
    then: Then<'a>,
}

impl Job<'_> {
    fn run(&self, threads: usize) {
        let columns = self.tile.columns;
        let tiles = self.layout.grid_size().div_ceil(columns);
        let planes = self.layout.planes.len();
        let highest = self.panels.iter().map(|p| p.1).max().unwrap_or(1);
        let per_block = (FILTER_BLOCK / (4 * highest * self.k)).max(1);
        let blocks = self.panels.len().div_ceil(per_block);
        // Columns whose outputs stay in the second cache level until they are done with, and enough for all threads.
        let rows = highest * per_block.min(self.panels.len());
        let in_cache = tiles.div_ceil((OUTPUT_BLOCK / (4 * rows * columns)).max(16));
        let shared = if threads > 1 { (4 * threads).div_ceil(blocks * planes) } else { 1 };
        let stretches = in_cache.max(shared).min(tiles);
        let tile_size = self.k * columns;
        let is_packed = blocks > 1 && planes * tiles * tile_size * 4 <= COLUMN_BLOCK;
        let mut packed = buffer(if is_packed { planes * tiles * tile_size } else { 0 });
        for_each_chunk(threads, &mut packed, tile_size, &|i, to| {
            self.pack(i / tiles, i % tiles * columns, 0..self.k, to);
        });
        for_each(threads, blocks * planes * stretches, |task| {
            let (block, plane, stretch) = (task / stretches / planes, task / stretches % planes, task % stretches);
            let panels = &self.panels[block * per_block..self.panels.len().min((block + 1) * per_block)];
            let mut scratch = Scratch { sums: buffer(rows * columns), packed: buffer(K_BLOCK.min(self.k) * columns) };
            let some = tiles * stretch / stretches..tiles * (stretch + 1) / stretches;
            for t in some.clone() {
                let packed = packed.get((plane * tiles + t) * tile_size..).filter(|p| !p.is_empty());
                self.tile(plane, t * columns, panels, packed, &mut scratch);
            }
            keep(scratch.sums);
            keep(scratch.packed);
            if let Some(then) = self.then {
                self.finish(plane, some.start * columns, some.end * columns, panels, then);
            }
        });
        keep(packed);
    }

    /// Copies together what a tile's columns read.
    fn pack(&self, plane: usize, p0: usize, k: Range<usize>, to: &mut [f32]) {
        let l = self.layout;
        let columns = self.tile.columns;
        // Behind the end of the input nothing may be read; the padded buffer has slack.
        let width = if l.direct { columns.min(l.grid_size() - p0) } else { columns };
        pack(&self.b[l.planes[plane] + p0..], &l.offsets[k], width, columns, to);
    }

    /// Calls `then` with the outputs of some columns of the grid.
    fn finish(&self, plane: usize, from: usize, to: usize, panels: &[(usize, usize)], then: &dyn Fn(&mut [f32])) {
        let l = self.layout;
        // Where a place of the grid lies in a plane of the output; those between rows lie at the start of the next.
        let place =
            |p: usize| (p / l.grid_pitch * l.grid.1 + (p % l.grid_pitch).min(l.grid.1)).min(l.grid.0 * l.grid.1);
        let (from, to) = (place(from), place(to));
        for m in panels.iter().flat_map(|&(m0, height)| m0..m0 + height) {
            let at = self.y + m * self.out_size + plane * l.grid.0 * l.grid.1;
            // SAFETY: the outputs of this task's columns and filters, which nobody else has.
            then(unsafe { self.out.part(at + from, to - from) });
        }
    }

    /// One tile's columns for some panels of filters. What the columns read is copied together first, so that all
    /// panels read it in order; a long sum is done in blocks whose part of the columns stays in the first cache level.
    fn tile(&self, plane: usize, p0: usize, panels: &[(usize, usize)], packed: Option<&[f32]>, scratch: &mut Scratch) {
        let l = self.layout;
        let columns = self.tile.columns;
        let width = columns.min(l.grid_size() - p0);
        let half = width <= columns / 2;
        let whole = if half { columns / 2 } else { columns };
        // Where the tile lies in the output, if it lies there without gaps.
        let (row, column) = (p0 / l.grid_pitch, p0 % l.grid_pitch);
        let in_place = width == whole && column + whole <= l.grid.1;
        let y = self.y + plane * l.grid.0 * l.grid.1;
        let n_blocks = self.k.div_ceil(K_BLOCK);
        let pays = panels.len() > 4 || l.direct && width < whole;
        for block in 0..n_blocks {
            let k = self.k * block / n_blocks..self.k * (block + 1) / n_blocks;
            let (k0, length) = (k.start, k.len());
            let (b, rows) = match packed {
                Some(packed) => (packed[k0 * columns..].as_ptr(), Rows::Every(columns)),
                None if pays => {
                    self.pack(plane, p0, k, &mut scratch.packed);
                    (scratch.packed.as_ptr(), Rows::Every(columns))
                }
                None => (self.b[l.planes[plane] + p0..].as_ptr(), Rows::At(&l.offsets[k])),
            };
            for &(m0, height) in panels {
                // Sums of several blocks stay in the scratch until the last one.
                let in_place = in_place && n_blocks == 1;
                let (c, c_stride) = if in_place {
                    (self.out.at(y + m0 * self.out_size + row * l.grid.1 + column), self.out_size)
                } else {
                    (scratch.sums[(m0 - panels[0].0) * columns..].as_mut_ptr(), columns)
                };
                let start = match self.bias {
                    _ if k0 > 0 => Start::Output,
                    Some(bias) => Start::PerRow(bias[m0..].as_ptr()),
                    None => Start::Zero,
                };
                let a = self.filters[m0 * self.k + k0 * height..].as_ptr();
                let o = Operands { k: length, a, a_stride: 0, b, rows, c, c_stride, start };
                // SAFETY: the panel holds `k` rows of `height` values. Packed columns hold `length` rows; else every
                // offset plus the last column of the grid lies inside the padded buffer, which has a tile's width of
                // slack, or inside the input. A tile in place lies inside the output's rows of this panel; others go
                // to `sums`, which holds a whole tile for each row of the panels. Tasks write disjoint tiles.
                unsafe { self.tile.run(height, half, &o) };
            }
        }
        if in_place && n_blocks == 1 {
            return;
        }
        for &(m0, height) in panels {
            let sums = &scratch.sums[(m0 - panels[0].0) * columns..];
            self.store(sums, height, y + m0 * self.out_size, (row, column), width);
        }
    }

    /// Copies a tile from the grid into the rows of the output.
    fn store(&self, sums: &[f32], height: usize, y: usize, (mut row, mut column): (usize, usize), width: usize) {
        let l = self.layout;
        let mut i = 0;
        while i < width {
            let n = l.grid.1.saturating_sub(column).min(width - i);
            if n > 0 {
                for m in 0..height {
                    let from = &sums[m * self.tile.columns + i..][..n];
                    // SAFETY: tasks write disjoint tiles, and this part lives only here.
                    let to = unsafe { self.out.part(y + m * self.out_size + row * l.grid.1 + column, n) };
                    to.copy_from_slice(from);
                }
            }
            i += l.grid_pitch - column;
            column = 0;
            row += 1;
        }
    }
}

multiversion! {
    /// Copies `width` elements at each offset to rows of `whole` elements.
    fn pack(from: &[f32], offsets: &[u32], width: usize, whole: usize, to: &mut [f32]) {
        let rows = to.chunks_exact_mut(whole).zip(offsets);
        if width == whole && whole.is_multiple_of(8) {
            for (to, &at) in rows {
                let from = &from[at as usize..][..whole];
                for (to, from) in to.as_chunks_mut::<8>().0.iter_mut().zip(from.as_chunks::<8>().0) {
                    *to = *from;
                }
            }
        } else {
            for (to, &at) in rows {
                to[..width].copy_from_slice(&from[at as usize..][..width]);
            }
        }
    }
}

/// Buffers of one task.
struct Scratch {
    /// A tile's sums for each filter of a block.
    sums: Vec<f32>,
    /// What a tile's columns read.
    packed: Vec<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seven loops, for any rank.
    fn reference(g: &Geometry, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let (cg, mg) = (g.channels / g.groups, g.filters / g.groups);
        let rank = g.input.len();
        let mut y = Vec::new();
        for n in 0..g.batch {
            for m in 0..g.filters {
                for_each_index(&g.output, |o| {
                    let mut sum = bias.map_or(0.0, |b| b[m]);
                    for c in 0..cg {
                        let mut tap = 0;
                        for_each_index(&g.kernel, |k| {
                            let mut at = Some(n * g.channels + m / mg * cg + c);
                            for d in 0..rank {
                                let i = o[d] * g.stride[d] + k[d] * g.dilation[d];
                                at = at.filter(|_| i >= g.begin[d] && i - g.begin[d] < g.input[d]);
                                at = at.map(|a| a * g.input[d] + i - g.begin[d]);
                            }
                            let taps: usize = g.kernel.iter().product();
                            sum += at.map_or(0.0, |a| x[a] * w[(m * cg + c) * taps + tap]);
                            tap += 1;
                        });
                    }
                    y.push(sum);
                });
            }
        }
        y
    }

    #[test]
    fn convolutions_of_all_kinds_are_right_on_any_number_of_threads() {
        // channels, filters, groups, then for each dimension: input, kernel, stride, dilation, begin, end.
        type Dims = &'static [[usize; 6]];
        let cases: [(usize, usize, usize, Dims); 20] = [
            (3, 5, 1, &[[9, 3, 1, 1, 1, 1], [11, 3, 1, 1, 1, 1]]),
            (3, 5, 1, &[[9, 3, 2, 1, 1, 0], [11, 3, 2, 1, 0, 1]]),
            (2, 13, 1, &[[20, 1, 1, 1, 0, 0], [21, 1, 1, 1, 0, 0]]),
            (2, 13, 1, &[[20, 1, 2, 1, 0, 0], [21, 1, 2, 1, 0, 0]]),
            (4, 6, 2, &[[12, 3, 1, 2, 2, 2], [9, 2, 1, 3, 1, 0]]),
            (4, 4, 4, &[[12, 3, 1, 1, 1, 1], [40, 3, 1, 1, 1, 1]]),
            (3, 30, 1, &[[15, 7, 2, 1, 3, 3], [15, 7, 2, 1, 3, 3]]),
            (3, 4, 1, &[[50, 5, 1, 1, 4, 4]]),
            (3, 4, 1, &[[50, 5, 3, 2, 0, 7]]),
            (2, 3, 1, &[[5, 3, 1, 1, 1, 1], [6, 2, 2, 1, 1, 0], [7, 3, 1, 2, 2, 2]]),
            (2, 3, 1, &[[5, 1, 1, 1, 1, 1], [6, 1, 1, 1, 2, 2]]),
            (1, 1, 1, &[[1, 3, 1, 1, 1, 1], [1, 3, 1, 1, 1, 1]]),
            (8, 8, 8, &[[14, 5, 1, 1, 2, 2], [14, 5, 1, 1, 2, 2]]),
            (4, 8, 4, &[[15, 3, 2, 1, 1, 1], [37, 3, 2, 1, 1, 1]]),
            (4, 4, 4, &[[15, 3, 1, 2, 2, 2], [37, 4, 1, 2, 3, 1]]),
            (4, 4, 4, &[[15, 7, 3, 1, 2, 2], [37, 4, 3, 1, 3, 1]]),
            (4, 4, 4, &[[37, 4, 2, 1, 3, 1]]),
            (2, 2, 2, &[[3, 3, 1, 1, 1, 1], [4, 2, 1, 1, 0, 1], [37, 3, 1, 1, 1, 1]]),
            (3, 2, 1, &[[6, 2, 4, 1, 0, 0], [6, 2, 3, 1, 0, 0]]),
            (2, 2, 1, &[[3, 3, 1, 1, 5, 5], [3, 3, 1, 1, 5, 5]]),
        ];
        for (i, (channels, filters, groups, dims)) in cases.into_iter().enumerate() {
            let column = |j: usize| dims.iter().map(|d| d[j]).collect::<Vec<usize>>();
            let g = Geometry {
                batch: 2,
                channels,
                filters,
                groups,
                input: column(0),
                output: dims.iter().map(|d| (d[0] + d[4] + d[5] - (d[1] - 1) * d[3] - 1) / d[2] + 1).collect(),
                kernel: column(1),
                stride: column(2),
                dilation: column(3),
                begin: column(4),
            };
            let n = 2 * channels * g.input.iter().product::<usize>();
            let x: Vec<f32> = (0..n).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
            let w: Vec<f32> = (0..filters * g.k()).map(|i| ((i * 5) % 11) as f32 - 5.0).collect();
            let bias: Vec<f32> = (0..filters).map(|i| i as f32).collect();
            let packed = Filters::new(&w, &g);
            for bias in [None, Some(bias.as_slice())] {
                let expected = reference(&g, &x, &w, bias);
                for threads in [1, 3] {
                    let mut y = vec![9.0; expected.len()];
                    conv(threads, &g, &x, &packed, bias, &mut y);
                    assert_eq!(y, expected, "case {i}, {threads} threads");
                }
            }
        }
    }
}
