//! `extract`: a part of a model as a model of its own, with the inputs that it gets in use.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::session::{Session, print, print_json};
use crate::calibrate::dataset::{Dataset, npy};
use crate::error::{Context, Result};
use crate::interp::{CompileOptions, Program, RunOptions};
use crate::ir::{GraphId, Model, ValueId};
use crate::onnx::{External, WriteOptions};
use crate::ops::Item;
use crate::quant::extract;
use crate::tensor::Tensor;

/// Arguments of `extract`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model
    #[arg(value_name = "IN.onnx")]
    input: PathBuf,
    /// The part
    #[arg(value_name = "OUT.onnx")]
    output: PathBuf,
    /// Tensors that become its inputs [default: the model's inputs]
    #[arg(long, value_name = "TENSORS", value_delimiter = ',')]
    from: Vec<String>,
    /// Tensors that become its outputs [default: the model's outputs]
    #[arg(long, value_name = "TENSORS", value_delimiter = ',')]
    to: Vec<String>,
    /// Data for the whole model: what it makes of the part's inputs is written to the folder OUT.samples
    #[arg(short, long, value_name = "DATA")]
    calib: Vec<PathBuf>,
}

pub(super) fn run(args: &Args, session: &mut Session) -> Result<ExitCode> {
    super::quantize::check_output(&args.input, &args.output)?;
    let whole = session.read(&args.input)?;
    session.flush();
    let mut part = whole.clone();
    extract::extract(&mut part, &args.from, &args.to)
        .with_context(|| format!("cannot extract from '{}'", args.input.display()))?;
    let options = WriteOptions { external: External::Auto, inputs: vec![args.input.clone()] };
    crate::onnx::write(&part, &args.output, &options)?;
    let folder = args.output.with_extension("samples");
    let n = if args.calib.is_empty() { 0 } else { record(args, &whole, &part, &folder, session)? };
    let (nodes, of) = (count(&part), count(&whole));
    if session.json {
        let samples = (n > 0).then(|| folder.display().to_string());
        let output = args.output.display().to_string();
        print_json(&json!({ "schema": 1, "output": output, "nodes": nodes, "samples": samples, "n_samples": n }))?;
    } else if !session.quiet {
        let samples = if n > 0 { format!("; {n} samples in {}", folder.display()) } else { String::new() };
        print(&format!("{} -> {}: {nodes} of {of} nodes{samples}\n", args.input.display(), args.output.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn count(model: &Model) -> usize {
    model.graph_ids().map(|id| model.graph(id).nodes().count()).sum()
}

/// Runs the whole model and writes what the part's inputs are, one file a sample.
fn record(args: &Args, whole: &Model, part: &Model, folder: &Path, session: &mut Session) -> Result<usize> {
    let samples = session.data(&args.calib, whole, &[])?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot write '{}'", folder.display()))?;
    let main = whole.graph_ids().next().context("the model has no graph")?;
    let wanted: Vec<(String, ValueId)> = part
        .main()
        .inputs()
        .iter()
        .filter_map(|&v| {
            let name = part.main().value(v).name.clone();
            whole.main().find_value(&name).map(|v| (name, v))
        })
        .collect();
    let watch = |g: GraphId, v: ValueId| g == main && wanted.iter().any(|(_, w)| *w == v);
    let program = Program::compile(whole, &CompileOptions { watch: &watch, skip_unknown: true })?;
    for i in 0..samples.len() {
        let sample = samples.sample(i)?;
        let mut seen: Vec<(String, Tensor)> =
            sample.inputs.iter().filter(|(n, _)| wanted.iter().any(|(w, _)| w == n)).cloned().collect();
        let options = RunOptions { threads: session.threads, ..RunOptions::default() };
        let outcome = program.run_named(&sample.inputs, options, &mut |g: GraphId, v: ValueId, item: &Item| {
            if let (true, Item::Tensor(t), Some((name, _))) = (g == main, item, wanted.iter().find(|(_, w)| *w == v))
                && !seen.iter().any(|(n, _)| n == name)
            {
                seen.push((name.clone(), t.clone()));
            }
            Ok(())
        });
        outcome.with_context(|| format!("running on {}", sample.origin))?;
        let path = folder.join(format!("{i:04}.npz"));
        let what = || format!("cannot write '{}'", path.display());
        let file = BufWriter::new(File::create(&path).with_context(what)?);
        npy::write_npz(seen.iter().map(|(n, t)| (n.as_str(), t)), file).with_context(what)?;
    }
    Ok(samples.len())
}
