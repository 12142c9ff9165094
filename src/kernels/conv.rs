//! Convolution of 32-bit floats in any number of spatial dimensions.
//!
//! The filters are packed once into interleaved panels. The input of one image and group is copied once into a padded
//! buffer that is split by the phase of the stride, so that every tap of the kernel reads a shifted, contiguous run:
//! the tile of [`super::micro`] takes the places from a table of offsets and no im2col matrix exists: where many filters
//! read the same columns, what these read is copied as overlapping runs ([`super::taps`]), a fraction of one. Outputs are
//! computed on the grid of padded rows, and the few columns between rows are dropped when a tile is stored. A kernel
//! of size 1 with stride 1 reads the input itself.

use std::ops::Range;
use std::sync::OnceLock;

use super::micro::{Operands, Rows, Start, Tile};
use super::taps::{COPIED, Layout};
#[cfg(target_arch = "x86_64")]
use super::winograd;
use super::{Slots, depthwise, for_each, for_each_chunk};
use crate::tensor::{buffer, keep};

/// Bytes of filters that stay in the second cache level while all columns pass by.
const FILTER_BLOCK: usize = 320 << 10;
/// Bytes of outputs that are still in the second level when a stretch of columns is over.
const OUTPUT_BLOCK: usize = 128 << 10;
/// Bytes of columns at most that are copied together for all blocks of filters at once.
const COLUMN_BLOCK: usize = 8 << 20;
/// Longest sum that is done in one go, so that what a tile's columns read stays in the first levels.
const K_BLOCK: usize = 960;
/// Bytes of columns that all panels of filters pass over one after the other, so that each panel writes long runs.
const GROUP_BLOCK: usize = 16 << 10;

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
    /// What `winograd` takes, from its first use on; `None` where sums have to be those of the formula.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for processors that have the transforms"))]
    transformed: Option<OnceLock<Vec<f32>>>,
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
            return Filters { k, per_group, panels: Vec::new(), data: w.to_vec(), depthwise: true, transformed: None };
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
        Filters { k, per_group, panels, data, depthwise: false, transformed: None }
    }

    /// Elements that are kept beside the packed ones for filters of this shape, `[filters, channels, kernel…]`, in any
    /// order, at most.
    #[must_use]
    pub fn extra(shape: &[usize]) -> usize {
        match *shape {
            #[cfg(target_arch = "x86_64")]
            [filters, channels, 3, 3] => winograd::size(channels, filters),
            _ => 0,
        }
    }

    /// Filters whose sums may be rounded in another order than that of the formula, which is faster: not for integers
    /// that have to be exact.
    #[must_use]
    pub fn in_any_order(self) -> Self {
        Filters { transformed: Some(OnceLock::new()), ..self }
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

/// What is done with the output.
#[derive(Clone, Copy)]
pub enum Then<'a> {
    /// Nothing.
    Nothing,
    /// It is bounded. A NaN stays.
    Clamp(f32, f32),
    /// Any function, of stretches that are still in the cache.
    Each(&'a (dyn Fn(&mut [f32]) + Sync)),
}

impl Then<'_> {
    /// Does it to some of the output.
    pub(super) fn apply(self, y: &mut [f32]) {
        match self {
            Then::Nothing => {}
            Then::Clamp(lo, hi) => clamp(y, lo, hi),
            Then::Each(f) => f(y),
        }
    }
}

multiversion! {
    fn clamp(y: &mut [f32], lo: f32, hi: f32) {
        for y in y.iter_mut() {
            let x = if *y < lo { lo } else { *y };
            *y = if x > hi { hi } else { x };
        }
    }
}

/// `Y[n, m, …] = bias[m] + sum over channels and taps of W[m, c, …] * X[n, c, …]`; `y` is overwritten.
///
/// # Panics
/// A slice has not the length that `g` says.
pub fn conv(threads: usize, g: &Geometry, x: &[f32], w: &Filters, bias: Option<&[f32]>, y: &mut [f32]) {
    conv_then(threads, g, x, w, bias, y, Then::Nothing);
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
        then.apply(y);
    } else if w.depthwise {
        depthwise::conv(threads, g, x, &w.data, bias, y, then);
    } else {
        #[cfg(target_arch = "x86_64")]
        if in_fewer_products(threads, g, x, w, bias, y, then) {
            return;
        }
        tiled(threads, g, x, w, bias, y, then);
    }
}

/// By [`winograd`], where the filters allow it and it pays; whether that was so.
#[cfg(target_arch = "x86_64")]
fn in_fewer_products(
    threads: usize,
    g: &Geometry,
    x: &[f32],
    w: &Filters,
    bias: Option<&[f32]>,
    y: &mut [f32],
    then: Then<'_>,
) -> bool {
    let Some(cell) = w.transformed.as_ref().filter(|_| winograd::pays(g)) else { return false };
    let filters = cell.get_or_init(|| {
        winograd::transformed(threads, g, &w.panels, &|m, c| {
            let (start, height) = w.panels[w.panels.partition_point(|p| p.0 <= m) - 1];
            std::array::from_fn(|tap| w.data[start * w.k + (c * 9 + tap) * height + m - start])
        })
    });
    winograd::conv(threads, g, x, (&w.panels, filters), bias, y, then)
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
        let in_cache = match self.then {
            Then::Each(_) => tiles.div_ceil((OUTPUT_BLOCK / (4 * rows * columns)).max(16)),
            _ => 1,
        };
        let shared = if threads > 1 { (4 * threads).div_ceil(blocks * planes) } else { 1 };
        let stretches = in_cache.max(shared).min(tiles);
        let taps = self.layout.runs.taps.len();
        let channels = self.k / taps;
        let tile_size = channels * self.layout.runs.size;
        let is_packed = blocks > 1 && planes * tiles * tile_size * 4 <= COLUMN_BLOCK;
        let mut packed = buffer(if is_packed { planes * tiles * tile_size } else { 0 });
        for_each_chunk(threads, &mut packed, tile_size, &|i, to| {
            self.pack(i / tiles, i % tiles * columns, 0..channels, to);
        });
        // Channels of a sum that is done in one go, and tiles that are done together when that is the whole sum.
        let n_blocks = self.k.div_ceil(K_BLOCK).min(channels);
        let some = channels.div_ceil(n_blocks);
        let group = if n_blocks > 1 { 1 } else { (GROUP_BLOCK / (4 * tile_size)).clamp(1, 64) };
        let table: Vec<u32> = (0..some)
            .flat_map(|c| self.layout.runs.taps.iter().map(move |&t| t + (c * self.layout.runs.size) as u32))
            .collect();
        let is_even = table.iter().enumerate().all(|(i, &at)| at as usize == i * columns);
        let pass = Pass { n_blocks, table: &table, is_even, tile_size, packed: &packed };
        for_each(threads, blocks * planes * stretches, |task| {
            let (block, plane, stretch) = (task / stretches / planes, task / stretches % planes, task % stretches);
            let panels = &self.panels[block * per_block..self.panels.len().min((block + 1) * per_block)];
            let mut scratch =
                Scratch { sums: buffer(rows * columns), packed: buffer(group * some * self.layout.runs.size + COPIED) };
            let some = tiles * stretch / stretches..tiles * (stretch + 1) / stretches;
            let first = plane * tiles;
            for t in some.clone().step_by(group) {
                self.tiles(plane, first, t..some.end.min(t + group), panels, &pass, &mut scratch);
            }
            keep(scratch.sums);
            keep(scratch.packed);
            if let Then::Each(then) = self.then {
                self.finish(plane, some.start * columns, some.end * columns, panels, then);
            }
        });
        keep(packed);
    }

    /// Copies together what a tile's columns read of some channels.
    fn pack(&self, plane: usize, p0: usize, channels: Range<usize>, to: &mut [f32]) {
        let l = self.layout;
        let columns = self.tile.columns;
        let from = &self.b[l.planes[plane] + p0 + channels.start * l.channel_size..];
        // Behind the end of the input nothing may be read; the padded buffer has slack.
        let width = if l.direct { columns.min(l.grid_size() - p0) } else { columns };
        if width < columns {
            for (c, to) in to.chunks_exact_mut(columns).take(channels.len()).enumerate() {
                to[..width].copy_from_slice(&from[c * l.channel_size..][..width]);
            }
            return;
        }
        pack(from, &l.runs.parts, l.runs.size, l.channel_size, &mut to[..channels.len() * l.runs.size]);
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

    /// Some tiles' columns for some panels of filters. What the columns read is copied together first, so that all
    /// panels find it in the first cache level; a long sum is done in blocks for the same reason.
    fn tiles(
        &self,
        plane: usize,
        first: usize,
        tiles: Range<usize>,
        panels: &[(usize, usize)],
        pass: &Pass<'_>,
        scratch: &mut Scratch,
    ) {
        let l = self.layout;
        let columns = self.tile.columns;
        let taps = l.runs.taps.len();
        let channels = self.k / taps;
        let y = self.y + plane * l.grid.0 * l.grid.1;
        let n_blocks = pass.n_blocks;
        let is_short = l.direct && tiles.end * columns > l.grid_size();
        let pays = pass.packed.is_empty() && (panels.len() > 4 || is_short);
        let start_of_packed = scratch.packed.as_ptr().align_offset(32).min(COPIED);
        for block in 0..n_blocks {
            let some = channels * block / n_blocks..channels * (block + 1) / n_blocks;
            let (k0, length) = (some.start * taps, some.len() * taps);
            let packed_size = some.len() * l.runs.size;
            let packed = &mut scratch.packed[start_of_packed..];
            if pays {
                for (t, to) in tiles.clone().zip(packed.chunks_exact_mut(packed_size)) {
                    self.pack(plane, t * columns, some.clone(), to);
                }
            }
            for &(m0, height) in panels {
                let start = match self.bias {
                    _ if k0 > 0 => Start::Output,
                    Some(bias) => Start::PerRow(bias[m0..].as_ptr()),
                    None => Start::Zero,
                };
                let clamp = match self.then {
                    Then::Clamp(lo, hi) if block + 1 == n_blocks => Some((lo, hi)),
                    _ => None,
                };
                let a = self.filters[m0 * self.k + k0 * height..].as_ptr();
                for t in tiles.clone() {
                    let p0 = t * columns;
                    let width = columns.min(l.grid_size() - p0);
                    let half = width <= columns / 2;
                    let whole = if half { columns / 2 } else { columns };
                    // Where the tile lies in the output, if it lies there without gaps. Sums of several blocks stay
                    // in the scratch until the last one.
                    let (row, column) = (p0 / l.grid_pitch, p0 % l.grid_pitch);
                    let in_place = n_blocks == 1 && width == whole && column + whole <= l.grid.1;
                    let (b, rows) = if pays {
                        (packed[(t - tiles.start) * packed_size..].as_ptr(), pass.rows(length, columns))
                    } else if pass.packed.is_empty() {
                        (self.b[l.planes[plane] + p0..].as_ptr(), Rows::At(&l.offsets[k0..k0 + length]))
                    } else {
                        let at = (first + t) * pass.tile_size + some.start * l.runs.size;
                        (pass.packed[at..].as_ptr(), pass.rows(length, columns))
                    };
                    let (c, c_stride) = if in_place {
                        (self.out.at(y + m0 * self.out_size + row * l.grid.1 + column), self.out_size)
                    } else {
                        (scratch.sums[(m0 - panels[0].0) * columns..].as_mut_ptr(), columns)
                    };
                    let o = Operands { k: length, a, a_stride: 0, b, rows, c, c_stride, start, clamp };
                    // SAFETY: the panel holds `k` rows of `height` values. Packed columns hold the runs of the block's
                    // channels, in which the table's places plus a tile's width lie; else every offset plus the last
                    // column of the grid lies inside the padded buffer, which has a tile's width of slack, or inside
                    // the input. A tile in place lies inside the output's rows of this panel; others go to `sums`,
                    // which holds a whole tile for each row of the panels. Tasks write disjoint tiles.
                    unsafe { self.tile.run(height, half, &o) };
                    if !in_place && block + 1 == n_blocks {
                        let sums = &scratch.sums[(m0 - panels[0].0) * columns..];
                        self.store(sums, height, y + m0 * self.out_size, (row, column), width);
                    }
                }
            }
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
    /// Copies runs of each channel together: `runs` are starts, lengths and places in the copy of `size` elements.
    fn pack(from: &[f32], runs: &[(usize, usize, usize)], size: usize, channel: usize, to: &mut [f32]) {
        // Lengths that are known to the compiler make loops without branches.
        match runs.iter().all(|r| r.1 == runs[0].1).then(|| runs[0].1 / COPIED) {
            Some(2) => pack_equal::<2>(from, runs, size, channel, to),
            Some(3) => pack_equal::<3>(from, runs, size, channel, to),
            Some(4) => pack_equal::<4>(from, runs, size, channel, to),
            Some(5) => pack_equal::<5>(from, runs, size, channel, to),
            _ => {
                for (c, to) in to.chunks_exact_mut(size).enumerate() {
                    for &(at, len, place) in runs {
                        copy(&from[c * channel + at..][..len], &mut to[place..][..len]);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn pack_equal<const N: usize>(
    from: &[f32],
    runs: &[(usize, usize, usize)],
    size: usize,
    channel: usize,
    to: &mut [f32],
) {
    // Counted loops: iterators' own functions were called here instead of being inlined, once per run.
    for c in 0..to.len() / size {
        let (from, to) = (&from[c * channel..], &mut to[c * size..][..size]);
        for i in 0..runs.len() {
            copy(&from[runs[i].0..][..N * COPIED], &mut to[i * N * COPIED..][..N * COPIED]);
        }
    }
}

#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    let (to, from) = (to.as_chunks_mut::<COPIED>().0, from.as_chunks::<COPIED>().0);
    #[allow(clippy::manual_memcpy, reason = "a few vectors a run, without a call")]
    for i in 0..to.len().min(from.len()) {
        to[i] = from[i];
    }
}

/// How the sums of a job are done.
struct Pass<'a> {
    /// Blocks of channels.
    n_blocks: usize,
    /// Where the taps of a block's channels start in what is copied together.
    table: &'a [u32],
    /// Whether the places are multiples of a tile's width.
    is_even: bool,
    /// Elements of a tile in `packed`.
    tile_size: usize,
    /// What all tiles read, if that was copied together before.
    packed: &'a [f32],
}

impl Pass<'_> {
    /// Where the taps of a block start.
    fn rows(&self, length: usize, columns: usize) -> Rows<'_> {
        if self.is_even { Rows::Every(columns) } else { Rows::At(&self.table[..length]) }
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
        let cases: [(usize, usize, usize, Dims); 22] = [
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
            // Several blocks of filters and of channels; many panels that read the input itself.
            (120, 80, 1, &[[5, 3, 1, 1, 1, 1], [6, 3, 1, 1, 1, 1]]),
            (4, 90, 1, &[[7, 1, 1, 1, 0, 0], [9, 1, 1, 1, 0, 0]]),
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
                    let bounded: Vec<f32> = expected.iter().map(|y| y.clamp(-3.0, 50.0)).collect();
                    let each = |y: &mut [f32]| y.iter_mut().for_each(|y| *y = y.clamp(-3.0, 50.0));
                    for then in [Then::Clamp(-3.0, 50.0), Then::Each(&each)] {
                        conv_then(threads, &g, &x, &packed, bias, &mut y, then);
                        assert_eq!(y, bounded, "case {i}, bounded, {threads} threads");
                    }
                }
            }
        }
    }
}
