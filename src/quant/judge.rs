//! What is asked of a model's accuracy, judged on held-out samples: the floor of the SQNR and the drop that a run may
//! cost. One place decides for every plan that is tried and by how much the next has to be better.

use super::config::Config;
use super::labels::{Scorer, Scores};
use super::measure::{OutputError, Reference, worst_drop, worst_sqnr};
use super::report::Report;
use super::solve::compile;
use super::{Data, MAX_HOLDOUT};
use crate::error::Result;
use crate::interp::Program;
use crate::ir::Model;

/// By how much a model must be over the floor on held-out samples, in dB.
const HELD_OUT_MARGIN_DB: f64 = 1.0;

/// Judges models on held-out samples.
pub(super) struct Judge<'a> {
    config: &'a Config,
    reference: Reference<'a>,
    asks_all: bool,
    /// For labels, and what the float model scores by them.
    scorer: Option<(Scorer<'a>, f64)>,
}

/// What held-out samples say of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Verdict {
    /// SQNR of the worst output.
    pub(super) db: f64,
    /// What the model loses by the metric, as a share; `None` where nothing can be judged.
    pub(super) drop: Option<f64>,
    /// By how many dB the outputs are below the floor; at most 0 when they are not.
    pub(super) below_db: f64,
    /// By how much the drop is more than was allowed; at most 0 when it is not.
    pub(super) excess: f64,
}

impl Verdict {
    /// Whether everything that was asked for holds.
    pub(super) fn holds(&self) -> bool {
        self.below_db <= 0.0 && self.excess <= 0.0
    }

    /// Whether more of what was asked for holds than in another.
    pub(super) fn is_better(&self, other: &Verdict) -> bool {
        let key = |v: &Verdict| (v.excess.max(0.0), v.below_db.max(0.0), -v.db);
        let (a, b) = (key(self), key(other));
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.total_cmp(&b.2)).is_lt()
    }
}

impl<'a> Judge<'a> {
    /// Runs the float model on the samples held out.
    pub(super) fn new(float: &Program, config: &'a Config, data: &Data<'a>) -> Result<Self> {
        let reference = Reference::new(float, data.holdout, MAX_HOLDOUT, config.threads)?;
        let asks_all = reference.len() == data.holdout.len().min(MAX_HOLDOUT);
        let scorer = match data.labels.filter(|_| config.max_drop.is_some()) {
            Some(labels) => {
                let scorer = Scorer::new(float, data.holdout, &labels.held_out, labels.metric, config.threads)?;
                let float = scorer.score(float, config.threads)?;
                Some((scorer, float))
            }
            None => None,
        };
        Ok(Judge { config, reference, asks_all, scorer })
    }

    /// Whether no sample held out was left aside, so that the errors are those of the result.
    pub(super) fn asks_all(&self) -> bool {
        self.asks_all
    }

    /// Runs a quantized model on the samples held out; the error of each output comes with the verdict.
    pub(super) fn verdict(&self, emitted: &Model) -> Result<(Verdict, Vec<OutputError>)> {
        let program = compile(emitted)?;
        let errors = self.reference.compare(&program, MAX_HOLDOUT, self.config.threads)?;
        let drop = match &self.scorer {
            Some((scorer, float)) => {
                let quantized = scorer.score(&program, self.config.threads)?;
                Some(Scores { float: *float, quantized, samples: scorer.len() }.drop(scorer.metric()))
            }
            None => worst_drop(&errors),
        };
        let excess = self.config.max_drop.zip(drop).map_or(f64::NEG_INFINITY, |(most, drop)| drop - most);
        Ok((Verdict { db: worst_sqnr(&errors), drop, below_db: self.below(&errors), excess }, errors))
    }

    fn below(&self, errors: &[OutputError]) -> f64 {
        self.config.min_sqnr_db + HELD_OUT_MARGIN_DB - worst_sqnr(errors)
    }
}

/// What a finished run loses on held-out samples, as a share: by the labels, or without any, the share of the rows in
/// which another class comes first. `None` where no output looks like class scores.
#[must_use]
pub fn drop_of(report: &Report) -> Option<f64> {
    match &report.judged {
        Some(j) => Some(j.held_out.drop(j.metric)),
        None => worst_drop(&report.outputs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_decides_before_what_was_not() {
        let v = |excess, below_db, db| Verdict { db, drop: None, below_db, excess };
        assert!(v(-0.1, 0.0, 20.0).holds() && !v(0.01, -5.0, 40.0).holds() && !v(-0.1, 0.1, 20.0).holds());
        // In this order: each is better than the next.
        let order =
            [v(-1.0, -9.0, 30.0), v(0.0, -8.0, 29.0), v(-0.1, 2.0, 19.0), v(0.1, -9.0, 30.0), v(0.2, -9.0, 31.0)];
        for pair in order.windows(2) {
            assert!(pair[0].is_better(&pair[1]) && !pair[1].is_better(&pair[0]), "{pair:?}");
        }
    }
}
