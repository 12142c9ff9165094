//! What rules ask of a graph.

use crate::error::Location;
use crate::ir::{Dim, Graph, GraphId, Model, Node, NodeId, TensorRef, ValueId};
use crate::ops::{QuantRule, lookup, quant_rule};
use crate::quant::annotate::constant;
use crate::quant::lazy;
use crate::quant::target::Target;
use crate::tensor::{DType, Tensor};

/// A graph of a model.
pub(super) struct View<'a> {
    pub(super) model: &'a Model,
    pub(super) id: GraphId,
    pub(super) g: &'a Graph,
    /// In the order of execution; empty when there is a cycle, which is a breach of its own.
    pub(super) nodes: Vec<NodeId>,
}

impl<'a> View<'a> {
    pub(super) fn new(model: &'a Model, id: GraphId) -> Self {
        let g = model.graph(id);
        View { model, id, g, nodes: g.order().unwrap_or_default() }
    }

    pub(super) fn node(&self, n: NodeId) -> &'a Node {
        self.g.node(n)
    }

    pub(super) fn at(&self, n: NodeId) -> Location {
        self.node(n).location()
    }

    /// The version of the node's domain.
    pub(super) fn opset(&self, n: NodeId) -> i64 {
        let domain = &self.node(n).domain;
        self.model.opsets_in(self.id).iter().find(|(d, _)| d == domain).map_or(1, |(_, v)| *v)
    }

    /// How a target, or without one the specification, has the node quantized.
    pub(super) fn rule(&self, n: NodeId, target: Option<&Target>) -> Option<QuantRule> {
        let (node, opset) = (self.node(n), self.opset(n));
        let fact = lookup(&node.domain, &node.op_type, opset)?.quant;
        Some(target.map_or(fact, |t| t.rule(node, opset, fact)))
    }

    pub(super) fn is_q(&self, n: NodeId) -> bool {
        self.node(n).op_type == quant_rule::QUANTIZE
    }

    pub(super) fn is_dq(&self, n: NodeId) -> bool {
        self.node(n).op_type == quant_rule::DEQUANTIZE
    }

    /// Every `QuantizeLinear` and `DequantizeLinear`.
    pub(super) fn quantizers(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().copied().filter(|&n| self.is_q(n) || self.is_dq(n))
    }

    pub(super) fn input(&self, n: NodeId, slot: usize) -> Option<ValueId> {
        self.g.input(n, slot)
    }

    pub(super) fn stored(&self, v: ValueId) -> Option<&'a TensorRef> {
        constant(self.model, self.id, v)
    }

    /// The stored tensor at an input: type and shape, which need no decoding.
    pub(super) fn stored_input(&self, n: NodeId, slot: usize) -> Option<&'a TensorRef> {
        self.stored(self.input(n, slot)?)
    }

    /// The elements of the stored tensor at an input. Those of a weight that is made while it is written are not looked
    /// at: a model of any size is checked in little memory.
    pub(super) fn elements(&self, n: NodeId, slot: usize) -> Option<&'a Tensor> {
        self.stored_input(n, slot).filter(|t| !lazy::is_made_later(t)).and_then(|t| t.get().ok())
    }

    /// The `DequantizeLinear` that makes a value.
    pub(super) fn dq_of(&self, v: ValueId) -> Option<NodeId> {
        self.g.producer(v).map(|(n, _)| n).filter(|&n| self.is_dq(n))
    }

    /// The `DequantizeLinear` at an input.
    pub(super) fn dq_at(&self, n: NodeId, slot: usize) -> Option<NodeId> {
        self.dq_of(self.input(n, slot)?)
    }

    /// The `QuantizeLinear` nodes that read a value.
    pub(super) fn qs_on(&self, v: ValueId) -> Vec<NodeId> {
        self.g.consumers(v).into_iter().filter(|&(n, slot)| slot == 0 && self.is_q(n)).map(|(n, _)| n).collect()
    }

    /// Whether the `DequantizeLinear` reads a stored tensor.
    pub(super) fn is_weight(&self, dq: NodeId) -> bool {
        self.input(dq, 0).is_some_and(|v| constant(self.model, self.id, v).is_some())
    }

    pub(super) fn dtype(&self, v: ValueId) -> Option<DType> {
        match constant(self.model, self.id, v) {
            Some(t) => Some(t.dtype()),
            None => self.g.value(v).ty.as_ref()?.dtype(),
        }
    }

    /// The dimensions of a value, if its rank is known.
    pub(super) fn dims(&self, v: ValueId) -> Option<Vec<Dim>> {
        match constant(self.model, self.id, v) {
            Some(t) => Some(t.shape().iter().map(|&n| Dim::Known(n)).collect()),
            None => self.g.value(v).ty.as_ref()?.shape().map(<[_]>::to_vec),
        }
    }

    /// The type of the integers on the quantized side of a `QuantizeLinear` or `DequantizeLinear`.
    pub(super) fn quantized_type(&self, n: NodeId) -> Option<DType> {
        let zero = self.input(n, 2).and_then(|v| self.dtype(v));
        let data = if self.is_dq(n) { self.input(n, 0).and_then(|v| self.dtype(v)) } else { None };
        let asked = self.node(n).attrs.int("output_dtype").filter(|&t| t != 0 && self.is_q(n));
        let asked = asked.and_then(|t| i32::try_from(t).ok().and_then(DType::from_code));
        data.or(zero).or(asked).or((!self.is_dq(n)).then_some(DType::U8))
    }

    /// The axis of a per-channel or blocked node, counted from the front where the rank is known.
    pub(super) fn axis(&self, n: NodeId) -> Option<i64> {
        let rank = self.dims(self.input(n, 0)?)?.len() as i64;
        let axis = self.node(n).attrs.int("axis").unwrap_or(1);
        Some(if axis < 0 { axis + rank } else { axis })
    }

    /// Whether the zero points are all what a symmetric scheme has; `None` when they are not stored or not looked at.
    pub(super) fn zero_is(&self, n: NodeId, wanted: impl Fn(DType) -> i64) -> Option<bool> {
        if self.input(n, 2).is_none() {
            return Some(self.quantized_type(n).is_none_or(|d| wanted(d) == 0));
        }
        let zero = self.elements(n, 2)?;
        let wanted = wanted(zero.dtype());
        Some(zero.to_f64s().ok()?.iter().all(|&z| z == wanted as f64))
    }

    /// A weighted node whose weight is dequantized: data slot, weight slot, bias slot, the weight's node.
    pub(super) fn weighted(&self, n: NodeId, target: Option<&Target>) -> Option<Weighted> {
        let QuantRule::Weighted { data, weight, bias, axis } = self.rule(n, target)? else { return None };
        let dq = self.dq_at(n, weight).filter(|&dq| self.is_weight(dq))?;
        Some(Weighted { data, bias, axis, dq })
    }

    /// Input slots that hold data which the node computes with.
    pub(super) fn data_slots(&self, n: NodeId, target: Option<&Target>) -> Vec<usize> {
        let present = || self.g.node_inputs(n).into_iter().enumerate().filter(|(_, v)| v.is_some()).map(|(i, _)| i);
        match self.rule(n, target) {
            Some(QuantRule::Weighted { data, weight, .. }) => present().filter(|&i| i == data || i == weight).collect(),
            Some(QuantRule::Combine { data, .. }) => present().filter(|&i| data.contains(i)).collect(),
            Some(QuantRule::Share) => present().filter(|&i| i == 0).collect(),
            _ => Vec::new(),
        }
    }

    /// What a bound (`Relu`, `Clip`) behind a value makes, if it is the value's only reader.
    pub(super) fn bound_after(&self, v: ValueId) -> Option<NodeId> {
        let [(n, 0)] = self.g.consumers(v)[..] else { return None };
        (self.g.n_uses(v) == 1 && matches!(self.rule(n, None), Some(QuantRule::Bound))).then_some(n)
    }

    /// The value behind the bounds that alone read `v`, or `v`.
    pub(super) fn behind(&self, mut v: ValueId) -> ValueId {
        while let Some(y) = self.bound_after(v).and_then(|b| self.g.output(b, 0)) {
            v = y;
        }
        v
    }
}

/// A node with a quantized weight.
#[derive(Clone, Copy)]
pub(super) struct Weighted {
    pub(super) data: usize,
    pub(super) bias: Option<usize>,
    pub(super) axis: crate::ops::WeightAxis,
    /// The weight's `DequantizeLinear`.
    pub(super) dq: NodeId,
}
