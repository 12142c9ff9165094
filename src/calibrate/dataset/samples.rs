//! All samples of a run: converts and checks each as it is read, and remembers what it has seen, so that data which
//! cannot be right (all samples equal, an input that never changes) is reported.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::check::{self, InputSpec};
use super::{Dataset, Sample};
use crate::diag::Sink;
use crate::error::{Location, Result, anyhow};
use crate::tensor::{DType, Tensor};
use crate::with_data;

/// Samples of several parts, checked as they are read.
pub struct Samples {
    parts: Vec<Box<dyn Dataset>>,
    specs: Vec<InputSpec>,
    seen: Mutex<Seen>,
}

impl std::fmt::Debug for Samples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Samples({})", self.len())
    }
}

/// What was seen of the samples that were read.
#[derive(Default)]
struct Seen {
    digests: BTreeMap<usize, [u8; 32]>,
    /// Inputs whose elements were not all the same.
    varying: BTreeSet<String>,
    /// Inputs that hold minus infinity.
    infinite: BTreeSet<String>,
    /// Inputs that were converted, with both types.
    converted: BTreeSet<(String, DType, DType)>,
}

impl Samples {
    pub(super) fn new(parts: Vec<Box<dyn Dataset>>, specs: Vec<InputSpec>) -> Self {
        Samples { parts, specs, seen: Mutex::default() }
    }

    /// No samples, for what needs no data.
    #[must_use]
    pub fn none() -> Self {
        Samples::new(Vec::new(), Vec::new())
    }

    /// The digest of every sample that was read, by number: equal data has equal digests wherever it is stored.
    #[must_use]
    pub fn digests(&self) -> BTreeMap<usize, [u8; 32]> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).digests.clone()
    }

    /// Reports how the samples that were read became inputs: conversions, elements that were taken for a mask.
    pub fn report_reading(&self, sink: &mut Sink) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, from, to) in &seen.converted {
            sink.note("converted-input", Location::value(name), format!("data of type {from} was converted to {to}"));
        }
        for name in &seen.infinite {
            sink.note("infinite-input", Location::value(name), "data holds minus infinity, taken for a mask");
        }
    }

    /// [`Self::report_reading`], and what looks wrong with samples that ranges are taken from: equal samples, inputs
    /// that never vary.
    pub fn report(&self, sink: &mut Sink) {
        self.report_reading(sink);
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let n = seen.digests.len();
        let distinct = seen.digests.values().collect::<BTreeSet<_>>().len();
        if n > 1 && distinct == 1 {
            sink.warn("identical-samples", Location::default(), format!("all {n} samples are the same"));
        } else if distinct < n {
            let message = format!("{} of {n} samples are copies of others", n - distinct);
            sink.warn("identical-samples", Location::default(), message);
        }
        for spec in self.specs.iter().filter(|s| n > 0 && s.ty.dtype.is_some_and(DType::is_float)) {
            if spec.is_required && !seen.varying.contains(&spec.name) {
                let message = "every element of every sample is the same";
                sink.warn("constant-input", Location::value(&spec.name), message);
            }
        }
    }

    fn read(&self, i: usize) -> Result<Sample> {
        let mut first = 0;
        for part in &self.parts {
            if i - first < part.len() {
                return part.sample(i - first);
            }
            first += part.len();
        }
        Err(anyhow!("there is no sample {i} of {first}"))
    }
}

impl Dataset for Samples {
    fn name(&self, mut i: usize) -> Option<String> {
        for part in &self.parts {
            if i < part.len() {
                return part.name(i);
            }
            i -= part.len();
        }
        None
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|p| p.len()).sum()
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        let mut sample = self.read(i)?;
        // What is to be said of a sample is found when it is read first; it is equal at each call.
        let is_known = self.seen.lock().unwrap_or_else(PoisonError::into_inner).digests.contains_key(&i);
        let mut found = Seen::default();
        let mut digest = Sha256::new();
        for (name, tensor) in &mut sample.inputs {
            let Some(spec) = self.specs.iter().find(|s| s.name == *name) else { continue };
            let from = tensor.dtype();
            if !is_known {
                check::check_values(spec, tensor, &sample.origin)?;
            }
            *tensor = check::convert(spec, tensor.clone(), &sample.origin)?;
            if is_known {
                continue;
            }
            if from != tensor.dtype() {
                found.converted.insert((name.clone(), from, tensor.dtype()));
            }
            if varies(tensor) {
                found.varying.insert(name.clone());
            }
            if from.is_float() && holds_minus_infinity(tensor)? {
                found.infinite.insert(name.clone());
            }
            add_to_digest(name, tensor, &mut digest);
        }
        if is_known {
            return Ok(sample);
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.converted.append(&mut found.converted);
        seen.varying.append(&mut found.varying);
        seen.infinite.append(&mut found.infinite);
        seen.digests.insert(i, digest.finalize().into());
        Ok(sample)
    }
}

fn holds_minus_infinity(tensor: &Tensor) -> Result<bool> {
    Ok(match tensor.slice::<f32>() {
        Ok(v) => v.contains(&f32::NEG_INFINITY),
        Err(_) => tensor.to_f64s()?.contains(&f64::NEG_INFINITY),
    })
}

/// Whether two elements differ. A scalar counts as varying: there is nothing to compare it with.
fn varies(tensor: &Tensor) -> bool {
    tensor.len() <= 1 || with_data!(tensor.data(), T, b => b.as_slice().windows(2).any(|w| w[0] != w[1]))
}

fn add_to_digest(name: &str, tensor: &Tensor, digest: &mut Sha256) {
    digest.update(name);
    digest.update([0]);
    digest.update(tensor.dtype().code().to_le_bytes());
    digest.update((tensor.rank() as u64).to_le_bytes());
    for &d in tensor.shape() {
        digest.update((d as u64).to_le_bytes());
    }
    // Not written anywhere but in digests, so any fixed form of the bytes does.
    let mut bytes = Vec::new();
    if super::npy::write(tensor, &mut bytes).is_ok() {
        digest.update(bytes);
    } else if let Ok(values) = tensor.to_f64s() {
        for v in values {
            digest.update(v.to_le_bytes());
        }
    }
}
