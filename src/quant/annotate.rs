//! Fills the plan: which nodes run in integers on the target and which tensors are quantized for them.
//!
//! Weighted operators (`Conv`, `Gemm`, `MatMul` with a constant weight) are what pays; everything else is quantized
//! only where it lies between them, so that no conversion stands between two float operators and integer regions
//! are as large as they can be. The rules are facts of the operators ([`QuantRule`]) and of the target ([`Target`]).
//! Nothing is edited and no number is chosen here.

use std::collections::{BTreeMap, BTreeSet};

use super::config::Config;
use super::facts::Facts;
use super::plan::{Decision, NodePlace, NodePlan, Place, QuantPlan, RangeFrom, Readers, TensorPlan};
use super::scheme::Form;
use super::target::{BiasType, OutputNeed, Row, Target};
use crate::error::Result;
use crate::ir::{Attr, Def, Dim, Graph, GraphId, Model, NodeId, TensorRef, ValueId};
use crate::ops::quant_rule::Slots;
use crate::ops::{OpDef, OutputRange, QuantRule, WeightAxis, is_recurrent, lookup, quant_rule};
use crate::tensor::DType;

/// A node that must stay float, with the reason for the user.
pub type Excluded = BTreeMap<NodePlace, (&'static str, String)>;

/// Plans all graphs of a model.
///
/// # Errors
/// A graph has a cycle, or a stored tensor cannot be read.
pub fn annotate(model: &Model, config: &Config, facts: &Facts, excluded: &Excluded) -> Result<QuantPlan> {
    let mut plan = QuantPlan::default();
    for id in model.graph_ids() {
        let graph = GraphPlanner::new(model, id, config, facts, excluded)?;
        graph.plan(&mut plan)?;
    }
    Ok(plan)
}

/// The stored tensor behind a value, through captures.
#[must_use]
pub fn constant(model: &Model, graph: GraphId, value: ValueId) -> Option<&TensorRef> {
    match &model.graph(graph).value(value).def {
        Def::Initializer(t) => Some(t),
        Def::Capture(outer, source) => constant(model, *outer, *source),
        _ => None,
    }
}

/// The quantization rule of a node; `None` for an operator that is not known.
#[must_use]
pub fn rule(model: &Model, place: NodePlace) -> Option<QuantRule> {
    def(model, place).map(|d| d.quant)
}

/// The quantization rule of a node on a target. Where nothing may stay float, a product of two activations (`MatMul`)
/// computes new values from both.
#[must_use]
pub fn rule_on(model: &Model, target: &Target, (id, n): NodePlace) -> Option<QuantRule> {
    let g = model.graph(id);
    let node = g.node(n);
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    let rule = target.rule(node, opset, lookup(&node.domain, &node.op_type, opset)?.quant);
    let QuantRule::Weighted { weight, axis: WeightAxis::Last, bias: None, .. } = rule else { return Some(rule) };
    let is_computed = g.input(n, weight).is_some_and(|w| constant(model, id, w).is_none());
    let both = QuantRule::Combine { data: Slots::All, output: OutputRange::Observed };
    Some(if target.whole && is_computed { both } else { rule })
}

fn def(model: &Model, (id, n): NodePlace) -> Option<&'static OpDef> {
    let node = model.graph(id).node(n);
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    lookup(&node.domain, &node.op_type, opset)
}

/// The code of operators that move elements and stay float because they would be slow in integers.
pub const SLOW: &str = "slow-in-integers";

/// What a node could be.
#[derive(Clone)]
enum Class<'a> {
    Weighted { row: &'a Row },
    Combine { row: &'a Row },
    Share { row: &'a Row },
    Bound,
    Float(&'static str, String),
}

struct GraphPlanner<'a> {
    model: &'a Model,
    id: GraphId,
    g: &'a Graph,
    config: &'a Config,
    facts: &'a Facts,
    order: Vec<NodeId>,
    class: BTreeMap<NodeId, Class<'a>>,
    rule: BTreeMap<NodeId, QuantRule>,
    /// Nodes that run in integers as far as is known.
    integer: BTreeSet<NodeId>,
}

impl<'a> GraphPlanner<'a> {
    fn new(model: &'a Model, id: GraphId, config: &'a Config, facts: &'a Facts, excluded: &Excluded) -> Result<Self> {
        let g = model.graph(id);
        let mut planner = GraphPlanner {
            model,
            id,
            g,
            config,
            facts,
            order: g.order()?,
            class: BTreeMap::new(),
            rule: BTreeMap::new(),
            integer: BTreeSet::new(),
        };
        for n in planner.order.clone() {
            let class = match excluded.get(&(id, n)) {
                Some((code, why)) => Class::Float(code, why.clone()),
                None => planner.classify(n, &config.target)?,
            };
            if matches!(class, Class::Weighted { .. } | Class::Combine { .. } | Class::Share { .. }) {
                planner.integer.insert(n);
            }
            planner.class.insert(n, class);
        }
        Ok(planner)
    }

    fn classify(&mut self, n: NodeId, target: &'a Target) -> Result<Class<'a>> {
        let node = self.g.node(n);
        let opset = self.model.opsets_in(self.id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
        let Some(rule) = rule_on(self.model, target, (self.id, n)) else {
            return Ok(Class::Float("unknown-operator", format!("operator {} is not known", node.op_type)));
        };
        self.rule.insert(n, rule);
        let float = |code, why: String| Ok(Class::Float(code, why));
        if let QuantRule::Bound = rule {
            return Ok(if self.bounds_hold_zero(n)? {
                Class::Bound
            } else {
                Class::Float("unbounded", "its bounds are not constant or leave out 0".into())
            });
        }
        if let QuantRule::Keep { why } = rule {
            return float("no-integer-kernel", why.to_owned());
        }
        let row = match target.row(node, opset) {
            Ok(row) => row,
            Err(why) => return float("no-integer-kernel", why),
        };
        match rule {
            QuantRule::Weighted { data, weight, bias, axis } => {
                if let Some(why) = self.weighted_obstacle(n, data, weight, bias, axis)? {
                    return float("no-integer-form", why);
                }
                Ok(Class::Weighted { row })
            }
            QuantRule::Combine { data, .. } => {
                for (slot, v) in self.g.node_inputs(n).into_iter().enumerate() {
                    if let Some(v) = v
                        && data.contains(slot)
                        && self.dtype(v) != Some(DType::F32)
                    {
                        return float("not-float32", format!("input {slot} {}", self.not_float32(v)));
                    }
                }
                Ok(Class::Combine { row })
            }
            QuantRule::Share => {
                let Some(x) = self.g.input(n, 0) else { return float("no-integer-form", "has no input".into()) };
                if constant(self.model, self.id, x).is_some() {
                    return float("constant-data", "its data is a constant".into());
                }
                if self.dtype(x) != Some(DType::F32) {
                    return float("not-float32", format!("its data {}", self.not_float32(x)));
                }
                // A second output that is no copy of elements (indices of MaxPool) has no quantized form.
                let outs = self.g.node_outputs(n);
                if outs.iter().flatten().any(|&v| self.g.n_uses(v) > 0 && self.dtype(v) != Some(DType::F32)) {
                    return float("no-integer-form", "an output in use is not float32".into());
                }
                Ok(Class::Share { row })
            }
            QuantRule::Bound | QuantRule::Keep { .. } => float("no-integer-kernel", "has no integer kernel".into()),
        }
    }

    fn dtype(&self, v: ValueId) -> Option<DType> {
        match constant(self.model, self.id, v) {
            Some(t) => Some(t.dtype()),
            None => self.facts.dtype((self.id, v)).or_else(|| self.g.value(v).ty.as_ref()?.dtype()),
        }
    }

    /// What is to be said of data of another element type, or of none: nothing after an unknown operator is computed.
    fn not_float32(&self, v: ValueId) -> String {
        match self.dtype(v) {
            Some(t) => format!("is {t}, not float32"),
            None => "was not computed on the samples: see the operators before it".into(),
        }
    }

    /// Why a weighted node has no integer form; `None` when it has one.
    fn weighted_obstacle(
        &self,
        n: NodeId,
        data: usize,
        weight: usize,
        bias: Option<usize>,
        axis: quant_rule::WeightAxis,
    ) -> Result<Option<String>> {
        let say = |s: &str| Ok(Some(s.to_owned()));
        let node = self.g.node(n);
        let (Some(x), Some(w)) = (self.g.input(n, data), self.g.input(n, weight)) else {
            return say("an input is missing");
        };
        if constant(self.model, self.id, x).is_some() {
            return say("its data is a constant");
        }
        if self.dtype(x) != Some(DType::F32) {
            return Ok(Some(format!("its data {}", self.not_float32(x))));
        }
        let Some(w) = constant(self.model, self.id, w) else {
            return say("its weight is not a constant");
        };
        if w.dtype() != DType::F32 {
            return say("its weight is not float32");
        }
        let Some(a) = axis.resolve(&node.attrs, w.shape().len()) else { return say("its weight has no channel axis") };
        if w.is_empty() {
            return say("its weight is empty");
        }
        if !w.get()?.slice::<f32>()?.iter().all(|x| x.is_finite()) {
            return say("its weight is not finite");
        }
        if node.attrs.float("alpha").is_some_and(|x| x != 1.0) || node.attrs.float("beta").is_some_and(|x| x != 1.0) {
            return say("alpha or beta is not 1");
        }
        if let Some(b) =
            bias.and_then(|slot| self.g.input(n, slot)).filter(|_| self.config.scheme.bias == BiasType::Int32)
        {
            let Some(b) = constant(self.model, self.id, b) else { return say("its bias is not a constant") };
            let channels = w.shape()[a];
            if b.dtype() != DType::F32 || b.len() != channels || b.shape().last() != Some(&channels) {
                return say("its bias is not one float32 number per channel");
            }
            if !b.get()?.slice::<f32>()?.iter().all(|x| x.is_finite()) {
                return say("its bias is not finite");
            }
        }
        Ok(None)
    }

    /// Whether a `Relu` or `Clip` keeps 0 inside its constant bounds: then the saturation of a quantized range that was
    /// observed behind it does the same.
    fn bounds_hold_zero(&self, n: NodeId) -> Result<bool> {
        let bound = |slot: usize, attr: &str, open: f64| -> Result<Option<f64>> {
            if let Some(Attr::Float(x)) = self.g.node(n).attrs.get(attr) {
                return Ok(Some(f64::from(*x)));
            }
            match self.g.input(n, slot) {
                None => Ok(Some(open)),
                Some(v) => match constant(self.model, self.id, v) {
                    Some(t) if t.len() == 1 => Ok(Some(t.get()?.to_f64()?)),
                    _ => Ok(None),
                },
            }
        };
        let (min, max) = (bound(1, "min", f64::NEG_INFINITY)?, bound(2, "max", f64::INFINITY)?);
        Ok(matches!((min, max), (Some(lo), Some(hi)) if lo <= 0.0 && hi >= 0.0))
    }

    // ---- through Relu and Clip ----

    /// The bound that alone reads a value and may vanish behind it.
    fn bound_after(&self, v: ValueId) -> Option<NodeId> {
        if self.g.n_uses(v) != 1 {
            return None;
        }
        let (n, slot) = self.g.consumers(v).first().copied()?;
        (slot == 0 && matches!(self.class.get(&n), Some(Class::Bound))).then_some(n)
    }

    /// The value behind the bound that follows `v`, or `v`.
    fn behind(&self, v: ValueId) -> ValueId {
        self.bound_after(v).and_then(|b| self.g.output(b, 0)).unwrap_or(v)
    }

    /// The node that makes a value, looking through a bound that may vanish.
    fn maker(&self, v: ValueId) -> Option<NodeId> {
        let (n, _) = self.g.producer(v)?;
        if matches!(self.class.get(&n), Some(Class::Bound))
            && let Some(x) = self.g.input(n, 0)
            && self.g.n_uses(x) == 1
        {
            return self.g.producer(x).map(|(n, _)| n);
        }
        Some(n)
    }

    /// Nodes that read a value as data.
    fn data_readers(&self, v: ValueId) -> Vec<NodeId> {
        self.g.consumers(v).into_iter().filter(|&(n, slot)| self.is_data(n, slot)).map(|(n, _)| n).collect()
    }

    fn is_data(&self, n: NodeId, slot: usize) -> bool {
        self.rule.get(&n).is_some_and(|r| r.is_data(slot)) && self.fused_slot(n) != Some(slot)
    }

    /// The operand of a residual addition that its maker is fused with and that stays float: of several the last made.
    fn fused_slot(&self, n: NodeId) -> Option<usize> {
        if !matches!(self.class.get(&n), Some(Class::Combine { row }) if row.residual) {
            return None;
        }
        let made = self.g.node_inputs(n).into_iter().enumerate().filter_map(|(slot, v)| {
            let v = v.filter(|&v| self.g.n_uses(v) == 1)?;
            let (maker, _) = self.g.producer(v)?;
            let is_weighted = matches!(self.class.get(&maker), Some(Class::Weighted { .. }));
            (is_weighted && self.is_integer(maker)).then_some((self.g.node(maker).pos, slot))
        });
        made.max_by_key(|(pos, _)| *pos).map(|(_, slot)| slot)
    }

    fn data_inputs(&self, n: NodeId) -> Vec<(usize, ValueId)> {
        let ins = self.g.node_inputs(n).into_iter().enumerate();
        ins.filter_map(|(slot, v)| v.filter(|_| self.is_data(n, slot)).map(|v| (slot, v))).collect()
    }

    fn is_integer(&self, n: NodeId) -> bool {
        self.integer.contains(&n)
    }

    /// Whether a value comes out of a node that gives integers and nothing else, or one whose output costs nothing to
    /// quantize.
    fn is_integer_made(&self, v: ValueId) -> bool {
        self.maker(v).is_some_and(|m| self.is_integer(m) && self.output_need(m) != OutputNeed::Optional)
    }

    /// Whether the output of an integer node is quantized for its own sake.
    fn output_need(&self, n: NodeId) -> OutputNeed {
        match self.class.get(&n) {
            // An operator on quantized tensors makes them, too.
            Some(Class::Weighted { .. } | Class::Combine { .. }) if self.config.scheme.form == Form::QOperator => {
                OutputNeed::Required
            }
            Some(Class::Weighted { row } | Class::Combine { row }) => row.output,
            _ => OutputNeed::Required,
        }
    }

    /// Whether some integer node reads the value, and whether all its readers are integer nodes.
    fn demand(&self, v: ValueId) -> (bool, bool) {
        let readers = self.data_readers(v);
        let some = readers.iter().any(|&n| self.is_integer(n));
        let all =
            readers.iter().all(|&n| self.is_integer(n)) && readers.len() == self.g.n_uses(v) && !readers.is_empty();
        (some, all)
    }

    fn elements(&self, v: ValueId) -> Option<usize> {
        if let Some(t) = constant(self.model, self.id, v) {
            return Some(t.len());
        }
        let shape = self.facts.shape((self.id, v));
        shape.map(|s| s.iter().product())
    }

    /// Why a node that could run in integers should not, given which others do; `None` when it should.
    fn objection(&self, n: NodeId) -> Option<(&'static str, String)> {
        let outs: Vec<ValueId> = self.g.node_outputs(n).into_iter().flatten().collect();
        let whole = self.config.target.whole;
        let demanded = || whole || outs.iter().any(|&v| self.demand(self.behind(v)).0);
        match &self.class[&n] {
            Class::Combine { row } if row.residual => {
                let is_constant = |v: ValueId| constant(self.model, self.id, v).is_some();
                let alone = self.g.node_inputs(n).into_iter().flatten().any(is_constant);
                (alone || self.fused_slot(n).is_none())
                    .then(|| ("no-residual", "no operator that runs in integers is to be fused with it".into()))
            }
            Class::Combine { row } => {
                if !demanded() {
                    return Some(("no-integer-consumer", "nothing after it runs in integers".into()));
                }
                let size = outs.first().and_then(|&v| self.elements(v));
                let mut n_integer = 0;
                for (slot, v) in self.data_inputs(n) {
                    if let Some(t) = constant(self.model, self.id, v) {
                        let finite =
                            t.get().and_then(|t| t.slice::<f32>()).is_ok_and(|s| s.iter().all(|x| x.is_finite()));
                        if !finite {
                            return Some(("not-finite", format!("constant input {slot} is not finite")));
                        }
                    } else if self.is_integer_made(v) {
                        n_integer += 1;
                    } else {
                        let small = matches!((self.elements(v), size), (Some(n), Some(all)) if n * 4 <= all);
                        if !(whole || row.small && small) {
                            let name = &self.g.value(v).name;
                            return Some(("float-input", format!("its input {name} is made in float")));
                        }
                    }
                }
                (n_integer == 0 && !whole).then(|| ("float-input", "no input of it is made in integers".into()))
            }
            Class::Share { row } => {
                let x = self.g.input(n, 0)?;
                if !demanded() {
                    return Some(("no-integer-consumer", "nothing after it runs in integers".into()));
                }
                let all = outs.iter().all(|&v| self.g.n_uses(v) == 0 || self.demand(v).1);
                if !self.is_integer_made(x) && row.integer_input {
                    return Some((SLOW, "its input is made in float, behind which it is slow in integers".into()));
                }
                if !whole && !self.is_integer_made(x) && !all {
                    return Some((
                        "float-input",
                        "its input is made in float and not all its readers run in integers".into(),
                    ));
                }
                None
            }
            _ => None,
        }
    }

    /// Integer nodes lose their place until nothing changes: each loss can only cost others theirs. Gives the reasons.
    fn settle(&mut self) -> BTreeMap<NodeId, (&'static str, String)> {
        let mut lost = BTreeMap::new();
        loop {
            let before = self.integer.len();
            for n in self.order.clone() {
                if self.is_integer(n)
                    && let Some(why) = self.objection(n)
                {
                    self.integer.remove(&n);
                    lost.insert(n, why);
                }
            }
            if self.integer.len() == before {
                return lost;
            }
        }
    }

    fn plan(mut self, plan: &mut QuantPlan) -> Result<()> {
        let mut lost = self.settle();
        let tensors = self.tensors();
        let readers: BTreeMap<ValueId, Readers> = tensors.iter().map(|&v| (v, self.readers(v))).collect();
        self.emit_tensors(&readers, plan);
        for &n in &self.order {
            let decision = if self.is_integer(n) {
                Decision::Integer
            } else if let Some(t) = self.absorbing(n, &readers) {
                Decision::Absorbed((self.id, t))
            } else {
                match (&self.class[&n], lost.remove(&n)) {
                    (_, Some((code, why))) => Decision::Float { code, why },
                    (Class::Float(code, why), None) => Decision::Float { code, why: why.clone() },
                    _ if !self.config.scheme.absorb => {
                        Decision::Float { code: "kept-bound", why: "fused by the runtime with what it bounds".into() }
                    }
                    _ => Decision::Float {
                        code: "no-integer-kernel",
                        why: "bounds stay where no quantization follows directly".into(),
                    },
                }
            };
            let macs = self.macs(n);
            let data = match decision {
                Decision::Integer => self.data_inputs(n).into_iter().map(|(slot, _)| slot).collect(),
                _ => Vec::new(),
            };
            let rule = self.rule.get(&n).copied().unwrap_or(QuantRule::Keep { why: "is not known" });
            plan.nodes.push(NodePlan { place: (self.id, n), decision, rule, data, weight: None, macs });
        }
        Ok(())
    }

    /// Activations to be quantized: what integer nodes read, and what those make that need a quantized output.
    fn tensors(&self) -> BTreeSet<ValueId> {
        let mut tensors = BTreeSet::new();
        for &n in &self.integer {
            for (_, v) in self.data_inputs(n) {
                if constant(self.model, self.id, v).is_none() {
                    tensors.insert(v);
                }
            }
            if self.output_need(n) == OutputNeed::Required {
                let outs = self.g.node_outputs(n).into_iter().flatten();
                tensors.extend(outs.filter(|&v| self.g.n_uses(v) > 0).map(|v| self.behind(v)));
            }
        }
        tensors
    }

    fn readers(&self, v: ValueId) -> Readers {
        let integer_made =
            self.maker(v).is_some_and(|m| self.is_integer(m) && self.output_need(m) != OutputNeed::Float);
        if integer_made || self.demand(v).1 { Readers::All } else { Readers::Integer }
    }

    /// The quantized tensor that a bound vanishes into.
    fn absorbing(&self, n: NodeId, readers: &BTreeMap<ValueId, Readers>) -> Option<ValueId> {
        if !matches!(self.class[&n], Class::Bound) || !self.config.scheme.absorb {
            return None;
        }
        let (x, y) = (self.g.input(n, 0)?, self.g.output(n, 0)?);
        (self.g.n_uses(x) == 1 && readers.get(&y) == Some(&Readers::All)).then_some(y)
    }

    fn emit_tensors(&self, readers: &BTreeMap<ValueId, Readers>, plan: &mut QuantPlan) {
        // Element movers tie the parameters of input and outputs together; groups are named by their first tensor in
        // the order of execution, which is the one that the elements come from.
        let mut group: BTreeMap<ValueId, ValueId> = readers.keys().map(|&v| (v, v)).collect();
        fn root(group: &BTreeMap<ValueId, ValueId>, mut v: ValueId) -> ValueId {
            while let Some(&up) = group.get(&v)
                && up != v
            {
                v = up;
            }
            v
        }
        for &n in &self.order {
            if self.is_integer(n)
                && matches!(self.class[&n], Class::Share { .. })
                && let Some(x) = self.g.input(n, 0)
            {
                for y in self.g.node_outputs(n).into_iter().flatten() {
                    let y = self.behind(y);
                    if readers.contains_key(&y) {
                        let (a, b) = (root(&group, x), root(&group, y));
                        group.insert(b, a);
                    }
                }
            }
        }
        for (&v, &readers) in readers {
            let range = match self.maker(v).filter(|_| !self.is_bounded(v)).and_then(|m| self.rule.get(&m)) {
                Some(QuantRule::Combine { output: OutputRange::Fixed(lo, hi), .. }) => RangeFrom::Fixed(*lo, *hi),
                _ => RangeFrom::Observed,
            };
            let group = (self.id, root(&group, v));
            plan.tensors.insert((self.id, v), TensorPlan { readers, group, range, params: None });
        }
    }

    fn is_bounded(&self, v: ValueId) -> bool {
        self.g.producer(v).is_some_and(|(n, _)| matches!(self.class[&n], Class::Bound))
    }

    fn macs(&self, n: NodeId) -> u64 {
        let shape = |v: ValueId| match constant(self.model, self.id, v) {
            Some(t) => t.shape().to_vec(),
            None => self.facts.shape((self.id, v)).map(<[usize]>::to_vec).unwrap_or_default(),
        };
        let elements = |v: ValueId| shape(v).iter().map(|&n| n as u64).product::<u64>();
        if def(self.model, (self.id, n)).is_some_and(is_recurrent) {
            let [Some(x), Some(w), Some(r)] = [0, 1, 2].map(|slot| self.g.input(n, slot)) else { return 0 };
            let &[sequence, batch, _] = shape(x).as_slice() else { return 0 };
            // Each row of the sequence meets every weight.
            return (sequence * batch) as u64 * (elements(w) + elements(r));
        }
        // Nodes that stay float by choice have their share of the work, too.
        let own = self.rule.get(&n).copied().filter(|r| matches!(r, QuantRule::Weighted { .. }));
        let known = own.or_else(|| rule(self.model, (self.id, n)));
        let Some(QuantRule::Weighted { weight, axis, .. }) = known else { return 0 };
        let (Some(w), Some(y)) = (self.g.input(n, weight), self.g.output(n, 0)) else { return 0 };
        let w_shape = shape(w);
        let y_shape: Vec<Dim> = match self.facts.shape((self.id, y)) {
            Some(s) => s.iter().map(|&n| Dim::Known(n)).collect(),
            None => return 0,
        };
        if axis == WeightAxis::Fixed(1) {
            // Input channels come first (ConvTranspose): each input element meets every weight of its channel.
            let input = self.g.input(n, 0).map_or(0, elements);
            return input * w_shape.iter().skip(1).map(|&n| n as u64).product::<u64>();
        }
        quant_rule::macs(axis, &self.g.node(n).attrs, &w_shape, &y_shape)
    }
}

/// Places that calibration must observe for this plan of the model and for any other in which more nodes stay float.
///
/// # Errors
/// A graph has a cycle, or a stored tensor cannot be read.
pub fn observable(model: &Model, config: &Config, facts: &Facts, excluded: &Excluded) -> Result<BTreeSet<Place>> {
    let mut places = BTreeSet::new();
    for id in model.graph_ids() {
        let mut planner = GraphPlanner::new(model, id, config, facts, excluded)?;
        // Excluding more nodes only takes integer nodes away, and with them what they read and make.
        planner.settle();
        places.extend(planner.tensors().into_iter().map(|v| (id, v)));
    }
    Ok(places)
}
