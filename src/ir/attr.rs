//! Attributes of nodes, in the file's order.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{GraphId, Residue, TensorRef, ValueType};

/// An attribute's value.
#[derive(Debug, Clone)]
pub enum Attr {
    /// `FLOAT`
    Float(f32),
    /// `INT`
    Int(i64),
    /// `STRING`: bytes, not necessarily UTF-8.
    String(Bytes),
    /// `TENSOR`
    Tensor(TensorRef),
    /// `GRAPH`: a body that lives in the model's list of graphs.
    Graph(GraphId),
    /// `TYPE_PROTO`
    Type(ValueType),
    /// `FLOATS`
    Floats(Vec<f32>),
    /// `INTS`
    Ints(Vec<i64>),
    /// `STRINGS`
    Strings(Vec<Bytes>),
    /// `TENSORS`
    Tensors(Vec<TensorRef>),
    /// `GRAPHS`
    Graphs(Vec<GraphId>),
    /// Inside a function: the value of the function's attribute of this name.
    Ref(String),
    /// A kind that the IR does not look into (sparse tensors, lists of types); the residue holds it.
    Opaque,
}

/// An attribute with its name.
#[derive(Debug, Clone)]
pub struct NamedAttr {
    /// The name.
    pub name: String,
    /// The value.
    pub value: Attr,
    /// What the file says about it and the IR does not model.
    pub residue: Residue,
}

/// What a call of a function gives for each of the function's attributes; `None` for one that has no value.
pub type Bindings = BTreeMap<String, Option<Attr>>;

/// A node's attributes.
#[derive(Debug, Clone, Default)]
pub struct Attrs(Vec<NamedAttr>);

impl Attrs {
    /// The value of an attribute.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.iter().find(|a| a.name == name).map(|a| &a.value)
    }

    /// Sets an attribute, in place when it is there, else at the end.
    pub fn set(&mut self, name: &str, value: Attr) {
        match self.0.iter_mut().find(|a| a.name == name) {
            Some(a) => *a = NamedAttr { name: name.to_owned(), value, residue: Residue::default() },
            None => self.push(NamedAttr { name: name.to_owned(), value, residue: Residue::default() }),
        }
    }

    /// Appends an attribute as it is, for importers.
    pub fn push(&mut self, attr: NamedAttr) {
        self.0.push(attr);
    }

    /// The attributes with references to the function's attributes replaced by what the call gave.
    #[must_use]
    pub fn bound(&self, bindings: &Bindings) -> Attrs {
        let mut bound = Attrs::default();
        for a in &self.0 {
            match &a.value {
                Attr::Ref(name) => {
                    if let Some(Some(value)) = bindings.get(name) {
                        bound.set(&a.name, value.clone());
                    }
                }
                _ => bound.push(a.clone()),
            }
        }
        bound
    }

    /// Removes an attribute and gives its value back.
    pub fn remove(&mut self, name: &str) -> Option<Attr> {
        let i = self.0.iter().position(|a| a.name == name)?;
        Some(self.0.remove(i).value)
    }

    /// All attributes in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = &NamedAttr> {
        self.0.iter()
    }

    /// All attributes for changing.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut NamedAttr> {
        self.0.iter_mut()
    }

    /// An integer attribute; `None` when it is missing or of another kind.
    #[must_use]
    pub fn int(&self, name: &str) -> Option<i64> {
        if let Some(Attr::Int(i)) = self.get(name) { Some(*i) } else { None }
    }

    /// A float attribute.
    #[must_use]
    pub fn float(&self, name: &str) -> Option<f32> {
        if let Some(Attr::Float(x)) = self.get(name) { Some(*x) } else { None }
    }

    /// A list of integers.
    #[must_use]
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        if let Some(Attr::Ints(v)) = self.get(name) { Some(v) } else { None }
    }

    /// A list of floats.
    #[must_use]
    pub fn floats(&self, name: &str) -> Option<&[f32]> {
        if let Some(Attr::Floats(v)) = self.get(name) { Some(v) } else { None }
    }

    /// A string that is UTF-8.
    #[must_use]
    pub fn str(&self, name: &str) -> Option<&str> {
        if let Some(Attr::String(s)) = self.get(name) { std::str::from_utf8(s).ok() } else { None }
    }

    /// A tensor.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorRef> {
        if let Some(Attr::Tensor(t)) = self.get(name) { Some(t) } else { None }
    }

    /// A body.
    #[must_use]
    pub fn graph(&self, name: &str) -> Option<GraphId> {
        if let Some(Attr::Graph(g)) = self.get(name) { Some(*g) } else { None }
    }

    /// Every body of the node, in the order of the attributes.
    pub fn graphs(&self) -> impl Iterator<Item = GraphId> {
        self.0.iter().flat_map(|a| match &a.value {
            Attr::Graph(g) => std::slice::from_ref(g).iter().copied(),
            Attr::Graphs(v) => v.iter().copied(),
            _ => [].iter().copied(),
        })
    }
}

macro_rules! attr_from {
    ($($t:ty, $x:ident => $e:expr;)*) => { $(impl From<$t> for Attr { fn from($x: $t) -> Self { $e } })* };
}

attr_from! {
    i64, x => Attr::Int(x);
    f32, x => Attr::Float(x);
    &str, x => Attr::String(Bytes::copy_from_slice(x.as_bytes()));
    Vec<i64>, x => Attr::Ints(x);
    Vec<f32>, x => Attr::Floats(x);
    TensorRef, x => Attr::Tensor(x);
}
