//! `percentile`: the range that holds a given share of the values; the rest is cut off, half of it on each side.

use std::any::Any;

use serde_json::Value;

use super::histogram::Histogram;
use super::{Batch, Calibrator, Observer, Range, Settings, same_kind};
use crate::error::Result;

pub(super) const CALIBRATOR: Calibrator = Calibrator {
    name: "percentile",
    aliases: &[],
    summary: "the range that holds a share of the values (--percentile)",
    new: |s| Box::new(Percentile { histogram: Histogram::default(), settings: *s }),
    is_weighted: false,
    load: |s, saved| Ok(Box::new(Percentile { histogram: Histogram::load(saved)?, settings: *s })),
};

struct Percentile {
    histogram: Histogram,
    settings: Settings,
}

impl Observer for Percentile {
    fn observe(&mut self, batch: &Batch<'_>) {
        self.histogram.observe(batch);
    }

    fn merge(&mut self, later: &dyn Observer) -> Result<()> {
        self.histogram.merge(&same_kind::<Self>(later)?.histogram);
        Ok(())
    }

    fn range(&self, min: f32, max: f32) -> Range {
        range(&self.histogram, self.settings.percentile, min, max)
    }

    fn save(&self) -> Value {
        self.histogram.save()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The range between the percentiles `(100 - p) / 2` and `(100 + p) / 2`, each taken at the far edge of its bin and
/// never beyond the extremes.
fn range(histogram: &Histogram, percentile: f64, min: f32, max: f32) -> Range {
    let total = histogram.total();
    let tail = (100.0 - percentile.clamp(0.0, 100.0)) / 200.0;
    // So many values may be cut off on each side. Rounded, since 100 - 99.9 is not exactly 0.1.
    let cut = (tail * total as f64 + 1e-6).floor() as u64;
    let low = beyond(histogram.bins(), cut).map_or(min, |x| x as f32);
    let high = beyond(histogram.bins().rev(), cut).map_or(max, |x| (x + histogram.width()) as f32);
    (low.max(min), high.min(max))
}

/// The lower edge of the first bin at which more than `cut` values were seen.
fn beyond(bins: impl Iterator<Item = (f64, u64)>, cut: u64) -> Option<f64> {
    let mut seen = 0;
    for (low, count) in bins {
        seen += count;
        if seen > cut {
            return Some(low);
        }
    }
    None
}
