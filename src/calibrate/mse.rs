//! `mse`: the range that loses least in the mean square, clipping and rounding together.
//!
//! Every bin of the histogram is quantized as the model will do it and weighed with its count. First both ends shrink
//! together, then each by itself around the best, in finer and finer steps.

use std::any::Any;

use serde_json::Value;

use super::histogram::Histogram;
use super::{Batch, Calibrator, Observer, Range, Settings, same_kind};
use crate::error::Result;
use crate::tensor::affine::{fake_one, quantize_one};

pub(super) const CALIBRATOR: Calibrator = Calibrator {
    name: "mse",
    aliases: &["l2", "mean-square-error"],
    summary: "the range with the least mean square error",
    new: |s| Box::new(Mse { histogram: Histogram::default(), settings: *s }),
    load: |s, saved| Ok(Box::new(Mse { histogram: Histogram::load(saved)?, settings: *s })),
};

/// Steps of each search.
const STEPS: u32 = 40;
/// Searches of single ends, each in steps an eighth of those before.
const ROUNDS: u32 = 3;

struct Mse {
    histogram: Histogram,
    settings: Settings,
}

impl Observer for Mse {
    fn observe(&mut self, batch: &Batch<'_>) {
        self.histogram.observe(batch);
    }

    fn merge(&mut self, later: &dyn Observer) -> Result<()> {
        self.histogram.merge(&same_kind::<Self>(later)?.histogram);
        Ok(())
    }

    fn range(&self, min: f32, max: f32) -> Range {
        search(&points(&self.histogram, min, max), min, max, self.settings.bits)
    }

    fn save(&self) -> Value {
        self.histogram.save()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The middles of the bins that are not empty, and their counts. The bin of zero counts as zero: that is what nearly
/// all its values are wherever it is full.
fn points(histogram: &Histogram, min: f32, max: f32) -> Vec<(f32, f64)> {
    let width = histogram.width();
    let middle = |low: f64| if low == 0.0 { 0.0 } else { ((low + width / 2.0) as f32).clamp(min, max) };
    histogram.bins().filter(|(_, c)| *c > 0).map(|(low, c)| (middle(low), c as f64)).collect()
}

/// The sum of squared errors of values with weights, when they are quantized with this range.
pub(super) fn error(points: &[(f32, f64)], (low, high): Range, bits: u32) -> f64 {
    let top = (1i32 << bits) - 1;
    // Zero is always exact, so the range holds it.
    let (low, high) = (low.min(0.0), high.max(0.0));
    let scale = (high - low) / top as f32;
    if scale < f32::MIN_POSITIVE {
        return f64::INFINITY;
    }
    let zero_point = quantize_one(-low, scale, 0, 0, top);
    let square = |&(x, weight): &(f32, f64)| {
        let d = f64::from(x - fake_one(x, scale, zero_point, 0, top));
        weight * d * d
    };
    points.iter().map(square).sum()
}

fn search(points: &[(f32, f64)], min: f32, max: f32, bits: u32) -> Range {
    let range = |[low, high]: [f32; 2]| (min * low, max * high);
    // How much of each end is kept.
    let mut kept = [1.0, 1.0];
    let mut least = error(points, range(kept), bits);
    let mut attempt = |kept: &mut [f32; 2], candidate: [f32; 2]| {
        let e = error(points, range(candidate), bits);
        if e < least {
            (least, *kept) = (e, candidate);
        }
    };
    for i in 1..STEPS {
        let f = i as f32 / STEPS as f32;
        attempt(&mut kept, [f, f]);
    }
    let mut reach = 1.0;
    for _ in 0..ROUNDS {
        for side in [1, 0] {
            let around = kept;
            for i in 0..=STEPS {
                let mut candidate = around;
                candidate[side] += reach * (2.0 * i as f32 / STEPS as f32 - 1.0);
                if (0.0..=1.0).contains(&candidate[side]) {
                    attempt(&mut kept, candidate);
                }
            }
        }
        reach /= 8.0;
    }
    range(kept)
}
