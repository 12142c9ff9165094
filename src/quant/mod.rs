//! Policy and algorithms: prepare, observe, plan, choose parameters, edit, check, measure.

pub mod algo;
pub mod annotate;
pub mod check;
pub mod compare;
pub mod config;
pub mod cost;
pub mod cut;
pub mod dynamic;
pub mod extract;
pub mod facts;
pub mod importance;
pub mod judge;
pub mod labels;
pub mod lazy;
pub mod masks;
pub mod measure;
pub mod memory;
pub mod mixed;
pub mod noise;
pub mod overrides;
pub mod params;
pub mod partition;
pub mod plan;
pub mod progress;
pub mod prune;
pub mod realize;
pub mod region;
pub mod report;
pub mod scheme;
pub mod search;
mod self_check;
pub mod sensitivity;
pub mod solve;
pub mod target;
pub mod traps;
pub mod weight_only;

use std::collections::BTreeMap;

use crate::calibrate::Tracker;
use crate::calibrate::cache::Cache;
use crate::calibrate::dataset::{Dataset, Sample};
use crate::diag::Sink;
use crate::error::{Context, Location, Result, bail, ensure};
use crate::interp::RunOptions;
use crate::ir::{Def, Model};
use crate::passes;
use self_check::SelfCheck;

pub use config::{Config, Effort, Mode, refuse_unsuitable};
pub use plan::QuantPlan;
pub use progress::{Progress, Quiet};
pub use report::Report;
pub use search::{plan_for, plan_only};

/// Samples for one run.
pub struct Data<'a> {
    /// For calibration and every choice.
    pub calibration: &'a dyn Dataset,
    /// For the error that is reported; nothing is chosen with them.
    pub holdout: &'a dyn Dataset,
    /// Whether the two are the same, for want of samples.
    pub is_shared: bool,
    /// What is known of the samples, to judge by.
    pub labels: Option<&'a labels::Labels>,
}

/// What a run gives.
pub struct Quantized {
    /// The emitted model.
    pub model: Model,
    /// The float model that it was made of, after the passes.
    pub prepared: Model,
    /// The plan that was carried out.
    pub plan: QuantPlan,
    /// What was done and how well.
    pub report: Report,
}

/// Most samples that the held-out error is measured on.
const MAX_HOLDOUT: usize = 64;

/// Quantizes a model in the mode of the configuration. `observer` sees the model after each pass that changed it and after each stage
/// (`prepare`, `quantize`).
///
/// # Errors
/// The model is quantized already, does not run on the samples, or the emitted model fails the self-check.
pub fn quantize(
    mut model: Model,
    config: &Config,
    data: &Data<'_>,
    progress: &dyn Progress,
    observer: &mut dyn FnMut(&str, &Model),
    sink: &mut Sink,
) -> Result<Quantized> {
    refuse_unsuitable(&model)?;
    if let Mode::WeightOnly(options) = config.mode {
        return weight_only::run(model, options, config, data, progress, observer, sink);
    }
    if let Mode::Dynamic(options) = config.mode {
        return dynamic::run(model, options, config, data, progress, observer, sink);
    }
    let mut report = Report { before: report::Side::of(&model), ..Report::default() };
    let self_check = SelfCheck::of(&model);
    let given = model.clone();
    ensure!(!data.calibration.is_empty(), "there are no calibration samples");
    prepare(&mut model, config, observer, sink)?;
    let excluded = config.excluded(&model)?;

    report_unknown(&model, sink);
    let program = solve::compile(&model)?;
    let judging = labels::Judging::of(&program, data, config.threads)?;
    if let Some(how) = config.prune {
        // After the reference was compiled: what pruning costs is part of the error.
        prune::apply(&mut model, how, data.calibration, config.threads, &mut report)?;
    }
    let search::Choice { prepared, plan, mut emitted, errors } =
        search::choose((model, &program), config, &excluded, data, progress, sink, &mut report)?;
    if plan.n_integer() == 0 && config.prune.is_none() {
        // Whoever gets the float model gets the one that was given, to the byte.
        emitted = given;
    }

    self_check.verify(&emitted, config, sink)?;
    (report.outputs, report.n_holdout) = match errors {
        Some(errors) => (errors, data.holdout.len().min(MAX_HOLDOUT)),
        None => {
            progress.begin("measuring the result", 1);
            let quantized = solve::compile(&emitted)?;
            let found = measure::compare(&program, &quantized, data.holdout, MAX_HOLDOUT, config.threads)?;
            progress.end();
            found
        }
    };
    if let Some(o) = report.outputs.iter().find(|o| o.is_broken) {
        bail!("the quantized model's output \"{}\" is not finite or has another rank", o.name);
    }
    report.judged = match judging {
        Some(judging) => Some(judging.finish(&solve::compile(&emitted)?, config.threads)?),
        None => None,
    };
    report.traps.extend(traps::outputs(&report.outputs));
    report.is_floor_met = measure::worst_sqnr(&report.outputs) >= config.min_sqnr_db;
    report.n_calibration = data.calibration.len();
    report.holdout_is_calibration = data.is_shared;
    report_unused(&prepared, &plan, config, sink);
    if config.quantize_io {
        for e in realize::quantized_io::quantize_io(&mut emitted)? {
            let (name, dtype, scale, zero) = (e.name, e.dtype, e.scale, e.zero_point);
            report.notes.push(format!("\"{name}\" holds {dtype}: scale {scale:?}, zero point {zero}"));
        }
    }
    report.describe(&prepared, &plan, &emitted);
    observer("quantize", &emitted);
    Ok(Quantized { model: emitted, prepared, plan, report })
}

/// A tensor of a prepared model by the name that it has, or had before a BatchNormalization was folded into it.
fn tensor(prepared: &Model, name: &str) -> Option<plan::Place> {
    prepared.graph_ids().find_map(|id| {
        let g = prepared.graph(id);
        g.find_value(name).or_else(|| g.find_value(&format!("{name}_fused"))).map(|v| (id, v))
    })
}

/// Says which overrides change nothing.
fn report_unused(prepared: &Model, plan: &QuantPlan, config: &Config, sink: &mut Sink) {
    for name in config.overrides.keys() {
        let Some((id, v)) = tensor(prepared, name) else { continue };
        let is_weight = |n: &plan::NodePlan| {
            n.weight.is_some() && prepared.graph(id).consumers(v).iter().any(|(r, _)| n.place == (id, *r))
        };
        if !plan.tensors.contains_key(&(id, v)) && !plan.nodes.iter().any(is_weight) {
            sink.warn("override-unused", Location::value(name), "has an override, and is not quantized");
        }
    }
}

/// Quantizes a model by a calibration cache alone, where the data cannot be had: no algorithm is applied and nothing is
/// measured. The sample gives shapes; its values do not matter.
///
/// # Errors
/// As [`quantize`], or the cache does not fit the model.
pub fn quantize_without_data(
    mut model: Model,
    config: &Config,
    cache: &Cache,
    sample: &Sample,
    observer: &mut dyn FnMut(&str, &Model),
    sink: &mut Sink,
) -> Result<Quantized> {
    let mut report = Report { before: report::Side::of(&model), ..Report::default() };
    let self_check = SelfCheck::of(&model);
    prepare(&mut model, config, observer, sink)?;
    let excluded = config.excluded(&model)?;
    report_unknown(&model, sink);
    let options = RunOptions { threads: config.threads, ..RunOptions::default() };
    let facts = facts::Facts::of(&model, &sample.inputs, options, true)
        .with_context(|| format!("running the float model on {}", sample.origin))?;
    let observed = solve::cached(&model, config, &facts, &excluded, cache, sink)?;
    let excluded = traps::exclude(&model, config, &facts, &observed, &excluded)?;
    let solver = solve::Solver { model: &model, config, facts: &facts, observed: &observed };
    let plan = solver.plan(&excluded)?;
    report.traps = traps::found(&model, config, &facts, &observed, &plan);
    let emitted = solver.emit(&plan)?;
    self_check.verify(&emitted, config, sink)?;
    report_unused(&model, &plan, config, sink);
    report.notes.push("ranges are from the cache; without samples no algorithm was tried and nothing measured".into());
    report.n_calibration = cache.samples.len();
    report.is_floor_met = true;
    report.describe(&model, &plan, &emitted);
    observer("quantize", &emitted);
    Ok(Quantized { model: emitted, prepared: model, plan, report })
}

/// Observes a model on samples for a cache: the statistics of each tensor, by name (see [`solve::cache_name`]).
///
/// # Errors
/// The model is quantized already or does not run on the samples.
pub fn calibrate(
    mut model: Model,
    config: &Config,
    data: &dyn Dataset,
    progress: &dyn Progress,
    sink: &mut Sink,
) -> Result<BTreeMap<String, Tracker>> {
    prepare(&mut model, config, &mut |_, _| {}, sink)?;
    let excluded = config.excluded(&model)?;
    let first = data.sample(0)?;
    let options = RunOptions { threads: config.threads, ..RunOptions::default() };
    let facts = facts::Facts::of(&model, &first.inputs, options, true)
        .with_context(|| format!("running the float model on {}", first.origin))?;
    let (trackers, _) = solve::track(&model, config, &facts, &excluded, &solve::Pass::ranges(data), progress)?;
    Ok(trackers.into_iter().map(|(place, t)| (solve::cache_name(&model, place), t)).collect())
}

/// What quantizing a model needs of memory (see [`memory::Need`]), from one run of it on a sample.
///
/// # Errors
/// The model is quantized already or does not run on the sample.
pub fn memory_need(mut model: Model, config: &Config, sample: &Sample, sink: &mut Sink) -> Result<memory::Need> {
    prepare(&mut model, config, &mut |_, _| {}, sink)?;
    let options = RunOptions { threads: config.threads, ..RunOptions::default() };
    let facts = facts::Facts::of(&model, &sample.inputs, options, true)
        .with_context(|| format!("running the float model on {}", sample.origin))?;
    memory::Need::of(&model, config, &facts)
}

/// What every model goes through first.
fn prepare(model: &mut Model, config: &Config, observer: &mut dyn FnMut(&str, &Model), sink: &mut Sink) -> Result<()> {
    refuse_unsuitable(model)?;
    close_inputs(model, sink);
    let mut ctx = passes::Ctx::new(sink).opset_floor(config.opset_floor());
    passes::manager::run(model, &passes::PREPARE, &mut ctx, observer)?;
    crate::infer::infer(model, sink)?;
    observer("prepare", model);
    for name in config.overrides.keys() {
        ensure!(
            tensor(model, name).is_some(),
            "the override of \"{name}\": there is no tensor of that name in the model"
        );
    }
    Ok(())
}

/// Takes stored tensors that older exporters list as graph inputs (weights, mostly) for the constants that they are, and
/// off the list of inputs: nothing that can be overridden at run time can be quantized, folded or fused.
fn close_inputs(model: &mut Model, sink: &mut Sink) {
    let g = model.main_mut();
    let mut closed = 0;
    for v in g.inputs().to_vec() {
        if let Def::Overridable(t) = &g.value(v).def {
            let t = t.clone();
            g.set_def(v, Def::Initializer(t));
            closed += 1;
        }
    }
    if closed > 0 {
        let inputs = g.inputs().iter().copied().filter(|&v| matches!(g.value(v).def, Def::Input)).collect();
        g.set_inputs(inputs);
        sink.note(
            "overridable-initializers",
            Location::default(),
            format!("{closed} stored tensors were listed as graph inputs; they are constants from here on"),
        );
    }
}

fn report_unknown(model: &Model, sink: &mut Sink) {
    for id in model.graph_ids() {
        let g = model.graph(id);
        for n in g.nodes() {
            let node = g.node(n);
            let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
            if crate::ops::lookup(&node.domain, &node.op_type, opset).is_none() {
                sink.warn(
                    "unknown-operator",
                    node.location(),
                    format!(
                        "operator of domain {} is not known: it and all that depends on it stay float",
                        node.domain
                    ),
                );
            }
        }
    }
}
