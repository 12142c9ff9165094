//! A text file that lists samples, one a line: the file of each input, in the order of the model's inputs or as
//! `input:=file`, separated by spaces (RKNN's `dataset.txt`, Qualcomm's `input_list.txt`).
//!
//! Files are `.npy`, or `.raw` and `.bin` with the input's elements, little-endian and row-major, whose shape is the
//! model's. Paths are relative to the list. Empty lines and lines that start with `#` or `%` are left out.

use std::path::{Path, PathBuf};

use super::array::Array;
use super::check::{Holds, InputSpec};
use super::files::{Bundle, Files};
use super::npy::Header;
use super::{Dataset, Request, Source, has_extension};
use crate::diag::Sink;
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::tensor::count;

pub(super) const SOURCE: Source = Source { accepts: "a .txt list of .npy or .raw files, a sample a line", open };

fn open(path: &Path, request: &Request, _: &mut Sink) -> Result<Option<Box<dyn Dataset>>> {
    if !has_extension(path, "txt") {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read '{}'", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut bundles = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', '%']) {
            continue;
        }
        let origin = format!("'{}' line {}", path.display(), i + 1);
        let bundle = arrays(line, folder, &request.specs)
            .and_then(|arrays| Bundle::of_inputs(origin.clone(), arrays, Holds::One))
            .with_context(|| origin.clone())?;
        bundles.push(bundle);
    }
    Ok(Some(Box::new(Files::new(bundles))))
}

fn arrays(line: &str, folder: &Path, specs: &[InputSpec]) -> Result<Vec<(InputSpec, Array)>> {
    let mut arrays = Vec::new();
    for (i, word) in line.split_whitespace().enumerate() {
        let (spec, file) = match word.split_once(":=") {
            Some((name, file)) => {
                let spec = specs.iter().find(|s| s.name == name);
                (spec.ok_or_else(|| anyhow!("\"{name}\" is no input of the model"))?, file)
            }
            None => (specs.get(i).ok_or_else(|| anyhow!("has more files than the model inputs"))?, word),
        };
        arrays.push((spec.clone(), array(&folder.join(file), spec)?));
    }
    for spec in specs.iter().filter(|s| s.is_required) {
        ensure!(arrays.iter().any(|(s, _)| s.name == spec.name), "has no file for input \"{}\"", spec.name);
    }
    Ok(arrays)
}

fn array(path: &PathBuf, spec: &InputSpec) -> Result<Array> {
    if has_extension(path, "npy") {
        return Array::npy(path);
    }
    if !has_extension(path, "raw") && !has_extension(path, "bin") {
        bail!("'{}' is no .npy, .raw or .bin file", path.display());
    }
    let size = std::fs::metadata(path).with_context(|| format!("cannot read '{}'", path.display()))?.len();
    let dtype = spec.ty.dtype.with_context(|| format!("the model does not say the type of \"{}\"", spec.name))?;
    let dims =
        spec.ty.shape.as_ref().with_context(|| format!("the model does not say the rank of \"{}\"", spec.name))?;
    // What one open dimension must be follows from the size.
    let known = count(&dims.iter().filter_map(|d| d.known()).collect::<Vec<_>>())?.max(1);
    let item = (dtype.bits() / 8).max(1);
    let open = usize::try_from(size)? / item / known;
    let n_open = dims.iter().filter(|d| d.known().is_none()).count();
    // Several open dimensions: the first counts samples, of which a file has one.
    ensure!(
        n_open <= 1 || (n_open == 2 && dims[0].known().is_none()),
        "the shape of \"{}\" is too open for a raw file",
        spec.name
    );
    let shape: Vec<usize> = dims
        .iter()
        .enumerate()
        .map(|(i, d)| d.known().unwrap_or(if n_open == 2 && i == 0 { 1 } else { open }))
        .collect();
    let header = Header::raw(dtype, shape, 0);
    let needed = header.n_bytes()? as u64;
    ensure!(
        needed == size,
        "'{}' has {size} bytes, input \"{}\" ({}) needs {needed}",
        path.display(),
        spec.name,
        spec.ty
    );
    Array::raw(path, header, size)
}
