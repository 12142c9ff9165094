//! A model of the outputs' quantization noise from a few passes back through the network: predicts the output SQNR of
//! any plan without running it.
//!
//! To first order the error of an output is `J e`: the errors `e` of all quantized tensors, as the network carries them
//! to the output. For a vector `r` of random signs, `E[(r' J e)^2] = |J e|^2` (Hutchinson, 1989), and `r' J` is what one
//! reverse pass from `r` gives for all tensors and weights at once. With the real errors of the samples, clipping
//! included, each place then has two estimates of the noise power that it causes:
//! - *apart*: `sum (g e)^2` over its elements, right when their errors are independent, and steady;
//! - *together*: `(sum g e)^2`, right whatever the errors have to do with each other, and scattered as few probes are.
//!
//! The model takes their geometric mean, weighted by how much the second can be trusted. Noises of different places add
//! up in power. What gradients do not reach (before control flow, recurrent layers) can be filled in with measured
//! noise: [`NoiseModel::unknown`], [`NoiseModel::set_measured`].
//!
//! ```text
//! let model = NoiseModel::new(&solver, &plan, &samples, &NoiseOptions::default())?;
//! model.sqnr(&other_plan)                    // predicted SQNR in dB of the worst output
//! model.contributions(&other_plan)           // which tensors and weights cause it, largest first
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::annotate::{constant, rule_on};
use super::measure::sqnr;
use super::params::{QParams, Range};
use super::plan::{Decision, NodePlace, QuantPlan, Readers};
use super::solve::Solver;
use crate::calibrate::dataset::Dataset;
use crate::error::{Context, Result, ensure};
use crate::interp::reverse::{Gradient, Recorder, Recording};
use crate::ir::{GraphId, Model, NodeId, ValueId};
use crate::kernels;
use crate::kernels::simd::{self, Kernel};
use crate::ops::QuantRule;
use crate::tensor::{DType, Tensor, affine};

/// How much work goes into a noise model.
#[derive(Debug, Clone, Copy)]
pub struct NoiseOptions {
    /// Samples, spread evenly over the data.
    pub samples: usize,
    /// Reverse passes in all; at least one for each sample and output.
    pub passes: usize,
    /// Outputs that are looked at one by one; more than that are taken together.
    pub outputs: usize,
}

impl Default for NoiseOptions {
    fn default() -> Self {
        NoiseOptions { samples: 4, passes: 16, outputs: 8 }
    }
}

/// Something that is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// A tensor, for all its readers.
    Tensor(ValueId),
    /// A tensor or stored operand as one input of one node reads it.
    Input(NodeId, usize),
}

/// What the passes found for one site.
#[derive(Debug, Clone, Default)]
struct Found {
    /// `sum (g e)^2` of each pass.
    apart: Vec<f64>,
    /// `sum g e` of each pass.
    together: Vec<f64>,
}

/// One reverse pass: which output (or group of outputs) it started from, and what its noise counts.
#[derive(Debug, Clone, Copy)]
struct Pass {
    output: usize,
    weight: f64,
}

/// Part of a plan's noise.
#[derive(Debug, Clone)]
pub struct Contribution {
    /// What is quantized.
    pub site: Site,
    /// The noise that it causes, as a fraction of the signal, in the output where that is largest.
    pub relative: f64,
}

/// Predicts the noise of plans; see the module documentation. Covers the main graph.
#[derive(Debug, Clone)]
pub struct NoiseModel {
    names: Vec<String>,
    signals: Vec<f64>,
    passes: Vec<Pass>,
    sites: BTreeMap<Site, Found>,
    /// The steps that the errors were taken with.
    steps: BTreeMap<Site, f64>,
    rules: BTreeMap<NodeId, QuantRule>,
    incomplete: BTreeSet<ValueId>,
    /// Nodes where gradients stopped: name and reason.
    pub stopped: Vec<(String, String)>,
    measured: BTreeMap<NodePlace, Vec<f64>>,
}

impl NoiseModel {
    /// Makes the model from a few samples. The errors are those of `base`, the plan with the most operators in
    /// integers, and for tensors that it leaves alone those of their calibrated ranges.
    ///
    /// # Errors
    /// The float model does not run on a sample, or a stored tensor cannot be read.
    pub fn new(solver: &Solver<'_>, base: &QuantPlan, data: &dyn Dataset, options: &NoiseOptions) -> Result<Self> {
        let g = solver.model.main();
        let errors = Errors::new(solver, base)?;
        let recorder = Recorder::new(solver.model)?;
        let outputs: Vec<ValueId> = g.outputs().to_vec();
        let together = outputs.len() > options.outputs;
        let groups = if together { 1 } else { outputs.len() };
        ensure!(groups > 0 && !data.is_empty(), "a noise model needs outputs and samples");
        let samples = options.samples.min(data.len()).min(options.passes / groups).max(1);
        let probes = (options.passes / (samples * groups)).max(1);
        let mut model = NoiseModel {
            names: if together {
                vec!["all outputs".into()]
            } else {
                outputs.iter().map(|&v| g.value(v).name.clone()).collect()
            },
            signals: vec![0.0; groups],
            passes: Vec::new(),
            sites: BTreeMap::new(),
            steps: errors.steps(),
            rules: rules(solver),
            incomplete: BTreeSet::new(),
            stopped: Vec::new(),
            measured: BTreeMap::new(),
        };
        let mut trace = crate::interp::reverse::Trace::default();
        for i in 0..samples {
            let sample = data.sample(i * data.len() / samples)?;
            let recording =
                recorder.record(&sample.inputs, solver.config.threads).with_context(|| sample.origin.clone())?;
            let seeds = model.seeds(&recording, &outputs, together, probes, i as u64);
            let inner = if seeds.len() >= solver.config.threads { 1 } else { solver.config.threads };
            // In the order of the seeds, whatever the number of threads.
            let done = kernels::map_into(seeds, |(pass, from)| {
                let mut see = See { errors: &errors, model: solver.model, sums: BTreeMap::new() };
                let trace = recording.reverse(from, inner, &mut see)?;
                Ok((pass, see.sums, trace))
            });
            for (pass, sums, part) in done.into_iter().collect::<Result<Vec<_>>>()? {
                let k = model.passes.len();
                model.passes.push(pass);
                for (site, (apart, along)) in sums {
                    let found = model.sites.entry(site).or_default();
                    found.apart.resize(k, 0.0);
                    found.together.resize(k, 0.0);
                    found.apart.push(apart);
                    found.together.push(along);
                }
                trace.stopped.extend(part.stopped);
            }
        }
        for found in model.sites.values_mut() {
            found.apart.resize(model.passes.len(), 0.0);
            found.together.resize(model.passes.len(), 0.0);
        }
        let complete = recorder.complete(&trace);
        model.incomplete = g.values().filter(|v| !complete.contains(v)).collect();
        model.stopped = trace.stopped.iter().map(|(&n, why)| (g.node(n).label(), why.clone())).collect();
        Ok(model)
    }

    /// The starts of the passes on one sample. The signal of the sample is added.
    fn seeds(
        &mut self,
        recording: &Recording<'_, '_>,
        outputs: &[ValueId],
        together: bool,
        probes: usize,
        sample: u64,
    ) -> Vec<(Pass, Vec<(ValueId, Tensor)>)> {
        let mut seeds = Vec::new();
        let mut merged: Vec<Vec<(ValueId, Tensor)>> = vec![Vec::new(); probes];
        for (k, &v) in outputs.iter().enumerate() {
            let Some(y) = recording.value(v).filter(|t| t.dtype().is_float() && !t.is_empty()) else { continue };
            let Ok(values) = y.to_f32s() else { continue };
            let power: f64 = values.iter().filter(|x| x.is_finite()).map(|&x| f64::from(x) * f64::from(x)).sum();
            if power == 0.0 {
                continue;
            }
            for (probe, merged) in merged.iter_mut().enumerate() {
                let scale = if together { (1.0 / power.sqrt()) as f32 } else { 1.0 };
                let seed = (sample * 64 + probe as u64) * 4096 + k as u64;
                let r = Tensor::of(y.shape(), signs(seed, values.len(), scale));
                if together {
                    merged.push((v, r));
                } else {
                    seeds.push((Pass { output: k, weight: 1.0 / probes as f64 }, vec![(v, r)]));
                }
            }
            self.signals[if together { 0 } else { k }] += if together { 0.0 } else { power };
        }
        if together && merged.iter().any(|m| !m.is_empty()) {
            self.signals[0] += 1.0;
            seeds.extend(merged.into_iter().map(|m| (Pass { output: 0, weight: 1.0 / probes as f64 }, m)));
        }
        seeds
    }

    /// The names of the outputs that are predicted, in order; one name for all where there are many.
    #[must_use]
    pub fn outputs(&self) -> &[String] {
        &self.names
    }

    /// The signal power of each output, on the samples together.
    #[must_use]
    pub fn signals(&self) -> &[f64] {
        &self.signals
    }

    /// The predicted SQNR in dB of each output.
    #[must_use]
    pub fn sqnrs(&self, model: &Model, plan: &QuantPlan) -> Vec<f64> {
        let noise = self.noise(model, plan);
        self.signals.iter().zip(noise).map(|(&s, n)| sqnr(s, n)).collect()
    }

    /// The predicted SQNR in dB of the worst output; infinite when nothing is quantized.
    #[must_use]
    pub fn sqnr(&self, model: &Model, plan: &QuantPlan) -> f64 {
        let noise = self.noise(model, plan);
        let each = self.signals.iter().zip(noise).filter(|(s, _)| **s > 0.0).map(|(&s, n)| sqnr(s, n));
        each.fold(f64::INFINITY, f64::min)
    }

    /// The noise power of each output.
    #[must_use]
    pub fn noise(&self, model: &Model, plan: &QuantPlan) -> Vec<f64> {
        let mut total = vec![0.0; self.signals.len()];
        for (_, power) in self.parts(model, plan) {
            total.iter_mut().zip(power).for_each(|(t, p)| *t += p);
        }
        for n in plan.nodes.iter().filter(|n| n.decision == Decision::Integer) {
            if let Some(power) = self.measured.get(&n.place) {
                total.iter_mut().zip(power).for_each(|(t, p)| *t += p);
            }
        }
        total
    }

    /// What causes the noise of a plan, largest part of the worst output first.
    #[must_use]
    pub fn contributions(&self, model: &Model, plan: &QuantPlan) -> Vec<Contribution> {
        let relative = |power: &[f64]| {
            let each = self.signals.iter().zip(power).filter(|(s, _)| **s > 0.0).map(|(s, p)| p / s);
            each.fold(0.0, f64::max)
        };
        let parts = self.parts(model, plan).into_iter();
        let mut out: Vec<_> = parts.map(|(site, p)| Contribution { site, relative: relative(&p) }).collect();
        out.sort_by(|a, b| b.relative.total_cmp(&a.relative).then(a.site.cmp(&b.site)));
        out
    }

    /// Integer nodes of a plan that the model cannot judge, since gradients do not reach them.
    #[must_use]
    pub fn unknown(&self, model: &Model, plan: &QuantPlan) -> Vec<NodePlace> {
        let integer = plan.nodes.iter().filter(|n| n.decision == Decision::Integer).map(|n| n.place);
        let g = model.main();
        let is_open = |&(id, n): &NodePlace| {
            id != GraphId::MAIN || g.node_outputs(n).into_iter().flatten().any(|v| self.incomplete.contains(&v))
        };
        integer.filter(is_open).collect()
    }

    /// Sets the noise power of each output that an unknown node causes when it alone is quantized.
    pub fn set_measured(&mut self, node: NodePlace, power: Vec<f64>) {
        self.measured.insert(node, power);
    }

    /// The noise of each site of a plan, for each output.
    fn parts(&self, model: &Model, plan: &QuantPlan) -> Vec<(Site, Vec<f64>)> {
        let g = model.main();
        let mut parts = Vec::new();
        let integer: BTreeSet<NodePlace> =
            plan.nodes.iter().filter(|n| n.decision == Decision::Integer).map(|n| n.place).collect();
        for (&(id, v), t) in &plan.tensors {
            let Some(params) = t.params.filter(|_| id == GraphId::MAIN && !self.is_exact(model, plan, v)) else {
                continue;
            };
            let step = f64::from(params.scale);
            let all = [Site::Tensor(v)];
            let some: Vec<Site> = match t.readers {
                Readers::All => all.to_vec(),
                Readers::Integer => {
                    let reads = |&(n, slot): &(NodeId, usize)| {
                        integer.contains(&(id, n)) && self.rules.get(&n).is_some_and(|&r| is_data(r, slot))
                    };
                    g.consumers(v).into_iter().filter(reads).map(|(n, slot)| Site::Input(n, slot)).collect()
                }
            };
            // A value with one reader has one gradient, which is kept for the value.
            let known = some.iter().all(|s| self.sites.contains_key(s));
            parts.push((Site::Tensor(v), self.power(if known { &some } else { &all }, Some(step))));
        }
        for &(id, n) in &integer {
            let Some(&r) = self.rules.get(&n).filter(|_| id == GraphId::MAIN) else { continue };
            for (slot, v) in g.node_inputs(n).into_iter().enumerate() {
                let site = Site::Input(n, slot);
                let stored = v.is_some_and(|v| constant(model, id, v).is_some());
                if stored && is_quantized(r, slot) && self.sites.contains_key(&site) {
                    let step = plan
                        .node((id, n))
                        .and_then(|p| p.weight.as_ref())
                        .map(|w| mean_square(&w.params.scales).sqrt());
                    parts.push((site, self.power(&[site], step)));
                }
            }
        }
        parts
    }

    /// Whether quantizing a tensor changes nothing, since it is made of quantized elements of the same parameters.
    fn is_exact(&self, model: &Model, plan: &QuantPlan, v: ValueId) -> bool {
        let g = model.main();
        let Some((n, _)) = g.producer(v) else { return false };
        let moves = matches!(self.rules.get(&n), Some(QuantRule::Share));
        let is_integer = plan.node((GraphId::MAIN, n)).is_some_and(|p| p.decision == Decision::Integer);
        let of = |v: ValueId| plan.tensors.get(&(GraphId::MAIN, v)).map(|t| t.group);
        moves && is_integer && g.input(n, 0).and_then(of).is_some_and(|group| Some(group) == of(v))
    }

    /// The noise power that sites with one error cause in each output; `step` is that of the plan.
    fn power(&self, sites: &[Site], step: Option<f64>) -> Vec<f64> {
        let mut apart = vec![0.0; self.signals.len()];
        let mut together = vec![0.0; self.signals.len()];
        let mut count = vec![0.0; self.signals.len()];
        for (k, pass) in self.passes.iter().enumerate() {
            let found = || sites.iter().filter_map(|s| self.sites.get(s));
            let along: f64 = found().map(|f| f.together[k]).sum();
            apart[pass.output] += pass.weight * found().map(|f| f.apart[k]).sum::<f64>();
            together[pass.output] += pass.weight * along * along;
            count[pass.output] += 1.0;
        }
        let base = sites.first().and_then(|s| self.steps.get(s));
        let factor = match (step, base) {
            (Some(step), Some(base)) if *base > 0.0 => (step / base).powi(2),
            _ => 1.0,
        };
        (0..self.signals.len()).map(|o| factor * blend(apart[o], together[o], count[o])).collect()
    }

    /// Both estimates of a site's noise power in each output, for comparisons.
    #[must_use]
    pub fn estimates(&self, site: Site) -> Vec<(f64, f64)> {
        let mut out = vec![(0.0, 0.0); self.signals.len()];
        if let Some(f) = self.sites.get(&site) {
            for (k, pass) in self.passes.iter().enumerate() {
                let o = &mut out[pass.output];
                *o = (o.0 + pass.weight * f.apart[k], o.1 + pass.weight * f.together[k] * f.together[k]);
            }
        }
        out
    }
}

/// The geometric mean of both estimates. Of `n` passes the second has a relative spread of `sqrt(2 / n)`: with few
/// passes the first counts more.
fn blend(apart: f64, together: f64, n: f64) -> f64 {
    if apart <= 0.0 || n == 0.0 {
        return apart;
    }
    let w = n / (n + 16.0);
    // A sum that came out small by chance says little.
    let together = together.max(apart / 100.0);
    apart.powf(1.0 - w) * together.powf(w)
}

/// `n` random signs times `scale`, from a seed.
pub(super) fn signs(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut bits = 0u64;
    (0..n)
        .map(|i| {
            if i % 64 == 0 {
                // SplitMix64 (Steele, Lea, Flood 2014).
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                bits ^= bits >> 31;
            }
            if bits >> (i % 64) & 1 == 1 { scale } else { -scale }
        })
        .collect()
}

fn mean_square(v: &[f32]) -> f64 {
    v.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / v.len().max(1) as f64
}

/// How the target quantizes each node of the main graph.
fn rules(solver: &Solver<'_>) -> BTreeMap<NodeId, QuantRule> {
    let g = solver.model.main();
    let of = |n: NodeId| Some((n, rule_on(solver.model, &solver.config.target, (GraphId::MAIN, n))?));
    g.nodes().filter_map(of).collect()
}

/// Whether an input is a tensor that an integer node reads quantized.
fn is_data(rule: QuantRule, slot: usize) -> bool {
    match rule {
        QuantRule::Weighted { data, .. } => data == slot,
        QuantRule::Combine { data, .. } => data.contains(slot),
        QuantRule::Share => slot == 0,
        QuantRule::Keep { .. } | QuantRule::Bound => false,
    }
}

/// Whether a stored input of an integer node is quantized to few bits (a bias has 32).
fn is_quantized(rule: QuantRule, slot: usize) -> bool {
    match rule {
        QuantRule::Weighted { weight, .. } => weight == slot,
        other => is_data(other, slot),
    }
}

/// The errors of everything that could be quantized.
struct Errors {
    tensors: HashMap<ValueId, QParams>,
    /// Of stored operands: what quantization adds to each element, and the step.
    stored: HashMap<(NodeId, usize), (Vec<f32>, f64)>,
}

impl Errors {
    fn new(solver: &Solver<'_>, base: &QuantPlan) -> Result<Self> {
        let (model, g) = (solver.model, solver.model.main());
        let (dtype, symmetric) = (solver.config.scheme.activation, solver.config.scheme.symmetric_activations);
        let rules = rules(solver);
        let mut tensors = HashMap::new();
        for (&(id, v), stats) in solver.observed {
            if id == GraphId::MAIN && stats.min <= stats.max {
                tensors.insert(v, QParams::covering(stats.range, dtype, symmetric)?);
            }
        }
        for (&(id, v), t) in &base.tensors {
            if let (GraphId::MAIN, Some(p)) = (id, t.params) {
                tensors.insert(v, p);
            }
        }
        let mut stored = HashMap::new();
        for plan in base.nodes.iter().filter(|p| p.decision == Decision::Integer && p.place.0 == GraphId::MAIN) {
            let n = plan.place.1;
            let Some(&rule) = rules.get(&n) else { continue };
            for (slot, v) in g.node_inputs(n).into_iter().enumerate() {
                let Some(t) = v.and_then(|v| constant(model, GraphId::MAIN, v)) else { continue };
                if !is_quantized(rule, slot) || t.dtype() != DType::F32 {
                    continue;
                }
                let (x, shape) = (t.get()?.slice::<f32>()?, t.shape());
                let error = match &plan.weight {
                    Some(w) => {
                        let q = match &w.rounded {
                            Some(q) => q.clone(),
                            None => w.params.quantize(x, shape)?,
                        };
                        {
                            let real = w.params.dequantize(&q)?;
                            (real.iter().zip(x).map(|(q, x)| q - x).collect(), mean_square(&w.params.scales).sqrt())
                        }
                    }
                    None => {
                        let whole = || x.iter().fold(Range { min: 0.0, max: 0.0 }, |r, &x| r.union(Range::new(x, x)));
                        let said = v.and_then(|v| base.operands.get(&(GraphId::MAIN, v)).copied());
                        let range = said.unwrap_or_else(whole);
                        let p = QParams::covering(range, dtype, symmetric)?;
                        (x.iter().map(|&x| p.fake(x) - x).collect(), f64::from(p.scale))
                    }
                };
                stored.insert((n, slot), error);
            }
        }
        Ok(Errors { tensors, stored })
    }

    fn steps(&self) -> BTreeMap<Site, f64> {
        let tensors = self.tensors.iter().map(|(&v, p)| (Site::Tensor(v), f64::from(p.scale)));
        let stored = self.stored.iter().map(|(&(n, slot), (_, step))| (Site::Input(n, slot), *step));
        tensors.chain(stored).collect()
    }
}

/// Sums errors times gradients as a pass shows them.
struct See<'a> {
    errors: &'a Errors,
    model: &'a Model,
    sums: BTreeMap<Site, (f64, f64)>,
}

impl Gradient for See<'_> {
    fn wants_constant(&self, node: NodeId, slot: usize) -> bool {
        self.errors.stored.contains_key(&(node, slot))
    }

    fn edge(&mut self, node: NodeId, slot: usize, value: &Tensor, gradient: &[f32]) -> Result<()> {
        let sum = match self.errors.stored.get(&(node, slot)) {
            Some((e, _)) => simd::run(Sums { x: e, g: gradient, error: |e: f32| e }),
            None => {
                let g = self.model.main();
                let Some(v) = g.input(node, slot) else { return Ok(()) };
                let has_one = g.n_uses(v) == 1;
                let (Some(p), false, DType::F32) = (self.errors.tensors.get(&v), has_one, value.dtype()) else {
                    return Ok(());
                };
                noise(value.slice()?, gradient, *p)
            }
        };
        self.sums.insert(Site::Input(node, slot), sum);
        Ok(())
    }

    fn value(&mut self, v: ValueId, value: &Tensor, gradient: &[f32]) -> Result<()> {
        if let (Some(p), DType::F32) = (self.errors.tensors.get(&v), value.dtype()) {
            self.sums.insert(Site::Tensor(v), noise(value.slice()?, gradient, *p));
        }
        Ok(())
    }
}

/// Both sums for a tensor quantized with these parameters.
fn noise(x: &[f32], g: &[f32], p: QParams) -> (f64, f64) {
    let (lo, hi) = p.bounds();
    let (scale, zero, lo, hi) = (p.scale, p.zero_point as f32, lo as f32, hi as f32);
    let per_step = 1.0 / scale;
    let error = |x: f32| {
        let q = affine::round(x * per_step) + zero;
        let q = if q > lo { q } else { lo };
        let q = if q < hi { q } else { hi };
        let e = (q - zero) * scale - x;
        // An infinite element (a mask) has no error that means anything.
        if e.is_finite() { e } else { 0.0 }
    };
    simd::run(Sums { x, g, error })
}

/// `sum (g e)^2` and `sum g e` with `e = error(x)`.
struct Sums<'a, F> {
    x: &'a [f32],
    g: &'a [f32],
    error: F,
}

impl<F: Fn(f32) -> f32> Kernel for Sums<'_, F> {
    type Output = (f64, f64);
    #[inline(always)]
    fn run(self) -> (f64, f64) {
        const LANES: usize = 16;
        let Sums { x, g, error } = self;
        let (mut apart, mut along) = ([0f64; LANES], [0f64; LANES]);
        let mut add = |i: usize, x: f32, g: f32| {
            let p = f64::from(g * error(x));
            apart[i] += p * p;
            along[i] += p;
        };
        let ((xs, x), (gs, g)) = (x.as_chunks::<LANES>(), g.as_chunks::<LANES>());
        for (x, g) in xs.iter().zip(gs) {
            for i in 0..LANES {
                add(i, x[i], g[i]);
            }
        }
        for (i, (&x, &g)) in x.iter().zip(g).enumerate() {
            add(i, x, g);
        }
        (apart.iter().sum(), along.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::calibrate::dataset::Sample;
    use crate::diag::Sink;
    use crate::quant::measure::worst_sqnr;
    use crate::quant::progress::Quiet;
    use crate::quant::sensitivity::Study;
    use crate::quant::{Config, sensitivity};

    struct Fixed(Vec<Tensor>);

    impl Dataset for Fixed {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn sample(&self, i: usize) -> Result<Sample> {
            Ok(Sample { origin: format!("sample {i}"), inputs: vec![("x".into(), self.0[i].clone())] })
        }
    }

    /// Numbers between -1 and 1.
    fn random(seed: u64, n: usize) -> Vec<f32> {
        let bits = |i: usize| signs(seed * 1000 + i as u64, 20, 1.0);
        let of = |v: Vec<f32>| v.iter().enumerate().map(|(k, s)| s * 0.5f32.powi(k as i32 + 1)).sum();
        (0..n).map(|i| of(bits(i))).collect()
    }

    fn stored(name: &str, shape: [usize; 2], seed: u64) -> String {
        let mut s = format!("float[{},{}] {name} = {{", shape[0], shape[1]);
        for (i, x) in random(seed, shape[0] * shape[1]).iter().enumerate() {
            let _ = write!(s, "{}{x:?}", if i == 0 { "" } else { ", " });
        }
        s + "}"
    }

    #[test]
    fn predictions_are_near_what_plans_measure() {
        let (w, v, u) = (stored("w", [24, 32], 1), stored("v", [32, 32], 2), stored("u", [32, 8], 3));
        let text = format!(
            r#"<ir_version: 8, opset_import: ["" : 13]>
            g (float[16,24] x) => (float[16,8] y) <{w}, {v}, {u}>
            {{
                a = MatMul (x, w)
                b = Relu (a)
                c = MatMul (b, v)
                d = Add (c, b)
                y = MatMul (d, u)
            }}"#
        );
        let model = crate::ir::text_parse::parse(&text).unwrap();
        let data = Fixed((0..4).map(|i| Tensor::of(&[16, 24], random(10 + i, 16 * 24))).collect());
        let config = Config::new("ort-cpu").unwrap();
        let study = Study::new(model, &config, &data, &Quiet, &mut Sink::default()).unwrap();
        let nodes = study.operators();
        assert_eq!(nodes.len(), 3);
        // So many passes that the estimate has settled: its spread is that of 256 squares of signs.
        let options = NoiseOptions { passes: 256, ..NoiseOptions::default() };
        let noise = study.noise_model(&data, &options, &Quiet).unwrap();
        assert!(noise.stopped.is_empty() && noise.unknown(&study.model, &study.plan).is_empty());
        let measured = study.output_errors(&nodes, &data, &Quiet).unwrap();
        let near = |what: &str, predicted: f64, measured: f64| {
            assert!(
                (predicted - measured).abs() < 1.5,
                "{what}: predicted {predicted:.2} dB, measured {measured:.2} dB"
            );
        };
        for (&n, errors) in nodes.iter().zip(&measured) {
            let predicted = noise.sqnr(&study.model, &study.alone(n).unwrap());
            near("one operator", predicted, worst_sqnr(errors));
        }
        let whole = worst_sqnr(&study.whole_errors(&data).unwrap());
        near("all", noise.sqnr(&study.model, &study.plan), whole);
        let parts = noise.contributions(&study.model, &study.plan);
        let total: f64 = parts.iter().map(|p| p.relative).sum();
        near("the sum of the parts", sqnr(1.0, total), whole);
        assert!(parts.windows(2).all(|p| p[0].relative >= p[1].relative));
        // A measured operator counts as measured.
        let mut filled = noise.clone();
        sensitivity::fill(&mut filled, &nodes[..1], &measured[..1]);
        assert!(filled.sqnr(&study.model, &study.plan) < noise.sqnr(&study.model, &study.plan));
    }

    #[test]
    fn signs_are_fair_and_repeatable() {
        let s = signs(7, 10_000, 2.0);
        assert_eq!(s, signs(7, 10_000, 2.0));
        assert!(s.iter().all(|x| x.abs() == 2.0));
        assert!(s.iter().sum::<f32>().abs() < 2.0 * 300.0);
        let other = signs(8, 10_000, 2.0);
        assert!(s.iter().zip(&other).map(|(a, b)| a * b).sum::<f32>().abs() < 4.0 * 300.0);
    }
}
