//! Models to files: encode, put external data out, write a temporary file, rename.
//!
//! A model that no pass has changed is written byte for byte as it was read. The encoding of an unchanged model gives
//! the file's bytes for files that were encoded as protobuf recommends; for others (fields in another order, padded
//! numbers, duplicated entries), the encoding is compared with that of the file read again, and the file's bytes are
//! taken if they are equal.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use tempfile::NamedTempFile;

use super::export::{Role, export, verbatim};
use super::external::parent;
use super::proto::{ModelProto, StringStringEntryProto, TensorProto, tensor_proto::DataLocation};
use super::read::read_bytes;
use super::residue::KeptModel;
use super::tensor::{FileTensor, is_external, raw_size, to_message, to_raw};
use super::unknown::{MODEL, Unknown, splice};
use crate::error::{Context, Result, WithHelp, anyhow, ensure};
use crate::ir::{Def, Model, TensorRef};

/// Above this size a model's tensors go into an external file: protobuf ends at 2 GiB, and other tools want to add.
const AUTO_EXTERNAL: usize = 1_500_000_000;
/// Protobuf's own limit.
const PROTOBUF_LIMIT: usize = (1 << 31) - 1;
/// Tensors below this size stay in the model file.
const MIN_EXTERNAL: usize = 1024;
/// Tensors of at most one axis and this size stay too: scales, zero points, shapes, which tools want to see.
const MIN_EXTERNAL_VECTOR: usize = 1 << 18;
/// Where in an external file a tensor may start: a memory page, so that it can be mapped.
const ALIGNMENT: u64 = 4096;

/// Where the tensors of a model go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum External {
    /// Into an external file when the model is larger than 1.5 GB or had external data before.
    #[default]
    Auto,
    /// Into an external file.
    Always,
    /// Into the model file, which protobuf limits to 2 GiB.
    Never,
}

/// How to write a model.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Where tensors of 1 KiB and more go. The external file has the model's name with `.data` added and lies beside
    /// it; each tensor in it starts on a page of 4096 bytes. Scales, zero points and shapes stay in the model file.
    pub external: External,
    /// Files that must not be written over, besides those that the model was read from.
    pub inputs: Vec<PathBuf>,
}

/// The model as the bytes of a file. Tensors that were read from external data stay there.
///
/// # Errors
/// The graph has a cycle, or a stored tensor cannot be decoded.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>> {
    let (message, unknown) = export(model, &mut verbatim)?;
    match unchanged(model, &message, &unknown)? {
        Some(source) => Ok(source.to_vec()),
        None => encode(&message, &unknown),
    }
}

/// The model as protobuf recommends to encode it, even where the file it was read from was encoded in another way.
///
/// # Errors
/// As [`to_bytes`].
pub fn to_canonical_bytes(model: &Model) -> Result<Vec<u8>> {
    let (message, unknown) = export(model, &mut verbatim)?;
    encode(&message, &unknown)
}

fn encode(message: &ModelProto, unknown: &Unknown) -> Result<Vec<u8>> {
    let bytes = message.encode_to_vec();
    if unknown.is_empty() { Ok(bytes) } else { splice(&bytes, MODEL, unknown) }
}

/// The bytes that the model was read from, if nothing has changed since.
fn unchanged(model: &Model, message: &ModelProto, unknown: &Unknown) -> Result<Option<Bytes>> {
    let Some(kept) = model.residue.get::<KeptModel>() else { return Ok(None) };
    let n_nodes = message.graph.as_ref().map_or(0, |g| g.node.len());
    if kept.source.is_empty() || n_nodes != kept.n_nodes {
        return Ok(None);
    }
    let again = match read_bytes(kept.source.clone(), kept.base.as_deref()) {
        Ok(again) => again,
        // External data that has gone since: then nothing is known of it, and nothing is lost by encoding anew.
        Err(_) => return Ok(None),
    };
    let (before, unknown_before) = export(&again, &mut verbatim)?;
    // Not-a-number differs from itself, but its bytes do not.
    let same = *unknown == unknown_before
        && (before == *message
            || before.encoded_len() == message.encoded_len() && before.encode_to_vec() == message.encode_to_vec());
    Ok(same.then(|| kept.source.clone()))
}

/// Writes the model to `path`: first external data, if there is any, then the model, each as a temporary file in the
/// same folder that is flushed to the disk and renamed, so that nobody ever sees half a file.
///
/// # Errors
/// The path is the model's input or one of [`WriteOptions::inputs`], its folder does not exist or may not be written,
/// the model is too large for one file, or as [`to_bytes`].
pub fn write(model: &Model, path: &Path, options: &WriteOptions) -> Result<()> {
    write_model(model, path, options).with_context(|| path.display().to_string())
}

fn write_model(model: &Model, path: &Path, options: &WriteOptions) -> Result<()> {
    let target = target(model, path, &options.inputs)?;
    if options.external != External::Never && is_large_and_new(model) {
        return write_external(model, &target, &options.inputs);
    }
    let (message, unknown) = export(model, &mut verbatim)?;
    let source = unchanged(model, &message, &unknown)?;
    let kept = model.residue.get::<KeptModel>();
    let stays = kept.and_then(|k| k.base.as_deref()) == parent(&target).canonicalize().ok().as_deref();
    let has_external = has_external(&message);
    let size = message.encoded_len();

    let external = match options.external {
        External::Always => true,
        External::Never => false,
        External::Auto => size > AUTO_EXTERNAL || has_external,
    };
    if let Some(source) = source
        && options.external != External::Always
        && ((stays && has_external) || !external && !has_external)
    {
        return replace(&target, &source);
    }
    if !external && !has_external {
        ensure!(size <= PROTOBUF_LIMIT, "{size} bytes are too many for one file: write external data");
        return replace(&target, &encode(&message, &unknown)?);
    }
    drop(message);
    if !external {
        let (message, unknown) = export(model, &mut inline)?;
        let size = message.encoded_len();
        ensure!(size <= PROTOBUF_LIMIT, "{size} bytes are too many for one file: write external data");
        return replace(&target, &encode(&message, &unknown)?);
    }
    write_external(model, &target, &options.inputs)
}

/// Whether a model has changed and is to have external data, so that its tensors go there one at a time.
fn is_large_and_new(model: &Model) -> bool {
    let stored = || {
        model.graph_ids().flat_map(|id| {
            let g = model.graph(id);
            g.initializers().iter().filter_map(|&v| match &g.value(v).def {
                Def::Initializer(t) | Def::Overridable(t) => Some(t),
                _ => None,
            })
        })
    };
    let in_a_file = |t: &TensorRef| t.source().as_any().is::<FileTensor>();
    let size = stored().map(raw_size).fold(0, usize::saturating_add);
    let had_external = model.residue.get::<KeptModel>().is_some_and(|k| k.files.len() > 1);
    stored().any(|t| !in_a_file(t) && raw_size(t) >= MIN_EXTERNAL) && (size > AUTO_EXTERNAL || had_external)
}

/// The file that `path` leads to, which is none of the inputs.
fn target(model: &Model, path: &Path, inputs: &[PathBuf]) -> Result<PathBuf> {
    // A link is followed: the file it leads to is replaced, not the link.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    if let Ok(meta) = fs::metadata(&target) {
        ensure!(!meta.is_dir(), "is a directory, expected the name of a file");
        ensure!(meta.is_file(), "is not a regular file");
    }
    refuse_inputs(model, &target, inputs)?;
    let folder = parent(&target);
    if !folder.is_dir() {
        return Err(anyhow!("folder {} does not exist", folder.display())).help(|| "make it first".into());
    }
    Ok(target)
}

fn refuse_inputs(model: &Model, target: &Path, inputs: &[PathBuf]) -> Result<()> {
    let real = target.canonicalize().unwrap_or_else(|_| target.to_path_buf());
    let own = model.residue.get::<KeptModel>().map_or(&[][..], |k| &k.files);
    for input in own.iter().chain(inputs) {
        if input.canonicalize().is_ok_and(|i| i == real) {
            return Err(anyhow!("output and input are the same file")).help(|| "write to another place".into());
        }
    }
    Ok(())
}

fn has_external(message: &ModelProto) -> bool {
    // Attributes and bodies are rare places for external data, but legal ones.
    fn graph(g: &super::proto::GraphProto) -> bool {
        g.initializer.iter().any(is_external) || g.node.iter().any(node)
    }
    fn node(n: &super::proto::NodeProto) -> bool {
        n.attribute
            .iter()
            .any(|a| a.t.iter().chain(&a.tensors).any(is_external) || a.g.iter().chain(&a.graphs).any(graph))
    }
    message.graph.iter().any(graph) || message.functions.iter().any(|f| f.node.iter().any(node))
}

/// A tensor's message with its elements inside, whatever it was before.
fn inline(tensor: &TensorRef, _: Role) -> Result<TensorProto> {
    match tensor.source().as_any().downcast_ref::<FileTensor>() {
        Some(file) => Ok(match &file.outside {
            Some(outside) => TensorProto {
                raw_data: Some(outside.bytes()?),
                external_data: Vec::new(),
                data_location: None,
                ..file.message.clone()
            },
            None => file.message.clone(),
        }),
        None => to_message(&tensor.read()?),
    }
}

/// Writes the model with an external file beside it.
fn write_external(model: &Model, target: &Path, inputs: &[PathBuf]) -> Result<()> {
    let name = target.file_name().and_then(|n| n.to_str()).ok_or_else(|| anyhow!("the file name is not UTF-8"))?;
    let location = format!("{name}.data");
    let data_path = parent(target).join(&location);
    refuse_inputs(model, &data_path, inputs).with_context(|| data_path.display().to_string())?;
    let temporary = temporary(&data_path)?;
    let mut file = BufWriter::new(temporary.as_file());
    let mut at = 0u64;
    let mut store = |tensor: &TensorRef, role: Role| {
        let size = raw_size(tensor);
        let min = if tensor.shape().len() <= 1 { MIN_EXTERNAL_VECTOR } else { MIN_EXTERNAL };
        if role == Role::Attribute || size < min {
            return inline(tensor, role);
        }
        let Some(raw) = raw(tensor)? else { return inline(tensor, role) };
        let offset = at.next_multiple_of(ALIGNMENT);
        let padding = usize::try_from(offset - at)?;
        file.write_all(&vec![0; padding])?;
        file.write_all(&raw)?;
        at = offset + u64::try_from(raw.len())?;
        let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
        let mut message = header(tensor)?;
        message.external_data = vec![
            entry("location", location.clone()),
            entry("offset", offset.to_string()),
            entry("length", raw.len().to_string()),
        ];
        message.data_location = Some(DataLocation::External.into());
        Ok(message)
    };
    let (message, unknown) = export(model, &mut store)?;
    file.flush()?;
    drop(file);
    let size = message.encoded_len();
    ensure!(size <= PROTOBUF_LIMIT, "{size} bytes besides external data are too many for one file");
    let bytes = encode(&message, &unknown)?;
    if at > 0 {
        persist(temporary, &data_path).with_context(|| data_path.display().to_string())?;
    }
    replace(target, &bytes)
}

/// A tensor's message without its elements.
fn header(tensor: &TensorRef) -> Result<TensorProto> {
    let old = tensor.source().as_any().downcast_ref::<FileTensor>().map(|f| &f.message);
    let dims = tensor.shape().iter().map(|&d| Ok(i64::try_from(d)?)).collect::<Result<_>>()?;
    Ok(TensorProto {
        dims,
        data_type: Some(tensor.dtype().code()),
        name: old.and_then(|m| m.name.clone()),
        doc_string: old.and_then(|m| m.doc_string.clone()),
        metadata_props: old.map(|m| m.metadata_props.clone()).unwrap_or_default(),
        ..TensorProto::default()
    })
}

/// The elements as an external file holds them; `None` for strings.
fn raw(tensor: &TensorRef) -> Result<Option<Bytes>> {
    if let Some(file) = tensor.source().as_any().downcast_ref::<FileTensor>()
        && let Some(raw) = file.raw()?
    {
        return Ok(Some(raw));
    }
    Ok(to_raw(&tensor.read()?))
}

/// Writes a file so that its name always leads to all of it.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary(path)?;
    temporary.as_file().write_all(bytes).context("cannot be written")?;
    persist(temporary, path)
}

/// A temporary file beside `path`.
fn temporary(path: &Path) -> Result<NamedTempFile> {
    let folder = parent(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".onnx-quant-");
    // Temporary files are private by default; this one becomes an ordinary file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).with_context(|| format!("folder {} cannot be written to", folder.display()))
}

fn persist(temporary: NamedTempFile, path: &Path) -> Result<()> {
    temporary.as_file().sync_all().context("cannot be written")?;
    temporary.persist(path).map_err(|e| anyhow!(e.error).context("cannot be written"))?;
    // The rename lasts once the folder is on the disk, too. Not every system can flush a folder.
    if let Ok(folder) = File::open(parent(path)) {
        let _ = folder.sync_all();
    }
    Ok(())
}
