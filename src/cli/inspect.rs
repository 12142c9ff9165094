//! `inspect`: what is in a model, what would be quantized, and why not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::dump::{self, Dump};
use super::quantize::prepare;
use super::session::{Session, human_bytes, human_count, print, print_json};
use super::summary::plan_json;
use crate::calibrate::dataset::Dataset;
use crate::error::Result;
use crate::ir::{Def, Model, ValueId};
use crate::quant::plan::{Decision, QuantPlan};
use crate::quant::{self, Config};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// The model
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Data for the shapes inside, as for calibration; the first sample is enough [default: random]
    #[arg(short, long, value_name = "DATA", visible_alias = "calib")]
    data: Vec<PathBuf>,
    /// Shape of an input, where the model leaves it open and there is no data
    #[arg(long, value_name = "NAME:1,3,224,224")]
    input_shape: Vec<String>,
    /// The runtime to plan for
    #[arg(short, long, value_name = "TARGET", default_value = "ort-cpu")]
    target: String,
    #[command(flatten)]
    dump: dump::Args,
}

pub(super) fn run(args: &Args, session: &mut Session) -> Result<ExitCode> {
    let mut dump = Dump::new(&args.dump)?;
    let model = session.read(&args.model)?;
    dump.see("load", &model);
    let config = Config { threads: session.threads, ..Config::new(&args.target)? };
    let bytes = std::fs::metadata(&args.model)?.len();
    let planned = plan(args, &model, &config, &mut dump, session);
    session.flush();
    if dump.is_wanted() {
        dump.print()?;
    } else if session.json {
        let mut value = overview_json(&model, bytes);
        if let Some(object) = value.as_object_mut() {
            match &planned {
                Ok((plan, prepared)) => object.insert("plan".into(), plan_json(plan, prepared)),
                Err(why) => object.insert("no_plan".into(), why.as_str().into()),
            };
        }
        print_json(&value)?;
    } else {
        let mut text = overview(&args.model.display().to_string(), &model, bytes);
        match &planned {
            Ok((plan, prepared)) => {
                text.push_str(&plan_overview(plan, prepared, &args.target));
                if session.verbose > 0 {
                    text.push_str(&plan.print(prepared));
                }
            }
            Err(why) => {
                let _ = writeln!(text, "plan         none: {why}");
            }
        }
        print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The plan for the model, or one phrase why there is none.
fn plan(
    args: &Args,
    model: &Model,
    config: &Config,
    dump: &mut Dump,
    session: &mut Session,
) -> std::result::Result<(QuantPlan, Model), String> {
    let one_line = |e: anyhow::Error| format!("{e:#}");
    quant::refuse_unsuitable(model).map_err(one_line)?;
    let mut prepared = model.clone();
    prepare(&mut prepared, config, &mut |stage, m| dump.see(stage, m), &mut session.sink).map_err(one_line)?;
    let paths = if args.data.is_empty() { vec![PathBuf::from("random")] } else { args.data.clone() };
    let samples = session.data_for_shapes(&paths, model, &args.input_shape);
    let sample = samples.and_then(|s| s.sample(0)).map_err(|e| match crate::error::help_of(&e) {
        Some(help) => format!("{e:#} ({help})"),
        None => format!("{e:#}"),
    })?;
    let plan = quant::plan_only(&prepared, config, &sample.inputs).map_err(one_line)?;
    Ok((plan, prepared))
}

/// Counts of a model.
struct Counts {
    ops: BTreeMap<String, usize>,
    parameters: u64,
    parameter_bytes: BTreeMap<&'static str, u64>,
}

fn counts(model: &Model) -> Counts {
    let mut c = Counts { ops: BTreeMap::new(), parameters: 0, parameter_bytes: BTreeMap::new() };
    for id in model.graph_ids() {
        let g = model.graph(id);
        for n in g.nodes() {
            let node = g.node(n);
            let domain = node.domain.canonical();
            let name = if domain.is_empty() { node.op_type.clone() } else { format!("{domain}::{}", node.op_type) };
            *c.ops.entry(name).or_default() += 1;
        }
        for &v in g.initializers() {
            if let Def::Initializer(t) | Def::Overridable(t) = &g.value(v).def {
                let n = t.len() as u64;
                c.parameters += n;
                *c.parameter_bytes.entry(t.dtype().name()).or_default() += (n * t.dtype().bits() as u64).div_ceil(8);
            }
        }
    }
    c
}

fn describe(model: &Model, values: &[ValueId]) -> Vec<(String, String)> {
    let g = model.main();
    let is_stored = |v: &ValueId| matches!(g.value(*v).def, Def::Initializer(_));
    let ty = |v: ValueId| g.value(v).ty.as_ref().map_or("?".into(), ToString::to_string);
    values.iter().filter(|v| !is_stored(v)).map(|&v| (g.value(v).name.clone(), ty(v))).collect()
}

fn overview(path: &str, model: &Model, bytes: u64) -> String {
    let mut t = String::new();
    let c = counts(model);
    let g = model.main();
    let _ = writeln!(t, "model        {path}, {}", human_bytes(bytes));
    let opsets: Vec<String> = model
        .opsets
        .iter()
        .map(|(d, v)| if d.canonical().is_empty() { format!("opset {v}") } else { format!("{d} {v}") })
        .collect();
    let _ = writeln!(t, "format       IR {}, {}", model.ir_version, opsets.join(", "));
    if !model.producer_name.is_empty() {
        let _ = writeln!(t, "producer     {} {}", model.producer_name, model.producer_version);
    }
    for (label, values) in [("input", g.inputs()), ("output", g.outputs())] {
        for (name, ty) in describe(model, values) {
            let _ = writeln!(t, "{label:<12} {name}: {ty}");
        }
    }
    let by_type: Vec<String> =
        c.parameter_bytes.iter().map(|(ty, bytes)| format!("{ty} {}", human_bytes(*bytes))).collect();
    let _ = writeln!(t, "parameters   {} ({})", human_count(c.parameters), by_type.join(", "));
    let n: usize = c.ops.values().sum();
    let mut ops: Vec<_> = c.ops.iter().collect();
    ops.sort_by_key(|(op, n)| (std::cmp::Reverse(**n), op.as_str()));
    let ops: Vec<String> = ops.iter().map(|(op, n)| format!("{op} {n}")).collect();
    let n_graphs = model.graph_ids().count();
    let graphs = if n_graphs > 1 { format!(" in {n_graphs} graphs") } else { String::new() };
    let _ = writeln!(t, "nodes        {n}{graphs}: {}", ops.join(", "));
    if !model.functions.is_empty() {
        let names: Vec<&str> = model.functions.iter().map(|f| f.name.as_str()).collect();
        let _ = writeln!(t, "functions    {}", names.join(", "));
    }
    for (k, v) in &model.metadata {
        let _ = writeln!(t, "metadata     {k}: {}", v.lines().next().unwrap_or(""));
    }
    t
}

fn plan_overview(plan: &QuantPlan, model: &Model, target: &str) -> String {
    let mut t = String::new();
    let (macs, integer) = plan.macs();
    let share =
        if macs > 0 { format!(", {:.1} % in int8", integer as f64 / macs as f64 * 100.0) } else { String::new() };
    let _ = writeln!(t, "MACs         {}{share}", human_count(macs));
    let n = plan.n_integer();
    let _ = writeln!(t, "plan         {n} of {} nodes in int8 for {target}", plan.nodes.len());
    let mut kept: BTreeMap<(String, &str), (u64, Vec<String>)> = BTreeMap::new();
    for n in &plan.nodes {
        if let Decision::Float { why, .. } = &n.decision {
            let node = model.graph(n.place.0).node(n.place.1);
            let (macs, nodes) = kept.entry((node.op_type.clone(), why)).or_default();
            *macs += n.macs;
            nodes.push(node.label());
        }
    }
    let mut kept: Vec<_> = kept.into_iter().collect();
    kept.sort_by_key(|((op, why), (macs, nodes))| (std::cmp::Reverse((*macs, nodes.len())), op.clone(), *why));
    for ((op, why), (macs, nodes)) in kept {
        let what =
            if let [one] = nodes.as_slice() { format!("{op} \"{one}\"") } else { format!("{op} x{}", nodes.len()) };
        let macs = if macs > 0 { format!(" ({} MACs)", human_count(macs)) } else { String::new() };
        let _ = writeln!(t, "float        {what}{macs}: {why}");
    }
    t
}

fn overview_json(model: &Model, bytes: u64) -> Value {
    let c = counts(model);
    let g = model.main();
    let values = |v: &[ValueId]| {
        describe(model, v).into_iter().map(|(name, ty)| json!({ "name": name, "type": ty })).collect::<Vec<_>>()
    };
    json!({
        "schema": 1,
        "bytes": bytes,
        "ir_version": model.ir_version,
        "opsets": model.opsets.iter().map(|(d, v)| json!({ "domain": d.canonical(), "version": v })).collect::<Vec<_>>(),
        "producer": model.producer_name,
        "inputs": values(g.inputs()),
        "outputs": values(g.outputs()),
        "parameters": c.parameters,
        "parameter_bytes": c.parameter_bytes,
        "nodes": c.ops,
        "functions": model.functions.iter().map(|f| &f.name).collect::<Vec<_>>(),
    })
}
