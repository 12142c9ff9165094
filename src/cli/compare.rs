//! `compare`: two models on the same inputs, with thresholds for the outputs.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::session::{Session, print, print_json};
use crate::error::{Context, Result};
use crate::quant::compare::{Comparison, compare};
use crate::quant::measure::OutputError;

/// Arguments of `compare`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// The model that is right
    #[arg(value_name = "A.onnx")]
    a: PathBuf,
    /// The model that is compared with it
    #[arg(value_name = "B.onnx")]
    b: PathBuf,
    /// Data: folder of .npz or .npy, one .npz or .npy, test_data_set_N folders, or `random`; repeatable
    #[arg(short, long, value_name = "DATA", required = true, visible_alias = "calib")]
    data: Vec<PathBuf>,
    /// Most samples to run, spread evenly over the data
    #[arg(short = 'n', long, value_name = "N", default_value = "16")]
    samples: std::num::NonZeroUsize,
    /// Tensors inside to show, worst first
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// Shape of an input for `random` data, where the model leaves it open
    #[arg(long, value_name = "NAME:1,3,224,224")]
    input_shape: Vec<String>,
    /// Lowest SQNR of an output that passes
    #[arg(long, value_name = "DB", help_heading = "Thresholds (exit code 3 when an output misses one)")]
    min_sqnr: Option<f64>,
    /// Largest absolute difference in an output that passes
    #[arg(long, value_name = "X", help_heading = "Thresholds (exit code 3 when an output misses one)")]
    max_abs: Option<f64>,
    /// Lowest cosine between outputs that passes
    #[arg(long, value_name = "C", help_heading = "Thresholds (exit code 3 when an output misses one)")]
    min_cosine: Option<f64>,
}

pub(super) fn run(args: &Args, session: &mut Session) -> Result<ExitCode> {
    let (a, b) = (session.read(&args.a)?, session.read(&args.b)?);
    let samples = session.data(&args.data, &a, &args.input_shape)?;
    session.flush();
    let bar = session.progress();
    let done = compare(&a, &b, &samples, args.samples.get(), session.threads, &bar);
    drop(bar);
    samples.report(&mut session.sink);
    session.flush();
    let done = done.with_context(|| format!("cannot compare '{}' and '{}'", args.a.display(), args.b.display()))?;
    let missed: Vec<String> = done.outputs.iter().flat_map(|o| args.missed(o)).collect();
    if session.json {
        print_json(&args.json(&done, &missed))?;
    } else if !session.quiet {
        print(&args.text(&done))?;
    }
    missed.iter().for_each(|m| session.say(m));
    Ok(ExitCode::from(if missed.is_empty() { 0 } else { 3 }))
}

impl Args {
    /// The thresholds that an output misses, one line each.
    fn missed(&self, o: &OutputError) -> Vec<String> {
        let mut out = Vec::new();
        let mut check = |passes: bool, text: String| {
            if !passes {
                out.push(format!("output \"{}\": {text}", o.name));
            }
        };
        let is_gated = self.min_sqnr.is_some() || self.max_abs.is_some() || self.min_cosine.is_some();
        check(!(is_gated && o.is_broken), "is not finite or has another rank".into());
        // Written so that a NaN does not pass.
        if let Some(least) = self.min_sqnr {
            check(o.sqnr_db >= least, format!("SQNR {:.1} dB is below {least} dB (--min-sqnr)", o.sqnr_db));
        }
        if let Some(most) = self.max_abs {
            check(o.max_abs <= most, format!("max abs {:.3e} is above {most:e} (--max-abs)", o.max_abs));
        }
        if let Some(least) = self.min_cosine {
            check(o.cosine >= least, format!("cosine {:.6} is below {least} (--min-cosine)", o.cosine));
        }
        out
    }

    fn text(&self, done: &Comparison) -> String {
        let mut s = format!("{} -> {}   {} samples\n", self.a.display(), self.b.display(), done.samples);
        for o in &done.outputs {
            let _ = writeln!(s, " output {}: {}", o.name, super::summary::error_text(o));
        }
        let shown = done.tensors.len().min(self.top);
        if shown > 0 {
            let _ = writeln!(s, " tensors that both have, worst first ({shown} of {}):", done.tensors.len());
            for t in &done.tensors[..shown] {
                let name = if t.other == t.error.name { String::new() } else { format!("  ({})", t.other) };
                let e = &t.error;
                let db = if e.sqnr_db.is_infinite() { "exact".into() } else { format!("{:.1} dB", e.sqnr_db) };
                let _ = writeln!(s, "  SQNR {db}  cosine {:.6}  max abs {:.3e}  {}{name}", e.cosine, e.max_abs, e.name);
            }
        }
        s
    }

    fn json(&self, done: &Comparison, missed: &[String]) -> Value {
        let error = |e: &OutputError| {
            json!({
                "name": e.name, "sqnr_db": e.sqnr_db, "cosine": e.cosine, "max_abs": e.max_abs,
                "worst_channel_db": e.worst_channel_db, "top1_agreement": e.top1_agreement, "is_broken": e.is_broken,
            })
        };
        let tensors = done.tensors.iter().map(|t| {
            let mut value = error(&t.error);
            value["other_name"] = t.other.as_str().into();
            value
        });
        json!({
            "schema": 1,
            "samples": done.samples,
            "outputs": done.outputs.iter().map(error).collect::<Vec<_>>(),
            "tensors": tensors.collect::<Vec<_>>(),
            "missed": missed,
        })
    }
}
