//! What a conversion sees of its node.

use crate::error::{Result, anyhow, bail};
use crate::ir::builder::Beside;
use crate::ir::{Attr, Dim, Graph, GraphId, Model, Names, NodeId, TensorRef, ValueId, ValueType};
use crate::passes::pattern;
use crate::tensor::{DType, Tensor, cast};

/// A node that is being converted.
pub(super) struct Edit<'a> {
    pub model: &'a mut Model,
    pub names: &'a mut Names,
    pub graph: GraphId,
    pub node: NodeId,
}

impl Edit<'_> {
    pub(super) fn g(&self) -> &Graph {
        self.model.graph(self.graph)
    }

    pub(super) fn g_mut(&mut self) -> &mut Graph {
        self.model.graph_mut(self.graph)
    }

    pub(super) fn before(&mut self) -> Beside<'_> {
        Beside::before(self.model, self.names, self.graph, self.node)
    }

    pub(super) fn after(&mut self) -> Beside<'_> {
        Beside::after(self.model, self.names, self.graph, self.node)
    }

    /// Removes an attribute. One that refers to a function's attribute has no value to convert.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<Attr>> {
        let node = self.node;
        match self.g_mut().node_mut(node).attrs.remove(name) {
            Some(Attr::Ref(of)) => bail!("attribute \"{name}\" is the function's attribute \"{of}\"; inline it first"),
            other => Ok(other),
        }
    }

    pub(super) fn take_int(&mut self, name: &str) -> Result<Option<i64>> {
        match self.take(name)? {
            None => Ok(None),
            Some(Attr::Int(i)) => Ok(Some(i)),
            Some(_) => bail!("attribute \"{name}\" is no integer"),
        }
    }

    pub(super) fn take_ints(&mut self, name: &str) -> Result<Option<Vec<i64>>> {
        match self.take(name)? {
            None => Ok(None),
            Some(Attr::Ints(v)) => Ok(Some(v)),
            Some(_) => bail!("attribute \"{name}\" is no list of integers"),
        }
    }

    pub(super) fn take_float(&mut self, name: &str) -> Result<Option<f32>> {
        match self.take(name)? {
            None => Ok(None),
            Some(Attr::Float(x)) => Ok(Some(x)),
            Some(_) => bail!("attribute \"{name}\" is no number"),
        }
    }

    pub(super) fn take_str(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name)? {
            None => Ok(None),
            Some(Attr::String(s)) => Ok(Some(String::from_utf8_lossy(&s).into_owned())),
            Some(_) => bail!("attribute \"{name}\" is no text"),
        }
    }

    pub(super) fn set(&mut self, name: &str, value: impl Into<Attr>) {
        let node = self.node;
        self.g_mut().node_mut(node).attrs.set(name, value.into());
    }

    pub(super) fn n_inputs(&self) -> usize {
        self.g().node_inputs(self.node).len()
    }

    pub(super) fn input(&self, slot: usize) -> Result<ValueId> {
        self.g().input(self.node, slot).ok_or_else(|| anyhow!("input {slot} is missing"))
    }

    pub(super) fn set_input(&mut self, slot: usize, value: Option<ValueId>) {
        let node = self.node;
        self.g_mut().set_input(node, slot, value);
    }

    /// Puts a new constant into an input slot.
    pub(super) fn set_constant(&mut self, slot: usize, suffix: &str, tensor: Tensor) {
        let v = self.before().constant(suffix, tensor);
        self.set_input(slot, Some(v));
    }

    pub(super) fn shape(&self, slot: usize) -> Option<Vec<Dim>> {
        let v = self.g().input(self.node, slot)?;
        self.g().value(v).ty.as_ref().and_then(ValueType::shape).map(<[Dim]>::to_vec)
    }

    pub(super) fn rank(&self, slot: usize) -> Result<usize> {
        self.shape(slot).map(|s| s.len()).ok_or_else(|| anyhow!("the rank of input {slot} is not known"))
    }

    /// The element type of input 0 of an operator that takes floats and keeps their type.
    pub(super) fn float_type(&self) -> Result<DType> {
        let of = |v: Option<ValueId>| self.g().value(v?).ty.as_ref().and_then(ValueType::dtype);
        let known = of(self.g().input(self.node, 0)).or_else(|| of(self.g().output(self.node, 0)));
        // Inference knows little of the oldest opsets; a model without any other float can only compute with this one.
        known
            .or_else(|| (!has_other_floats(self.model)).then_some(DType::F32))
            .ok_or_else(|| anyhow!("the element type of input 0 is not known"))
    }

    /// A number as a tensor of rank 0 in the element type of input 0.
    pub(super) fn scalar(&self, x: f32) -> Result<Tensor> {
        cast::from_f64s(self.float_type()?, &[], vec![x.into()])
    }

    pub(super) fn constant(&self, slot: usize) -> Option<TensorRef> {
        pattern::constant(self.model, self.graph, self.g().input(self.node, slot)?).cloned()
    }

    /// Whether anything uses an output.
    pub(super) fn is_used(&self, slot: usize) -> bool {
        self.g().output(self.node, slot).is_some_and(|v| self.g().n_uses(v) > 0)
    }
}

/// Whether any stored tensor, known type or `Cast` is of a float type other than `float`.
fn has_other_floats(model: &Model) -> bool {
    let other = |d: DType| d.is_float() && d != DType::F32;
    model.graph_ids().any(|id| {
        let g = model.graph(id);
        g.values().any(|v| g.value(v).ty.as_ref().and_then(ValueType::dtype).is_some_and(other))
            || g.nodes().any(|n| {
                g.node(n).attrs.iter().any(|a| match &a.value {
                    Attr::Tensor(t) => other(t.dtype()),
                    Attr::Int(code) if a.name == "to" || a.name == "dtype" => {
                        i32::try_from(*code).ok().and_then(DType::from_code).is_some_and(other)
                    }
                    // The oldest models name the type.
                    Attr::String(_) => a.name == "to",
                    _ => false,
                })
            })
    })
}
