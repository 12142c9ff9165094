//! A histogram that grows with the data: bins whose width is a power of two, aligned to zero.
//!
//! Bin `i` holds the values of `[i w, (i + 1) w)`, where `w = 2^exponent` is the smallest width at which all values seen
//! so far fit into [`MAX_BINS`] bins. Doubling the width joins bins `2 i` and `2 i + 1` into `i`, exactly. So the
//! histogram depends on the values alone: not on their order, and not on how they were dealt out to histograms that
//! were merged later. At least half of [`MAX_BINS`] bins lie between the smallest and the largest value.

use serde_json::{Value, json};

use super::{Batch, Weights};
use crate::error::{Context, Result, ensure};

/// Bins at most. A one-sided half of them still leaves more than 2,048 to a search over absolute values.
pub const MAX_BINS: usize = 8192;
/// Values whose bins are found together.
const BLOCK: usize = 512;
/// The narrowest bins: below, floats lose bits, and a range that small quantizes to nothing anyway.
const MIN_EXPONENT: i32 = -110;

/// Counts of values by size; see the module documentation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// The width of a bin is two to this power.
    exponent: i32,
    /// The number of the first bin.
    first: i64,
    /// Values in each bin, from the first on.
    counts: Vec<u64>,
}

/// Two to a power, exactly.
fn pow2(exponent: i32) -> f64 {
    f64::from(exponent).exp2()
}

/// The bin that a value falls into at a width.
fn bin(x: f32, exponent: i32) -> i64 {
    below(f64::from(x) * pow2(-exponent))
}

/// The largest integer that is not above `x`. [`f64::floor`] is a call into the C library where the processor is not
/// known to have an instruction for it.
fn below(x: f64) -> i64 {
    let i = x as i64;
    // What is beyond the integers saturates at their ends.
    i.saturating_sub(i64::from(i as f64 > x))
}

impl Histogram {
    /// Counts the values of a batch, each with its weight.
    pub fn observe(&mut self, batch: &Batch<'_>) {
        self.fit(batch.min, batch.max);
        let is_small = batch.values.len() < 4 * MAX_BINS;
        match (batch.weights, is_small) {
            (None, true) => self.count_small(batch.values),
            (None, false) => self.count(batch.values),
            (Some(weights), _) => self.weigh(batch.values, weights, is_small),
        }
    }

    /// What [`place`] needs.
    fn scale(&self) -> (f32, i32) {
        (pow2(-self.exponent) as f32, self.first as i32)
    }

    fn count_small(&mut self, values: &[f32]) {
        let (scale, first) = self.scale();
        let mut indices = [0u32; BLOCK];
        for block in values.chunks(BLOCK) {
            place(block, scale, first, &mut indices);
            indices[..block.len()].iter().for_each(|&i| self.counts[i as usize] += 1);
        }
    }

    /// Four tables, so that equal neighbours (zeros behind a Relu) do not wait for each other's increments; worth their
    /// upkeep for large tensors only.
    fn count(&mut self, values: &[f32]) {
        let (scale, first) = self.scale();
        let mut indices = [0u32; BLOCK];
        let mut tables: Vec<[u32; MAX_BINS]> = vec![[0; MAX_BINS]; 4];
        // So many fit into 32 bits.
        for part in values.chunks(1 << 31) {
            if let [t0, t1, t2, t3] = tables.as_mut_slice() {
                for block in part.chunks(BLOCK) {
                    place(block, scale, first, &mut indices);
                    let (quads, rest) = indices[..block.len()].as_chunks::<4>();
                    for q in quads {
                        t0[inside(q[0])] += 1;
                        t1[inside(q[1])] += 1;
                        t2[inside(q[2])] += 1;
                        t3[inside(q[3])] += 1;
                    }
                    rest.iter().for_each(|&i| t0[inside(i)] += 1);
                }
            }
            for table in &mut tables {
                for (c, t) in self.counts.iter_mut().zip(table.iter_mut()) {
                    *c += u64::from(std::mem::take(t));
                }
            }
        }
    }

    /// As [`Histogram::count`], with a weight for each value.
    fn weigh(&mut self, values: &[f32], weights: Weights<'_>, is_small: bool) {
        let (scale, first) = self.scale();
        let mut indices = [0u32; BLOCK];
        let mut tables: Vec<[u64; MAX_BINS]> = vec![[0; MAX_BINS]; if is_small { 1 } else { 4 }];
        let n = tables.len();
        let Weights { channels, inner } = weights;
        if inner == 1 {
            for row in values.chunks(channels.len()) {
                for (block, weights) in row.chunks(BLOCK).zip(channels.chunks(BLOCK)) {
                    place(block, scale, first, &mut indices);
                    for (k, (&i, &w)) in indices.iter().zip(weights).enumerate().take(block.len()) {
                        tables[k % n][inside(i)] += u64::from(w);
                    }
                }
            }
        } else {
            for (run, &w) in values.chunks(inner).zip(channels.iter().cycle()) {
                let w = u64::from(w);
                for block in run.chunks(BLOCK) {
                    place(block, scale, first, &mut indices);
                    for (k, &i) in indices.iter().enumerate().take(block.len()) {
                        tables[k % n][inside(i)] += w;
                    }
                }
            }
        }
        for table in &tables {
            self.counts.iter_mut().zip(table).for_each(|(c, t)| *c += t);
        }
    }

    /// Counts some values of a batch, so many times, when its extremes fit already (see [`Histogram::fit`]).
    pub(super) fn add(&mut self, batch: &Batch<'_>, values: std::ops::Range<usize>, times: u64) {
        let scale = pow2(-self.exponent);
        for i in values {
            let index = (below(f64::from(batch.values[i]) * scale) - self.first) as usize;
            self.counts[index] += batch.weights.map_or(1, |w| u64::from(w.of(i))) * times;
        }
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Histogram) {
        if other.counts.is_empty() {
            return;
        }
        if self.counts.is_empty() {
            *self = other.clone();
            return;
        }
        let mut other = other.clone();
        let mut exponent = self.exponent.max(other.exponent);
        loop {
            self.widen(exponent);
            other.widen(exponent);
            let first = self.first.min(other.first);
            let last = self.last().max(other.last());
            if (last - first) < MAX_BINS as i64 {
                self.cover(first, last);
                break;
            }
            exponent += 1;
        }
        let offset = (other.first - self.first) as usize;
        for (c, o) in self.counts[offset..].iter_mut().zip(&other.counts) {
            *c += o;
        }
    }

    /// The number of values.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The width of a bin.
    #[must_use]
    pub fn width(&self) -> f64 {
        pow2(self.exponent)
    }

    /// The bins: lower edge and count, in order.
    pub fn bins(&self) -> impl DoubleEndedIterator<Item = (f64, u64)> + ExactSizeIterator {
        let width = self.width();
        self.counts.iter().enumerate().map(move |(i, &c)| ((self.first + i as i64) as f64 * width, c))
    }

    /// Counts by absolute value: the bin from 0 to the width first.
    #[must_use]
    pub fn absolute(&self) -> Vec<u64> {
        let mut counts = vec![0; (self.last() + 1).max(-self.first).max(0) as usize];
        for (i, &c) in self.counts.iter().enumerate() {
            let bin = self.first + i as i64;
            // Bin -1 is the mirror image of bin 0.
            let bin = if bin < 0 { -1 - bin } else { bin };
            counts[bin as usize] += c;
        }
        counts
    }

    /// The number of the last bin.
    fn last(&self) -> i64 {
        self.first + self.counts.len() as i64 - 1
    }

    /// Makes room for values between `min` and `max`.
    pub(super) fn fit(&mut self, min: f32, max: f32) {
        let mut exponent = if self.counts.is_empty() {
            // The smallest that may do; the loop finds the one that does.
            let span = f64::from(max) - f64::from(min);
            ((span / MAX_BINS as f64).log2().floor() as i32).max(MIN_EXPONENT)
        } else {
            self.exponent
        };
        loop {
            let (lo, hi) = (bin(min, exponent), bin(max, exponent));
            let (first, last) = if self.counts.is_empty() {
                (lo, hi)
            } else {
                self.widen(exponent);
                (lo.min(self.first), hi.max(self.last()))
            };
            // Bin numbers are computed in 32-bit floats: beyond this they would not be exact.
            let is_exact = first.unsigned_abs().max(last.unsigned_abs()) < 1 << 22;
            if is_exact && last - first < MAX_BINS as i64 {
                if self.counts.is_empty() {
                    (self.exponent, self.first) = (exponent, first);
                }
                self.cover(first, last);
                return;
            }
            exponent += 1;
        }
    }

    /// Doubles the width of the bins until it is two to this power.
    fn widen(&mut self, exponent: i32) {
        let shift = exponent - self.exponent;
        if shift <= 0 || self.counts.is_empty() {
            return;
        }
        let shift = shift.min(62);
        let first = self.first >> shift;
        let mut counts = vec![0; ((self.last() >> shift) - first + 1) as usize];
        for (i, &c) in self.counts.iter().enumerate() {
            counts[(((self.first + i as i64) >> shift) - first) as usize] += c;
        }
        (self.exponent, self.first, self.counts) = (exponent, first, counts);
    }

    /// Adds empty bins at both ends.
    fn cover(&mut self, first: i64, last: i64) {
        if !self.counts.is_empty() && first < self.first {
            let missing = (self.first - first) as usize;
            self.counts.splice(0..0, std::iter::repeat_n(0, missing));
            self.first = first;
        }
        let n = (last - self.first + 1) as usize;
        if n > self.counts.len() {
            self.counts.resize(n, 0);
        }
    }

    /// For a cache: the exponent, the number of the first bin and the counts.
    #[must_use]
    pub fn save(&self) -> Value {
        json!({ "exponent": self.exponent, "first": self.first, "counts": self.counts })
    }

    /// From a cache.
    ///
    /// # Errors
    /// A field is missing, of another type or out of bounds.
    pub fn load(saved: &Value) -> Result<Self> {
        let int =
            |name: &str| saved.get(name).and_then(Value::as_i64).with_context(|| format!("\"{name}\" is no integer"));
        let counts = saved.get("counts").and_then(Value::as_array).context("\"counts\" is no list")?;
        let counts = counts.iter().map(|c| c.as_u64().context("a count is no integer")).collect::<Result<Vec<_>>>()?;
        let (exponent, first) = (int("exponent")?, int("first")?);
        ensure!(counts.len() <= MAX_BINS, "{} bins, at most {MAX_BINS} are allowed", counts.len());
        ensure!((i64::from(MIN_EXPONENT)..=128).contains(&exponent) && first.abs() < 1 << 22, "bins out of bounds");
        Ok(Histogram { exponent: exponent as i32, first, counts })
    }
}

/// The index itself: the mask changes nothing, it tells the compiler that a table has this place.
fn inside(index: u32) -> usize {
    index as usize % MAX_BINS
}

/// The indices of the bins of a block of values: `floor(x * scale) - first`.
///
/// Written so that the compiler makes vector instructions of it on any machine. The scale is a power of two, so the
/// product is exact. Adding and subtracting 1.5 * 2^23 rounds it to the nearest integer, whose bits are then at the end
/// of the sum; one less where that is above makes it the floor. Bin numbers stay below 2^22 (see [`Histogram::fit`]).
fn place(values: &[f32], scale: f32, first: i32, indices: &mut [u32; BLOCK]) {
    const MAGIC: f32 = 12_582_912.0;
    for (i, &x) in indices.iter_mut().zip(values) {
        let v = x * scale;
        let sum = v + MAGIC;
        let above = i32::from(sum - MAGIC > v);
        let floor = sum.to_bits().cast_signed().wrapping_sub(MAGIC.to_bits().cast_signed()).wrapping_sub(above);
        *i = floor.wrapping_sub(first).cast_unsigned();
    }
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn bins_are_floors_and_saturate() {
        for x in [0.0, 0.5, -0.5, -1.0, 2.0, -2.5, 1e9, -1e9] {
            assert_eq!(below(x), x.floor() as i64, "{x}");
        }
        assert_eq!((below(-1e300), below(1e300)), (i64::MIN, i64::MAX));
    }
}
