//! Weight clipping: the scale of each output channel is the one that loses least, not the one that covers the largest
//! weight. A smaller scale rounds all weights finer and clips a few.
//!
//! Paper: the choice of a clipping value by the mean squared error of rounding and clipping together is that of Banner et
//! al. 2019, *Post Training 4-bit Quantization of Convolutional Networks for Rapid-Deployment* (ACIQ), per channel. They
//! derive it from a distribution that is fitted to the weights; here the error of the weights themselves is computed for
//! a grid of scales, as Nagel et al. 2021 (*A White Paper on Neural Network Quantization*, section 3.1, "MSE") do, and
//! each weight counts by the second moment of the input that it multiplies: what is least is `Σᵢ E[xᵢ²] (wᵢ - qᵢ s)²`,
//! the error at the output as far as inputs have nothing to do with each other. From the best scale of the grid on,
//! integers and scale are improved by turns: for integers as they are, the best scale is a quotient.
//!
//! [`search`] is that search, for whatever parameters: those of a channel here, those of a block in
//! [`super::blocks`].
//!
//! Where kernels add the products of neighbours in 16 bits, a scale is only taken when the clipped neighbours still
//! cannot saturate ([`params::least_pair_scale`]). With unsigned 8-bit activations and the whole of int8 that leaves room
//! only where a channel's largest weights have small neighbours, and in depthwise convolutions.

use super::What;
use super::matrix::Matrix;
use super::moments::Gathered;
use crate::error::Result;
use crate::ir::Model;
use crate::kernels;
use crate::quant::annotate::constant;
use crate::quant::params::{self, WeightParams};
use crate::quant::plan::{Decision, NodePlace, QuantPlan};
use crate::tensor::affine;

/// How much of the range that covers everything is tried: this and what lies between.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// Candidates, besides the whole range.
    pub steps: usize,
    /// The smallest share of the range.
    pub smallest: f32,
}

/// A search for parameters `P`.
pub struct Search<'a, P> {
    /// Candidates.
    pub grid: Grid,
    /// Parameters that cover this share of the range; `None` when there are none.
    pub covering: &'a dyn Fn(f32) -> Option<P>,
    /// What they lose. Infinite for parameters that may not be taken.
    pub error: &'a dyn Fn(P) -> f64,
    /// Others close by to be tried from the best of the grid, one after the other.
    pub neighbours: &'a [&'a dyn Fn(P) -> P],
    /// The best parameters for the integers that these give.
    pub refined: &'a dyn Fn(P) -> P,
    /// Minima of the grid that are refined.
    pub starts: usize,
    /// How often each is; less often where that does not help.
    pub rounds: usize,
}

/// The parameters that lose least of those that are tried: the grid, then neighbours of its best, then refinement by
/// turns, of that and of other minima of the grid. The whole range is kept where nothing loses less.
pub fn search<P: Copy>(s: &Search<'_, P>) -> Option<P> {
    let mut best = (s.covering)(1.0)?;
    let mut least = (s.error)(best);
    let mut consider = |p: P| {
        let e = (s.error)(p);
        // Written so that a not-a-number never wins.
        let is_less = e < least;
        if is_less {
            (least, best) = (e, p);
        }
        (e, is_less)
    };
    let (mut p, mut tried) = ((s.covering)(1.0)?, Vec::new());
    for i in 1..=s.grid.steps {
        let shrink = 1.0 - (1.0 - s.grid.smallest) * i as f32 / s.grid.steps as f32;
        let Some(candidate) = (s.covering)(shrink) else { continue };
        let (e, is_less) = consider(candidate);
        tried.push((e, candidate));
        if is_less {
            p = candidate;
        }
    }
    for neighbour in s.neighbours {
        let moved = neighbour(p);
        if consider(moved).1 {
            p = moved;
        }
    }
    let mut starts: Vec<(f64, P)> =
        tried.windows(3).filter(|w| w[1].0 <= w[0].0 && w[1].0 <= w[2].0).map(|w| w[1]).collect();
    starts.sort_by(|a, b| a.0.total_cmp(&b.0));
    let others = starts.into_iter().skip(1).take(s.starts.saturating_sub(1)).map(|(_, p)| p);
    for mut p in std::iter::once(p).chain(others) {
        let mut own = (s.error)(p);
        for _ in 0..s.rounds {
            p = (s.refined)(p);
            let (e, _) = consider(p);
            if e >= own || e.is_nan() {
                break;
            }
            own = e;
        }
    }
    Some(best)
}

/// The smallest share of a channel's range that is tried: what is clipped further loses more than rounding does, unless
/// its inputs are next to nothing.
const SMALLEST: f32 = 0.2;
/// Minima of the grid that are refined: the error has many, and the least on the grid is not always nearest to the least.
const STARTS: usize = 4;
/// Turns of integers and scale: near the best scale a turn puts right only the largest integers that are off by one.
const ROUNDS: usize = 16;
/// Rounded weights that a channel's search may take, which bounds its time: short channels, whose error jumps the most
/// from scale to scale, are searched in finer steps.
const WORK: usize = 1 << 15;
/// Steps of the search, in short and in long channels.
const STEPS: (usize, usize) = (600, 80);

/// Lowers the scales of the weight of every integer node whose inputs' second moments are known, channel by channel, where
/// that loses less. `bias_takes_mean` says whether the mean error of a node will be taken out by its bias
/// ([`super::bias_correct`]): then only the rest counts. `may_change` says which nodes' scales are free: those that the
/// user gave are not. `adds_pairs` is the target's (see the module).
///
/// # Errors
/// A stored tensor cannot be read.
pub fn apply(
    model: &Model,
    plan: &mut QuantPlan,
    gathered: &Gathered,
    bias_takes_mean: &dyn Fn(NodePlace) -> bool,
    may_change: &dyn Fn(NodePlace) -> bool,
    adds_pairs: bool,
) -> Result<Vec<What>> {
    let mut done = Vec::new();
    for i in 0..plan.nodes.len() {
        let place = plan.nodes[i].place;
        if plan.nodes[i].decision != Decision::Integer || !may_change(place) {
            continue;
        }
        let (Some(seen), Some(matrix)) = (gathered.of(place), Matrix::of(model, place)) else { continue };
        let Some(old) = plan.nodes[i].weight.as_ref().map(|w| w.params.clone()) else { continue };
        if seen.len() != matrix.groups || seen.iter().any(|m| m.k != matrix.k) || old.form.dtype.is_float8() {
            continue;
        }
        let centered = bias_takes_mean(place);
        let energy: Vec<Vec<f64>> = seen
            .iter()
            .map(|m| {
                let spread = |(e, mean): (&f64, &f64)| if centered { (e - mean * mean).max(0.0) } else { *e };
                m.energy.iter().zip(&m.mean).map(spread).collect()
            })
            .collect();
        let mut least = vec![0.0; matrix.rows];
        if adds_pairs && old.adds_pairs(matrix.layout, &matrix.shape) {
            let stored = matrix.in_storage(matrix.data.clone());
            for (row, least) in least.iter_mut().enumerate() {
                let summed = matrix.layout.row(&stored, &matrix.shape, row);
                *least = params::least_pair_scale(&summed, old.form.steps());
            }
        }
        let channels = Channels { matrix: &matrix, energy: &energy, params: &old, least };
        let mut new = old.clone();
        new.scales = kernels::map(old.scales.len(), |c| channels.best(c));
        // The bias has to fit with the scale of its product, as before.
        let (id, n) = place;
        let g = model.graph(id);
        let x = g.input(n, matrix.slots.data).and_then(|v| plan.tensors.get(&(id, v))).and_then(|t| t.params);
        let bias = matrix.slots.bias.and_then(|slot| g.input(n, slot)).and_then(|v| constant(model, id, v));
        if let (Some(x), Some(b)) = (x, bias) {
            new.fit_bias(b.get()?.slice()?, x.scale);
        }
        let loss = |p: &WeightParams| (0..p.scales.len()).map(|c| channels.loss(c, p.scales[c])).sum::<f64>();
        let what = What::new(place, loss(&old), loss(&new));
        if let (Some(what), Some(w)) = (what, &mut plan.nodes[i].weight) {
            (w.params, w.rounded) = (new, None);
            done.push(what);
        }
    }
    Ok(done)
}

/// The channels of a weight: those rows that share a scale.
struct Channels<'a> {
    matrix: &'a Matrix,
    /// Of each group's inputs.
    energy: &'a [Vec<f64>],
    params: &'a WeightParams,
    /// The smallest scale of each row that kernels which add pairs in 16 bits can take.
    least: Vec<f32>,
}

impl Channels<'_> {
    fn rows(&self, channel: usize) -> std::ops::Range<usize> {
        if self.params.axis.is_some() { channel..channel + 1 } else { 0..self.matrix.rows }
    }

    /// Weights and the energies of their inputs.
    fn weights(&self, channel: usize) -> impl Iterator<Item = (f32, f64)> {
        self.rows(channel).flat_map(|row| {
            let w = &self.matrix.data[row * self.matrix.k..][..self.matrix.k];
            w.iter().copied().zip(self.energy[row / self.matrix.rows_per_group()].iter().copied())
        })
    }

    fn round(&self, channel: usize, w: f32, scale: f32) -> i32 {
        let (form, zero) = (self.params.form, self.params.zero_points[channel]);
        affine::quantize_one(w, scale, zero, form.low, form.high) - zero
    }

    fn loss(&self, channel: usize, scale: f32) -> f64 {
        let one = |(w, e): (f32, f64)| {
            let lost = f64::from(w) - f64::from(self.round(channel, w, scale)) * f64::from(scale);
            e * lost * lost
        };
        self.weights(channel).map(one).sum()
    }

    /// The scale of a channel that loses least and may be taken.
    fn best(&self, channel: usize) -> f32 {
        let old = self.params.scales[channel];
        let n = self.rows(channel).len() * self.matrix.k;
        let steps = (WORK / n.max(1)).clamp(STEPS.1, STEPS.0);
        let refined = |scale: f32| {
            let (mut wq, mut qq) = (0.0, 0.0);
            for (w, e) in self.weights(channel) {
                let q = f64::from(self.round(channel, w, scale));
                wq += e * f64::from(w) * q;
                qq += e * q * q;
            }
            (wq / qq) as f32
        };
        // A larger scale than the one that covers everything is none that clipping is about, nor one that is needed.
        let least = self.rows(channel).map(|row| self.least[row]).fold(params::MIN_WEIGHT_SCALE, f32::max);
        let error = |scale: f32| {
            if scale == old || scale >= least && scale < old { self.loss(channel, scale) } else { f64::INFINITY }
        };
        let found = search(&Search {
            grid: Grid { steps, smallest: SMALLEST },
            covering: &|share| Some(old * share),
            error: &error,
            neighbours: &[],
            refined: &refined,
            starts: STARTS,
            rounds: ROUNDS,
        });
        found.unwrap_or(old)
    }
}
