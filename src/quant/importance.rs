//! How much an error in each channel of an activation counts, by the weights that multiply it: what `auto` chooses ranges
//! by (`calibrate/auto.rs`).
//!
//! The choice is a prediction for one tensor at a time.

use std::collections::{BTreeMap, BTreeSet};

use super::algo::layout::Layout;
use super::annotate::constant;
use super::facts::Facts;
use super::plan::Place;
use crate::calibrate::Importance;
use crate::error::Result;
use crate::ir::{Model, NodeId};
use crate::kernels;
use crate::ops::{QuantRule, lookup};

/// The importance of the channels of each place that weighted operators read. Every reader counts as much as any other,
/// and the channels alike where a reader has no weights. Places without weighted readers are left out.
///
/// # Errors
/// A stored tensor cannot be read.
pub fn importance(model: &Model, places: &BTreeSet<Place>, facts: &Facts) -> Result<BTreeMap<Place, Importance>> {
    let places: Vec<Place> = places.iter().copied().collect();
    let found = kernels::try_map(places.len(), |i| of(model, places[i], facts))?;
    Ok(places.iter().zip(found).filter_map(|(&place, i)| Some((place, i?))).collect())
}

fn of(model: &Model, place: Place, facts: &Facts) -> Result<Option<Importance>> {
    let (id, v) = place;
    let mut axis = None;
    let mut sum: Vec<f64> = Vec::new();
    let mut n_plain = 0;
    for (n, slot) in model.graph(id).consumers(v) {
        match norms(model, place, n, slot)? {
            Some((a, norms)) if axis.is_none_or(|axis| axis == a) && (sum.is_empty() || sum.len() == norms.len()) => {
                axis = Some(a);
                sum.resize(norms.len(), 0.0);
                let mean = norms.iter().sum::<f64>() / norms.len() as f64;
                if mean > 0.0 {
                    sum.iter_mut().zip(norms).for_each(|(s, n)| *s += n / mean);
                }
            }
            _ => n_plain += 1,
        }
    }
    let Some(axis) = axis else { return Ok(None) };
    // `Conv` counts channels from the front, the others from the end; a tensor of rank 2 may serve both.
    let fits = facts.shape(place).is_some_and(|s| {
        let at = if axis < 0 { s.len().checked_add_signed(axis) } else { Some(axis.unsigned_abs()) };
        at.and_then(|a| s.get(a)) == Some(&sum.len())
    });
    if !fits {
        return Ok(None);
    }
    sum.iter_mut().for_each(|s| *s += f64::from(n_plain));
    Ok(Some(Importance::new(axis, &sum)))
}

/// The channel axis of what a node reads, and the squared norms of the weights of each channel.
fn norms(model: &Model, (id, v): Place, n: NodeId, slot: usize) -> Result<Option<(isize, Vec<f64>)>> {
    let g = model.graph(id);
    let node = g.node(n);
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    let Some(QuantRule::Weighted { data, weight, axis, .. }) =
        lookup(&node.domain, &node.op_type, opset).map(|d| d.quant)
    else {
        return Ok(None);
    };
    let stored = g.input(n, weight).filter(|&w| w != v).and_then(|w| constant(model, id, w));
    let Some(w) = stored.filter(|_| slot == data && node.attrs.int("transA").unwrap_or(0) == 0) else {
        return Ok(None);
    };
    let Some(layout) = Layout::of(&node.attrs, axis, w.shape().len()) else { return Ok(None) };
    let Ok(values) = w.get()?.slice::<f32>() else { return Ok(None) };
    let axis = if matches!(layout, Layout::Conv { .. }) { 1 } else { -1 };
    let norms = layout.input_norms(w.shape(), values);
    Ok((!norms.is_empty()).then_some((axis, norms)))
}
