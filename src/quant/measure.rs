//! How far a quantized model's outputs are from the float model's, on the same samples.

use crate::calibrate::dataset::Dataset;
use crate::error::{Context, Result};
use crate::interp::{NoTap, Program, RunOptions};
use crate::kernels;
use crate::ops::Item;
use crate::tensor::{DType, Tensor};

/// The error of one output over all samples together.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputError {
    /// The output's name.
    pub name: String,
    /// Signal-to-quantization-noise ratio in dB, `10 log10(sum x² / sum (x-y)²)`; infinite when nothing differs.
    pub sqnr_db: f64,
    /// The lowest SQNR of a single slice along axis 1, and of rank 3 (rows of boxes, steps of a sequence) along the last
    /// axis as well, in dB: tells when one row or channel is lost although the whole looks fine. `None` where there is only
    /// one slice.
    pub worst_channel_db: Option<f64>,
    /// Mean over the samples of the cosine between both.
    pub cosine: f64,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// The share of rows whose largest element is the same, when the output looks like class scores: rank 2 (or 3, per
    /// step) with at least 2 classes.
    pub top1_agreement: Option<f64>,
    /// Whether the float model's output was finite and the other's was not, or has another rank.
    pub is_broken: bool,
}

/// Sums that make an [`OutputError`]; additive over samples.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums {
    signal: f64,
    noise: f64,
    channels: Vec<(f64, f64)>,
    /// Slices along the last axis, of rank 3.
    last: Vec<(f64, f64)>,
    cosine: f64,
    samples: u64,
    max_abs: f64,
    same_top1: u64,
    rows: u64,
    is_broken: bool,
}

impl Sums {
    pub(super) fn of(x: &Tensor, y: &Tensor) -> Result<Self> {
        let mut s = Sums { samples: 1, ..Sums::default() };
        if x.rank() != y.rank() {
            s.is_broken = true;
            return Ok(s);
        }
        let (a, mut b) = (x.to_f32s()?, y.to_f32s()?);
        if x.shape() != y.shape() {
            // A loop that ended earlier or later, another number of boxes: what is missing counts as 0, and so does what
            // should not be there.
            let (values, beyond) = fitted(&b, y.shape(), x.shape());
            b = values.into();
            s.noise += beyond;
        }
        let (n, inner) = channels(x.shape());
        s.channels = vec![(0.0, 0.0); n];
        let is_table = x.rank() == 3 && inner > 1;
        s.last = vec![(0.0, 0.0); if is_table { inner } else { 0 }];
        let (mut dot, mut yy) = (0.0, 0.0);
        for (row, (a, b)) in a.chunks(inner.max(1)).zip(b.chunks(inner.max(1))).enumerate() {
            let (mut signal, mut noise) = (0.0, 0.0);
            for (i, (&x, &y)) in a.iter().zip(b).enumerate() {
                if !x.is_finite() {
                    continue;
                }
                s.is_broken |= !y.is_finite();
                let (x, y) = (f64::from(x), f64::from(y));
                let d = x - y;
                signal += x * x;
                noise += d * d;
                if is_table {
                    s.last[i] = (s.last[i].0 + x * x, s.last[i].1 + d * d);
                }
                dot += x * y;
                yy += y * y;
                s.max_abs = s.max_abs.max(d.abs());
            }
            s.signal += signal;
            s.noise += noise;
            let c = &mut s.channels[row % n];
            *c = (c.0 + signal, c.1 + noise);
        }
        let norm = (s.signal * yy).sqrt();
        s.cosine = if norm > 0.0 { dot / norm } else { f64::from(u8::from(s.noise == 0.0)) };
        if let (2 | 3, Some(&classes)) = (x.rank(), x.shape().last())
            && classes >= 2
        {
            for (a, b) in a.chunks(classes).zip(b.chunks(classes)) {
                s.rows += 1;
                s.same_top1 += u64::from(argmax(a) == argmax(b));
            }
        }
        Ok(s)
    }

    pub(super) fn add(&mut self, o: &Sums) {
        self.signal += o.signal;
        self.noise += o.noise;
        for (mine, other) in [(&mut self.channels, &o.channels), (&mut self.last, &o.last)] {
            if mine.len() == other.len() {
                mine.iter_mut().zip(other).for_each(|(a, b)| *a = (a.0 + b.0, a.1 + b.1));
            } else if self.samples == 0 {
                mine.clone_from(other);
            } else {
                // Slices of samples of different sizes have nothing in common.
                mine.clear();
            }
        }
        self.cosine += o.cosine;
        self.samples += o.samples;
        self.max_abs = self.max_abs.max(o.max_abs);
        self.same_top1 += o.same_top1;
        self.rows += o.rows;
        self.is_broken |= o.is_broken;
    }

    pub(super) fn finish(self, name: &str) -> OutputError {
        // A slice without signal says nothing about a ratio.
        let worst = [&self.channels, &self.last].into_iter().filter(|slices| slices.len() > 1).flat_map(|slices| {
            let mean = self.signal / slices.len() as f64;
            slices.iter().filter(move |c| c.0 > 1e-6 * mean).map(|&(s, n)| sqnr(s, n))
        });
        let worst = worst.reduce(f64::min);
        OutputError {
            name: name.to_owned(),
            sqnr_db: if self.is_broken { f64::NEG_INFINITY } else { sqnr(self.signal, self.noise) },
            worst_channel_db: worst,
            cosine: self.cosine / self.samples.max(1) as f64,
            max_abs: self.max_abs,
            top1_agreement: (self.rows > 0).then(|| self.same_top1 as f64 / self.rows as f64),
            is_broken: self.is_broken,
        }
    }
}

/// The elements of a tensor of shape `from` in a shape of the same rank, zeros where it has none, and the power of those
/// that have no place in it.
fn fitted(x: &[f32], from: &[usize], to: &[usize]) -> (Vec<f32>, f64) {
    let mut out = vec![0.0; to.iter().product()];
    let mut beyond = 0.0;
    for (i, &x) in x.iter().enumerate() {
        let (mut rest, mut at, mut stride, mut is_inside) = (i, 0, 1, true);
        for (&n, &m) in from.iter().zip(to).rev() {
            let k = rest % n;
            (rest, at) = (rest / n, at + k * stride);
            (stride, is_inside) = (stride * m, is_inside && k < m);
        }
        if is_inside {
            out[at] = x;
        } else if x.is_finite() {
            beyond += f64::from(x) * f64::from(x);
        }
    }
    (out, beyond)
}

/// Number of channel slices and elements of one slice's contiguous run.
fn channels(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] | [_] => (1, shape.iter().product()),
        [_, c] => (*c, 1),
        [_, c, rest @ ..] => (*c, rest.iter().product()),
    }
}

fn argmax(x: &[f32]) -> usize {
    x.iter().enumerate().fold(0, |best, (i, v)| if *v > x[best] { i } else { best })
}

/// `10 log10(signal / noise)`; infinite without noise, minus infinite without signal.
#[must_use]
pub fn sqnr(signal: f64, noise: f64) -> f64 {
    if noise == 0.0 {
        f64::INFINITY
    } else if signal == 0.0 {
        f64::NEG_INFINITY
    } else {
        10.0 * (signal / noise).log10()
    }
}

/// Most bytes of float outputs that a [`Reference`] keeps; it has fewer samples where each is large.
const REFERENCE_BYTES: usize = 8 << 20;
/// Samples that a [`Reference`] has however large they are.
const LEAST_SAMPLES: usize = 4;

/// Float outputs of a model on samples, one list per sample: the reference for any number of comparisons. Inputs are
/// read again for each, so that what is kept is small and bounded.
pub struct Reference<'a> {
    data: &'a dyn Dataset,
    indices: Vec<usize>,
    outputs: Vec<Outputs>,
    names: Vec<String>,
}

type Outputs = Vec<Option<Tensor>>;

impl<'a> Reference<'a> {
    /// Runs the float model on at most so many samples, spread evenly; on fewer where outputs are large.
    ///
    /// # Errors
    /// A sample cannot be read or the model does not run on it.
    pub fn new(program: &Program, data: &'a dyn Dataset, limit: usize, threads: usize) -> Result<Self> {
        let names = program.outputs().to_vec();
        let limit = data.len().min(limit);
        if limit == 0 {
            return Ok(Reference { data, indices: Vec::new(), outputs: Vec::new(), names });
        }
        let first = run_sample(program, data, 0, threads)?;
        let bytes: usize = first.iter().flatten().map(Tensor::n_bytes).sum();
        let n = limit.min((REFERENCE_BYTES / bytes.max(1)).max(LEAST_SAMPLES));
        let indices = spread(data.len(), n);
        let (inner, _) = split_threads(n, threads);
        let rest = kernels::try_map(n - 1, |i| run_sample(program, data, indices[i + 1], inner))?;
        let outputs = std::iter::once(first).chain(rest).collect();
        Ok(Reference { data, indices, outputs, names })
    }

    /// The number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are no samples.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The error of a quantized model, for each float output, over at most `limit` samples, spread evenly.
    ///
    /// # Errors
    /// The model does not run on a sample.
    pub fn compare(&self, program: &Program, limit: usize, threads: usize) -> Result<Vec<OutputError>> {
        let chosen = spread(self.len(), self.len().min(limit));
        let (inner, _) = split_threads(chosen.len(), threads);
        let per_sample = kernels::try_map(chosen.len(), |i| {
            let i = chosen[i];
            sums(&self.outputs[i], &run_sample(program, self.data, self.indices[i], inner)?)
        })?;
        Ok(total(&per_sample, &self.names))
    }
}

/// The error of a quantized model beside the float model, for each float output, over at most `limit` samples, spread
/// evenly, and their number. Nothing is kept of a sample but sums.
///
/// # Errors
/// A sample cannot be read or a model does not run on it.
pub fn compare(
    float: &Program,
    quantized: &Program,
    data: &dyn Dataset,
    limit: usize,
    threads: usize,
) -> Result<(Vec<OutputError>, usize)> {
    let chosen = spread(data.len(), data.len().min(limit));
    let (inner, _) = split_threads(chosen.len(), threads);
    let per_sample = kernels::try_map(chosen.len(), |i| {
        sums(&run_sample(float, data, chosen[i], inner)?, &run_sample(quantized, data, chosen[i], inner)?)
    })?;
    Ok((total(&per_sample, float.outputs()), chosen.len()))
}

/// `n` numbers below `of`, spread evenly: folders are often sorted by kind.
pub(super) fn spread(of: usize, n: usize) -> Vec<usize> {
    (0..n).map(|i| i * of / n).collect()
}

/// The sums of one sample, by output; `None` for outputs that are not float.
fn sums(float: &Outputs, quantized: &Outputs) -> Result<Vec<Option<Sums>>> {
    let one = |(x, y): (&Option<Tensor>, &Option<Tensor>)| match (x, y) {
        (Some(x), Some(y)) if is_measured(x.dtype()) => Sums::of(x, y).map(Some),
        _ => Ok(None),
    };
    float.iter().zip(quantized).map(one).collect()
}

/// The errors of all samples together. Added in their order, so that rounding does not depend on threads.
fn total(per_sample: &[Vec<Option<Sums>>], names: &[String]) -> Vec<OutputError> {
    let mut total: Vec<Option<Sums>> = vec![None; names.len()];
    for sample in per_sample {
        for (t, s) in total.iter_mut().zip(sample) {
            if let Some(s) = s {
                t.get_or_insert_with(Sums::default).add(s);
            }
        }
    }
    total.into_iter().zip(names).filter_map(|(s, name)| s.map(|s| s.finish(name))).collect()
}

pub(super) fn is_measured(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64)
}

/// Threads inside an operator and threads over samples: samples come first, since they share nothing.
fn split_threads(samples: usize, threads: usize) -> (usize, usize) {
    if samples >= threads { (1, threads) } else { (threads, samples.max(1)) }
}

fn run_sample(program: &Program, data: &dyn Dataset, i: usize, threads: usize) -> Result<Outputs> {
    let sample = data.sample(i)?;
    let options = RunOptions { threads, ..RunOptions::default() };
    let outputs = program.run_named(&sample.inputs, options, &mut NoTap).with_context(|| sample.origin.clone())?;
    Ok(outputs.into_iter().map(|o| if let Some(Item::Tensor(t)) = o { Some(t) } else { None }).collect())
}

/// The lowest SQNR of all outputs; infinite when there are none.
#[must_use]
pub fn worst_sqnr(errors: &[OutputError]) -> f64 {
    errors.iter().map(|e| e.sqnr_db).fold(f64::INFINITY, f64::min)
}

/// The largest share of rows in which another class comes first, of all outputs that look like class scores; `None` when
/// none does.
#[must_use]
pub fn worst_drop(errors: &[OutputError]) -> Option<f64> {
    errors.iter().filter_map(|e| e.top1_agreement).map(|a| 1.0 - a).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_whole_and_of_channels() {
        let x = Tensor::new(&[1, 2, 2], vec![10.0f32, 10.0, 0.1, 0.1]).unwrap();
        let y = Tensor::new(&[1, 2, 2], vec![10.0f32, 10.0, 0.2, 0.2]).unwrap();
        let e = Sums::of(&x, &y).unwrap().finish("y");
        assert!((e.sqnr_db - 40.0).abs() < 0.1, "{e:?}");
        assert!((e.worst_channel_db.unwrap() - 0.0).abs() < 1e-3, "{e:?}");
        assert_eq!(e.top1_agreement, Some(1.0));
        // A column of a table: 3 rows of 2, of which the second is lost; over all and in every row little is.
        let x = Tensor::new(&[1, 3, 2], vec![10.0f32, 0.1, 10.0, 0.1, 10.0, 0.1]).unwrap();
        let y = Tensor::new(&[1, 3, 2], vec![10.0f32, 0.2, 10.0, 0.2, 10.0, 0.2]).unwrap();
        let e = Sums::of(&x, &y).unwrap().finish("y");
        assert!((e.sqnr_db - 40.0).abs() < 0.1 && e.worst_channel_db.unwrap().abs() < 1e-3, "{e:?}");
        let e = Sums::of(&x, &x).unwrap().finish("y");
        assert!(e.sqnr_db.is_infinite() && (e.cosine - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_missing_or_too_much_counts_as_noise() {
        let x = Tensor::new(&[1, 2, 2], vec![1.0f32, 2.0, 3.0, 4.0]).unwrap();
        let shorter = Tensor::new(&[1, 1, 2], vec![1.0f32, 2.0]).unwrap();
        let e = Sums::of(&x, &shorter).unwrap().finish("y");
        assert!((e.sqnr_db - 10.0 * (30.0f64 / 25.0).log10()).abs() < 1e-9 && !e.is_broken, "{e:?}");
        let wider = Tensor::new(&[1, 2, 3], vec![1.0f32, 2.0, 5.0, 3.0, 4.0, 0.0]).unwrap();
        let e = Sums::of(&x, &wider).unwrap().finish("y");
        assert!((e.sqnr_db - 10.0 * (30.0f64 / 25.0).log10()).abs() < 1e-9, "{e:?}");
        assert!(Sums::of(&x, &Tensor::new(&[4], vec![0.0f32; 4]).unwrap()).unwrap().is_broken);
    }
}
