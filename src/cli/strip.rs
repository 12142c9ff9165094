//! `strip`: a quantized model back in float.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::session::{Session, print, print_json};
use crate::error::{Context, Result, ensure};
use crate::onnx::{External, WriteOptions};
use crate::quant::realize::strip;

/// Arguments of `strip`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The quantized model
    #[arg(value_name = "IN.onnx")]
    input: PathBuf,
    /// The float model
    #[arg(value_name = "OUT.onnx")]
    output: PathBuf,
}

pub(super) fn run(args: &Args, session: &mut Session) -> Result<ExitCode> {
    super::quantize::check_output(&args.input, &args.output)?;
    let mut model = session.read(&args.input)?;
    session.flush();
    let done = strip::strip(&mut model).with_context(|| format!("cannot strip '{}'", args.input.display()))?;
    ensure!(done != strip::Stripped::default(), "'{}' is not quantized", args.input.display());
    let options = WriteOptions { external: External::Auto, inputs: vec![args.input.clone()] };
    crate::onnx::write(&model, &args.output, &options)?;
    if session.json {
        print_json(&json!({
            "schema": 1, "output": args.output.display().to_string(), "removed": done.n_pairs, "weights": done.n_weights,
            "relu": done.n_relu,
        }))?;
    } else if !session.quiet {
        print(&format!(
            "{} -> {}: {} QuantizeLinear and DequantizeLinear removed, {} stored tensors float again, {} Relu put back\n",
            args.input.display(),
            args.output.display(),
            done.n_pairs,
            done.n_weights,
            done.n_relu
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
