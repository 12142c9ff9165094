//! A folder of `.npy` files: each a sample of a model's only input, or sorted by input, as files `INPUT_KEY.npy` or in
//! a folder per input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::array::Array;
use super::check::{Holds, InputSpec};
use super::files::{Bundle, Files};
use super::npy_file::only_input;
use super::{
    Dataset, NaturalKey, Request, Source, file_name, has_extension, listing, natural_key, note_ignored, same_count,
    stem, with_extension,
};
use crate::diag::Sink;
use crate::error::{Result, WithHelp, anyhow, bail};

pub(super) const SOURCE: Source =
    Source { accepts: "a folder of .npy files (one input; or INPUT_KEY.npy; or a folder of .npy per input)", open };

/// One array per input for each sample.
type Groups<'a> = Vec<Vec<(&'a InputSpec, PathBuf)>>;

fn open(path: &Path, request: &Request, sink: &mut Sink) -> Result<Option<Box<dyn Dataset>>> {
    let groups = match with_extension(path, "npy", sink)? {
        Some(files) if request.specs.iter().filter(|s| s.is_required).count() > 1 => by_name(files, request, path)?,
        Some(files) => {
            let spec = only_input(&request.specs, path)?;
            files.into_iter().map(|f| vec![(spec, f)]).collect()
        }
        None => match by_folder(path, request, sink)? {
            Some(groups) => groups,
            None => return Ok(None),
        },
    };
    let mut bundles = Vec::with_capacity(groups.len());
    for group in groups {
        let origin = group.first().map_or_else(String::new, |(_, f)| format!("'{}'", file_name(f)));
        let arrays = group.into_iter().map(|(s, f)| Ok((s.clone(), Array::npy(&f)?))).collect::<Result<_>>()?;
        bundles.push(Bundle::of_inputs(origin, arrays, Holds::One)?);
    }
    Ok(Some(Box::new(Files::new(bundles))))
}

/// A name as it may stand in a file system: everything but letters and digits is the same.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect()
}

/// Files named `INPUT_KEY.npy`, grouped by key.
fn by_name<'a>(files: Vec<PathBuf>, request: &'a Request, folder: &Path) -> Result<Groups<'a>> {
    let mut groups: BTreeMap<NaturalKey, Vec<(&InputSpec, PathBuf)>> = BTreeMap::new();
    for file in files {
        let stem = plain(&stem(&file));
        // The longest name wins: "x_mask_0" belongs to "x_mask", not to "x".
        let of = request
            .specs
            .iter()
            .filter_map(|s| Some((s, stem.strip_prefix(&plain(&s.name))?)))
            .filter(|(_, key)| key.is_empty() || key.starts_with('_'))
            .min_by_key(|(_, key)| key.len());
        let Some((spec, key)) = of else {
            let names = request.specs.iter().map(|s| format!("\"{}\"", s.name)).collect::<Vec<_>>().join(", ");
            return Err(anyhow!("'{}' does not start with the name of an input ({names})", file.display()))
                .help(|| "name the files INPUT_KEY.npy, with the same keys for every input".into());
        };
        groups.entry(natural_key(key)).or_default().push((spec, file));
    }
    for ((_, key), group) in &groups {
        if let Some(missing) =
            request.specs.iter().find(|s| s.is_required && !group.iter().any(|(g, _)| g.name == s.name))
        {
            bail!("'{}': no file for input \"{}\" with key \"{key}\"", folder.display(), missing.name);
        }
    }
    Ok(groups.into_values().collect())
}

/// A folder of files per input: the files of the same rank belong together.
fn by_folder<'a>(path: &Path, request: &'a Request, sink: &mut Sink) -> Result<Option<Groups<'a>>> {
    if !path.is_dir() {
        return Ok(None);
    }
    let entries = listing(path)?;
    let folder_of = |s: &InputSpec| entries.iter().find(|e| e.is_dir() && plain(&file_name(e)) == plain(&s.name));
    let mut columns: Vec<(&InputSpec, Vec<PathBuf>)> = Vec::new();
    for spec in &request.specs {
        let Some(folder) = folder_of(spec) else { continue };
        let files: Vec<PathBuf> = listing(folder)?.into_iter().filter(|f| has_extension(f, "npy")).collect();
        columns.push((spec, files));
    }
    if columns.is_empty() {
        return Ok(None);
    }
    if let Some(missing) =
        request.specs.iter().find(|s| s.is_required && !columns.iter().any(|(c, _)| c.name == s.name))
    {
        bail!("'{}': no folder for input \"{}\"", path.display(), missing.name);
    }
    let others: Vec<PathBuf> =
        entries.iter().filter(|e| !request.specs.iter().any(|s| folder_of(s) == Some(e))).cloned().collect();
    note_ignored(path, &others, sink);
    let counts: Vec<_> = columns.iter().map(|(s, files)| (s.name.clone(), files.len())).collect();
    let n = same_count(&counts).map_err(|e| anyhow!("'{}': {e}", path.display()))?;
    Ok(Some((0..n).map(|i| columns.iter().map(|(s, files)| (*s, files[i].clone())).collect()).collect()))
}
