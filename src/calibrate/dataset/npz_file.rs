//! One `.npz` file: arrays named by input whose first axis counts samples.

use std::path::Path;

use super::array::Array;
use super::check::Holds;
use super::files::{Bundle, Files};
use super::{Dataset, Request, Source, file_name, has_extension};
use crate::diag::Sink;
use crate::error::Result;

pub(super) const SOURCE: Source =
    Source { accepts: "an .npz file (arrays named by input, the first axis counts samples)", open };

fn open(path: &Path, request: &Request, _: &mut Sink) -> Result<Option<Box<dyn Dataset>>> {
    if !has_extension(path, "npz") {
        return Ok(None);
    }
    let bundle = Bundle::named(format!("'{}'", file_name(path)), Array::npz(path)?, &request.specs, Holds::Many)?;
    Ok(Some(Box::new(Files::new(vec![bundle]))))
}
