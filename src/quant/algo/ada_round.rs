//! Adaptive rounding of integer weights: which way each weight is rounded is chosen by what it costs at the output, not by
//! which integer is nearer.
//!
//! Paper: Nagel et al. 2020, *Up or Down? Adaptive Rounding for Post-Training Quantization*. As there, the loss of an
//! output channel is `(w - q)ᵀ H (w - q)` with the second moments `H = E[x xᵀ]` of its inputs. The paper relaxes the choice
//! and descends by gradients over samples; from `H` the exact change of the loss by one step of one weight is at hand, so
//! that here each weight in turn takes the step that lowers the loss, until none does (Behdin et al. 2023, *QuantEase*,
//! does the same). There is nothing random in it, and it takes seconds.
//!
//! Use: [`moments::needs`](super::moments::needs) and [`moments::gather`](super::moments::gather), then [`apply`] on a
//! plan whose scales are final. It starts from the plan's integers: from rounding to nearest, or from what
//! [`super::gptq`] chose. There it finds another 0.1 dB on the moments, which other samples do not confirm: it is an
//! alternative to that, not a second step.

use super::compensate::damping;
use super::matrix::Matrix;
use super::moments::{Gathered, Moments};
use super::{What, add_scaled};
use crate::error::Result;
use crate::ir::Model;
use crate::kernels::{self, Slots};
use crate::quant::plan::{Decision, NodePlace, QuantPlan};
use crate::quant::scheme::WeightForm;
use crate::tensor::affine;

/// Rounds over all weights of a channel; most channels are done after three.
const SWEEPS: usize = 12;

/// Rounds the weight of every integer node whose moments are known as a whole. `bias_takes_mean` says whether the mean
/// error of a node will be taken out by its bias ([`super::bias_correct`]): then only the rest counts.
///
/// # Errors
/// A stored tensor cannot be read.
pub fn apply(
    model: &Model,
    plan: &mut QuantPlan,
    gathered: &Gathered,
    bias_takes_mean: &dyn Fn(NodePlace) -> bool,
) -> Result<Vec<What>> {
    let mut done = Vec::new();
    for n in plan.nodes.iter_mut().filter(|n| n.decision == Decision::Integer) {
        let Some(w_plan) = &mut n.weight else { continue };
        let (Some(seen), Some(matrix)) = (gathered.of(n.place), Matrix::of(model, n.place)) else { continue };
        if seen.len() != matrix.groups || !seen.iter().all(|m| m.is_full() && m.k == matrix.k) {
            continue;
        }
        let moments: Vec<Moments> =
            if bias_takes_mean(n.place) { seen.iter().map(Moments::centered).collect() } else { seen.to_vec() };
        let order: Vec<Vec<usize>> = moments.iter().map(by_energy).collect();
        let Some(mut q) = matrix.integers(w_plan)? else { continue };
        let k = matrix.k;
        let form = w_plan.params.form;
        let steps: Vec<(f32, i32)> = (0..matrix.rows).map(|row| Matrix::step(w_plan, row)).collect();
        let rows = Slots::new(&mut q);
        let sums = kernels::map(matrix.rows, |row| {
            let group = row / matrix.rows_per_group();
            let w = &matrix.data[row * k..][..k];
            descend(w, (form, steps[row]), rows.chunk(row, k), &moments[group], &order[group])
        });
        let (before, after) = sums.iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        if let Some(what) = What::new(n.place, before, after) {
            w_plan.rounded = Some(matrix.stored(w_plan, q)?);
            done.push(what);
        }
    }
    Ok(done)
}

/// The inputs of a row, those that matter most first.
fn by_energy(m: &Moments) -> Vec<usize> {
    let mut order: Vec<usize> = (0..m.k).collect();
    order.sort_by(|&a, &b| m.energy[b].total_cmp(&m.energy[a]).then(a.cmp(&b)));
    order
}

/// Steps the integers of one row until no single step lowers the loss. Gives the loss before and after, with the damping
/// that keeps the choice from following the samples' noise.
fn descend(
    w: &[f32],
    (form, (scale, zero)): (WeightForm, (f32, i32)),
    q: &mut [i32],
    m: &Moments,
    order: &[usize],
) -> (f64, f64) {
    let value = |q: i32| affine::dequantize_one(q, scale, zero);
    let k = w.len();
    let damping = (damping(k, m.rows) * m.energy.iter().sum::<f64>() / k.max(1) as f64) as f32;
    let error: Vec<f32> = w.iter().zip(q.iter()).map(|(w, &q)| w - value(q)).collect();
    // Half the gradient of the loss by the error.
    let mut slope: Vec<f32> = error.iter().map(|e| e * damping).collect();
    for (row, &e) in m.h.chunks_exact(k).zip(&error) {
        add_scaled(&mut slope, row, e);
    }
    let loss = |error: &[f32], slope: &[f32]| -> f64 {
        error.iter().zip(slope).map(|(e, s)| f64::from(*e) * f64::from(*s)).sum()
    };
    let before = loss(&error, &slope);
    for _ in 0..SWEEPS {
        let mut changed = false;
        for &i in order {
            // A step up lowers the error by the scale.
            let up = slope[i] > 0.0;
            let next = if up { q[i] + 1 } else { q[i] - 1 };
            let step = if up { -scale } else { scale };
            let curvature = m.h[i * k + i] + damping;
            // Only up or down of the weight itself, as in the paper: further away lies what fits the samples alone.
            let from_weight = (w[i] - value(next)).abs();
            // What is 0 stays 0: pruning is not undone.
            let allowed = w[i] != 0.0 && (from_weight < scale || from_weight < (w[i] - value(q[i])).abs());
            if curvature > 0.0
                && allowed
                && (form.low..=form.high).contains(&next)
                && 2.0 * step * slope[i] + step * step * curvature < 0.0
            {
                q[i] = next;
                add_scaled(&mut slope, &m.h[i * k..][..k], step);
                slope[i] += step * damping;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let error: Vec<f32> = w.iter().zip(q.iter()).map(|(w, &q)| w - value(q)).collect();
    (before, loss(&error, &slope))
}
