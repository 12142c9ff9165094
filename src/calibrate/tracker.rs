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
    observer: Box<dyn Observer>,
}

impl Tracker {
    pub(super) fn new(observer: Box<dyn Observer>) -> Self {
        Tracker { min: f32::INFINITY, max: f32::NEG_INFINITY, n: 0, n_nan: 0, n_inf: 0, n_neg_inf: 0, observer }
    }

    /// Sees the values of a tensor. The finite ones make the range, the others are counted.
    pub fn see(&mut self, values: &[f32]) {
        if values.is_empty() {
            return;
        }
        self.n += values.len() as u64;
        let (min, max, is_finite) = extremes(values);
        if is_finite {
            self.observe(&Batch { values, min, max });
            return;
        }
        let mut finite = Vec::with_capacity(values.len());
        for &x in values {
            if x.is_finite() {
                finite.push(x);
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
            self.observe(&Batch { values: &finite, min, max });
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
fn extremes(values: &[f32]) -> (f32, f32, bool) {
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
