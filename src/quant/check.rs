//! The self-check of an emitted model: everything about `QuantizeLinear` and `DequantizeLinear` that the ONNX checker
//! misses and that makes a runtime fail, compute nonsense or fall back to float. Failing it is an error: nothing is written.

use super::annotate::constant;
use crate::ir::{Dim, Graph, GraphId, Model, NodeId, ValueId};
use crate::ops::{QuantRule, lookup, quant_rule};
use crate::tensor::{DType, Tensor};

/// What is wrong with a quantized model, one line each; empty when it is sound.
///
/// Scales are positive, finite and of the right number; zero points lie in range and have the type of the data; axes
/// exist; weight axes are the operator's channel axis; bias scales are exactly the product of the other two and their zero points 0;
/// no weight's `DequantizeLinear` feeds a float operator; no pair stands between two float operators; element movers
/// have the same stored scale and zero point on both sides.
#[must_use]
pub fn check(model: &Model) -> Vec<String> {
    let mut bad = crate::ir::verify::verify(model);
    for id in model.graph_ids() {
        let c = Check { model, id, g: model.graph(id) };
        for n in c.g.nodes() {
            let mut found = Vec::new();
            c.node(n, &mut found);
            bad.extend(found.into_iter().map(|what| format!("{}: {what}", c.g.node(n).location())));
        }
    }
    bad
}

struct Check<'a> {
    model: &'a Model,
    id: GraphId,
    g: &'a Graph,
}

impl Check<'_> {
    fn is_q(&self, n: NodeId) -> bool {
        self.g.node(n).op_type == quant_rule::QUANTIZE
    }

    fn is_dq(&self, n: NodeId) -> bool {
        self.g.node(n).op_type == quant_rule::DEQUANTIZE
    }

    fn stored(&self, v: ValueId) -> Option<&Tensor> {
        constant(self.model, self.id, v).and_then(|t| t.get().ok())
    }

    /// The `DequantizeLinear` that makes a value.
    fn dq_of(&self, v: ValueId) -> Option<NodeId> {
        self.g.producer(v).map(|(n, _)| n).filter(|&n| self.is_dq(n))
    }

    fn scale(&self, dq: NodeId) -> Option<&Tensor> {
        self.g.input(dq, 1).and_then(|v| self.stored(v))
    }

    fn node(&self, n: NodeId, bad: &mut Vec<String>) {
        if self.is_q(n) || self.is_dq(n) {
            self.parameters(n, bad);
            return;
        }
        let node = self.g.node(n);
        let opset = self.model.opsets_in(self.id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
        let Some(def) = lookup(&node.domain, &node.op_type, opset) else { return };
        match def.quant {
            QuantRule::Weighted { data, weight, bias, axis } => {
                let Some(w) = self.g.input(n, weight).and_then(|v| self.dq_of(v)) else { return };
                let Some(x) = self.g.input(n, data).and_then(|v| self.dq_of(v)) else {
                    bad.push("its weight is quantized but its data is not: it would run in float".into());
                    return;
                };
                let stored = self.g.input(w, 0).and_then(|v| self.stored(v));
                let Some((stored, w_scale)) = stored.zip(self.scale(w)) else { return };
                if w_scale.rank() == 1 {
                    let rank = stored.rank() as i64;
                    let a = self.g.node(w).attrs.int("axis").unwrap_or(1);
                    let a = if a < 0 { a + rank } else { a };
                    let want = axis.resolve(&node.attrs, stored.rank());
                    if want.map(|w| w as i64) != Some(a) {
                        bad.push(format!("its weight is quantized along axis {a}, which is not its channel axis"));
                    }
                }
                if let Some(b) = bias.and_then(|slot| self.g.input(n, slot)) {
                    self.bias(b, x, w_scale, bad);
                }
            }
            QuantRule::Share => {
                let Some(x) = self.g.input(n, 0).and_then(|v| self.dq_of(v)) else { return };
                for y in self.g.node_outputs(n).into_iter().flatten() {
                    let Some(&(q, _)) = self.g.consumers(y).iter().find(|(c, _)| self.is_q(*c)) else { continue };
                    if self.g.input(q, 1) != self.g.input(x, 1) || self.g.input(q, 2) != self.g.input(x, 2) {
                        bad.push("moves elements between tensors of different scale or zero point".into());
                    }
                }
            }
            _ => {}
        }
    }

    fn bias(&self, b: ValueId, x: NodeId, w_scale: &Tensor, bad: &mut Vec<String>) {
        let Some(dq) = self.dq_of(b) else {
            bad.push("its weight is quantized but its bias is not".into());
            return;
        };
        let (Some(b_scale), Some(x_scale)) = (self.scale(dq), self.scale(x)) else { return };
        if let (Ok(b), Ok(x), Ok(w)) = (b_scale.slice::<f32>(), x_scale.slice::<f32>(), w_scale.slice::<f32>()) {
            let exact = x.len() == 1
                && b.len() == w.len()
                && b.iter()
                    .zip(w)
                    .all(|(b, w)| b.to_bits() == (x[0] * w).to_bits() || b.to_bits() == (w * x[0]).to_bits());
            if !exact {
                bad.push("the scale of its bias is not the product of the scales of data and weight".into());
            }
        }
        let zero = self.g.input(dq, 2).and_then(|v| self.stored(v));
        if zero.is_some_and(|z| z.to_i64s().is_ok_and(|v| v.iter().any(|&z| z != 0))) {
            bad.push("the zero point of its bias is not 0".into());
        }
    }

    fn parameters(&self, n: NodeId, bad: &mut Vec<String>) {
        let (Some(x), Some(s)) = (self.g.input(n, 0), self.g.input(n, 1)) else {
            bad.push("data or scale is missing".into());
            return;
        };
        let Some(scale) = self.stored(s) else {
            bad.push("its scale is not a constant".into());
            return;
        };
        if scale.to_f64s().is_ok_and(|v| v.iter().any(|&s| !(s > 0.0 && s.is_finite()))) {
            bad.push("a scale is not positive and finite".into());
        }
        let (rank, dims) = match self.stored(x) {
            Some(t) => (Some(t.rank()), t.shape().iter().map(|&n| Dim::Known(n)).collect()),
            None => match self.g.value(x).ty.as_ref().and_then(|t| t.shape()) {
                Some(s) => (Some(s.len()), s.to_vec()),
                None => (None, Vec::new()),
            },
        };
        if let (1, Some(rank)) = (scale.rank(), rank)
            && scale.len() > 1
        {
            let a = self.g.node(n).attrs.int("axis").unwrap_or(1);
            let a = if a < 0 { a + rank as i64 } else { a };
            match usize::try_from(a).ok().and_then(|a| dims.get(a)) {
                None => bad.push(format!("axis {a} is out of range for rank {rank}")),
                Some(Dim::Known(n)) if *n != scale.len() => {
                    bad.push(format!("{} scales for {n} channels", scale.len()));
                }
                Some(_) => {}
            }
        }
        if let Some(zero) = self.g.input(n, 2).and_then(|v| self.stored(v)) {
            if zero.shape() != scale.shape() {
                bad.push("scale and zero point have different shapes".into());
            }
            let data = self.stored(x).map(Tensor::dtype).or_else(|| self.g.value(x).ty.as_ref()?.dtype());
            if self.is_dq(n) && data.is_some_and(|d| d != zero.dtype()) {
                bad.push("data and zero point have different types".into());
            }
        } else if self.stored(x).is_none_or(|t| t.dtype() != DType::I32) {
            bad.push("its zero point is missing".into());
        }
        if self.is_dq(n) {
            self.pair(n, x, bad);
        }
    }

    /// A `QuantizeLinear` and `DequantizeLinear` with float operators on both sides only cost time and accuracy.
    fn pair(&self, dq: NodeId, x: ValueId, bad: &mut Vec<String>) {
        let Some(q) = self.g.producer(x).map(|(n, _)| n).filter(|&n| self.is_q(n)) else { return };
        let Some(source) = self.g.input(q, 0) else { return };
        let producer_is_integer = self.g.producer(source).is_some_and(|(p, _)| self.has_quantized_input(p));
        let Some(y) = self.g.output(dq, 0) else { return };
        // A reader is an integer one when all its data is quantized; looked at by its slots' facts.
        let reader_is_integer = self.g.consumers(y).iter().any(|&(r, slot)| self.reads_integers(r, slot));
        let sibling = self.g.consumers(x).iter().any(|&(d, _)| {
            d != dq
                && self
                    .g
                    .output(d, 0)
                    .is_some_and(|y| self.g.consumers(y).iter().any(|&(r, slot)| self.reads_integers(r, slot)))
        });
        if !producer_is_integer && !reader_is_integer && !sibling {
            bad.push("stands between two float operators".into());
        }
    }

    fn has_quantized_input(&self, n: NodeId) -> bool {
        // Through a Relu or Clip that stayed in the graph.
        self.g.node_inputs(n).into_iter().flatten().any(|v| {
            self.dq_of(v).is_some()
                || self
                    .g
                    .producer(v)
                    .is_some_and(|(p, _)| self.g.node_inputs(p).into_iter().flatten().any(|v| self.dq_of(v).is_some()))
        })
    }

    fn reads_integers(&self, n: NodeId, slot: usize) -> bool {
        let node = self.g.node(n);
        let opset = self.model.opsets_in(self.id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
        match lookup(&node.domain, &node.op_type, opset).map(|d| d.quant) {
            Some(QuantRule::Weighted { data, weight, .. }) => {
                slot == data && self.g.input(n, weight).is_some_and(|w| self.dq_of(w).is_some())
            }
            Some(QuantRule::Combine { data, .. }) => data.contains(slot),
            Some(QuantRule::Share) => slot == 0,
            _ => false,
        }
    }
}
