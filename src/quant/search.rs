//! Choices by cost and by measured error: which operators pay, which algorithms are applied, and which operators stay float
//! so that the model is not noise. Every choice is verified by running the model that it gives, on samples that are not
//! the held-out ones; these are asked last, and only whether the floor has to be raised.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use super::algo::channels::{self, Channels};
use super::algo::{Improvement, What, ada_round, bias_correct, equalize, gptq, moments, weight_clip};
use super::annotate::{Excluded, annotate};
use super::config::Config;
use super::facts::Facts;
use super::judge::{Judge, Verdict};
use super::measure::{OutputError, Reference, spread, worst_sqnr};
use super::noise::{NoiseModel, NoiseOptions, Site};
use super::partition::{Noise, Partition};
use super::plan::{Decision, NodePlace, Place, QuantPlan};
use super::progress::Progress;
use super::report::Report;
use super::solve::{self, Observed, Pass, Solver, compile};
use super::{Data, traps};
use crate::calibrate::cache::Cache;
use crate::calibrate::dataset::{Dataset, Sample};
use crate::diag::Sink;
use crate::error::{Context, Result, anyhow};
use crate::interp::{Program, RunOptions};
use crate::ir::{GraphId, Model};
use crate::kernels;

/// Most samples that choices are verified on.
const TUNE_SAMPLES: usize = 12;
/// Samples that choices are verified on however few there are.
const LEAST_TUNE_SAMPLES: usize = 4;
/// Samples that single operators are ranked on.
const RANK_SAMPLES: usize = 4;
/// Samples that channel statistics are gathered from, and those of models in which each is much work.
const CHANNEL_SAMPLES: (usize, usize) = (32, 8);
/// Multiply-accumulate operations of one run beyond which a model is much work; a single sample then shows many
/// positions of each channel.
const MUCH_MACS: u64 = 1_000_000_000;
/// Multiply-accumulate operations of one run beyond which gradients take longer than all other choices.
const SOME_MACS: u64 = 100_000_000;
/// A model as good as this on the samples that choices are verified on is over the floor on any.
const SAFE_DB: f64 = 32.0;
/// How often the floor is raised for the sake of held-out samples.
const HELD_OUT_ROUNDS: usize = 4;
/// How often it is where a drop has to be kept: the steps double, and the last leave nothing in integers.
const DROP_ROUNDS: usize = 6;
/// By how much it is raised at first when the drop is too large, in dB: half the noise.
const DROP_STEP_DB: f64 = 3.0;
/// Samples that strengths of equalization are measured on, and that the ranges of what it changed are taken from, to see
/// whether it is worth taking them from all.
const TRIAL_SAMPLES: usize = 8;
/// What choices must reach above the floor, in dB, since they are measured on other samples than the result.
const MARGIN_DB: f64 = 2.5;
/// Work that the ranking of operators may take, in multiply-accumulate operations (about half a minute on one core):
/// in larger models neighbours are ranked together.
const RANK_BUDGET_MACS: u64 = 150_000_000_000;
/// Models that are made and run in search of one over the floor.
const ATTEMPTS: usize = 6;
/// A model as good as this needs no algorithm.
const GOOD_DB: f64 = 45.0;

/// Calibration samples from which on some are kept out of all statistics, so that choices are verified on others.
const ENOUGH_TO_SPLIT: usize = 32;
/// What an algorithm must gain to be applied, in dB: less than this is as likely chance.
const LEAST_GAIN_DB: f64 = 0.5;
/// What weights that lose nothing must gain, in dB, for better ones to be looked for: they gain a part of it, and less than
/// [`LEAST_GAIN_DB`] is not kept.
const LEAST_TO_GAIN_DB: f64 = 1.0;

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

    fn name(&self, i: usize) -> Option<String> {
        self.of.name(*self.indices.get(i)?)
    }
}

/// The samples that statistics are taken from, and those that choices are verified on, spread evenly; the same ones
/// where there are few.
fn split(all: &dyn Dataset) -> (Pick<'_>, Pick<'_>) {
    let n = all.len();
    // Each is run about ten times, which should not take much longer than running every sample once.
    let wanted = (n / 10).clamp(LEAST_TUNE_SAMPLES, TUNE_SAMPLES).min(n);
    let tune = spread(n, wanted);
    let fit = (0..n).filter(|i| n < ENOUGH_TO_SPLIT || !tune.contains(i)).collect();
    (Pick { of: all, indices: fit }, Pick { of: all, indices: tune })
}

/// A float model with what is known of it.
struct Variant {
    model: Model,
    facts: Facts,
    observed: Observed,
    /// Of the tensors that equalization and bias correction may ask for.
    channels: BTreeMap<Place, Channels>,
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
        progress.begin("finding shapes", 1);
        let facts = Facts::of(&model, &first.inputs, options, true)
            .with_context(|| format!("running the float model on {}", first.origin))?;
        progress.end();
        let pass = one_pass(&model, config, &facts, excluded, data)?;
        let (observed, channels) = match cache {
            Some(cache) => (
                solve::cached(&model, config, &facts, excluded, cache, sink)?,
                channels::gather(&model, &pass.channels, data, pass.channel_samples)?,
            ),
            None => solve::observe(&model, config, &facts, excluded, &pass, progress, sink)?,
        };
        Ok(Variant { model, facts, observed, channels })
    }

    fn solver<'a>(&'a self, config: &'a Config) -> Solver<'a> {
        Solver { model: &self.model, config, facts: &self.facts, observed: &self.observed }
    }

    fn partition<'a>(&'a self, config: &'a Config, noise: &'a Noise) -> Partition<'a> {
        Partition { model: &self.model, config, facts: &self.facts, noise }
    }
}

/// A pass that looks at the channels that any algorithm may ask for: those of the plan that is made for speed alone.
fn one_pass<'a>(
    model: &Model,
    config: &Config,
    facts: &Facts,
    excluded: &Excluded,
    data: &'a dyn Dataset,
) -> Result<Pass<'a>> {
    if !config.applies(Improvement::Equalize) && !config.applies(Improvement::BiasCorrect) {
        return Ok(Pass::ranges(data));
    }
    let nothing = Noise::default();
    let out = Partition { model, config, facts, noise: &nothing }.for_speed(excluded)?;
    let plan = annotate(model, config, facts, &out)?;
    let mut channels = equalize::candidates(model, &plan);
    channels.extend(bias_correct::needs(model, &plan));
    let channel_samples = if is_much(&plan) { CHANNEL_SAMPLES.1 } else { CHANNEL_SAMPLES.0 };
    Ok(Pass { data, channels, channel_samples })
}

/// What was chosen.
pub struct Choice {
    /// The float model, with whatever algorithms did to it.
    pub prepared: Model,
    /// The plan.
    pub plan: QuantPlan,
    /// The model that the plan gives.
    pub emitted: Model,
    /// Its error on all held-out samples, where that was measured already.
    pub errors: Option<Vec<OutputError>>,
}

/// A plan, its model and how good that is on the samples that choices are verified on.
#[derive(Clone)]
struct Attempt {
    plan: QuantPlan,
    emitted: Model,
    db: f64,
    done: Done,
}

/// What was done to the weights of a plan.
#[derive(Clone, Default)]
struct Done {
    corrected: usize,
    clipped: Vec<What>,
    rounded: Vec<What>,
    refined: Vec<What>,
}

/// What choices are made with.
struct Search<'a> {
    config: &'a Config,
    reference: Reference<'a>,
    fit: Pick<'a>,
    progress: &'a dyn Progress,
}

/// Makes every choice for a prepared float model; `float` is what errors are measured against.
///
/// # Errors
/// The float model does not run on a sample, or a plan cannot be carried out.
pub fn choose(
    (model, float): (Model, &Program),
    config: &Config,
    excluded: &Excluded,
    data: &Data<'_>,
    progress: &dyn Progress,
    sink: &mut Sink,
    report: &mut Report,
) -> Result<Choice> {
    let (fit, tune) = split(data.calibration);
    progress.begin("running the float model", 1);
    let reference = Reference::new(&compile(&model)?, &tune, TUNE_SAMPLES, config.threads)?;
    progress.end();
    let search = Search { config, reference, fit, progress };
    let mut variant = Variant::new(model, config, excluded, (&search.fit, config.cache.as_ref()), progress, sink)?;
    let excluded = &traps::exclude(&variant.model, config, &variant.facts, &variant.observed, excluded)?;
    let nothing = Noise::default();
    let out = variant.partition(config, &nothing).for_speed(excluded)?;
    let mut best = search.attempt(&variant, &out, Polish::default())?;
    if !search.pays(&variant, &best.plan, report) {
        best = search.float(&variant, &best.plan, out.clone(), "the whole model would save no time in integers")?;
    }
    if best.plan.n_integer() == 0 {
        report.traps = traps::found(&variant.model, config, &variant.facts, &variant.observed, &best.plan);
        return Ok(Choice { prepared: variant.model, plan: best.plan, emitted: best.emitted, errors: None });
    }
    let is_good = best.db >= GOOD_DB;
    // Traps are those of the model that was given, whatever equalization makes of it.
    let mut given: Option<Variant> = None;
    if !is_good
        && config.applies(Improvement::Equalize)
        && let Some((other, attempt, n)) =
            search.equalized(&variant, &best.plan, &out, best.db + LEAST_GAIN_DB, sink)?
    {
        let was = best.db;
        let is_better = attempt.db > was + LEAST_GAIN_DB;
        let left = if is_better { "" } else { " left out" };
        report.notes.push(format!("equalization of {n} tensors{left}: {was:.1} -> {:.1} dB", attempt.db));
        if is_better {
            best = attempt;
            given = Some(std::mem::replace(&mut variant, other));
        }
    }
    // Scales and rounding fit themselves to the samples: where they cannot be judged on others they are left out.
    let is_split = data.calibration.len() >= ENOUGH_TO_SPLIT;
    let seen = OnceCell::new();
    let (mut best, polish) = search.polished(&variant, best, &out, is_split.then_some(&seen), report)?;
    let (n_before, all_db) = (best.plan.n_weighted(), best.db);
    let (mut noise, mut measured) = (None, None);
    if config.applies(Improvement::FloatFallback) {
        let mut floor = config.min_sqnr_db + MARGIN_DB;
        if best.db < floor {
            let found = noise.insert(search.noise(&variant, &best.plan, &out, polish)?);
            best = search.over_the_floor(&variant, best, &out, polish, found, floor)?;
        }
        // A few samples may be easier than the rest: those that were held out have a say, too.
        if best.db < SAFE_DB && !data.is_shared || config.max_drop.is_some() {
            let judge = Judge::new(float, config, data)?;
            let start = (best, noise.take());
            (best, noise, measured) = search.held_out(&variant, &judge, start, (&out, polish), &mut floor, report)?;
        }
    }
    if noise.is_some() {
        report.notes.push(format!(
            "{} of {n_before} operators stay float: {all_db:.1} -> {:.1} dB (floor {:.1} dB)",
            n_before - best.plan.n_weighted().min(n_before),
            best.db,
            config.min_sqnr_db
        ));
        if !search.pays(&variant, &best.plan, report) {
            best =
                search.float(&variant, &best.plan, out, "what keeps the outputs accurate saves no time in integers")?;
            measured = None;
        }
        report.saves_nothing |= best.plan.n_integer() == 0;
    }
    report.time = variant.partition(config, &nothing).time(&best.plan);
    let given = given.as_ref().unwrap_or(&variant);
    report.traps = traps::found(&given.model, config, &given.facts, &given.observed, &best.plan);
    Ok(Choice { prepared: variant.model, plan: best.plan, emitted: best.emitted, errors: measured })
}

type Means = BTreeMap<Place, Channels>;

/// How integers of weights are chosen other than by rounding to nearest.
#[derive(Clone, Copy, PartialEq)]
enum Rounding {
    Gptq,
    AdaRound,
}

/// What is done to the weights of every plan that is tried: it belongs to a plan, so it is done again for each.
#[derive(Clone, Copy, Default)]
struct Polish<'a> {
    /// Biases are corrected with these means.
    means: Option<&'a Means>,
    /// Scales are lowered with these second moments of the inputs.
    clip: Option<&'a moments::Gathered>,
    /// Weights are rounded with these.
    round: Option<(Rounding, &'a moments::Gathered)>,
    /// Whether biases take up what is left of the mean when the model runs.
    refine: bool,
}

impl Search<'_> {
    fn score(&self, emitted: &Model, samples: usize, threads: usize) -> Result<f64> {
        Ok(worst_sqnr(&self.reference.compare(&compile(emitted)?, samples, threads)?))
    }

    fn make(&self, variant: &Variant, excluded: &Excluded, polish: Polish<'_>) -> Result<(QuantPlan, Model, Done)> {
        self.progress.begin("making models", 1);
        let solver = variant.solver(self.config);
        let mut plan = solver.plan(excluded)?;
        let structure = plan.clone();
        let mut done = Done::default();
        let model = &variant.model;
        let takes = |n| polish.means.is_some() && bias_correct::takes_mean(model, &structure, n);
        if let Some(seen) = polish.clip {
            let is_free = |n| !solver.is_overridden(n);
            let adds_pairs = self.config.target.adds_pairs_in_16_bits;
            done.clipped = weight_clip::apply(model, &mut plan, seen, &takes, &is_free, adds_pairs)?;
        }
        done.rounded = match polish.round {
            Some((Rounding::Gptq, seen)) => gptq::apply(model, &mut plan, seen, &takes, self.config.threads)?,
            Some((Rounding::AdaRound, seen)) => ada_round::apply(model, &mut plan, seen, &takes)?,
            None => Vec::new(),
        };
        if let Some(means) = polish.means {
            done.corrected = bias_correct::correct(model, &mut plan, means)?;
        }
        if polish.refine {
            let how = bias_correct::Refine::default();
            done.refined = bias_correct::refine(model, &mut plan, &|plan| solver.emit(plan), &self.fit, how)?;
        }
        let emitted = solver.emit(&plan)?;
        self.progress.end();
        Ok((plan, emitted, done))
    }

    fn attempt(&self, variant: &Variant, excluded: &Excluded, polish: Polish<'_>) -> Result<Attempt> {
        let (plan, emitted, done) = self.make(variant, excluded, polish)?;
        let db = if plan.n_integer() == 0 {
            f64::INFINITY
        } else {
            self.progress.begin("verifying", 1);
            let db = self.score(&emitted, TUNE_SAMPLES, self.config.threads)?;
            self.progress.end();
            db
        };
        Ok(Attempt { plan, emitted, db, done })
    }

    /// Second moments of what the weights of a plan are multiplied with, where an improvement needs them and better
    /// weights can gain anything: that is what they are judged by before any is made. They hold for every plan of the
    /// model.
    fn moments(&self, variant: &Variant, best: &Attempt) -> Result<Option<moments::Gathered>> {
        let config = self.config;
        let fits = [Improvement::WeightClip, Improvement::Gptq, Improvement::AdaRound];
        if best.db >= GOOD_DB || best.plan.n_weighted() == 0 || !fits.iter().any(|&i| config.applies(i)) {
            return Ok(None);
        }
        self.progress.begin("finding second moments", 1);
        let at_best =
            self.score(&variant.solver(config).emit_activations(&best.plan)?, TUNE_SAMPLES, config.threads)?;
        let found = if at_best > best.db + LEAST_TO_GAIN_DB {
            let needs = moments::needs(&variant.model, &best.plan, &variant.model);
            Some(moments::gather(&variant.model, &needs, &self.fit, config.effort.moments(), config.threads)?)
        } else {
            None
        };
        self.progress.end();
        Ok(found)
    }

    /// Improves the weights of a plan, one improvement after the other, each kept only where it gains. The notes say what
    /// each did.
    fn polished<'a>(
        &self,
        variant: &'a Variant,
        mut best: Attempt,
        excluded: &Excluded,
        moments: Option<&'a OnceCell<moments::Gathered>>,
        report: &mut Report,
    ) -> Result<(Attempt, Polish<'a>)> {
        let mut polish = Polish::default();
        let applies = |i| self.config.applies(i);
        let is_open = best.plan.n_integer() > 0 && best.db < GOOD_DB;
        type Said = fn(&Done) -> (usize, &'static str);
        let mut keep = |what: Said, least: f64, with: Polish<'a>, best: &mut Attempt, polish: &mut Polish<'a>| {
            let attempt = self.attempt(variant, excluded, with)?;
            let is_better = attempt.db > best.db + least;
            let (n, what) = what(&attempt.done);
            if n > 0 {
                let left = if is_better { "" } else { " left out" };
                let what = what.replace('#', &n.to_string());
                report.notes.push(format!("{what}{left}: {:.1} -> {:.1} dB", best.db, attempt.db));
            }
            if is_better {
                (*best, *polish) = (attempt, with);
            }
            Ok::<_, anyhow::Error>(())
        };
        if is_open && applies(Improvement::BiasCorrect) {
            let with = Polish { means: Some(&variant.channels), ..polish };
            keep(|d| (d.corrected, "correction of # biases"), LEAST_GAIN_DB / 2.0, with, &mut best, &mut polish)?;
        }
        let seen = match moments {
            Some(cell) => self.moments(variant, &best)?.map(|found| cell.get_or_init(|| found)),
            None => None,
        };
        if let Some(seen) = seen {
            if applies(Improvement::WeightClip) {
                let with = Polish { clip: Some(seen), ..polish };
                keep(|d| (d.clipped.len(), "clipping of # weights"), LEAST_GAIN_DB, with, &mut best, &mut polish)?;
            }
            // The one is an alternative to the other.
            if applies(Improvement::Gptq) {
                let with = Polish { round: Some((Rounding::Gptq, seen)), ..polish };
                keep(|d| (d.rounded.len(), "GPTQ rounding of # weights"), LEAST_GAIN_DB, with, &mut best, &mut polish)?;
            }
            if applies(Improvement::AdaRound) {
                let with = Polish { round: Some((Rounding::AdaRound, seen)), ..polish };
                keep(
                    |d| (d.rounded.len(), "AdaRound rounding of # weights"),
                    LEAST_GAIN_DB,
                    with,
                    &mut best,
                    &mut polish,
                )?;
            }
        }
        if is_open && applies(Improvement::BiasRefine) {
            let with = Polish { refine: true, ..polish };
            keep(|d| (d.refined.len(), "refinement of # biases"), LEAST_GAIN_DB / 2.0, with, &mut best, &mut polish)?;
        }
        Ok((best, polish))
    }

    /// More operators stay float for as long as held-out samples say that what was asked for does not hold. Gives the best
    /// model by them, the noise that was needed for the search, and the error where all held-out samples were asked.
    fn held_out(
        &self,
        variant: &Variant,
        judge: &Judge<'_>,
        (mut best, mut noise): (Attempt, Option<Noise>),
        (excluded, polish): (&Excluded, Polish<'_>),
        floor: &mut f64,
        report: &mut Report,
    ) -> Result<(Attempt, Option<Noise>, Option<Vec<OutputError>>)> {
        self.progress.begin("verifying held-out samples", 1);
        let rounds = if self.config.max_drop.is_some() { DROP_ROUNDS } else { HELD_OUT_ROUNDS };
        let mut step = DROP_STEP_DB;
        let mut judged: Option<(Verdict, Vec<OutputError>, Attempt)> = None;
        for round in 0..=rounds {
            let (verdict, errors) = judge.verdict(&best.emitted)?;
            let is_last = verdict.holds() || best.plan.n_integer() == 0 || round == rounds;
            let next = (!is_last).then(|| best.clone());
            if judged.as_ref().is_none_or(|(before, ..)| verdict.is_better(before)) {
                judged = Some((verdict, errors, best));
            }
            let Some(first) = next else { break };
            let mut missing = verdict.below_db;
            if verdict.excess > 0.0 {
                missing = missing.max(step);
                step *= 2.0;
            }
            let db = verdict.db;
            let lost = verdict.drop.filter(|_| verdict.excess > 0.0);
            let lost = lost.map_or(String::new(), |drop| format!(" and a drop of {:.2} %", drop * 100.0));
            report.notes.push(format!("{db:.1} dB{lost} on held-out samples: the floor is raised by {missing:.1} dB"));
            *floor = floor.max(first.db) + missing;
            let found = match noise.take() {
                Some(found) => found,
                None => self.noise(variant, &first.plan, excluded, polish)?,
            };
            best = self.over_the_floor(variant, first, excluded, polish, &found, *floor)?;
            noise = Some(found);
        }
        self.progress.end();
        let (_, errors, best) = judged.context("no model was judged")?;
        Ok((best, noise, judge.asks_all().then_some(errors)))
    }

    /// Nothing in integers, for this reason.
    fn float(&self, variant: &Variant, plan: &QuantPlan, mut excluded: Excluded, why: &str) -> Result<Attempt> {
        for n in &plan.nodes {
            match &n.decision {
                Decision::Integer => drop(excluded.insert(n.place, ("no-gain", why.to_owned()))),
                // What the search left out.
                Decision::Float { code: code @ "accuracy", why } => drop(excluded.insert(n.place, (code, why.clone()))),
                _ => {}
            }
        }
        self.attempt(variant, &excluded, Polish::default())
    }

    /// Whether the plan is predicted to save enough time to be worth anything.
    fn pays(&self, variant: &Variant, plan: &QuantPlan, report: &mut Report) -> bool {
        let nothing = Noise::default();
        let Some((float, planned)) = variant.partition(self.config, &nothing).time(plan) else { return true };
        let least = self.config.target.cost.as_ref().map_or(0.0, |c| c.least_gain);
        report.time = Some((float, planned));
        report.saves_nothing = plan.n_integer() == 0 || planned > float * (1.0 - least);
        !report.saves_nothing
    }

    /// The model with its activations equalized, and the number of tensors that were. Equalization edits the float
    /// model, so everything after it is done again; on all samples only where it gives more than `least_db` on some, and
    /// that is not much work.
    fn equalized(
        &self,
        variant: &Variant,
        plan: &QuantPlan,
        excluded: &Excluded,
        least_db: f64,
        sink: &mut Sink,
    ) -> Result<Option<(Variant, Attempt, usize)>> {
        self.progress.begin("equalizing", 1);
        let mut model = variant.model.clone();
        let mut needs = moments::needs(&model, plan, &model);
        needs.retain(&|place| variant.channels.contains_key(&place));
        let n = if plan.macs().0 > SOME_MACS { RANK_SAMPLES } else { TRIAL_SAMPLES };
        let rows = moments::rows(&model, &needs, &self.fit, n, equalize::MEASURED_ROWS, self.config.threads)?;
        let done = equalize::equalize(&mut model, plan, &variant.channels, Some(&rows))?;
        drop(rows);
        self.progress.end();
        if done.is_empty() {
            return Ok(None);
        }
        // Of a model that is much work some samples have to do in any case.
        let is_much = is_much(plan);
        let n = if is_much { self.fit.len().div_ceil(2) } else { self.fit.len() };
        let some = Pick { of: &self.fit, indices: spread(self.fit.len(), TRIAL_SAMPLES.min(n)) };
        let is_trial = some.len() < self.fit.len();
        let new = |model, data: &dyn Dataset, sink: &mut Sink| {
            Variant::new(model, self.config, excluded, (data, None), self.progress, sink)
        };
        let mut other = new(model, &some, sink)?;
        if is_trial {
            let scaled: BTreeSet<Place> = done.iter().flat_map(|d| d.scaled.iter().copied()).collect();
            for (&place, all) in &variant.observed {
                // No factor is below 1: what all samples showed before is there still.
                let seen = other.observed.get(&place).filter(|_| scaled.contains(&place));
                let both = seen.map_or(*all, |some| some.union(all));
                other.observed.insert(place, both);
            }
        }
        let mut attempt = self.attempt(&other, excluded, Polish::default())?;
        if is_trial && !is_much && attempt.db > least_db {
            other = new(other.model, &self.fit, sink)?;
            attempt = self.attempt(&other, excluded, Polish::default())?;
        }
        Ok(Some((other, attempt, done.len())))
    }

    /// The fastest plan over the accuracy floor that is found, or the best one. The price of noise rises until the
    /// plan that it gives is good enough; what noise a plan brings is predicted, and the prediction is corrected by
    /// what was measured.
    fn over_the_floor(
        &self,
        variant: &Variant,
        first: Attempt,
        excluded: &Excluded,
        polish: Polish<'_>,
        noise: &Noise,
        floor: f64,
    ) -> Result<Attempt> {
        let partition = variant.partition(self.config, noise);
        let allowed = power(floor);
        // What is predicted of a plan that is let through: less than what is allowed where the prediction is too good.
        let mut limit = allowed * noise.of(&first.plan) / power(first.db).max(f64::MIN_POSITIVE);
        // The largest limit that gave a plan over the floor, the lowest that gave one under it, and all plans.
        let (mut over, mut under) = (None, None);
        let mut tried = Vec::new();
        let mut best = first;
        for _ in 0..ATTEMPTS {
            let Some(out) = self.priced(&partition, excluded, limit)? else { break };
            if tried.contains(&out) {
                // A faster plan is further on, unless one that fails is known.
                let (Some(over), None) = (over, under) else { break };
                limit = 2.0 * limit.max(over);
                continue;
            }
            let attempt = self.attempt(variant, &out, polish)?;
            tried.push(out);
            let predicted = noise.of(&attempt.plan);
            let (is_over, was_over) = (attempt.db >= floor, best.db >= floor);
            let slow = |a: &Attempt| partition.time(&a.plan).map_or(-(a.plan.macs().1 as f64), |t| t.1);
            let is_better = match (is_over, was_over) {
                (true, true) => slow(&attempt) < slow(&best),
                (is, was) => !was && (is || attempt.db > best.db),
            };
            let measured = power(attempt.db);
            if is_better {
                best = attempt;
            }
            if is_over && measured * 1.5 > allowed {
                break;
            }
            *(if is_over { &mut over } else { &mut under }) = Some(limit);
            limit = match (over, under) {
                (Some(over), Some(under)) => f64::sqrt(over * under),
                // At most twice: nothing in integers has no noise, and a plan between that and all is looked for.
                (Some(over), None) => over / (measured / allowed).clamp(0.5, 0.95),
                // At most ten times less: one odd measurement does not end the search.
                (_, Some(under)) => predicted.min(under) / (measured / allowed).clamp(1.2, 10.0),
                (None, None) => break,
            };
        }
        Ok(best)
    }

    /// The nodes to leave float at the lowest price of noise at which no more than `allowed` of it is predicted; `None`
    /// when no price does.
    fn priced(&self, partition: &Partition<'_>, excluded: &Excluded, allowed: f64) -> Result<Option<Excluded>> {
        let reason = ("accuracy", "costs more accuracy than its time is worth");
        let at = |price: f64| -> Result<(Excluded, f64)> {
            let out = partition.divide(excluded, price, reason)?;
            let plan = annotate(partition.model, partition.config, partition.facts, &out)?;
            Ok((out, partition.noise.of(&plan)))
        };
        // Prices are powers of the fourth root of two, in microseconds per unit of noise: in small models more than one
        // operator changes sides at twice the price.
        let (mut low, mut high) = (-80i32, 240i32);
        let mut found = None;
        while high - low > 1 {
            let middle = (low + high) / 2;
            let (out, noise) = at((f64::from(middle) / 4.0).exp2())?;
            if noise <= allowed {
                (high, found) = (middle, Some(out));
            } else {
                low = middle;
            }
        }
        Ok(found)
    }

    /// The noise of each part of a plan: predicted from a few passes back through the network, or, where gradients do
    /// not reach everything, measured by letting each weighted operator alone run in integers.
    fn noise(&self, variant: &Variant, plan: &QuantPlan, excluded: &Excluded, polish: Polish<'_>) -> Result<Noise> {
        self.progress.begin("finding gradients", 1);
        let all = NoiseOptions::default();
        // What is predicted is verified: of models that take long, a part of the passes is enough.
        let part = match plan.macs().0 {
            macs if macs > MUCH_MACS => 4,
            macs if macs > SOME_MACS => 2,
            _ => 1,
        };
        let options = NoiseOptions { passes: all.passes / part, ..all };
        let model = NoiseModel::new(&variant.solver(self.config), plan, &self.fit, &options)?;
        self.progress.end();
        let parts = model.contributions(&variant.model, plan);
        let is_sound = parts.iter().all(|p| p.relative.is_finite());
        if is_sound && !parts.is_empty() && model.unknown(&variant.model, plan).is_empty() {
            let mut noise = Noise::default();
            for p in parts {
                match p.site {
                    Site::Tensor(v) => *noise.tensors.entry((GraphId::MAIN, v)).or_default() += p.relative,
                    Site::Input(n, _) => *noise.weights.entry((GraphId::MAIN, n)).or_default() += p.relative,
                }
            }
            return Ok(noise);
        }
        // Counted in multiplications, not in seconds: the same input gives the same model on every machine.
        let one_run = plan.macs().0.max(1) * RANK_SAMPLES as u64;
        let affordable = usize::try_from(RANK_BUDGET_MACS / one_run).unwrap_or(usize::MAX);
        let ranked = rank(plan, excluded, affordable.max(6), self.progress, &|others| {
            self.score(&self.make(variant, others, polish)?.1, RANK_SAMPLES, 1)
        })?;
        let mut noise = Noise::default();
        for (places, db) in ranked {
            let share = power(db) / places.len() as f64;
            noise.weights.extend(places.into_iter().map(|p| (p, share)));
        }
        Ok(noise)
    }
}

fn is_much(plan: &QuantPlan) -> bool {
    plan.macs().0 > MUCH_MACS
}

/// Noise power relative to the signal.
fn power(db: f64) -> f64 {
    10f64.powf(-db / 10.0)
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
    let mut ranked = kernels::try_map(groups.len(), |i| {
        let alone = groups[i];
        let mut others = excluded.clone();
        for &p in weighted.iter().filter(|p| !alone.contains(p)) {
            others.insert(p, ("accuracy", String::new()));
        }
        let db = score(&others)?;
        progress.advance(1);
        Ok((alone.to_vec(), db))
    })?;
    progress.end();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    Ok(ranked)
}

/// The plan before its accuracy is looked at, with what ranges show to be hopeless in float as [`choose`] has it. Ranges
/// are those of the cache, if there is one, and then one sample is enough.
///
/// # Errors
/// The model does not run on a sample.
pub fn plan_for(
    model: &Model,
    config: &Config,
    data: &dyn Dataset,
    progress: &dyn Progress,
    sink: &mut Sink,
) -> Result<QuantPlan> {
    let (fit, _) = split(data);
    let first = fit.sample(0)?;
    let options = RunOptions { threads: config.threads, ..RunOptions::default() };
    let facts = Facts::of(model, &first.inputs, options, true)
        .with_context(|| format!("running the float model on {}", first.origin))?;
    let excluded = config.excluded(model)?;
    let observed = match &config.cache {
        Some(cache) => solve::cached(model, config, &facts, &excluded, cache, sink)?,
        None => solve::observe(model, config, &facts, &excluded, &Pass::ranges(&fit), progress, sink)?.0,
    };
    let excluded = traps::exclude(model, config, &facts, &observed, &excluded)?;
    let noise = Noise::default();
    let excluded = Partition { model, config, facts: &facts, noise: &noise }.for_speed(&excluded)?;
    annotate(model, config, &facts, &excluded)
}

/// The plan alone, without calibration: what would be quantized and why not. Needs one sample for shapes.
///
/// # Errors
/// The model does not run on the sample.
pub fn plan_only(model: &Model, config: &Config, sample: &[(String, crate::tensor::Tensor)]) -> Result<QuantPlan> {
    let options = RunOptions { threads: config.threads, ..RunOptions::default() };
    let facts = Facts::of(model, sample, options, true)?;
    let noise = Noise::default();
    let partition = Partition { model, config, facts: &facts, noise: &noise };
    let excluded = partition.for_speed(&config.excluded(model)?)?;
    annotate(model, config, &facts, &excluded)
}
