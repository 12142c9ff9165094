//! A folder of `.npz` files: each a sample, arrays named by input.

use std::path::Path;

use super::array::Array;
use super::check::Holds;
use super::files::{Bundle, Files};
use super::{Dataset, Request, Source, file_name, with_extension};
use crate::diag::Sink;
use crate::error::Result;

pub(super) const SOURCE: Source = Source { accepts: "a folder of .npz files (arrays named by input)", open };

fn open(path: &Path, request: &Request, sink: &mut Sink) -> Result<Option<Box<dyn Dataset>>> {
    let Some(files) = with_extension(path, "npz", sink)? else { return Ok(None) };
    let bundle = |file: &std::path::PathBuf| {
        Bundle::named(format!("'{}'", file_name(file)), Array::npz(file)?, &request.specs, Holds::One)
    };
    Ok(Some(Box::new(Files::new(files.iter().map(bundle).collect::<Result<_>>()?))))
}
