//! Rules that a quantized model has to keep: those of the specification that ONNX's checker does not look at, and those
//! of a target, whose breach makes a runtime refuse the model, run it in float, or compute nonsense.
//!
//! Every emitted model goes through all of them; `onnx-quant check` applies them to any model.
//!
//! **Add a rule:** a function in `spec.rs` (ONNX), `pairs.rs` (what the numbers mean) or `runtime.rs` (a target) and
//! a line in that file's `RULES`.

mod pairs;
mod runtime;
mod spec;
mod view;

use crate::diag::Sink;
use crate::error::Location;
use crate::ir::Model;
use crate::quant::target::Target;

use view::View;

/// How bad a breach is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The model loads and computes what it should, slower or less accurately than it could.
    Warning,
    /// The model is not valid, is refused, or computes something else.
    Error,
}

/// A breach of a rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The rule's stable kebab-case code.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Where.
    pub location: Location,
    /// What is wrong: one phrase without a final dot.
    pub message: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}[{}]: ", self.code)?;
        if self.location != Location::default() {
            write!(f, "{}: ", self.location)?;
        }
        f.write_str(&self.message)
    }
}

/// One rule.
pub struct Rule {
    /// Stable kebab-case code.
    pub code: &'static str,
    /// How bad a breach is, as a rule: a target that refuses what it does not run makes errors of warnings.
    pub severity: Severity,
    /// What has to hold, in one line.
    pub about: &'static str,
    /// Finds the breaches.
    find: Find,
}

/// What a rule looks at.
#[derive(Clone, Copy)]
enum Find {
    /// The model as a whole.
    Model(fn(&Model, &mut Found)),
    /// What inference had to say about it.
    Inference(fn(&Sink, &mut Found)),
    /// Every graph of it.
    Graph(fn(&View<'_>, &mut Found)),
    /// Every graph, with a target in mind.
    Target(fn(&View<'_>, &Target, &mut Found)),
}

/// Breaches of one rule: where and what.
type Found = Vec<(Location, String)>;

/// A rule about a model whatever it is to run on.
const fn rule(code: &'static str, severity: Severity, about: &'static str, find: Find) -> Rule {
    Rule { code, severity, about, find }
}

/// Every rule, in the order in which breaches are reported.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    spec::RULES.iter().chain(pairs::RULES).chain(runtime::RULES)
}

/// The breaches of all rules, and of a target's with one; empty when the model is sound.
#[must_use]
pub fn check(model: &Model, target: Option<&Target>) -> Vec<Finding> {
    // Rules see what inference finds, whatever the file declares. A graph that has no order is a breach of its own.
    let (mut inferred, mut sink) = (model.clone(), Sink::default());
    let _ = crate::infer::infer(&mut inferred, &mut sink);
    let views: Vec<View<'_>> = inferred.graph_ids().map(|id| View::new(&inferred, id)).collect();
    let mut out = Vec::new();
    for rule in rules() {
        let mut found = Found::new();
        match (rule.find, target) {
            (Find::Model(f), _) => f(model, &mut found),
            (Find::Inference(f), _) => f(&sink, &mut found),
            (Find::Graph(f), _) => views.iter().for_each(|v| f(v, &mut found)),
            (Find::Target(f), Some(t)) => views.iter().for_each(|v| f(v, t, &mut found)),
            (Find::Target(_), None) => {}
        }
        let is_refused = matches!(rule.find, Find::Target(_)) && target.is_some_and(|t| t.strict);
        let severity = if is_refused && runtime::is_refusal(rule.code) { Severity::Error } else { rule.severity };
        let finding = |(location, message)| Finding { code: rule.code, severity, location, message };
        out.extend(found.into_iter().map(finding));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_kebab_case() {
        let mut codes: Vec<_> = rules().map(|r| r.code).collect();
        let n = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), n);
        assert!(codes.iter().all(|c| c.chars().all(|c| c.is_ascii_lowercase() || c == '-' || c.is_ascii_digit())));
        assert!(rules().all(|r| !r.about.ends_with('.')));
    }
}
