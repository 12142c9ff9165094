//! Bias correction: takes the mean error that rounding a weight causes at each output channel out of the bias.
//!
//! Paper: Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias Correction*, section 4.2:
//! `E[y] - E[y'] = (W - W') E[x]`, with the mean of each input channel from calibration instead of from
//! BatchNormalization.

use std::collections::BTreeMap;

use super::channels::{Axis, Channels};
use super::layout::Layout;
use crate::error::Result;
use crate::ir::Model;
use crate::ops::{QuantRule, lookup};
use crate::quant::annotate::constant;
use crate::quant::plan::{Decision, Place, QuantPlan};

/// The tensors whose channel means are needed: data of every weighted integer node that has a bias slot.
#[must_use]
pub fn needs(model: &Model, plan: &QuantPlan) -> BTreeMap<Place, Axis> {
    let mut out = BTreeMap::new();
    for n in plan.nodes.iter().filter(|n| n.decision == Decision::Integer) {
        let (id, node) = n.place;
        if let Some((data, weight, _, layout)) = parts(model, n.place)
            && let Some(x) = model.graph(id).input(node, data)
            && model.graph(id).input(node, weight).is_some()
        {
            out.insert((id, x), if matches!(layout, Layout::Conv { .. }) { Axis::Second } else { Axis::Last });
        }
    }
    out
}

/// Data slot, weight slot, bias slot and weight layout of a node that can be corrected.
fn parts(model: &Model, place: crate::quant::plan::NodePlace) -> Option<(usize, usize, usize, Layout)> {
    let (id, n) = place;
    let node = model.graph(id).node(n);
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    let QuantRule::Weighted { data, weight, bias: Some(bias), axis } =
        lookup(&node.domain, &node.op_type, opset)?.quant
    else {
        return None;
    };
    let w = constant(model, id, model.graph(id).input(n, weight)?)?;
    let layout = Layout::of(&node.attrs, axis, w.shape().len())?;
    Some((data, weight, bias, layout))
}

/// Sets the corrected bias of every weighted integer node whose input's channel means are known. Gives the number of
/// biases that were changed.
///
/// # Errors
/// A stored tensor cannot be read.
pub fn correct(model: &Model, plan: &mut QuantPlan, channels: &BTreeMap<Place, Channels>) -> Result<usize> {
    let mut changed = 0;
    let x_scale: BTreeMap<Place, f32> =
        plan.tensors.iter().filter_map(|(p, t)| t.params.map(|q| (*p, q.scale))).collect();
    for n in plan.nodes.iter_mut().filter(|n| n.decision == Decision::Integer) {
        let (id, node) = n.place;
        let (Some((data, weight, bias, layout)), Some(w_plan)) = (parts(model, n.place), &mut n.weight) else {
            continue;
        };
        let g = model.graph(id);
        let Some(x) = g.input(node, data) else { continue };
        let (Some(stats), Some(&scale)) = (channels.get(&(id, x)), x_scale.get(&(id, x))) else { continue };
        let Some(w) = g.input(node, weight).and_then(|v| constant(model, id, v)) else { continue };
        let (float, shape) = (w.get()?.slice::<f32>()?, w.shape());
        if layout.n_inputs(shape) != stats.min.len() || g.node(node).attrs.int("transA").unwrap_or(0) != 0 {
            continue;
        }
        let q = match &w_plan.rounded {
            Some(q) => q.clone(),
            None => w_plan.params.quantize(float, shape)?,
        };
        // W - W' element by element, then its product with the channel means.
        let per_channel = w_plan.params.axis.is_some();
        let scales = &w_plan.params.scales;
        let mut error: Vec<f32> =
            float.iter().zip(w_plan.params.dequantize(&q)?).map(|(w, rounded)| w - rounded).collect();
        let outputs = layout.n_outputs(shape);
        let mut shift = vec![0f64; outputs];
        layout.for_each(shape, &mut error, |i, o, e| shift[o] += f64::from(*e) * stats.mean(i));
        let stored = g.input(node, bias).and_then(|v| constant(model, id, v));
        let old: Vec<f32> = match stored {
            Some(b) => b.get()?.slice::<f32>()?.to_vec(),
            None => vec![0.0; outputs],
        };
        if old.len() != outputs {
            continue;
        }
        let new: Vec<f32> = old.iter().zip(&shift).map(|(b, s)| (f64::from(*b) + s) as f32).collect();
        // A corrected bias must fit int32 with the scales as they are.
        let fits = new.iter().enumerate().all(|(o, b)| {
            let s = scales[if per_channel { o } else { 0 }] * scale;
            (f64::from(*b) / f64::from(s)).abs() < f64::from(i32::MAX)
        });
        if fits && new.iter().all(|b| b.is_finite()) {
            w_plan.bias = Some(new);
            changed += 1;
        }
    }
    Ok(changed)
}
