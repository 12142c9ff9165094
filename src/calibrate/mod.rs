//! Calibration: runs a model on data and observes the ranges of its values.
//!
//! An [`Observer`] sees each value of a tensor once, keeps bounded statistics, and says at the end which range to
//! quantize. What they keep depends on the samples and their numbers alone, not on the order in which they come, so
//! that neither the number of threads nor the way samples are dealt out to parts, which are merged later, changes a bit
//! of the result.
//!
//! **Add a calibrator:** a new file `src/calibrate/<name>.rs` with `pub(super) const CALIBRATOR: Calibrator`, and its
//! name in the `calibrators!` list below. The command line takes its name and summary from there.

pub mod cache;
pub mod carry;
pub mod dataset;
pub mod foreign;
pub mod histogram;
mod tracker;

use std::any::Any;

use serde_json::Value;

use crate::error::{Result, anyhow};

pub use tracker::{Batch, Importance, Tracker, Weights};

/// A range of real values: smallest and largest.
pub type Range = (f32, f32);

/// Gathers statistics of one tensor and chooses its range.
pub trait Observer: Any + Send + Sync {
    /// Sees values.
    fn observe(&mut self, batch: &Batch<'_>);

    /// Takes over what another observer of the same kind saw of later samples.
    ///
    /// # Errors
    /// The other is of another kind.
    fn merge(&mut self, later: &dyn Observer) -> Result<()>;

    /// The range to quantize, of the finite values between `min` and `max` that were seen in all.
    fn range(&self, min: f32, max: f32) -> Range;

    /// The statistics, for a cache; null when the extremes are all.
    fn save(&self) -> Value;

    /// For [`Observer::merge`].
    fn as_any(&self) -> &dyn Any;
}

/// The observer as the type that it should have.
fn same_kind<T: Observer>(other: &dyn Observer) -> Result<&T> {
    other.as_any().downcast_ref().ok_or_else(|| anyhow!("statistics of different calibration methods do not mix"))
}

/// What calibrators can be told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Share of the values that the range of `percentile` holds, in percent.
    pub percentile: f64,
    /// Bits of the type that activations are quantized to.
    pub bits: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { percentile: 99.999, bits: 8 }
    }
}

/// A way to choose ranges.
#[derive(Debug)]
pub struct Calibrator {
    /// Its name on the command line.
    pub name: &'static str,
    /// Other names that it goes by.
    pub aliases: &'static [&'static str],
    /// One phrase without a final dot.
    pub summary: &'static str,
    /// A new observer.
    new: fn(&Settings) -> Box<dyn Observer>,
    /// Whether it weighs values by the importance of their channels.
    pub is_weighted: bool,
    /// An observer with saved statistics.
    load: fn(&Settings, &Value) -> Result<Box<dyn Observer>>,
}

impl PartialEq for Calibrator {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

macro_rules! calibrators {
    ($($name:ident)*) => {
        $(mod $name;)*
        /// Every calibrator, in alphabetical order.
        pub static ALL: &[&Calibrator] = &[$(&$name::CALIBRATOR,)*];
    };
}

calibrators! {
    auto
    entropy
    min_max
    moving_average
    mse
    percentile
}

/// The calibrator of a name or alias.
#[must_use]
pub fn find(name: &str) -> Option<&'static Calibrator> {
    let plain = |s: &str| s.to_lowercase().replace(['-', '_'], "");
    let name = plain(name);
    ALL.iter().copied().find(|c| plain(c.name) == name || c.aliases.iter().any(|a| plain(a) == name))
}

/// A calibrator and what it was told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Method {
    /// The calibrator.
    pub calibrator: &'static Calibrator,
    /// What it was told.
    pub settings: Settings,
}

impl Default for Method {
    fn default() -> Self {
        Method { calibrator: &auto::CALIBRATOR, settings: Settings::default() }
    }
}

impl Method {
    /// A tracker for one tensor.
    #[must_use]
    pub fn tracker(&self) -> Tracker {
        Tracker::new((self.calibrator.new)(&self.settings))
    }
}

#[cfg(test)]
mod tests;
