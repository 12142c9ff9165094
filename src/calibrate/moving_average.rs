//! `moving-average`: exponential averages of the samples' smallest and largest values, in the order of the samples.
//!
//! With `m` the average so far and `x` a sample's extreme, `m + 0.01 (x - m)`, as PyTorch's
//! `MovingAverageMinMaxObserver` has it. It depends on the order by definition, so each sample's extremes are kept
//! (8 bytes) and averaged at the end.

use std::any::Any;

use serde_json::{Value, json};

use super::{Batch, Calibrator, Observer, Range, same_kind};
use crate::error::{Context, Result};

pub(super) const CALIBRATOR: Calibrator = Calibrator {
    name: "moving-average",
    aliases: &["moving-average-min-max", "ema"],
    summary: "exponential averages of the samples' smallest and largest values",
    new: |_| Box::new(MovingAverage::default()),
    load: |_, saved| {
        let pairs = saved.as_array().context("statistics: expected a list of ranges")?;
        let side = |p: &Value, i: usize| p.get(i).and_then(Value::as_f64).map(|x| x as f32);
        let ranges = pairs.iter().map(|p| Some((side(p, 0)?, side(p, 1)?))).collect::<Option<Vec<_>>>();
        Ok(Box::new(MovingAverage { ranges: ranges.context("statistics: expected ranges of two numbers")? }))
    },
};

/// The weight of a new sample.
const WEIGHT: f32 = 0.01;

#[derive(Default)]
struct MovingAverage {
    ranges: Vec<Range>,
}

impl Observer for MovingAverage {
    fn observe(&mut self, batch: &Batch<'_>) {
        self.ranges.push((batch.min, batch.max));
    }

    fn merge(&mut self, later: &dyn Observer) -> Result<()> {
        self.ranges.extend(&same_kind::<Self>(later)?.ranges);
        Ok(())
    }

    fn range(&self, min: f32, max: f32) -> Range {
        let average = |(a, b): Range, &(lo, hi): &Range| (a + WEIGHT * (lo - a), b + WEIGHT * (hi - b));
        match self.ranges.split_first() {
            Some((&first, rest)) => rest.iter().fold(first, average),
            None => (min, max),
        }
    }

    fn save(&self) -> Value {
        json!(self.ranges)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
