//! QOperator form: operators on quantized tensors (`QLinearConv`, `QLinearMatMul`, ONNX Runtime's `QLinearAdd`, `QGemm`
//! ...) instead of float operators between `DequantizeLinear` and `QuantizeLinear`. The two forms say the same; each is
//! made from the other here, so that `--format qoperator` is the QDQ form converted.
//!
//! Spec: <https://onnx.ai/onnx/operators/> (QLinearConv, QLinearMatMul) and ONNX Runtime's ContribOperators.md.
//!
//! **Add an operator:** a line in [`FORMS`].

use std::collections::BTreeMap;

use crate::error::{Result, ensure};
use crate::ir::{Attr, Domain, GraphId, Model, Names, Node, NodeId, TensorType, ValueId, ValueType};
use crate::ops::{QuantRule, lookup, quant_rule};
use crate::passes;
use crate::tensor::DType;

/// How the inputs of an operator on quantized tensors are ordered. Each tensor is followed by scale and zero point.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    /// Data tensors, then scale and zero point of the output.
    Each,
    /// `Conv`: data, weight, scale and zero point of the output, int32 bias.
    Conv,
    /// `Gemm`: data, weight, int32 bias, scale and zero point of the output, which is float without them.
    Gemm,
    /// Scale and zero point of the output first, then the data tensors.
    OutputFirst,
    /// A condition as it is, then data tensors, then scale and zero point of the output.
    Condition,
}

struct Form {
    /// The float operator, of ONNX's own domain.
    float: &'static str,
    /// The operator on quantized tensors.
    quantized: &'static str,
    /// Whether that one is ONNX Runtime's own.
    contrib: bool,
    layout: Layout,
}

const fn form(float: &'static str, quantized: &'static str, contrib: bool, layout: Layout) -> Form {
    Form { float, quantized, contrib, layout }
}

const FORMS: &[Form] = &[
    form("Conv", "QLinearConv", false, Layout::Conv),
    form("MatMul", "QLinearMatMul", false, Layout::Each),
    form("Gemm", "QGemm", true, Layout::Gemm),
    form("Add", "QLinearAdd", true, Layout::Each),
    form("Mul", "QLinearMul", true, Layout::Each),
    form("Concat", "QLinearConcat", true, Layout::OutputFirst),
    form("Where", "QLinearWhere", true, Layout::Condition),
    form("Sigmoid", "QLinearSigmoid", true, Layout::Each),
    form("LeakyRelu", "QLinearLeakyRelu", true, Layout::Each),
    form("Softmax", "QLinearSoftmax", true, Layout::Each),
    form("AveragePool", "QLinearAveragePool", true, Layout::Each),
    form("GlobalAveragePool", "QLinearGlobalAveragePool", true, Layout::Each),
];

/// A quantized tensor: integers, scale, zero point.
#[derive(Clone, Copy, PartialEq)]
struct Parts {
    q: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
}

/// Makes operators on quantized tensors of the float operators between `DequantizeLinear` and `QuantizeLinear`, and lets
/// operators that move elements move integers. Gives the number of nodes that changed. What has no such form (an output
/// that stays float, 16 bits, a zero point that is not written out) stays as it is.
///
/// # Errors
/// A graph has a cycle.
pub fn from_qdq(model: &mut Model) -> Result<usize> {
    infer_types(model)?;
    let mut n_changed = 0;
    for id in model.graph_ids() {
        for n in model.graph(id).order()? {
            let changed = fuse(model, id, n) || carry(model, id, n);
            n_changed += usize::from(changed);
        }
    }
    if n_changed > 0 {
        import_contrib(model);
    }
    clean(model)?;
    Ok(n_changed)
}

/// The inverse of [`from_qdq`].
///
/// # Errors
/// A graph has a cycle, or an operator lacks an input that it must have.
pub fn to_qdq(model: &mut Model) -> Result<usize> {
    infer_types(model)?;
    let mut names = Names::of(model);
    let mut n_changed = 0;
    for id in model.graph_ids() {
        // What integers stand for: said by whoever made them, and kept by operators that move them.
        let mut known: BTreeMap<ValueId, Parts> = BTreeMap::new();
        for n in model.graph(id).order()? {
            let changed = split(model, id, n, &mut names, &mut known)? || wrap(model, id, n, &mut names, &mut known);
            n_changed += usize::from(changed);
        }
    }
    clean(model)?;
    Ok(n_changed)
}

/// A file need not say the types of what lies between its nodes, and the forms go by them.
fn infer_types(model: &mut Model) -> Result<()> {
    crate::infer::infer(model, &mut crate::diag::Sink::default())
}

fn clean(model: &mut Model) -> Result<()> {
    let mut sink = crate::diag::Sink::default();
    passes::manager::run(model, &passes::CLEANUP, &mut passes::Ctx::new(&mut sink), &mut |_, _| {}).map(drop)
}

fn import_contrib(model: &mut Model) {
    let own = Domain::microsoft();
    if model.opset(&own).is_none() {
        model.opsets.push((own, 1));
    }
}

fn is(node: &Node, op: &str) -> bool {
    node.op_type == op
}

/// What the `DequantizeLinear` that makes a value reads.
fn dequantized(model: &Model, id: GraphId, v: ValueId) -> Option<Parts> {
    let g = model.graph(id);
    let (dq, _) = g.producer(v).filter(|(n, _)| is(g.node(*n), quant_rule::DEQUANTIZE))?;
    if g.node(dq).attrs.int("block_size").is_some_and(|b| b != 0) {
        return None;
    }
    Some(Parts { q: g.input(dq, 0)?, scale: g.input(dq, 1)?, zero: g.input(dq, 2) })
}

/// The `QuantizeLinear` that alone reads a value, with its parts.
fn quantized(model: &Model, id: GraphId, v: ValueId) -> Option<Parts> {
    let g = model.graph(id);
    let [(q, 0)] = g.consumers(v)[..] else { return None };
    if g.n_uses(v) != 1 || !is(g.node(q), quant_rule::QUANTIZE) {
        return None;
    }
    Some(Parts { q: g.output(q, 0)?, scale: g.input(q, 1)?, zero: g.input(q, 2) })
}

fn is_8_bit(model: &Model, id: GraphId, v: ValueId) -> bool {
    let stored = super::super::annotate::constant(model, id, v).map(|t| t.dtype());
    let dtype = stored.or_else(|| model.graph(id).value(v).ty.as_ref()?.dtype());
    matches!(dtype, Some(DType::U8 | DType::I8))
}

/// Makes one float operator an operator on quantized tensors, if everything around it is quantized.
fn fuse(model: &mut Model, id: GraphId, n: NodeId) -> bool {
    let Some(made) = fused_inputs(model, id, n) else { return false };
    let (form, inputs, output) = made;
    let opset = model.onnx_opset();
    let g = model.graph_mut(id);
    let node = g.node_mut(n);
    node.op_type = form.quantized.to_owned();
    if form.contrib {
        node.domain = Domain::microsoft();
    }
    if form.quantized == "QLinearSoftmax" {
        node.attrs.set("opset", Attr::Int(opset));
        if node.attrs.int("axis").is_none() {
            node.attrs.set("axis", Attr::Int(if opset < 13 { 1 } else { -1 }));
        }
    }
    if form.quantized == "QGemm" {
        // It has no beta: the bias has the scale of the products.
        node.attrs.remove("beta");
    }
    g.truncate_inputs(n, 0);
    for (slot, v) in inputs.into_iter().enumerate() {
        g.set_input(n, slot, v);
    }
    if let Some(y) = output {
        g.take_over(n, 0, y);
    }
    true
}

type Fused = (&'static Form, Vec<Option<ValueId>>, Option<ValueId>);

/// The inputs of the operator on quantized tensors, and the integers that it makes.
fn fused_inputs(model: &Model, id: GraphId, n: NodeId) -> Option<Fused> {
    let g = model.graph(id);
    let node = g.node(n);
    let form = FORMS.iter().find(|f| node.is(f.float))?;
    let y = quantized(model, id, g.output(n, 0)?).filter(|y| is_8_bit(model, id, y.q));
    let triple = |slot: usize| -> Option<[Option<ValueId>; 3]> {
        let p = dequantized(model, id, g.input(n, slot)?)?;
        (is_8_bit(model, id, p.q)).then_some([Some(p.q), Some(p.scale), Some(p.zero?)])
    };
    let bias = |slot: usize| -> Option<Option<ValueId>> {
        match g.input(n, slot) {
            None => Some(None),
            Some(v) => dequantized(model, id, v).map(|p| Some(p.q)),
        }
    };
    let end = y.map(|y| [Some(y.scale), y.zero]);
    let n_inputs = g.node_inputs(n).len();
    let mut inputs = Vec::new();
    match form.layout {
        Layout::Each => {
            for slot in 0..n_inputs {
                inputs.extend(triple(slot)?);
            }
            inputs.extend(end?);
        }
        Layout::Conv => {
            inputs.extend(triple(0)?);
            inputs.extend(triple(1)?);
            inputs.extend(end?);
            inputs.extend(bias(2)?.map(Some));
        }
        Layout::Gemm => {
            let one = |name: &str| node.attrs.float(name).is_none_or(|x| x == 1.0);
            if !one("alpha") || !one("beta") {
                return None;
            }
            inputs.extend(triple(0)?);
            inputs.extend(triple(1)?);
            inputs.push(bias(2)?);
            inputs.extend(end.into_iter().flatten());
        }
        Layout::OutputFirst => {
            inputs.extend(end?);
            for slot in 0..n_inputs {
                inputs.extend(triple(slot)?);
            }
        }
        Layout::Condition => {
            inputs.push(g.input(n, 0));
            for slot in 1..n_inputs {
                inputs.extend(triple(slot)?);
            }
            inputs.extend(end?);
        }
    }
    while inputs.last() == Some(&None) {
        inputs.pop();
    }
    Some((form, inputs, y.map(|y| y.q)))
}

/// Lets an operator that moves elements move integers, when its input and all its outputs have the same parameters.
fn carry(model: &mut Model, id: GraphId, n: NodeId) -> bool {
    let g = model.graph(id);
    if !is_mover(model, id, n) {
        return false;
    }
    let Some(x) = g.input(n, 0).and_then(|x| dequantized(model, id, x)) else { return false };
    let outs: Vec<(usize, ValueId)> = g
        .node_outputs(n)
        .into_iter()
        .enumerate()
        .filter_map(|(i, y)| Some((i, y?)))
        .filter(|&(_, y)| g.n_uses(y) > 0)
        .collect();
    let ys: Option<Vec<(usize, Parts)>> =
        outs.iter().map(|&(i, y)| Some((i, quantized(model, id, y).filter(|y| same(model, id, x, *y))?))).collect();
    let Some(ys) = ys.filter(|ys| !ys.is_empty()) else { return false };
    let g = model.graph_mut(id);
    g.set_input(n, 0, Some(x.q));
    for (slot, y) in ys {
        g.take_over(n, slot, y.q);
    }
    true
}

fn is_mover(model: &Model, id: GraphId, n: NodeId) -> bool {
    let node = model.graph(id).node(n);
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    lookup(&node.domain, &node.op_type, opset).is_some_and(|d| d.quant == QuantRule::Share)
}

fn same(model: &Model, id: GraphId, a: Parts, b: Parts) -> bool {
    let stored = |v: ValueId| super::super::annotate::constant(model, id, v).and_then(|t| t.get().ok());
    let equal = |a: ValueId, b: ValueId| a == b || stored(a).is_some_and(|t| stored(b) == Some(t));
    equal(a.scale, b.scale) && matches!((a.zero, b.zero), (Some(a), Some(b)) if equal(a, b))
}

/// Makes `DequantizeLinear` nodes, the float operator and a `QuantizeLinear` of an operator on quantized tensors.
fn split(
    model: &mut Model,
    id: GraphId,
    n: NodeId,
    names: &mut Names,
    known: &mut BTreeMap<ValueId, Parts>,
) -> Result<bool> {
    let g = model.graph(id);
    let node = g.node(n);
    remember(model, id, n, known);
    let Some(form) = FORMS.iter().find(|f| f.quantized == node.op_type) else { return Ok(false) };
    let ins = g.node_inputs(n);
    let location = node.location();
    let at = |slot: usize| ins.get(slot).copied().flatten();
    let parts = |slot: usize| -> Result<Parts> {
        let (Some(q), Some(scale)) = (at(slot), at(slot + 1)) else {
            crate::error::bail!("{location}: input {slot} or its scale is missing")
        };
        Ok(Parts { q, scale, zero: at(slot + 2) })
    };
    let n_data = ins.len().saturating_sub(2) / 3;
    ensure!(n_data > 0, "{location}: has {} inputs", ins.len());
    let (data, bias, end) = match form.layout {
        Layout::Each => ((0..n_data).map(|i| 3 * i).collect(), None, n_data * 3),
        Layout::Conv => (vec![0, 3], at(8), 6),
        Layout::Gemm => (vec![0, 3], at(6), 7),
        Layout::OutputFirst => ((0..n_data).map(|i| 2 + 3 * i).collect(), None, 0),
        Layout::Condition => (vec![1, 4], None, 7),
    };
    let data = data.into_iter().map(parts).collect::<Result<Vec<_>>>()?;
    let condition = (form.layout == Layout::Condition).then(|| at(0)).flatten();
    let (y_scale, y_zero, y) = (at(end), at(end + 1), g.output(n, 0));

    let axis = channel_axis(model, id, n, form);
    let mut inputs: Vec<Option<ValueId>> = condition.into_iter().map(Some).collect();
    for (i, p) in data.iter().enumerate() {
        let axis = axis.filter(|_| i == 1 && len(model, id, p.scale) > 1);
        inputs.push(Some(dequantize(model, id, n, *p, axis, names)));
    }
    if let Some(b) = bias {
        let product = bias_scale(model, id, data[0].scale, data[1].scale, names)?;
        let axis = (len(model, id, product) > 1).then_some(0);
        inputs.push(Some(dequantize(model, id, n, Parts { q: b, scale: product, zero: None }, axis, names)));
    }
    let g = model.graph_mut(id);
    let node = g.node_mut(n);
    node.op_type = form.float.to_owned();
    node.domain = Domain::onnx();
    node.attrs.remove("opset");
    node.attrs.remove("channels_last");
    g.truncate_inputs(n, 0);
    for (slot, v) in inputs.into_iter().enumerate() {
        g.set_input(n, slot, v);
    }
    if let (Some(scale), Some(y)) = (y_scale, y) {
        let p = Parts { q: y, scale, zero: y_zero };
        quantize(model, id, n, 0, p, names);
        known.insert(y, p);
    }
    Ok(true)
}

/// What the integers stand for that a `QuantizeLinear` makes.
fn remember(model: &Model, id: GraphId, n: NodeId, known: &mut BTreeMap<ValueId, Parts>) {
    let g = model.graph(id);
    if is(g.node(n), quant_rule::QUANTIZE)
        && let (Some(q), Some(scale)) = (g.output(n, 0), g.input(n, 1))
    {
        known.insert(q, Parts { q, scale, zero: g.input(n, 2) });
    }
}

/// Puts an operator that moves integers between `DequantizeLinear` and `QuantizeLinear`.
fn wrap(model: &mut Model, id: GraphId, n: NodeId, names: &mut Names, known: &mut BTreeMap<ValueId, Parts>) -> bool {
    let Some(x) = model.graph(id).input(n, 0) else { return false };
    let Some(&p) = known.get(&x).filter(|_| is_mover(model, id, n)) else { return false };
    let dq = dequantize(model, id, n, p, None, names);
    model.graph_mut(id).set_input(n, 0, Some(dq));
    for (slot, y) in model.graph(id).node_outputs(n).into_iter().enumerate() {
        let Some(y) = y.filter(|&y| is_8_bit(model, id, y)) else { continue };
        let made = Parts { q: y, ..p };
        quantize(model, id, n, slot, made, names);
        known.insert(y, made);
    }
    true
}

fn len(model: &Model, id: GraphId, v: ValueId) -> usize {
    super::super::annotate::constant(model, id, v).map_or(1, crate::ir::TensorRef::len)
}

/// The axis of the output channels of a float operator's weight.
fn channel_axis(model: &Model, id: GraphId, n: NodeId, form: &Form) -> Option<usize> {
    let g = model.graph(id);
    let QuantRule::Weighted { axis, .. } = lookup(&Domain::onnx(), form.float, model.onnx_opset())?.quant else {
        return None;
    };
    let rank = super::super::annotate::constant(model, id, g.input(n, 3)?)?.shape().len();
    axis.resolve(&g.node(n).attrs, rank)
}

/// The product of the scales of data and weight, stored.
fn bias_scale(model: &mut Model, id: GraphId, x: ValueId, w: ValueId, names: &mut Names) -> Result<ValueId> {
    let stored = |v: ValueId| super::super::annotate::constant(model, id, v);
    let (Some(xs), Some(ws)) = (stored(x), stored(w)) else {
        crate::error::bail!("a bias stands behind scales that are computed: its own scale is not known")
    };
    let (xs, ws) = (xs.get()?, ws.get()?);
    let x = xs.to_f64()? as f32;
    let product = ws.slice::<f32>()?.iter().map(|w| x * w).collect();
    let product = crate::tensor::Tensor::new(ws.shape(), product)?;
    let name = names.fresh(&format!("{}_quantized_scale", model.graph(id).value(w).name));
    Ok(model.graph_mut(id).add_initializer(name, product))
}

/// A `DequantizeLinear` in front of a node.
fn dequantize(model: &mut Model, id: GraphId, n: NodeId, p: Parts, axis: Option<usize>, names: &mut Names) -> ValueId {
    let g = model.graph_mut(id);
    let name = g.value(p.q).name.trim_end_matches("_quantized").trim_end_matches("_QuantizeLinear_Output").to_owned();
    let mut node = Node::new(quant_rule::DEQUANTIZE).at(g.node(n).pos.before());
    if let Some(axis) = axis {
        node.attrs.set("axis", Attr::Int(axis as i64));
    }
    let node = node.named(names.fresh(&format!("{name}_DequantizeLinear")));
    let ty = float_type(g, p.q);
    let out = g.add_result(names.fresh(&format!("{name}_DequantizeLinear_Output")), ty);
    g.add_node(node, &[Some(p.q), Some(p.scale), p.zero], &[Some(out)]);
    out
}

fn float_type(g: &crate::ir::Graph, like: ValueId) -> Option<ValueType> {
    let shape = g.value(like).ty.as_ref().and_then(|t| t.as_tensor()).and_then(|t| t.shape.clone());
    shape.map(|s| ValueType::Tensor(TensorType { dtype: Some(DType::F32), shape: Some(s) }))
}

/// A `QuantizeLinear` behind a node: it makes what the node made.
fn quantize(model: &mut Model, id: GraphId, n: NodeId, slot: usize, p: Parts, names: &mut Names) {
    let g = model.graph_mut(id);
    let name = g.value(p.q).name.trim_end_matches("_QuantizeLinear_Output").to_owned();
    let ty = float_type(g, p.q);
    let float = g.add_result(names.fresh(&format!("{name}_QuantizeLinear_Input")), ty);
    let node = Node::new(quant_rule::QUANTIZE).at(g.node(n).pos.after());
    let node = node.named(names.fresh(&format!("{name}_QuantizeLinear")));
    g.set_output(n, slot, Some(float));
    let q = g.add_node(node, &[Some(float), Some(p.scale), p.zero], &[None]);
    g.set_output(q, 0, Some(p.q));
}
