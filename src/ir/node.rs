//! Nodes: an operator applied to values.

use std::fmt;

use super::{Attrs, Residue};

/// An operator set's domain. The empty domain and `ai.onnx` are the same; the file's spelling is kept.
#[derive(Debug, Clone, Default)]
pub struct Domain(String);

impl Domain {
    /// A domain in the file's spelling.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Domain(name.to_owned())
    }

    /// ONNX's own domain.
    #[must_use]
    pub fn onnx() -> Self {
        Domain::default()
    }

    /// ONNX Runtime's own operators.
    #[must_use]
    pub fn microsoft() -> Self {
        Domain::new("com.microsoft")
    }

    /// Whether it is ONNX's own domain.
    #[must_use]
    pub fn is_onnx(&self) -> bool {
        self.canonical().is_empty()
    }

    /// The name for comparisons: empty for ONNX's own domain.
    #[must_use]
    pub fn canonical(&self) -> &str {
        if self.0 == "ai.onnx" { "" } else { &self.0 }
    }

    /// The file's spelling.
    #[must_use]
    pub fn spelling(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Domain {
    fn eq(&self, other: &Self) -> bool {
        self.canonical() == other.canonical()
    }
}

impl Eq for Domain {}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_onnx() { "ai.onnx" } else { &self.0 })
    }
}

/// Where a node stands in the file. A node that a pass adds takes its neighbour's anchor and appears beside it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Index in the file.
    pub anchor: u32,
    /// Before (negative) or after (positive) the node of that index.
    pub offset: i32,
}

impl Position {
    /// Just before this position.
    #[must_use]
    pub fn before(self) -> Self {
        Position { offset: self.offset.saturating_sub(1), ..self }
    }

    /// Just after this position.
    #[must_use]
    pub fn after(self) -> Self {
        Position { offset: self.offset.saturating_add(1), ..self }
    }
}

/// A node.
#[derive(Debug, Clone)]
pub struct Node {
    /// The operator's name.
    pub op_type: String,
    /// The operator's domain.
    pub domain: Domain,
    /// Which of several functions of the same name (IR version 10 and later).
    pub overload: String,
    /// The node's name; may be empty.
    pub name: String,
    /// Attributes.
    pub attrs: Attrs,
    /// Where it stands.
    pub pos: Position,
    /// Number of input slots, empty trailing ones included.
    pub(super) n_inputs: usize,
    /// Number of output slots, empty trailing ones included.
    pub(super) n_outputs: usize,
    /// What the file says about it and the IR does not model.
    pub residue: Residue,
}

impl Node {
    /// A node of ONNX's own domain without attributes.
    #[must_use]
    pub fn new(op_type: &str) -> Self {
        Node {
            op_type: op_type.to_owned(),
            domain: Domain::default(),
            overload: String::new(),
            name: String::new(),
            attrs: Attrs::default(),
            pos: Position::default(),
            n_inputs: 0,
            n_outputs: 0,
            residue: Residue::default(),
        }
    }

    /// The node in another domain.
    #[must_use]
    pub fn domain(mut self, domain: Domain) -> Self {
        self.domain = domain;
        self
    }

    /// The node with a name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The node with an attribute.
    #[must_use]
    pub fn attr(mut self, name: &str, value: impl Into<super::Attr>) -> Self {
        self.attrs.set(name, value.into());
        self
    }

    /// The node at a position.
    #[must_use]
    pub fn at(mut self, pos: Position) -> Self {
        self.pos = pos;
        self
    }

    /// Whether it applies this operator of ONNX's own domain. For passes; operators are looked up by the table.
    #[must_use]
    pub fn is(&self, op_type: &str) -> bool {
        self.op_type == op_type && self.domain.is_onnx()
    }

    /// The name for messages: its own, or its place in the file.
    #[must_use]
    pub fn label(&self) -> String {
        if self.name.is_empty() { format!("#{}", self.pos.anchor) } else { self.name.clone() }
    }

    /// The location for messages.
    #[must_use]
    pub fn location(&self) -> crate::error::Location {
        crate::error::Location::node(&self.label(), &self.op_type)
    }
}
