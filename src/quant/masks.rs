//! Masks of attention that are quantized, since a target takes whole models or 16 bits: how far they have to reach.
//!
//! What is masked gets -10000 or the lowest float added to it, and a range that covers that leaves nothing of the scores
//! beside it, in 16 bits either. Behind a `Softmax` all that matters is that nothing of a masked element is left: it is
//! enough that it lies [`MARGIN`] below every other one. So mask and sum are clipped there, and saturation does the rest.

use std::collections::{BTreeMap, BTreeSet};

use super::annotate::constant;
use super::params::Range;
use super::plan::{Decision, NodePlace, Place, QuantPlan};
use super::solve::Observed;
use super::traps::{MASK, Seen};
use crate::ir::Model;
use crate::ops::QuantRule;
use crate::ops::quant_rule::{ADDS, SOFTMAX};

/// How far below the lowest score what is masked lies: `exp(-16)` is less than a hundredth of a step of 16 bits.
const MARGIN: f32 = 16.0;

/// Ranges of masks and of what they are put over.
#[derive(Debug, Clone, Default)]
pub struct Clipped {
    /// By group of tensors (see [`super::plan::TensorPlan::group`]).
    pub groups: BTreeMap<Place, Range>,
    /// Of stored masks.
    pub constants: BTreeMap<Place, Range>,
}

/// The ranges for a plan.
#[must_use]
pub fn clipped(model: &Model, observed: &Observed, plan: &QuantPlan) -> Clipped {
    let seen = Seen { model, observed };
    // What is masked already looks like a mask itself: which is put over which is seen in the order of execution.
    let reaches_low =
        |place: NodePlace, v| range(model, observed, (place.0, v)).is_some_and(|r| f64::from(r.min) <= -MASK);
    let may_mask = |p: NodePlace| seen.joined(p).into_iter().any(|v| reaches_low(p, v));
    let integer = plan.nodes.iter().filter(|n| n.decision == Decision::Integer).map(|n| n.place);
    let masks: Vec<NodePlace> = integer.filter(|&p| may_mask(p)).collect();
    let look = Look { model, plan, masks: masks.iter().copied().collect() };
    let mut out = Clipped::default();
    // Of sums with a mask, the range of what is not masked.
    let mut open: BTreeMap<Place, Range> = BTreeMap::new();
    for &(id, n) in &masks {
        let g = model.graph(id);
        let Some(y) = g.output(n, 0).filter(|&y| look.ends_in_softmax((id, y))) else { continue };
        let range = |v| open.get(&(id, v)).copied().or_else(|| range(model, observed, (id, v)));
        let joined: Option<Vec<_>> = seen.joined((id, n)).into_iter().map(|v| Some((v, range(v)?))).collect();
        let Some(joined) = joined else { continue };
        // The mask is what reaches lowest; what it is put over has scores of both signs, or at least smaller ones.
        let Some(&(mask, of_mask)) = joined.iter().min_by(|a, b| a.1.min.total_cmp(&b.1.min)) else { continue };
        let scores = joined.iter().filter(|(v, _)| *v != mask).map(|(_, r)| *r).reduce(Range::union);
        let is_open = |s: &Range| f64::from(s.min) > -MASK;
        let Some(scores) = scores.filter(|s| is_open(s) && look.only_masks((id, mask))) else { continue };
        let is_sum = ADDS.contains(&g.node(n).op_type.as_str());
        let (least, sum) = if is_sum {
            let above = of_mask.max.max(0.0);
            let least = -(scores.max - scores.min + MARGIN);
            (least, Range { min: scores.min + least, max: scores.max + above })
        } else {
            let least = scores.min - MARGIN;
            (least, Range { min: least, max: scores.max })
        };
        if of_mask.min >= least {
            continue;
        }
        open.insert((id, y), Range { min: scores.min, max: sum.max });
        let of_mask = Range { min: least, max: of_mask.max.max(0.0) };
        let widen = |into: &mut BTreeMap<Place, Range>, key, r: Range| {
            into.entry(key).and_modify(|old| *old = old.union(r)).or_insert(r);
        };
        match plan.tensors.get(&(id, mask)) {
            Some(t) => widen(&mut out.groups, t.group, of_mask),
            None => widen(&mut out.constants, (id, mask), of_mask),
        }
        if let Some(t) = plan.tensors.get(&(id, y)) {
            widen(&mut out.groups, t.group, sum);
        }
    }
    out
}

/// What a value holds.
fn range(model: &Model, observed: &Observed, (id, v): Place) -> Option<Range> {
    if let Some(t) = constant(model, id, v) {
        let t = t.get().ok()?;
        return t.slice::<f32>().ok()?.iter().map(|&x| Range { min: x, max: x }).reduce(Range::union);
    }
    observed.get(&(id, v)).filter(|s| s.min <= s.max).map(|s| Range { min: s.min, max: s.max })
}

struct Look<'a> {
    model: &'a Model,
    plan: &'a QuantPlan,
    masks: BTreeSet<NodePlace>,
}

impl Look<'_> {
    fn rule(&self, place: NodePlace) -> Option<QuantRule> {
        self.plan.node(place).filter(|n| n.decision == Decision::Integer).map(|n| n.rule)
    }

    /// Whether a value goes nowhere but into `Softmax`, perhaps moved or masked once more before.
    fn ends_in_softmax(&self, (id, v): Place) -> bool {
        let g = self.model.graph(id);
        let readers = g.consumers(v);
        let goes_on = |n| g.node_outputs(n).into_iter().flatten().all(|y| self.ends_in_softmax((id, y)));
        let ends = |n| match self.rule((id, n)) {
            Some(_) if g.node(n).op_type == SOFTMAX => true,
            Some(QuantRule::Share) => goes_on(n),
            Some(_) => self.masks.contains(&(id, n)) && goes_on(n),
            None => false,
        };
        !readers.is_empty() && readers.len() == g.n_uses(v) && readers.iter().all(|&(n, _)| ends(n))
    }

    /// Whether a value serves for masking alone, and all that has the same parameters does.
    fn only_masks(&self, (id, v): Place) -> bool {
        let group = self.plan.tensors.get(&(id, v)).map(|t| t.group);
        let members = self.plan.tensors.iter().filter(|(_, t)| Some(t.group) == group).map(|(p, _)| *p);
        members.chain([(id, v)]).all(|(id, v)| {
            let g = self.model.graph(id);
            let readers = g.consumers(v);
            let masks = |n| self.masks.contains(&(id, n)) || self.rule((id, n)) == Some(QuantRule::Share);
            readers.len() == g.n_uses(v) && readers.iter().all(|&(n, _)| masks(n))
        })
    }
}
