//! `check`: what is wrong with a quantized model, by the specification and for a target.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::session::{Session, print, print_json};
use crate::error::{Result, anyhow};
use crate::quant::check::{self, Finding, Severity};
use crate::quant::target::Target;

/// Findings of one rule that are printed without `-v`.
const MAX_LINES: usize = 5;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model
    #[arg(value_name = "MODEL.onnx", required_unless_present = "rules")]
    model: Option<PathBuf>,
    /// The runtime that it is for; without one only the rules that hold everywhere are checked
    #[arg(short, long, value_name = "TARGET", value_parser = super::targets::names())]
    target: Option<String>,
    /// List the rules
    #[arg(long)]
    rules: bool,
}

pub(super) fn run(args: &Args, session: &mut Session) -> Result<ExitCode> {
    if args.rules {
        list(session)?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = args.model.as_deref().ok_or_else(|| anyhow!("no model was given"))?;
    let target = args.target.as_deref().map(Target::named).transpose()?;
    let model = session.read(path)?;
    session.flush();
    let found = check::check(&model, target.as_ref());
    if session.json {
        let findings: Vec<_> = found
            .iter()
            .map(|f| {
                json!({ "code": f.code, "severity": severity(f), "node": f.location.node, "tensor": f.location.value,
                        "message": f.message })
            })
            .collect();
        let target = target.as_ref().map(|t| &t.name);
        let model = path.display().to_string();
        print_json(&json!({ "schema": 1, "model": model, "target": target, "findings": findings }))?;
    } else if !session.quiet {
        print(&text(&found, session.verbose > 0))?;
    }
    Ok(ExitCode::from(if found.is_empty() { 0 } else { 3 }))
}

fn severity(f: &Finding) -> &'static str {
    match f.severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// The findings, a few of each rule, and how many there are.
fn text(found: &[Finding], all: bool) -> String {
    let mut t = String::new();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for f in found {
        let n = seen.entry(f.code).or_default();
        *n += 1;
        if all || *n <= MAX_LINES {
            let _ = writeln!(t, "{f}");
        }
    }
    for (code, n) in seen.iter().filter(|(_, n)| !all && **n > MAX_LINES) {
        let _ = writeln!(t, "{code}: {} more (-v lists all)", n - MAX_LINES);
    }
    let errors = found.iter().filter(|f| f.severity == Severity::Error).count();
    let _ = match found.len() {
        0 => writeln!(t, "no findings"),
        n => writeln!(t, "{errors} errors, {} warnings", n - errors),
    };
    t
}

fn list(session: &Session) -> Result<()> {
    if session.json {
        let rules: Vec<_> = check::rules().map(|r| json!({ "code": r.code, "about": r.about })).collect();
        return print_json(&json!({ "schema": 1, "rules": rules }));
    }
    let mut t = String::new();
    for r in check::rules() {
        let _ = writeln!(t, "{:<30} {}", r.code, r.about);
    }
    print(&t)
}
