//! Data that a model is run on: for calibration, for the quality report, for `run`.
//!
//! A [`Dataset`] gives samples by number, from any thread; nothing is read before it is asked for but the headers,
//! which are checked against the model's inputs before anything runs. Accepted are, alone or several together:
//!
//! | Path | A sample is |
//! |---|---|
//! | folder of `.npz` | a file: arrays named by input |
//! | folder of `.npy` | a file, for a model of one input |
//! | folder with a folder of `.npy` per input | the files of the same rank in each folder |
//! | folder of `INPUT_KEY.npy` | the files of the same key |
//! | one `.npz`, `.npy` or `.safetensors` | an index of the first axis |
//! | a `.txt` list | a line: the `.npy` or `.raw` file of each input |
//! | folder of images, or of folders of images | an image, made a tensor by [`ImageOptions`] |
//! | folder of `test_data_set_N` with `input_M.pb`, or one such folder | a folder; `M` counts the inputs |
//! | `random` | numbers: to see that a model runs, not to calibrate it |
//!
//! Files are taken in natural order (`2.npz` before `10.npz`). An array whose first axis is several times the fixed one
//! of the input is cut into samples; where the file is one sample and the model's first dimension is open, it stays whole.
//!
//! **Add a source:** a new file here with a `pub(super) const SOURCE: Source`, and its name in the `sources!` list.

mod array;
mod check;
mod files;
pub mod npy;
mod samples;
mod split;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::diag::Sink;
use crate::error::{Context, Result, WithHelp, anyhow, bail, ensure};
use crate::tensor::Tensor;

pub use check::{InputSpec, input_specs, is_similar};
pub use image_folder::{ImageOptions, Resize};
pub use samples::Samples;
pub use split::{Split, Subset, split};

/// One sample: a tensor for each input that it gives.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Where it comes from, for messages: the file, and the index in it.
    pub origin: String,
    /// Input names and their tensors.
    pub inputs: Vec<(String, Tensor)>,
}

/// Numbered samples that can be read from several threads.
pub trait Dataset: Send + Sync {
    /// The number of samples.
    fn len(&self) -> usize;

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads sample `i`; equal at each call.
    ///
    /// # Errors
    /// There is no such sample, its file cannot be read, or it does not fit the model's inputs.
    fn sample(&self, i: usize) -> Result<Sample>;

    /// The path of the file that sample `i` is, without reading it; `None` for samples that share a file or have none.
    fn name(&self, i: usize) -> Option<String> {
        let _ = i;
        None
    }
}

/// What a data set is opened for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The inputs of the model.
    pub specs: Vec<InputSpec>,
    /// Shapes for `random`, by input, where the model leaves dimensions open.
    pub shapes: Vec<(String, Vec<usize>)>,
    /// How images become tensors.
    pub image: ImageOptions,
    /// Selects the numbers of `random`.
    pub seed: u64,
}

/// A way to store data.
pub(super) struct Source {
    /// What it accepts, for messages.
    accepts: &'static str,
    /// The data set at a path, or `None` when the path holds something else.
    open: Open,
}

type Open = fn(&Path, &Request, &mut Sink) -> Result<Option<Box<dyn Dataset>>>;

/// What [`natural_key`] gives.
type NaturalKey = (Vec<(String, u128)>, String);

macro_rules! sources {
    ($($name:ident)*) => {
        $(mod $name;)*
        /// All sources; the first that takes a path has it.
        const SOURCES: &[&Source] = &[$(&$name::SOURCE,)*];
    };
}

sources! {
    random
    npz_file
    npy_file
    test_data_set
    npz_folder
    npy_folder
    safetensors
    list_file
    image_folder
}

/// A warning is given when there are fewer samples than this.
const FEW_SAMPLES: usize = 16;

/// Opens the data at these paths, one after the other, and checks every header against the model's inputs.
///
/// # Errors
/// A path does not exist, holds nothing that is accepted, or does not fit the model's inputs.
pub fn open(paths: &[PathBuf], request: &Request, sink: &mut Sink) -> Result<Samples> {
    ensure!(!paths.is_empty(), "no data was given");
    let mut parts = Vec::with_capacity(paths.len());
    for path in paths {
        parts.push(open_one(path, request, sink)?);
    }
    let samples = Samples::new(parts, request.specs.clone());
    if samples.len() < FEW_SAMPLES {
        sink.warn(
            "few-samples",
            crate::error::Location::default(),
            format!("{} samples; ranges are more reliable with {FEW_SAMPLES} or more", samples.len()),
        );
    }
    Ok(samples)
}

fn open_one(path: &Path, request: &Request, sink: &mut Sink) -> Result<Box<dyn Dataset>> {
    for source in SOURCES {
        if let Some(data) = (source.open)(path, request, sink)? {
            ensure!(!data.is_empty(), "'{}' holds no samples", path.display());
            return Ok(data);
        }
    }
    let meta = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            bail!("cannot read data '{}': no such file or folder", path.display())
        }
        meta => meta.with_context(|| format!("cannot read data '{}'", path.display()))?,
    };
    let found = if !meta.is_dir() {
        "is no data file that is known".to_owned()
    } else {
        let names: Vec<String> = listing(path)?.iter().map(|p| file_name(p)).collect();
        match names.as_slice() {
            [] => "is an empty folder".to_owned(),
            [first] => format!("holds only '{first}', which is no data"),
            [first, .., last] => format!("holds {} files ('{first}' to '{last}'), none of them data", names.len()),
        }
    };
    Err(anyhow!("data '{}' {found}", path.display())).help(|| format!("accepted are {}", accepted()))
}

/// The `test_data_set_N` folders at a path that hold outputs, in natural order; none when it holds no such thing.
///
/// # Errors
/// The folder cannot be read.
pub fn stored_outputs(path: &Path) -> Result<Vec<PathBuf>> {
    test_data_set::folders(path, "output_0.pb")
}

/// What can be given as data, in one line.
#[must_use]
pub fn accepted() -> String {
    let mut text = String::new();
    for (i, source) in SOURCES.iter().enumerate() {
        let separator = match i {
            0 => "",
            i if i + 1 == SOURCES.len() => " or ",
            _ => ", ",
        };
        let _ = write!(text, "{separator}{}", source.accepts);
    }
    text
}

/// The entries of a folder in natural order, hidden ones left out.
fn listing(folder: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("cannot read folder '{}'", folder.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(what)? {
        let path = entry.with_context(what)?.path();
        if !file_name(&path).starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort_by_cached_key(|p| natural_key(&file_name(p)));
    Ok(paths)
}

/// Splits the entries of a folder into those with an extension and the others, and notes how many others there are.
fn with_extension(folder: &Path, extension: &str, sink: &mut Sink) -> Result<Option<Vec<PathBuf>>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let (ours, others): (Vec<_>, Vec<_>) = listing(folder)?.into_iter().partition(|p| has_extension(p, extension));
    if ours.is_empty() {
        return Ok(None);
    }
    note_ignored(folder, &others, sink);
    Ok(Some(ours))
}

/// Notes the entries of a folder that are not read.
fn note_ignored(folder: &Path, others: &[PathBuf], sink: &mut Sink) {
    if let [first, rest @ ..] = others {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        sink.note(
            "ignored-files",
            crate::error::Location::default(),
            format!("'{}': '{}'{more} ignored", folder.display(), file_name(first)),
        );
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.is_file() && path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

/// The last part of a path, as text.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The name of a file without its extension, as text.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A key that sorts numbers in names by value: pairs of text and number, then the name itself.
fn natural_key(name: &str) -> NaturalKey {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, after) = rest.split_at(digits);
        let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(end);
        // Longer runs of digits than this are hashes, which have no natural order anyway.
        key.push((text.to_owned(), number.get(..number.len().min(38)).and_then(|n| n.parse().ok()).unwrap_or(0)));
        rest = after;
    }
    (key, name.to_owned())
}

/// Fails unless every part has the same number of samples.
fn same_count(counts: &[(String, usize)]) -> Result<usize> {
    let Some((_, n)) = counts.first() else { bail!("no arrays") };
    ensure!(
        counts.iter().all(|(_, m)| m == n),
        "the inputs have different numbers of samples: {}",
        counts.iter().map(|(name, n)| format!("\"{name}\" {n}")).collect::<Vec<_>>().join(", ")
    );
    Ok(*n)
}

#[cfg(test)]
mod tests;
