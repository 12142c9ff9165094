//! `targets`: the runtimes that models can be made for, and what each runs in integers, with the sources.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::builder::{PossibleValue, PossibleValuesParser};
use serde_json::{Value, json};

use super::session::{Session, print, print_json};
use crate::error::Result;
use crate::quant::target::{BiasType, Target, Tensors};

/// Arguments of `targets`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Show the table of one target, with the source of each rule
    Show {
        /// The target
        #[arg(value_name = "TARGET", value_parser = names())]
        target: String,
    },
}

/// The targets as values of an option.
pub(super) fn names() -> PossibleValuesParser {
    Target::descriptions().map(|(name, what)| PossibleValue::new(name).help(what)).collect::<Vec<_>>().into()
}

pub(super) fn run(args: &Args, session: &Session) -> Result<ExitCode> {
    match &args.what {
        None if session.json => {
            let all = Target::all()?.iter().map(describe).collect::<Result<Vec<_>>>()?;
            print_json(&json!({ "schema": 1, "targets": all }))?;
        }
        None => print(&list(&Target::all()?)?)?,
        Some(What::Show { target }) if session.json => print_json(&describe(&Target::named(target)?)?)?,
        Some(What::Show { target }) => print(&Target::text(target)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// One line a target.
fn list(targets: &[Target]) -> Result<String> {
    let mut t = String::new();
    for target in targets {
        let of = |x: &Tensors| -> Result<String> {
            let names: Vec<_> = x.types()?.iter().map(|d| d.name()).collect();
            Ok(names.join(", "))
        };
        let _ = writeln!(t, "{:<14} {}", target.name, target.description);
        let _ = writeln!(t, "{:<14} activations {}; weights {}", "", of(&target.activation)?, of(&target.weight)?);
    }
    Ok(t)
}

fn describe(t: &Target) -> Result<Value> {
    let tensors = |x: &Tensors| -> Result<Value> {
        Ok(json!({
            "types": x.types()?.iter().map(|d| d.name()).collect::<Vec<_>>(),
            "symmetric": x.symmetric,
            "per_channel": x.per_channel,
            "reduce_range": x.reduce_range,
            "why": x.why,
        }))
    };
    let bias = |b: &BiasType| match b {
        BiasType::Int32 => "int32",
        BiasType::Float32 => "float32",
    };
    Ok(json!({
        "name": t.name,
        "description": t.description,
        "opset": t.opset,
        "activation": tensors(&t.activation)?,
        "weight": tensors(&t.weight)?,
        "bias": t.bias.types.iter().map(bias).collect::<Vec<_>>(),
        "absorbs_relu": t.absorb,
        "whole_graph": t.whole,
        "fixed_shapes": t.fixed_shapes,
        "operators": t.op_types().collect::<Vec<_>>(),
    }))
}
