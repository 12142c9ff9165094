//! What calibration sees of each channel of an activation: the statistics that equalization and bias correction need.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::calibrate::dataset::Dataset;
use crate::error::{Context, Result};
use crate::interp::{CompileOptions, Program, RunOptions};
use crate::ir::{GraphId, Model, ValueId};
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
            // Sums of a run in f32 lanes are accurate enough for statistics and vectorise.
            let (mut lo, mut hi, mut sum, mut sq) = (f32::INFINITY, f32::NEG_INFINITY, 0f32, 0f32);
            for &x in run {
                let x = if x.is_finite() { x } else { 0.0 };
                lo = lo.min(x);
                hi = hi.max(x);
                sum += x;
                sq += x * x;
            }
            c.min[i] = c.min[i].min(lo);
            c.max[i] = c.max[i].max(hi);
            c.sum[i] += f64::from(sum);
            c.sum_sq[i] += f64::from(sq);
        }
        Some(c)
    }

    /// Adds what another sample showed; samples with another number of channels are left out.
    pub fn merge(&mut self, o: &Channels) {
        if self.min.is_empty() {
            *self = o.clone();
        }
        if self.min.len() != o.min.len() || std::ptr::eq(self, o) {
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
    let per_sample = (0..n)
        .into_par_iter()
        .map(|i| {
            let sample = data.sample(i * data.len() / n)?;
            let mut seen: BTreeMap<Place, Channels> = BTreeMap::new();
            let tap = &mut |g: GraphId, v: ValueId, item: &Item| {
                if let (Item::Tensor(t), Some(axis)) = (item, places.get(&(g, v)))
                    && let Some(c) = Channels::of(t, *axis)
                {
                    match seen.entry((g, v)) {
                        std::collections::btree_map::Entry::Vacant(e) => drop(e.insert(c)),
                        std::collections::btree_map::Entry::Occupied(mut e) => e.get_mut().merge(&c),
                    }
                }
                Ok(())
            };
            program.run_named(&sample.inputs, RunOptions::default(), tap).with_context(|| sample.origin.clone())?;
            Ok(seen)
        })
        .collect::<Result<Vec<_>>>()?;
    // Merged in the order of the samples, so that rounding does not depend on threads.
    let mut all: BTreeMap<Place, Channels> = BTreeMap::new();
    for seen in per_sample {
        for (place, c) in seen {
            match all.entry(place) {
                std::collections::btree_map::Entry::Vacant(e) => drop(e.insert(c)),
                std::collections::btree_map::Entry::Occupied(mut e) => e.get_mut().merge(&c),
            }
        }
    }
    Ok(all)
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
