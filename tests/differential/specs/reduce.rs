//! Reductions, and what goes along an axis.

use onnx_quant::tensor::{DType, Tensor};

use super::{Made, Spec, ints, link, spec};
use crate::graph::{Node, Slot};
use crate::random::{FLOATS, Gen, from_f64s};

pub(super) const SPECS: &[Spec] = &[
    link("ReduceSum", &[7, 11, 13], reduce),
    link("ReduceMean", &[7, 13, 18], reduce),
    spec("ReduceMax", &[7, 12, 13, 18, 20], reduce_order),
    spec("ReduceMin", &[7, 12, 13, 18, 20], reduce_order),
    spec("ReduceProd", &[7, 13, 18], reduce),
    link("ReduceL1", &[7, 13, 18], reduce),
    link("ReduceL2", &[7, 13, 18], reduce),
    spec("ReduceSumSquare", &[7, 13, 18], reduce),
    spec("ReduceLogSum", &[7, 13, 18], reduce_positive),
    link("ReduceLogSumExp", &[7, 13, 18], reduce),
    spec("ArgMax", &[7, 11, 12, 13], arg),
    spec("ArgMin", &[7, 11, 12, 13], arg),
    link("Softmax", &[7, 11, 13], softmax),
    link("LogSoftmax", &[7, 11, 13], softmax),
    spec("Hardmax", &[7, 11, 13], softmax),
    link("CumSum", &[11, 14], cum_sum),
    spec("TopK", &[10, 11], top_k),
    link("LpNormalization", &[7, 22], lp_normalization),
    link("MeanVarianceNormalization", &[9, 13], mean_variance),
    link("LayerNormalization", &[17], layer_normalization),
    spec("RMSNormalization", &[23], rms_normalization),
];

const REDUCED: &[DType] = &[DType::F32, DType::F32, DType::F64, DType::I32, DType::I64];

fn reduce_of(g: &mut Gen, op: &'static str, opset: i64, x: Tensor) -> Made {
    let axes = g.axes(x.rank());
    let as_input = opset >= 18 || (op == "ReduceSum" && opset >= 13);
    let mut node = Node::new(op, vec![Slot::X]);
    let axes: Vec<i64> =
        if opset < 11 { axes.into_iter().map(|a| a.rem_euclid(x.rank() as i64)).collect() } else { axes };
    if g.rng.chance(0.8) && (as_input || !axes.is_empty()) {
        if as_input {
            node.inputs.push(ints(axes));
            if g.rng.chance(0.4) {
                node = node.attr("noop_with_empty_axes", g.rng.between(0, 1));
            }
        } else {
            node = node.attr("axes", axes);
        }
    }
    if g.rng.chance(0.6) {
        node = node.attr("keepdims", g.rng.between(0, 1));
    }
    Some((Some(x), node.tolerance(1e-4)))
}

fn reduce(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, REDUCED)?;
    reduce_of(g, op, opset, x)
}

fn reduce_order(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let kinds: &[DType] = match opset {
        20.. => &[DType::F32, DType::I8, DType::U8, DType::Bool, DType::I64],
        12.. => &[DType::F32, DType::F64, DType::I8, DType::U8, DType::I32],
        _ => REDUCED,
    };
    let x = g.x(None, 0..=4, kinds)?;
    reduce_of(g, op, opset, x)
}

fn reduce_positive(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let (rank, dtype) = (g.rng.below(4), g.rng.pick(&[DType::F32, DType::F64]));
    let shape = g.shape(rank);
    let x = g.tensor_in(dtype, &shape, 0.5, 3.0);
    reduce_of(g, op, opset, x)
}

/// Few different values, so that ties occur.
fn arg(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let (rank, dtype) = (g.rng.below(4) + 1, g.rng.pick(&[DType::F32, DType::F64, DType::I32, DType::U8, DType::I8]));
    let shape = g.shape(rank);
    let n = shape.iter().product();
    let v: Vec<f64> = (0..n).map(|_| g.rng.below(4) as f64).collect();
    let mut node = Node::new(op, vec![Slot::X]);
    if g.rng.chance(0.8) {
        let axis = g.axis(rank);
        node = node.attr("axis", if opset < 11 { axis.rem_euclid(rank as i64) } else { axis });
    }
    if g.rng.chance(0.5) {
        node = node.attr("keepdims", g.rng.between(0, 1));
    }
    if opset >= 12 && g.rng.chance(0.5) {
        node = node.attr("select_last_index", g.rng.between(0, 1));
    }
    Some((Some(from_f64s(dtype, &shape, &v, 0)), node))
}

fn softmax(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 1..=4, FLOATS)?;
    let mut node = Node::new(op, vec![Slot::X]);
    if g.rng.chance(0.7) {
        let axis = g.axis(x.rank());
        node = node.attr("axis", if opset < 11 { axis.rem_euclid(x.rank() as i64) } else { axis });
    } else if opset < 13 && x.rank() < 2 {
        node = node.attr("axis", 0i64);
    }
    Some((Some(x), node))
}

fn cum_sum(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 1..=4, REDUCED)?;
    let axis = g.axis(x.rank());
    let mut node = Node::new(op, vec![Slot::X, Slot::T(Tensor::scalar(axis))]);
    for name in ["exclusive", "reverse"] {
        if g.rng.chance(0.4) {
            node = node.attr(name, 1i64);
        }
    }
    Some((Some(x), node))
}

fn top_k(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let kinds: &[DType] = if opset < 11 { &[DType::F32] } else { &[DType::F32, DType::F64, DType::I64, DType::I32] };
    let dtype = g.rng.pick(kinds);
    let rank = g.rng.below(3) + 1;
    let shape = g.shape(rank);
    let axis = g.axis(shape.len());
    let size = shape[axis.rem_euclid(shape.len() as i64) as usize];
    let k = g.rng.below(size + 1) as i64;
    let n = shape.iter().product();
    let v: Vec<f64> = (0..n).map(|_| g.rng.below(12) as f64).collect();
    let mut node = Node::new(op, vec![Slot::X, ints(vec![k])]).outputs(2);
    node = node.attr("axis", if opset < 11 { axis.rem_euclid(shape.len() as i64) } else { axis });
    if opset >= 11 && g.rng.chance(0.5) {
        node = node.attr("largest", g.rng.between(0, 1));
    }
    Some((Some(from_f64s(dtype, &shape, &v, 0)), node))
}

fn lp_normalization(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 1..=4, &[DType::F32, DType::F64])?;
    let mut node = Node::new(op, vec![Slot::X]);
    if g.rng.chance(0.7) {
        node = node.attr("axis", g.axis(x.rank()));
    }
    if g.rng.chance(0.7) {
        node = node.attr("p", g.rng.between(1, 2));
    }
    Some((Some(x), node))
}

fn mean_variance(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let shape = g.positive_shape(4);
    let x = match x {
        Some(x) if x.rank() == 4 && !x.is_empty() => x.clone(),
        Some(_) => return None,
        None => g.tensor(DType::F32, &shape),
    };
    let mut node = Node::new(op, vec![Slot::X]).tolerance(1e-3);
    if g.rng.chance(0.3) {
        node = node.attr("axes", vec![0i64, 2, 3]);
    }
    // A channel of one element has variance 0; the quotient is then all rounding.
    (x.len() / x.shape()[1] > 4).then_some((Some(x), node))
}

fn layer_normalization(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 1..=4, &[DType::F32, DType::F64])?;
    let axis = g.axis(x.rank());
    let tail = &x.shape()[axis.rem_euclid(x.rank() as i64) as usize..].to_vec();
    let mut inputs = vec![Slot::X, Slot::T(g.tensor(x.dtype(), tail))];
    if g.rng.chance(0.5) {
        inputs.push(Slot::T(g.tensor(x.dtype(), tail)));
    }
    let mut node = Node::new(op, inputs).attr("axis", axis).tolerance(2e-4);
    if g.rng.chance(0.5) {
        node = node.attr("epsilon", 1e-3f32);
    }
    if x.dtype() == DType::F32 && g.rng.chance(0.5) {
        node = node.outputs(3);
    }
    Some((Some(x), node))
}

fn rms_normalization(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 1..=4, &[DType::F32])?;
    let axis = g.axis(x.rank());
    let tail = &x.shape()[axis.rem_euclid(x.rank() as i64) as usize..].to_vec();
    let scale = Slot::T(g.tensor(x.dtype(), tail));
    Some((Some(x), Node::new(op, vec![Slot::X, scale]).attr("axis", axis).tolerance(1e-4)))
}
