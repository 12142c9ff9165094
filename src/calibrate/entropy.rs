//! `entropy`: the range at which the quantized distribution tells least from the original one (Kullback-Leibler).
//!
//! The procedure of S. Migacz, "8-bit inference with TensorRT" (2017): over a histogram of absolute values, try every
//! threshold of at least as many bins as there are levels. The reference is the clipped histogram, with everything
//! beyond added to its last bin; the candidate is the histogram without those, joined to levels, each spread evenly
//! over its bins that are not empty. A candidate that is zero where the reference is not is infinitely bad. The bin of
//! zero is set to its neighbour's count: zeros (behind a Relu, in padding) are exact at any threshold and would outvote
//! the rest.
//!
//! Where values lie on one side of zero, all levels serve that side; else half of them do.
//!
//! With running sums of counts, of `c ln c` and of the number of bins that are not empty, a candidate costs one step a
//! level instead of one a bin.

use std::any::Any;

use serde_json::Value;

use super::histogram::Histogram;
use super::{Batch, Calibrator, Observer, Range, Settings, same_kind};
use crate::error::Result;

pub(super) const CALIBRATOR: Calibrator = Calibrator {
    name: "entropy",
    aliases: &["kl", "kl-divergence"],
    summary: "the range whose quantized distribution is closest to the original (Kullback-Leibler)",
    new: |s| Box::new(Entropy { histogram: Histogram::default(), settings: *s }),
    is_weighted: false,
    load: |s, saved| Ok(Box::new(Entropy { histogram: Histogram::load(saved)?, settings: *s })),
};

struct Entropy {
    histogram: Histogram,
    settings: Settings,
}

impl Observer for Entropy {
    fn observe(&mut self, batch: &Batch<'_>) {
        self.histogram.observe(batch);
    }

    fn merge(&mut self, later: &dyn Observer) -> Result<()> {
        self.histogram.merge(&same_kind::<Self>(later)?.histogram);
        Ok(())
    }

    fn range(&self, min: f32, max: f32) -> Range {
        let levels = 1usize << self.settings.bits;
        let levels = if min < 0.0 && max > 0.0 { levels / 2 } else { levels };
        let mut counts = self.histogram.absolute();
        if let [zero, next, ..] = counts.as_mut_slice() {
            *zero = *next;
        }
        let bins = threshold(&counts, levels);
        let t = (bins as f64 * self.histogram.width()) as f32;
        (min.max(-t), max.min(t))
    }

    fn save(&self) -> Value {
        self.histogram.save()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The number of bins, counted from zero, at which the divergence is least.
pub(super) fn threshold(counts: &[u64], levels: usize) -> usize {
    let n = counts.len();
    let x_ln_x = |x: f64| if x > 0.0 { x * x.ln() } else { 0.0 };
    // Running sums: counts, c ln c, bins that are not empty.
    let mut sums = vec![(0u64, 0.0f64, 0u32); n + 1];
    for (i, &c) in counts.iter().enumerate() {
        let (s, e, k) = sums[i];
        sums[i + 1] = (s + c, e + x_ln_x(c as f64), k + u32::from(c > 0));
    }
    let total = sums[n].0;
    let mut best = (f64::INFINITY, n);
    for bins in levels..=n {
        let (inside, entropy, _) = sums[bins];
        let outside = total - inside;
        let last = counts[bins - 1];
        // All beyond would fall into an empty bin, where the candidate is zero.
        if inside == 0 || (outside > 0 && last == 0) {
            continue;
        }
        let reference = entropy - x_ln_x(last as f64) + x_ln_x((last + outside) as f64);
        let mut cross = 0.0;
        let mut from = 0;
        for level in 0..levels {
            let to = (level + 1) * bins / levels;
            let count = sums[to].0 - sums[from].0;
            let filled = sums[to].2 - sums[from].2;
            let expected = if level + 1 == levels { count + outside } else { count };
            if count > 0 {
                cross += expected as f64 * (count as f64 / f64::from(filled)).ln();
            }
            from = to;
        }
        let (inside, total) = (inside as f64, total as f64);
        // sum p ln p - sum p ln q with p = reference / total, q = candidate / inside.
        let divergence = reference / total - total.ln() - cross / total + inside.ln();
        if divergence < best.0 {
            best = (divergence, bins);
        }
    }
    best.1
}
