//! Which of the nodes that could run in integers should: by what they cost on the target and by the noise that they
//! bring to the outputs. Turns a plan into the terms of [`cut`](super::cut) and back into nodes that stay float.

use std::collections::{BTreeMap, BTreeSet};

use super::annotate::{Excluded, annotate, constant, rule};
use super::config::Config;
use super::cost::{Costs, Work};
use super::cut::{NodeCost, TensorCost, cheapest};
use super::facts::Facts;
use super::plan::{Decision, NodePlace, NodePlan, Place, QuantPlan};
use super::target::OutputNeed;
use crate::error::Result;
use crate::ir::{GraphId, Model, NodeId, ValueId};
use crate::ops::QuantRule;

/// Noise power at the outputs, relative to the signal there, that each part of a plan brings by itself.
#[derive(Debug, Clone, Default)]
pub struct Noise {
    /// Of the quantization of an activation.
    pub tensors: BTreeMap<Place, f64>,
    /// Of the quantization of a node's weight.
    pub weights: BTreeMap<NodePlace, f64>,
}

impl Noise {
    /// The noise of a whole plan: its parts add up as far as they are independent.
    #[must_use]
    pub fn of(&self, plan: &QuantPlan) -> f64 {
        let tensors = plan.tensors.keys().filter_map(|p| self.tensors.get(p));
        let nodes = plan.nodes.iter().filter(|n| n.decision == Decision::Integer);
        tensors.sum::<f64>() + nodes.filter_map(|n| self.weights.get(&n.place)).sum::<f64>()
    }
}

/// What a prepared model is divided by.
pub struct Partition<'a> {
    /// The prepared float model.
    pub model: &'a Model,
    /// The user's choices, the target among them.
    pub config: &'a Config,
    /// Types and shapes.
    pub facts: &'a Facts,
    /// Noise of the parts; nothing counts as noise where it is missing.
    pub noise: &'a Noise,
}

/// Why a node stays float that would not be faster in integers.
const SLOWER: (&str, &str) = ("no-gain", "would save no time in integers here");
/// Channels of the blocked layout's smallest block.
const LEAST_BLOCK: usize = 8;
/// What a multiply-accumulate operation and a node count for where the target has no costs: a thousand operations are a
/// microsecond, so that small models are told apart.
const PER_MAC: f64 = 1e-3;
const PER_NODE: f64 = 0.01;
/// Rounds of choosing and planning: nodes that lose what they depend on change what the others cost.
const ROUNDS: usize = 4;

impl Partition<'_> {
    /// The nodes to leave float so that time plus `price` (microseconds per unit of noise) times noise is least;
    /// `excluded` ones included. `reason` is given for the new ones.
    ///
    /// # Errors
    /// A graph has a cycle, or a stored tensor cannot be read.
    pub fn divide(&self, excluded: &Excluded, price: f64, reason: (&'static str, &str)) -> Result<Excluded> {
        let mut out = excluded.clone();
        let costs = self.config.target.cost.as_ref();
        // Without costs everything is worth its noise as long as noise has no price.
        if costs.is_none() && price == 0.0 {
            return Ok(out);
        }
        for _ in 0..ROUNDS {
            let plan = annotate(self.model, self.config, self.facts, &out)?;
            let (nodes, tensors) = self.terms(&plan, costs, price);
            let chosen = cheapest(&nodes, &tensors);
            if chosen.len() == nodes.len() {
                break;
            }
            for &p in nodes.keys().filter(|p| !chosen.contains(p)) {
                out.insert(p, (reason.0, reason.1.to_owned()));
            }
        }
        Ok(out)
    }

    /// The nodes to leave float for speed alone.
    ///
    /// # Errors
    /// As [`Partition::divide`].
    pub fn for_speed(&self, excluded: &Excluded) -> Result<Excluded> {
        self.divide(excluded, 0.0, SLOWER)
    }

    /// Predicted microseconds of the model: all in float, and by a plan. `None` when the target has no cost table.
    #[must_use]
    pub fn time(&self, plan: &QuantPlan) -> Option<(f64, f64)> {
        let costs = self.config.target.cost.as_ref()?;
        let (mut float, mut planned) = (0.0, 0.0);
        for n in &plan.nodes {
            let (f, i) = self.node(n, costs);
            float += f;
            planned += if matches!(n.decision, Decision::Float { .. }) { f } else { i };
        }
        let integer: BTreeSet<NodePlace> =
            plan.nodes.iter().filter(|n| n.decision == Decision::Integer).map(|n| n.place).collect();
        for t in self.tensors(plan, Some(costs), 0.0).values() {
            let made = t.maker.is_some_and(|m| integer.contains(&m));
            planned += if made { 0.0 } else { t.quantize };
            planned += if made && t.has_float_readers { t.dequantize } else { 0.0 };
        }
        Some((float, planned))
    }

    fn terms(
        &self,
        plan: &QuantPlan,
        costs: Option<&Costs>,
        price: f64,
    ) -> (BTreeMap<NodePlace, NodeCost>, BTreeMap<Place, TensorCost>) {
        let integer = plan.nodes.iter().filter(|n| n.decision == Decision::Integer);
        let nodes = integer.map(|n| {
            // Without costs the work that is done in integers counts, and of nodes without any their number.
            let (float, integer) = match costs {
                Some(costs) => self.node(n, costs),
                None => (n.macs as f64 * PER_MAC + PER_NODE, 0.0),
            };
            let noise = self.noise.weights.get(&n.place).copied().unwrap_or(0.0);
            (n.place, NodeCost { float, integer: integer + price * noise, gives_floats: self.gives_floats(n.place) })
        });
        (nodes.collect(), self.tensors(plan, costs, price))
    }

    fn gives_floats(&self, (id, n): NodePlace) -> bool {
        let node = self.model.graph(id).node(n);
        let is_weighted = matches!(rule(self.model, (id, n)), Some(QuantRule::Weighted { .. }));
        is_weighted && self.config.target.row(node, i64::MAX).is_ok_and(|r| r.output == OutputNeed::Optional)
    }

    fn tensors(&self, plan: &QuantPlan, costs: Option<&Costs>, price: f64) -> BTreeMap<Place, TensorCost> {
        let decision: BTreeMap<NodePlace, &Decision> = plan.nodes.iter().map(|n| (n.place, &n.decision)).collect();
        let is_integer = |id: GraphId, n: NodeId| decision.get(&(id, n)).is_some_and(|d| **d == Decision::Integer);
        let mut out = BTreeMap::new();
        for &(id, v) in plan.tensors.keys() {
            let g = self.model.graph(id);
            let mut maker = g.producer(v).map(|(n, _)| n);
            if let Some(n) = maker
                && matches!(decision.get(&(id, n)), Some(Decision::Absorbed(_)))
            {
                maker = g.input(n, 0).and_then(|x| g.producer(x)).map(|(n, _)| n);
            }
            let readers: Vec<(NodeId, usize)> = g.consumers(v);
            let is_data = |&(n, slot): &(NodeId, usize)| {
                is_integer(id, n) && rule(self.model, (id, n)).is_some_and(|r| r.is_data(slot))
            };
            let n_integer = readers.iter().filter(|r| is_data(r)).count();
            let elements = self.elements(id, v);
            let (quantize, dequantize) = costs.map_or((0.0, 0.0), |c| c.conversions(elements, self.rank(id, v) >= 3));
            let slowed = |n: NodeId| costs.map_or(0.0, |c| c.slowed(&g.node(n).op_type, elements));
            let slowed: f64 = readers.iter().map(|&(n, _)| slowed(n)).sum();
            let t = TensorCost {
                maker: maker.filter(|&n| is_integer(id, n)).map(|n| (id, n)),
                readers: readers.iter().filter(|r| is_data(r)).map(|&(n, _)| (id, n)).collect(),
                has_float_readers: n_integer < g.n_uses(v),
                noise: price * self.noise.tensors.get(&(id, v)).copied().unwrap_or(0.0),
                quantize,
                dequantize: dequantize + slowed,
            };
            out.insert((id, v), t);
        }
        out
    }

    fn node(&self, plan: &NodePlan, costs: &Costs) -> (f64, f64) {
        let (id, n) = plan.place;
        let g = self.model.graph(id);
        let node = g.node(n);
        let outputs: u64 = g.node_outputs(n).into_iter().flatten().map(|v| self.elements(id, v)).sum();
        let Some(rule) = rule(self.model, plan.place) else {
            return costs.node(&node.op_type, &Work { macs: plan.macs, outputs, ..Work::default() });
        };
        let data: Vec<ValueId> =
            g.node_inputs(n).into_iter().enumerate().filter_map(|(s, v)| v.filter(|_| rule.is_data(s))).collect();
        let mut work = Work {
            macs: plan.macs,
            inputs: data.iter().map(|&v| self.elements(id, v)).sum(),
            outputs,
            ..Work::default()
        };
        if let QuantRule::Weighted { weight, .. } = rule {
            let w = g.input(n, weight).and_then(|v| constant(self.model, id, v)).map(|t| t.shape().to_vec());
            let elements: u64 = w.iter().flatten().map(|&n| n as u64).product();
            work.rows = plan.macs.checked_div(elements).unwrap_or(0);
            if let Some(&[channels, inputs, ref window @ ..]) = w.as_deref()
                && !window.is_empty()
                && channels > 0
            {
                work.is_line = window.len() == 1;
                work.is_depthwise = inputs == 1 && channels > 1 && node.attrs.int("group").unwrap_or(1) > 1;
                let channels = channels as u64;
                let taps: u64 = window.iter().map(|&k| k as u64).product();
                work.inputs = if taps > 1 { outputs / channels * taps } else { 0 };
                work.channels = if work.is_depthwise { 0 } else { channels };
            }
        } else if let Some(kernel) = node.attrs.ints("kernel_shape") {
            // A pool does one operation for each element of its window.
            work.macs = outputs * kernel.iter().map(|&k| k.max(1) as u64).product::<u64>();
        }
        work.is_fused = data
            .iter()
            .any(|&v| g.n_uses(v) == 1 && g.producer(v).is_some_and(|(m, _)| costs.fuses(&g.node(m).op_type)));
        let (float, integer) = costs.node(&node.op_type, &work);
        (float + self.reorders(plan.place, &data, costs), integer)
    }

    /// What changes of layout around a float node cost, where all others are float too.
    fn reorders(&self, (id, n): NodePlace, data: &[ValueId], costs: &Costs) -> f64 {
        let g = self.model.graph(id);
        let op_type = |n: NodeId| g.node(n).op_type.as_str();
        let is_blocked = |v: ValueId| g.producer(v).is_some_and(|(m, _)| costs.is_blocked(op_type(m)));
        let starts = costs.fuses(op_type(n));
        if !costs.is_blocked(op_type(n)) || !starts && !data.iter().any(|&v| is_blocked(v)) {
            return 0.0;
        }
        // Images of a few channels are read as they are.
        let is_wide = |v: ValueId| self.shape(id, v).is_some_and(|s| s.get(1).is_some_and(|&c| c >= LEAST_BLOCK));
        let into = data.iter().filter(|&&v| starts && is_wide(v) && !is_blocked(v));
        let into: f64 = into.map(|&v| costs.reorder(self.elements(id, v)).0).sum();
        let leaves = |v: ValueId| g.is_output(v) || g.consumers(v).iter().any(|&(m, _)| !costs.is_blocked(op_type(m)));
        let out = g.node_outputs(n).into_iter().flatten().filter(|&v| is_wide(v) && leaves(v));
        into + out.map(|v| costs.reorder(self.elements(id, v)).1).sum::<f64>()
    }

    fn shape(&self, id: GraphId, v: ValueId) -> Option<&[usize]> {
        constant(self.model, id, v).map(|t| t.shape()).or_else(|| self.facts.shape((id, v)))
    }

    fn elements(&self, id: GraphId, v: ValueId) -> u64 {
        self.shape(id, v).map_or(0, |s| s.iter().map(|&n| n as u64).product())
    }

    fn rank(&self, id: GraphId, v: ValueId) -> usize {
        self.shape(id, v).map_or(0, <[usize]>::len)
    }
}
