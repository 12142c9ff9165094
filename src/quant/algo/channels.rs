//! What calibration sees of each channel of an activation: the statistics that equalization and bias correction need.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::calibrate::dataset::Dataset;
use crate::error::{Context, Result};
use crate::interp::{CompileOptions, Program, RunOptions};
use crate::ir::{GraphId, Model, ValueId};
use crate::kernels;
use crate::ops::Item;
use crate::quant::plan::Place;
use crate::tensor::Tensor;

/// Statistics of each channel of a tensor over samples.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Channels {
    /// Smallest finite value.
    pub min: Vec<f32>,
    /// Largest finite value.
    pub max: Vec<f32>,
    /// Sum.
    pub sum: Vec<f64>,
    /// Sum of squares.
    pub sum_sq: Vec<f64>,
    /// Elements per channel.
    pub count: u64,
}

/// The channel axis of an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Axis 1: what convolutions read and make.
    Second,
    /// The last axis: what `MatMul` and `Gemm` read and make.
    Last,
}

impl Channels {
    /// Of one tensor; `None` when it has no such axis or is not float32.
    #[must_use]
    pub fn of(t: &Tensor, axis: Axis) -> Option<Self> {
        let axis = match axis {
            Axis::Second => 1,
            Axis::Last => t.rank().checked_sub(1)?,
        };
        if axis >= t.rank() {
            return None;
        }
        let x = t.slice::<f32>().ok()?;
        let n = t.shape()[axis];
        let inner: usize = t.shape()[axis + 1..].iter().product();
        let mut c = Channels {
            min: vec![f32::INFINITY; n],
            max: vec![f32::NEG_INFINITY; n],
            sum: vec![0.0; n],
            sum_sq: vec![0.0; n],
            count: (x.len() / n.max(1)) as u64,
        };
        if inner == 1 {
            for row in x.chunks_exact(n.max(1)) {
                for (i, &x) in row.iter().enumerate() {
                    if x.is_finite() {
                        c.min[i] = c.min[i].min(x);
                        c.max[i] = c.max[i].max(x);
                        c.sum[i] += f64::from(x);
                        c.sum_sq[i] += f64::from(x) * f64::from(x);
                    }
                }
            }
            return Some(c);
        }
        for (row, run) in x.chunks(inner.max(1)).enumerate() {
            let i = row % n;
            let (lo, hi, sum, sum_sq) = of_run(run);
            c.min[i] = c.min[i].min(lo);
            c.max[i] = c.max[i].max(hi);
            c.sum[i] += f64::from(sum);
            c.sum_sq[i] += f64::from(sum_sq);
        }
        Some(c)
    }

    /// Adds what another sample showed; samples with another number of channels are left out.
    pub fn merge(&mut self, o: &Channels) {
        if self.min.is_empty() {
            *self = o.clone();
            return;
        }
        if self.min.len() != o.min.len() {
            return;
        }
        for i in 0..self.min.len() {
            self.min[i] = self.min[i].min(o.min[i]);
            self.max[i] = self.max[i].max(o.max[i]);
            self.sum[i] += o.sum[i];
            self.sum_sq[i] += o.sum_sq[i];
        }
        self.count += o.count;
    }

    /// The mean of a channel.
    #[must_use]
    pub fn mean(&self, channel: usize) -> f64 {
        self.sum[channel] / self.count.max(1) as f64
    }

    /// The mean square of a channel.
    #[must_use]
    pub fn mean_sq(&self, channel: usize) -> f64 {
        self.sum_sq[channel] / self.count.max(1) as f64
    }
}

/// Smallest, largest, sum and sum of squares of values of one channel, those that are not finite taken for 0. Eight lanes
/// at a time, which the compiler turns into vector instructions; sums in f32 are accurate enough for statistics.
fn of_run(run: &[f32]) -> (f32, f32, f32, f32) {
    const LANES: usize = 8;
    let (mut lo, mut hi) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let (mut sum, mut sum_sq) = ([0f32; LANES], [0f32; LANES]);
    let mut add = |i: usize, x: f32| {
        let x = if x.is_finite() { x } else { 0.0 };
        lo[i] = if x < lo[i] { x } else { lo[i] };
        hi[i] = if x > hi[i] { x } else { hi[i] };
        sum[i] += x;
        sum_sq[i] += x * x;
    };
    let (chunks, rest) = run.as_chunks::<LANES>();
    chunks.iter().for_each(|c| (0..LANES).for_each(|i| add(i, c[i])));
    rest.iter().enumerate().for_each(|(i, &x)| add(i, x));
    let least = lo.into_iter().fold(f32::INFINITY, f32::min);
    (least, hi.into_iter().fold(f32::NEG_INFINITY, f32::max), sum.iter().sum(), sum_sq.iter().sum())
}

/// Statistics of several tensors over samples that may be done in any order: merged in the order of their numbers, so
/// that rounding does not depend on threads.
#[derive(Debug, Default)]
pub struct InOrder {
    merged: BTreeMap<Place, Channels>,
    /// The number of the next sample to merge.
    next: usize,
    waiting: BTreeMap<usize, BTreeMap<Place, Channels>>,
}

impl InOrder {
    /// What sample `i` showed; every sample from 0 on is to be given once.
    pub fn add(&mut self, i: usize, seen: BTreeMap<Place, Channels>) {
        self.waiting.insert(i, seen);
        while let Some(seen) = self.waiting.remove(&self.next) {
            self.next += 1;
            for (place, c) in seen {
                self.merged.entry(place).or_default().merge(&c);
            }
        }
    }

    /// The statistics of all samples.
    #[must_use]
    pub fn finish(self) -> BTreeMap<Place, Channels> {
        self.merged
    }
}

/// Adds what a value of a sample shows of a place that is asked for.
pub fn see(seen: &mut BTreeMap<Place, Channels>, places: &BTreeMap<Place, Axis>, place: Place, t: &Tensor) {
    if let Some(c) = places.get(&place).and_then(|&axis| Channels::of(t, axis)) {
        seen.entry(place).or_default().merge(&c);
    }
}

/// Runs the float model on at most `limit` samples, spread evenly, and gathers the statistics of these places.
///
/// # Errors
/// A sample cannot be read or the model does not run on it.
pub fn gather(
    model: &Model,
    places: &BTreeMap<Place, Axis>,
    data: &dyn Dataset,
    limit: usize,
) -> Result<BTreeMap<Place, Channels>> {
    let program =
        Program::compile(model, &CompileOptions { watch: &|g, v| places.contains_key(&(g, v)), skip_unknown: true })?;
    let n = data.len().min(limit);
    let all = Mutex::new(InOrder::default());
    kernels::try_in_order(n, |i| {
        let sample = data.sample(i * data.len() / n)?;
        let mut seen = BTreeMap::new();
        let tap = &mut |g: GraphId, v: ValueId, item: &Item| {
            if let Item::Tensor(t) = item {
                see(&mut seen, places, (g, v), t);
            }
            Ok(())
        };
        program.run_named(&sample.inputs, RunOptions::default(), tap).with_context(|| sample.origin.clone())?;
        all.lock().unwrap_or_else(PoisonError::into_inner).add(i, seen);
        Ok(())
    })?;
    Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner).finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_along_either_axis() {
        let t = Tensor::new(&[1, 2, 3], vec![1.0f32, 2.0, 3.0, -4.0, -5.0, 6.0]).unwrap();
        let c = Channels::of(&t, Axis::Second).unwrap();
        assert_eq!((c.min, c.max, c.sum, c.count), (vec![1.0, -5.0], vec![3.0, 6.0], vec![6.0, -3.0], 3));
        let mut c = Channels::of(&t, Axis::Last).unwrap();
        assert_eq!((c.min.clone(), c.count), (vec![-4.0, -5.0, 3.0], 2));
        let d = c.clone();
        c.merge(&d);
        assert_eq!((c.sum[0], c.count), (-6.0, 4));
        assert_eq!(c.mean(0), -1.5);
    }
}
