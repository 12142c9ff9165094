//! The intermediate representation: pure data, no IO, no protobuf.
//!
//! A [`Model`] owns a flat list of [`Graph`]s: the main graph, the bodies of control-flow nodes and of functions.
//! A graph is bipartite: nodes (operators) and values (tensors on edges) are both vertices, operand slots lie on the
//! edges. There is no second copy of any connection. Nodes and values have ids; names exist for import, export and messages only.

pub mod attr;
pub mod builder;
pub mod dot;
pub mod graph;
pub mod json;
pub mod model;
pub mod names;
pub mod node;
mod order;
pub mod sym;
pub mod text;
mod text_lower;
pub mod text_parse;
pub mod types;
pub mod value;
pub mod verify;

pub use attr::{Attr, Attrs, Bindings};
pub use graph::{Graph, NodeId, ValueId};
pub use model::{Function, GraphId, Model};
pub use names::Names;
pub use node::{Domain, Node, Position};
pub use types::{Dim, TensorType, ValueType};
pub use value::{Def, TensorRef, TensorSource, Value};

/// The part of a message of the file that the IR does not model, carried along untouched. Only `onnx/` looks inside.
#[derive(Clone, Default)]
pub struct Residue(Option<std::sync::Arc<dyn std::any::Any + Send + Sync>>);

impl Residue {
    /// Wraps what a front end wants back.
    pub fn new<T: std::any::Any + Send + Sync>(message: T) -> Self {
        Residue(Some(std::sync::Arc::new(message)))
    }

    /// What was wrapped, if it is a `T`.
    #[must_use]
    pub fn get<T: std::any::Any>(&self) -> Option<&T> {
        self.0.as_ref().and_then(|r| r.downcast_ref())
    }
}

impl std::fmt::Debug for Residue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Residue(..)" } else { "Residue" })
    }
}
