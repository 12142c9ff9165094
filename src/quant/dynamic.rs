//! Dynamic quantization: weights are stored in 8 bits per output channel, activations are quantized at each run with the
//! range that they have there. Needs no data.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::algo::blocks::{Method, Scheme};
use super::config::Config;
use super::lazy::{Form, Job, Origin};
use super::plan::{Place, QuantPlan};
use super::prune;
use super::realize::dynamic::{Item, lstm, realize};
use super::report::{Report, StoredWeight};
use super::self_check::SelfCheck;
use super::weight_only::{Choice, choose, keep, measure};
use super::{Data, Progress, Quantized};
use crate::diag::Sink;
use crate::error::Result;
use crate::ir::{GraphId, Model, NodeId, TensorRef};
use crate::ops::{QuantRule, WeightAxis, lookup};
use crate::passes;
use crate::tensor::DType;

/// How to quantize dynamically.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether recurrent layers are quantized, too.
    pub lstm: bool,
}

/// A weight with fewer elements than this is not worth the conversion of its data.
const LEAST: usize = 256;

/// Quantizes a model dynamically. Data, if there is any, serves to measure the result.
///
/// # Errors
/// A conversion of the model fails, or it does not run on the samples.
pub fn run(
    mut model: Model,
    options: Options,
    config: &Config,
    data: &Data<'_>,
    progress: &dyn Progress,
    observer: &mut dyn FnMut(&str, &Model),
    sink: &mut Sink,
) -> Result<Quantized> {
    let mut report = Report { before: super::report::Side::of(&model), is_floor_met: true, ..Report::default() };
    let self_check = SelfCheck::of(&model);
    super::close_inputs(&mut model, sink);
    let mut ctx = passes::Ctx::new(sink).opset_floor(config.target.opset).keep_transposed(true);
    passes::manager::run(&mut model, &passes::PREPARE, &mut ctx, observer)?;
    crate::infer::infer(&mut model, sink)?;
    observer("prepare", &model);

    // What pruning costs is part of the error.
    let float = model.clone();
    if let Some(how) = config.prune {
        prune::apply(&mut model, how, data.calibration, config.threads, &mut report)?;
    }
    let items = plan(&model, options, config, &mut report)?;
    let mut emitted = model.clone();
    realize(&mut emitted, &items)?;
    passes::manager::run(&mut emitted, &passes::CLEANUP, &mut passes::Ctx::new(sink), &mut |_, _| {})?;
    self_check.verify(&emitted, config, sink)?;
    measure(&float, &emitted, config, data, progress, &mut report)?;
    report.after = super::report::Side::of(&emitted);
    observer("quantize", &emitted);
    Ok(Quantized { model: emitted, prepared: model, plan: QuantPlan::default(), report })
}

fn plan(model: &Model, options: Options, config: &Config, report: &mut Report) -> Result<Vec<Item>> {
    let excluded = config.excluded(model)?;
    let mut jobs: BTreeMap<(Place, bool), Arc<Job>> = BTreeMap::new();
    let mut items = Vec::new();
    for id in model.graph_ids() {
        for n in model.graph(id).order()? {
            let place = (id, n);
            let node = model.graph(id).node(n);
            if let Some((code, why)) = excluded.get(&place) {
                keep(report, node, Some((code, why.clone())));
                continue;
            }
            match lstm(model, id, n) {
                Some(_) if !options.lstm => {
                    keep(report, node, Some(("not-asked-for", "--dynamic-lstm quantizes it".into())));
                    continue;
                }
                Some(Err(why)) => {
                    keep(report, node, Some(("no-dynamic-form", why)));
                    continue;
                }
                Some(Ok(weights)) => {
                    let jobs = weights.map(|(v, t)| gates(&model.graph(id).value(v).name, t));
                    for job in &jobs {
                        report.weights.push(StoredWeight::of(node, job, job.n * job.k, false));
                    }
                    items.push(Item::Lstm(place, jobs));
                    continue;
                }
                None => {}
            }
            match product(model, id, n) {
                Choice::Product(m, is_kn) => {
                    let shape = m.tensor.shape();
                    let (n, k) = if is_kn { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
                    let job = jobs.entry((m.root, is_kn)).or_insert_with(|| {
                        let name = model.graph(m.root.0).value(m.root.1).name.clone();
                        per_channel(name, m.tensor.clone(), n, k, is_kn, Form::Channels)
                    });
                    report.weights.push(StoredWeight::of(node, job, n * k, false));
                    items.push(Item::Product(place, Arc::clone(job)));
                }
                Choice::Float(why) => keep(report, node, why),
                Choice::Lookup(_) => {}
            }
        }
    }
    Ok(items)
}

fn product(model: &Model, id: GraphId, n: NodeId) -> Choice {
    let node = model.graph(id).node(n);
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    let rule = lookup(&node.domain, &node.op_type, opset).map(|d| d.quant);
    if matches!(rule, Some(QuantRule::Weighted { axis: WeightAxis::Fixed(_), .. })) {
        let why = "its dynamic form has one scale for all channels and is often slower than float";
        return Choice::Float(Some(("no-dynamic-form", why.into())));
    }
    choose(model, id, n, LEAST)
}

fn per_channel(name: String, weight: TensorRef, n: usize, k: usize, is_kn: bool, form: Form) -> Arc<Job> {
    let origin = Origin::Compute { weight, is_kn, method: Method::Rtn, importance: None, factors: None };
    Job::new(name, n, k, Scheme::new(DType::I8, k.max(1)), form, origin)
}

/// The job for a weight `[directions, 4*H, K]`.
fn gates(name: &str, t: TensorRef) -> Arc<Job> {
    let (directions, rows, k) = (t.shape()[0], t.shape()[1], t.shape()[2]);
    per_channel(name.to_owned(), t, directions * rows, k, false, Form::Gates { directions })
}
