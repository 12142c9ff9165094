//! Quantized arithmetic.

use onnx_quant::tensor::{DType, Tensor};

use super::{Made, Spec, microsoft, spec};
use crate::graph::{Node, Slot};
use crate::random::{Gen, from_f64s};

pub(super) const SPECS: &[Spec] = &[
    spec("QuantizeLinear", &[10, 13, 19, 21], quantize),
    spec("DequantizeLinear", &[10, 13, 19, 21], dequantize),
    spec("DynamicQuantizeLinear", &[11], dynamic),
    spec("MatMulInteger", &[10], mat_mul_integer),
    spec("ConvInteger", &[10], conv_integer),
    spec("QLinearMatMul", &[10, 21], q_linear_mat_mul),
    spec("QLinearConv", &[10], q_linear_conv),
    microsoft("QLinearAdd", q_linear_binary),
    microsoft("QLinearMul", q_linear_binary),
    microsoft("QLinearSigmoid", q_linear_unary),
    microsoft("QLinearLeakyRelu", q_linear_unary),
    microsoft("QLinearGlobalAveragePool", q_linear_global_pool),
    microsoft("DynamicQuantizeMatMul", dynamic_quantize_mat_mul),
];

const BYTES: &[DType] = &[DType::I8, DType::U8];

fn any_byte(g: &mut Gen, dtype: DType, shape: &[usize]) -> Tensor {
    if dtype == DType::U8 { g.tensor_in(dtype, shape, 0.0, 256.0) } else { g.tensor_in(dtype, shape, -128.0, 128.0) }
}

/// A scale and a zero point.
fn params(g: &mut Gen, dtype: DType, shape: &[usize]) -> (Slot, Slot) {
    let scale = g.tensor_in(DType::F32, shape, 0.01, 0.3);
    let zero = if dtype == DType::U8 {
        g.tensor_in(dtype, shape, 100.0, 150.0)
    } else {
        g.tensor_in(dtype, shape, -20.0, 20.0)
    };
    (Slot::T(scale), Slot::T(zero))
}

/// Where scale and zero point lie: shape of the parameters, axis, block size.
fn granularity(g: &mut Gen, x: &[usize], opset: i64) -> Option<(Vec<usize>, Option<i64>, Option<i64>)> {
    let kinds = match opset {
        21.. => 3,
        13.. => 2,
        _ => 1,
    };
    let axis = if x.is_empty() { 0 } else { g.axis(x.len()) };
    let at = axis.rem_euclid(x.len().max(1) as i64) as usize;
    match g.rng.below(kinds) {
        0 => Some((vec![], None, None)),
        _ if x.is_empty() => None,
        1 => Some((vec![x[at]], Some(axis), None)),
        _ => {
            let block = g.rng.below(3) + 1;
            let mut shape = x.to_vec();
            shape[at] = shape[at].div_ceil(block);
            (x[at] > 0).then_some((shape, Some(axis), Some(block as i64)))
        }
    }
}

fn quantize(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let rank = g.rng.below(4);
    let shape = g.shape(rank);
    let x = g.tensor_in(DType::F32, &shape, -9.0, 9.0);
    let dtype = g.rng.pick(if opset >= 21 { &[DType::I8, DType::U8, DType::I16, DType::U16] } else { BYTES });
    let (p, axis, block) = granularity(g, &shape, opset)?;
    // Powers of two make ties, which round to even.
    let scale = if g.rng.chance(0.3) {
        let n = p.iter().product();
        from_f64s(DType::F32, &p, &vec![0.5; n], 0)
    } else {
        g.tensor_in(DType::F32, &p, 0.01, 0.3)
    };
    let mut inputs = vec![Slot::X, Slot::T(scale)];
    let mut node_dtype = None;
    if g.rng.chance(0.7) {
        let zero = if matches!(dtype, DType::U8 | DType::U16) {
            g.tensor_in(dtype, &p, 100.0, 150.0)
        } else {
            g.tensor_in(dtype, &p, -20.0, 20.0)
        };
        inputs.push(Slot::T(zero));
    } else if opset >= 21 {
        node_dtype = Some(i64::from(dtype.code()));
    }
    let mut node = Node::new(op, inputs);
    if let Some(a) = axis {
        node = node.attr("axis", a);
    }
    if let Some(b) = block {
        node = node.attr("block_size", b);
    }
    if let Some(d) = node_dtype {
        node = node.attr("output_dtype", d);
    }
    Some((Some(x), node))
}

fn dequantize(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let rank = g.rng.below(4);
    let shape = g.shape(rank);
    let dtype = g.rng.pick(&[DType::I8, DType::U8, DType::I32]);
    let x = if dtype == DType::I32 { g.tensor_in(dtype, &shape, -900.0, 900.0) } else { any_byte(g, dtype, &shape) };
    let (p, axis, block) = granularity(g, &shape, opset)?;
    let mut inputs = vec![Slot::X, Slot::T(g.tensor_in(DType::F32, &p, 0.01, 0.3))];
    if g.rng.chance(0.7) && dtype != DType::I32 {
        inputs.push(params(g, dtype, &p).1);
    }
    let mut node = Node::new(op, inputs);
    if let Some(a) = axis {
        node = node.attr("axis", a);
    }
    if let Some(b) = block {
        node = node.attr("block_size", b);
    }
    Some((Some(x), node))
}

fn dynamic(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let rank = g.rng.below(3) + 1;
    let shape = g.positive_shape(rank);
    let (low, high) = g.rng.pick(&[(-3.0, 3.0), (1.0, 5.0), (-5.0, -1.0)]);
    Some((Some(g.tensor_in(DType::F32, &shape, low, high)), Node::new(op, vec![Slot::X]).outputs(3)))
}

fn mat_mul_integer(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (m, k, n) = (g.positive(), g.positive(), g.positive());
    let (ta, tb) = (g.rng.pick(BYTES), g.rng.pick(BYTES));
    let (a, b) = (any_byte(g, ta, &[m, k]), any_byte(g, tb, &[k, n]));
    let mut inputs = vec![Slot::X, Slot::T(b)];
    if g.rng.chance(0.7) {
        inputs.push(params(g, ta, &[]).1);
        if g.rng.chance(0.7) {
            let shape: &[usize] = if g.rng.chance(0.3) { &[n] } else { &[] };
            inputs.push(params(g, tb, shape).1);
        }
    }
    Some((Some(a), Node::new(op, inputs)))
}

/// Shapes of an image and a weight, with the window's attributes.
fn integer_conv(g: &mut Gen, node: fn(&'static str, Vec<Slot>) -> Node, op: &'static str) -> (Tensor, Tensor, Node) {
    let (n, c, h, w) = (g.rng.below(2) + 1, g.positive(), g.positive() + 2, g.positive() + 2);
    let depthwise = g.rng.chance(0.3);
    let group = if depthwise { c } else { 1 };
    let m = if depthwise { c } else { g.positive() };
    let (kh, kw) = (g.rng.below(3) + 1, g.rng.below(3) + 1);
    let (tx, tw) = (g.rng.pick(BYTES), g.rng.pick(BYTES));
    let x = any_byte(g, tx, &[n, c, h, w]);
    let weight = any_byte(g, tw, &[m, c / group, kh, kw]);
    let mut node = node(op, Vec::new()).attr("group", group as i64);
    if g.rng.chance(0.6) {
        node = node.attr("pads", g.ints(4, 0, 1)).attr("strides", g.ints(2, 1, 2));
    }
    (x, weight, node)
}

fn conv_integer(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (x, w, mut node) = integer_conv(g, Node::new, op);
    node.inputs = vec![Slot::X, Slot::T(w.clone())];
    if g.rng.chance(0.7) {
        node.inputs.push(params(g, x.dtype(), &[]).1);
        if g.rng.chance(0.7) {
            node.inputs.push(params(g, w.dtype(), &[]).1);
        }
    }
    Some((Some(x), node))
}

fn q_linear_conv(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (x, w, mut node) = integer_conv(g, Node::new, op);
    let m = w.shape()[0];
    let (xs, xz) = params(g, x.dtype(), &[]);
    let per_channel = g.rng.chance(0.5);
    let shape: &[usize] = if per_channel { &[m] } else { &[] };
    let ws = Slot::T(g.tensor_in(DType::F32, shape, 0.01, 0.1));
    // ONNX Runtime wants the weight's zero point to be the same for all channels when it is signed.
    let wz = Slot::T(from_f64s(
        w.dtype(),
        shape,
        &vec![if w.dtype() == DType::U8 { 128.0 } else { 0.0 }; shape.iter().product()],
        0,
    ));
    let (ys, yz) = (Slot::T(g.tensor_in(DType::F32, &[], 0.3, 2.0)), params(g, x.dtype(), &[]).1);
    node.inputs = vec![Slot::X, xs, xz, Slot::T(w), ws, wz, ys, yz];
    if g.rng.chance(0.5) {
        node.inputs.push(Slot::T(g.tensor_in(DType::I32, &[m], -500.0, 500.0)));
    }
    Some((Some(x), node))
}

fn q_linear_mat_mul(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (m, k, n) = (g.positive(), g.positive(), g.positive());
    let (ta, tb) = (g.rng.pick(BYTES), g.rng.pick(BYTES));
    let (a, b) = (any_byte(g, ta, &[m, k]), any_byte(g, tb, &[k, n]));
    let ((asc, az), (bs, bz)) = (params(g, ta, &[]), params(g, tb, &[]));
    let (ys, yz) = (Slot::T(g.tensor_in(DType::F32, &[], 0.5, 3.0)), params(g, ta, &[]).1);
    Some((Some(a), Node::new(op, vec![Slot::X, asc, az, Slot::T(b), bs, bz, ys, yz])))
}

fn q_linear_binary(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let dtype = g.rng.pick(BYTES);
    let rank = g.rng.below(3) + 1;
    let shape = g.positive_shape(rank);
    let other = g.broadcastable_to(&shape);
    let (a, b) = (any_byte(g, dtype, &shape), any_byte(g, dtype, &other));
    let ((asc, az), (bs, bz)) = (params(g, dtype, &[]), params(g, dtype, &[]));
    let (ys, yz) = (Slot::T(g.tensor_in(DType::F32, &[], 0.2, 0.6)), params(g, dtype, &[]).1);
    Some((Some(a), Node::new(op, vec![Slot::X, asc, az, Slot::T(b), bs, bz, ys, yz]).domain("com.microsoft")))
}

fn q_linear_unary(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let dtype = g.rng.pick(BYTES);
    let rank = g.rng.below(3) + 1;
    let shape = g.positive_shape(rank);
    let x = any_byte(g, dtype, &shape);
    let (xs, xz) = params(g, dtype, &[]);
    let (ys, yz) = params(g, dtype, &[]);
    let mut node = Node::new(op, vec![Slot::X, xs, xz, ys, yz]).domain("com.microsoft");
    if op == "QLinearLeakyRelu" {
        node = node.attr("alpha", 0.2f32);
    }
    Some((Some(x), node))
}

fn q_linear_global_pool(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let shape = [g.positive(), g.positive(), g.positive(), g.positive()];
    let x = any_byte(g, DType::U8, &shape);
    let ((xs, xz), (ys, yz)) = (params(g, DType::U8, &[]), params(g, DType::U8, &[]));
    Some((Some(x), Node::new(op, vec![Slot::X, xs, xz, ys, yz]).domain("com.microsoft")))
}

fn dynamic_quantize_mat_mul(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (m, k, n) = (g.positive(), g.positive(), g.positive());
    let dtype = g.rng.pick(BYTES);
    let a = g.tensor(DType::F32, &[m, k]);
    let b = any_byte(g, dtype, &[k, n]);
    let (bs, bz) = params(g, dtype, &[]);
    let mut inputs = vec![Slot::X, Slot::T(b), bs, bz];
    if g.rng.chance(0.5) {
        inputs.push(Slot::T(g.tensor(DType::F32, &[n])));
    }
    Some((Some(a), Node::new(op, inputs).domain("com.microsoft").tolerance(1e-4)))
}
