//! Equalization of activation channels: moves the difference between channels of an activation into weights, where
//! per-channel scales absorb it. The float model computes the same afterwards.
//!
//! Papers: Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias Correction* (cross-layer
//! equalization); Xiao et al. 2023, *SmoothQuant*. Both scale channel `c` of a tensor by `s_c` where it is made and by
//! `1/s_c` in the weights that read it. They differ in where the factor goes on the making side: into a weight, into the
//! scale and shift of a normalization, or any other constant that [`super::fold`] finds; else, before `MatMul` and `Gemm`,
//! into an added `Mul` that costs little beside them.
//!
//! With `s_c = max(1, R / h r_c)^α` for the channel's largest magnitude `r_c`, `R = max r_c` and some headroom `h`, the strength `α` is chosen for each
//! tensor by the noise at its readers' outputs: measured on rows of what they read ([`super::moments::rows`]), each
//! quantized and multiplied with the quantized weight, or, without rows, predicted as
//!
//! `noise = step(x)²/12 · Σ W'² + Σ_o step(W'_o)²/12 · Σ_c E[x'_c²]` with `x'_c = s_c x_c` and `W'_c = W_c / s_c`.

use std::collections::BTreeMap;

use super::channels::{Axis, Channels};
use super::fold::{self, Fold};
use super::layout::Layout;
use super::matrix::Matrix;
use super::moments::Rows;
use crate::error::Result;
use crate::ir::{GraphId, Model, Names, Node, NodeId, ValueId};
use crate::kernels::gemm::{Init, PackedB, gemm};
use crate::quant::params::{QParams, Range};
use crate::quant::plan::{Decision, Place, QuantPlan};
use crate::tensor::{DType, Tensor, affine};

/// Strengths that are tried.
const ALPHAS: [f32; 8] = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0];
/// Gain below which a tensor is left alone, in dB.
const LEAST_GAIN_DB: f64 = 0.5;
/// Gain below which no `Mul` is added, in dB.
const LEAST_GAIN_FOR_MUL_DB: f64 = 2.0;
/// Output channels below which an added `Mul` costs too much beside the multiplication that it helps.
const LEAST_OUTPUTS_FOR_MUL: usize = 64;
/// Headroom above the largest value that was seen of a channel. Other samples go beyond it, and where every channel fills
/// the range one of them always does: without headroom, an image classifier equalized on 8 samples had 27 dB on these and
/// 11 dB on others.
const HEADROOM: f32 = 1.5;
/// Room above the largest value seen that is left below the upper bound of a `Clip`.
const CLIP_ROOM: f32 = 1.25;
/// Largest integer of a weight, for the estimates: symmetric int8 per channel.
const WEIGHT_MAX: f32 = 127.0;
/// Output channels of a reader that noise is measured at, spread evenly.
const MEASURED_OUTPUTS: usize = 96;
/// Rows that noise is measured on: what is worth to be gathered for [`equalize`].
pub const MEASURED_ROWS: usize = 192;

/// What was done to one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Equalized {
    /// The tensor.
    pub tensor: String,
    /// Strength.
    pub alpha: f32,
    /// Gain at the readers' outputs, in dB, as measured on the rows or predicted.
    pub gain_db: f64,
    /// Whether a `Mul` was added, since no constant on the making side can take the factor.
    pub added_mul: bool,
    /// The values of the model that are other ones now; the result of an added `Mul` is not among them.
    pub scaled: Vec<Place>,
}

/// A weighted node that reads the tensor.
struct Reader {
    node: NodeId,
    weight: Matrix,
}

/// Where the factor goes on the making side.
enum Maker {
    /// Into constants that are there.
    Fold(Fold),
    /// Into a `Mul` of its own.
    Mul,
}

impl Maker {
    /// What is scaled along with a tensor and quantized before it.
    fn between(&self, plan: &QuantPlan, (id, v): Place) -> Vec<(Place, Axis)> {
        let Maker::Fold(fold) = self else { return Vec::new() };
        let scaled = fold.scaled.iter().map(|&(w, axis)| ((id, w), axis));
        scaled.filter(|&((_, w), _)| w != v && plan.tensors.contains_key(&(id, w))).collect()
    }
}

/// The tensors of a plan that could be equalized, with the axis of their channels: what statistics are needed of.
#[must_use]
pub fn candidates(model: &Model, plan: &QuantPlan) -> BTreeMap<Place, Axis> {
    let mut out = BTreeMap::new();
    for &(id, v) in plan.tensors.keys() {
        if let Some(readers) = readers(model, plan, id, v)
            && let Some(maker) = maker(model, plan, id, v, &readers)
        {
            out.extend(maker.between(plan, (id, v)));
            out.insert((id, v), axis(&readers[0]));
        }
    }
    out
}

/// Equalizes every tensor of the plan where that helps, and says what was done. Edits the float model: constants are
/// replaced by new initializers, shared ones are not touched. `rows` are those of the float model.
///
/// # Errors
/// A stored tensor cannot be read.
pub fn equalize(
    model: &mut Model,
    plan: &QuantPlan,
    channels: &BTreeMap<Place, Channels>,
    rows: Option<&Rows>,
) -> Result<Vec<Equalized>> {
    let mut names = Names::of(model);
    let mut done = Vec::new();
    for (&(id, v), stats) in channels {
        let Some(readers) = readers(model, plan, id, v) else { continue };
        if readers.iter().any(|r| r.weight.channels() != stats.min.len()) {
            continue;
        }
        let Some(maker) = maker(model, plan, id, v, &readers) else { continue };
        let Some(limits) = limits(plan, channels, (id, v), &maker) else { continue };
        let Some((alpha, factors, gain_db)) = choose(stats, id, &readers, &limits, rows) else { continue };
        let least = if matches!(maker, Maker::Mul) { LEAST_GAIN_FOR_MUL_DB } else { LEAST_GAIN_DB };
        if gain_db < least {
            continue;
        }
        let tensor = model.graph(id).value(v).name.clone();
        let nodes: Vec<NodeId> = readers.iter().map(|r| r.node).collect();
        divide(model, &mut names, id, readers, &factors)?;
        match &maker {
            Maker::Fold(fold) => fold::apply(model, &mut names, id, fold, &factors)?,
            Maker::Mul => add_mul(model, &mut names, id, v, &nodes, &factors)?,
        }
        let scaled =
            if let Maker::Fold(f) = &maker { f.scaled.iter().map(|&(v, _)| (id, v)).collect() } else { Vec::new() };
        done.push(Equalized { tensor, alpha, gain_db, added_mul: matches!(maker, Maker::Mul), scaled });
    }
    Ok(done)
}

fn axis(reader: &Reader) -> Axis {
    if matches!(reader.weight.layout, Layout::Conv { .. }) { Axis::Second } else { Axis::Last }
}

/// The weighted integer nodes that read the tensor; `None` when an integer reader is something else, or when their
/// channels lie along different axes.
fn readers(model: &Model, plan: &QuantPlan, id: GraphId, v: ValueId) -> Option<Vec<Reader>> {
    let g = model.graph(id);
    let mut out: Vec<Reader> = Vec::new();
    for (n, slot) in g.consumers(v) {
        if plan.node((id, n)).is_none_or(|p| p.decision != Decision::Integer) {
            continue;
        }
        let weight = Matrix::of(model, (id, n)).filter(|m| m.slots.data == slot)?;
        let reader = Reader { node: n, weight };
        if out.first().is_some_and(|r| axis(r) != axis(&reader) || r.weight.channels() != reader.weight.channels()) {
            return None;
        }
        out.push(reader);
    }
    (!out.is_empty()).then_some(out)
}

/// Who can take the factor.
fn maker(model: &Model, plan: &QuantPlan, id: GraphId, v: ValueId, readers: &[Reader]) -> Option<Maker> {
    let g = model.graph(id);
    let first = readers.first()?;
    if g.n_uses(v) == readers.len()
        && let Some(found) = fold::find(model, id, v, axis(first), first.weight.channels())
    {
        return Some(Maker::Fold(found));
    }
    let is_float_made = g
        .producer(v)
        .is_some_and(|(n, _)| plan.node((id, n)).is_some_and(|p| matches!(p.decision, Decision::Float { .. })));
    let pays = axis(first) == Axis::Last && readers.iter().all(|r| r.weight.rows >= LEAST_OUTPUTS_FOR_MUL);
    (is_float_made && pays).then_some(Maker::Mul)
}

/// The largest factor of each channel that keeps the tensor below the bound of a `Clip`, and no channel of what is
/// quantized before it above that one's largest: what is small after a `PRelu` may have been large. `None` where a channel
/// cannot be told.
fn limits(plan: &QuantPlan, channels: &BTreeMap<Place, Channels>, place: Place, maker: &Maker) -> Option<Vec<f32>> {
    let Channels { min, max, .. } = channels.get(&place)?;
    let largest = |lo: &f32, hi: &f32| lo.abs().max(hi.abs());
    let mut limits = match maker {
        Maker::Fold(Fold { limit: Some(bound), .. }) => {
            min.iter().zip(max).map(|(lo, hi)| (bound / (largest(lo, hi) * CLIP_ROOM)).max(1.0)).collect()
        }
        _ => vec![f32::INFINITY; min.len()],
    };
    for (between, _) in maker.between(plan, place) {
        let Channels { min, max, .. } = channels.get(&between).filter(|c| c.min.len() == limits.len())?;
        let r: Vec<f32> = min.iter().zip(max).map(|(lo, hi)| largest(lo, hi)).collect();
        let top = r.iter().copied().filter(|r| r.is_finite()).fold(0f32, f32::max);
        limits.iter_mut().zip(&r).for_each(|(limit, r)| *limit = limit.min((top / (r * HEADROOM)).max(1.0)));
    }
    Some(limits)
}

/// The best strength, its factors and the gain in dB over doing nothing.
fn choose(
    stats: &Channels,
    id: GraphId,
    readers: &[Reader],
    limits: &[f32],
    rows: Option<&Rows>,
) -> Option<(f32, Vec<f32>, f64)> {
    let n = stats.min.len();
    let r: Vec<f32> = stats.min.iter().zip(&stats.max).map(|(lo, hi)| lo.abs().max(hi.abs())).collect();
    let top = r.iter().copied().filter(|x| x.is_finite()).fold(0f32, f32::max);
    if top <= 0.0 {
        return None;
    }
    let probes: Option<Vec<Probe<'_>>> =
        rows.and_then(|rows| readers.iter().map(|r| Probe::new(&r.weight, rows.of((id, r.node))?)).collect());
    let noise = |factors: &[f32]| match &probes {
        Some(probes) => {
            let range = scaled_range(stats, factors);
            probes.iter().map(|p| p.noise(range, factors)).sum::<f64>().max(f64::MIN_POSITIVE)
        }
        None => predict(stats, readers, factors),
    };
    let nothing = noise(&vec![1.0; n]);
    let mut best: Option<(f32, Vec<f32>, f64)> = None;
    for alpha in ALPHAS {
        let factor = |(&r, &limit): (&f32, &f32)| {
            // A dead channel says nothing; one that is nearly dead must not blow up its making weight.
            let is_alive = r > top * 1e-4;
            if is_alive { (top / (r * HEADROOM)).max(1.0).powf(alpha).min(limit) } else { 1.0 }
        };
        let factors: Vec<f32> = r.iter().zip(limits).map(factor).collect();
        let gain = 10.0 * (nothing / noise(&factors)).log10();
        if best.as_ref().is_none_or(|b| gain > b.2) {
            best = Some((alpha, factors, gain));
        }
    }
    best
}

/// The range of the tensor with its channels scaled.
fn scaled_range(stats: &Channels, factors: &[f32]) -> Range {
    let seen = (0..factors.len()).filter(|&c| stats.min[c] <= stats.max[c]);
    seen.fold(Range::new(0.0, 0.0), |r, c| r.union(Range::new(stats.min[c] * factors[c], stats.max[c] * factors[c])))
}

/// A reader with rows of what it reads.
struct Probe<'a> {
    weight: &'a Matrix,
    /// `[rows, groups * k]`
    x: &'a [f32],
    /// Output channels that are looked at.
    outputs: Vec<usize>,
    /// Their values, one list for each output.
    y: Vec<f32>,
}

impl<'a> Probe<'a> {
    /// `None` when there are no rows.
    fn new(weight: &'a Matrix, x: &'a [f32]) -> Option<Self> {
        let all = weight.rows;
        let count = all.min(MEASURED_OUTPUTS);
        let outputs: Vec<usize> = (0..count).map(|i| i * all / count).collect();
        if x.len() < weight.groups * weight.k {
            return None;
        }
        let mut probe = Probe { weight, x, outputs, y: Vec::new() };
        probe.y = probe.outputs_of(&|_, x| x, &|o| weight.data[o * weight.k..][..weight.k].to_vec());
        Some(probe)
    }

    /// The chosen outputs, with what is read in each column made of the rows by `x` and the weight of each output by `w`.
    fn outputs_of(&self, x: &dyn Fn(usize, f32) -> f32, w: &dyn Fn(usize) -> Vec<f32>) -> Vec<f32> {
        let (k, per_group) = (self.weight.k, self.weight.rows_per_group());
        let stride = self.weight.groups * k;
        let rows = self.x.len() / stride;
        let mut y = Vec::with_capacity(rows * self.outputs.len());
        for same_group in self.outputs.chunk_by(|a, b| a / per_group == b / per_group) {
            let from = same_group[0] / per_group * k;
            let weights: Vec<f32> = same_group.iter().flat_map(|&o| w(o)).collect();
            let packed = PackedB::new(&weights, k, same_group.len(), 1, k);
            let columns = from..from + k;
            let row_of = |row: &'a [f32]| row[columns.clone()].iter().zip(columns.clone()).map(|(&v, i)| x(i, v));
            let part: Vec<f32> = self.x.chunks_exact(stride).flat_map(row_of).collect();
            let mut product = vec![0.0; rows * same_group.len()];
            gemm(1, rows, &part, &packed, Init::Zero, &mut product);
            y.extend(product);
        }
        y
    }

    /// Noise at the outputs relative to their signal when the scaled data and weights are quantized.
    fn noise(&self, range: Range, factors: &[f32]) -> f64 {
        let (m, k) = (self.weight, self.weight.k);
        let Ok(p) = QParams::asymmetric(range, DType::U8) else { return f64::INFINITY };
        let factor: Vec<f32> = (0..m.groups * k).map(|i| factors[m.channel(i / k, i % k)]).collect();
        let y = self.outputs_of(&|i, x| p.fake(x * factor[i]), &|o| {
            let factor = &factor[o / m.rows_per_group() * k..][..k];
            let mut w: Vec<f32> = m.data[o * k..][..k].iter().zip(factor).map(|(w, s)| w / s).collect();
            let scale = (w.iter().fold(0f32, |m, x| m.max(x.abs())) / WEIGHT_MAX).max(f32::MIN_POSITIVE);
            let top = WEIGHT_MAX as i32;
            w.iter_mut().for_each(|w| *w = affine::fake_one(*w, scale, 0, -top, top));
            w
        });
        let square = |x: f32| f64::from(x) * f64::from(x);
        let signal: f64 = self.y.iter().map(|&y| square(y)).sum();
        let noise: f64 = self.y.iter().zip(&y).map(|(a, b)| square(a - b)).sum();
        if signal > 0.0 { noise / signal } else { 0.0 }
    }
}

/// Noise at the readers' outputs relative to their signal, summed over the readers, as the statistics predict it.
fn predict(stats: &Channels, readers: &[Reader], factors: &[f32]) -> f64 {
    let range = scaled_range(stats, factors);
    let step = f64::from(range.max - range.min) / 255.0;
    let energy: Vec<f64> = (0..factors.len()).map(|c| stats.mean_sq(c) * f64::from(factors[c]).powi(2)).collect();
    let mut total = 0.0;
    for Reader { weight: m, .. } in readers {
        let (mut squares, mut signal, mut weight_noise) = (0.0, 0.0, 0.0);
        for (o, row) in m.data.chunks_exact(m.k).enumerate() {
            // The energy of what the weights of this output meet, one term for each.
            let (mut top, mut met) = (0f32, 0.0);
            for (i, w) in row.iter().enumerate() {
                let c = m.channel(o / m.rows_per_group(), i);
                let w = w / factors[c];
                top = top.max(w.abs());
                squares += f64::from(w).powi(2);
                signal += f64::from(w).powi(2) * energy[c];
                met += energy[c];
            }
            weight_noise += (f64::from(top) / f64::from(WEIGHT_MAX)).powi(2) / 12.0 * met;
        }
        if signal > 0.0 {
            total += (step * step / 12.0 * squares + weight_noise) / signal;
        }
    }
    total.max(f64::MIN_POSITIVE)
}

/// Divides the weights of the readers by the factors of their input channels.
fn divide(model: &mut Model, names: &mut Names, id: GraphId, readers: Vec<Reader>, factors: &[f32]) -> Result<()> {
    for Reader { node, weight: m } in readers {
        let mut rows = m.data.clone();
        for (o, row) in rows.chunks_exact_mut(m.k).enumerate() {
            for (i, w) in row.iter_mut().enumerate() {
                *w /= factors[m.channel(o / m.rows_per_group(), i)];
            }
        }
        let Some(old) = model.graph(id).input(node, m.slots.weight) else { continue };
        let name = names.fresh(&format!("{}_equalized", model.graph(id).value(old).name));
        let g = model.graph_mut(id);
        let w = g.add_initializer(name, Tensor::new(&m.shape, m.in_storage(rows))?);
        g.set_input(node, m.slots.weight, Some(w));
    }
    Ok(())
}

/// Multiplies the tensor by the factors for these nodes; all others keep the tensor.
fn add_mul(
    model: &mut Model,
    names: &mut Names,
    id: GraphId,
    v: ValueId,
    readers: &[NodeId],
    factors: &[f32],
) -> Result<()> {
    let g = model.graph(id);
    let (base, ty) = (g.value(v).name.clone(), g.value(v).ty.clone());
    let slots: Vec<_> = g.consumers(v).into_iter().filter(|(n, _)| readers.contains(n)).collect();
    // Beside its first reader, before the pair that the quantizer adds there.
    let pos = slots.first().map_or_else(Default::default, |&(n, _)| (0..4).fold(g.node(n).pos, |p, _| p.before()));
    let factor = names.fresh(&format!("{base}_smooth"));
    let result = names.fresh(&format!("{base}_smoothed"));
    let label = names.fresh(&format!("{base}_Smooth"));
    let g = model.graph_mut(id);
    let s = g.add_initializer(factor, Tensor::new(&[factors.len()], factors.to_vec())?);
    let y = g.add_result(result, ty);
    g.add_node(Node::new("Mul").named(label).at(pos), &[Some(v), Some(s)], &[Some(y)]);
    for (n, slot) in slots {
        g.set_input(n, slot, Some(y));
    }
    Ok(())
}
