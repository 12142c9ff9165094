//! `mse`: the range that loses least in the mean square, clipping and rounding together.
//!
//! The first search takes rounding errors for uniformly distributed (a step squared by 12 on average) and clipping errors
//! from running sums, so that a candidate costs a few operations and all pairs of ends on a grid can be tried. Around the
//! best of them every bin of the histogram is quantized as the model will do it and weighed with its count.

use std::any::Any;

use serde_json::Value;

use super::histogram::Histogram;
use super::{Batch, Calibrator, Observer, Range, Settings, same_kind};
use crate::error::Result;

pub(super) const CALIBRATOR: Calibrator = Calibrator {
    name: "mse",
    aliases: &["l2", "mean-square-error"],
    summary: "the range with the least mean square error",
    new: |s| Box::new(Mse { histogram: Histogram::default(), settings: *s }),
    is_weighted: false,
    load: |s, saved| Ok(Box::new(Mse { histogram: Histogram::load(saved)?, settings: *s })),
};

/// Bits that the values at the ends of a range are halved in, in the first search.
const HALVINGS: usize = 12;
/// Steps of the first search for each halving.
const PER_HALVING: usize = 8;
/// Exact errors that are computed for each end.
const FINE_STEPS: i32 = 8;

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
        search(&points(&self.histogram, min, max), min, max, self.settings.bits).0
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
pub(super) fn points(histogram: &Histogram, min: f32, max: f32) -> Vec<(f64, f64)> {
    let width = histogram.width();
    let middle = |low: f64| if low == 0.0 { 0.0 } else { (low + width / 2.0).clamp(min.into(), max.into()) };
    histogram.bins().filter(|(_, c)| *c > 0).map(|(low, c)| (middle(low), c as f64)).collect()
}

/// The sum of squared errors of values with weights, when they are quantized with this range.
pub(super) fn error(points: &[(f64, f64)], (low, high): Range, bits: u32) -> f64 {
    // Adding and subtracting it rounds a number to the nearest integer, which vectorises.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    let round = |x: f64| x + MAGIC - MAGIC;
    let top = f64::from((1i32 << bits) - 1);
    // Zero is always exact, so the range holds it.
    let (low, high) = (f64::from(low.min(0.0)), f64::from(high.max(0.0)));
    let step = (high - low) / top;
    if step < f64::from(f32::MIN_POSITIVE) {
        return f64::INFINITY;
    }
    let (inverse, zero_point) = (1.0 / step, round(-low / step));
    let square = |&(x, weight): &(f64, f64)| {
        let q = round((x * inverse).clamp(-zero_point, top - zero_point));
        let d = x - q * step;
        weight * d * d
    };
    // Sums of their own for eight lanes, so that additions need not wait for each other.
    let mut lanes = [0.0; 8];
    let (eights, rest) = points.as_chunks::<8>();
    for eight in eights {
        lanes.iter_mut().zip(eight).for_each(|(sum, point)| *sum += square(point));
    }
    lanes.iter().sum::<f64>() + rest.iter().map(square).sum::<f64>()
}

/// The clipping error of every candidate for one end, the largest first: the end, and the error of the values beyond it.
/// `points` come with the outermost first; `sign` is 1 for the upper end and -1 for the lower.
fn clipped<'a>(points: impl Iterator<Item = &'a (f64, f64)>, end: f64, sign: f64) -> Vec<(f64, f64)> {
    let mut beyond = points.map(|&(x, w)| (x * sign, w)).peekable();
    let (mut sum, mut sum_x, mut sum_xx) = (0.0, 0.0, 0.0);
    let mut candidates = Vec::with_capacity(HALVINGS * PER_HALVING + 1);
    for i in 0..=HALVINGS * PER_HALVING {
        let t = end * sign * (-(i as f64) / PER_HALVING as f64).exp2();
        while let Some(&(x, w)) = beyond.peek()
            && x > t
        {
            (sum, sum_x, sum_xx) = (sum + w, sum_x + w * x, sum_xx + w * x * x);
            beyond.next();
        }
        candidates.push((t * sign, (sum_xx - 2.0 * t * sum_x + t * t * sum).max(0.0)));
        if end == 0.0 {
            break;
        }
    }
    candidates
}

/// The range of the least error, and that error.
pub(super) fn search(points: &[(f64, f64)], min: f32, max: f32, bits: u32) -> (Range, f64) {
    let (low, high) = (f64::from(min.min(0.0)), f64::from(max.max(0.0)));
    let top = f64::from((1i32 << bits) - 1);
    // Zeros are exact, and what is clipped is not rounded; the latter is too little to matter.
    let rounded: f64 = points.iter().filter(|(x, _)| *x != 0.0).map(|(_, w)| w / 12.0).sum();
    let lows = clipped(points.iter(), low, -1.0);
    let highs = clipped(points.iter().rev(), high, 1.0);
    let mut best = (f64::INFINITY, low, high);
    for &(low, below) in &lows {
        for &(high, above) in &highs {
            let step = (high - low) / top;
            let e = below + above + rounded * step * step;
            if e < best.0 {
                best = (e, low, high);
            }
        }
    }
    let range = |low: f64, high: f64| (low.max(min.into()) as f32, high.min(max.into()) as f32);
    let mut found = (range(best.1, best.2), f64::INFINITY);
    let mut attempt = |r: Range| {
        let e = error(points, r, bits);
        if e < found.1 {
            found = (r, e);
        }
        found.0
    };
    attempt((min, max));
    let (_, low, high) = best;
    let factors =
        || (-FINE_STEPS..=FINE_STEPS).map(|i| (f64::from(i) / f64::from(FINE_STEPS) / PER_HALVING as f64).exp2());
    for f in factors() {
        attempt(range(low, high * f));
    }
    let high = f64::from(attempt((min, max)).1);
    for f in factors() {
        attempt(range(low * f, high));
    }
    found
}
