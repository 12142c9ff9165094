//! `moving-average`: exponential averages of the samples' smallest and largest values, in the order of the samples.
//!
//! With `m` the average so far and `x` a sample's extreme, `m + 0.01 (x - m)`, as PyTorch's
//! `MovingAverageMinMaxObserver` has it. It depends on the order by definition, so each sample's extremes are kept
//! (16 bytes), sorted and averaged at the end.

use std::any::Any;

use serde_json::{Value, json};

use super::{Batch, Calibrator, Observer, Range, same_kind};
use crate::error::{Context, Result};

pub(super) const CALIBRATOR: Calibrator = Calibrator {
    name: "moving-average",
    aliases: &["moving-average-min-max", "ema"],
    summary: "exponential averages of the samples' smallest and largest values",
    new: |_| Box::new(MovingAverage::default()),
    is_weighted: false,
    load: |_, saved| {
        let pairs = saved.as_array().context("statistics: expected a list of ranges")?;
        let side = |p: &Value, i: usize| p.get(i).and_then(Value::as_f64).map(|x| x as f32);
        let ranges = (0..).zip(pairs).map(|(i, p)| Some((i, (side(p, 0)?, side(p, 1)?)))).collect::<Option<Vec<_>>>();
        Ok(Box::new(MovingAverage { ranges: ranges.context("statistics: expected ranges of two numbers")? }))
    },
};

/// The weight of a new sample.
const WEIGHT: f32 = 0.01;

#[derive(Default)]
struct MovingAverage {
    /// With the number of the sample.
    ranges: Vec<(u64, Range)>,
}

impl MovingAverage {
    fn in_order(&self) -> Vec<Range> {
        let mut sorted = self.ranges.clone();
        sorted.sort_by_key(|&(sample, _)| sample);
        sorted.into_iter().map(|(_, range)| range).collect()
    }
}

impl Observer for MovingAverage {
    fn observe(&mut self, batch: &Batch<'_>) {
        self.ranges.push((batch.sample, (batch.min, batch.max)));
    }

    fn merge(&mut self, later: &dyn Observer) -> Result<()> {
        let after = self.ranges.iter().map(|&(sample, _)| sample + 1).max().unwrap_or(0);
        let later = same_kind::<Self>(later)?.ranges.iter();
        self.ranges.extend(later.map(|&(sample, range)| (after + sample, range)));
        Ok(())
    }

    fn range(&self, min: f32, max: f32) -> Range {
        let average = |(a, b): Range, &(lo, hi): &Range| (a + WEIGHT * (lo - a), b + WEIGHT * (hi - b));
        match self.in_order().split_first() {
            Some((&first, rest)) => rest.iter().fold(first, average),
            None => (min, max),
        }
    }

    fn save(&self) -> Value {
        json!(self.in_order())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
