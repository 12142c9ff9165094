//! One `.npy` file for a model of one input: the first axis counts samples.

use std::path::Path;

use super::array::Array;
use super::check::{Holds, InputSpec};
use super::files::{Bundle, Files};
use super::{Dataset, Request, Source, file_name, has_extension};
use crate::diag::Sink;
use crate::error::{Result, WithHelp, anyhow};

pub(super) const SOURCE: Source = Source { accepts: "an .npy file (models of one input)", open };

fn open(path: &Path, request: &Request, _: &mut Sink) -> Result<Option<Box<dyn Dataset>>> {
    if !has_extension(path, "npy") {
        return Ok(None);
    }
    let spec = only_input(&request.specs, path)?;
    let arrays = vec![(spec.clone(), Array::npy(path)?)];
    let bundle = Bundle::of_inputs(format!("'{}'", file_name(path)), arrays, Holds::Many)?;
    Ok(Some(Box::new(Files::new(vec![bundle]))))
}

/// The one input that must be given.
pub(super) fn only_input<'a>(specs: &'a [InputSpec], path: &Path) -> Result<&'a InputSpec> {
    let required: Vec<_> = specs.iter().filter(|s| s.is_required).collect();
    if let [one] = required.as_slice() {
        return Ok(one);
    }
    let names = required.iter().map(|s| format!("\"{}\"", s.name)).collect::<Vec<_>>().join(", ");
    Err(anyhow!("'{}' holds one array, but the model has {} inputs: {names}", path.display(), required.len()))
        .help(|| "give an .npz of arrays named by input, or a folder of .npy per input".into())
}
