//! Dynamic form: weights are stored in 8 bits, activations become uint8 with the range that they have at each run.
//!
//! - `DynamicQuantizeLinear`, `MatMulInteger`, `Cast`, `Mul` with the product of both scales, `Add` of the bias: ONNX
//!   Runtime makes one `DynamicQuantizeMatMul` of it, or where several products read the same data, one
//!   `DynamicQuantizeLinear` and a `MatMulIntegerToFloat` for each. Quantizers of their own would not change that: it
//!   makes one of equal nodes first.
//! - Weights are uint8 around 128. As int8, processors without VNNI add pairs of products in 16 bits, which saturate;
//!   with VNNI both take the same time.
//! - `LSTM` becomes `DynamicQuantizeLSTM` (com.microsoft), whose weights are transposed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{At, Result, anyhow};
use crate::ir::builder::Beside;
use crate::ir::{Domain, GraphId, Model, Names, Node, NodeId, Position, TensorRef, TensorType, ValueId, ValueType};
use crate::quant::annotate::constant;
use crate::quant::lazy::{Job, Which};
use crate::quant::plan::NodePlace;
use crate::tensor::{DType, Tensor};

/// Input slots of an `LSTM`.
const WEIGHT: usize = 1;
const RECURRENCE: usize = 2;
/// Slots before the parameters of a `DynamicQuantizeLSTM`.
const LSTM_SLOTS: usize = 8;

/// A node that is to be quantized dynamically.
#[derive(Debug, Clone)]
pub enum Item {
    /// `MatMul` or `Gemm`.
    Product(NodePlace, Arc<Job>),
    /// `LSTM`, with weight and recurrence.
    Lstm(NodePlace, [Arc<Job>; 2]),
}

/// The stored weight and recurrence `[directions, 4*H, K]` of an `LSTM` that has a dynamic form, or why it has none;
/// `None` for other operators.
#[must_use]
pub fn lstm(model: &Model, id: GraphId, n: NodeId) -> Option<std::result::Result<[(ValueId, TensorRef); 2], String>> {
    let g = model.graph(id);
    let node = g.node(n);
    if !node.is("LSTM") {
        return None;
    }
    let stored = |slot| {
        let v = g.input(n, slot)?;
        constant(model, id, v).filter(|t| t.dtype() == DType::F32 && t.shape().len() == 3).map(|t| (v, t.clone()))
    };
    Some(match (stored(WEIGHT), stored(RECURRENCE)) {
        _ if node.attrs.int("layout").unwrap_or(0) != 0 => Err("its layout has the batch first".into()),
        (Some(w), Some(r)) => Ok([w, r]),
        _ => Err("its weights are computed".into()),
    })
}

/// Rewrites the nodes. What they no longer use is left for `eliminate-dead`.
///
/// # Errors
/// A node is not as the plan knows it.
pub fn realize(model: &mut Model, items: &[Item]) -> Result<()> {
    let mut names = Names::of(model);
    let mut quantized = BTreeMap::new();
    for item in items {
        match item {
            Item::Product((id, n), job) => {
                let location = model.graph(*id).node(*n).location();
                product(model, &mut names, &mut quantized, (*id, *n), job).at(|| location)?;
            }
            Item::Lstm((id, n), jobs) => {
                let location = model.graph(*id).node(*n).location();
                quantize_lstm(model, &mut names, *id, *n, jobs).at(|| location)?;
                if model.opset(&Domain::microsoft()).is_none() {
                    model.opsets.push((Domain::microsoft(), 1));
                }
            }
        }
    }
    Ok(())
}

fn store(
    model: &mut Model,
    names: &mut Names,
    id: GraphId,
    job: &Arc<Job>,
    which: Which,
    suffix: &str,
) -> Result<ValueId> {
    let part = job.part(which).ok_or_else(|| anyhow!("has no {suffix}"))?;
    Ok(model.graph_mut(id).add_initializer(names.fresh(&format!("{}_{suffix}", job.name)), part))
}

/// Integers, scale and zero point of data that was quantized already.
type Quantized = BTreeMap<(GraphId, ValueId), [ValueId; 3]>;

fn product(
    model: &mut Model,
    names: &mut Names,
    quantized: &mut Quantized,
    (id, n): NodePlace,
    job: &Arc<Job>,
) -> Result<()> {
    let q = store(model, names, id, job, Which::Integers, "quantized")?;
    let scale = store(model, names, id, job, Which::Scales, "scale")?;
    let g = model.graph(id);
    let (x, y) = (g.input(n, 0), g.output(n, 0).ok_or_else(|| anyhow!("output 0 is missing"))?);
    let (x, bias) = (x.ok_or_else(|| anyhow!("input 0 is missing"))?, g.input(n, 2));
    let shape = |v: ValueId| g.value(v).ty.as_ref().and_then(|t| t.as_tensor()).and_then(|t| t.shape.clone());
    let y_shape = shape(y);
    let ty = |dtype, shape: &Option<Vec<crate::ir::Dim>>| {
        Some(ValueType::Tensor(TensorType { dtype: Some(dtype), shape: shape.clone() }))
    };
    let [xq, x_scale, x_zero] = match quantized.get(&(id, x)) {
        Some(&found) => found,
        None => quantize_data(model, names, id, x)?,
    };
    quantized.insert((id, x), [xq, x_scale, x_zero]);
    let mut b = Beside::before(model, names, id, n);
    let zero = b.constant("weight_zero_point", Tensor::scalar(job.scheme.middle()));
    let sums = b.node(Node::new("MatMulInteger"), &[xq, q, x_zero, zero], "integers", ty(DType::I32, &y_shape));
    let cast = Node::new("Cast").attr("to", i64::from(DType::F32.code()));
    let floats = b.node(cast, &[sums], "floats", ty(DType::F32, &y_shape));
    let columns = Some(ValueType::Tensor(TensorType::fixed(DType::F32, &[job.n])));
    let scales = b.node(Node::new("Mul"), &[x_scale, scale], "scales", columns);
    match bias {
        None => {
            b.node_into(Node::new("Mul"), &[Some(floats), Some(scales)], y);
        }
        Some(bias) => {
            let product = b.node(Node::new("Mul"), &[floats, scales], "product", ty(DType::F32, &y_shape));
            b.node_into(Node::new("Add"), &[Some(product), Some(bias)], y);
        }
    }
    Ok(())
}

/// Quantizes data with the range that it has at each run.
fn quantize_data(model: &mut Model, names: &mut Names, id: GraphId, x: ValueId) -> Result<[ValueId; 3]> {
    let g = model.graph_mut(id);
    let value = g.value(x);
    let shape = value.ty.as_ref().and_then(|t| t.as_tensor()).and_then(|t| t.shape.clone());
    let name = value.name.clone();
    // Behind what makes the data; what is a graph input is there from the start.
    let pos = g.producer(x).map_or_else(Position::default, |(n, _)| g.node(n).pos.after());
    let scalar = |dtype| ValueType::Tensor(TensorType::fixed(dtype, &[]));
    let types = [
        ("quantized", ValueType::Tensor(TensorType { dtype: Some(DType::U8), shape })),
        ("scale", scalar(DType::F32)),
        ("zero_point", scalar(DType::U8)),
    ];
    let made = types.map(|(suffix, ty)| g.add_result(names.fresh(&format!("{name}_{suffix}")), Some(ty)));
    let node = Node::new("DynamicQuantizeLinear").named(names.fresh(&format!("{name}_QuantizeLinear"))).at(pos);
    g.add_node(node, &[Some(x)], &made.map(Some));
    Ok(made)
}

fn quantize_lstm(model: &mut Model, names: &mut Names, id: GraphId, n: NodeId, jobs: &[Arc<Job>; 2]) -> Result<()> {
    let mut parameters = Vec::new();
    let mut weights = Vec::new();
    for job in jobs {
        weights.push(store(model, names, id, job, Which::Integers, "quantized")?);
        let scale = store(model, names, id, job, Which::Scales, "scale")?;
        let shape = job.part(Which::Scales).map(|t| t.shape().to_vec()).unwrap_or_default();
        let zeros = Tensor::new(&shape, vec![job.scheme.middle(); shape.iter().product()])?;
        let name = names.fresh(&format!("{}_zero_point", job.name));
        parameters.extend([scale, model.graph_mut(id).add_initializer(name, zeros)]);
    }
    let g = model.graph(id);
    let mut ins = g.node_inputs(n);
    ins.resize(LSTM_SLOTS, None);
    ins[WEIGHT] = Some(weights[0]);
    ins[RECURRENCE] = Some(weights[1]);
    ins.extend(parameters.into_iter().map(Some));
    let outs = g.node_outputs(n);
    let mut node = Node::new("DynamicQuantizeLSTM").domain(Domain::microsoft()).at(g.node(n).pos);
    node.name = names.fresh(&format!("{}_quantized", g.node(n).label()));
    for a in g.node(n).attrs.iter().filter(|a| a.name != "layout") {
        node.attrs.push(a.clone());
    }
    let g = model.graph_mut(id);
    let new = g.add_node(node, &ins, &[]);
    for (slot, v) in outs.into_iter().enumerate() {
        match v {
            Some(v) => g.take_over(new, slot, v),
            None => g.set_output(new, slot, None),
        }
    }
    Ok(())
}
