//! What an operator sees when types and shapes are inferred.

use crate::error::{Result, anyhow, bail};
use crate::ir::{Attrs, Dim, GraphId, TensorType, ValueType, sym};
use crate::tensor::{DType, Tensor};

/// Infers bodies of control-flow nodes; `infer` implements it.
pub trait InferBodies {
    /// Infers a body whose inputs have these types, and gives the types of its outputs.
    ///
    /// # Errors
    /// Inference inside finds a contradiction.
    fn infer(&mut self, body: GraphId, inputs: &[Option<ValueType>]) -> Result<Vec<Option<ValueType>>>;

    /// As [`Self::infer`], and leaves the body as it was.
    ///
    /// # Errors
    /// As there.
    fn try_infer(&mut self, body: GraphId, inputs: &[Option<ValueType>]) -> Result<Vec<Option<ValueType>>>;
}

/// One inference of an operator. Inputs that are not known are `None`; an operator sets what it can.
pub struct InferCtx<'a> {
    /// The operator's name, for families that share an `infer`.
    pub op_type: &'a str,
    /// Attributes.
    pub attrs: &'a Attrs,
    /// Version of the operator's domain.
    pub opset: i64,
    /// Input types; `None` for an empty slot or an unknown type.
    pub inputs: Vec<Option<ValueType>>,
    /// For each input slot, whether something is connected.
    pub present: Vec<bool>,
    /// Constant inputs.
    pub constants: Vec<Option<Tensor>>,
    /// Inputs that are small integer tensors of rank 0 or 1 whose elements are known, perhaps as symbols (shapes).
    pub values: Vec<Option<Vec<Dim>>>,
    /// Output types, to be set.
    pub outputs: Vec<Option<ValueType>>,
    /// Elements of outputs that are shapes, to be set where they are known.
    pub output_values: Vec<Option<Vec<Dim>>>,
    /// Infers the node's bodies.
    pub bodies: &'a mut dyn InferBodies,
}

impl InferCtx<'_> {
    /// An input's type.
    #[must_use]
    pub fn ty(&self, slot: usize) -> Option<&ValueType> {
        self.inputs.get(slot).and_then(Option::as_ref)
    }

    /// An input's element type.
    #[must_use]
    pub fn dtype(&self, slot: usize) -> Option<DType> {
        self.ty(slot).and_then(ValueType::dtype)
    }

    /// An input's shape.
    #[must_use]
    pub fn shape(&self, slot: usize) -> Option<&[Dim]> {
        self.ty(slot).and_then(ValueType::shape)
    }

    /// An input's rank.
    #[must_use]
    pub fn rank(&self, slot: usize) -> Option<usize> {
        self.shape(slot).map(<[Dim]>::len)
    }

    /// A constant input.
    #[must_use]
    pub fn constant(&self, slot: usize) -> Option<&Tensor> {
        self.constants.get(slot).and_then(Option::as_ref)
    }

    /// A constant input of integers.
    #[must_use]
    pub fn ints(&self, slot: usize) -> Option<Vec<i64>> {
        if let Some(t) = self.constant(slot) {
            return t.to_i64s().ok();
        }
        self.values(slot)?.iter().map(sym::constant).collect()
    }

    /// The elements of an input that is a shape, perhaps as symbols; negative ones as [`sym::of_int`] has them.
    #[must_use]
    pub fn values(&self, slot: usize) -> Option<Vec<Dim>> {
        if let Some(v) = self.values.get(slot).and_then(Option::as_ref) {
            return Some(v.clone());
        }
        let t = self.constant(slot)?;
        if t.rank() > 1 || !t.dtype().is_integer() {
            return None;
        }
        Some(t.to_i64s().ok()?.into_iter().map(sym::of_int).collect())
    }

    /// Whether something is connected to an input slot.
    #[must_use]
    pub fn has(&self, slot: usize) -> bool {
        self.present.get(slot).copied().unwrap_or(false)
    }

    /// Sets an output's type, if the node has that output.
    pub fn set(&mut self, slot: usize, ty: ValueType) {
        if let Some(o) = self.outputs.get_mut(slot) {
            *o = Some(ty);
        }
    }

    /// Sets an output to a tensor, if the node has that output; `None` where nothing is known.
    pub fn set_tensor(&mut self, slot: usize, dtype: Option<DType>, shape: Option<Vec<Dim>>) {
        self.set(slot, ValueType::Tensor(TensorType { dtype, shape }));
    }

    /// Sets the elements of an output that is a shape.
    pub fn set_values(&mut self, slot: usize, values: Vec<Dim>) {
        if let Some(o) = self.output_values.get_mut(slot) {
            *o = Some(values);
        }
    }

    /// Gives output 0 the type of an input.
    pub fn same_as(&mut self, slot: usize) {
        if let Some(t) = self.ty(slot).cloned() {
            self.set(0, t);
        }
    }

    /// A type attribute given as a `TensorProto.DataType` code; `None` when it is missing.
    ///
    /// # Errors
    /// The code names no type.
    pub fn dtype_attr(&self, name: &str) -> Result<Option<DType>> {
        let Some(code) = self.attrs.int(name) else { return Ok(None) };
        let dtype = i32::try_from(code).ok().and_then(DType::from_code);
        Ok(Some(dtype.ok_or_else(|| anyhow!("attribute \"{name}\" is {code}, which names no element type"))?))
    }

    /// Like [`Self::dtype_attr`], where 0 means that the attribute is not given.
    ///
    /// # Errors
    /// The code names no type.
    pub fn dtype_attr_unless_zero(&self, name: &str) -> Result<Option<DType>> {
        if self.attrs.int(name) == Some(0) { Ok(None) } else { self.dtype_attr(name) }
    }

    /// The shape that inputs broadcast to; `None` when a rank is not known.
    ///
    /// # Errors
    /// Two fixed dimensions differ and neither is 1.
    pub fn broadcast(&self, slots: impl IntoIterator<Item = usize>) -> Result<Option<Vec<Dim>>> {
        let mut out: Vec<Dim> = Vec::new();
        for slot in slots {
            let Some(s) = self.shape(slot) else { return Ok(None) };
            out = broadcast_dims(&out, s)?;
        }
        Ok(Some(out))
    }
}

/// The shape that two partly known shapes broadcast to.
///
/// # Errors
/// Two fixed dimensions differ and neither is 1.
pub(crate) fn broadcast_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| if i + s.len() < rank { Dim::Known(1) } else { s[i + s.len() - rank].clone() };
    (0..rank)
        .map(|i| {
            Ok(match (at(a, i), at(b, i)) {
                (Dim::Known(x), Dim::Known(y)) if x != y && x != 1 && y != 1 => {
                    bail!("dimensions {x} and {y} do not broadcast")
                }
                (Dim::Known(1), d) | (d, Dim::Known(1)) => d,
                // A fixed size other than 1 decides, whatever the other is called.
                (Dim::Known(n), _) | (_, Dim::Known(n)) => Dim::Known(n),
                (x, y) if sym::is_same(&x, &y) => x,
                _ => Dim::Unknown,
            })
        })
        .collect()
}
