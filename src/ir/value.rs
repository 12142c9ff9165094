//! Values: what flows between nodes, and the tensors that a model stores.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use super::{GraphId, Residue, ValueId, ValueType};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// A value: a name, a type as far as it is known, and where it comes from.
#[derive(Debug, Clone)]
pub struct Value {
    /// Unique among all values that are visible at the same place. Never empty.
    pub name: String,
    /// Declared by the file or found by inference.
    pub ty: Option<ValueType>,
    /// Where it comes from.
    pub def: Def,
    /// What the file says about it and the IR does not model.
    pub residue: Residue,
}

/// Where a value comes from.
#[derive(Debug, Clone)]
pub enum Def {
    /// A graph input.
    Input,
    /// A stored constant.
    Initializer(TensorRef),
    /// A graph input with a stored default (IR version 4 and later): not a constant.
    Overridable(TensorRef),
    /// A node's output.
    Node,
    /// A value of the graph that owns this body. What lies further out is captured at each level in between, so the
    /// graph is always the owner's.
    Capture(GraphId, ValueId),
    /// Used but defined nowhere: kept and reported.
    Free,
}

/// Where a stored tensor comes from: memory, or an encoded message of a mapped file.
pub trait TensorSource: Send + Sync + Any {
    /// Element type.
    fn dtype(&self) -> DType;
    /// Dimension sizes.
    fn shape(&self) -> &[usize];
    /// Decodes the tensor, to the same elements at each call.
    ///
    /// # Errors
    /// The stored bytes do not fit the type and shape, or an external file cannot be read.
    fn load(&self) -> Result<Tensor>;
    /// For the exporter, which writes unchanged tensors as they were.
    fn as_any(&self) -> &dyn Any;
}

impl TensorSource for Tensor {
    fn dtype(&self) -> DType {
        Tensor::dtype(self)
    }
    fn shape(&self) -> &[usize] {
        Tensor::shape(self)
    }
    fn load(&self) -> Result<Tensor> {
        Ok(self.clone())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A reference to a stored tensor, decoded at first use and shared from then on.
#[derive(Clone)]
pub struct TensorRef(Arc<Stored>);

struct Stored {
    source: Box<dyn TensorSource>,
    loaded: OnceLock<Tensor>,
}

impl TensorRef {
    /// A reference to whatever `source` decodes.
    pub fn new(source: impl TensorSource) -> Self {
        TensorRef(Arc::new(Stored { source: Box::new(source), loaded: OnceLock::new() }))
    }

    /// Element type; needs no decoding.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.0.source.dtype()
    }

    /// Dimension sizes; needs no decoding.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.0.source.shape()
    }

    /// The number of elements; needs no decoding.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tensor, decoded at first use.
    ///
    /// # Errors
    /// See [`TensorSource::load`].
    pub fn get(&self) -> Result<&Tensor> {
        if let Some(t) = self.0.loaded.get() {
            return Ok(t);
        }
        let t = self.0.source.load()?;
        Ok(self.0.loaded.get_or_init(|| t))
    }

    /// The tensor, without keeping what is decoded for it: for whoever needs many large ones once.
    ///
    /// # Errors
    /// See [`TensorSource::load`].
    pub fn read(&self) -> Result<Tensor> {
        match self.0.loaded.get() {
            Some(t) => Ok(t.clone()),
            None => self.0.source.load(),
        }
    }

    /// What it was made of, for the exporter.
    #[must_use]
    pub fn source(&self) -> &dyn TensorSource {
        &*self.0.source
    }

    /// Whether both are the same stored tensor, so that what one has decoded the other has too.
    #[must_use]
    pub fn is_same(&self, other: &TensorRef) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl From<Tensor> for TensorRef {
    fn from(t: Tensor) -> Self {
        TensorRef::new(t)
    }
}

impl fmt::Debug for TensorRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TensorRef({}{:?})", self.dtype(), self.shape())
    }
}
