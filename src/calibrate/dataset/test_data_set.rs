//! Folders `test_data_set_N` with files `input_M.pb`, as ONNX's tests and model zoo have them: `M` counts the graph
//! inputs without initializers.

use std::path::{Path, PathBuf};

use super::array::Array;
use super::check::Holds;
use super::files::{Bundle, Files};
use super::{Dataset, Request, Source, file_name, listing};
use crate::diag::Sink;
use crate::error::{Result, bail};

pub(super) const SOURCE: Source = Source { accepts: "test_data_set_N folders with input_M.pb", open };

/// The folders of one sample each, in natural order: the path itself or what is in it; none when it holds no such thing.
/// Such a folder has the given file.
pub(super) fn folders(path: &Path, file: &str) -> Result<Vec<PathBuf>> {
    let is_set = |p: &PathBuf| p.is_dir() && p.join(file).is_file();
    if !path.is_dir() {
        Ok(Vec::new())
    } else if path.join(file).is_file() {
        Ok(vec![path.to_owned()])
    } else {
        Ok(listing(path)?.into_iter().filter(is_set).collect())
    }
}

fn open(path: &Path, request: &Request, _: &mut Sink) -> Result<Option<Box<dyn Dataset>>> {
    let folders = folders(path, "input_0.pb")?;
    if folders.is_empty() {
        return Ok(None);
    }
    let bundle = |folder: &PathBuf| {
        let mut arrays = Vec::new();
        for (i, spec) in request.specs.iter().enumerate() {
            let file = folder.join(format!("input_{i}.pb"));
            if file.is_file() {
                arrays.push((spec.clone(), Array::pb(&file)));
            } else if spec.is_required {
                bail!("'{}' has no input_{i}.pb for input \"{}\"", folder.display(), spec.name);
            }
        }
        let extra = folder.join(format!("input_{}.pb", request.specs.len()));
        if extra.is_file() {
            bail!("'{}' exists, but the model has {} inputs", extra.display(), request.specs.len());
        }
        Ok(Bundle::of_inputs(format!("'{}'", file_name(folder)), arrays, Holds::One)?.called(folder))
    };
    Ok(Some(Box::new(Files::new(folders.iter().map(bundle).collect::<Result<_>>()?))))
}
