//! Choices by measured error: which algorithms are applied, and which operators stay float so that the model is not
//! noise. Every choice is verified by running the model that it gives, on samples that are not the held-out ones.

use rayon::prelude::*;

use super::Data;
use super::algo::{bias_correct, channels, equalize};
use super::annotate::{Excluded, annotate};
use super::config::Config;
use super::facts::Facts;
use super::measure::{Reference, worst_sqnr};
use super::plan::{Decision, NodePlace, QuantPlan};
use super::progress::Progress;
use super::report::Report;
use super::solve::{self, Observed, Solver, compile};
use crate::calibrate::cache::Cache;
use crate::calibrate::dataset::{Dataset, Sample};
use crate::diag::Sink;
use crate::error::{Context, Result, anyhow};
use crate::interp::RunOptions;
use crate::ir::Model;

/// Samples that choices are verified on.
const TUNE_SAMPLES: usize = 16;
/// Samples that single operators are ranked on.
const RANK_SAMPLES: usize = 4;
/// Samples that channel statistics are gathered from.
const CHANNEL_SAMPLES: usize = 32;
/// What choices must reach above the floor, in dB, since they are measured on other samples than the result.
const MARGIN_DB: f64 = 1.5;
/// Work that the ranking of operators may take, in multiply-accumulate operations (about half a minute on one core):
/// in larger models neighbours are ranked together.
const RANK_BUDGET_MACS: u64 = 400_000_000_000;
/// A model as good as this needs no algorithm.
const GOOD_DB: f64 = 45.0;

/// Calibration samples from which on some are kept out of all statistics, so that choices are verified on others.
const ENOUGH_TO_SPLIT: usize = 32;
/// What an algorithm must gain to be applied, in dB: less than this is as likely chance.
const LEAST_GAIN_DB: f64 = 0.5;

/// Some samples of a data set.
struct Pick<'a> {
    of: &'a dyn Dataset,
    indices: Vec<usize>,
}

impl Dataset for Pick<'_> {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        let &i = self.indices.get(i).ok_or_else(|| anyhow!("there is no sample {i}"))?;
        self.of.sample(i)
    }
}

/// The samples that statistics are taken from, and those that choices are verified on, spread evenly; the same ones
/// where there are few.
fn split(all: &dyn Dataset) -> (Pick<'_>, Pick<'_>) {
    let n = all.len();
    let wanted = TUNE_SAMPLES.min(n);
    let tune: Vec<usize> = (0..wanted).map(|i| i * n / wanted).collect();
    let fit = (0..n).filter(|i| n < ENOUGH_TO_SPLIT || !tune.contains(i)).collect();
    (Pick { of: all, indices: fit }, Pick { of: all, indices: tune })
}

/// A float model with what is known of it.
struct Variant {
    model: Model,
    facts: Facts,
    observed: Observed,
}

impl Variant {
    fn new(
        model: Model,
        config: &Config,
        excluded: &Excluded,
        (data, cache): (&dyn Dataset, Option<&Cache>),
        progress: &dyn Progress,
        sink: &mut Sink,
    ) -> Result<Self> {
        let first = data.sample(0)?;
        let options = RunOptions { threads: config.threads, ..RunOptions::default() };
        let facts = Facts::of(&model, &first.inputs, options, true)
            .with_context(|| format!("running the float model on {}", first.origin))?;
        let observed = match cache {
            Some(cache) => solve::cached(&model, config, &facts, excluded, cache, sink)?,
            None => solve::observe(&model, config, &facts, excluded, data, progress, sink)?,
        };
        Ok(Variant { model, facts, observed })
    }

    fn solver<'a>(&'a self, config: &'a Config) -> Solver<'a> {
        Solver { model: &self.model, config, facts: &self.facts, observed: &self.observed }
    }
}

/// What was chosen.
pub struct Choice {
    /// The float model, with whatever algorithms did to it.
    pub prepared: Model,
    /// The plan.
    pub plan: QuantPlan,
    /// The model that the plan gives.
    pub emitted: Model,
}

/// Whether biases are corrected.
#[derive(Clone, Copy, PartialEq)]
struct Corrected(bool);

/// Makes every choice for a prepared float model.
///
/// # Errors
/// The float model does not run on a sample, or a plan cannot be carried out.
pub fn choose(
    model: Model,
    config: &Config,
    excluded: &Excluded,
    data: &Data<'_>,
    progress: &dyn Progress,
    sink: &mut Sink,
    report: &mut Report,
) -> Result<Choice> {
    let (fit, tune) = split(data.calibration);
    let reference = Reference::new(&compile(&model)?, &tune, TUNE_SAMPLES, config.threads)?;
    let score = |model: &Model, samples: usize| -> Result<f64> {
        Ok(worst_sqnr(&reference.compare(&compile(model)?, samples, config.threads)?))
    };
    let mut variant = Variant::new(model, config, excluded, (&fit, config.cache.as_ref()), progress, sink)?;
    let mut plan = variant.solver(config).plan(excluded)?;
    let mut emitted = variant.solver(config).emit(&plan)?;
    let mut db = score(&emitted, TUNE_SAMPLES)?;
    if plan.n_integer() == 0 {
        return Ok(Choice { prepared: variant.model, plan, emitted });
    }

    // Equalization edits the float model, so everything after it is done again.
    if db < GOOD_DB {
        let places = equalize::candidates(&variant.model, &plan);
        let stats = channels::gather(&variant.model, &places, &fit, CHANNEL_SAMPLES)?;
        let mut model = variant.model.clone();
        let done = equalize::equalize(&mut model, &plan, &stats)?;
        if !done.is_empty() {
            let other = Variant::new(model, config, excluded, (&fit, None), progress, sink)?;
            let other_plan = other.solver(config).plan(excluded)?;
            let other_emitted = other.solver(config).emit(&other_plan)?;
            let other_db = score(&other_emitted, TUNE_SAMPLES)?;
            let n = done.len();
            if other_db > db + LEAST_GAIN_DB {
                report.notes.push(format!("equalization of {n} tensors: {db:.1} -> {other_db:.1} dB"));
                (variant, plan, emitted, db) = (other, other_plan, other_emitted, other_db);
            } else {
                report.notes.push(format!("equalization of {n} tensors left out: {db:.1} -> {other_db:.1} dB"));
            }
        }
    }

    // Bias correction belongs to a plan: it is done again for every plan that is tried.
    let needs = bias_correct::needs(&variant.model, &plan);
    let means = channels::gather(&variant.model, &needs, &fit, CHANNEL_SAMPLES)?;
    let make = |excluded: &Excluded, corrected: Corrected| -> Result<(QuantPlan, Model)> {
        let solver = variant.solver(config);
        let mut plan = solver.plan(excluded)?;
        if corrected.0 {
            bias_correct::correct(&variant.model, &mut plan, &means)?;
        }
        let emitted = solver.emit(&plan)?;
        Ok((plan, emitted))
    };
    let mut corrected = Corrected(false);
    if db < GOOD_DB {
        let (other_plan, other_emitted) = make(excluded, Corrected(true))?;
        let other_db = score(&other_emitted, TUNE_SAMPLES)?;
        if other_db > db + LEAST_GAIN_DB / 2.0 {
            report.notes.push(format!("bias correction: {db:.1} -> {other_db:.1} dB"));
            (plan, emitted, db, corrected) = (other_plan, other_emitted, other_db, Corrected(true));
        }
    }

    let floor = config.min_sqnr_db + MARGIN_DB;
    if db < floor {
        // Counted in multiplications, not in seconds: the same input gives the same model on every machine.
        let one_run = plan.macs().0.max(1) * RANK_SAMPLES as u64;
        let affordable = usize::try_from(RANK_BUDGET_MACS / one_run).unwrap_or(usize::MAX);
        let ranked = rank(&plan, excluded, affordable.max(6), progress, &|others| {
            let (_, model) = make(others, corrected)?;
            Ok(worst_sqnr(&reference.compare(&compile(&model)?, RANK_SAMPLES, 1)?))
        })?;
        let steps = (usize::BITS - ranked.len().leading_zeros()).into();
        progress.begin("searching", steps);
        let mut attempt = |k: usize| -> Result<(QuantPlan, Model, f64)> {
            let mut out = excluded.clone();
            for (places, alone) in &ranked[..k] {
                for place in places {
                    out.insert(*place, ("accuracy", format!("costs too much accuracy: {alone:.1} dB alone")));
                }
            }
            let (plan, model) = make(&out, corrected)?;
            let db = score(&model, TUNE_SAMPLES)?;
            progress.advance(1);
            Ok((plan, model, db))
        };
        let (k, found) = shortest_prefix(ranked.len(), floor, &mut attempt)?;
        progress.end();
        let count = |r: &[(Vec<NodePlace>, f64)]| r.iter().map(|(p, _)| p.len()).sum::<usize>();
        report.notes.push(format!(
            "{} of {} operators stay float: {db:.1} -> {:.1} dB (floor {:.1} dB)",
            count(&ranked[..k]),
            count(&ranked),
            found.2,
            config.min_sqnr_db
        ));
        (plan, emitted) = (found.0, found.1);
    }
    Ok(Choice { prepared: variant.model, plan, emitted })
}

type Attempt = (QuantPlan, Model, f64);

/// The shortest prefix of the ranking that brings the model over the floor, by bisection, and what it gives.
fn shortest_prefix(
    n: usize,
    floor: f64,
    attempt: &mut dyn FnMut(usize) -> Result<Attempt>,
) -> Result<(usize, Attempt)> {
    let (mut low, mut high) = (0, n);
    let mut best = None;
    while high - low > 1 {
        let mid = usize::midpoint(low, high);
        let tried = attempt(mid)?;
        if tried.2 >= floor {
            high = mid;
            best = Some(tried);
        } else {
            low = mid;
        }
    }
    match best {
        Some(found) => Ok((high, found)),
        None => Ok((high, attempt(high)?)),
    }
}

/// Weighted operators by the output SQNR that the model has when they alone run in integers, worst first. When there
/// are more than `affordable`, neighbours in the order of execution are taken together.
fn rank(
    plan: &QuantPlan,
    excluded: &Excluded,
    affordable: usize,
    progress: &dyn Progress,
    score: &(dyn Fn(&Excluded) -> Result<f64> + Sync),
) -> Result<Vec<(Vec<NodePlace>, f64)>> {
    let weighted: Vec<NodePlace> =
        plan.nodes.iter().filter(|n| n.decision == Decision::Integer && n.weight.is_some()).map(|n| n.place).collect();
    let size = weighted.len().div_ceil(affordable.max(1)).max(1);
    let groups: Vec<&[NodePlace]> = weighted.chunks(size).collect();
    progress.begin("ranking operators", groups.len() as u64);
    let mut ranked = groups
        .par_iter()
        .map(|&alone| {
            let mut others = excluded.clone();
            for &p in weighted.iter().filter(|p| !alone.contains(p)) {
                others.insert(p, ("accuracy", String::new()));
            }
            let db = score(&others)?;
            progress.advance(1);
            Ok((alone.to_vec(), db))
        })
        .collect::<Result<Vec<_>>>()?;
    progress.end();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    Ok(ranked)
}

/// The plan alone, without calibration: what would be quantized and why not. Needs one sample for shapes.
///
/// # Errors
/// The model does not run on the sample.
pub fn plan_only(model: &Model, config: &Config, sample: &[(String, crate::tensor::Tensor)]) -> Result<QuantPlan> {
    let options = RunOptions { threads: config.threads, ..RunOptions::default() };
    let facts = Facts::of(model, sample, options, true)?;
    annotate(model, config, &facts, &config.excluded(model)?)
}
