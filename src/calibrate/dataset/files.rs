//! Samples in files: which arrays make up which samples.

use std::path::Path;
use std::sync::Arc;

use super::array::Array;
use super::check::{self, Cut, Holds, InputSpec};
use super::{Dataset, Sample, same_count};
use crate::error::{Result, anyhow};

/// The arrays of one file (or of files that belong together) and how they are cut into samples.
pub(super) struct Bundle {
    origin: String,
    /// The path of the first array's file.
    name: String,
    parts: Vec<Part>,
    n_samples: usize,
}

struct Part {
    spec: InputSpec,
    array: Arc<Array>,
    cut: Cut,
    /// The same for all samples.
    is_shared: bool,
}

impl Bundle {
    /// Takes named arrays as samples and checks the headers against the inputs.
    pub(super) fn named(
        origin: String,
        arrays: Vec<(String, Array)>,
        specs: &[InputSpec],
        holds: Holds,
    ) -> Result<Self> {
        let (names, mut arrays): (Vec<String>, Vec<Option<Array>>) =
            arrays.into_iter().map(|(n, a)| (n, Some(a))).unzip();
        let found = check::match_names(specs, &names, &origin)?;
        let mut of_inputs = Vec::with_capacity(specs.len());
        for (spec, i) in specs.iter().zip(found) {
            if let Some(array) = i.and_then(|i| arrays[i].take()) {
                of_inputs.push((spec.clone(), array));
            }
        }
        Self::of_inputs(origin, of_inputs, holds)
    }

    /// Takes arrays whose inputs are known as samples and checks the headers.
    pub(super) fn of_inputs(origin: String, arrays: Vec<(InputSpec, Array)>, holds: Holds) -> Result<Self> {
        let name = arrays.first().map(|(_, a)| a.path().to_string_lossy().into_owned()).unwrap_or_default();
        let mut parts = Vec::with_capacity(arrays.len());
        let mut counts = Vec::new();
        for (spec, array) in arrays {
            let (cut, n) = match array.ty() {
                Some((dtype, shape)) => {
                    let label = array.label();
                    check::check_dtype(&spec, dtype, &label)?;
                    let (cut, n) = check::cut(&spec, shape, holds);
                    check::check_shape(&spec, &check::cut_shape(cut, shape), &label)?;
                    (cut, n)
                }
                None => (Cut::Whole, Some(1)),
            };
            if let Some(n) = n {
                counts.push((spec.name.clone(), n));
            }
            parts.push(Part { spec, array: Arc::new(array), cut, is_shared: n.is_none() });
        }
        // An array of one sample beside arrays of many is meant for all of them (a sampling rate, a state).
        let most = counts.iter().map(|(_, n)| *n).max().unwrap_or(1);
        if most > 1 {
            for part in &mut parts {
                if let Some(i) = counts.iter().position(|(name, n)| *name == part.spec.name && *n == 1) {
                    counts.remove(i);
                    part.is_shared = true;
                }
            }
        }
        let n_samples =
            if counts.is_empty() { 1 } else { same_count(&counts).map_err(|e| anyhow!("{origin}: {e}"))? };
        Ok(Bundle { origin, name, parts, n_samples })
    }

    /// Goes by another name than the first array's file.
    pub(super) fn called(self, path: &Path) -> Self {
        Bundle { name: path.to_string_lossy().into_owned(), ..self }
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        let mut inputs = Vec::with_capacity(self.parts.len());
        for Part { spec, array, cut, is_shared } in &self.parts {
            let tensor = match (cut, is_shared) {
                (Cut::Whole, _) => array.load()?,
                (Cut::Rows(n), true) => array.rows(0, *n)?,
                (Cut::Rows(n), false) => array.rows(i * n, *n)?,
                (Cut::Drop, shared) => {
                    let row = array.rows(if *shared { 0 } else { i }, 1)?;
                    let shape = row.shape()[1..].to_vec();
                    row.reshaped(&shape)?
                }
            };
            let label = array.label();
            check::check_dtype(spec, tensor.dtype(), &label)?;
            check::check_shape(spec, tensor.shape(), &label)?;
            inputs.push((spec.name.clone(), tensor));
        }
        let origin = if self.n_samples == 1 { self.origin.clone() } else { format!("{}, sample {i}", self.origin) };
        Ok(Sample { origin, inputs })
    }
}

/// Samples in bundles, in order.
pub(super) struct Files {
    bundles: Vec<Bundle>,
    /// Bundle and index in it, by sample.
    index: Vec<(u32, u32)>,
}

impl Files {
    pub(super) fn new(bundles: Vec<Bundle>) -> Self {
        let index = bundles
            .iter()
            .enumerate()
            .flat_map(|(b, bundle)| (0..bundle.n_samples).map(move |i| (b as u32, i as u32)))
            .collect();
        Files { bundles, index }
    }
}

impl Dataset for Files {
    fn len(&self) -> usize {
        self.index.len()
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        let &(bundle, i) = self.index.get(i).ok_or_else(|| anyhow!("there is no sample {i}"))?;
        self.bundles[bundle as usize].sample(i as usize)
    }

    fn name(&self, i: usize) -> Option<String> {
        let bundle = &self.bundles[self.index.get(i)?.0 as usize];
        (bundle.n_samples == 1).then(|| bundle.name.clone())
    }
}
