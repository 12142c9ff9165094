//! Streamed second moments `H = E[x xᵀ]` of what the weights of a model are multiplied with: patches of the input of a
//! `Conv` (for each group), rows of the input of a `MatMul` or `Gemm`. They say what an error in a weight costs at the
//! output, and so drive every algorithm that rounds or clips by more than the weight itself.
//!
//! Positions are drawn evenly and the same way on every run, about four times as many as a row has inputs, so that the
//! cost stays below that of running the samples. Samples run one after the other, on all threads, and what one shows of a
//! tensor is summed at once: memory is that of the sums, and the bits do not depend on threads. Where a matrix would be too large only its diagonal
//! is kept, and [`Gathered::diagonal_only`] says so.
//!
//! Use: [`needs`] with the float model and the plan, and with the model that runs, which is the float model or the one
//! that the plan gave (then what is quantized before a node is in its statistics); then [`gather`]; then an algorithm.

use std::collections::BTreeMap;

use super::layout::Layout;
use super::matrix::Matrix;
use crate::calibrate::dataset::Dataset;
use crate::error::{Context, Result};
use crate::interp::{CompileOptions, Program, RunOptions};
use crate::ir::{Attrs, GraphId, Model, ValueId};
use crate::kernels::conv::{Geometry, for_each_index};
use crate::kernels::gemm::{Init, PackedB, gemm};
use crate::kernels::rows::add_products;
use crate::kernels::{for_each_chunk, map_into};
use crate::ops::{Item, conv_geometry};
use crate::quant::plan::{Decision, NodePlace, Place, QuantPlan};
use crate::tensor::{Tensor, buffer, keep};

/// Elements of the rows that are kept of one source, and rows that are kept however long they are.
const MOST_KEPT: usize = 1 << 19;
const LEAST_ROWS: usize = 16;
/// Columns of a matrix that are summed at once, since only one half of it is computed.
const COLUMNS: usize = 256;
/// Patches that one task cuts out.
const PATCHES: usize = 32;
/// Inputs up to which sums over rows are faster than a packed product.
const SMALL: usize = 48;

/// How much may be gathered.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Samples, spread evenly over the data.
    pub samples: usize,
    /// Inputs of a row above which only the diagonal is kept.
    pub k: usize,
    /// Bytes of all matrices together; beyond that the largest keep their diagonal only.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { samples: 32, k: 4608, bytes: 1 << 30 }
    }
}

/// How rows are cut out of a tensor.
#[derive(Debug, Clone)]
enum Cut {
    /// Along the last axis.
    Rows,
    /// Patches that a convolution with these attributes and this weight reads.
    Patches { attrs: Attrs, weight: Vec<usize> },
}

impl Cut {
    /// What two convolutions have in common when they read the same patches.
    fn key(&self) -> (usize, Vec<usize>, Vec<Option<Vec<i64>>>, Option<String>) {
        match self {
            Cut::Rows => (0, Vec::new(), Vec::new(), None),
            Cut::Patches { attrs, weight } => (
                attrs.int("group").unwrap_or(1) as usize,
                weight[1..].to_vec(),
                ["strides", "pads", "dilations"].map(|name| attrs.ints(name).map(<[i64]>::to_vec)).to_vec(),
                attrs.str("auto_pad").map(str::to_owned),
            ),
        }
    }
}

/// Inputs of weights: a tensor, and how it is cut.
#[derive(Debug, Clone)]
struct Source {
    value: Place,
    cut: Cut,
    groups: usize,
    k: usize,
}

/// What is to be gathered: nodes, and the inputs that they read, each once.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    sources: Vec<Source>,
    of: BTreeMap<NodePlace, usize>,
}

impl Needs {
    /// The number of different inputs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether there is nothing to gather.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Leaves only what is read from some tensors.
    pub fn retain(&mut self, wanted: &dyn Fn(Place) -> bool) {
        self.of.retain(|_, s| wanted(self.sources[*s].value));
        let kept: Vec<usize> = (0..self.sources.len()).filter(|&s| wanted(self.sources[s].value)).collect();
        self.of.values_mut().for_each(|s| *s = kept.partition_point(|&k| k < *s));
        self.sources = kept.iter().map(|&s| self.sources[s].clone()).collect();
    }
}

/// The second moments of one group's inputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments {
    /// Inputs of a row.
    pub k: usize,
    /// `E[x]`, `[k]`.
    pub mean: Vec<f64>,
    /// `E[x²]`, `[k]`.
    pub energy: Vec<f64>,
    /// `E[x xᵀ]`, `[k, k]`; empty where only the diagonal is known.
    pub h: Vec<f32>,
    /// Rows that were seen.
    pub rows: u64,
}

impl Moments {
    /// Whether the whole matrix is known.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.h.len() == self.k * self.k
    }

    /// `E[x xᵀ] - E[x] E[x]ᵀ`: what errors cost when the mean error goes into the bias afterwards.
    #[must_use]
    pub fn centered(&self) -> Moments {
        let mut m = self.clone();
        for (i, row) in m.h.chunks_exact_mut(self.k.max(1)).enumerate() {
            for (h, mean) in row.iter_mut().zip(&self.mean) {
                *h = (f64::from(*h) - self.mean[i] * mean) as f32;
            }
        }
        for (energy, mean) in m.energy.iter_mut().zip(&self.mean) {
            *energy = (*energy - mean * mean).max(0.0);
        }
        m.mean.fill(0.0);
        m
    }
}

/// What was gathered.
#[derive(Debug, Clone, Default)]
pub struct Gathered {
    groups: Vec<Vec<Moments>>,
    of: BTreeMap<NodePlace, usize>,
    diagonal_only: Vec<usize>,
}

impl Gathered {
    /// The moments of a node's inputs, one for each group; `None` when no sample reached it.
    #[must_use]
    pub fn of(&self, node: NodePlace) -> Option<&[Moments]> {
        let groups = &self.groups[*self.of.get(&node)?];
        (groups.first()?.rows > 0).then_some(groups)
    }

    /// Which of the inputs a node reads: nodes with the same number share their moments.
    #[must_use]
    pub fn source(&self, node: NodePlace) -> Option<usize> {
        self.of.get(&node).copied()
    }

    /// Nodes of which only the diagonal is known, since the matrix is too large.
    #[must_use]
    pub fn diagonal_only(&self) -> Vec<NodePlace> {
        self.of.iter().filter(|(_, s)| self.diagonal_only.contains(s)).map(|(n, _)| *n).collect()
    }
}

/// The inputs of every weighted integer node of the plan whose weight is a matrix. `run` is the model that will be run:
/// the float model itself, or the one emitted for a plan of it, whose nodes have the same places.
#[must_use]
pub fn needs(model: &Model, plan: &QuantPlan, run: &Model) -> Needs {
    needs_of(model, plan.nodes.iter().filter(|n| n.decision == Decision::Integer).map(|n| n.place), run)
}

/// The inputs of these nodes, as [`needs`] has them.
#[must_use]
pub fn needs_of(model: &Model, nodes: impl Iterator<Item = NodePlace>, run: &Model) -> Needs {
    let mut out = Needs::default();
    for place in nodes {
        let (id, node) = place;
        let Some(m) = Matrix::of(model, place) else { continue };
        if id.index() >= run.graph_ids().count() || !run.graph(id).has_node(node) {
            continue;
        }
        let Some(x) = run.graph(id).input(node, m.slots.data) else { continue };
        let cut = match m.layout {
            Layout::Conv { .. } => {
                Cut::Patches { attrs: model.graph(id).node(node).attrs.clone(), weight: m.shape.clone() }
            }
            _ => Cut::Rows,
        };
        let known = out.sources.iter().position(|s| s.value == (id, x) && s.k == m.k && s.cut.key() == cut.key());
        let index = known.unwrap_or(out.sources.len());
        if known.is_none() {
            out.sources.push(Source { value: (id, x), cut, groups: m.groups, k: m.k });
        }
        out.of.insert(place, index);
    }
    out
}

/// Runs a model on at most `limits.samples` samples and gathers the moments.
///
/// # Errors
/// A sample cannot be read or the model does not run on it.
pub fn gather(model: &Model, needs: &Needs, data: &dyn Dataset, limits: Limits, threads: usize) -> Result<Gathered> {
    let (full, diagonal_only) = affordable(&needs.sources, limits);
    let mut sums: Vec<Sums> =
        needs.sources.iter().zip(&full).map(|(s, &full)| Sums::new(s.groups, s.k, full)).collect();
    let n = data.len().min(limits.samples);
    draw(model, needs, data, (n, &|s| rows_wanted(s.k).div_ceil(n.max(1))), threads, &mut |s, rows| {
        sums[s].add(rows, threads);
    })?;
    let groups = map_into(sums, Sums::finish);
    Ok(Gathered { groups, of: needs.of.clone(), diagonal_only })
}

/// Inputs of weights as they are.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    rows: Vec<Vec<f32>>,
    of: BTreeMap<NodePlace, usize>,
}

impl Rows {
    /// What a node read, `[rows, groups * k]`; `None` when no sample reached it.
    #[must_use]
    pub fn of(&self, node: NodePlace) -> Option<&[f32]> {
        self.of.get(&node).map(|&s| self.rows[s].as_slice()).filter(|rows| !rows.is_empty())
    }
}

/// Runs a model on at most `samples` samples and keeps about `count` rows of what each node reads, fewer where they are long.
///
/// # Errors
/// A sample cannot be read or the model does not run on it.
pub fn rows(
    model: &Model,
    needs: &Needs,
    data: &dyn Dataset,
    samples: usize,
    count: usize,
    threads: usize,
) -> Result<Rows> {
    let mut out = Rows { rows: vec![Vec::new(); needs.sources.len()], of: needs.of.clone() };
    let n = data.len().min(samples);
    let quota = |s: &Source| count.min(MOST_KEPT / (s.k * s.groups).max(1)).max(LEAST_ROWS).div_ceil(n.max(1));
    draw(model, needs, data, (n, &quota), threads, &mut |s, rows| out.rows[s].extend_from_slice(rows))?;
    Ok(out)
}

/// How many rows a sample gives of a source.
type Quota<'a> = &'a dyn Fn(&Source) -> usize;

/// Runs a model on `n` samples, spread evenly, and hands over rows of every source as they come.
fn draw(
    model: &Model,
    needs: &Needs,
    data: &dyn Dataset,
    (n, quota): (usize, Quota<'_>),
    threads: usize,
    each: &mut dyn FnMut(usize, &[f32]),
) -> Result<()> {
    let mut watched: BTreeMap<Place, Vec<(usize, usize)>> = BTreeMap::new();
    for (i, s) in needs.sources.iter().enumerate() {
        watched.entry(s.value).or_default().push((i, quota(s)));
    }
    let program =
        Program::compile(model, &CompileOptions { watch: &|g, v| watched.contains_key(&(g, v)), skip_unknown: true })?;
    let mut rows = Vec::new();
    for i in 0..n {
        let sample = data.sample(i * data.len() / n)?;
        let mut seen = vec![0; needs.sources.len()];
        let mut calls = 0u64;
        let tap = &mut |g: GraphId, v: ValueId, item: &Item| {
            if let (Item::Tensor(t), Some(sources)) = (item, watched.get(&(g, v))) {
                calls += 1;
                for &(s, quota) in sources {
                    let source = &needs.sources[s];
                    // In a loop the first iterations show enough.
                    let left = (2 * quota).saturating_sub(seen[s]);
                    rows.clear();
                    source.cut_rows(t, quota.min(left), (i as u64) << 32 | calls, threads, &mut rows);
                    seen[s] += rows.len() / (source.k * source.groups).max(1);
                    each(s, &rows);
                }
            }
            Ok(())
        };
        let options = RunOptions { threads, ..RunOptions::default() };
        program.run_named(&sample.inputs, options, tap).with_context(|| sample.origin.clone())?;
    }
    Ok(())
}

/// Which matrices are kept whole, and the others.
fn affordable(sources: &[Source], limits: Limits) -> (Vec<bool>, Vec<usize>) {
    let mut by_size: Vec<usize> = (0..sources.len()).collect();
    by_size.sort_by_key(|&s| (sources[s].k, s));
    let mut full = vec![false; sources.len()];
    let mut bytes = 0usize;
    for s in by_size {
        let Source { k, groups, .. } = sources[s];
        bytes = bytes.saturating_add(k.saturating_mul(k).saturating_mul(groups).saturating_mul(4));
        full[s] = k <= limits.k && bytes <= limits.bytes;
    }
    let rest = (0..sources.len()).filter(|&s| !full[s]).collect();
    (full, rest)
}

/// Rows that are drawn over all samples: enough for the matrix to be well-conditioned together with some damping.
fn rows_wanted(k: usize) -> usize {
    (4 * k).clamp(1024, 8192)
}

/// `count` positions out of `total`, one from each of as many equal stretches, at a place in it that depends on `seed`.
fn positions(total: usize, count: usize, seed: u64) -> impl Iterator<Item = usize> {
    let count = count.min(total);
    (0..count).map(move |j| {
        let (from, to) = (j * total / count, (j + 1) * total / count);
        let mut z = seed.wrapping_add((j as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        from + ((z ^ (z >> 31)) % (to - from).max(1) as u64) as usize
    })
}

impl Source {
    /// Appends at most `count` rows of a tensor, `[groups * k]` each; none when it has another shape or type.
    fn cut_rows(&self, t: &Tensor, count: usize, seed: u64, threads: usize, out: &mut Vec<f32>) {
        let Ok(x) = t.slice::<f32>() else { return };
        match &self.cut {
            Cut::Rows => {
                if t.shape().last() == Some(&self.k) && !x.is_empty() {
                    for p in positions(x.len() / self.k, count, seed) {
                        out.extend(x[p * self.k..][..self.k].iter().map(|&x| finite(x)));
                    }
                }
            }
            Cut::Patches { attrs, weight } => {
                if let Ok(g) = conv_geometry(attrs, ("X", t.shape()), ("W", weight)) {
                    patches(&g, x, count, seed, threads, out);
                }
            }
        }
    }
}

fn finite(x: f32) -> f32 {
    if x.is_finite() { x } else { 0.0 }
}

/// Appends patches `[channels, kernel…]` at some of the positions of the output.
fn patches(g: &Geometry, x: &[f32], count: usize, seed: u64, threads: usize, out: &mut Vec<f32>) {
    let (size, places) = (g.input.iter().product::<usize>(), g.output.iter().product::<usize>());
    if size == 0 || places == 0 {
        return;
    }
    let at: Vec<usize> = positions(g.batch * places, count, seed).collect();
    let row = g.channels * g.kernel.iter().product::<usize>();
    let start = out.len();
    out.resize(start + at.len() * row, 0.0);
    for_each_chunk(threads, &mut out[start..], PATCHES * row, &|i, out| {
        let mut taps = Vec::new();
        for (&p, out) in at[i * PATCHES..].iter().zip(out.chunks_exact_mut(row)) {
            let (image, place) = (p / places, p % places);
            patch(g, place, &mut taps);
            let channels = x[image * g.channels * size..][..g.channels * size].chunks_exact(size);
            for (channel, out) in channels.zip(out.chunks_exact_mut(taps.len())) {
                for i in 0..out.len() {
                    out[i] = taps[i].map_or(0.0, |t| finite(channel[t]));
                }
            }
        }
    });
}

/// Where the taps of a position of the output lie in a channel; `None` in the padding.
fn patch(g: &Geometry, mut place: usize, taps: &mut Vec<Option<usize>>) {
    let rank = g.input.len();
    let mut at = vec![0; rank];
    for d in (0..rank).rev() {
        at[d] = place % g.output[d] * g.stride[d];
        place /= g.output[d];
    }
    taps.clear();
    for_each_index(&g.kernel, |tap| {
        let mut from = Some(0);
        for d in 0..rank {
            let i = (at[d] + tap[d] * g.dilation[d]).checked_sub(g.begin[d]).filter(|&i| i < g.input[d]);
            from = from.zip(i).map(|(from, i)| from * g.input[d] + i);
        }
        taps.push(from);
    });
}

/// Running sums of one source.
struct Sums {
    groups: usize,
    k: usize,
    full: bool,
    rows: u64,
    sum: Vec<f64>,
    sum_sq: Vec<f64>,
    /// Lower triangles, `[groups, k, k]`.
    h: Vec<f32>,
}

impl Sums {
    fn new(groups: usize, k: usize, full: bool) -> Self {
        let n = groups * k;
        Sums {
            groups,
            k,
            full,
            rows: 0,
            sum: vec![0.0; n],
            sum_sq: vec![0.0; n],
            h: vec![0.0; if full { n * k } else { 0 }],
        }
    }

    /// Adds rows `[rows, groups * k]`.
    fn add(&mut self, x: &[f32], threads: usize) {
        let n = self.groups * self.k;
        if n == 0 {
            return;
        }
        for row in x.chunks_exact(n) {
            let (sum, sum_sq) = (&mut self.sum[..n], &mut self.sum_sq[..n]);
            for i in 0..n {
                let x = f64::from(row[i]);
                sum[i] += x;
                sum_sq[i] += x * x;
            }
        }
        let rows = x.len() / n;
        self.rows += rows as u64;
        if self.full && rows > 0 {
            let k = self.k;
            let inner = if self.groups > 1 { 1 } else { threads };
            for_each_chunk(threads, &mut self.h, k * k, &|group, h| add_product(x, n, group * k, k, h, inner));
        }
    }

    fn finish(mut self) -> Vec<Moments> {
        let k = self.k;
        let n = self.rows.max(1) as f64;
        for h in self.h.chunks_exact_mut((k * k).max(1)) {
            for i in 0..k {
                for j in 0..=i {
                    let mean = (f64::from(h[i * k + j]) / n) as f32;
                    h[i * k + j] = mean;
                    h[j * k + i] = mean;
                }
            }
        }
        let over = |sums: &[f64], group: usize| sums[group * k..][..k].iter().map(|x| x / n).collect::<Vec<_>>();
        (0..self.groups)
            .map(|group| Moments {
                k,
                mean: over(&self.sum, group),
                energy: over(&self.sum_sq, group),
                h: match (self.full, self.groups) {
                    (false, _) => Vec::new(),
                    // The only one, which may be large.
                    (true, 1) => std::mem::take(&mut self.h),
                    (true, _) => self.h[group * k * k..][..k * k].to_vec(),
                },
                rows: self.rows,
            })
            .collect()
    }
}

/// Adds `Xᵀ X` of columns `from..from + k` of `x`, `[rows, n]`, to the lower triangle of `h`.
fn add_product(x: &[f32], n: usize, from: usize, k: usize, h: &mut [f32], threads: usize) {
    let rows = x.len() / n;
    let mut across = buffer(k * rows);
    for (r, row) in x.chunks_exact(n).enumerate() {
        let row = &row[from..from + k];
        for i in 0..k {
            across[i * rows + r] = row[i];
        }
    }
    if k <= SMALL {
        add_products(&across, k, rows, h);
        keep(across);
        return;
    }
    for first in (0..k).step_by(COLUMNS) {
        let width = COLUMNS.min(k - first);
        let packed = PackedB::new(&x[from + first..], rows, width, n, 1);
        let below = k - first;
        let mut product = buffer(below * width);
        gemm(threads, below, &across[first * rows..], &packed, Init::Zero, &mut product);
        for (i, row) in product.chunks_exact(width).enumerate() {
            let h = &mut h[(first + i) * k + first..][..width];
            for i in 0..width {
                h[i] += row[i];
            }
        }
        keep(product);
    }
    keep(across);
}
