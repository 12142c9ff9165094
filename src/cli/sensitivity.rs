//! `sensitivity`: which operators cost the most accuracy in integers, and what to exclude.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};

use super::quantize::{self, CalibArgs};
use super::select::{self, Selection};
use super::session::{Session, human_count, print, print_json};
use crate::error::{Context, Result};
use crate::quant::Config;
use crate::quant::measure::worst_sqnr;
use crate::quant::noise::{NoiseModel, NoiseOptions};
use crate::quant::plan::NodePlace;
use crate::quant::sensitivity::{Study, spearman};

/// Arguments of `sensitivity`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// The float model
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// In which order operators are ranked
    #[arg(long, value_name = "ORDER", default_value = "gradient")]
    by: By,
    /// Operators to show and to name in the list, worst first
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    #[command(flatten)]
    calib: CalibArgs,
    /// The runtime that the model is for
    #[arg(short, long, value_name = "TARGET", default_value = "ort-cpu", value_parser = super::targets::names())]
    target: String,
    #[command(flatten)]
    select: select::Args,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// Output SQNR with one operator alone in integers, measured: a run of the network for each
    OutputError,
    /// The same, predicted from a few reverse passes for all at once
    Gradient,
    /// Largest magnitude in the weight
    Magnitude,
    /// All three, with the rank correlation of the cheap ones with output-error
    All,
}

/// One operator.
struct Row {
    label: String,
    op_type: String,
    macs: u64,
    /// SQNR in dB of the worst output, with it alone in integers.
    measured: Option<f64>,
    predicted: Option<f64>,
    magnitude: Option<f64>,
}

impl Row {
    /// What the order sorts by, the worst operator lowest.
    fn key(&self, by: By) -> f64 {
        let key = match by {
            By::OutputError | By::All => self.measured,
            By::Gradient => self.predicted,
            By::Magnitude => self.magnitude.map(|m| -m),
        };
        key.unwrap_or(f64::INFINITY)
    }
}

/// What was found.
struct Findings {
    rows: Vec<Row>,
    /// SQNR in dB of the worst output with all of them in integers: predicted, and measured.
    whole: (Option<f64>, Option<f64>),
    /// Where gradients stopped, and why.
    stopped: Vec<(String, String)>,
    gradient: Option<f64>,
    magnitude: Option<f64>,
}

pub(super) fn run(args: Args, session: &mut Session) -> Result<ExitCode> {
    let selection = Selection::new(&args.select)?;
    let model = session.read(&args.model)?;
    let paths = quantize::data_paths(args.calib.data.calib.clone(), &args.model, session)?;
    let pairs = args.calib.carried(&model)?;
    let (shapes, image) = (&args.calib.data.input_shape, args.calib.data.image.options());
    let samples = Arc::new(session.data_with(&paths, &model, shapes, image, &pairs)?);
    let limit = args.calib.data.calib_samples.get();
    let all = quantize::carry(&samples, &model, &pairs, session)?;
    let data = crate::calibrate::dataset::split(&all, 0.0, Some(limit))?.calibration;
    session.flush();
    let base = Config::new(&args.target)?;
    let excluding = selection.clone();
    let config = Config {
        method: args.calib.data.method(&base, &BTreeSet::new())?,
        exclude: Box::new(move |label, op_type| excluding.excludes(label, op_type)),
        threads: session.threads,
        ..base
    };
    let bar = session.progress();
    let original = model.clone();
    let look = || -> Result<Findings> {
        let study = Study::new(model, &config, &data, &bar, &mut session.sink)?;
        selection.check(&[&original, &study.model])?;
        find(&args, &study, &data, &bar)
    };
    let found = look().with_context(|| format!("cannot study '{}'", args.model.display()));
    drop(bar);
    samples.report(&mut session.sink);
    session.flush();
    let mut found = found?;
    found.rows.sort_by(|a, b| a.key(args.by).total_cmp(&b.key(args.by)));
    if session.json {
        print_json(&args.json(&found))?;
    } else if !session.quiet {
        print(&args.text(&found, session.verbose > 0))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn find(
    args: &Args,
    study: &Study<'_>,
    data: &dyn crate::calibrate::dataset::Dataset,
    bar: &super::progress::Bar,
) -> Result<Findings> {
    let nodes = study.operators();
    let wants = |by: By| args.by == by || args.by == By::All;
    let noise = if wants(By::Gradient) { Some(study.noise_model(data, &NoiseOptions::default(), bar)?) } else { None };
    let errors = if wants(By::OutputError) { Some(study.output_errors(&nodes, data, bar)?) } else { None };
    let predicted =
        |noise: &NoiseModel, n: NodePlace| -> Result<f64> { Ok(noise.sqnr(&study.model, &study.alone(n)?)) };
    let mut rows = Vec::with_capacity(nodes.len());
    for (i, &(id, n)) in nodes.iter().enumerate() {
        let node = study.model.graph(id).node(n);
        rows.push(Row {
            label: node.label(),
            op_type: node.op_type.clone(),
            macs: study.plan.node((id, n)).map_or(0, |p| p.macs),
            measured: errors.as_ref().map(|e| worst_sqnr(&e[i])),
            predicted: noise.as_ref().map(|m| predicted(m, (id, n))).transpose()?,
            magnitude: if wants(By::Magnitude) { Some(study.magnitude((id, n))?) } else { None },
        });
    }
    let whole = if wants(By::OutputError) { Some(worst_sqnr(&study.whole_errors(data)?)) } else { None };
    let column = |f: &dyn Fn(&Row) -> Option<f64>| rows.iter().map(f).collect::<Option<Vec<f64>>>();
    let (measured, cheap) = (column(&|r| r.measured), column(&|r| r.predicted));
    let largest = column(&|r| r.magnitude.map(|m| -m));
    let correlation = |a: &Option<Vec<f64>>| spearman(measured.as_ref()?, a.as_ref()?);
    let (gradient, magnitude) = (correlation(&cheap), correlation(&largest));
    Ok(Findings {
        rows,
        whole: (noise.as_ref().map(|m| m.sqnr(&study.model, &study.plan)), whole),
        stopped: noise.map(|m| m.stopped).unwrap_or_default(),
        gradient,
        magnitude,
    })
}

impl Args {
    /// The worst operators as an option for `quantize`.
    fn exclude(&self, found: &Findings) -> String {
        let names: Vec<String> = found.rows.iter().take(self.top).map(|r| pattern(&r.label)).collect();
        if names.is_empty() { String::new() } else { format!("--nodes-to-exclude {}", quoted(&names.join(","))) }
    }

    fn text(&self, found: &Findings, all: bool) -> String {
        let n = found.rows.len();
        let shown = if all { n } else { n.min(self.top) };
        let mut s =
            format!("{}: {n} operators with weights can run in integers; the worst {shown}:\n", self.model.display());
        let mut head = format!(" {:>4}", "rank");
        let mut columns: Vec<(&str, Box<dyn Fn(&Row) -> String>)> = Vec::new();
        let db = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.1} dB"));
        if matches!(self.by, By::OutputError | By::All) {
            columns.push(("measured", Box::new(move |r| db(r.measured))));
        }
        if matches!(self.by, By::Gradient | By::All) {
            columns.push(("predicted", Box::new(move |r| db(r.predicted))));
        }
        if matches!(self.by, By::Magnitude | By::All) {
            columns.push(("max |w|", Box::new(|r| r.magnitude.map_or(String::new(), |m| format!("{m:.3}")))));
        }
        columns.push(("MACs", Box::new(|r| human_count(r.macs))));
        columns.iter().for_each(|(name, _)| head += &format!("  {name:>10}"));
        let _ = writeln!(s, "{head}  operator");
        for (i, row) in found.rows.iter().take(shown).enumerate() {
            let mut line = format!(" {:>4}", i + 1);
            columns.iter().for_each(|(_, of)| line += &format!("  {:>10}", of(row)));
            let _ = writeln!(s, "{line}  {} {}", row.op_type, row.label);
        }
        let whole = [("predicted", found.whole.0), ("measured", found.whole.1)];
        let whole: Vec<String> = whole.iter().filter_map(|(n, x)| x.map(|x| format!("{x:.1} dB {n}"))).collect();
        if !whole.is_empty() {
            let _ = writeln!(s, " all of them together: {} for the worst output", whole.join(", "));
        }
        for (name, r) in [("gradient", found.gradient), ("magnitude", found.magnitude)] {
            if let Some(r) = r {
                let _ = writeln!(s, " rank correlation with output-error: {name} {r:.2}");
            }
        }
        for (label, why) in &found.stopped {
            let _ = writeln!(s, " gradients stop at {label}: {why}; what they do not reach was measured");
        }
        let list = self.exclude(found);
        if !list.is_empty() {
            let _ = writeln!(s, " to keep these float:\n{list}");
        }
        s
    }

    fn json(&self, found: &Findings) -> Value {
        let rows = found.rows.iter().map(|r| {
            json!({
                "name": r.label, "op_type": r.op_type, "macs": r.macs,
                "output_error_db": r.measured, "gradient_db": r.predicted, "largest_weight": r.magnitude,
            })
        });
        let stopped = found.stopped.iter().map(|(name, why)| json!({ "name": name, "why": why }));
        json!({
            "schema": 1,
            "operators": rows.collect::<Vec<_>>(),
            "predicted_db": found.whole.0,
            "measured_db": found.whole.1,
            "rank_correlation": { "gradient": found.gradient, "magnitude": found.magnitude },
            "stopped": stopped.collect::<Vec<_>>(),
            "exclude": self.exclude(found),
        })
    }
}

/// A name as the selection options take it: commas separate names, and * and ? stand for others.
fn pattern(name: &str) -> String {
    if name.contains([',', '*', '?']) || name.starts_with('/') && name.ends_with('/') {
        format!("/^{}$/", regex::escape(name).replace(',', "\\x2C"))
    } else {
        name.to_owned()
    }
}

/// A word for a shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,".contains(c);
    if text.chars().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_shell_and_selection() {
        assert_eq!(quoted("/a/Conv_1,b"), "/a/Conv_1,b");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(pattern("conv1"), "conv1");
        assert_eq!(pattern("a,b*"), "/^a\\x2Cb\\*$/");
    }
}
