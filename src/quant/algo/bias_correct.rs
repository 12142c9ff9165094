//! Bias correction: takes the mean error of each output channel out of the bias.
//!
//! Paper: Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias Correction*, section 4.2, in its
//! two forms, with means over samples instead of what BatchNormalization says:
//!
//! - [`correct`]: what rounding the weights does, `E[y] - E[y'] = (W - W') E[x]`, from the channel means of the float
//!   model's activations ([`needs`]). One pass over the samples serves every plan.
//! - [`refine`]: what is left when the emitted model runs, `E[y] - E[y']` as measured, which includes the activations:
//!   rounding and clipping have a mean too, and `Relu` makes one out of noise. What is corrected in one node is part of
//!   what is measured in all after it, so that nodes are only corrected together when none comes after another: the
//!   last ones, and before them those of a few depths.
//!
//! A node takes the correction in its own bias, or, a `MatMul`, in the constant `Add` behind it.

use std::collections::BTreeMap;

use super::What;
use super::channels::{self, Axis, Channels};
use super::layout::Layout;
use crate::calibrate::dataset::Dataset;
use crate::error::Result;
use crate::ir::{Model, NodeId, ValueId};
use crate::ops::{QuantRule, WeightAxis, lookup};
use crate::quant::annotate::constant;
use crate::quant::plan::{Decision, NodePlace, Place, QuantPlan, WeightPlan};

/// The bias of a node, or what stands in for it.
struct Bias {
    data: usize,
    weight: usize,
    /// The `Add` that holds it, when it is not the node itself.
    add: Option<NodeId>,
    /// What is stored; zeros when nothing is.
    stored: Vec<f32>,
    /// The channel axis of data and output.
    axis: Axis,
    /// Only for weights that are matrices.
    layout: Option<Layout>,
}

/// The bias of a node that can be corrected.
fn bias(model: &Model, plan: &QuantPlan, place: NodePlace) -> Option<Bias> {
    let (id, n) = place;
    let g = model.graph(id);
    let node = g.node(n);
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    let QuantRule::Weighted { data, weight, bias, axis } = lookup(&node.domain, &node.op_type, opset)?.quant else {
        return None;
    };
    let w = constant(model, id, g.input(n, weight)?)?;
    let channels = w.shape()[axis.resolve(&node.attrs, w.shape().len())?];
    let floats = |v: ValueId| -> Option<Vec<f32>> {
        let t = constant(model, id, v)?;
        (t.len() == channels).then_some(())?;
        Some(t.get().ok()?.slice::<f32>().ok()?.to_vec())
    };
    let (add, stored) = match bias {
        Some(slot) => (None, g.input(n, slot).map_or(Some(vec![0.0; channels]), floats)?),
        None => {
            let (add, v) = added_constant(model, plan, place)?;
            constant(model, id, v).filter(|t| t.shape() == [channels])?;
            (Some(add), floats(v)?)
        }
    };
    Some(Bias {
        data,
        weight,
        add,
        stored,
        axis: if matches!(axis, WeightAxis::Fixed(_)) { Axis::Second } else { Axis::Last },
        layout: Layout::of(&node.attrs, axis, w.shape().len()),
    })
}

/// The float `Add` of a constant that alone reads the float output of a node, and the constant.
#[must_use]
pub fn added_constant(model: &Model, plan: &QuantPlan, place: NodePlace) -> Option<(NodeId, ValueId)> {
    let (id, n) = place;
    let g = model.graph(id);
    let y = g.output(n, 0)?;
    if plan.tensors.contains_key(&(id, y)) || g.n_uses(y) != 1 {
        return None;
    }
    let (add, slot) = g.consumers(y).first().copied()?;
    if !g.node(add).is("Add") || plan.node((id, add)).is_some_and(|p| p.decision == Decision::Integer) {
        return None;
    }
    let v = g.input(add, 1 - slot)?;
    constant(model, id, v).map(|_| (add, v))
}

/// Whether the mean error of a node can go into a bias: rounding then only has to care for the rest.
#[must_use]
pub fn takes_mean(model: &Model, plan: &QuantPlan, place: NodePlace) -> bool {
    bias(model, plan, place).is_some()
}

/// The tensors whose channel means [`correct`] needs: data of every weighted integer node that has a bias.
#[must_use]
pub fn needs(model: &Model, plan: &QuantPlan) -> BTreeMap<Place, Axis> {
    let mut out = BTreeMap::new();
    for n in plan.nodes.iter().filter(|n| n.decision == Decision::Integer) {
        let (id, node) = n.place;
        if let Some(b) = bias(model, plan, n.place).filter(|b| b.layout.is_some())
            && let Some(x) = model.graph(id).input(node, b.data)
        {
            out.insert((id, x), b.axis);
        }
    }
    out
}

/// Sets the corrected bias of every weighted integer node whose input's channel means are known. Gives the number of
/// biases that were changed.
///
/// # Errors
/// A stored tensor cannot be read.
pub fn correct(model: &Model, plan: &mut QuantPlan, channels: &BTreeMap<Place, Channels>) -> Result<usize> {
    let mut changed = 0;
    for i in 0..plan.nodes.len() {
        let place = plan.nodes[i].place;
        let (id, node) = place;
        let (Some(b), Some(w_plan)) = (integer_bias(model, plan, i), &plan.nodes[i].weight) else { continue };
        let g = model.graph(id);
        let Some(stats) = g.input(node, b.data).and_then(|x| channels.get(&(id, x))) else { continue };
        let Some(w) = g.input(node, b.weight).and_then(|v| constant(model, id, v)) else { continue };
        let (Some(layout), shape) = (b.layout, w.shape()) else { continue };
        if layout.n_inputs(shape) != stats.min.len() || g.node(node).attrs.int("transA").unwrap_or(0) != 0 {
            continue;
        }
        let shift = rounding_shift(w_plan, layout, w.get()?.slice::<f32>()?, shape, stats)?;
        let new = b.stored.iter().zip(&shift).map(|(b, s)| (f64::from(*b) + s) as f32).collect();
        changed += usize::from(set(model, plan, i, &b, new));
    }
    Ok(changed)
}

fn integer_bias(model: &Model, plan: &QuantPlan, i: usize) -> Option<Bias> {
    let n = &plan.nodes[i];
    if n.decision == Decision::Integer { bias(model, plan, n.place) } else { None }
}

/// `(W - W') E[x]` of each output channel.
fn rounding_shift(
    plan: &WeightPlan,
    layout: Layout,
    float: &[f32],
    shape: &[usize],
    stats: &Channels,
) -> Result<Vec<f64>> {
    let q = match &plan.rounded {
        Some(q) => q.clone(),
        None => plan.params.quantize(float, shape)?,
    };
    // W - W' element by element, then its product with the channel means.
    let mut error: Vec<f32> = float.iter().zip(plan.params.dequantize(&q)?).map(|(w, rounded)| w - rounded).collect();
    let mut shift = vec![0f64; layout.n_outputs(shape)];
    layout.for_each(shape, &mut error, |i, o, e| shift[o] += f64::from(*e) * stats.mean(i));
    Ok(shift)
}

/// Puts a bias into the plan, if it is finite and fits int32 with the scales as they are.
fn set(model: &Model, plan: &mut QuantPlan, i: usize, b: &Bias, new: Vec<f32>) -> bool {
    let (id, node) = plan.nodes[i].place;
    let x = model.graph(id).input(node, b.data).and_then(|x| plan.tensors.get(&(id, x)));
    let (Some(x), Some(w)) = (x.and_then(|t| t.params), &mut plan.nodes[i].weight) else { return false };
    let fits = new.iter().enumerate().all(|(o, b)| {
        let s = w.params.scales[if w.params.axis.is_some() { o } else { 0 }] * x.scale;
        b.is_finite() && (f64::from(*b) / f64::from(s)).abs() < f64::from(i32::MAX)
    });
    if fits {
        w.bias = Some(new);
    }
    fits
}

/// The outputs of every weighted integer node that has a bias, as they are called in the model that runs: the float
/// model, or the one emitted for a plan of it.
fn outputs(model: &Model, plan: &QuantPlan, run: &Model) -> BTreeMap<NodePlace, (Place, Axis)> {
    let mut out = BTreeMap::new();
    for i in 0..plan.nodes.len() {
        let (id, node) = plan.nodes[i].place;
        if let Some(b) = integer_bias(model, plan, i)
            && run.graph(id).has_node(node)
            && let Some(y) = run.graph(id).output(b.add.unwrap_or(node), 0)
        {
            out.insert(plan.nodes[i].place, ((id, y), b.axis));
        }
    }
    out
}

/// How [`refine`] runs.
#[derive(Debug, Clone, Copy)]
pub struct Refine {
    /// Samples that means are taken over.
    pub samples: usize,
    /// Depths at which nodes are corrected, the last nodes included; each is one run of the emitted model.
    pub stages: usize,
}

impl Default for Refine {
    fn default() -> Self {
        Refine { samples: 32, stages: 3 }
    }
}

/// Groups of nodes, in the order of execution, in each of which no node comes after another: all nodes of some depths,
/// spread evenly, and last those that none comes after.
fn stages(model: &Model, nodes: &[NodePlace], plan: &QuantPlan, count: usize) -> Vec<Vec<NodePlace>> {
    let mut depth: BTreeMap<NodePlace, usize> = BTreeMap::new();
    let mut is_last: BTreeMap<NodePlace, bool> = BTreeMap::new();
    for n in &plan.nodes {
        let (id, node) = n.place;
        let g = model.graph(id);
        let inputs = g.node_inputs(node).into_iter().flatten().chain(g.captures(node));
        let before = inputs.filter_map(|v| g.producer(v)).filter_map(|(p, _)| depth.get(&(id, p))).max().copied();
        depth.insert(n.place, before.unwrap_or(0) + usize::from(nodes.contains(&n.place)));
    }
    for n in plan.nodes.iter().rev() {
        let (id, node) = n.place;
        let g = model.graph(id);
        let after = g.node_outputs(node).into_iter().flatten().flat_map(|v| g.consumers(v));
        let free = after.fold(true, |free, (c, _)| {
            free && !nodes.contains(&(id, c)) && is_last.get(&(id, c)).copied().unwrap_or(true)
        });
        is_last.insert(n.place, free);
    }
    let deepest = nodes.iter().filter_map(|n| depth.get(n)).max().copied().unwrap_or(0);
    let mut out: Vec<Vec<NodePlace>> = (1..count)
        .map(|i| {
            let at = |n: &&NodePlace| depth.get(*n) == Some(&(deepest * i / count)) && is_last.get(*n) == Some(&false);
            nodes.iter().filter(at).copied().collect()
        })
        .collect();
    out.push(nodes.iter().filter(|n| is_last.get(*n) == Some(&true)).copied().collect());
    out.retain(|stage| !stage.is_empty());
    out.dedup();
    out
}

/// Corrects biases by the difference between the means of the float model's and the emitted model's outputs, node by
/// node. `emit` makes the model of a plan. Best after [`correct`]. The gain it gives for a node is that of the mean square
/// of the shift which the next stage would see.
///
/// # Errors
/// A model does not run on a sample, or a plan cannot be carried out.
pub fn refine(
    model: &Model,
    plan: &mut QuantPlan,
    emit: &dyn Fn(&QuantPlan) -> Result<Model>,
    data: &dyn Dataset,
    how: Refine,
) -> Result<Vec<What>> {
    let float_places = outputs(model, plan, model);
    let float = channels::gather(model, &float_places.values().copied().collect(), data, how.samples)?;
    let nodes: Vec<NodePlace> = float_places.keys().copied().collect();
    let mut done = Vec::new();
    for stage in stages(model, &nodes, plan, how.stages.max(1)) {
        let emitted = emit(plan)?;
        let mut places = outputs(model, plan, &emitted);
        places.retain(|place, _| stage.contains(place));
        let seen = channels::gather(&emitted, &places.values().copied().collect(), data, how.samples)?;
        for i in 0..plan.nodes.len() {
            let place = plan.nodes[i].place;
            let Some(b) = integer_bias(model, plan, i).filter(|_| stage.contains(&place)) else { continue };
            let want = float_places.get(&place).and_then(|(p, _)| float.get(p));
            let found = places.get(&place).and_then(|(p, _)| seen.get(p));
            let (Some(want), Some(found)) = (want, found) else { continue };
            let old = plan.nodes[i].weight.as_ref().and_then(|w| w.bias.clone()).unwrap_or_else(|| b.stored.clone());
            if want.sum.len() != old.len() || found.sum.len() != old.len() {
                continue;
            }
            let shift: Vec<f64> = (0..old.len()).map(|c| want.mean(c) - found.mean(c)).collect();
            let new = old.iter().zip(&shift).map(|(b, s)| (f64::from(*b) + s) as f32).collect();
            if set(model, plan, i, &b, new) {
                let noise: f64 = shift.iter().map(|s| s * s).sum();
                let signal: f64 = (0..old.len()).map(|c| want.mean_sq(c)).sum();
                done.extend(What::new(place, signal + noise, signal));
            }
        }
    }
    Ok(done)
}
