//! Which operators cost the most accuracy, in three orders.
//!
//! - **output-error**: the outputs' SQNR when one operator alone runs in integers, measured: one run of the network for
//!   each operator. The reference of the other two.
//! - **gradient**: the same, predicted by the noise model ([`super::noise`]) from a few reverse passes for all operators
//!   at once. What gradients do not reach is measured.
//! - **magnitude**: the largest magnitude in the operator's weight, which its quantization step is proportional to; it
//!   knows nothing of the network.
//!
//! Operators are those with a weight that the plan runs in integers. `onnx-quant sensitivity MODEL --by all` prints all
//! orders with Spearman's rank correlation of the cheap ones with output-error. On 13 networks with 4 to 70 such
//! operators (min-max ranges of 16 samples, `-n 16 --by all`), and the worst output's SQNR with all of them in integers:
//!
//! | network | operators | gradient | magnitude | measured | predicted |
//! |---|---|---|---|---|---|
//! | crepe_tiny | 7 | 0.86 | 0.64 | 44.7 dB | 42.8 dB |
//! | crnn_en (recurrent layers stop gradients) | 10 | 1.00 | 0.27 | 42.6 dB | 41.8 dB |
//! | dnsmos | 12 | 0.92 | 0.29 | 10.2 dB | 10.7 dB |
//! | efficientnet_lite0 | 50 | 0.99 | 0.27 | 18.6 dB | 17.8 dB |
//! | fastestdet | 70 | 0.93 | 0.12 | 15.2 dB | 11.4 dB |
//! | minilm_l3 | 18 | 0.98 | 0.60 | 21.4 dB | 21.5 dB |
//! | mtcnn_onet | 8 | 0.88 | 0.05 | 21.0 dB | 24.7 dB |
//! | oww_embedding | 20 | 0.92 | 0.30 | 23.9 dB | 22.7 dB |
//! | ppocr_v2_cls (saturated outputs) | 54 | 0.66 | 0.17 | 85.0 dB | 77.4 dB |
//! | ppocr_v4_rec | 47 | 0.78 | 0.58 | 17.4 dB | 7.6 dB |
//! | superres | 4 | 1.00 | 0.00 | 25.1 dB | 27.7 dB |
//! | thai_deepcut | 26 | 0.93 | 0.15 | 36.3 dB | 37.1 dB |
//! | ultraface | 52 | 0.97 | 0.55 | 43.6 dB | 43.3 dB |
//!
//! First order is what it says: behind a `Log` of nearly nothing, or where outputs saturate, predictions are off.

use std::collections::BTreeMap;

use super::annotate::{Excluded, constant};
use super::config::Config;
use super::facts::Facts;
use super::measure::{OutputError, Reference, worst_sqnr};
use super::noise::{NoiseModel, NoiseOptions};
use super::plan::{Decision, NodePlace, QuantPlan};
use super::progress::Progress;
use super::solve::{self, Observed, Solver, compile};
use super::traps;
use crate::calibrate::dataset::Dataset;
use crate::diag::Sink;
use crate::error::{Context, Result};
use crate::interp::RunOptions;
use crate::ir::Model;
use crate::kernels;
use crate::ops::{QuantRule, lookup};
use crate::passes;

/// Samples that single operators are measured on.
pub const SAMPLES: usize = 4;

/// A prepared float model with its calibration, ready for any number of plans.
pub struct Study<'a> {
    /// The float model after the passes.
    pub model: Model,
    /// The plan with everything in integers that can be.
    pub plan: QuantPlan,
    config: &'a Config,
    facts: Facts,
    observed: Observed,
    excluded: Excluded,
}

impl<'a> Study<'a> {
    /// Prepares and calibrates a model.
    ///
    /// # Errors
    /// The model is quantized already or does not run on the data.
    pub fn new(
        mut model: Model,
        config: &'a Config,
        data: &dyn Dataset,
        progress: &dyn Progress,
        sink: &mut Sink,
    ) -> Result<Self> {
        super::refuse_unsuitable(&model)?;
        super::close_inputs(&mut model, sink);
        let mut ctx = passes::Ctx::new(sink).opset_floor(config.target.opset);
        passes::manager::run(&mut model, &passes::PREPARE, &mut ctx, &mut |_, _| {})?;
        crate::infer::infer(&mut model, sink)?;
        let excluded = config.excluded(&model)?;
        let first = data.sample(0)?;
        let options = RunOptions { threads: config.threads, ..RunOptions::default() };
        let facts = Facts::of(&model, &first.inputs, options, true)
            .with_context(|| format!("running the float model on {}", first.origin))?;
        let pass = solve::Pass::ranges(data);
        let (observed, _) = solve::observe(&model, config, &facts, &excluded, &pass, progress, sink)?;
        let excluded = traps::exclude(&model, config, &facts, &observed, &excluded)?;
        let plan = Solver { model: &model, config, facts: &facts, observed: &observed }.plan(&excluded)?;
        Ok(Study { model, plan, config, facts, observed, excluded })
    }

    /// Makes plans for the model.
    #[must_use]
    pub fn solver(&self) -> Solver<'_> {
        Solver { model: &self.model, config: self.config, facts: &self.facts, observed: &self.observed }
    }

    /// The weighted operators that the plan runs in integers, in the order of execution.
    #[must_use]
    pub fn operators(&self) -> Vec<NodePlace> {
        weighted(&self.plan)
    }

    /// The plan in which one of the weighted operators runs in integers, with whatever that brings along.
    ///
    /// # Errors
    /// As [`Solver::plan`].
    pub fn alone(&self, node: NodePlace) -> Result<QuantPlan> {
        alone(&self.solver(), &self.excluded, &self.plan, node)
    }

    /// The outputs' errors with each of these operators alone in integers.
    ///
    /// # Errors
    /// A model does not run.
    pub fn output_errors(
        &self,
        nodes: &[NodePlace],
        data: &dyn Dataset,
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<OutputError>>> {
        let reference = Reference::new(&compile(&self.model)?, data, SAMPLES, self.config.threads)?;
        let solver = self.solver();
        progress.begin("measuring operators", nodes.len() as u64);
        let errors = output_errors(&solver, &self.excluded, &self.plan, nodes, &reference, progress);
        progress.end();
        errors
    }

    /// The outputs' errors with the whole plan carried out.
    ///
    /// # Errors
    /// A model does not run.
    pub fn whole_errors(&self, data: &dyn Dataset) -> Result<Vec<OutputError>> {
        let reference = Reference::new(&compile(&self.model)?, data, SAMPLES, self.config.threads)?;
        reference.compare(&compile(&self.solver().emit(&self.plan)?)?, SAMPLES, self.config.threads)
    }

    /// The noise model of the network; operators that gradients do not reach are measured.
    ///
    /// # Errors
    /// The model does not run on the data.
    pub fn noise_model(
        &self,
        data: &dyn Dataset,
        options: &NoiseOptions,
        progress: &dyn Progress,
    ) -> Result<NoiseModel> {
        progress.begin("reverse passes", 1);
        let solver = self.solver();
        let mut noise = NoiseModel::new(&solver, &self.plan, data, options)?;
        progress.end();
        let unknown: Vec<NodePlace> = noise.unknown(&self.model, &self.plan);
        let unknown: Vec<NodePlace> = self.operators().into_iter().filter(|n| unknown.contains(n)).collect();
        if !unknown.is_empty() {
            let errors = self.output_errors(&unknown, data, progress)?;
            fill(&mut noise, &unknown, &errors);
        }
        Ok(noise)
    }

    /// The largest magnitude in an operator's weight.
    ///
    /// # Errors
    /// The weight cannot be read.
    pub fn magnitude(&self, (id, n): NodePlace) -> Result<f64> {
        let g = self.model.graph(id);
        let node = g.node(n);
        let opset = self.model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
        let Some(QuantRule::Weighted { weight, .. }) = lookup(&node.domain, &node.op_type, opset).map(|d| d.quant)
        else {
            return Ok(0.0);
        };
        let Some(w) = g.input(n, weight).and_then(|v| constant(&self.model, id, v)) else { return Ok(0.0) };
        Ok(w.get()?.slice::<f32>()?.iter().fold(0.0f32, |m, x| m.max(x.abs())).into())
    }
}

/// The weighted operators that a plan runs in integers, in the order of execution.
#[must_use]
pub fn weighted(plan: &QuantPlan) -> Vec<NodePlace> {
    plan.nodes.iter().filter(|n| n.decision == Decision::Integer && n.weight.is_some()).map(|n| n.place).collect()
}

/// The plan in which one of the weighted operators of `plan` runs in integers, with whatever that brings along.
///
/// # Errors
/// As [`Solver::plan`].
pub fn alone(solver: &Solver<'_>, excluded: &Excluded, plan: &QuantPlan, node: NodePlace) -> Result<QuantPlan> {
    let mut others = excluded.clone();
    for p in weighted(plan).into_iter().filter(|p| *p != node) {
        others.insert(p, ("accuracy", String::new()));
    }
    solver.plan(&others)
}

/// The outputs' errors with each of these operators alone in integers, on at most [`SAMPLES`] samples of the reference.
///
/// # Errors
/// A model does not run.
pub fn output_errors(
    solver: &Solver<'_>,
    excluded: &Excluded,
    plan: &QuantPlan,
    nodes: &[NodePlace],
    reference: &Reference,
    progress: &dyn Progress,
) -> Result<Vec<Vec<OutputError>>> {
    kernels::try_map(nodes.len(), |i| {
        let emitted = solver.emit(&alone(solver, excluded, plan, nodes[i])?)?;
        let errors = reference.compare(&compile(&emitted)?, SAMPLES, 1)?;
        progress.advance(1);
        Ok(errors)
    })
}

/// Gives measured errors of operators to a noise model, as noise power on its own samples.
pub fn fill(noise: &mut NoiseModel, nodes: &[NodePlace], errors: &[Vec<OutputError>]) {
    for (&node, errors) in nodes.iter().zip(errors) {
        let db: BTreeMap<&str, f64> = errors.iter().map(|e| (e.name.as_str(), e.sqnr_db)).collect();
        let worst = worst_sqnr(errors);
        let powers = noise.outputs().iter().zip(noise.signals());
        let powers = powers.map(|(name, s)| s * 10f64.powf(-db.get(name.as_str()).copied().unwrap_or(worst) / 10.0));
        let powers = powers.collect();
        noise.set_measured(node, powers);
    }
}

/// Spearman's rank correlation of two lists, equal values sharing their rank; `None` where one of them is all equal.
#[must_use]
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 + 1.0) / 2.0;
    let sum = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let norm = (sum(&a, &a) * sum(&b, &b)).sqrt();
    (a.len() == b.len() && norm > 0.0).then(|| sum(&a, &b) / norm)
}

/// The rank of each value, from 1 on.
fn ranks(v: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..v.len()).collect();
    order.sort_by(|&i, &j| v[i].total_cmp(&v[j]));
    let mut ranks = vec![0.0; v.len()];
    for run in order.chunk_by(|&i, &j| v[i] == v[j]) {
        let first = order.iter().position(|&i| i == run[0]).unwrap_or(0);
        let rank = first as f64 + (run.len() as f64 + 1.0) / 2.0;
        run.iter().for_each(|&i| ranks[i] = rank);
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_correlation() {
        let close = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-12;
        assert!(close(spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 25.0]), 1.0));
        assert!(close(spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0));
        // 1 - 6 * (1 + 1) / (4 * 15)
        assert!(close(spearman(&[1.0, 2.0, 3.0, 4.0], &[1.0, 3.0, 2.0, 4.0]), 0.8));
        // Ties: ranks 1.5, 1.5, 3 and 1, 2, 3.
        assert!(close(spearman(&[5.0, 5.0, 6.0], &[1.0, 2.0, 3.0]), 1.5 / (1.5f64 * 2.0).sqrt()));
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
    }
}
