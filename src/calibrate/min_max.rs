//! `min-max`: the smallest and the largest value. Loses nothing to clipping; an outlier costs everybody else precision.

use std::any::Any;

use serde_json::Value;

use super::{Batch, Calibrator, Observer, Range, same_kind};
use crate::error::Result;

pub(super) const CALIBRATOR: Calibrator = Calibrator {
    name: "min-max",
    aliases: &["max"],
    summary: "the smallest and the largest value",
    new: |_| Box::new(MinMax),
    is_weighted: false,
    load: |_, _| Ok(Box::new(MinMax)),
};

/// The tracker's extremes are all it needs.
struct MinMax;

impl Observer for MinMax {
    fn observe(&mut self, _: &Batch<'_>) {}

    fn merge(&mut self, later: &dyn Observer) -> Result<()> {
        same_kind::<Self>(later).map(|_| ())
    }

    fn range(&self, min: f32, max: f32) -> Range {
        (min, max)
    }

    fn save(&self) -> Value {
        Value::Null
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
