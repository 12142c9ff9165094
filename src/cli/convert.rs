//! `convert`: a quantized model in the other form, QDQ or QOperator.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::session::{Session, print, print_json};
use crate::error::{Context, Result, ensure};
use crate::onnx::{External, WriteOptions};
use crate::quant::realize::qoperator;

/// Arguments of `convert`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The quantized model
    #[arg(value_name = "IN.onnx")]
    input: PathBuf,
    /// The same model in the other form
    #[arg(value_name = "OUT.onnx")]
    output: PathBuf,
    /// The form
    #[arg(long, value_name = "FORM")]
    to: Form,
}

/// How quantized operators are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Form {
    /// Float operators between DequantizeLinear and QuantizeLinear
    Qdq,
    /// Operators on quantized tensors: QLinearConv, QLinearMatMul, and ONNX Runtime's own
    Qoperator,
}

pub(super) fn run(args: &Args, session: &mut Session) -> Result<ExitCode> {
    super::quantize::check_output(&args.input, &args.output)?;
    let mut model = session.read(&args.input)?;
    session.flush();
    let n = match args.to {
        Form::Qdq => qoperator::to_qdq(&mut model),
        Form::Qoperator => qoperator::from_qdq(&mut model),
    };
    let n = n.with_context(|| format!("cannot convert '{}'", args.input.display()))?;
    ensure!(n > 0, "'{}' has no operator to convert", args.input.display());
    let options = WriteOptions { external: External::Auto, inputs: vec![args.input.clone()] };
    crate::onnx::write(&model, &args.output, &options)?;
    if session.json {
        print_json(&json!({ "schema": 1, "output": args.output.display().to_string(), "converted": n }))?;
    } else if !session.quiet {
        print(&format!("{} -> {}: {n} operators converted\n", args.input.display(), args.output.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
