//! QDQ form: `QuantizeLinear`/`DequantizeLinear` pairs on activations, stored integers with a `DequantizeLinear` for
//! weights and biases. Names follow ONNX Runtime's quantizer, so that its debugging tools recognise them:
//! `X_QuantizeLinear`, `X_DequantizeLinear_Output`, `W_quantized`, `X_scale`, `X_zero_point`.

use std::collections::BTreeMap;

use crate::error::{At, Result, anyhow, ensure};
use crate::ir::{Attr, Domain, GraphId, Model, Names, Node, NodeId, Position, TensorType, ValueId, ValueType};
use crate::ops::QuantRule;
use crate::ops::quant_rule::QUANTIZE;
use crate::quant::algo::bias_correct::added_constant;
use crate::quant::annotate::{SLOW, constant, rule};
use crate::quant::params::{QParams, Range};
use crate::quant::plan::{Decision, NodePlace, NodePlan, Place, QuantPlan, Readers, TensorPlan, WeightPlan};
use crate::quant::scheme::Scheme;
use crate::quant::target::BiasType;
use crate::tensor::{DType, Tensor, affine};

/// Writes a complete plan into the model. Nodes that lost their place are left for `eliminate-dead`.
///
/// # Errors
/// The plan is not complete, or a stored tensor cannot be read.
pub fn realize(model: &mut Model, plan: &QuantPlan, scheme: &Scheme) -> Result<()> {
    write(model, plan, scheme, true)
}

/// Writes a plan as [`realize`] does, but leaves weights and biases float: what the activations alone lose.
///
/// # Errors
/// As [`realize`].
pub fn realize_activations(model: &mut Model, plan: &QuantPlan, scheme: &Scheme) -> Result<()> {
    write(model, plan, scheme, false)
}

fn write(model: &mut Model, plan: &QuantPlan, scheme: &Scheme, with_weights: bool) -> Result<()> {
    let names = Names::of(model);
    let nodes = plan.nodes.iter().map(|n| (n.place, n)).collect();
    let mut w = Writer { model, plan, scheme, nodes, names, params: BTreeMap::new(), stored: BTreeMap::new() };
    // Weights first: they look at the nodes as the plan knows them.
    for node in &plan.nodes {
        let is_weighted = matches!(node.rule, QuantRule::Weighted { .. });
        if node.decision == Decision::Integer && (with_weights || !is_weighted) {
            let location = w.model.graph(node.place.0).node(node.place.1).location();
            w.constants(node).at(|| location)?;
        }
    }
    for (&place, tensor) in &plan.tensors {
        w.activation(place, tensor)?;
    }
    let own = Domain::microsoft();
    if scheme.own_domain && model.opset(&own).is_none() {
        model.opsets.push((own, 1));
    }
    Ok(())
}

struct Writer<'a> {
    model: &'a mut Model,
    plan: &'a QuantPlan,
    scheme: &'a Scheme,
    nodes: BTreeMap<NodePlace, &'a NodePlan>,
    names: Names,
    /// Scale and zero point values of each group of tensors.
    params: BTreeMap<Place, (ValueId, ValueId)>,
    /// Dequantized constants by constant and by what they were quantized with, so that equal uses share.
    stored: BTreeMap<(GraphId, ValueId, Vec<u32>), ValueId>,
}

impl Writer<'_> {
    fn result(&mut self, g: GraphId, name: &str, dtype: DType, like: ValueId) -> ValueId {
        let shape =
            self.model.graph(g).value(like).ty.as_ref().and_then(|t| t.as_tensor()).and_then(|t| t.shape.clone());
        let ty = ValueType::Tensor(TensorType { dtype: Some(dtype), shape });
        let name = self.names.fresh(name);
        self.model.graph_mut(g).add_result(name, Some(ty))
    }

    fn initializer(&mut self, g: GraphId, name: &str, tensor: Tensor) -> ValueId {
        let name = self.names.fresh(name);
        self.model.graph_mut(g).add_initializer(name, tensor)
    }

    fn node(&mut self, g: GraphId, name: &str, mut node: Node, ins: &[ValueId], out: ValueId) -> NodeId {
        if self.scheme.own_domain {
            node = node.domain(Domain::microsoft());
        }
        let ins: Vec<_> = ins.iter().map(|&v| Some(v)).collect();
        let node = node.named(self.names.fresh(name));
        self.model.graph_mut(g).add_node(node, &ins, &[Some(out)])
    }

    /// Scale and zero point of a group, stored once and named after its first tensor.
    fn group_params(&mut self, group: Place, p: QParams) -> Result<(ValueId, ValueId)> {
        if let Some(&found) = self.params.get(&group) {
            return Ok(found);
        }
        let name = self.model.graph(group.0).value(group.1).name.clone();
        let scale = self.initializer(group.0, &format!("{name}_scale"), Tensor::scalar(p.scale));
        let zero = self.initializer(group.0, &format!("{name}_zero_point"), p.zero_point_tensor()?);
        self.params.insert(group, (scale, zero));
        Ok((scale, zero))
    }

    fn activation(&mut self, place: Place, t: &TensorPlan) -> Result<()> {
        let (id, v) = place;
        let g = self.model.graph(id);
        let name = g.value(v).name.clone();
        let params = t.params.ok_or_else(|| anyhow!("tensor \"{name}\" has no parameters"))?;
        let (scale, zero) = self.group_params(t.group, params)?;
        let g = self.model.graph(id);
        let kept_for_others = g.is_output(v) || g.is_captured(v);
        let (first_reader, producer) = (g.consumers(v).first().map(|c| c.0), g.producer(v));
        let pos = match (producer, first_reader) {
            (Some((n, _)), _) => g.node(n).pos,
            (None, Some(n)) => g.node(n).pos.before().before().before(),
            (None, None) => Position::default(),
        };
        // What the QuantizeLinear reads: the tensor, or what the bound that vanishes here reads.
        let absorbed = producer
            .filter(|&(n, _)| self.nodes.get(&(id, n)).is_some_and(|p| p.decision == Decision::Absorbed(place)));
        let source = match absorbed {
            Some((bound, _)) => g.input(bound, 0).ok_or_else(|| anyhow!("a bound without input cannot be absorbed"))?,
            // A graph output keeps its name: it becomes the DequantizeLinear's, and the producer makes another value.
            None if kept_for_others && t.readers == Readers::All && producer.is_some() => {
                let new = self.result(id, &format!("{name}_QuantizeLinear_Input"), DType::F32, v);
                if let Some((n, slot)) = producer {
                    self.model.graph_mut(id).set_output(n, slot, Some(new));
                }
                new
            }
            None => v,
        };
        let (read, guard) = self.guarded(id, &name, source);
        let q = self.result(id, &format!("{name}_QuantizeLinear_Output"), params.dtype, v);
        let node = Node::new("QuantizeLinear").at(pos.after());
        self.node(id, &format!("{name}_QuantizeLinear"), node, &[read, scale, zero], q);
        // Readers go over to the dequantized tensor before it exists, so that the QuantizeLinear keeps the float one.
        let mut readers = self.readers(id, v, t.readers, source == v);
        readers.retain(|&(n, _)| Some(n) != guard);
        let dq = Node::new("DequantizeLinear").at(pos.after().after());
        if t.readers == Readers::All && kept_for_others && source != v {
            // The value itself becomes the dequantized one: outputs and bodies read it by name.
            if let Some((n, slot)) = self.model.graph(id).producer(v) {
                self.model.graph_mut(id).set_output(n, slot, None);
            }
            self.node(id, &format!("{name}_DequantizeLinear"), dq.clone(), &[q, scale, zero], v);
        }
        self.dequantize_for(id, &name, dq, &[q, scale, zero], v, &readers);
        Ok(())
    }

    /// The tensor, behind a `Sum` of it alone where it comes out of a node that the plan keeps float between a
    /// `DequantizeLinear` and a `QuantizeLinear`: ONNX Runtime takes those three for an integer node and quantizes the
    /// float weight by itself, as a whole, which loses what the node is kept float for. So, too, behind a pool that is
    /// slow in integers: ONNX Runtime would move the `QuantizeLinear` in front of it.
    fn guarded(&mut self, id: GraphId, name: &str, source: ValueId) -> (ValueId, Option<NodeId>) {
        let g = self.model.graph(id);
        let mut maker = g.producer(source).map(|(n, _)| n);
        if let Some(n) = maker
            && rule(self.model, (id, n)) == Some(QuantRule::Bound)
        {
            maker = g.input(n, 0).and_then(|x| g.producer(x)).map(|(n, _)| n);
        }
        let Some(n) = maker else { return (source, None) };
        let Some(Decision::Float { code, .. }) = self.plan.node((id, n)).map(|p| &p.decision) else {
            return (source, None);
        };
        let is_mistaken = match rule(self.model, (id, n)) {
            Some(QuantRule::Weighted { data, weight, .. }) => {
                let has_weight = g.input(n, weight).is_some_and(|w| constant(self.model, id, w).is_some());
                has_weight && g.input(n, data).is_some()
            }
            Some(QuantRule::Share) => *code == SLOW,
            _ => false,
        };
        if !is_mistaken {
            return (source, None);
        }
        let pos = g.producer(source).map_or_else(Position::default, |(n, _)| g.node(n).pos);
        let out = self.result(id, &format!("{name}_float"), DType::F32, source);
        let guard = self.node(id, &format!("{name}_Sum"), Node::new("Sum").at(pos.after()), &[source], out);
        (out, Some(guard))
    }

    /// The input slots that read the dequantized tensor.
    fn readers(&self, id: GraphId, v: ValueId, readers: Readers, has_raw_readers: bool) -> Vec<(NodeId, usize)> {
        let g = self.model.graph(id);
        let mut slots = g.consumers(v);
        if has_raw_readers {
            // The QuantizeLinear that was just added keeps reading the float tensor.
            slots.retain(|&(n, slot)| !(slot == 0 && g.node(n).op_type == QUANTIZE));
        }
        if readers == Readers::Integer {
            slots.retain(|&(n, slot)| self.is_integer_data(id, n, slot));
        }
        slots
    }

    fn is_integer_data(&self, id: GraphId, n: NodeId, slot: usize) -> bool {
        self.nodes.get(&(id, n)).is_some_and(|p| p.decision == Decision::Integer && p.data.contains(&slot))
    }

    fn dequantize_for(
        &mut self,
        id: GraphId,
        name: &str,
        node: Node,
        ins: &[ValueId],
        like: ValueId,
        readers: &[(NodeId, usize)],
    ) {
        if readers.is_empty() {
            return;
        }
        let out = self.result(id, &format!("{name}_DequantizeLinear_Output"), DType::F32, like);
        self.node(id, &format!("{name}_DequantizeLinear"), node, ins, out);
        for &(n, slot) in readers {
            self.model.graph_mut(id).set_input(n, slot, Some(out));
        }
    }

    // ---- constants ----

    fn constants(&mut self, plan: &NodePlan) -> Result<()> {
        let (id, n) = plan.place;
        match plan.rule {
            QuantRule::Weighted { data, weight, bias, .. } => {
                let w = plan.weight.as_ref().ok_or_else(|| anyhow!("its weight has no parameters"))?;
                self.weight(id, n, weight, w)?;
                self.bias(id, n, data, bias, w)
            }
            QuantRule::Combine { .. } => {
                for &slot in &plan.data {
                    let Some(v) = self.model.graph(id).input(n, slot) else { continue };
                    if let Some(t) = constant(self.model, id, v).cloned() {
                        let dq = self.operand(id, n, v, t.get()?)?;
                        self.model.graph_mut(id).set_input(n, slot, Some(dq));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A constant operand of an `Add`, `Mul`, `Concat`: quantized as a whole, with a range of its own.
    fn operand(&mut self, id: GraphId, n: NodeId, v: ValueId, t: &Tensor) -> Result<ValueId> {
        let x = t.slice::<f32>()?;
        let range = match self.plan.operands.get(&(id, v)) {
            Some(&r) => r,
            None => x.iter().fold(Range { min: 0.0, max: 0.0 }, |r, &x| r.union(Range::new(x, x))),
        };
        let p = QParams::covering(range, self.scheme.activation, self.scheme.symmetric_activations)?;
        let key = (id, v, vec![p.scale.to_bits(), p.zero_point as u32]);
        if let Some(&dq) = self.stored.get(&key) {
            return Ok(dq);
        }
        let name = self.model.graph(id).value(v).name.clone();
        let q = self.initializer(id, &format!("{name}_quantized"), p.quantize(x, t.shape())?);
        let scale = self.initializer(id, &format!("{name}_scale"), Tensor::scalar(p.scale));
        let zero = self.initializer(id, &format!("{name}_zero_point"), p.zero_point_tensor()?);
        let dq = self.dequantized(id, n, &name, &[q, scale, zero], None, t.shape());
        self.stored.insert(key, dq);
        Ok(dq)
    }

    fn dequantized(
        &mut self,
        id: GraphId,
        n: NodeId,
        name: &str,
        ins: &[ValueId],
        axis: Option<usize>,
        shape: &[usize],
    ) -> ValueId {
        let pos = self.model.graph(id).node(n).pos.before();
        let mut node = Node::new("DequantizeLinear").at(pos);
        if let Some(axis) = axis {
            node.attrs.set("axis", Attr::Int(axis as i64));
        }
        let out = self.names.fresh(&format!("{name}_DequantizeLinear_Output"));
        let ty = ValueType::Tensor(TensorType::fixed(DType::F32, shape));
        let out = self.model.graph_mut(id).add_result(out, Some(ty));
        self.node(id, &format!("{name}_DequantizeLinear"), node, ins, out);
        out
    }

    fn weight(&mut self, id: GraphId, n: NodeId, slot: usize, plan: &WeightPlan) -> Result<()> {
        let v = self.model.graph(id).input(n, slot).ok_or_else(|| anyhow!("input {slot} is missing"))?;
        let t = constant(self.model, id, v).cloned().ok_or_else(|| anyhow!("its weight is not a constant"))?;
        let key = (id, v, plan.params.scales.iter().map(|s| s.to_bits()).collect::<Vec<_>>());
        let shared = plan.rounded.is_none();
        if let (true, Some(&dq)) = (shared, self.stored.get(&key)) {
            self.model.graph_mut(id).set_input(n, slot, Some(dq));
            return Ok(());
        }
        let q = match &plan.rounded {
            Some(q) => q.clone(),
            None => plan.params.quantize(t.get()?.slice()?, t.shape())?,
        };
        ensure!(q.shape() == t.shape(), "the rounded weight has another shape");
        let name = self.model.graph(id).value(v).name.clone();
        let scale = match plan.params.axis {
            Some(_) => Tensor::vector(plan.params.scales.clone()),
            None => Tensor::scalar(plan.params.scales[0]),
        };
        let zero = plan.params.zero_point_tensor()?;
        let q = self.initializer(id, &format!("{name}_quantized"), q);
        let scale = self.initializer(id, &format!("{name}_scale"), scale);
        let zero = self.initializer(id, &format!("{name}_zero_point"), zero);
        let dq = self.dequantized(id, n, &name, &[q, scale, zero], plan.params.axis, t.shape());
        self.model.graph_mut(id).set_input(n, slot, Some(dq));
        if shared {
            self.stored.insert(key, dq);
        }
        Ok(())
    }

    /// The bias as int32 with exactly the product of the scales, one copy per use since the product differs.
    fn bias(&mut self, id: GraphId, n: NodeId, data: usize, slot: Option<usize>, plan: &WeightPlan) -> Result<()> {
        let g = self.model.graph(id);
        let x = g.input(n, data).and_then(|x| self.plan.tensors.get(&(id, x))).and_then(|t| t.params);
        let x = x.ok_or_else(|| anyhow!("its data has no parameters"))?;
        if self.scheme.bias == BiasType::Float32 {
            return self.float_bias(id, n, slot, plan);
        }
        let Some(slot) = slot else { return self.add_after(id, n, x, plan) };
        let stored = g.input(n, slot);
        let (name, shape, float) = match (stored, &plan.bias) {
            (None, None) => return Ok(()),
            (Some(v), corrected) => {
                let t = constant(self.model, id, v).ok_or_else(|| anyhow!("its bias is not a constant"))?.get()?;
                let name = self.model.graph(id).value(v).name.clone();
                (name, t.shape().to_vec(), corrected.clone().unwrap_or(t.slice::<f32>()?.to_vec()))
            }
            (None, Some(b)) => (format!("{}_bias", self.model.graph(id).node(n).label()), vec![b.len()], b.clone()),
        };
        let dq = self.bias_dequantized(id, n, &name, &float, &shape, x, plan)?;
        self.model.graph_mut(id).set_input(n, slot, Some(dq));
        Ok(())
    }

    /// The bias as it is, or the corrected one.
    fn float_bias(&mut self, id: GraphId, n: NodeId, slot: Option<usize>, plan: &WeightPlan) -> Result<()> {
        let Some(b) = &plan.bias else { return Ok(()) };
        let (n, slot) = match (slot, added_constant(self.model, self.plan, (id, n))) {
            (Some(slot), _) => (n, slot),
            (None, Some((add, v))) => (add, usize::from(self.model.graph(id).input(add, 0) != Some(v))),
            (None, None) => return Ok(()),
        };
        let g = self.model.graph(id);
        let name = match g.input(n, slot) {
            Some(v) => g.value(v).name.clone(),
            None => format!("{}_bias", g.node(n).label()),
        };
        let new = self.initializer(id, &name, Tensor::vector(b.clone()));
        self.model.graph_mut(id).set_input(n, slot, Some(new));
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "one bias needs all of them; a struct would be used once")]
    fn bias_dequantized(
        &mut self,
        id: GraphId,
        n: NodeId,
        name: &str,
        float: &[f32],
        shape: &[usize],
        x: QParams,
        plan: &WeightPlan,
    ) -> Result<ValueId> {
        let scales: Vec<f32> = plan.params.scales.iter().map(|s| s * x.scale).collect();
        let per_channel = plan.params.axis.is_some();
        let q: Vec<i32> = float
            .iter()
            .enumerate()
            .map(|(i, &b)| affine::quantize_bias_one(b, scales[if per_channel { i } else { 0 }]))
            .collect();
        // Gemm's bias may be stored as [1, N]: the same elements as [N], which is what fuses.
        let q = self.initializer(id, &format!("{name}_quantized"), Tensor::new(&[q.len()], q)?);
        let scale = if per_channel { Tensor::vector(scales) } else { Tensor::scalar(scales[0]) };
        let scale = self.initializer(id, &format!("{name}_quantized_scale"), scale);
        let shape = [shape.iter().product()];
        Ok(self.dequantized(id, n, name, &[q, scale], per_channel.then_some(0), &shape))
    }

    /// `MatMul` giving floats, then `Add` of a constant vector: ONNX Runtime fuses the two into a float `Gemm` before it
    /// looks for quantized patterns, unless the vector is an int32 bias (then it is an integer one) or cannot be a
    /// `Gemm`'s bias. So the vector becomes an int32 bias where the shapes let the fusion happen, and else gets
    /// leading ones.
    fn add_after(&mut self, id: GraphId, n: NodeId, x: QParams, plan: &WeightPlan) -> Result<()> {
        let Some((add, b)) = added_constant(self.model, self.plan, (id, n)) else { return Ok(()) };
        let g = self.model.graph(id);
        let slot = if g.input(add, 0) == Some(b) { 0 } else { 1 };
        let Some(t) = constant(self.model, id, b).cloned() else { return Ok(()) };
        let channels = plan.params.scales.len();
        if plan.params.axis.is_none() || t.shape() != [channels] || t.dtype() != DType::F32 {
            return Ok(());
        }
        let name = g.value(b).name.clone();
        let dims = g.output(n, 0).and_then(|y| g.value(y).ty.as_ref()?.shape().map(<[_]>::to_vec)).unwrap_or_default();
        let fuses = dims.len() == 2 || (!dims.is_empty() && dims.iter().all(|d| d.known().is_some()));
        let float = plan.bias.clone().map_or_else(|| t.get()?.slice::<f32>().map(<[f32]>::to_vec), Ok)?;
        let new = if fuses {
            self.bias_dequantized(id, add, &name, &float, &[channels], x, plan)?
        } else if dims.len() > 2 || plan.bias.is_some() {
            let mut shape = vec![1; dims.len().max(1)];
            shape[dims.len().max(1) - 1] = channels;
            self.initializer(id, &format!("{name}_bias"), Tensor::new(&shape, float)?)
        } else {
            return Ok(());
        };
        self.model.graph_mut(id).set_input(add, slot, Some(new));
        Ok(())
    }
}
