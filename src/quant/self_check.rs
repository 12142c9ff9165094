//! What every emitted model goes through before anyone sees it: all rules of [`check`](super::check), against what the
//! input model already broke.

use std::collections::BTreeSet;

use super::check::{self, Finding, Severity};
use super::config::Config;
use crate::diag::Sink;
use crate::error::{Location, Result, WithHelp, bail};
use crate::ir::Model;

/// The rules that a model broke before it was touched.
pub(super) struct SelfCheck {
    inherited: BTreeSet<(&'static str, Location)>,
}

impl SelfCheck {
    /// Looks at the input model. Exporters declare wrong shapes, and runtimes run such models: what was wrong from the
    /// start, in the same place, is not ours to refuse.
    pub(super) fn of(input: &Model) -> Self {
        let found = check::check(input, None).into_iter();
        let errors = found.filter(|f| f.severity == Severity::Error);
        SelfCheck { inherited: errors.map(|f| (f.code, f.location)).collect() }
    }

    /// Notes what the target will run slower than it could.
    ///
    /// # Errors
    /// The emitted model breaks a rule of the specification or is refused by its target, where the input model did not.
    pub(super) fn verify(&self, emitted: &Model, config: &Config, sink: &mut Sink) -> Result<()> {
        let is_ours =
            |f: &Finding| f.severity == Severity::Error && !self.inherited.contains(&(f.code, f.location.clone()));
        let (errors, notes): (Vec<_>, Vec<_>) =
            check::check(emitted, Some(&config.target)).into_iter().partition(is_ours);
        for f in notes {
            sink.note(f.code, f.location, f.message);
        }
        if errors.is_empty() {
            return Ok(());
        }
        let text: Vec<String> = errors.iter().take(5).map(ToString::to_string).collect();
        let e: Result<()> = (|| bail!("the emitted model fails the self-check: {}", text.join("; ")))();
        e.help(|| "report this with the model; --nodes-to-exclude on the named node avoids it".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text_parse::parse;

    fn model(output: &str) -> Model {
        let text = format!(
            r#"<ir_version: 8, opset_import: ["" : 13]>
            g (float[2,3] x) => ({output} y) {{ y = Relu (x) }}"#
        );
        parse(&text).unwrap()
    }

    #[test]
    fn what_was_wrong_from_the_start_is_not_refused() {
        let (right, wrong) = (model("float[2,3]"), model("float[2]"));
        let config = Config::new("ort-cpu").unwrap();
        let verify = |input: &Model, emitted: &Model| {
            let mut sink = Sink::default();
            let verdict = SelfCheck::of(input).verify(emitted, &config, &mut sink);
            (verdict.map_err(|e| format!("{e:#}")), sink.diagnostics().len())
        };
        assert_eq!(verify(&right, &right), (Ok(()), 0));
        assert_eq!(verify(&wrong, &wrong), (Ok(()), 1));
        let refused = verify(&right, &wrong).0.unwrap_err();
        assert!(refused.contains("stale-value-info") && refused.contains("\"y\""), "{refused}");
    }
}
