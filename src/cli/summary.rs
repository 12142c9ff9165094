//! What came of a quantization, as a table for people and as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::session::{Session, human_bytes, peak_memory};
use super::weights;
use crate::error::Result;
use crate::ir::Model;
use crate::quant::labels::{Metric, Scores};
use crate::quant::measure::OutputError;
use crate::quant::plan::{Decision, QuantPlan};
use crate::quant::{Config, Quantized, Report};

/// Lines of nodes that stayed float in the table.
const MAX_KEPT_LINES: usize = 6;
/// Outputs in the table.
const MAX_OUTPUTS: usize = 4;

/// What came of a quantization.
pub(super) struct Summary {
    input: PathBuf,
    output: PathBuf,
    target: String,
    method: String,
    is_static: bool,
    bytes: (u64, u64),
    report: Report,
    elapsed: Duration,
    stages: Vec<(String, Duration)>,
    peak_memory: Option<u64>,
}

impl Summary {
    pub(super) fn new(input: &Path, output: &Path, config: &Config) -> Self {
        let scheme = weights::scheme_text(&config.mode);
        Summary {
            input: input.to_owned(),
            output: output.to_owned(),
            target: config.target.name.clone(),
            method: scheme.clone().unwrap_or_else(|| config.method.calibrator.name.to_owned()),
            is_static: scheme.is_none(),
            bytes: (0, 0),
            report: Report::default(),
            elapsed: Duration::ZERO,
            stages: Vec::new(),
            peak_memory: None,
        }
    }

    /// Takes over what was done, after the model was written.
    pub(super) fn finish(
        &mut self,
        done: &Quantized,
        stages: Vec<(String, Duration)>,
        session: &Session,
    ) -> Result<()> {
        self.stages = stages;
        self.report = done.report.clone();
        self.bytes = (size_on_disk(&self.input)?, size_on_disk(&self.output)?);
        self.elapsed = session.elapsed();
        self.peak_memory = peak_memory();
        Ok(())
    }

    /// The table.
    pub(super) fn table(&self) -> String {
        let r = &self.report;
        let mut t = String::new();
        let samples = match (r.holdout_is_calibration, r.n_calibration) {
            (_, 0) => "no data".to_owned(),
            (true, n) => format!("{n} samples (none held out)"),
            (false, n) if r.n_holdout == 0 => format!("a cache of {n} samples"),
            (false, n) => format!("{n} samples (+{} held out)", r.n_holdout),
        };
        let _ = writeln!(
            t,
            "{} -> {}   target {}, {}, {samples}",
            self.input.display(),
            self.output.display(),
            self.target,
            self.method
        );
        row(&mut t, "", "before", "after", "");
        let ratio = match self.bytes.0 as f64 / self.bytes.1.max(1) as f64 {
            smaller if smaller >= 1.0 => format!("({smaller:.2}x smaller)"),
            larger => format!("({:.2}x larger)", 1.0 / larger),
        };
        row(&mut t, "size", &human_bytes(self.bytes.0), &human_bytes(self.bytes.1), &ratio);
        let versions = |s: &crate::quant::report::Side| format!("{} / {}", s.opset, s.ir_version);
        row(&mut t, "opset / IR", &versions(&r.before), &versions(&r.after), "");
        self.operator_rows(&mut t);
        if let Some((float, planned)) = r.time {
            let speed = format!("{:.2}x", float / planned.max(f64::MIN_POSITIVE));
            row(&mut t, "predicted speed", "1x", &speed, &format!("on {}, by its cost table", self.target));
        }
        self.kept_rows(&mut t);
        for (i, o) in r.outputs.iter().take(MAX_OUTPUTS).enumerate() {
            let name = if r.outputs.len() > 1 { format!("{}: ", o.name) } else { String::new() };
            long_row(&mut t, if i == 0 { "output error" } else { "" }, &format!("{name}{}", error_text(o)));
        }
        if r.outputs.len() > MAX_OUTPUTS {
            let rest = &r.outputs[MAX_OUTPUTS..];
            let worst = rest.iter().map(|o| o.sqnr_db).fold(f64::INFINITY, f64::min);
            long_row(&mut t, "", &format!("{} more outputs, at least {}", rest.len(), decibels(worst)));
        }
        self.judged_rows(&mut t);
        if r.outputs.is_empty() {
            let why = match (r.n_holdout, r.n_calibration) {
                (0, 0) => "no data was given (--calib)",
                (0, _) => "there are no samples beside the cache (--calib)",
                _ => "no output could be computed",
            };
            long_row(&mut t, "output error", &format!("not measured: {why}"));
        }
        if r.holdout_is_calibration {
            long_row(&mut t, "", "measured on the calibration samples, since none were held out");
        }
        for (i, trap) in r.traps.iter().enumerate() {
            long_row(&mut t, if i == 0 { "traps" } else { "" }, trap);
        }
        for note in &r.notes {
            long_row(&mut t, "note", note);
        }
        let memory = self.peak_memory.map_or(String::new(), |m| format!(" / {}", human_bytes(m)));
        let label = if self.peak_memory.is_some() { "time / peak memory" } else { "time" };
        long_row(&mut t, label, &format!("{:.1} s{memory}", self.elapsed.as_secs_f64()));
        t
    }

    /// What the labels say.
    fn judged_rows(&self, t: &mut String) {
        let Some(j) = &self.report.judged else { return };
        let score = |x: f64| if j.metric == Metric::Mse { format!("{x:.4e}") } else { format!("{:.2} %", x * 100.0) };
        let line = |t: &mut String, label: &str, s: &Scores, of: &str| {
            row(t, label, &score(s.float), &score(s.quantized), &format!("of {} samples with a label{of}", s.samples));
        };
        if self.report.holdout_is_calibration {
            line(t, j.metric.name(), &j.held_out, "");
            return;
        }
        line(t, j.metric.name(), &j.held_out, ", held out");
        line(t, "", &j.all, ", calibration included");
    }

    /// What became integers.
    fn operator_rows(&self, t: &mut String) {
        let r = &self.report;
        let nodes = |t: &mut String, added: &str| {
            row(t, "nodes", &r.before.nodes.to_string(), &r.after.nodes.to_string(), added);
        };
        if self.is_static {
            nodes(t, &format!("QuantizeLinear {}, DequantizeLinear {}", r.n_quantize, r.n_dequantize));
            let weighted: Vec<String> = r.weighted.iter().map(|(op, (q, of))| format!("{op} {q} of {of}")).collect();
            row(t, "int8 operators", "-", &r.n_integer.to_string(), &weighted.join(", "));
            row(t, "MACs in int8", "-", &percent(r.integer_macs, r.macs), "");
            return;
        }
        nodes(t, "");
        let (before, after, bits) = weights::sizes(r);
        row(t, "weights", &human_bytes(before), &human_bytes(after), &weights::counts(r));
        row(t, "bits per weight", "32", &format!("{bits:.2}"), "scales included");
    }

    /// How many nodes stayed float, and why: one line per reason, the one with the most work first.
    fn kept_rows(&self, t: &mut String) {
        let kept = &self.report.kept;
        let mut reasons: BTreeMap<(&str, &str), (u64, Vec<&str>)> = BTreeMap::new();
        for k in kept {
            let (macs, nodes) = reasons.entry((&k.op_type, &k.why)).or_default();
            *macs += k.macs;
            nodes.push(&k.node);
        }
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|((op, why), (macs, nodes))| (std::cmp::Reverse((*macs, nodes.len())), *op, *why));
        row(t, "kept in float", "-", &kept.len().to_string(), "");
        for ((op, why), (_, nodes)) in reasons.iter().take(MAX_KEPT_LINES) {
            let what = match nodes.as_slice() {
                [one] => format!("{op} \"{one}\""),
                many => format!("{op} x{}", many.len()),
            };
            long_row(t, "", &format!("{what}: {why}"));
        }
        if reasons.len() > MAX_KEPT_LINES {
            let n: usize = reasons[MAX_KEPT_LINES..].iter().map(|(_, (_, nodes))| nodes.len()).sum();
            long_row(t, "", &format!("{n} more for other reasons (-v lists all)"));
        }
    }

    /// The same as JSON; decibels are null where there is no error at all.
    pub(super) fn json(&self, session: &Session) -> Value {
        let r = &self.report;
        let side = |s: &crate::quant::report::Side, bytes: u64| json!({ "bytes": bytes, "opset": s.opset, "ir_version": s.ir_version, "nodes": s.nodes });
        json!({
            "schema": 1,
            "input": self.input.display().to_string(),
            "output": self.output.display().to_string(),
            "target": self.target,
            "calib_method": self.method,
            "before": side(&r.before, self.bytes.0),
            "after": side(&r.after, self.bytes.1),
            "integer_nodes": r.n_integer,
            "weighted": r.weighted.iter().map(|(op, (q, of))| {
                (op.clone(), json!({ "integer": q, "all": of }))
            }).collect::<serde_json::Map<_, _>>(),
            "quantize_linear": r.n_quantize,
            "dequantize_linear": r.n_dequantize,
            "macs": { "all": r.macs, "integer": r.integer_macs },
            "weights": r.weights.iter().map(weights::weight_json).collect::<Vec<_>>(),
            "kept": r.kept.iter().map(|k| json!({
                "node": k.node, "op_type": k.op_type, "code": k.code, "why": k.why, "macs": k.macs,
            })).collect::<Vec<_>>(),
            "samples": {
                "calibration": r.n_calibration,
                "held_out": if r.holdout_is_calibration { 0 } else { r.n_holdout },
            },
            "outputs": r.outputs.iter().map(|o| json!({
                "name": o.name, "sqnr_db": o.sqnr_db, "worst_channel_db": o.worst_channel_db,
                "cosine": o.cosine, "max_abs": o.max_abs, "top1_agreement": o.top1_agreement,
            })).collect::<Vec<_>>(),
            "metric": r.judged.map(|j| {
                let of = |s: &Scores| json!({ "float": s.float, "quantized": s.quantized, "samples": s.samples });
                json!({ "name": j.metric.name(), "held_out": of(&j.held_out), "all": of(&j.all),
                        "drop": j.held_out.drop(j.metric) })
            }),
            "floor_met": r.is_floor_met,
            "predicted_speed": r.time.map(|(float, planned)| float / planned.max(f64::MIN_POSITIVE)),
            "saves_nothing": r.saves_nothing,
            "traps": r.traps,
            "notes": r.notes,
            "diagnostics": session.sink.diagnostics().iter().map(|d| json!({
                "severity": if d.severity == crate::diag::Severity::Warning { "warning" } else { "note" },
                "code": d.code, "node": d.location.node, "tensor": d.location.value, "message": d.message,
            })).collect::<Vec<_>>(),
            "seconds": self.elapsed.as_secs_f64(),
            "stages": self.stages.iter().map(|(name, time)| (name.clone(), json!(time.as_secs_f64())))
                .collect::<serde_json::Map<_, _>>(),
            "peak_memory_bytes": self.peak_memory,
        })
    }
}

/// A plan as JSON.
pub(super) fn plan_json(plan: &QuantPlan, model: &Model) -> Value {
    let (macs, integer_macs) = plan.macs();
    let nodes: Vec<Value> = plan
        .nodes
        .iter()
        .map(|n| {
            let node = model.graph(n.place.0).node(n.place.1);
            let (decision, code, why) = match &n.decision {
                Decision::Integer => ("integer", None, None),
                Decision::Absorbed(_) => ("absorbed", None, None),
                Decision::Float { code, why } => ("float", Some(*code), Some(why.as_str())),
            };
            json!({ "node": node.label(), "op_type": node.op_type, "decision": decision, "code": code, "why": why,
                    "macs": n.macs })
        })
        .collect();
    json!({ "schema": 1, "macs": { "all": macs, "integer": integer_macs }, "nodes": nodes })
}

/// An output's error in words.
pub(super) fn error_text(o: &OutputError) -> String {
    let mut s = format!("SQNR {}, cosine {:.5}, max abs {:.3e}", decibels(o.sqnr_db), o.cosine, o.max_abs);
    if let Some(db) = o.worst_channel_db {
        let _ = write!(s, ", worst channel {}", decibels(db));
    }
    if let Some(top1) = o.top1_agreement {
        let _ = write!(s, ", same top-1 {:.1} %", top1 * 100.0);
    }
    s
}

fn decibels(db: f64) -> String {
    if db == f64::INFINITY { "exact".into() } else { format!("{db:.1} dB") }
}

fn percent(part: u64, all: u64) -> String {
    if all == 0 { "-".into() } else { format!("{:.1} %", part as f64 / all as f64 * 100.0) }
}

fn row(t: &mut String, label: &str, before: &str, after: &str, more: &str) {
    let line = format!(" {label:<20} {before:<12} {after:<12} {more}");
    let _ = writeln!(t, "{}", line.trim_end());
}

fn long_row(t: &mut String, label: &str, text: &str) {
    let _ = writeln!(t, " {label:<20} {text}");
}

/// Bytes of a model file and of the data file that we write beside it.
fn size_on_disk(path: &Path) -> Result<u64> {
    let mut data = path.as_os_str().to_owned();
    data.push(".data");
    Ok(std::fs::metadata(path)?.len() + std::fs::metadata(data).map_or(0, |m| m.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::report::{Kept, Side};

    fn summary() -> Summary {
        let kept = |node: &str, op_type: &str, why: &str, macs| Kept {
            node: node.into(),
            op_type: op_type.into(),
            code: "excluded",
            why: why.into(),
            macs,
        };
        let output = |name: &str, sqnr_db| OutputError {
            name: name.into(),
            sqnr_db,
            worst_channel_db: Some(12.34),
            cosine: 0.99962,
            max_abs: 0.0125,
            top1_agreement: Some(0.983),
            is_broken: false,
        };
        let report = Report {
            before: Side { opset: 9, ir_version: 3, nodes: 415 },
            after: Side { opset: 13, ir_version: 7, nodes: 318 },
            weighted: [("Conv".to_owned(), (52, 53)), ("Gemm".to_owned(), (1, 1))].into(),
            n_integer: 60,
            n_quantize: 75,
            n_dequantize: 204,
            macs: 1000,
            integer_macs: 998,
            kept: vec![
                kept("/a", "Softmax", "nothing after it runs in integers", 0),
                kept("/b", "Mul", "no integer kernel", 0),
                kept("/c", "Mul", "no integer kernel", 0),
                kept("/stem", "Conv", "excluded by --nodes-to-exclude /stem", 2),
            ],
            outputs: vec![output("boxes", 31.42), output("scores", f64::INFINITY)],
            n_calibration: 240,
            n_holdout: 60,
            notes: vec!["1 of 54 operators stays float".into()],
            is_floor_met: true,
            ..Report::default()
        };
        Summary {
            input: "in.onnx".into(),
            output: "out.onnx".into(),
            target: "ort-cpu".into(),
            method: "mse".into(),
            is_static: true,
            bytes: (97_500_000, 24_600_000),
            report,
            elapsed: Duration::from_millis(12_400),
            stages: Vec::new(),
            peak_memory: Some(610_000_000),
        }
    }

    #[test]
    fn table_of_a_large_model() {
        let expected = "\
in.onnx -> out.onnx   target ort-cpu, mse, 240 samples (+60 held out)
                      before       after
 size                 97.5 MB      24.6 MB      (3.96x smaller)
 opset / IR           9 / 3        13 / 7
 nodes                415          318          QuantizeLinear 75, DequantizeLinear 204
 int8 operators       -            60           Conv 52 of 53, Gemm 1 of 1
 MACs in int8         -            99.8 %
 kept in float        -            4
                      Conv \"/stem\": excluded by --nodes-to-exclude /stem
                      Mul x2: no integer kernel
                      Softmax \"/a\": nothing after it runs in integers
 output error         boxes: SQNR 31.4 dB, cosine 0.99962, max abs 1.250e-2, worst channel 12.3 dB, same top-1 98.3 %
                      scores: SQNR exact, cosine 0.99962, max abs 1.250e-2, worst channel 12.3 dB, same top-1 98.3 %
 note                 1 of 54 operators stays float
 time / peak memory   12.4 s / 610.0 MB
";
        assert_eq!(summary().table(), expected);
    }

    #[test]
    fn what_was_not_measured_is_not_claimed() {
        let mut s = summary();
        s.report.outputs.clear();
        s.report.holdout_is_calibration = true;
        s.bytes = (80, 100);
        s.peak_memory = None;
        let table = s.table();
        for line in [
            " output error         not measured: no output could be computed",
            "240 samples (none held out)",
            "measured on the calibration samples",
            "(1.25x larger)",
            " time                 12.4 s",
        ] {
            assert!(table.contains(line), "{line:?} is missing in\n{table}");
        }
    }
}
