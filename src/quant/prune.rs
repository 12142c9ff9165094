//! Pruning: the weights that matter least become zero, for runtimes with sparse kernels and for files that compress; with
//! data, the weights that are left make up for them.
//!
//! What a weight matters is its magnitude, or what the outputs lose to first order without it: `w² E[(∂y/∂w)²]` (LeCun et
//! al. 1990, *Optimal Brain Damage*, with the outputs' own curvature), from a few passes back through the network with
//! random signs at the outputs. Paper of the pattern of 2 in 4: Mishra et al. 2021, *Accelerating Sparse Deep Neural
//! Networks*. The rest of a row then becomes the least-squares solution for its output (Hassibi and Stork 1993, *Optimal
//! Brain Surgeon*, for all that is pruned at once), which needs no inverse.

use std::collections::BTreeMap;

use super::algo::add_scaled;
use super::algo::compensate::DAMPING;
use super::algo::matrix::Matrix;
use super::algo::moments::{self, Gathered, Limits, Moments};
use super::noise::signs;
use super::plan::{NodePlace, Place};
use super::report::Report;
use crate::calibrate::dataset::Dataset;
use crate::error::{Context, Result, ensure};
use crate::interp::reverse::{Gradient, Recorder};
use crate::ir::{Def, GraphId, Model, NodeId, ValueId};
use crate::kernels;
use crate::ops::{QuantRule, WeightAxis, lookup};
use crate::tensor::{DType, Tensor};

/// Which weights may become zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pattern {
    /// This share of each weight, wherever.
    Share(f64),
    /// Two of every four in a row along the inputs.
    TwoInFour,
}

/// By what weights are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum By {
    /// The smallest.
    #[default]
    Magnitude,
    /// Those that the outputs lose least without, to first order; needs data.
    Gradient,
}

/// What is pruned how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pruning {
    /// Which weights may become zero.
    pub pattern: Pattern,
    /// By what they are chosen.
    pub by: By,
}

/// What was pruned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Stored weights.
    pub n_weights: usize,
    /// Their elements.
    pub elements: usize,
    /// Those that are zero now.
    pub zeros: usize,
    /// Weights whose other elements make up for that.
    pub compensated: usize,
}

/// Samples that gradients are taken from.
const SAMPLES: usize = 8;
/// Passes back for each of them.
const PASSES: u64 = 4;
/// Most rounds in which the elements of a row make up for those that are zero, and the share of the first round's gain
/// below which another is not worth it.
const SWEEPS: usize = 32;
const LEAST_GAIN: f32 = 1e-3;

/// Prunes a prepared float model, by its own statistics on the samples where there are any, and says so.
///
/// # Errors
/// Gradients are wanted without samples, or the model does not run on them.
pub fn apply(model: &mut Model, how: Pruning, data: &dyn Dataset, threads: usize, report: &mut Report) -> Result<()> {
    ensure!(how.by == By::Magnitude || !data.is_empty(), "pruning by gradient needs samples (--calib DATA)");
    let weights = weights(model);
    let scores = if how.by == By::Gradient { saliency(model, &weights, data, threads)? } else { Scores::new() };
    let seen = if data.is_empty() {
        None
    } else {
        let needs = moments::needs_of(model, weights.iter().map(|w| w.node), model);
        Some(moments::gather(model, &needs, data, Limits::default(), threads)?)
    };
    let done = prune(model, how.pattern, &weights, &scores, seen.as_ref())?;
    report.notes.push(format!(
        "{} of {} weights are zero in {} tensors (--sparsity), the others of {} make up for it",
        done.zeros, done.elements, done.n_weights, done.compensated
    ));
    let n_blind = weights.iter().filter(|w| !scores.contains_key(&w.place)).count();
    if how.by == By::Gradient && n_blind > 0 {
        report.notes.push(format!("no gradient reaches {n_blind} of the tensors: pruned by magnitude"));
    }
    Ok(())
}

/// A stored float weight that weighted operators alone read.
struct Stored {
    place: Place,
    /// The axis that its inputs are counted on.
    axis: usize,
    /// The first of its readers.
    node: NodePlace,
    has_one_reader: bool,
}

fn weights(model: &Model) -> Vec<Stored> {
    let mut out = Vec::new();
    for id in model.graph_ids() {
        let g = model.graph(id);
        for &v in g.initializers() {
            if let (Some(axis), [(n, _), rest @ ..]) = (input_axis(model, id, v), g.consumers(v).as_slice()) {
                out.push(Stored { place: (id, v), axis, node: (id, *n), has_one_reader: rest.is_empty() });
            }
        }
    }
    out
}

/// What each element of a weight matters.
type Scores = BTreeMap<Place, Vec<f32>>;

/// Prunes every weight, and lets what is left of it make up for that at the output where the moments of the inputs are
/// known.
fn prune(
    model: &mut Model,
    pattern: Pattern,
    weights: &[Stored],
    scores: &Scores,
    seen: Option<&Gathered>,
) -> Result<Pruned> {
    let mut out = Pruned::default();
    for stored in weights {
        let (id, v) = stored.place;
        let Def::Initializer(t) = &model.graph(id).value(v).def else { continue };
        let t = t.get()?;
        let (shape, float) = (t.shape().to_vec(), t.slice::<f32>()?.to_vec());
        let magnitude = || float.iter().map(|w| w.abs()).collect();
        let scores = scores.get(&stored.place).cloned().unwrap_or_else(magnitude);
        let mut w = float.clone();
        match pattern {
            Pattern::Share(f) => share(&mut w, &scores, f),
            Pattern::TwoInFour => two_in_four(&mut w, &scores, &shape, stored.axis),
        }
        if let Some(seen) = seen.filter(|_| stored.has_one_reader)
            && let Some(better) = compensated(model, stored.node, &w, seen)
        {
            w = better;
            out.compensated += 1;
        }
        out.n_weights += 1;
        out.elements += w.len();
        out.zeros += w.iter().filter(|w| **w == 0.0).count();
        model.graph_mut(id).set_def(v, Def::Initializer(Tensor::new(&shape, w)?.into()));
    }
    Ok(out)
}

/// The weight of a node, of which `pruned` has zeros in the place of some elements, with the other elements changed so
/// that least is lost at the output; `None` where nothing is known of its inputs.
fn compensated(model: &Model, node: NodePlace, pruned: &[f32], seen: &Gathered) -> Option<Vec<f32>> {
    let (matrix, moments) = (Matrix::of(model, node)?, seen.of(node)?);
    let k = matrix.k;
    if moments.len() != matrix.groups || !moments.iter().all(|m| m.is_full() && m.k == k) {
        return None;
    }
    let mut rows = matrix.in_rows(pruned);
    kernels::for_each_chunk(rayon::current_num_threads(), &mut rows, k, &|row, w| {
        refit(&matrix.data[row * k..][..k], w, &moments[row / matrix.rows_per_group()]);
    });
    Some(matrix.in_storage(rows))
}

/// Moves the elements of a row that are not zero to the least `(float - w)ᵀ H (float - w)`, by descent along one after the
/// other. Damping keeps them near what they were where the samples say little.
fn refit(float: &[f32], w: &mut [f32], m: &Moments) {
    let k = w.len();
    let damping = (DAMPING * m.energy.iter().sum::<f64>() / k.max(1) as f64) as f32;
    let kept: Vec<usize> = (0..k).filter(|&i| w[i] != 0.0).collect();
    // Half of what the loss falls by as an element grows.
    let mut slope = vec![0.0f32; k];
    for (i, (f, w)) in float.iter().zip(w.iter()).enumerate().filter(|(_, (f, w))| f != w) {
        add_scaled(&mut slope, &m.h[i * k..][..k], f - w);
    }
    let mut first = 0.0f32;
    for sweep in 0..SWEEPS {
        let mut gain = 0.0f32;
        for &i in &kept {
            let curvature = m.h[i * k + i] + damping;
            if curvature > 0.0 {
                let step = slope[i] / curvature;
                gain += step * slope[i];
                w[i] += step;
                add_scaled(&mut slope, &m.h[i * k..][..k], -step);
                slope[i] -= step * damping;
            }
        }
        if sweep == 0 {
            first = gain;
        }
        if gain <= LEAST_GAIN * first {
            break;
        }
    }
}

/// Sums squared gradients of weights, pass by pass.
struct Squares<'a> {
    of: &'a BTreeMap<(NodeId, usize), ValueId>,
    pass: BTreeMap<ValueId, Vec<f32>>,
}

impl Gradient for Squares<'_> {
    fn wants_constant(&self, node: NodeId, slot: usize) -> bool {
        self.of.contains_key(&(node, slot))
    }

    fn edge(&mut self, node: NodeId, slot: usize, _: &Tensor, gradient: &[f32]) -> Result<()> {
        let Some(&v) = self.of.get(&(node, slot)) else { return Ok(()) };
        // A weight with several readers has the sum of their gradients.
        let sum = self.pass.entry(v).or_insert_with(|| vec![0.0; gradient.len()]);
        sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g);
        Ok(())
    }

    fn value(&mut self, _: ValueId, _: &Tensor, _: &[f32]) -> Result<()> {
        Ok(())
    }
}

/// What the outputs, each relative to its power, lose to first order without each element of a weight of the main graph.
/// Weights that no gradient reaches are left out.
fn saliency(model: &Model, weights: &[Stored], data: &dyn Dataset, threads: usize) -> Result<Scores> {
    let g = model.main();
    let mut readers = BTreeMap::new();
    for (id, v) in weights.iter().map(|w| w.place).filter(|(id, _)| *id == GraphId::MAIN) {
        readers.extend(model.graph(id).consumers(v).into_iter().map(|reader| (reader, v)));
    }
    let recorder = Recorder::new(model)?;
    let n = data.len().min(SAMPLES);
    let mut sums: BTreeMap<ValueId, Vec<f32>> = BTreeMap::new();
    for i in 0..n {
        let sample = data.sample(i * data.len() / n)?;
        let recording = recorder.record(&sample.inputs, threads).with_context(|| sample.origin.clone())?;
        for pass in 0..PASSES {
            let mut from = Vec::new();
            for (k, &v) in g.outputs().iter().enumerate() {
                let Some(y) = recording.value(v).filter(|t| t.dtype().is_float() && !t.is_empty()) else { continue };
                let values = y.to_f32s()?;
                let power: f64 = values.iter().filter(|x| x.is_finite()).map(|&x| f64::from(x).powi(2)).sum();
                if power > 0.0 {
                    let seed = (i as u64 * PASSES + pass) << 16 | k as u64;
                    from.push((v, Tensor::of(y.shape(), signs(seed, values.len(), (1.0 / power.sqrt()) as f32))));
                }
            }
            let mut see = Squares { of: &readers, pass: BTreeMap::new() };
            recording.reverse(from, threads, &mut see)?;
            for (v, gradient) in see.pass {
                let sum = sums.entry(v).or_insert_with(|| vec![0.0; gradient.len()]);
                sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g * g);
            }
        }
    }
    let mut out = Scores::new();
    for (v, mut sum) in sums {
        let Some(t) = g.constant(v) else { continue };
        sum.iter_mut().zip(t.get()?.slice::<f32>()?).for_each(|(s, w)| *s *= w * w);
        out.insert((GraphId::MAIN, v), sum);
    }
    Ok(out)
}

/// The axis of a weight that its inputs are counted on, when all its readers are operators that have it as their weight.
fn input_axis(model: &Model, id: GraphId, v: ValueId) -> Option<usize> {
    let g = model.graph(id);
    let t = g.constant(v).filter(|t| t.dtype() == DType::F32 && t.shape().len() >= 2)?;
    let of = |n: NodeId, slot: usize| {
        let node = g.node(n);
        let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
        let QuantRule::Weighted { weight, axis, .. } = lookup(&node.domain, &node.op_type, opset)?.quant else {
            return None;
        };
        let out = axis.resolve(&node.attrs, t.shape().len()).filter(|_| slot == weight)?;
        // Products count inputs on the other of the last two axes, convolutions on the axis next to the channels.
        Some(if axis == WeightAxis::Last { out.checked_sub(1)? } else { 1 - out.min(1) })
    };
    let axes: Option<Vec<usize>> = g.consumers(v).into_iter().map(|(n, slot)| of(n, slot)).collect();
    let axes = axes?;
    (g.n_uses(v) == axes.len() && axes.windows(2).all(|a| a[0] == a[1])).then(|| axes.first().copied())?
}

fn share(w: &mut [f32], scores: &[f32], f: f64) {
    let n = (w.len() as f64 * f).round() as usize;
    let mut order: Vec<usize> = (0..w.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    for &i in &order[..n.min(w.len())] {
        w[i] = 0.0;
    }
}

fn two_in_four(w: &mut [f32], scores: &[f32], shape: &[usize], axis: usize) {
    let inner: usize = shape[axis + 1..].iter().product();
    let n = shape[axis];
    for start in (0..w.len()).filter(|i| (i / inner.max(1) % n).is_multiple_of(4)) {
        // The last group of a length that is no multiple of four is left as it is.
        if start / inner % n + 4 > n {
            continue;
        }
        let mut group: Vec<usize> = (0..4).map(|i| start + i * inner).collect();
        group.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
        w[group[0]] = 0.0;
        w[group[1]] = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::dataset::Sample;
    use crate::interp::{CompileOptions, Program, RunOptions};
    use crate::ir::text_parse::parse;

    fn weight(model: &Model, name: &str) -> Vec<f32> {
        let g = model.main();
        g.constant(g.find_value(name).unwrap()).unwrap().get().unwrap().slice::<f32>().unwrap().to_vec()
    }

    #[test]
    fn the_smallest_go() {
        let text = "<ir_version: 8, opset_import: [\"\" : 13]>
             g (float[1,4] x) => (float[1,2] y, float[1,2] z)
             <float[4,2] w = {1.0, -8.0, 2.0, 7.0, -3.0, 6.0, 4.0, 5.0}, float[2,4] t = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0},
              float[2] k = {0.1, 0.2}>
             { [a] p = MatMul(x, w) [b] y = Add(p, k) [c] z = Gemm <transB = 1> (x, t) }";
        let pruned = |pattern| {
            let mut model = parse(text).unwrap();
            let weights = weights(&model);
            let done = prune(&mut model, pattern, &weights, &Scores::new(), None).unwrap();
            (model, done)
        };
        let (model, done) = pruned(Pattern::Share(0.25));
        assert_eq!(done, Pruned { n_weights: 2, elements: 16, zeros: 4, compensated: 0 });
        assert_eq!(weight(&model, "w"), [0.0, -8.0, 0.0, 7.0, -3.0, 6.0, 4.0, 5.0]);
        assert_eq!(weight(&model, "k"), [0.1, 0.2]);
        let (model, _) = pruned(Pattern::TwoInFour);
        assert_eq!(weight(&model, "w"), [0.0, -8.0, 0.0, 7.0, -3.0, 0.0, 4.0, 0.0]);
        assert_eq!(weight(&model, "t"), [0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 7.0, 8.0]);
    }

    /// Samples of one input `x`, `[rows, k]`, whose columns have something in common and different sizes.
    struct Rows(usize, usize);

    impl Dataset for Rows {
        fn len(&self) -> usize {
            24
        }
        fn sample(&self, i: usize) -> Result<Sample> {
            let value = |j: usize| ((i * 131 + j * 71 + j * j * 13) % 97) as f32 / 48.0 - 1.0;
            let row = |r: usize, c: usize| (value(r * self.1 + c) + value(1000 + r)) * (1 + c % 3) as f32;
            let x = (0..self.0 * self.1).map(|j| row(j / self.1, j % self.1)).collect();
            Ok(Sample { inputs: vec![("x".into(), Tensor::new(&[self.0, self.1], x)?)], origin: format!("{i}") })
        }
    }

    fn run(model: &Model, data: &dyn Dataset, i: usize) -> Vec<f64> {
        let program = Program::compile(model, &CompileOptions::default()).unwrap();
        let outputs = program.run_tensors(&[data.sample(i).unwrap().inputs[0].1.clone()], RunOptions::default());
        outputs.unwrap()[0].to_f64s().unwrap().to_vec()
    }

    #[test]
    fn what_a_weight_matters_is_what_the_output_loses_without_it() {
        // One number comes out, so that the signs at the output change nothing, and the second row is dead.
        let text = "<ir_version: 8, opset_import: [\"\" : 17]>
             g (float[1,3] x) => (float[1,1] y)
             <float[3,3] w = {0.5, 9.0, 0.2, -0.4, 9.0, 0.3, 0.7, 9.0, -0.6}, float[3,1] v = {0.8, 0.0, -1.5}>
             { [a] p = MatMul(x, w) [b] t = Tanh(p) [c] y = MatMul(t, v) }";
        let model = parse(text).unwrap();
        let data = Rows(1, 3);
        let weights = weights(&model);
        let scores = saliency(&model, &weights, &data, 1).unwrap();
        for stored in &weights {
            let t = model.main().constant(stored.place.1).unwrap().get().unwrap();
            let (shape, w) = (t.shape().to_vec(), t.slice::<f32>().unwrap().to_vec());
            for (i, &found) in scores[&stored.place].iter().enumerate() {
                let mut expected = 0.0;
                for s in (0..SAMPLES).map(|s| s * data.len() / SAMPLES) {
                    let mut at = [-1e-3f32, 1e-3].map(|step| {
                        let (mut model, mut w) = (model.clone(), w.clone());
                        w[i] += step;
                        model
                            .main_mut()
                            .set_def(stored.place.1, Def::Initializer(Tensor::new(&shape, w).unwrap().into()));
                        run(&model, &data, s)[0]
                    });
                    at[1] = (at[1] - at[0]) / 2e-3;
                    expected += PASSES as f64 * (f64::from(w[i]) * at[1] / run(&model, &data, s)[0]).powi(2);
                }
                assert!((f64::from(found) - expected).abs() <= 0.01 * expected + 1e-6, "{i}: {found} {expected}");
            }
        }
        // The largest weights lead to nothing and go first.
        let mut pruned = model.clone();
        prune(&mut pruned, Pattern::Share(0.34), &weights, &scores, None).unwrap();
        assert_eq!(weight(&pruned, "w"), [0.5, 0.0, 0.2, -0.4, 0.0, 0.3, 0.7, 0.0, -0.6]);
    }

    #[test]
    fn what_is_left_solves_the_least_squares() {
        let text = "<ir_version: 8, opset_import: [\"\" : 17]>
             g (float[40,6] x) => (float[40,1] y)
             <float[6,1] w = {1.0, -0.8, 0.1, 0.9, 1.2, -0.1}> { [a] y = MatMul(x, w) }";
        let model = parse(text).unwrap();
        let data = Rows(40, 6);
        let weights = weights(&model);
        let needs = moments::needs_of(&model, weights.iter().map(|w| w.node), &model);
        let seen = moments::gather(&model, &needs, &data, Limits::default(), 1).unwrap();
        let mut pruned = model.clone();
        let done = prune(&mut pruned, Pattern::Share(0.34), &weights, &Scores::new(), Some(&seen)).unwrap();
        assert_eq!((done.zeros, done.compensated), (2, 1));
        let w = weight(&pruned, "w");
        assert_eq!((w[2], w[5]), (0.0, 0.0));
        // At the minimum no kept weight has a slope: H (w - w') is zero there but for the damping.
        let m = &seen.of(weights[0].node).unwrap()[0];
        let float = weight(&model, "w");
        let slope = |w: &[f32], i: usize| -> f32 { (0..6).map(|j| m.h[i * 6 + j] * (float[j] - w[j])).sum() };
        let mut plain = float.clone();
        (plain[2], plain[5]) = (0.0, 0.0);
        let kept = [0, 1, 3, 4];
        let steepest = |w: &[f32]| kept.iter().map(|&i| slope(w, i).abs()).fold(0.0, f32::max);
        assert!(steepest(&w) < 0.05 * steepest(&plain), "{} and {}", steepest(&w), steepest(&plain));
    }

    #[test]
    fn compensation_lowers_the_error_at_the_output() {
        let text = "<ir_version: 8, opset_import: [\"\" : 17]>
             g (float[40,12] x) => (float[40,9] y)
             <float[12,9] w> { [a] y = MatMul(x, w) }";
        let mut model = parse(&text.replace("<float[12,9] w>", "<float[12,9] w = {WEIGHTS}>").replace(
            "WEIGHTS",
            &(0..108).map(|i| format!("{:?}", (i * 37 % 101) as f32 / 50.0 - 1.01)).collect::<Vec<_>>().join(", "),
        ))
        .unwrap();
        crate::infer::infer(&mut model, &mut crate::diag::Sink::default()).unwrap();
        let data = Rows(40, 12);
        let weights = weights(&model);
        let needs = moments::needs_of(&model, weights.iter().map(|w| w.node), &model);
        let seen = moments::gather(&model, &needs, &data, Limits::default(), 1).unwrap();
        for pattern in [Pattern::Share(0.5), Pattern::TwoInFour] {
            let error = |seen: Option<&Gathered>| -> f64 {
                let mut pruned = model.clone();
                let done = prune(&mut pruned, pattern, &weights, &Scores::new(), seen).unwrap();
                assert_eq!(done.zeros, 54);
                let pairs = (0..24).map(|i| (run(&model, &data, i), run(&pruned, &data, i)));
                pairs.map(|(a, b)| a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>()).sum()
            };
            let (with, without) = (error(Some(&seen)), error(None));
            assert!(with < 0.7 * without, "{pattern:?}: {with} {without}");
        }
    }
}
