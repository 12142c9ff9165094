//! `auto`: the range that loses least in what the operators that read the tensor compute.
//!
//! An operator that multiplies channel `c` of the tensor with the weights `W_c` turns an error `e` of a value of that
//! channel, rounding or clipping, into an error of power `e² ‖W_c‖²` at its output. So each value is counted with the
//! weight of its channel ([`Importance`](super::Importance)), and the range is the one of least error over the weighted
//! histogram: an outlier that no weight looks at is clipped, one that carries a strong channel is not. Channels count
//! alike before operators without weights.
//!
//! Clipping is of one sign and does not average out as rounding does, and the samples may not hold the largest value
//! there is: min-max stays unless the other range is clearly better.

use std::any::Any;

use serde_json::Value;

use super::histogram::Histogram;
use super::{Batch, Calibrator, Observer, Range, Settings, mse, same_kind};
use crate::error::Result;

pub(super) const CALIBRATOR: Calibrator = Calibrator {
    name: "auto",
    aliases: &["default"],
    summary: "the range that loses least in what the tensor's readers compute",
    new: |s| Box::new(Auto { histogram: Histogram::default(), settings: *s }),
    is_weighted: true,
    load: |s, saved| Ok(Box::new(Auto { histogram: Histogram::load(saved)?, settings: *s })),
};

/// How much less the error must be than that of min-max, in dB.
const LEAST_GAIN_DB: f64 = 0.2;

struct Auto {
    histogram: Histogram,
    settings: Settings,
}

impl Observer for Auto {
    fn observe(&mut self, batch: &Batch<'_>) {
        self.histogram.observe(batch);
    }

    fn merge(&mut self, later: &dyn Observer) -> Result<()> {
        self.histogram.merge(&same_kind::<Self>(later)?.histogram);
        Ok(())
    }

    fn range(&self, min: f32, max: f32) -> Range {
        let points = mse::points(&self.histogram, min, max);
        let whole = mse::error(&points, (min, max), self.settings.bits);
        let (range, error) = mse::search(&points, min, max, self.settings.bits);
        if whole > error * 10f64.powf(LEAST_GAIN_DB / 10.0) { range } else { (min, max) }
    }

    fn save(&self) -> Value {
        self.histogram.save()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
