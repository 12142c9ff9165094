//! What a run needs of memory, estimated before it starts from one run of the float model.

use std::collections::BTreeMap;

use super::annotate::observable;
use super::config::Config;
use super::facts::Facts;
use crate::calibrate::histogram::MAX_BINS;
use crate::error::Result;
use crate::ir::{Def, GraphId, Model, ValueId};
use crate::kernels::conv::Filters;

/// The program itself, its threads and the buffers that files are read through.
const BASE: u64 = 12 << 20;
/// Stored weights: as the file has them, packed for the float model's multiplications, and of a quantized model in
/// work (integers, packed integers).
const WEIGHT_COPIES: u64 = 3;
/// What kernels make of weights beside packed ones: for the float model and for a quantized one in work.
const EXTRA_COPIES: u64 = 2;
/// Inputs, outputs and working memory of operators beside the values that are alive.
const ACTIVATION_COPIES: f64 = 1.5;

/// Bytes that a run needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// However many samples run at a time.
    pub fixed: u64,
    /// For each sample that runs at the same time as others.
    pub per_sample: u64,
}

impl Need {
    /// Of a run with this prepared model, whose values have these shapes.
    ///
    /// # Errors
    /// A graph has a cycle, or a stored tensor cannot be read.
    pub fn of(model: &Model, config: &Config, facts: &Facts) -> Result<Self> {
        let n_observed = observable(model, config, facts, &config.excluded(model)?)?.len() as u64;
        // Only methods with a histogram keep more than a few numbers; which have one is theirs to know.
        let statistics = n_observed * (MAX_BINS * size_of::<u64>()) as u64;
        let mut alive = 0;
        for id in model.graph_ids() {
            // A body runs while the values of the outer graph are alive.
            alive += peak(model, id, facts)?;
        }
        Ok(Need { fixed: BASE + weights(model) + statistics, per_sample: (ACTIVATION_COPIES * alive as f64) as u64 })
    }

    /// Bytes with so many samples at a time.
    #[must_use]
    pub fn at(self, samples: usize) -> u64 {
        self.fixed + self.per_sample * samples as u64
    }

    /// The most samples at a time, up to `most`, that fit into `limit` bytes; `None` when not even one does.
    #[must_use]
    pub fn samples_within(self, limit: u64, most: usize) -> Option<usize> {
        (1..=most).rev().find(|&n| self.at(n) <= limit)
    }
}

/// Bytes of all stored tensors and of what is made of them.
fn weights(model: &Model) -> u64 {
    let bytes = |id: GraphId| {
        let g = model.graph(id);
        let of = |v: &ValueId| match &g.value(*v).def {
            Def::Initializer(t) | Def::Overridable(t) => {
                let extra = Filters::extra(t.shape()) * size_of::<f32>();
                WEIGHT_COPIES * (t.len() * t.dtype().bits() / 8) as u64 + EXTRA_COPIES * extra as u64
            }
            _ => 0,
        };
        g.initializers().iter().map(of).sum::<u64>()
    };
    model.graph_ids().map(bytes).sum()
}

/// The most bytes of values of a graph that are alive at once, each from its maker to its last reader.
fn peak(model: &Model, id: GraphId, facts: &Facts) -> Result<u64> {
    let g = model.graph(id);
    let order = g.order()?;
    let at: BTreeMap<_, usize> = order.iter().enumerate().map(|(i, &n)| (n, i)).collect();
    let bytes = |v: ValueId| {
        let shape = facts.shape((id, v)).map_or(0, |s| s.iter().product::<usize>());
        (shape * facts.dtype((id, v)).map_or(0, crate::tensor::DType::bits) / 8) as u64
    };
    let last = |v: ValueId| {
        let end = if g.outputs().contains(&v) { order.len() } else { 0 };
        g.consumers(v).iter().filter_map(|(n, _)| at.get(n).copied()).fold(end, usize::max)
    };
    // What each step adds, and what is gone after it.
    let mut gone = vec![0u64; order.len() + 1];
    let mut alive = 0;
    for &v in g.inputs() {
        alive += bytes(v);
        gone[last(v)] += bytes(v);
    }
    let mut most = alive;
    for (i, &n) in order.iter().enumerate() {
        for v in g.node_outputs(n).into_iter().flatten() {
            alive += bytes(v);
            gone[last(v).max(i)] += bytes(v);
        }
        most = most.max(alive);
        alive -= gone[i];
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_samples_as_fit() {
        let need = Need { fixed: 100, per_sample: 50 };
        assert_eq!(need.samples_within(149, 8), None);
        assert_eq!(need.samples_within(150, 8), Some(1));
        assert_eq!(need.samples_within(260, 8), Some(3));
        assert_eq!(need.samples_within(10_000, 8), Some(8));
    }
}
