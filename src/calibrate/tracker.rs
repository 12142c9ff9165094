//! What is kept of one tensor: extremes and counts for every calibrator, and the calibrator's own statistics.

use serde_json::{Value, json};

use super::{Method, Observer, Range};
use crate::error::{Context, Result, ensure};

/// Finite values, and their extremes, so that nobody computes them twice.
pub struct Batch<'a> {
    /// The values, none of them NaN or infinite. Never empty.
    pub values: &'a [f32],
    /// The smallest.
    pub min: f32,
    /// The largest.
    pub max: f32,
    /// The number of the sample.
    pub sample: u64,
    /// How much each value counts; once, without.
    pub weights: Option<Weights<'a>>,
}

/// The weight of value `i` is that of channel `i / inner`, counted round and round.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    /// The weight of each channel.
    pub channels: &'a [u32],
    /// Values of one channel that follow each other.
    pub inner: usize,
}

impl Weights<'_> {
    /// The weight of value `i`.
    pub(super) fn of(&self, i: usize) -> u32 {
        self.channels[i / self.inner % self.channels.len()]
    }
}

/// How much an error in each channel of a tensor counts, relative to the others: whole numbers, [`Importance::UNIT`] on
/// average, so that sums of them do not depend on the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Importance {
    /// The axis of the channels, counted from the end where it is negative.
    pub axis: isize,
    /// One number per channel, at least 1.
    pub weights: Vec<u32>,
}

impl Importance {
    /// The weight of a channel like any other.
    pub const UNIT: u32 = 4096;

    /// Weights in proportion to these numbers, none of which is negative.
    #[must_use]
    pub fn new(axis: isize, relative: &[f64]) -> Self {
        let mean = relative.iter().sum::<f64>() / relative.len().max(1) as f64;
        let weight = |x: &f64| if mean > 0.0 { (x / mean * f64::from(Self::UNIT)).clamp(1.0, 1e9) as u32 } else { 1 };
        Importance { axis, weights: relative.iter().map(weight).collect() }
    }

    /// The weights of a tensor's values; `None` where the tensor has other channels.
    fn of(&self, shape: &[usize]) -> Option<Weights<'_>> {
        let axis = if self.axis < 0 { shape.len().checked_add_signed(self.axis)? } else { self.axis.unsigned_abs() };
        let inner = shape.get(axis + 1..)?.iter().product();
        (shape.get(axis) == Some(&self.weights.len())).then_some(Weights { channels: &self.weights, inner })
    }
}

/// Statistics of one tensor over any number of samples, in bounded memory.
pub struct Tracker {
    /// Smallest finite value; larger than `max` when there was none.
    pub min: f32,
    /// Largest finite value.
    pub max: f32,
    /// Values in all.
    pub n: u64,
    /// Values that were NaN.
    pub n_nan: u64,
    /// Values that were plus infinity.
    pub n_inf: u64,
    /// Values that were minus infinity, as masks are.
    pub n_neg_inf: u64,
    importance: Option<Importance>,
    observer: Box<dyn Observer>,
}

impl Tracker {
    pub(super) fn new(observer: Box<dyn Observer>) -> Self {
        let (min, max) = (f32::INFINITY, f32::NEG_INFINITY);
        Tracker { min, max, n: 0, n_nan: 0, n_inf: 0, n_neg_inf: 0, importance: None, observer }
    }

    /// The same with channels that count differently, for a tensor that nothing was seen of.
    #[must_use]
    pub fn weighted(self, importance: Option<Importance>) -> Self {
        Tracker { importance, ..self }
    }

    /// Sees the values of a tensor of a sample. The finite ones make the range, the others are counted.
    pub fn see(&mut self, values: &[f32], shape: &[usize], sample: u64) {
        if values.is_empty() {
            return;
        }
        self.n += values.len() as u64;
        // Taken out for the time being, since the batch borrows it.
        let importance = self.importance.take();
        let unit = [Importance::UNIT];
        let weights =
            importance.as_ref().map(|i| i.of(shape).unwrap_or(Weights { channels: &unit, inner: values.len() }));
        let (min, max, is_finite) = extremes(values);
        if is_finite {
            self.observe(&Batch { values, min, max, sample, weights });
        } else {
            self.see_finite(values, weights, sample);
        }
        self.importance = importance;
    }

    /// Counts what is not finite and observes the rest.
    fn see_finite(&mut self, values: &[f32], weights: Option<Weights<'_>>, sample: u64) {
        let (mut finite, mut channels) = (Vec::with_capacity(values.len()), Vec::new());
        for (i, &x) in values.iter().enumerate() {
            if x.is_finite() {
                finite.push(x);
                channels.extend(weights.map(|w| w.of(i)));
            } else if x.is_nan() {
                self.n_nan += 1;
            } else if x > 0.0 {
                self.n_inf += 1;
            } else {
                self.n_neg_inf += 1;
            }
        }
        if !finite.is_empty() {
            let (min, max, _) = extremes(&finite);
            let weights = weights.map(|_| Weights { channels: &channels, inner: 1 });
            self.observe(&Batch { values: &finite, min, max, sample, weights });
        }
    }

    fn observe(&mut self, batch: &Batch<'_>) {
        self.min = self.min.min(batch.min);
        self.max = self.max.max(batch.max);
        self.observer.observe(batch);
    }

    /// Takes over what another tracker of the same tensor saw of later samples.
    ///
    /// # Errors
    /// They belong to different methods.
    pub fn merge(&mut self, later: &Tracker) -> Result<()> {
        self.observer.merge(&*later.observer)?;
        self.min = self.min.min(later.min);
        self.max = self.max.max(later.max);
        self.n += later.n;
        self.n_nan += later.n_nan;
        self.n_inf += later.n_inf;
        self.n_neg_inf += later.n_neg_inf;
        Ok(())
    }

    /// The range to quantize; `None` when there was no finite value.
    #[must_use]
    pub fn range(&self) -> Option<Range> {
        (self.min <= self.max).then(|| self.observer.range(self.min, self.max))
    }

    /// The statistics, for a cache.
    #[must_use]
    pub fn save(&self) -> Value {
        let mut v = json!({ "min": self.min, "max": self.max, "n": self.n });
        for (name, n) in [("nan", self.n_nan), ("inf", self.n_inf), ("neg_inf", self.n_neg_inf)] {
            if n > 0 {
                v[name] = n.into();
            }
        }
        let statistics = self.observer.save();
        if !statistics.is_null() {
            v["statistics"] = statistics;
        }
        v
    }

    /// A tracker with saved statistics.
    ///
    /// # Errors
    /// A field is missing or of another type, or the range is none.
    pub fn load(method: &Method, saved: &Value) -> Result<Self> {
        let count = |name: &str| match saved.get(name) {
            None => Ok(0),
            Some(v) => v.as_u64().with_context(|| format!("\"{name}\" is no count")),
        };
        let (n, n_nan, n_inf, n_neg_inf) = (count("n")?, count("nan")?, count("inf")?, count("neg_inf")?);
        let statistics = saved.get("statistics").unwrap_or(&Value::Null);
        let observer = (method.calibrator.load)(&method.settings, statistics)?;
        let mut tracker = Tracker { n, n_nan, n_inf, n_neg_inf, ..Tracker::new(observer) };
        let side = |name: &str| -> Result<Option<f32>> {
            match saved.get(name) {
                None | Some(Value::Null) => Ok(None),
                Some(v) => Ok(Some(v.as_f64().with_context(|| format!("\"{name}\" is no number"))? as f32)),
            }
        };
        if let (Some(min), Some(max)) = (side("min")?, side("max")?) {
            ensure!(min.is_finite() && max.is_finite() && min <= max, "[{min}, {max}] is no range");
            (tracker.min, tracker.max) = (min, max);
        }
        Ok(tracker)
    }
}

/// Smallest and largest value, and whether all are finite. Eight lanes at a time, which the compiler turns into vector
/// instructions. With a NaN or an infinity in it, only the last answer counts.
pub(super) fn extremes(values: &[f32]) -> (f32, f32, bool) {
    const LANES: usize = 16;
    let (mut min, mut max) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    // x * 0 is 0 for finite x and NaN otherwise, and NaN stays.
    let mut bad = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for c in chunks {
        for i in 0..LANES {
            min[i] = if c[i] < min[i] { c[i] } else { min[i] };
            max[i] = if c[i] > max[i] { c[i] } else { max[i] };
            bad[i] += c[i] * 0.0;
        }
    }
    let (mut lo, mut hi, mut sum) = (f32::INFINITY, f32::NEG_INFINITY, 0.0f32);
    for i in 0..LANES {
        (lo, hi, sum) = (lo.min(min[i]), hi.max(max[i]), sum + bad[i]);
    }
    for &x in rest {
        (lo, hi, sum) = (lo.min(x), hi.max(x), sum + x * 0.0);
    }
    (lo, hi, sum == 0.0)
}
