//! `--dump-ir`: prints the model between two steps.

use crate::error::Result;
use crate::ir::{Model, dot, json, text};
use crate::passes;

/// What to print and when.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Debugging")]
pub(super) struct Args {
    /// Print the model, after the last step or the one that --dump-ir-after names
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    dump_ir: Option<Format>,
    /// The step to print after: load, prepare, quantize or the name of a pass
    #[arg(long, value_name = "STAGE")]
    dump_ir_after: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// ONNX's textual syntax
    Text,
    /// Graphviz
    Dot,
    /// JSON
    Json,
}

/// Stages besides passes, in order.
const STAGES: &[&str] = &["load", "prepare", "quantize"];

/// Keeps the text of the latest stage that was asked for.
pub(super) struct Dump {
    format: Option<Format>,
    after: Option<String>,
    text: Option<String>,
}

impl Dump {
    pub(super) fn new(args: &Args) -> Result<Self> {
        let format = args.dump_ir.or(args.dump_ir_after.is_some().then_some(Format::Text));
        let after = args.dump_ir_after.as_ref().map(|a| a.replace('-', "_"));
        if let Some(after) = &after
            && !STAGES.contains(&after.as_str())
            && passes::find(after).is_none()
        {
            let names: Vec<&str> = STAGES.iter().copied().chain(passes::ALL.iter().map(|p| p.info().name)).collect();
            return super::session::usage(format!("unknown stage \"{after}\"; there are: {}", names.join(", ")));
        }
        Ok(Dump { format, after, text: None })
    }

    /// Whether the model goes to standard output, so that nothing else may.
    pub(super) fn is_wanted(&self) -> bool {
        self.format.is_some()
    }

    /// Sees the model after a stage or pass.
    pub(super) fn see(&mut self, stage: &str, model: &Model) {
        let Some(format) = self.format else { return };
        // Without a stage the last one is wanted; passes between stages are not worth printing for it.
        let is_wanted = self.after.as_ref().map_or(STAGES.contains(&stage), |a| a == stage);
        if is_wanted {
            self.text = Some(match format {
                Format::Text => text::print(model, &text::PrintOptions::default()),
                Format::Dot => dot::print(model),
                Format::Json => json::print(model),
            });
        }
    }

    /// Prints what was seen.
    pub(super) fn print(&mut self) -> Result<()> {
        if let Some(text) = self.text.take() {
            super::session::print(&text)?;
            if !text.ends_with('\n') {
                super::session::print("\n")?;
            }
        } else if let (Some(_), Some(after)) = (self.format, &self.after) {
            crate::error::bail!("pass {after} changed nothing, so there is nothing to print after it");
        }
        Ok(())
    }
}
