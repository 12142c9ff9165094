//! Tensors, sequences and optionals as files of their own: the `input_0.pb` and `output_0.pb` of ONNX's test data.
//!
//! The three messages cannot be told apart by their bytes, so the reader has to know the type of the graph input.

use std::path::Path;

use prost::Message;

use super::proto::{
    MapProto, OptionalProto, SequenceProto, SparseTensorProto, TensorProto, optional_proto, sequence_proto,
};
use super::read::open;
use super::tensor::{SparseFileTensor, from_message, to_message};
use super::unknown::{OPTIONAL, SEQUENCE, TENSOR, Unknown, scan};
use super::write::replace;
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::ValueType;
use crate::ir::value::TensorSource;
use crate::tensor::Tensor;

/// A value that was stored in a file.
#[derive(Debug, Clone)]
pub enum Stored {
    /// A dense tensor; a sparse one is made dense.
    Tensor(Tensor),
    /// A sequence.
    Sequence(Vec<Stored>),
    /// A value or nothing.
    Optional(Option<Box<Stored>>),
    /// A map: a tensor of keys, and as many values.
    Map(Tensor, Vec<Stored>),
}

impl Stored {
    /// The tensor, if it is one.
    #[must_use]
    pub fn into_tensor(self) -> Option<Tensor> {
        if let Stored::Tensor(t) = self { Some(t) } else { None }
    }
}

/// The tensor in a `TensorProto` file, and its name, which may be empty.
///
/// # Errors
/// There is no such file, it is not a tensor, or it is damaged.
pub fn read_tensor_pb(path: &Path) -> Result<(String, Tensor)> {
    let read = || -> Result<_> {
        let bytes = open(path)?;
        scan(&bytes, TENSOR).context("not an ONNX tensor")?;
        let message = TensorProto::decode(bytes).context("not an ONNX tensor")?;
        Ok((message.name().to_owned(), from_message(message)?))
    };
    read().with_context(|| path.display().to_string())
}

/// The value of type `ty` in a `TensorProto`, `SequenceProto` or `OptionalProto` file, and its name, which may be empty.
///
/// # Errors
/// As [`read_tensor_pb`]; or values of that type are not stored in files.
pub fn read_value_pb(path: &Path, ty: &ValueType) -> Result<(String, Stored)> {
    let read = || -> Result<_> {
        match ty {
            ValueType::Sequence(_) => {
                let bytes = open(path)?;
                scan(&bytes, SEQUENCE).context("not an ONNX sequence")?;
                let message = SequenceProto::decode(bytes).context("not an ONNX sequence")?;
                Ok((message.name().to_owned(), sequence(message)?))
            }
            ValueType::Optional(_) => {
                let bytes = open(path)?;
                scan(&bytes, OPTIONAL).context("not an ONNX optional")?;
                let message = OptionalProto::decode(bytes).context("not an ONNX optional")?;
                Ok((message.name().to_owned(), optional(message)?))
            }
            ValueType::Tensor(_) => {
                let (name, tensor) = read_tensor_pb(path)?;
                Ok((name, Stored::Tensor(tensor)))
            }
            other => bail!("values of type {other} are not stored in files of their own"),
        }
    };
    match ty {
        ValueType::Tensor(_) => read(),
        _ => read().with_context(|| path.display().to_string()),
    }
}

/// Writes a tensor to a `TensorProto` file; the file appears at once or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_tensor_pb(path: &Path, name: &str, tensor: &Tensor) -> Result<()> {
    let write = || -> Result<()> {
        let mut message = to_message(tensor)?;
        message.name = (!name.is_empty()).then(|| name.to_owned());
        replace(path, &message.encode_to_vec())
    };
    write().with_context(|| path.display().to_string())
}

fn dense(message: SparseTensorProto) -> Result<Tensor> {
    let fetch = |_: &TensorProto, _| bail!("external data is not supported here");
    SparseFileTensor::new(message, Unknown::default(), fetch)?.load()
}

fn sequence(message: SequenceProto) -> Result<Stored> {
    use sequence_proto::DataType;
    let SequenceProto {
        name: _,
        elem_type,
        tensor_values,
        sparse_tensor_values,
        sequence_values,
        map_values,
        optional_values,
    } = message;
    let kind = DataType::try_from(elem_type.unwrap_or_default());
    let items: Result<_> = match kind.map_err(|_| anyhow!("sequence of unknown kind {elem_type:?}"))? {
        DataType::Undefined => Ok(Vec::new()),
        DataType::Tensor => tensor_values.into_iter().map(|t| Ok(Stored::Tensor(from_message(t)?))).collect(),
        DataType::SparseTensor => sparse_tensor_values.into_iter().map(|t| Ok(Stored::Tensor(dense(t)?))).collect(),
        DataType::Sequence => sequence_values.into_iter().map(sequence).collect(),
        DataType::Map => map_values.into_iter().map(map).collect(),
        DataType::Optional => optional_values.into_iter().map(optional).collect(),
    };
    Ok(Stored::Sequence(items?))
}

fn map(message: MapProto) -> Result<Stored> {
    let MapProto { name: _, key_type: _, keys, string_keys, values } = message;
    let keys = if string_keys.is_empty() {
        Tensor::vector(keys)
    } else {
        let text = |k: &bytes::Bytes| std::str::from_utf8(k).map(str::to_owned).context("key of a map");
        Tensor::vector(string_keys.iter().map(text).collect::<Result<Vec<_>>>()?)
    };
    let Stored::Sequence(values) = sequence(values.unwrap_or_default())? else { bail!("map without values") };
    ensure!(keys.len() == values.len(), "map of {} keys and {} values", keys.len(), values.len());
    Ok(Stored::Map(keys, values))
}

fn optional(message: OptionalProto) -> Result<Stored> {
    use optional_proto::DataType;
    let OptionalProto {
        name: _,
        elem_type,
        tensor_value,
        sparse_tensor_value,
        sequence_value,
        map_value,
        optional_value,
    } = message;
    let kind = DataType::try_from(elem_type.unwrap_or_default());
    let value = match kind.map_err(|_| anyhow!("optional of unknown kind {elem_type:?}"))? {
        DataType::Undefined => None,
        DataType::Tensor => tensor_value.map(|t| Ok(Stored::Tensor(from_message(t)?))),
        DataType::SparseTensor => sparse_tensor_value.map(|t| Ok(Stored::Tensor(dense(t)?))),
        DataType::Sequence => sequence_value.map(sequence),
        DataType::Map => map_value.map(map),
        DataType::Optional => optional_value.map(|o| optional(*o)),
    };
    Ok(Stored::Optional(value.transpose()?.map(Box::new)))
}
