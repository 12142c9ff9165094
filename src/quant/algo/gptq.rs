//! Error-compensating rounding of integer weights: the integers of each output channel are chosen one after the other so
//! that later ones make up at the output for what earlier ones lost.
//!
//! Paper: Frantar et al. 2023, *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers*; the
//! procedure itself is in [`super::compensate`]. Works on `Conv` (also grouped and depthwise), `Gemm` and `MatMul`.
//!
//! Use: [`moments::needs`](super::moments::needs) and [`moments::gather`](super::moments::gather), then [`apply`] on a
//! plan whose scales are final. A channel keeps its integers where the new ones are not predicted to lose less.

use super::What;
use super::compensate::{Factor, Grid, Order, compensate, damping, losses};
use super::matrix::Matrix;
use super::moments::{Gathered, Moments};
use crate::error::Result;
use crate::ir::Model;
use crate::kernels;
use crate::quant::plan::{Decision, NodePlace, QuantPlan, WeightPlan};
use crate::quant::scheme::WeightForm;
use crate::tensor::affine;

/// Integers with a scale and a zero point for each row. A weight that is 0 stays 0: pruning is not undone.
struct Integers<'a> {
    form: WeightForm,
    steps: Vec<(f32, i32)>,
    weights: &'a [f32],
    k: usize,
}

impl Grid for Integers<'_> {
    fn round(&self, row: usize, k: usize, x: f32) -> (i32, f32) {
        let (scale, zero) = self.steps[row];
        let x = if self.weights[row * self.k + k] == 0.0 { 0.0 } else { x };
        let q = affine::quantize_one(x, scale, zero, self.form.low, self.form.high);
        (q, affine::dequantize_one(q, scale, zero))
    }
}

/// Rounds the weight of every integer node whose moments are known as a whole. `bias_takes_mean` says whether the mean
/// error of a node will be taken out by its bias ([`super::bias_correct`]): then only the rest counts.
///
/// # Errors
/// A stored tensor cannot be read, or the moments are not finite.
pub fn apply(
    model: &Model,
    plan: &mut QuantPlan,
    gathered: &Gathered,
    bias_takes_mean: &dyn Fn(NodePlace) -> bool,
    threads: usize,
) -> Result<Vec<What>> {
    let mut done = Vec::new();
    // Nodes that read the same input (query, key and value) come after each other and share the factors.
    let mut last: Option<((usize, bool), Vec<Factor>)> = None;
    for n in plan.nodes.iter_mut().filter(|n| n.decision == Decision::Integer) {
        let place = n.place;
        let Some(w_plan) = &mut n.weight else { continue };
        let (Some(source), Some(seen), Some(matrix)) =
            (gathered.source(place), gathered.of(place), Matrix::of(model, place))
        else {
            continue;
        };
        if seen.len() != matrix.groups || !seen.iter().all(|m| m.is_full() && m.k == matrix.k) {
            continue;
        }
        let centered = bias_takes_mean(place);
        let moments: Vec<Moments> = if centered { seen.iter().map(Moments::centered).collect() } else { seen.to_vec() };
        if last.as_ref().is_none_or(|(key, _)| *key != (source, centered)) {
            last = Some(((source, centered), factors(&moments, threads)?));
        }
        let Some((_, factors)) = &last else { continue };
        done.extend(round(&matrix, w_plan, &moments, factors, threads)?.and_then(|(b, a)| What::new(place, b, a)));
    }
    Ok(done)
}

fn factors(moments: &[Moments], threads: usize) -> Result<Vec<Factor>> {
    let inner = if moments.len() > 1 { 1 } else { threads };
    kernels::try_map(moments.len(), |i| {
        let m = &moments[i];
        Factor::new(inner, &m.h, m.k, Order::Energy, damping(m.k, m.rows))
    })
}

/// Rounds one weight, group by group. Gives the noise power at the output before and after, summed over the channels.
fn round(
    matrix: &Matrix,
    plan: &mut WeightPlan,
    moments: &[Moments],
    factors: &[Factor],
    threads: usize,
) -> Result<Option<(f64, f64)>> {
    let (k, per_group) = (matrix.k, matrix.rows_per_group());
    let Some(old) = matrix.integers(plan)? else { return Ok(None) };
    let inner = if matrix.groups > 1 { 1 } else { threads };
    let parts = kernels::try_map(matrix.groups, |group| {
        let first = group * per_group;
        let steps = (first..first + per_group).map(|row| Matrix::step(plan, row)).collect();
        let (w, h) = (matrix.group(group), &moments[group].h);
        let grid = Integers { form: plan.params.form, steps, weights: w, k };
        let mut new = compensate(inner, w, &factors[group], &grid)?;
        let old = &old[first * k..][..per_group * k];
        let error = |q: &[i32]| {
            let value = |i: usize| affine::dequantize_one(q[i], grid.steps[i / k].0, grid.steps[i / k].1);
            losses(inner, &(0..w.len()).map(|i| w[i] - value(i)).collect::<Vec<_>>(), h, k)
        };
        let (before, mut after) = (error(old), error(&new));
        for row in 0..per_group {
            if after[row] >= before[row] {
                new[row * k..][..k].copy_from_slice(&old[row * k..][..k]);
                after[row] = before[row];
            }
        }
        Ok((new, before.iter().sum::<f64>(), after.iter().sum::<f64>()))
    })?;
    let (before, after) = parts.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.1, sum.1 + p.2));
    if after >= before {
        return Ok(None);
    }
    plan.rounded = Some(matrix.stored(plan, parts.into_iter().flat_map(|p| p.0).collect())?);
    Ok(Some((before, after)))
}
