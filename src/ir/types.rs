//! Types of values: element type and shape, sequences, optionals and maps.

use std::fmt;
use std::sync::Arc;

use crate::tensor::DType;

/// One dimension of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A fixed size.
    Known(usize),
    /// A named size (`dim_param`), or an expression over such names that shape inference made, such as `2*N + 1`.
    Symbol(Arc<str>),
    /// Nothing is known.
    Unknown,
}

impl Dim {
    /// The size, if it is fixed.
    #[must_use]
    pub fn known(&self) -> Option<usize> {
        if let Dim::Known(n) = self { Some(*n) } else { None }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Dim::Known(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Symbol(s) => f.write_str(s),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// A tensor's element type and shape; `shape` is `None` when not even the rank is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type; `None` when it is not known.
    pub dtype: Option<DType>,
    /// Shape; `None` when the rank is not known.
    pub shape: Option<Vec<Dim>>,
}

impl TensorType {
    /// A tensor of known rank.
    #[must_use]
    pub fn new(dtype: DType, shape: Vec<Dim>) -> Self {
        TensorType { dtype: Some(dtype), shape: Some(shape) }
    }

    /// A tensor of fixed shape.
    #[must_use]
    pub fn fixed(dtype: DType, shape: &[usize]) -> Self {
        Self::new(dtype, shape.iter().map(|&n| Dim::Known(n)).collect())
    }

    /// The shape, if every dimension is fixed.
    #[must_use]
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        self.shape.as_ref()?.iter().map(Dim::known).collect()
    }
}

/// What a value can be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// A dense tensor.
    Tensor(TensorType),
    /// A sparse tensor.
    SparseTensor(TensorType),
    /// A sequence of one type.
    Sequence(Box<ValueType>),
    /// A value or nothing.
    Optional(Box<ValueType>),
    /// A map from an integer or string type.
    Map(DType, Box<ValueType>),
    /// A type that the specification calls opaque, or one that the file leaves open.
    Unknown,
}

impl ValueType {
    /// A tensor of known rank.
    #[must_use]
    pub fn tensor(dtype: DType, shape: Vec<Dim>) -> Self {
        ValueType::Tensor(TensorType::new(dtype, shape))
    }

    /// The tensor type, if it is a dense tensor.
    #[must_use]
    pub fn as_tensor(&self) -> Option<&TensorType> {
        if let ValueType::Tensor(t) = self { Some(t) } else { None }
    }

    /// The element type, if it is a tensor whose element type is known.
    #[must_use]
    pub fn dtype(&self) -> Option<DType> {
        self.as_tensor().and_then(|t| t.dtype)
    }

    /// The shape, if it is a tensor of known rank.
    #[must_use]
    pub fn shape(&self) -> Option<&[Dim]> {
        self.as_tensor().and_then(|t| t.shape.as_deref())
    }
}

/// ONNX's textual syntax: `float[N,3,224,224]`, `int64[]` (rank 0 or unknown rank: `float`).
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dtype.map_or("undefined", DType::name))?;
        if let Some(shape) = &self.shape {
            f.write_str("[")?;
            for (i, d) in shape.iter().enumerate() {
                if i > 0 {
                    f.write_str(",")?;
                }
                write!(f, "{d}")?;
            }
            f.write_str("]")?;
        }
        Ok(())
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueType::Tensor(t) => write!(f, "{t}"),
            ValueType::SparseTensor(t) => write!(f, "sparse_tensor({t})"),
            ValueType::Sequence(t) => write!(f, "seq({t})"),
            ValueType::Optional(t) => write!(f, "optional({t})"),
            ValueType::Map(k, v) => write!(f, "map({k}, {v})"),
            ValueType::Unknown => f.write_str("?"),
        }
    }
}
