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
    microsoft("QuantizeLinear", quantize_tensor),
    microsoft("DequantizeLinear", dequantize_tensor),
    microsoft("QLinearAdd", q_linear_binary),
    microsoft("QLinearMul", q_linear_binary),
    microsoft("QLinearSigmoid", q_linear_unary),
    microsoft("QLinearLeakyRelu", q_linear_unary),
    microsoft("QLinearSoftmax", q_linear_softmax),
    microsoft("QLinearConcat", q_linear_concat),
    microsoft("QLinearWhere", q_linear_where),
    microsoft("QLinearGlobalAveragePool", q_linear_global_pool),
    microsoft("QLinearAveragePool", q_linear_average_pool),
    microsoft("NhwcMaxPool", nhwc_max_pool),
    microsoft("QGemm", q_gemm),
    microsoft("MatMulIntegerToFloat", mat_mul_integer_to_float),
    microsoft("DynamicQuantizeMatMul", dynamic_quantize_mat_mul),
    microsoft("DynamicQuantizeLSTM", dynamic_quantize_lstm),
    microsoft("MatMulNBits", mat_mul_n_bits),
    microsoft("GatherBlockQuantized", gather_block_quantized),
];

const BYTES: &[DType] = &[DType::I8, DType::U8];

fn any_byte(g: &mut Gen, dtype: DType, shape: &[usize]) -> Tensor {
    if dtype == DType::U8 { g.tensor_in(dtype, shape, 0.0, 256.0) } else { g.tensor_in(dtype, shape, -128.0, 128.0) }
}

/// A weight. Without VNNI, ONNX Runtime adds products of uint8 and int8 in pairs of 16 bits that saturate; 7 bits do not.
fn weight(g: &mut Gen, dtype: DType, shape: &[usize]) -> Tensor {
    if dtype == DType::U8 { any_byte(g, dtype, shape) } else { g.tensor_in(dtype, shape, -64.0, 64.0) }
}

fn microsoft_node(op: &'static str, inputs: Vec<Slot>) -> Node {
    Node::new(op, inputs).domain("com.microsoft").quantized()
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
            // ONNX Runtime takes a single element for parameters of the whole tensor.
            let n: usize = shape.iter().product();
            (n > 1).then_some((shape, Some(axis), Some(block as i64)))
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
    let (a, b) = (any_byte(g, ta, &[m, k]), weight(g, tb, &[k, n]));
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
    let x = weight(g, tx, &[n, c, h, w]);
    let w = weight(g, tw, &[m, c / group, kh, kw]);
    let mut node = node(op, Vec::new()).attr("group", group as i64).quantized();
    if g.rng.chance(0.6) {
        node = node.attr("pads", g.ints(4, 0, 1)).attr("strides", g.ints(2, 1, 2));
    }
    (x, w, node)
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
    let (a, b) = (any_byte(g, ta, &[m, k]), weight(g, tb, &[k, n]));
    let ((asc, az), (bs, bz)) = (params(g, ta, &[]), params(g, tb, &[]));
    let (ys, yz) = (Slot::T(g.tensor_in(DType::F32, &[], 0.5, 3.0)), params(g, ta, &[]).1);
    Some((Some(a), Node::new(op, vec![Slot::X, asc, az, Slot::T(b), bs, bz, ys, yz]).quantized()))
}

fn q_linear_binary(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let dtype = g.rng.pick(BYTES);
    let rank = g.rng.below(3) + 1;
    let shape = g.positive_shape(rank);
    let other = g.broadcastable_to(&shape);
    let (a, b) = (any_byte(g, dtype, &shape), any_byte(g, dtype, &other));
    let ((asc, az), (bs, bz)) = (params(g, dtype, &[]), params(g, dtype, &[]));
    let (ys, yz) = (Slot::T(g.tensor_in(DType::F32, &[], 0.2, 0.6)), params(g, dtype, &[]).1);
    Some((Some(a), microsoft_node(op, vec![Slot::X, asc, az, Slot::T(b), bs, bz, ys, yz])))
}

fn q_linear_unary(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let dtype = g.rng.pick(BYTES);
    let rank = g.rng.below(3) + 1;
    let shape = g.positive_shape(rank);
    let x = any_byte(g, dtype, &shape);
    let (xs, xz) = params(g, dtype, &[]);
    let (ys, yz) = params(g, dtype, &[]);
    let mut node = microsoft_node(op, vec![Slot::X, xs, xz, ys, yz]);
    if op == "QLinearLeakyRelu" {
        node = node.attr("alpha", 0.2f32);
    }
    Some((Some(x), node))
}

fn q_linear_global_pool(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let shape = [g.positive(), g.positive(), g.positive(), g.positive()];
    let x = any_byte(g, DType::U8, &shape);
    let ((xs, xz), (ys, yz)) = (params(g, DType::U8, &[]), params(g, DType::U8, &[]));
    Some((Some(x), microsoft_node(op, vec![Slot::X, xs, xz, ys, yz])))
}

fn dynamic_quantize_mat_mul(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (m, k, n) = (g.positive(), g.positive(), g.positive());
    let dtype = g.rng.pick(BYTES);
    let a = g.tensor(DType::F32, &[m, k]);
    let b = weight(g, dtype, &[k, n]);
    let (bs, bz) = params(g, dtype, &[]);
    let mut inputs = vec![Slot::X, Slot::T(b), bs, bz];
    if g.rng.chance(0.5) {
        inputs.push(Slot::T(g.tensor(DType::F32, &[n])));
    }
    Some((Some(a), microsoft_node(op, inputs).tolerance(1e-4)))
}

fn quantize_tensor(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let rank = g.rng.below(4);
    let shape = g.positive_shape(rank);
    let dtype = g.rng.pick(&[DType::I8, DType::U8, DType::I16, DType::U16]);
    let zero = match dtype {
        DType::U8 | DType::U16 => g.tensor_in(dtype, &[], 100.0, 150.0),
        _ => g.tensor_in(dtype, &[], -20.0, 20.0),
    };
    let inputs = vec![Slot::X, Slot::T(g.tensor_in(DType::F32, &[], 0.01, 0.3)), Slot::T(zero)];
    Some((Some(g.tensor_in(DType::F32, &shape, -9.0, 9.0)), Node::new(op, inputs).domain("com.microsoft")))
}

fn dequantize_tensor(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let rank = g.rng.below(4);
    let (shape, dtype) = (g.positive_shape(rank), g.rng.pick(BYTES));
    let (scale, zero) = params(g, dtype, &[]);
    let x = any_byte(g, dtype, &shape);
    Some((Some(x), Node::new(op, vec![Slot::X, scale, zero]).domain("com.microsoft")))
}

/// The parameters of probabilities.
fn probability(dtype: DType) -> (Slot, Slot) {
    let low = if dtype == DType::U8 { 0.0 } else { -128.0 };
    (Slot::Const(Tensor::scalar(1.0f32 / 256.0)), Slot::Const(from_f64s(dtype, &[], &[low], 0)))
}

fn q_linear_softmax(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let dtype = g.rng.pick(BYTES);
    let rank = g.rng.below(3) + 1;
    let shape = g.positive_shape(rank);
    let x = any_byte(g, dtype, &shape);
    let ((xs, xz), (ys, yz)) = (params(g, dtype, &[]), probability(dtype));
    let node = microsoft_node(op, vec![Slot::X, xs, xz, ys, yz]).attr("axis", g.axis(rank));
    Some((Some(x), node.attr("opset", g.rng.pick(&[11i64, 13]))))
}

fn q_linear_concat(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let dtype = g.rng.pick(BYTES);
    let rank = g.rng.below(3) + 1;
    let shape = g.positive_shape(rank);
    let axis = g.axis(rank);
    let at = axis.rem_euclid(rank as i64) as usize;
    let (ys, yz) = params(g, dtype, &[]);
    let x = any_byte(g, dtype, &shape);
    let (xs, xz) = params(g, dtype, &[]);
    let mut inputs = vec![ys, yz, Slot::X, xs, xz];
    for _ in 0..g.rng.below(3) {
        let mut other = shape.clone();
        other[at] = g.positive();
        let (s, z) = params(g, dtype, &[]);
        inputs.extend([Slot::T(any_byte(g, dtype, &other)), s, z]);
    }
    Some((Some(x), microsoft_node(op, inputs).attr("axis", axis)))
}

fn q_linear_where(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let dtype = g.rng.pick(BYTES);
    let rank = g.rng.below(3) + 1;
    let shape = g.positive_shape(rank);
    let (c, other) = (g.broadcastable_to(&shape), g.broadcastable_to(&shape));
    let condition = Slot::T(g.tensor(DType::Bool, &c));
    let (x, y) = (any_byte(g, dtype, &shape), any_byte(g, dtype, &other));
    let ((xs, xz), (ys, yz), (zs, zz)) = (params(g, dtype, &[]), params(g, dtype, &[]), params(g, dtype, &[]));
    Some((Some(x), microsoft_node(op, vec![condition, Slot::X, xs, xz, Slot::T(y), ys, yz, zs, zz])))
}

fn q_linear_average_pool(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let dtype = g.rng.pick(BYTES);
    let (kh, kw) = (g.positive().min(3), g.positive().min(3));
    let (n, c, h, w) = (g.rng.below(2) + 1, g.positive(), kh + g.rng.below(4), kw + g.rng.below(4));
    let last = g.rng.chance(0.4);
    let x = any_byte(g, dtype, &if last { [n, h, w, c] } else { [n, c, h, w] });
    let ((xs, xz), (ys, yz)) = (params(g, dtype, &[]), params(g, dtype, &[]));
    let mut node = microsoft_node(op, vec![Slot::X, xs, xz, ys, yz]);
    node = node.attr("kernel_shape", vec![kh as i64, kw as i64]).attr("strides", g.ints(2, 1, 2));
    if g.rng.chance(0.5) {
        let pads = [kh, kw, kh, kw].map(|k| g.rng.below(k) as i64).to_vec();
        node = node.attr("pads", pads).attr("count_include_pad", g.rng.between(0, 1));
    }
    Some((Some(x), if last { node.attr("channels_last", 1i64) } else { node }))
}

fn nhwc_max_pool(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let dtype = g.rng.pick(BYTES);
    let (kh, kw) = (g.positive().min(3), g.positive().min(3));
    let shape = [g.rng.below(2) + 1, kh + 2, kw + 3, g.positive()];
    let x = any_byte(g, dtype, &shape);
    let pads = [kh, kw, kh, kw].map(|k| g.rng.below(k) as i64).to_vec();
    let node = Node::new(op, vec![Slot::X]).domain("com.microsoft").attr("kernel_shape", vec![kh as i64, kw as i64]);
    Some((Some(x), node.attr("strides", g.ints(2, 1, 2)).attr("pads", pads)))
}

fn q_gemm(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (m, k, n) = (g.positive(), g.positive(), g.positive());
    let (ta, tb) = (g.rng.chance(0.4), g.rng.chance(0.4));
    let (da, db) = (g.rng.pick(BYTES), g.rng.pick(BYTES));
    let a = any_byte(g, da, &if ta { [k, m] } else { [m, k] });
    let b = weight(g, db, &if tb { [n, k] } else { [k, n] });
    let per_channel = g.rng.chance(0.4);
    let shape: &[usize] = if per_channel { &[n] } else { &[] };
    let (a_params, b_params) = (params(g, da, &[]), params(g, db, shape));
    let mut inputs = vec![Slot::X, a_params.0, a_params.1, Slot::T(b), b_params.0, b_params.1];
    inputs.push(if g.rng.chance(0.6) { Slot::T(g.tensor_in(DType::I32, &[n], -500.0, 500.0)) } else { Slot::Empty });
    if g.rng.chance(0.7) {
        inputs.extend([Slot::T(g.tensor_in(DType::F32, &[], 0.5, 3.0)), params(g, da, &[]).1]);
    }
    let node = microsoft_node(op, inputs).tolerance(1e-4).attr("transA", i64::from(ta)).attr("transB", i64::from(tb));
    Some((Some(a), if g.rng.chance(0.3) { node.attr("alpha", 0.5f32) } else { node }))
}

fn mat_mul_integer_to_float(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (m, k, n) = (g.positive(), g.positive(), g.positive());
    let (da, db) = (g.rng.pick(BYTES), g.rng.pick(BYTES));
    let (a, b) = (any_byte(g, da, &[m, k]), weight(g, db, &[k, n]));
    let shape: &[usize] = if g.rng.chance(0.4) { &[n] } else { &[] };
    let ((asc, az), (bs, bz)) = (params(g, da, &[]), params(g, db, shape));
    let mut inputs = vec![Slot::X, Slot::T(b), asc, bs];
    inputs.extend(if g.rng.chance(0.7) { [az, bz] } else { [Slot::Empty, Slot::Empty] });
    if g.rng.chance(0.5) {
        inputs.push(Slot::T(g.tensor(DType::F32, &[n])));
    }
    Some((Some(a), microsoft_node(op, inputs).tolerance(1e-4)))
}

fn dynamic_quantize_lstm(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (t, n, i, h) = (g.positive(), g.positive(), g.positive(), g.positive());
    let direction = g.rng.pick(&["forward", "reverse", "bidirectional"]);
    let d = if direction == "bidirectional" { 2 } else { 1 };
    let dtype = g.rng.pick(BYTES);
    let x = g.tensor_in(DType::F32, &[t, n, i], -1.0, 1.0);
    // ONNX Runtime wants the weights and their parameters to be constants.
    let constant = |s: Slot| match s {
        Slot::T(t) => Slot::Const(t),
        other => other,
    };
    let mut inputs = vec![Slot::X];
    inputs.extend([i, h].map(|k| Slot::Const(weight(g, dtype, &[d, k, 4 * h]))));
    inputs.push(if g.rng.chance(0.6) { Slot::T(g.tensor(DType::F32, &[d, 8 * h])) } else { Slot::Empty });
    inputs.push(Slot::Empty);
    for _ in 0..2 {
        inputs.push(if g.rng.chance(0.5) {
            Slot::T(g.tensor_in(DType::F32, &[d, n, h], -0.8, 0.8))
        } else {
            Slot::Empty
        });
    }
    inputs.push(Slot::Empty);
    for _ in 0..2 {
        let scale = Slot::Const(g.tensor_in(DType::F32, &[d], 0.001, 0.01));
        let zero = if dtype == DType::U8 {
            params(g, dtype, &[d]).1
        } else {
            Slot::Const(from_f64s(dtype, &[d], &vec![0.0; d], 0))
        };
        inputs.extend([scale, constant(zero)]);
    }
    // A value of the state that lies between two steps may go either way, and the difference stays for all times.
    let node = microsoft_node(op, inputs).outputs(3).tolerance(5e-3);
    Some((Some(x), node.attr("hidden_size", h as i64).attr("direction", direction)))
}

fn mat_mul_n_bits(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let bits = g.rng.pick(&[4usize, 4, 8]);
    let (m, n, block) = (g.positive(), g.positive(), g.rng.pick(&[16usize, 32]));
    let k = block * g.rng.below(2) + g.rng.below(block) + 1;
    let blocks = k.div_ceil(block);
    let a = g.tensor(DType::F32, &[m, k]);
    let b = any_byte(g, DType::U8, &[n, blocks, block * bits / 8]);
    let scales = g.tensor_in(DType::F32, &[n * blocks], 0.01, 0.3);
    let mut inputs = vec![Slot::X, Slot::Const(b), Slot::Const(scales)];
    if g.rng.chance(0.5) {
        let zeros = any_byte(g, DType::U8, &[n * (blocks * bits).div_ceil(8)]);
        inputs.push(Slot::Const(zeros));
    }
    let mut node = Node::new(op, inputs).domain("com.microsoft").tolerance(1e-4);
    for (name, value) in [("K", k), ("N", n), ("bits", bits), ("block_size", block)] {
        node = node.attr(name, value as i64);
    }
    Some((Some(a), node))
}

fn gather_block_quantized(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (rows, block) = (g.positive(), 16usize);
    let columns = block * (g.rng.below(2) + 1);
    let signed = g.rng.chance(0.5);
    let n = rows * columns;
    let dtype = if signed { DType::I4 } else { DType::U4 };
    let make = |g: &mut Gen, shape: &[usize], n: usize| {
        if signed {
            let v: Vec<i8> = g.ints(n, -8, 7).into_iter().map(|v| v as i8).collect();
            Tensor::of(shape, v).retyped(dtype).unwrap()
        } else {
            let v: Vec<u8> = g.ints(n, 0, 15).into_iter().map(|v| v as u8).collect();
            Tensor::of(shape, v).retyped(dtype).unwrap()
        }
    };
    let data = make(g, &[rows, columns], n);
    let rank = g.rng.below(3);
    let shape = g.positive_shape(rank);
    let indices = g.ints(shape.iter().product(), 0, rows as i64 - 1);
    let scales = g.tensor_in(DType::F32, &[rows, columns / block], 0.01, 0.3);
    let mut inputs = vec![Slot::Const(data), Slot::X, Slot::Const(scales)];
    if g.rng.chance(0.5) {
        inputs.push(Slot::Const(make(g, &[rows, columns / block], rows * columns / block)));
    }
    let node = Node::new(op, inputs).domain("com.microsoft").attr("block_size", block as i64);
    Some((Some(Tensor::of(&shape, indices)), node.attr("gather_axis", 0i64).attr("quantize_axis", 1i64)))
}
