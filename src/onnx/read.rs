//! Files to models: map, walk, decode, import.
//!
//! The file is memory-mapped and `bytes` fields point into the map, so a model of any size opens in the time that its
//! graph takes; weights are read when they are first used. The bytes are walked once before prost decodes them: that
//! finds fields that the schema does not know, and says where a damaged file breaks off.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use bytes::Bytes;
use prost::Message;

use super::external::{Folder, parent};
use super::import::import;
use super::proto::ModelProto;
use super::residue::KeptModel;
use super::unknown::{MODEL, scan};
use crate::error::{Context, Result, WithHelp, anyhow, bail, ensure};
use crate::ir::Model;

/// How much of a file is looked at to tell what it is.
const HEAD: usize = 512;

/// The model in a file.
///
/// # Errors
/// There is no such file, it is not an ONNX model, it is damaged, or its external data is missing, too short or
/// outside of the model's folder. The error is one line that starts with the path.
pub fn read(path: &Path) -> Result<Model> {
    read_file(path).with_context(|| path.display().to_string())
}

fn read_file(path: &Path) -> Result<Model> {
    let bytes = open(path)?;
    let origin = KeptModel {
        source: bytes.clone(),
        files: path.canonicalize().into_iter().collect(),
        base: parent(path).canonicalize().ok(),
        ..KeptModel::default()
    };
    decode(bytes, Folder::of_model(path)?, origin)
}

/// The model in `bytes`. External data is read from `base`; without it, external data is an error.
///
/// # Errors
/// As [`read`], without the path.
pub fn read_bytes(bytes: Bytes, base: Option<&Path>) -> Result<Model> {
    let folder = base.map(Folder::new).transpose()?.unwrap_or_default();
    let base = base.and_then(|b| b.canonicalize().ok());
    decode(bytes.clone(), folder, KeptModel { source: bytes, base, ..KeptModel::default() })
}

/// The bytes of a file that is there to be read, mapped.
pub(super) fn open(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => anyhow!("no such file"),
        ErrorKind::PermissionDenied => anyhow!("the file may not be read: permission denied"),
        _ => anyhow!("the file cannot be read: {e}"),
    })?;
    map(&file)
}

/// Maps a file.
///
/// # Errors
/// It is a directory or cannot be mapped.
#[allow(unsafe_code, reason = "the only way to map a file")]
pub(super) fn map(file: &File) -> Result<Bytes> {
    let meta = file.metadata()?;
    if meta.is_dir() {
        bail!("is a directory, expected a file");
    }
    if !meta.is_file() {
        // A pipe cannot be mapped.
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut &*file, &mut bytes)?;
        return Ok(bytes.into());
    }
    if meta.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is read-only and private to this process. Should another process shorten the file while we read,
    // the system ends us with a bus error; that is the known price of mapping, and we never write to an input.
    let map = unsafe { memmap2::Mmap::map(file) }.context("the file cannot be mapped")?;
    Ok(Bytes::from_owner(map))
}

/// Maps a part of a regular file.
///
/// # Errors
/// The file ends before, or cannot be mapped.
#[allow(unsafe_code, reason = "the only way to map a file")]
pub(super) fn map_range(file: &File, offset: u64, length: usize) -> Result<Bytes> {
    if length == 0 {
        return Ok(Bytes::new());
    }
    // The file may have been shortened since its size was looked at, and memory behind its end cannot be read.
    let end = offset.checked_add(u64::try_from(length)?);
    ensure!(end.is_some_and(|end| file.metadata().is_ok_and(|m| end <= m.len())), "the file has become shorter");
    // SAFETY: as for `map`.
    let map = unsafe { memmap2::MmapOptions::new().offset(offset).len(length).map(file) };
    Ok(Bytes::from_owner(map.context("the file cannot be mapped")?))
}

fn decode(bytes: Bytes, folder: Folder, origin: KeptModel) -> Result<Model> {
    if bytes.is_empty() {
        bail!("the file is empty");
    }
    if let Some(what) = not_a_model(&bytes) {
        return Err(anyhow!("{what}, not an ONNX model")).help(|| "give the path of a .onnx file".into());
    }
    let unknown = scan(&bytes, MODEL).map_err(|e| match starts_like_a_model(&bytes) {
        true => e.context("damaged ONNX model"),
        false => e.context("not an ONNX model"),
    })?;
    let model = ModelProto::decode(bytes.clone()).context("not an ONNX model")?;
    if model == ModelProto::default() {
        bail!("not an ONNX model: no field of a model in it");
    }
    import(model, unknown, folder, origin)
}

/// What the file is, if it is plainly something else.
fn not_a_model(bytes: &[u8]) -> Option<&'static str> {
    const KINDS: &[(usize, &[u8], &str)] = &[
        (0, b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
        (0, b"PK\x03\x04", "a zip archive, such as a PyTorch checkpoint"),
        (0, b"\x89HDF", "an HDF5 file, such as a Keras model"),
        (0, b"\x1f\x8b", "a gzip archive"),
        (0, b"\x80\x02", "a Python pickle, such as a PyTorch checkpoint"),
        (0, b"GGUF", "a GGUF file"),
        (0, b"<!DOCTYPE", "an HTML page"),
        (0, b"<html", "an HTML page"),
        (4, b"TFL3", "a TensorFlow Lite model"),
        (4, b"ORTM", "a model in ONNX Runtime's own format"),
    ];
    for (at, magic, what) in KINDS {
        if bytes.get(*at..).is_some_and(|b| b.starts_with(magic)) {
            return Some(what);
        }
    }
    // A model starts with a small number, such as that of its IR version: no text does.
    let head = bytes.get(..HEAD).unwrap_or(bytes);
    let is_text = |b: &u8| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..);
    let is_utf8 = match std::str::from_utf8(head) {
        Ok(_) => true,
        Err(e) => e.error_len().is_none(),
    };
    (is_utf8 && head.iter().all(is_text)).then_some("a text file")
}

/// Whether the first field is the IR version, as in every file that ONNX's own tools write.
fn starts_like_a_model(bytes: &[u8]) -> bool {
    matches!(bytes, [0x08, 1..=0x7f, ..])
}
