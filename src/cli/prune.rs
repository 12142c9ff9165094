//! Options of pruning.

use crate::quant::prune::{By, Pattern, Pruning};

/// Which weights become zero.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Make weights zero first: a share of each from 0 to 1, or 2:4. With --calib the others make up for it
    #[arg(long, value_name = "SHARE|2:4", value_parser = sparsity)]
    sparsity: Option<Pattern>,
    /// Which become zero
    #[arg(long, value_name = "WHAT", default_value = "magnitude", requires = "sparsity")]
    prune_by: Measure,
}

/// By what weights are pruned.
#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
enum Measure {
    /// The smallest
    Magnitude,
    /// Those without which the outputs change least, to first order; needs --calib
    Gradient,
}

impl Args {
    /// What was asked for.
    pub(super) fn choice(&self) -> Option<Pruning> {
        let by = if self.prune_by == Measure::Gradient { By::Gradient } else { By::Magnitude };
        self.sparsity.map(|pattern| Pruning { pattern, by })
    }
}

fn sparsity(text: &str) -> Result<Pattern, String> {
    match text.parse::<f64>() {
        Ok(f) if (0.0..1.0).contains(&f) => Ok(Pattern::Share(f)),
        _ if text == "2:4" => Ok(Pattern::TwoInFour),
        _ => Err("expected a number from 0 to 1 (not included), or 2:4".into()),
    }
}
