//! Equalization of activation channels: moves the difference between channels of an activation into weights, where
//! per-channel scales absorb it. The float model computes the same afterwards.
//!
//! Papers: Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias Correction* (cross-layer
//! equalization); Xiao et al. 2023, *SmoothQuant*. Both scale channel `c` of a tensor by `s_c` where it is made and by
//! `1/s_c` in the weights that read it. They differ in where the factor goes: here into the weights that make the tensor
//! (also through `Relu`, `LeakyRelu` and `Clip`), else, before `MatMul` and `Gemm`, into an added `Mul` that costs
//! little beside them. The strength is chosen for each tensor by predicted noise at its readers' outputs:
//!
//! `noise = step(x)²/12 · Σ W'² + Σ_o step(W'_o)²/12 · Σ_c E[x'_c²]`
//!
//! where `x'_c = s_c x_c`, `W'_c = W_c / s_c` and `s_c = (R / r_c)^α` for the channel's largest magnitude `r_c`, `R = max r_c`.

use std::collections::BTreeMap;

use super::channels::{Axis, Channels};
use super::layout::Layout;
use crate::error::Result;
use crate::ir::{GraphId, Model, Names, Node, NodeId, ValueId};
use crate::ops::{QuantRule, lookup};
use crate::quant::annotate::constant;
use crate::quant::plan::{Decision, Place, QuantPlan};
use crate::tensor::Tensor;

/// Strengths that are tried.
const ALPHAS: [f32; 8] = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0];
/// Predicted gain below which a tensor is left alone, in dB.
const LEAST_GAIN_DB: f64 = 0.5;
/// Gain below which no `Mul` is added, in dB.
const LEAST_GAIN_FOR_MUL_DB: f64 = 2.0;
/// Output channels below which an added `Mul` costs too much beside the multiplication that it helps.
const LEAST_OUTPUTS_FOR_MUL: usize = 64;
/// Room above the largest value seen that is left below the upper bound of a `Clip`.
const CLIP_ROOM: f32 = 1.25;

/// What was done to one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Equalized {
    /// The tensor.
    pub tensor: String,
    /// Strength.
    pub alpha: f32,
    /// Predicted gain at the readers' outputs, in dB.
    pub gain_db: f64,
    /// Whether a `Mul` was added, since no weight makes the tensor.
    pub added_mul: bool,
}

/// A weighted node that reads the tensor.
struct Reader {
    node: NodeId,
    slot: usize,
    weight: ValueId,
    data: Vec<f32>,
    shape: Vec<usize>,
    layout: Layout,
}

/// Where the factor goes on the making side.
enum Maker {
    /// Into the weight and bias of this node.
    Weight { node: NodeId, weight: ValueId, bias: Option<(usize, ValueId)>, layout: Layout },
    /// Into a `Mul` of its own.
    Mul,
}

/// The tensors of a plan that could be equalized, with the axis of their channels: what statistics are needed of.
#[must_use]
pub fn candidates(model: &Model, plan: &QuantPlan) -> BTreeMap<Place, Axis> {
    let mut out = BTreeMap::new();
    for &(id, v) in plan.tensors.keys() {
        if let Some(readers) = readers(model, plan, id, v)
            && let Some(first) = readers.first()
        {
            let axis = if matches!(first.layout, Layout::Conv { .. }) { Axis::Second } else { Axis::Last };
            out.insert((id, v), axis);
        }
    }
    out
}

/// Equalizes every tensor of the plan where that is predicted to help, and says what was done. Edits the float model:
/// weights are replaced by new initializers, shared ones are not touched.
///
/// # Errors
/// A stored tensor cannot be read.
pub fn equalize(model: &mut Model, plan: &QuantPlan, channels: &BTreeMap<Place, Channels>) -> Result<Vec<Equalized>> {
    let mut names = Names::of(model);
    let mut done = Vec::new();
    for (&(id, v), stats) in channels {
        let Some(readers) = readers(model, plan, id, v) else { continue };
        let Some((maker, limit)) = maker(model, plan, id, v, &readers) else { continue };
        let Some((alpha, factors, gain_db)) = choose(stats, &readers, limit) else { continue };
        let least = if matches!(maker, Maker::Mul) { LEAST_GAIN_FOR_MUL_DB } else { LEAST_GAIN_DB };
        if gain_db < least {
            continue;
        }
        let tensor = model.graph(id).value(v).name.clone();
        let added_mul = matches!(maker, Maker::Mul);
        apply(model, &mut names, id, v, maker, readers, &factors)?;
        done.push(Equalized { tensor, alpha, gain_db, added_mul });
    }
    Ok(done)
}

/// The weighted integer nodes that read the tensor; `None` when an integer reader is something else, or when a weight
/// has another number of channels.
fn readers(model: &Model, plan: &QuantPlan, id: GraphId, v: ValueId) -> Option<Vec<Reader>> {
    let g = model.graph(id);
    let mut out: Vec<Reader> = Vec::new();
    for (n, slot) in g.consumers(v) {
        if plan.node((id, n)).is_none_or(|p| p.decision != Decision::Integer) {
            continue;
        }
        let node = g.node(n);
        let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
        let Some(QuantRule::Weighted { data, weight, axis, .. }) =
            lookup(&node.domain, &node.op_type, opset).map(|d| d.quant)
        else {
            return None;
        };
        if slot != data || node.attrs.int("transA").unwrap_or(0) != 0 {
            return None;
        }
        let w = g.input(n, weight)?;
        let t = constant(model, id, w)?;
        let layout = Layout::of(&node.attrs, axis, t.shape().len())?;
        let data = t.get().ok()?.slice::<f32>().ok()?.to_vec();
        let is_conv = |l: Layout| matches!(l, Layout::Conv { .. });
        if out.first().is_some_and(|r: &Reader| is_conv(r.layout) != is_conv(layout)) {
            return None;
        }
        out.push(Reader { node: n, slot: weight, weight: w, data, shape: t.shape().to_vec(), layout });
    }
    (!out.is_empty()).then_some(out)
}

/// Who can take the factor, and the bound that scaled values must stay below.
fn maker(model: &Model, plan: &QuantPlan, id: GraphId, v: ValueId, readers: &[Reader]) -> Option<(Maker, Option<f32>)> {
    let g = model.graph(id);
    let only_these = g.n_uses(v) == readers.len();
    if only_these && let Some(found) = weight_maker(model, id, v) {
        return Some(found);
    }
    let is_float_made = g
        .producer(v)
        .is_some_and(|(n, _)| plan.node((id, n)).is_some_and(|p| matches!(p.decision, Decision::Float { .. })));
    let pays = readers
        .iter()
        .all(|r| !matches!(r.layout, Layout::Conv { .. }) && r.layout.n_outputs(&r.shape) >= LEAST_OUTPUTS_FOR_MUL);
    (is_float_made && pays).then_some((Maker::Mul, None))
}

fn weight_maker(model: &Model, id: GraphId, v: ValueId) -> Option<(Maker, Option<f32>)> {
    let g = model.graph(id);
    let (mut n, _) = g.producer(v)?;
    let mut limit = None;
    let through = g.node(n);
    // Positively homogeneous functions let a positive factor pass; a Clip at 0 does up to its upper bound.
    if through.is("Relu") || through.is("LeakyRelu") || through.is("PRelu") || through.is("Clip") {
        if through.is("Clip") {
            let bound = |slot: usize| {
                g.input(n, slot).and_then(|b| constant(model, id, b)).and_then(|t| t.get().ok()?.to_f64().ok())
            };
            if bound(1) != Some(0.0) {
                return None;
            }
            limit = bound(2).map(|x| x as f32);
            if g.input(n, 2).is_some() && limit.is_none() {
                return None;
            }
        }
        let x = g.input(n, 0)?;
        if g.n_uses(x) != 1 {
            return None;
        }
        n = g.producer(x)?.0;
    }
    let node = g.node(n);
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    let QuantRule::Weighted { weight, bias, axis, .. } = lookup(&node.domain, &node.op_type, opset)?.quant else {
        return None;
    };
    let w = g.input(n, weight)?;
    let t = constant(model, id, w)?;
    if t.dtype() != crate::tensor::DType::F32 {
        return None;
    }
    let layout = Layout::of(&node.attrs, axis, t.shape().len())?;
    let bias = match bias.and_then(|slot| g.input(n, slot).map(|b| (slot, b))) {
        Some((slot, b)) => {
            let t = constant(model, id, b)?;
            (t.shape() == [layout.n_outputs(constant(model, id, w)?.shape())]).then_some(())?;
            Some((slot, b))
        }
        None => None,
    };
    Some((Maker::Weight { node: n, weight: w, bias, layout }, limit))
}

/// The best strength, its factors and the predicted gain in dB over doing nothing.
fn choose(stats: &Channels, readers: &[Reader], limit: Option<f32>) -> Option<(f32, Vec<f32>, f64)> {
    let n = stats.min.len();
    // Every reader must have the tensor's channels.
    for r in readers {
        if r.layout.n_inputs(&r.shape) != n {
            return None;
        }
    }
    let r: Vec<f32> = stats.min.iter().zip(&stats.max).map(|(lo, hi)| lo.abs().max(hi.abs())).collect();
    let top = r.iter().copied().filter(|x| x.is_finite()).fold(0f32, f32::max);
    if top <= 0.0 {
        return None;
    }
    let nothing = predict(stats, readers, &vec![1.0; n]);
    let mut best: Option<(f32, Vec<f32>, f64)> = None;
    for alpha in ALPHAS {
        let factors: Vec<f32> = r
            .iter()
            .map(|&r| {
                // A dead channel says nothing; one that is nearly dead must not blow up its making weight.
                if !(r > top * 1e-4) {
                    return 1.0;
                }
                let s = (top / r).powf(alpha);
                limit.map_or(s, |l| s.min((l / (r * CLIP_ROOM)).max(1.0)))
            })
            .collect();
        let gain = 10.0 * (nothing / predict(stats, readers, &factors)).log10();
        if best.as_ref().is_none_or(|b| gain > b.2) {
            best = Some((alpha, factors, gain));
        }
    }
    best
}

/// Noise at the readers' outputs relative to their signal, summed over the readers.
fn predict(stats: &Channels, readers: &[Reader], factors: &[f32]) -> f64 {
    let (mut lo, mut hi) = (0f32, 0f32);
    for (c, s) in factors.iter().enumerate() {
        if stats.min[c] <= stats.max[c] {
            lo = lo.min(stats.min[c] * s);
            hi = hi.max(stats.max[c] * s);
        }
    }
    let step = f64::from(hi - lo) / 255.0;
    let energy: Vec<f64> = (0..factors.len()).map(|c| stats.mean_sq(c) * f64::from(factors[c]).powi(2)).collect();
    let mut total = 0.0;
    for r in readers {
        let outputs = r.layout.n_outputs(&r.shape);
        let mut top = vec![0f32; outputs];
        let mut squares = 0.0;
        let mut signal = 0.0;
        // For each output: the energy of what its weights meet, one term per weight element.
        let mut met = vec![0.0; outputs];
        let mut w = r.data.clone();
        r.layout.for_each(&r.shape, &mut w, |i, o, x| {
            let x = *x / factors[i];
            top[o] = top[o].max(x.abs());
            squares += f64::from(x).powi(2);
            signal += f64::from(x).powi(2) * energy[i];
            met[o] += energy[i];
        });
        let weight_noise: f64 = top.iter().zip(&met).map(|(t, m)| (f64::from(*t) / 127.0).powi(2) / 12.0 * m).sum();
        if signal > 0.0 {
            total += (step * step / 12.0 * squares + weight_noise) / signal;
        }
    }
    total.max(f64::MIN_POSITIVE)
}

fn apply(
    model: &mut Model,
    names: &mut Names,
    id: GraphId,
    v: ValueId,
    maker: Maker,
    readers: Vec<Reader>,
    factors: &[f32],
) -> Result<()> {
    let nodes: Vec<NodeId> = readers.iter().map(|r| r.node).collect();
    for mut r in readers {
        r.layout.for_each(&r.shape, &mut r.data, |i, _, x| *x /= factors[i]);
        let name = names.fresh(&format!("{}_equalized", model.graph(id).value(r.weight).name));
        let g = model.graph_mut(id);
        let w = g.add_initializer(name, Tensor::new(&r.shape, r.data)?);
        g.set_input(r.node, r.slot, Some(w));
    }
    match maker {
        Maker::Weight { node, weight, bias, layout } => {
            let t = constant(model, id, weight).cloned();
            let Some(t) = t else { return Ok(()) };
            let mut w = t.get()?.slice::<f32>()?.to_vec();
            layout.for_each(t.shape(), &mut w, |_, o, x| *x *= factors[o]);
            let name = names.fresh(&format!("{}_equalized", model.graph(id).value(weight).name));
            let slot = model.graph(id).node_inputs(node).iter().position(|x| *x == Some(weight));
            let g = model.graph_mut(id);
            let w = g.add_initializer(name, Tensor::new(t.shape(), w)?);
            if let Some(slot) = slot {
                g.set_input(node, slot, Some(w));
            }
            if let Some((slot, b)) = bias
                && let Some(t) = constant(model, id, b).cloned()
            {
                let b_name = names.fresh(&format!("{}_equalized", model.graph(id).value(b).name));
                let scaled = t.get()?.slice::<f32>()?.iter().zip(factors).map(|(b, s)| b * s).collect();
                let g = model.graph_mut(id);
                let b = g.add_initializer(b_name, Tensor::new(t.shape(), scaled)?);
                g.set_input(node, slot, Some(b));
            }
        }
        Maker::Mul => add_mul(model, names, id, v, &nodes, factors)?,
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
