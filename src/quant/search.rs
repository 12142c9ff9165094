//! Which operators stay float so that the model is not noise: the fewest that bring the output error over the floor.
//!
//! The error of each operator alone, measured at the outputs, ranks them; errors of different operators add up nearly
//! as independent noise does, so leaving out the loudest first needs few tries. Every try is verified by running the
//! model that it gives.

use rayon::prelude::*;

use super::Data;
use super::annotate::Excluded;
use super::measure::{Reference, worst_sqnr};
use super::plan::{Decision, NodePlace, QuantPlan};
use super::progress::Progress;
use super::report::Report;
use super::solve::{Solver, compile};
use crate::error::Result;
use crate::interp::Program;
use crate::ir::Model;

/// Samples that choices are verified on.
const TUNE_SAMPLES: usize = 16;
/// Samples that single operators are ranked on.
const RANK_SAMPLES: usize = 4;
/// What choices must reach above the floor, in dB, since they are measured on other samples than the result.
const MARGIN_DB: f64 = 1.0;

/// The plan to carry out, and the model that it gives.
///
/// # Errors
/// A plan cannot be carried out, or a model does not run.
pub fn choose(
    solver: &mut Solver<'_>,
    float: &Program,
    excluded: Excluded,
    data: &Data<'_>,
    progress: &dyn Progress,
    report: &mut Report,
) -> Result<(QuantPlan, Model)> {
    let threads = solver.config.threads;
    let plan = solver.plan(&excluded)?;
    let emitted = solver.emit(&plan)?;
    let reference = Reference::new(float, data.calibration, TUNE_SAMPLES, threads)?;
    let floor = solver.config.min_sqnr_db + MARGIN_DB;
    let score =
        |model: &Model| -> Result<f64> { Ok(worst_sqnr(&reference.compare(&compile(model)?, TUNE_SAMPLES, threads)?)) };
    let all = score(&emitted)?;
    if all >= floor || plan.n_integer() == 0 {
        return Ok((plan, emitted));
    }
    let ranked = rank(solver, &reference, &plan, &excluded, progress)?;
    // The shortest prefix of the ranking that brings the model over the floor, by bisection.
    let try_first = |k: usize| -> Result<(QuantPlan, Model, f64)> {
        let mut out = excluded.clone();
        for (place, db) in &ranked[..k] {
            out.insert(*place, ("accuracy", format!("costs too much accuracy: {db:.1} dB alone")));
        }
        let plan = solver.plan(&out)?;
        let model = solver.emit(&plan)?;
        let db = score(&model)?;
        Ok((plan, model, db))
    };
    let (mut low, mut high) = (0, ranked.len());
    let mut best = try_first(high)?;
    progress.begin("searching", (usize::BITS - ranked.len().leading_zeros()).into());
    while high - low > 1 {
        let mid = usize::midpoint(low, high);
        let tried = try_first(mid)?;
        progress.advance(1);
        if tried.2 >= floor {
            high = mid;
            best = tried;
        } else {
            low = mid;
        }
    }
    progress.end();
    let (plan, model, db) = best;
    report.notes.push(format!(
        "{high} of {} operators stay float to lift the output SQNR from {all:.1} to {db:.1} dB (floor {:.1} dB)",
        ranked.len(),
        solver.config.min_sqnr_db
    ));
    Ok((plan, model))
}

/// Weighted operators by the output SQNR that the model has when they alone run in integers, worst first.
fn rank(
    solver: &Solver<'_>,
    reference: &Reference,
    plan: &QuantPlan,
    excluded: &Excluded,
    progress: &dyn Progress,
) -> Result<Vec<(NodePlace, f64)>> {
    let weighted: Vec<NodePlace> =
        plan.nodes.iter().filter(|n| n.decision == Decision::Integer && n.weight.is_some()).map(|n| n.place).collect();
    progress.begin("ranking operators", weighted.len() as u64);
    let mut ranked = weighted
        .par_iter()
        .map(|&alone| {
            let mut others = excluded.clone();
            for &p in weighted.iter().filter(|&&p| p != alone) {
                others.insert(p, ("accuracy", String::new()));
            }
            let plan = solver.plan(&others)?;
            let model = solver.emit(&plan)?;
            let db = worst_sqnr(&reference.compare(&compile(&model)?, RANK_SAMPLES, 1)?);
            progress.advance(1);
            Ok((alone, db))
        })
        .collect::<Result<Vec<_>>>()?;
    progress.end();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    Ok(ranked)
}
