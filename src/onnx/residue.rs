//! What a file says and the IR does not model: the rest of each message, with the fields that the schema does not know.
//!
//! Import moves the parts that the IR models out of a message and keeps the same message here; export clones it and
//! puts the current parts in. Strings and numbers that the IR models stay in the kept message too, because in a file a
//! field that is absent differs from one that is empty: [`keep`] tells them apart.
//! Whatever refers to a value by its name is kept with the value's id, and gets the current name.

use std::path::PathBuf;

use bytes::Bytes;

use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorAnnotation, ValueInfoProto,
};
use super::unknown::Unknown;
use crate::diag::Diagnostic;
use crate::ir::ValueId;

/// A message without its modelled parts.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept<P> {
    pub(super) message: P,
    pub(super) unknown: Unknown,
}

pub(super) type KeptAttr = Kept<AttributeProto>;
pub(super) type KeptFunction = Kept<FunctionProto>;

/// A node; `sharded` has the values that its device configurations name, in the order of the names.
#[derive(Debug, Clone, Default)]
pub(super) struct KeptNode {
    pub(super) kept: Kept<NodeProto>,
    pub(super) sharded: Vec<Option<ValueId>>,
}

/// A graph, with the lists whose entries name values.
#[derive(Debug, Clone, Default)]
pub(super) struct KeptGraph {
    pub(super) kept: Kept<GraphProto>,
    pub(super) inputs: Vec<(ValueId, Kept<ValueInfoProto>)>,
    pub(super) outputs: Vec<(ValueId, Kept<ValueInfoProto>)>,
    /// `None` for an entry whose value is not in the graph.
    pub(super) infos: Vec<(Option<ValueId>, Kept<ValueInfoProto>)>,
    pub(super) annotations: Vec<KeptAnnotation>,
}

/// A quantization annotation: the annotated value, then those that hold its parameters.
#[derive(Debug, Clone, Default)]
pub(super) struct KeptAnnotation {
    pub(super) kept: Kept<TensorAnnotation>,
    pub(super) values: Vec<Option<ValueId>>,
}

/// A model, and where it came from.
#[derive(Debug, Clone, Default)]
pub(super) struct KeptModel {
    pub(super) kept: Kept<ModelProto>,
    /// The whole file.
    pub(super) source: Bytes,
    /// The files that it came from, canonical: the model file, then those of external data.
    pub(super) files: Vec<PathBuf>,
    /// How many nodes the main graph had: a quick sign that a model has changed.
    pub(super) n_nodes: usize,
    /// The folder of its external data.
    pub(super) base: Option<PathBuf>,
    /// What import has to say.
    pub(super) notes: Vec<Diagnostic>,
}

/// `now` as a field that was `old`: an absent field stays absent while it says the default.
pub(super) fn keep<T: Default + PartialEq>(old: Option<&T>, now: T) -> Option<T> {
    if old.is_none() && now == T::default() { None } else { Some(now) }
}
