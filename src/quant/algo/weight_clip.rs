//! Weight clipping: the scale of each output channel that loses least over all of its weights, instead of the one that
//! covers the largest.
//!
//! Paper: Banner et al. 2019, *Post-training 4-bit quantization of convolution networks for rapid-deployment* (clipping
//! by mean square error); here by trying scales, and with each weight's error counted by the mean square of what it is
//! multiplied with, the diagonal of the second moments, where that is known.
//!
//! Use: [`apply`] on a plan without rounded integers, before anything rounds. Moments are optional.

use rayon::prelude::*;

use super::What;
use super::matrix::Matrix;
use super::moments::{Gathered, Moments};
use crate::error::Result;
use crate::ir::Model;
use crate::ops::{QuantRule, lookup};
use crate::quant::annotate::constant;
use crate::quant::params::{WeightParams, for_each_channel};
use crate::quant::plan::{Decision, NodePlace, Place, QuantPlan};
use crate::quant::scheme::WeightForm;
use crate::tensor::affine;

/// Scales tried for a channel, from the one that covers all down.
const CANDIDATES: usize = 40;
/// The smallest one, as a share of the one that covers all.
const LOWEST: f32 = 0.4;

/// Chooses the scales of the weight of every integer node. Gives the nodes where some scale changed.
///
/// # Errors
/// A stored tensor cannot be read.
pub fn apply(
    model: &Model,
    plan: &mut QuantPlan,
    gathered: Option<&Gathered>,
    bias_takes_mean: &dyn Fn(NodePlace) -> bool,
) -> Result<Vec<What>> {
    let x_scale: std::collections::BTreeMap<Place, f32> =
        plan.tensors.iter().filter_map(|(p, t)| t.params.map(|q| (*p, q.scale))).collect();
    let mut done = Vec::new();
    for n in plan.nodes.iter_mut().filter(|n| n.decision == Decision::Integer) {
        let (id, node) = n.place;
        let Some(w_plan) = n.weight.as_mut().filter(|w| w.rounded.is_none() && is_clippable(w.params.form)) else {
            continue;
        };
        let Some(weight) = channels(model, n.place, w_plan.params.axis) else { continue };
        let energy = gathered.and_then(|g| g.of(n.place)).and_then(|m| energies(m, &weight, bias_takes_mean(n.place)));
        let old = w_plan.params.clone();
        let chosen = choose(&weight.rows, &old, energy.as_deref());
        let mut params = WeightParams { scales: chosen, ..old.clone() };
        let g = model.graph(id);
        let scale = g.input(node, weight.data).and_then(|x| x_scale.get(&(id, x)));
        let bias = weight.bias.and_then(|slot| g.input(node, slot)).and_then(|b| constant(model, id, b));
        if let (Some(b), Some(&scale)) = (bias, scale) {
            params.fit_bias(b.get()?.slice()?, scale);
        }
        let loss = |p: &WeightParams| -> f64 {
            let each = weight.rows.iter().zip(&p.scales).enumerate();
            each.map(|(c, (w, &s))| loss(w, s, p.form, energy.as_ref().map(|e| e[c].as_slice()))).sum()
        };
        if let Some(what) = What::new(n.place, loss(&old), loss(&params)) {
            w_plan.params = params;
            done.push(what);
        }
    }
    Ok(done)
}

/// Whether the form has integers around a zero point that does not depend on the scale.
fn is_clippable(form: WeightForm) -> bool {
    form.symmetric && !form.dtype.is_float8()
}

/// A weight by the channels that have a scale each.
struct Weight {
    rows: Vec<Vec<f32>>,
    matrix: Option<Matrix>,
    data: usize,
    bias: Option<usize>,
}

fn channels(model: &Model, place: NodePlace, axis: Option<usize>) -> Option<Weight> {
    let (id, n) = place;
    let g = model.graph(id);
    let node = g.node(n);
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    let QuantRule::Weighted { data, weight, bias, .. } = lookup(&node.domain, &node.op_type, opset)?.quant else {
        return None;
    };
    let matrix = Matrix::of(model, place).filter(|_| axis.is_some());
    let rows = match &matrix {
        Some(m) => m.data.chunks_exact(m.k).map(<[f32]>::to_vec).collect(),
        None => {
            let stored = constant(model, id, g.input(n, weight)?)?;
            let mut rows = vec![Vec::new(); axis.map_or(1, |a| stored.shape()[a])];
            for_each_channel(stored.get().ok()?.slice::<f32>().ok()?, stored.shape(), axis, |c, x| rows[c].push(x));
            rows
        }
    };
    Some(Weight { rows, matrix, data, bias })
}

/// What an error of each weight counts; `None` where it is not known.
fn energies(moments: &[Moments], weight: &Weight, centered: bool) -> Option<Vec<Vec<f32>>> {
    let m = weight.matrix.as_ref().filter(|m| moments.len() == m.groups && moments[0].k == m.k)?;
    let of_group = |g: &Moments| -> Vec<f32> {
        let each = g.energy.iter().zip(&g.mean);
        let mut e: Vec<f32> =
            each.map(|(e, mean)| if centered { (e - mean * mean).max(0.0) } else { *e } as f32).collect();
        // An input that was never seen is not worth nothing.
        let least = 1e-3 * e.iter().sum::<f32>() / e.len().max(1) as f32;
        e.iter_mut().for_each(|e| *e = e.max(least));
        e
    };
    let groups: Vec<Vec<f32>> = moments.iter().map(of_group).collect();
    Some((0..m.rows).map(|row| groups[row / m.rows_per_group()].clone()).collect())
}

/// The best scale of each channel.
fn choose(rows: &[Vec<f32>], old: &WeightParams, energy: Option<&[Vec<f32>]>) -> Vec<f32> {
    let (scales, form) = (&old.scales, old.form);
    (0..rows.len())
        .into_par_iter()
        .map(|c| {
            let e = energy.map(|e| e[c].as_slice());
            let candidate = |i: usize| scales[c] * (1.0 - (1.0 - LOWEST) * i as f32 / (CANDIDATES - 1) as f32);
            let mut best = (loss(&rows[c], scales[c], form, e), scales[c]);
            for s in (1..CANDIDATES).map(candidate).filter(|s| *s >= crate::quant::params::MIN_WEIGHT_SCALE) {
                let loss = loss(&rows[c], s, form, e);
                if loss < best.0 {
                    best = (loss, s);
                }
            }
            best.1
        })
        .collect()
}

/// Square error of a channel with a scale, each weight's counted by its energy.
fn loss(w: &[f32], scale: f32, form: WeightForm, energy: Option<&[f32]>) -> f64 {
    let zero = form.middle();
    let square = |x: f32| {
        let e = x - affine::fake_one(x, scale, zero, form.low, form.high);
        e * e
    };
    match energy {
        Some(e) => w.iter().zip(e).map(|(&w, &e)| f64::from(square(w) * e)).sum(),
        None => w.iter().map(|&w| f64::from(square(w))).sum(),
    }
}
