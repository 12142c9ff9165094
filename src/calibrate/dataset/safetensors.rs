//! One `.safetensors` file: tensors named by input whose first axis counts samples.
//!
//! Format: <https://github.com/huggingface/safetensors#format>: eight bytes of length, a JSON header of that length with
//! type, shape and place of each tensor, then the elements, little-endian and row-major.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::array::Array;
use super::check::Holds;
use super::files::{Bundle, Files};
use super::npy::Header;
use super::{Dataset, Request, Source, file_name, has_extension};
use crate::diag::Sink;
use crate::error::{Context, Result, bail, ensure};
use crate::tensor::DType;

pub(super) const SOURCE: Source =
    Source { accepts: "a .safetensors file (tensors named by input, the first axis counts samples)", open };

/// Longer headers are refused, as the format's own readers do.
const MAX_HEADER: u64 = 100_000_000;

fn open(path: &Path, request: &Request, _: &mut Sink) -> Result<Option<Box<dyn Dataset>>> {
    if !has_extension(path, "safetensors") {
        return Ok(None);
    }
    let arrays = arrays(path).with_context(|| format!("cannot read '{}'", path.display()))?;
    let bundle = Bundle::named(format!("'{}'", file_name(path)), arrays, &request.specs, Holds::Many)?;
    Ok(Some(Box::new(Files::new(vec![bundle]))))
}

fn arrays(path: &Path) -> Result<Vec<(String, Array)>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).context("is truncated")?;
    let length = u64::from_le_bytes(length);
    ensure!(length <= MAX_HEADER && length + 8 <= size, "is no .safetensors file: its header has {length} bytes");
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)?;
    let header: Value = serde_json::from_slice(&header).context("is no .safetensors file: its header is no JSON")?;
    let tensors = header.as_object().context("is no .safetensors file: its header is no object")?;
    let mut arrays = Vec::with_capacity(tensors.len());
    for (name, v) in tensors.iter().filter(|(name, _)| *name != "__metadata__") {
        let array = tensor(v, length + 8).and_then(|h| Array::raw(path, h, size));
        arrays.push((name.clone(), array.with_context(|| format!("tensor \"{name}\""))?));
    }
    Ok(arrays)
}

fn tensor(v: &Value, data: u64) -> Result<Header> {
    let dtype = match v["dtype"].as_str() {
        Some("F64") => DType::F64,
        Some("F32") => DType::F32,
        Some("F16") => DType::F16,
        Some("I64") => DType::I64,
        Some("I32") => DType::I32,
        Some("I16") => DType::I16,
        Some("I8") => DType::I8,
        Some("U64") => DType::U64,
        Some("U32") => DType::U32,
        Some("U16") => DType::U16,
        Some("U8") => DType::U8,
        Some("BOOL") => DType::Bool,
        other => bail!("type {} is not read here", other.unwrap_or("(none)")),
    };
    let shape = v["shape"].as_array().context("\"shape\" is no list")?;
    let shape = shape.iter().map(|d| d.as_u64().map(|d| d as usize)).collect::<Option<Vec<_>>>();
    let (begin, end) = (v["data_offsets"][0].as_u64(), v["data_offsets"][1].as_u64());
    let (Some(shape), Some(begin), Some(end)) = (shape, begin, end) else { bail!("its header is incomplete") };
    let start = begin.checked_add(data).context("its place is out of bounds")?;
    let header = Header::raw(dtype, shape, start);
    ensure!(end.checked_sub(begin) == Some(header.n_bytes()? as u64), "its shape and its place do not agree");
    Ok(header)
}
