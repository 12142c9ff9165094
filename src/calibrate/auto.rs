//! `auto`: the range that loses least in what the operators that read the tensor compute.
//!
//! An operator that multiplies channel `c` of the tensor with the weights `W_c` turns an error `e` of a value of that
//! channel, rounding or clipping, into an error of power `e² ‖W_c‖²` at its output. So each value is counted with the
//! weight of its channel ([`Importance`](super::Importance)), and the range is the one of least error over the weighted
//! histogram: an outlier that no weight looks at is clipped, one that carries a strong channel is not. Channels count
//! alike before operators without weights.
//!
//! Of a large tensor every value counts for the extremes, but only some blocks of it for the histogram, each as often as
//! there are blocks for one that is taken; of the others the values beyond all those, so that what clipping would hit first
//! is counted exactly. So observing costs little beside computing.
//!
//! Clipping is of one sign and does not average out as rounding does, and the samples may not hold the largest value
//! there is: min-max stays unless the other range is clearly better.

use std::any::Any;

use serde_json::Value;

use super::histogram::Histogram;
use super::tracker::extremes;
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

/// Values of a tensor that the histogram sees of a sample; from twice as many on, blocks are left out.
const ENOUGH: usize = 1 << 14;
/// Values that follow each other and are taken or left out together.
const BLOCK: usize = 512;

struct Auto {
    histogram: Histogram,
    settings: Settings,
}

impl Observer for Auto {
    fn observe(&mut self, batch: &Batch<'_>) {
        let n = batch.values.len();
        if n < 2 * ENOUGH {
            return self.histogram.observe(batch);
        }
        self.histogram.fit(batch.min, batch.max);
        let stride = n / ENOUGH;
        // Where to begin depends on the values alone, so that no order of samples matters, and differs between samples,
        // so that it is not the same channels each time.
        let phase = (batch.min.to_bits() ^ batch.max.to_bits().rotate_left(16)).wrapping_mul(0x9e37_79b9) >> 8;
        let is_taken = |start: usize| (start / BLOCK + phase as usize).is_multiple_of(stride);
        let block = |start: usize| start..(start + BLOCK).min(n);
        let (mut low, mut high) = (0.0f32, 0.0f32);
        for start in (0..n).step_by(BLOCK).filter(|&s| is_taken(s)) {
            self.histogram.add(batch, block(start), stride as u64);
            let (min, max, _) = extremes(&batch.values[block(start)]);
            (low, high) = (low.min(min), high.max(max));
        }
        for start in (0..n).step_by(BLOCK).filter(|&s| !is_taken(s)) {
            let (min, max, _) = extremes(&batch.values[block(start)]);
            if min < low || max > high {
                let is_beyond = |i: &usize| !(low..=high).contains(&batch.values[*i]);
                block(start).filter(is_beyond).for_each(|i| self.histogram.add(batch, i..i + 1, 1));
            }
        }
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
