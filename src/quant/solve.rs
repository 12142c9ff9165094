//! From observations to a complete plan and an emitted model.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::algo::channels::{self, Axis, Channels, InOrder};
use super::algo::layout::Layout;
use super::annotate::{Excluded, annotate, constant, observable};
use super::config::Config;
use super::facts::Facts;
use super::importance::importance;
use super::masks;
use super::measure::spread;
use super::overrides::Override;
use super::params::{QParams, Range, WeightParams};
use super::plan::{Decision, NodePlace, Place, QuantPlan, RangeFrom, WeightPlan};
use super::progress::Progress;
use super::realize::{qdq, qoperator};
use super::scheme::Form;
use super::target::BiasType;
use crate::calibrate::Tracker;
use crate::calibrate::cache::Cache;
use crate::calibrate::dataset::Dataset;
use crate::diag::Sink;
use crate::error::{At, Context, Location, Result, WithHelp, anyhow, bail, ensure};
use crate::interp::{CompileOptions, Program, RunOptions};
use crate::ir::{Def, GraphId, Model, NodeId, ValueId};
use crate::kernels;
use crate::ops::{Item, QuantRule};
use crate::passes;

/// What calibration saw of one tensor.
#[derive(Debug, Clone, Copy)]
pub struct Stats {
    /// Smallest finite value; larger than `max` when there was none.
    pub min: f32,
    /// Largest finite value.
    pub max: f32,
    /// The range that the calibration method chose.
    pub range: Range,
    /// Elements that were not finite.
    pub not_finite: u64,
}

impl Stats {
    /// What both saw.
    #[must_use]
    pub fn union(&self, other: &Stats) -> Stats {
        Stats {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            range: self.range.union(other.range),
            not_finite: self.not_finite + other.not_finite,
        }
    }
}

impl From<&Tracker> for Stats {
    fn from(t: &Tracker) -> Self {
        let (low, high) = t.range().unwrap_or_default();
        let not_finite = t.n_nan + t.n_inf + t.n_neg_inf;
        Stats { min: t.min, max: t.max, range: Range::new(low, high), not_finite }
    }
}

/// What calibration saw.
pub type Observed = BTreeMap<Place, Stats>;

/// Runs the float model on every sample and observes each tensor that some plan could quantize, and the channels that are
/// asked for.
///
/// # Errors
/// A sample cannot be read or the model does not run on it.
pub fn observe(
    model: &Model,
    config: &Config,
    facts: &Facts,
    excluded: &Excluded,
    pass: &Pass<'_>,
    progress: &dyn Progress,
    sink: &mut Sink,
) -> Result<(Observed, BTreeMap<Place, Channels>)> {
    let (trackers, seen) = track(model, config, facts, excluded, pass, progress)?;
    for (&(g, v), t) in &trackers {
        // Minus infinity is what masks are made of.
        if t.n_nan + t.n_inf > 0 {
            sink.warn(
                "not-finite-activation",
                Location::value(&model.graph(g).value(v).name),
                format!(
                    "{} NaN and {} infinite elements during calibration; the others give the range",
                    t.n_nan,
                    t.n_inf + t.n_neg_inf
                ),
            );
        }
    }
    let trackers: Vec<(Place, Tracker)> = trackers.into_iter().collect();
    let stats = kernels::map(trackers.len(), |i| (trackers[i].0, Stats::from(&trackers[i].1)));
    let mut observed: Observed = stats.into_iter().collect();
    for id in model.graph_ids() {
        for place in model.graph(id).values().map(|v| (id, v)) {
            if let Some(&stats) = observed.get(&root(model, place)) {
                observed.insert(place, stats);
            }
        }
    }
    Ok((observed, seen))
}

/// Where a captured value is made; the place itself for any other.
fn root(model: &Model, (mut g, mut v): Place) -> Place {
    while let Def::Capture(outer, source) = model.graph(g).value(v).def {
        (g, v) = (outer, source);
    }
    (g, v)
}

/// What calibration kept of each tensor.
pub type Trackers = BTreeMap<Place, Tracker>;

/// One pass over samples, and what is looked at beside ranges.
pub struct Pass<'a> {
    /// The samples.
    pub data: &'a dyn Dataset,
    /// Tensors whose channels are looked at, with the axis of these.
    pub channels: BTreeMap<Place, Axis>,
    /// On how many samples at most, spread evenly.
    pub channel_samples: usize,
}

impl<'a> Pass<'a> {
    /// For ranges alone.
    #[must_use]
    pub fn ranges(data: &'a dyn Dataset) -> Self {
        Pass { data, channels: BTreeMap::new(), channel_samples: 0 }
    }
}

/// Runs the float model on every sample and keeps the statistics of each tensor that some plan could quantize, and of the
/// channels that are asked for.
///
/// # Errors
/// A sample cannot be read or the model does not run on it.
pub fn track(
    model: &Model,
    config: &Config,
    facts: &Facts,
    excluded: &Excluded,
    pass: &Pass<'_>,
    progress: &dyn Progress,
) -> Result<(Trackers, BTreeMap<Place, Channels>)> {
    let mut places = observable(model, config, facts, excluded)?;
    // What a body uses of the graph around it is observed where it is made.
    places.extend(places.iter().map(|&p| root(model, p)).collect::<Vec<_>>());
    let is_weighted = config.method.calibrator.is_weighted;
    let mut weights = if is_weighted { importance(model, &places, facts)? } else { BTreeMap::new() };
    // One for each tensor, not for each thread: what a tracker keeps does not depend on the order of the samples, so all
    // threads share it, and memory does not grow with their number.
    let trackers: BTreeMap<Place, Mutex<Tracker>> =
        places.into_iter().map(|p| (p, Mutex::new(config.method.tracker().weighted(weights.remove(&p))))).collect();
    let watch = &|g, v| trackers.contains_key(&(g, v)) || pass.channels.contains_key(&(g, v));
    let program = Program::compile(model, &CompileOptions { watch, skip_unknown: true })?;
    let n = pass.data.len();
    let nothing = BTreeMap::new();
    let shown = spread(n, n.min(pass.channel_samples));
    let seen = Mutex::new(InOrder::default());
    progress.begin("calibrating", n as u64);
    let options = RunOptions { threads: if n >= config.threads { 1 } else { config.threads }, ..RunOptions::default() };
    kernels::try_in_order(n, |i| {
        let sample = pass.data.sample(i)?;
        let number = shown.binary_search(&i);
        let (places, mut here) = (if number.is_ok() { &pass.channels } else { &nothing }, BTreeMap::new());
        let outcome = program.run_named(&sample.inputs, options, &mut |g: GraphId, v: ValueId, item: &Item| {
            if let (Item::Tensor(t), Some(tracker)) = (item, trackers.get(&(g, v)))
                && let Ok(x) = t.slice::<f32>()
            {
                tracker.lock().unwrap_or_else(PoisonError::into_inner).see(x, t.shape(), i as u64);
            }
            if let Item::Tensor(t) = item {
                channels::see(&mut here, places, (g, v), t);
            }
            Ok(())
        });
        outcome.with_context(|| sample.origin.clone())?;
        if let Ok(number) = number {
            seen.lock().unwrap_or_else(PoisonError::into_inner).add(number, here);
        }
        progress.advance(1);
        Ok(())
    })?;
    progress.end();
    let finished = trackers.into_iter().map(|(p, t)| (p, t.into_inner().unwrap_or_else(PoisonError::into_inner)));
    Ok((finished.collect(), seen.into_inner().unwrap_or_else(PoisonError::into_inner).finish()))
}

/// The name of a place in a calibration cache: the value's, and in bodies of `If` and `Loop` the number of the graph too,
/// since bodies beside each other may use a name twice.
#[must_use]
pub fn cache_name(model: &Model, (g, v): Place) -> String {
    let name = &model.graph(g).value(v).name;
    match model.graph_ids().position(|id| id == g) {
        Some(0) | None => name.to_string(),
        Some(i) => format!("{name}@{i}"),
    }
}

/// What a cache holds of each tensor that some plan could quantize, instead of [`observe`]. The model must be as the
/// cache saw it: prepared, and not changed by any algorithm.
///
/// # Errors
/// A tensor is not in the cache (in one of another tool it may be missing, and stays float).
pub fn cached(
    model: &Model,
    config: &Config,
    facts: &Facts,
    excluded: &Excluded,
    cache: &Cache,
    sink: &mut Sink,
) -> Result<Observed> {
    let places = observable(model, config, facts, excluded)?;
    let mut observed = Observed::new();
    let mut n_missing = 0;
    for &place in &places {
        let name = cache_name(model, root(model, place));
        match cache.tensors.get(&name) {
            Some(entry) => {
                let (low, high) = entry.range().unwrap_or_default();
                observed.insert(place, Stats { range: Range::new(low, high), ..Stats::from(&entry.tracker) });
            }
            None if cache.is_foreign() => n_missing += 1,
            None => {
                let e: Result<()> = (|| bail!("the calibration cache has no tensor \"{name}\""))();
                e.help(|| "it was made for another target or by another version; make it again".into())?;
            }
        }
    }
    if n_missing > 0 {
        let message = format!("{n_missing} of {} tensors are not in it and stay float", places.len());
        sink.warn("calibration-cache", Location::default(), message);
    }
    Ok(observed)
}

/// Makes plans complete and models of plans.
pub struct Solver<'a> {
    /// The prepared float model.
    pub model: &'a Model,
    /// The user's choices.
    pub config: &'a Config,
    /// Types and shapes.
    pub facts: &'a Facts,
    /// What calibration saw.
    pub observed: &'a Observed,
}

impl Solver<'_> {
    /// A complete plan in which these nodes stay float.
    ///
    /// # Errors
    /// A stored tensor cannot be read, or calibration never saw a tensor.
    pub fn plan(&self, excluded: &Excluded) -> Result<QuantPlan> {
        let mut excluded = excluded.clone();
        let mut plan = annotate(self.model, self.config, self.facts, &excluded)?;
        // A tensor that no sample made (a branch not taken) has no range: its readers and its maker stay float.
        loop {
            let unseen = self.unseen(&plan);
            if unseen.is_empty() {
                break;
            }
            excluded.extend(unseen);
            plan = annotate(self.model, self.config, self.facts, &excluded)?;
        }
        self.activations(&mut plan)?;
        self.weights(&mut plan)?;
        Ok(plan)
    }

    fn unseen(&self, plan: &QuantPlan) -> Excluded {
        let mut out = Excluded::new();
        for (&(g, v), t) in &plan.tensors {
            let seen = self.observed.get(&(g, v)).is_some_and(|s| s.min <= s.max);
            if seen || matches!(t.range, RangeFrom::Fixed(..)) {
                continue;
            }
            let graph = self.model.graph(g);
            let why = || ("never-seen", "no calibration sample reached it".to_owned());
            for (n, _) in graph.consumers(v) {
                out.insert((g, n), why());
            }
            if let Some((n, _)) = graph.producer(v) {
                out.insert((g, n), why());
                // Behind a bound the integer node is one further up.
                if let Some((up, _)) = graph.input(n, 0).and_then(|x| graph.producer(x)) {
                    out.insert((g, up), why());
                }
            }
        }
        let before = |p: &(GraphId, NodeId)| {
            plan.node(*p).is_some_and(|n| matches!(n.decision, Decision::Integer | Decision::Absorbed(_)))
        };
        out.retain(|p, _| before(p));
        out
    }

    fn activations(&self, plan: &mut QuantPlan) -> Result<()> {
        let (dtype, symmetric) = (self.config.scheme.activation, self.config.scheme.symmetric_activations);
        // Where masks stay float, their range is nobody's.
        let clipped = if dtype.bits() > 8 || self.config.target.whole {
            masks::clipped(self.model, self.observed, plan)
        } else {
            masks::Clipped::default()
        };
        plan.operands = clipped.constants;
        let mut groups: BTreeMap<Place, (Option<Range>, Option<Range>)> = BTreeMap::new();
        for (place, t) in &plan.tensors {
            let (observed, fixed) = groups.entry(t.group).or_default();
            if let RangeFrom::Fixed(lo, hi) = t.range {
                *fixed = Some(Range { min: lo, max: hi });
            } else if let Some(s) = self.observed.get(place).filter(|s| s.min <= s.max) {
                let r = s.range;
                *observed = Some(observed.map_or(r, |o| o.union(r)));
            }
        }
        // What is said of one tensor of a group holds for all of it.
        let mut said: BTreeMap<Place, (&str, &Override)> = BTreeMap::new();
        for (&(g, v), t) in &plan.tensors {
            let name = &self.model.graph(g).value(v).name;
            if let Some((name, o)) = self.config.overrides.get_key_value(name)
                && let Some((other, before)) = said.insert(t.group, (name, o))
                && before != o
            {
                bail!(
                    "the overrides of \"{other}\" and \"{name}\" differ, and one operator gives both their parameters"
                );
            }
        }
        for t in plan.tensors.values_mut() {
            let (observed, fixed) = groups.get(&t.group).copied().unwrap_or_default();
            if let Some((name, o)) = said.get(&t.group) {
                let seen = fixed.or(observed).ok_or_else(|| anyhow!("a tensor has no range"))?;
                let p = o.activation(seen, &self.config.scheme).with_context(|| format!("override of \"{name}\""))?;
                let target = &self.config.target;
                ensure!(
                    target.activation.allows(p.dtype),
                    "override of \"{name}\": {} does not run activations of type {}: {}",
                    target.name,
                    p.dtype,
                    target.activation.why
                );
                t.params = Some(p);
                continue;
            }
            let observed = clipped.groups.get(&t.group).copied().or(observed);
            t.params = Some(match (fixed, observed) {
                (Some(r), _) => QParams::fixed(r, dtype, symmetric)?,
                (None, Some(r)) => QParams::covering(r, dtype, symmetric)?,
                (None, None) => bail!("a tensor has no range"),
            });
        }
        Ok(())
    }

    fn weights(&self, plan: &mut QuantPlan) -> Result<()> {
        for i in 0..plan.nodes.len() {
            let (id, n) = plan.nodes[i].place;
            if plan.nodes[i].decision != Decision::Integer {
                continue;
            }
            let g = self.model.graph(id);
            let node = g.node(n);
            let opset = self.model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
            let QuantRule::Weighted { data, weight, bias, axis } = plan.nodes[i].rule else { continue };
            let stored = |slot: usize| g.input(n, slot).and_then(|v| constant(self.model, id, v));
            let w = stored(weight).ok_or_else(|| anyhow!("its weight is not a constant")).at(|| node.location())?;
            // A weight of more than two dimensions multiplies batches: only one scale for all of it is portable.
            let scheme = &self.config.scheme;
            let by_target = self.config.target.row(node, opset).is_ok_and(|r| r.per_channel);
            let per_channel =
                scheme.per_channel && by_target && (axis != crate::ops::WeightAxis::Last || w.shape().len() == 2);
            let rule_axis = axis;
            let axis = axis.resolve(&node.attrs, w.shape().len()).filter(|_| per_channel);
            if let Some((name, o)) = self.weight_override(id, n, weight) {
                let params = o.weight(w.get()?.slice()?, w.shape(), axis, scheme);
                let params = params.with_context(|| format!("override of \"{name}\""))?;
                plan.nodes[i].weight = Some(WeightPlan { params, rounded: None, bias: None });
                continue;
            }
            let mut params = WeightParams::covering(w.get()?.slice()?, w.shape(), axis, scheme.weight);
            if self.config.target.adds_pairs_in_16_bits
                && let Some(layout) = Layout::of(&node.attrs, rule_axis, w.shape().len())
            {
                params.fit_pairs(w.get()?.slice()?, w.shape(), layout);
            }
            let x = g.input(n, data).and_then(|v| plan.tensors.get(&(id, v))).and_then(|t| t.params);
            let bias = bias.and_then(stored).filter(|_| scheme.bias == BiasType::Int32);
            if let (Some(x), Some(b)) = (x, bias) {
                params.fit_bias(b.get()?.slice()?, x.scale);
            }
            plan.nodes[i].weight = Some(WeightPlan { params, rounded: None, bias: None });
        }
        Ok(())
    }

    /// What the user says of a node's weight, and the weight's name. Folding a BatchNormalization makes a new tensor of the
    /// old one's name.
    fn weight_override(&self, id: GraphId, n: NodeId, slot: usize) -> Option<(&str, &Override)> {
        let g = self.model.graph(id);
        let name = g.value(g.input(n, slot)?).name.as_str();
        let of = |n: &str| self.config.overrides.get(n);
        of(name).or_else(|| of(name.trim_end_matches("_fused"))).map(|o| (name, o))
    }

    /// Whether the user says how a node's weight is quantized.
    #[must_use]
    pub fn is_overridden(&self, (id, n): NodePlace) -> bool {
        let slots = 0..self.model.graph(id).node_inputs(n).len();
        slots.into_iter().any(|slot| self.weight_override(id, n, slot).is_some())
    }

    /// The model that a plan gives.
    ///
    /// # Errors
    /// The plan is not complete.
    pub fn emit(&self, plan: &QuantPlan) -> Result<Model> {
        let mut emitted = self.model.clone();
        qdq::realize(&mut emitted, plan, &self.config.scheme)?;
        clean_up(&mut emitted)?;
        if self.config.scheme.form == Form::QOperator {
            qoperator::from_qdq(&mut emitted)?;
        }
        Ok(emitted)
    }

    /// The model that a plan gives, with weights and biases left float: nothing done to weights makes it better than this.
    ///
    /// # Errors
    /// The plan is not complete.
    pub fn emit_activations(&self, plan: &QuantPlan) -> Result<Model> {
        let mut emitted = self.model.clone();
        qdq::realize_activations(&mut emitted, plan, &self.config.scheme)?;
        clean_up(&mut emitted)?;
        Ok(emitted)
    }
}

fn clean_up(emitted: &mut Model) -> Result<()> {
    let mut sink = Sink::default();
    passes::manager::run(emitted, &passes::CLEANUP, &mut passes::Ctx::new(&mut sink), &mut |_, _| {})?;
    Ok(())
}

/// A quantized model ready to run.
///
/// # Errors
/// The model does not compile.
pub fn compile(model: &Model) -> Result<Program> {
    Program::compile(model, &CompileOptions { skip_unknown: true, ..CompileOptions::default() })
}
