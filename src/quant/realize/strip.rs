//! Back to float: quantized operators become float ones, stored integers the numbers that they stand for, and
//! `QuantizeLinear`/`DequantizeLinear` pairs go.

use crate::error::{Result, anyhow};
use crate::ir::{Def, GraphId, Model, Names, Node, NodeId, TensorType, ValueId, ValueType};
use crate::ops::{QuantRule, evaluate, lookup, quant_rule};
use crate::passes;
use crate::quant::realize::qoperator;
use crate::tensor::DType;

/// What was taken out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stripped {
    /// `QuantizeLinear` and `DequantizeLinear` nodes.
    pub n_pairs: usize,
    /// Stored tensors that are float now.
    pub n_weights: usize,
    /// `Relu` nodes that came back: the saturation of a zero point at the lowest integer stood for them.
    pub n_relu: usize,
}

/// Makes a quantized model a float one. The upper bound of a `Clip` that vanished into a zero point does not come back:
/// nothing in the model says that there was one.
///
/// # Errors
/// A graph has a cycle, or a stored tensor cannot be read.
pub fn strip(model: &mut Model) -> Result<Stripped> {
    qoperator::to_qdq(model)?;
    let mut out = Stripped::default();
    let mut names = Names::of(model);
    for id in model.graph_ids() {
        let order = model.graph(id).order()?;
        for &n in &order {
            if is(model, id, n, quant_rule::DEQUANTIZE) {
                constant(model, id, n, &mut out)?;
            }
        }
        for &n in &order {
            if is(model, id, n, quant_rule::QUANTIZE) {
                pair(model, id, n, &mut names, &mut out);
            }
        }
    }
    let mut sink = crate::diag::Sink::default();
    passes::manager::run(model, &passes::CLEANUP, &mut passes::Ctx::new(&mut sink), &mut |_, _| {})?;
    Ok(out)
}

fn is(model: &Model, id: GraphId, n: NodeId, op: &str) -> bool {
    model.graph(id).node(n).op_type == op
}

/// A stored tensor behind a `DequantizeLinear` becomes the floats that it stands for.
fn constant(model: &mut Model, id: GraphId, n: NodeId, out: &mut Stripped) -> Result<()> {
    let g = model.graph(id);
    let node = g.node(n);
    let ins = g.node_inputs(n);
    let stored: Option<Vec<_>> = ins
        .iter()
        .map(|v| v.map(|v| crate::quant::annotate::constant(model, id, v)).map_or(Some(None), |t| t.map(Some)))
        .collect();
    let (Some(stored), Some(y)) = (stored, g.output(n, 0)) else { return Ok(()) };
    let tensors = stored.into_iter().map(|t| t.map(|t| t.get().cloned()).transpose()).collect::<Result<Vec<_>>>()?;
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    let def = lookup(&node.domain, &node.op_type, opset).ok_or_else(|| anyhow!("{} is not known", node.op_type))?;
    let float = evaluate(def, &node.attrs, opset, tensors, 1)?.into_iter().next();
    let float = float.ok_or_else(|| anyhow!("{}: gives nothing", node.location()))?;
    // The float tensor gets the name that it had: that of the integers without what quantizing put behind it.
    let name = ins[0].map(|v| g.value(v).name.trim_end_matches("_quantized").to_owned()).unwrap_or_default();
    let is_free = g.find_value(&name).is_none();
    if g.is_output(y) || g.is_captured(y) {
        return Ok(());
    }
    let g = model.graph_mut(id);
    let ty = TensorType::fixed(float.dtype(), float.shape());
    let name = if is_free { name } else { format!("{}_float", g.value(y).name) };
    let new = g.add_initializer(name, float);
    g.set_type(new, Some(ValueType::Tensor(ty)));
    g.replace_uses(y, new);
    out.n_pairs += 1;
    out.n_weights += 1;
    Ok(())
}

/// The readers of every `DequantizeLinear` behind a `QuantizeLinear` read what was quantized.
fn pair(model: &mut Model, id: GraphId, q: NodeId, names: &mut Names, out: &mut Stripped) {
    let g = model.graph(id);
    let (Some(x), Some(y)) = (g.input(q, 0), g.output(q, 0)) else { return };
    let readers = g.consumers(y);
    let all_dq = readers.iter().all(|&(n, slot)| slot == 0 && is(model, id, n, quant_rule::DEQUANTIZE));
    if readers.is_empty() || !all_dq || g.n_uses(y) != readers.len() {
        return;
    }
    let source = if saturates_at_zero(model, id, q, x) { relu(model, id, q, x, names, out) } else { x };
    out.n_pairs += 1;
    for (dq, _) in readers {
        let g = model.graph_mut(id);
        let Some(v) = g.output(dq, 0) else { continue };
        out.n_pairs += 1;
        if g.is_output(v) || g.is_captured(v) {
            // Its name is known outside: whoever makes the source makes it.
            keep_name(model, id, source, dq, v);
        } else {
            g.replace_uses(v, source);
        }
    }
}

/// Lets the node that makes `source` make `v`, or puts an `Identity` between a graph input and `v`.
fn keep_name(model: &mut Model, id: GraphId, source: ValueId, dq: NodeId, v: ValueId) {
    let g = model.graph_mut(id);
    match g.producer(source) {
        Some((n, slot)) if !g.is_output(source) && matches!(g.value(source).def, Def::Node) => {
            g.set_output(dq, 0, None);
            for (reader, s) in g.consumers(source) {
                g.set_input(reader, s, Some(v));
            }
            g.set_output(n, slot, Some(v));
        }
        _ => {
            let pos = g.node(dq).pos;
            g.set_output(dq, 0, None);
            let n = g.add_node(Node::new("Identity").at(pos), &[Some(source)], &[None]);
            g.set_output(n, 0, Some(v));
        }
    }
}

/// Whether the lowest integer stands for 0 although what is quantized may be negative: then a `Relu` vanished here.
fn saturates_at_zero(model: &Model, id: GraphId, q: NodeId, x: ValueId) -> bool {
    let g = model.graph(id);
    let stored = g.input(q, 2).and_then(|v| crate::quant::annotate::constant(model, id, v));
    let zero = stored.and_then(|t| Some((t.dtype().int_range()?.0, t.get().ok()?.to_i64s().ok()?)));
    let at_low = zero.is_some_and(|(low, z)| z.iter().all(|&z| z == low));
    let Some((maker, _)) = g.producer(x) else { return false };
    let node = g.node(maker);
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    let rule = lookup(&node.domain, &node.op_type, opset).map(|d| d.quant);
    // Sums and products have either sign. What other operators make is where it should be already.
    let adds = matches!(rule, Some(QuantRule::Weighted { .. })) || node.op_type == "Add";
    at_low && adds && model.graph(id).value(x).ty.as_ref().and_then(ValueType::dtype) != Some(DType::F64)
}

fn relu(model: &mut Model, id: GraphId, q: NodeId, x: ValueId, names: &mut Names, out: &mut Stripped) -> ValueId {
    let g = model.graph_mut(id);
    let name = g.value(x).name.clone();
    let ty = g.value(x).ty.clone();
    let y = g.add_result(names.fresh(&format!("{name}_relu")), ty);
    let node = Node::new("Relu").at(g.node(q).pos).named(names.fresh(&format!("{name}_relu")));
    g.add_node(node, &[Some(x)], &[Some(y)]);
    out.n_relu += 1;
    y
}
