//! What makes 8 bits go wrong in real models although every operator by itself is right, found in a model and a plan of
//! it: [`exclude`] keeps float what ranges show to be hopeless, [`found`] says in one line each which traps a model has and
//! what became of them. Nothing else is decided here; most traps are handled where ranges, scales and plans are made.

use std::collections::{BTreeMap, BTreeSet};

use super::annotate::{Excluded, annotate, constant, rule};
use super::config::Config;
use super::facts::Facts;
use super::measure::OutputError;
use super::params::channel_max;
use super::plan::{Decision, NodePlace, NodePlan, Place, QuantPlan, RangeFrom};
use super::solve::Observed;
use crate::error::Result;
use crate::ir::{Model, NodeId, ValueId};
use crate::ops::quant_rule::{CAST, JOINS};
use crate::ops::{OutputRange, QuantRule};
use crate::tensor::DType;

/// Magnitude from which on a number that is added or chosen is taken for a mask; -10000 is what BERT adds.
pub(super) const MASK: f64 = 9e3;
/// How much smaller what is masked is at least: of a sum that 8 bits cover it would keep nothing.
const MASKED: f64 = 1e3;
/// Whole numbers that 8 bits hold exactly.
const WHOLE: f64 = 255.0;
/// How far ranges that are joined differ before it is worth a word: 4 of 8 bits.
const APART: f64 = 16.0;
/// How far channels differ before it is.
const CHANNELS_APART: f32 = 100.0;
/// How much worse one row or channel of an output is than the whole before it is, in dB.
const WORSE_DB: f64 = 10.0;

/// A model with what is known of its values.
pub(super) struct Seen<'a> {
    pub(super) model: &'a Model,
    pub(super) observed: &'a Observed,
}

impl Seen<'_> {
    /// The largest magnitude of a value; infinite for a constant that holds an infinity. `None` when nobody looked.
    fn magnitude(&self, (id, v): Place) -> Option<f64> {
        if let Some(t) = constant(self.model, id, v) {
            let t = t.get().ok()?;
            return Some(t.slice::<f32>().ok()?.iter().fold(0.0, |m: f64, x| m.max(f64::from(x.abs()))));
        }
        if let Some(s) = self.observed.get(&(id, v)).filter(|s| s.min <= s.max) {
            return Some(f64::from(s.max.abs().max(s.min.abs())));
        }
        // What a function gives is known without looking.
        match self.model.graph(id).producer(v).and_then(|(n, _)| rule(self.model, (id, n))) {
            Some(QuantRule::Combine { output: OutputRange::Fixed(lo, hi), .. }) => {
                Some(f64::from(hi.abs().max(lo.abs())))
            }
            _ => None,
        }
    }

    /// The values that a node joins or adds; none for other nodes.
    pub(super) fn joined(&self, (id, n): NodePlace) -> Vec<ValueId> {
        let g = self.model.graph(id);
        let node = g.node(n);
        if !JOINS.contains(&node.op_type.as_str()) {
            return Vec::new();
        }
        // Conditions and the like are no numbers.
        let is_float = |v: &ValueId| {
            constant(self.model, id, *v).is_none_or(|t| t.dtype() == DType::F32)
                && g.value(*v).ty.as_ref().and_then(|t| t.dtype()).is_none_or(|d| d == DType::F32)
        };
        g.node_inputs(n).into_iter().flatten().filter(is_float).collect()
    }

    /// The magnitude of the mask that a node puts over something.
    pub(super) fn mask(&self, place: NodePlace) -> Option<f64> {
        let sizes: Vec<f64> =
            self.joined(place).into_iter().filter_map(|v| self.magnitude((place.0, v))).filter(|m| *m > 0.0).collect();
        let (least, most) = sizes.iter().fold((f64::INFINITY, 0.0), |(l, m), &x| (x.min(l), x.max(m)));
        // An infinity needs nothing beside it that is known.
        // Beside what nobody looked at, since it stays float anyway, a mask has to be one by its size alone.
        let is_mask = if sizes.len() > 1 { most >= MASK && least * MASKED <= most } else { most >= MASK * MASKED };
        (most == f64::INFINITY || is_mask).then_some(most)
    }

    /// Values that are made of integers: what `Cast` makes of them, and what only moves that.
    fn whole(&self, plan: &QuantPlan, facts: &Facts) -> BTreeSet<Place> {
        let mut out = BTreeSet::new();
        for n in &plan.nodes {
            let (id, node) = n.place;
            let g = self.model.graph(id);
            let Some(x) = g.input(node, 0) else { continue };
            let dtype = || facts.dtype((id, x)).or_else(|| g.value(x).ty.as_ref()?.dtype());
            let is_whole = if g.node(node).op_type == CAST {
                dtype().is_some_and(DType::is_integer)
            } else {
                n.rule == QuantRule::Share && out.contains(&(id, x))
            };
            if is_whole {
                out.extend(g.node_outputs(node).into_iter().flatten().map(|v| (id, v)));
            }
        }
        out
    }
}

/// The nodes that stay float, with those that ranges show to be hopeless in 8 bits: sums with masks and what reads them,
/// and what reads whole numbers (indices, counts) that 8 bits do not hold.
///
/// # Errors
/// A graph has a cycle, or a stored tensor cannot be read.
pub fn exclude(
    model: &Model,
    config: &Config,
    facts: &Facts,
    observed: &Observed,
    excluded: &Excluded,
) -> Result<Excluded> {
    let plan = annotate(model, config, facts, excluded)?;
    let seen = Seen { model, observed };
    let integer: BTreeSet<NodePlace> =
        plan.nodes.iter().filter(|n| n.decision == Decision::Integer).map(|n| n.place).collect();
    let mut out = excluded.clone();
    // A target that takes whole models only does not run what stays float at all: there masks are clipped
    // ([`super::masks`]), and the range of whole numbers has to do.
    if config.scheme.activation.bits() > 8 || config.target.whole {
        return Ok(out);
    }
    for &(id, n) in &integer {
        if let Some(size) = seen.mask((id, n)) {
            let why = format!("beside a mask of {size:.0e} nothing would be left of the rest in 8 bits");
            out.entry((id, n)).or_insert(("masked", why.clone()));
            let g = model.graph(id);
            let outs = g.node_outputs(n).into_iter().flatten();
            for reader in outs.flat_map(|y| readers(&seen, &plan, (id, y))) {
                out.entry(reader).or_insert(("masked", why.clone()));
            }
        }
    }
    for (id, v) in seen.whole(&plan, facts) {
        let Some(most) = seen.magnitude((id, v)).filter(|m| *m > WHOLE) else { continue };
        let name = &model.graph(id).value(v).name;
        let why = format!("its input {name} holds whole numbers up to {most} (indices, counts), which 8 bits round");
        for (reader, slot) in model.graph(id).consumers(v) {
            if plan.node((id, reader)).is_some_and(|n| n.decision == Decision::Integer && n.rule.is_data(slot)) {
                out.entry((id, reader)).or_insert(("whole-numbers", why.clone()));
            }
        }
    }
    Ok(out)
}

/// The integer nodes that read a value as data, also through such as only move it.
fn readers(seen: &Seen<'_>, plan: &QuantPlan, value: Place) -> Vec<NodePlace> {
    let mut out = Vec::new();
    let mut left = vec![value];
    while let Some((id, v)) = left.pop() {
        for (n, slot) in seen.model.graph(id).consumers(v) {
            let Some(p) = plan.node((id, n)).filter(|p| p.decision == Decision::Integer && p.rule.is_data(slot)) else {
                continue;
            };
            out.push(p.place);
            if p.rule == QuantRule::Share {
                left.extend(seen.model.graph(id).node_outputs(n).into_iter().flatten().map(|v| (id, v)));
            }
        }
    }
    out
}

/// The traps of a model and what became of them, a line each. The plan may be that of a model that was made of it by
/// equalization, which takes some traps away: what was added there is left out.
#[must_use]
pub fn found(model: &Model, config: &Config, facts: &Facts, observed: &Observed, plan: &QuantPlan) -> Vec<String> {
    let seen = Seen { model, observed };
    let mut plan = plan.clone();
    plan.nodes.retain(|n| model.graph(n.place.0).has_node(n.place.1));
    plan.tensors.retain(|(id, v), _| model.graph(*id).has_value(*v));
    let look = Look { seen, config, facts, plan: &plan };
    let all = [
        look.concat(),
        look.fixed(),
        look.masks(),
        look.embeddings(),
        look.arithmetic(),
        look.recurrent(),
        look.first_and_last(),
        look.depthwise(),
        look.dead(),
        look.bounds(),
        look.biases(),
        look.tails(),
        look.whole_numbers(),
        look.products(),
    ];
    all.into_iter().flatten().collect()
}

/// Outputs with a row or channel that is much worse than the whole.
#[must_use]
pub fn outputs(errors: &[OutputError]) -> Vec<String> {
    let line = |o: &OutputError| {
        let worst = o.worst_channel_db.filter(|w| *w < o.sqnr_db - WORSE_DB)?;
        Some(format!(
            "rows or channels of \"{}\" have different ranges: {:.1} dB over all, {worst:.1} dB in the worst",
            o.name, o.sqnr_db
        ))
    };
    errors.iter().filter_map(line).collect()
}

struct Look<'a> {
    seen: Seen<'a>,
    config: &'a Config,
    facts: &'a Facts,
    plan: &'a QuantPlan,
}

impl Look<'_> {
    fn op(&self, n: &NodePlan) -> &str {
        &self.seen.model.graph(n.place.0).node(n.place.1).op_type
    }

    fn label(&self, n: &NodePlan) -> String {
        self.seen.model.graph(n.place.0).node(n.place.1).label()
    }

    /// `Conv "a" and 2 more`.
    fn named(&self, nodes: &[&NodePlan]) -> String {
        let first = nodes.first().map_or(String::new(), |n| format!("{} \"{}\"", self.op(n), self.label(n)));
        if nodes.len() > 1 { format!("{first} and {} more", nodes.len() - 1) } else { first }
    }

    /// The rule of a node, also of one that stays float by choice.
    fn rule(&self, n: &NodePlan) -> QuantRule {
        match n.rule {
            QuantRule::Keep { .. } => rule(self.seen.model, n.place).unwrap_or(n.rule),
            known => known,
        }
    }

    fn nodes(&self, f: impl Fn(&&NodePlan) -> bool) -> Vec<&NodePlan> {
        self.plan.nodes.iter().filter(f).collect()
    }

    fn coded(&self, wanted: &str) -> Vec<&NodePlan> {
        self.nodes(|n| matches!(&n.decision, Decision::Float { code, .. } if *code == wanted))
    }

    fn concat(&self) -> Option<String> {
        let apart = |n: &NodePlan| -> f64 {
            let sizes = self.seen.joined(n.place).into_iter().filter_map(|v| self.seen.magnitude((n.place.0, v)));
            let (l, m) =
                sizes.filter(|m| *m > 0.0).fold((f64::INFINITY, 0.0), |(l, m): (f64, f64), x| (l.min(x), m.max(x)));
            m / l
        };
        let far = self.nodes(|n| self.op(n) == "Concat" && apart(n) >= APART);
        let most = far.iter().map(|n| apart(n)).fold(0.0, f64::max);
        let n_integer = far.iter().filter(|n| n.decision == Decision::Integer).count();
        (!far.is_empty()).then(|| {
            let what = match n_integer {
                0 => "in float".to_owned(),
                n if n == far.len() => "in integers, each input with a range of its own".to_owned(),
                n => format!("{n} of {} in integers", far.len()),
            };
            format!("{} joins ranges that differ up to {most:.0} times: {what}", self.named(&far))
        })
    }

    fn fixed(&self) -> Option<String> {
        let n = self.plan.tensors.values().filter(|t| matches!(t.range, RangeFrom::Fixed(..))).count();
        (n > 0).then(|| {
            format!(
                "{n} outputs of Softmax, Sigmoid and the like have the range of the function, not that of the samples"
            )
        })
    }

    fn masks(&self) -> Option<String> {
        let masks = self.nodes(|n| self.seen.mask(n.place).is_some());
        let n_integer = masks.iter().filter(|n| n.decision == Decision::Integer).count();
        let size = masks.iter().filter_map(|n| self.seen.mask(n.place)).fold(0.0, f64::max);
        (!masks.is_empty()).then(|| {
            let what = match n_integer {
                0 => "stays float".to_owned(),
                n => format!("{n} in integers, clipped where Softmax alone reads them"),
            };
            format!("{} masks with {size:.1e}: {what}", self.named(&masks))
        })
    }

    fn embeddings(&self) -> Option<String> {
        let lookups = self.coded("constant-data");
        let made: BTreeSet<Place> = lookups
            .iter()
            .flat_map(|n| {
                self.seen.model.graph(n.place.0).node_outputs(n.place.1).into_iter().flatten().map(|v| (n.place.0, v))
            })
            .collect();
        let adds = self.nodes(|n| self.seen.joined(n.place).iter().any(|v| made.contains(&(n.place.0, *v))));
        let n_float = adds.iter().filter(|n| matches!(n.decision, Decision::Float { .. })).count();
        (!lookups.is_empty()).then(|| {
            format!("{} embedding lookups and {n_float} of {} additions of them stay float", lookups.len(), adds.len())
        })
    }

    fn arithmetic(&self) -> Option<String> {
        let is_small = |n: &NodePlan| {
            let y = self.seen.model.graph(n.place.0).output(n.place.1, 0);
            let shape = y.and_then(|y| self.facts.shape((n.place.0, y)));
            shape.is_some_and(|s| s.iter().product::<usize>() <= 1)
        };
        let left = self.nodes(|n| match &n.decision {
            Decision::Float { code: "not-float32", .. } => true,
            Decision::Float { .. } => matches!(n.rule, QuantRule::Combine { .. }) && is_small(n),
            _ => false,
        });
        (!left.is_empty()).then(|| format!("{} nodes of shape and scalar arithmetic are left alone", left.len()))
    }

    fn recurrent(&self) -> Option<String> {
        let loops = self.nodes(|n| ["LSTM", "GRU", "RNN", "Loop", "Scan"].contains(&self.op(n)));
        (!loops.is_empty()).then(|| format!("the state of {} stays float from step to step", self.named(&loops)))
    }

    fn first_and_last(&self) -> Option<String> {
        let weighted = self.nodes(|n| matches!(self.rule(n), QuantRule::Weighted { .. }) && n.macs > 0);
        let (first, last) = (weighted.first()?, weighted.last()?);
        let what = |n: &NodePlan| match &n.decision {
            Decision::Float { why, .. } => format!("stays float ({why})"),
            _ => "is in integers".to_owned(),
        };
        let said = |n: &NodePlan| format!("\"{}\" {}", self.label(n), what(n));
        Some(if first.place == last.place {
            format!("the first and last layer, {}", said(first))
        } else if what(first) == what(last) {
            let rest = what(first).replacen("is in", "are in", 1).replacen("stays", "stay", 1);
            format!("the first and last layer, \"{}\" and \"{}\", {rest}", self.label(first), self.label(last))
        } else {
            format!("the first layer, {}, the last, {}", said(first), said(last))
        })
    }

    /// The largest weight of each output channel, of integer nodes.
    fn channels(&self, n: &NodePlan) -> Option<(Vec<f32>, Vec<usize>)> {
        let QuantRule::Weighted { weight, axis, .. } = n.rule else { return None };
        n.weight.as_ref()?;
        let (id, node) = n.place;
        let g = self.seen.model.graph(id);
        let t = constant(self.seen.model, id, g.input(node, weight)?)?;
        let shape = t.shape().to_vec();
        let axis = axis.resolve(&g.node(node).attrs, shape.len());
        Some((channel_max(t.get().ok()?.slice::<f32>().ok()?, &shape, axis), shape))
    }

    fn depthwise(&self) -> Option<String> {
        let mut most = 0f32;
        let mut far = Vec::new();
        for n in &self.plan.nodes {
            let group = self.seen.model.graph(n.place.0).node(n.place.1).attrs.int("group").unwrap_or(1);
            let Some((max, _)) = self.channels(n).filter(|(_, s)| group > 1 && s.len() >= 3 && s[1] == 1) else {
                continue;
            };
            let alive = max.iter().copied().filter(|m| *m > 0.0);
            let ratio = alive.clone().fold(0f32, f32::max) / alive.fold(f32::INFINITY, f32::min);
            if ratio >= CHANNELS_APART {
                far.push(n);
                most = most.max(ratio);
            }
        }
        let each = far.iter().all(|n| n.weight.as_ref().is_some_and(|w| w.params.axis.is_some()));
        (!far.is_empty()).then(|| {
            let what = if each { "each has a scale of its own" } else { "not each has a scale of its own" };
            format!("depthwise channels of {} differ up to {most:.0} times: {what}", self.named(&far))
        })
    }

    fn dead(&self) -> Option<String> {
        let mut n_dead = 0;
        let with = self.nodes(|n| self.channels(n).is_some_and(|(max, _)| max.contains(&0.0)));
        for n in &with {
            n_dead += self.channels(n).map_or(0, |(max, _)| max.iter().filter(|m| **m == 0.0).count());
        }
        (n_dead > 0).then(|| format!("{n_dead} dead channels in {}: a scale that does no harm", self.named(&with)))
    }

    fn bounds(&self) -> Option<String> {
        let gone = self.nodes(|n| matches!(n.decision, Decision::Absorbed(_))).len();
        (gone > 0).then(|| {
            format!("{gone} Relu and Clip: quantized behind them, with the range there, into which they vanish")
        })
    }

    fn biases(&self) -> Option<String> {
        let mut count: BTreeMap<NodePlace, usize> = BTreeMap::new();
        for n in &self.plan.nodes {
            let QuantRule::Weighted { data, bias: Some(slot), .. } = n.rule else { continue };
            let (id, node) = n.place;
            let g = self.seen.model.graph(id);
            let stored = g.input(node, slot).and_then(|v| constant(self.seen.model, id, v));
            let x = g.input(node, data).and_then(|v| self.plan.tensors.get(&(id, v))).and_then(|t| t.params);
            let (Some(b), Some(x), Some(w)) = (stored, x, &n.weight) else { continue };
            let Ok(Ok(b)) = b.get().map(|t| t.slice::<f32>().map(<[f32]>::to_vec)) else { continue };
            let at_limit = b.iter().enumerate().filter(|(c, b)| {
                let scale = w.params.scales[if w.params.axis.is_some() { *c } else { 0 }];
                f64::from(b.abs()) / (f64::from(scale) * f64::from(x.scale)) > f64::from(i32::MAX) * 0.99
            });
            let n_at_limit = at_limit.count();
            if n_at_limit > 0 {
                count.insert(n.place, n_at_limit);
            }
        }
        let nodes = self.nodes(|n| count.contains_key(&n.place));
        let all: usize = count.values().sum();
        (all > 0).then(|| {
            format!(
                "{all} biases of {} would not fit int32: the scales of their weights are larger",
                self.named(&nodes)
            )
        })
    }

    /// Tensors that reach a little below 0 and far above it, as what a smooth gate makes.
    fn tails(&self) -> Option<String> {
        let gates = ["Mul", "HardSwish", "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Mish", "Swish"];
        let is_tail = |&&(id, v): &&Place| {
            let made_by = self.seen.model.graph(id).producer(v).map(|(n, _)| n);
            let is_gate = made_by.is_some_and(|n| gates.contains(&self.seen.model.graph(id).node(n).op_type.as_str()));
            let s = self.seen.observed.get(&(id, v));
            is_gate && s.is_some_and(|s| s.min < -0.1 && s.min > -0.4 && s.max > -8.0 * s.min)
        };
        let tails: Vec<&Place> = self.plan.tensors.keys().filter(is_tail).collect();
        let what = if self.config.scheme.symmetric_activations { "symmetric" } else { "not symmetric" };
        (!tails.is_empty()).then(|| {
            format!(
                "{} tensors behind SiLU, GELU or HardSwish have a short tail below 0: ranges are {what}",
                tails.len()
            )
        })
    }

    fn whole_numbers(&self) -> Option<String> {
        let nodes = self.coded("whole-numbers");
        (!nodes.is_empty())
            .then(|| format!("{} reads whole numbers beyond 255 (indices, counts): stays float", self.named(&nodes)))
    }

    fn products(&self) -> Option<String> {
        let is_product = |n: &&NodePlan| {
            let QuantRule::Weighted { weight, .. } = self.rule(n) else { return false };
            let (id, node) = n.place;
            let w = self.seen.model.graph(id).input(node, weight);
            w.is_some_and(|w| constant(self.seen.model, id, w).is_none())
                && matches!(n.decision, Decision::Float { .. })
        };
        let nodes: Vec<NodeId> = self.nodes(is_product).iter().map(|n| n.place.1).collect();
        (!nodes.is_empty()).then(|| {
            format!("{} products of two activations stay float: both would have to be quantized first", nodes.len())
        })
    }
}
