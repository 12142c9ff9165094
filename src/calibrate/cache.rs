//! Calibration caches: what was observed, as a JSON file that people can read and edit.
//!
//! ```json
//! {
//!   "format": "onnx-quant calibration", "version": 1,
//!   "method": "percentile", "percentile": 99.999, "bits": 8,
//!   "model": "sha256 of the model file",
//!   "samples": ["sha256 of each sample", "..."],
//!   "tensors": {
//!     "conv1_out": { "min": -1.5, "max": 7.25, "n": 4096, "range": [-1.5, 6.0], "statistics": { "...": 0 } }
//!   }
//! }
//! ```
//!
//! `range` is what will be quantized. It follows from the rest; whoever edits it gets what they wrote. `nan`, `inf` and
//! `neg_inf` count values that were not finite. `statistics` belong to the method and make it possible to join caches
//! of different samples ([`Cache::merge`]) with the result of one run over all of them. Without `statistics` a tensor
//! still serves `min-max`. `model` does not cover weights in files beside the model.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Calibrator, Method, Range, Settings, Tracker, find};
use crate::error::{Context, Result, anyhow, bail, ensure};

const FORMAT: &str = "onnx-quant calibration";
const VERSION: u64 = 1;

/// What was observed of one tensor, and the range that somebody wrote into the cache instead, if so.
pub struct Entry {
    /// What was observed.
    pub tracker: Tracker,
    /// The range to take whatever was observed.
    pub edited: Option<Range>,
}

impl Entry {
    /// The range to quantize; `None` when no finite value was observed.
    #[must_use]
    pub fn range(&self) -> Option<Range> {
        self.edited.or_else(|| self.tracker.range())
    }
}

/// What was observed of a model on samples.
pub struct Cache {
    /// How ranges are chosen.
    pub method: Method,
    /// Digest of the model file; empty in caches of other tools, which do not say.
    pub model: String,
    /// Digest of each sample, in order.
    pub samples: Vec<String>,
    /// What was observed, by tensor name.
    pub tensors: BTreeMap<String, Entry>,
}

/// The SHA-256 of bytes, in hexadecimal.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

impl Cache {
    /// The cache as JSON text.
    #[must_use]
    pub fn to_json(&self) -> String {
        let tensors: Map<String, Value> = self
            .tensors
            .iter()
            .map(|(name, e)| {
                let mut v = e.tracker.save();
                if let Some((low, high)) = e.range() {
                    v["range"] = json!([low, high]);
                }
                (name.clone(), v)
            })
            .collect();
        let v = json!({
            "format": FORMAT,
            "version": VERSION,
            "method": self.method.calibrator.name,
            "percentile": self.method.settings.percentile,
            "bits": self.method.settings.bits,
            "model": self.model,
            "samples": self.samples,
            "tensors": tensors,
        });
        format!("{v:#}\n")
    }

    /// The cache in a JSON text.
    ///
    /// # Errors
    /// It is no JSON, no calibration cache or of a newer version, or a field is missing or wrong; the error names it.
    pub fn from_json(text: &str) -> Result<Self> {
        let v: Value = serde_json::from_str(text).context("is no JSON")?;
        ensure!(v["format"] == FORMAT, "is no calibration cache: \"format\" is not \"{FORMAT}\"");
        let version = v["version"].as_u64().unwrap_or(0);
        ensure!(version == VERSION, "is a calibration cache of version {version}; version {VERSION} is known");
        let name = v["method"].as_str().context("\"method\" is missing")?;
        let calibrator = find(name).ok_or_else(|| anyhow!("\"method\": unknown method \"{name}\""))?;
        let percentile = v["percentile"].as_f64().unwrap_or(Settings::default().percentile);
        let bits = match v["bits"].as_u64() {
            None => Settings::default().bits,
            Some(b @ 2..=16) => b as u32,
            Some(b) => bail!("\"bits\" is {b}, expected 2 to 16"),
        };
        let method = Method { calibrator, settings: Settings { percentile, bits } };
        let samples = v["samples"].as_array().context("\"samples\" is no list")?;
        let samples = samples.iter().map(|s| Ok(s.as_str().context("\"samples\" holds no digests")?.to_owned()));
        let tensors = v["tensors"].as_object().context("\"tensors\" is no object")?;
        Ok(Cache {
            method,
            model: v["model"].as_str().context("\"model\" is missing")?.to_owned(),
            samples: samples.collect::<Result<_>>()?,
            tensors: tensors
                .iter()
                .map(|(name, v)| Ok((name.clone(), entry(&method, v).with_context(|| format!("tensor \"{name}\""))?)))
                .collect::<Result<_>>()?,
        })
    }

    /// A cache of ours or of another tool: see [`foreign`](super::foreign).
    ///
    /// # Errors
    /// It is neither, or a field is missing or wrong.
    pub fn from_text(text: &str) -> Result<Self> {
        match super::foreign::ranges(text)? {
            Some(ranges) => {
                let method = Method { calibrator: &super::min_max::CALIBRATOR, settings: Settings::default() };
                let tensors = ranges.into_iter().map(|(name, (min, max))| {
                    let tracker = Tracker::load(&method, &json!({ "min": min, "max": max, "n": 1 }))?;
                    Ok((name, Entry { tracker, edited: None }))
                });
                let tensors = tensors.collect::<Result<_>>()?;
                Ok(Cache { method, model: String::new(), samples: Vec::new(), tensors })
            }
            None => Self::from_json(text),
        }
    }

    /// Whether another tool made it: then it is not known for which model and from which samples.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.model.is_empty()
    }

    /// Checks that the cache was made for a model, with a method where one is asked for, and of these samples (their
    /// digests, in any order) where they are known.
    ///
    /// # Errors
    /// It was not; the error says what does not match.
    pub fn check(&self, model: &str, method: Option<&Calibrator>, samples: Option<&[String]>) -> Result<()> {
        if let Some(m) = method {
            let of = self.method.calibrator.name;
            ensure!(of == m.name, "the cache was made with method {of}, not {}", m.name);
        }
        if self.is_foreign() {
            return Ok(());
        }
        ensure!(self.model == model, "the cache was made for another model: the file's digest is not the one in it");
        if let Some(given) = samples {
            let set: BTreeSet<&String> = self.samples.iter().collect();
            let missing = given.iter().filter(|s| !set.contains(s)).count();
            ensure!(
                missing == 0,
                "the cache was made of other samples: {missing} of the {} given are not in it",
                given.len()
            );
        }
        Ok(())
    }

    /// Takes over what was observed on later samples of the same model.
    ///
    /// # Errors
    /// The caches are of different models, methods or tensors, share samples, or were edited differently.
    pub fn merge(&mut self, later: &Cache) -> Result<()> {
        ensure!(self.model == later.model, "the caches are of different models");
        ensure!(self.method == later.method, "the caches are of different methods or settings");
        let shared = later.samples.iter().filter(|s| self.samples.contains(s)).count();
        ensure!(shared == 0, "{shared} samples are in both caches and would count twice");
        for (name, theirs) in &later.tensors {
            let ours = self.tensors.get_mut(name).ok_or_else(|| anyhow!("tensor \"{name}\" is in one cache only"))?;
            let what = || format!("tensor \"{name}\"");
            ours.tracker.merge(&theirs.tracker).with_context(what)?;
            ours.edited = match (ours.edited, theirs.edited) {
                (Some(a), Some(b)) if a != b => bail!("tensor \"{name}\" was edited to different ranges"),
                (a, b) => a.or(b),
            };
        }
        if let Some(name) = self.tensors.keys().find(|n| !later.tensors.contains_key(*n)) {
            bail!("tensor \"{name}\" is in one cache only");
        }
        self.samples.extend(later.samples.iter().cloned());
        Ok(())
    }
}

fn entry(method: &Method, v: &Value) -> Result<Entry> {
    let tracker = Tracker::load(method, v)?;
    let written = match v.get("range") {
        None | Some(Value::Null) => None,
        Some(r) => {
            let side = |i: usize| r.get(i).and_then(Value::as_f64).map(|x| x as f32).filter(|x| x.is_finite());
            match (side(0), side(1)) {
                (Some(low), Some(high)) if low <= high => Some((low, high)),
                _ => bail!("\"range\" is no list of a smaller and a larger number"),
            }
        }
    };
    let edited = written.filter(|r| tracker.range() != Some(*r));
    Ok(Entry { tracker, edited })
}
