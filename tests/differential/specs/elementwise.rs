//! Functions of each element.

use onnx_quant::tensor::{DType, Tensor};

use super::{Made, Spec, link, spec};
use crate::graph::{Node, Slot};
use crate::random::{ANY, FLOATS, Gen, INTS, NUMBERS, from_f64s};

pub(super) const SPECS: &[Spec] = &[
    link("Abs", &[7, 13], unary_number),
    link("Neg", &[7, 13], unary_signed),
    spec("Sign", &[9, 13], unary_number),
    link("Ceil", &[7, 13], unary),
    link("Floor", &[7, 13], unary),
    spec("Round", &[11, 22], rounded),
    link("Exp", &[7, 13], unary),
    link("Erf", &[9, 13], unary),
    link("Sigmoid", &[7, 13], unary),
    link("Tanh", &[7, 13], unary),
    link("Relu", &[7, 13, 14], unary),
    link("Softplus", &[7, 22], unary),
    link("Softsign", &[7, 22], unary),
    link("HardSwish", &[14, 22], unary),
    link("Mish", &[18, 22], unary),
    link("Sin", &[7, 22], unary),
    link("Cos", &[7, 22], unary),
    spec("Tan", &[7, 22], unit),
    spec("Asin", &[7, 22], unit),
    spec("Acos", &[7, 22], unit),
    link("Atan", &[7, 22], unary),
    spec("Sinh", &[9, 22], unit),
    spec("Cosh", &[9, 22], unit),
    link("Asinh", &[9, 22], unary),
    spec("Acosh", &[9, 22], above_one),
    spec("Atanh", &[9, 22], unit),
    spec("Log", &[7, 13], above_one),
    spec("Sqrt", &[7, 13], above_one),
    spec("Reciprocal", &[7, 13], above_one),
    spec("Not", &[7], not),
    spec("BitwiseNot", &[18], unary_int),
    spec("IsNaN", &[9, 13, 20], special),
    spec("IsInf", &[10, 20], is_inf),
    link("LeakyRelu", &[7, 16], with_alpha),
    link("Elu", &[7, 22], with_alpha),
    link("Celu", &[12], with_alpha),
    link("ThresholdedRelu", &[10, 22], with_alpha),
    link("Selu", &[7, 22], selu),
    link("HardSigmoid", &[7, 22], hard_sigmoid),
    link("Shrink", &[9], shrink),
    link("Gelu", &[20], gelu),
    link("Clip", &[7, 11, 12, 13], clip),
    link("PRelu", &[7, 9, 16], prelu),
    link("Add", &[7, 13, 14], binary),
    link("Sub", &[7, 13, 14], binary),
    link("Mul", &[7, 13, 14], binary),
    link("Div", &[7, 13, 14], divided),
    spec("Pow", &[7, 12, 13, 15], pow),
    spec("Mod", &[10, 13], modulo),
    spec("Equal", &[7, 11, 13, 19], compared),
    spec("Greater", &[7, 9, 13], compared),
    spec("Less", &[7, 9, 13], compared),
    spec("GreaterOrEqual", &[12, 16], compared),
    spec("LessOrEqual", &[12, 16], compared),
    spec("And", &[7], logical),
    spec("Or", &[7], logical),
    spec("Xor", &[7], logical),
    spec("BitwiseAnd", &[18], bitwise),
    spec("BitwiseOr", &[18], bitwise),
    spec("BitwiseXor", &[18], bitwise),
    spec("BitShift", &[11], shifted),
    link("Max", &[8, 12, 13], variadic),
    link("Min", &[8, 12, 13], variadic),
    link("Sum", &[8, 13], variadic_float),
    link("Mean", &[8, 13], variadic_float),
    spec("Where", &[9, 16], where_),
    spec("Cast", &[9, 13, 19, 21, 23], cast),
    spec("Identity", &[13, 16, 21], identity),
];

fn on(x: Tensor, node: Node) -> Made {
    Some((Some(x), node))
}

fn unary_of(g: &mut Gen, op: &'static str, x: Option<&Tensor>, dtypes: &[DType]) -> Made {
    let x = g.x(x, 0..=5, dtypes)?;
    on(x, Node::new(op, vec![Slot::X]))
}

fn unary(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    unary_of(g, op, x, FLOATS)
}

fn unary_number(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    unary_of(g, op, x, NUMBERS)
}

fn unary_signed(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    unary_of(g, op, x, &[DType::F32, DType::F64, DType::F16, DType::I8, DType::I16, DType::I32, DType::I64])
}

fn unary_int(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    unary_of(g, op, x, INTS)
}

fn not(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    unary_of(g, op, x, &[DType::Bool])
}

fn identity(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    unary_of(g, op, x, ANY)
}

fn in_range(g: &mut Gen, op: &'static str, low: f64, high: f64) -> Made {
    let (rank, dtype) = (g.rng.below(5), g.rng.pick(FLOATS));
    let shape = g.shape(rank);
    on(g.tensor_in(dtype, &shape, low, high), Node::new(op, vec![Slot::X]))
}

fn unit(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    in_range(g, op, -0.95, 0.95)
}

fn above_one(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    in_range(g, op, 1.0, 9.0)
}

/// Halves are what rounding is about.
fn rounded(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (n, dtype) = (g.rng.below(20) + 1, g.rng.pick(FLOATS));
    let v: Vec<f64> = (0..n).map(|_| g.rng.between(-20, 20) as f64 / 2.0).collect();
    on(from_f64s(dtype, &[n], &v, 0), Node::new(op, vec![Slot::X]))
}

fn special_tensor(g: &mut Gen, dtypes: &[DType]) -> Tensor {
    let (n, dtype) = (g.rng.below(12) + 1, g.rng.pick(dtypes));
    let v: Vec<f64> =
        (0..n).map(|_| g.rng.pick(&[0.0, -0.0, 1.5, -2.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e-3])).collect();
    from_f64s(dtype, &[n], &v, 0)
}

fn special(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    on(special_tensor(g, FLOATS), Node::new(op, vec![Slot::X]))
}

fn is_inf(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = special_tensor(g, &[DType::F32, DType::F64]);
    let mut node = Node::new(op, vec![Slot::X]);
    for name in ["detect_negative", "detect_positive"] {
        if g.rng.chance(0.4) {
            node = node.attr(name, g.rng.between(0, 1));
        }
    }
    on(x, node)
}

fn with_alpha(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, FLOATS)?;
    let mut node = Node::new(op, vec![Slot::X]);
    if g.rng.chance(0.6) {
        node = node.attr("alpha", (g.rng.unit() + 0.1) as f32);
    }
    on(x, node)
}

fn selu(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, FLOATS)?;
    let mut node = Node::new(op, vec![Slot::X]);
    if g.rng.chance(0.5) {
        node = node.attr("alpha", 1.25f32).attr("gamma", 0.75f32);
    }
    on(x, node)
}

fn hard_sigmoid(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, FLOATS)?;
    let mut node = Node::new(op, vec![Slot::X]);
    if g.rng.chance(0.5) {
        node = node.attr("alpha", 0.3f32).attr("beta", 0.4f32);
    }
    on(x, node)
}

fn shrink(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, NUMBERS)?;
    let mut node = Node::new(op, vec![Slot::X]);
    if g.rng.chance(0.7) {
        node = node.attr("lambd", 1.0f32).attr("bias", g.rng.pick(&[0.0f32, 0.5, 1.0]));
    }
    on(x, node)
}

fn gelu(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, FLOATS)?;
    let mut node = Node::new(op, vec![Slot::X]);
    if g.rng.chance(0.5) {
        node = node.attr("approximate", g.rng.pick(&["none", "tanh"]));
    }
    on(x, node)
}

fn clip(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, if opset < 12 { FLOATS } else { NUMBERS })?;
    let (min, max) = (g.rng.chance(0.7), g.rng.chance(0.7));
    if opset < 11 {
        let mut node = Node::new(op, vec![Slot::X]);
        if min {
            node = node.attr("min", -1.0f32);
        }
        if max {
            node = node.attr("max", 1.5f32);
        }
        return on(x, node);
    }
    let scalar = |v: f64| from_f64s(x.dtype(), &[], &[v], 0);
    let inputs = vec![
        Slot::X,
        if min { Slot::T(scalar(1.0)) } else { Slot::Empty },
        if max { Slot::T(scalar(2.0)) } else { Slot::Empty },
    ];
    on(x, Node::new(op, inputs))
}

fn prelu(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 1..=4, FLOATS)?;
    let shape = g.broadcastable_to(x.shape());
    let slope = g.tensor(x.dtype(), &shape);
    on(x, Node::new(op, vec![Slot::X, Slot::T(slope)]))
}

fn two(g: &mut Gen, x: &Tensor) -> Tensor {
    let shape = g.broadcastable(x.shape());
    g.tensor(x.dtype(), &shape)
}

/// The operands in either order.
fn either(g: &mut Gen, op: &'static str, x: Tensor, y: Tensor) -> Made {
    let inputs = if g.rng.chance(0.5) { vec![Slot::X, Slot::T(y)] } else { vec![Slot::T(y), Slot::X] };
    on(x, Node::new(op, inputs))
}

fn binary(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, if opset < 14 { FLOATS } else { NUMBERS })?;
    let y = two(g, &x);
    either(g, op, x, y)
}

fn divided(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, if opset < 14 { FLOATS } else { NUMBERS })?;
    let shape = g.broadcastable(x.shape());
    let y = g.tensor_in(x.dtype(), &shape, 1.0, 7.0);
    on(x, Node::new(op, vec![Slot::X, Slot::T(y)]))
}

fn pow(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let rank = g.rng.below(4);
    let shape = g.shape(rank);
    let kinds = if opset < 12 { FLOATS } else { &[DType::F32, DType::F64, DType::I32, DType::I64][..] };
    let dtype = g.rng.pick(kinds);
    let x = g.tensor_in(dtype, &shape, 1.0, 4.0);
    let other = g.broadcastable(&shape);
    let exponent = if opset < 12 { x.dtype() } else { g.rng.pick(kinds) };
    let y = g.tensor_in(exponent, &other, 0.0, 4.0);
    on(x, Node::new(op, vec![Slot::X, Slot::T(y)]))
}

fn modulo(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 0..=4, NUMBERS)?;
    let shape = g.broadcastable(x.shape());
    let mut y = g.tensor_in(x.dtype(), &shape, 1.0, 7.0);
    if (x.dtype().is_signed_integer() || x.dtype().is_float()) && g.rng.chance(0.5) {
        y = g.tensor_in(x.dtype(), &shape, -7.0, -1.0);
    }
    let mut node = Node::new(op, vec![Slot::X, Slot::T(y)]);
    if x.dtype().is_float() || g.rng.chance(0.4) {
        node = node.attr("fmod", 1i64);
    }
    on(x, node)
}

fn compared(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let mut x = g.x(x, 0..=4, NUMBERS)?;
    // Whole numbers, so that some are equal.
    if g.rng.chance(0.7) {
        x = g.tensor_in(x.dtype(), x.shape(), 0.0, 3.0);
        let v: Vec<f64> = x.to_f64s().ok()?.iter().map(|v| v.floor()).collect();
        x = from_f64s(x.dtype(), x.shape(), &v, 0);
    }
    let shape = g.broadcastable(x.shape());
    let n = shape.iter().product();
    let v: Vec<f64> = (0..n).map(|_| g.rng.below(3) as f64).collect();
    let y = from_f64s(x.dtype(), &shape, &v, 0);
    either(g, op, x, y)
}

fn logical(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 0..=4, &[DType::Bool])?;
    let y = two(g, &x);
    either(g, op, x, y)
}

fn bitwise(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 0..=4, INTS)?;
    let y = two(g, &x);
    either(g, op, x, y)
}

fn shifted(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 0..=3, &[DType::U8, DType::U16, DType::U32, DType::U64])?;
    let shape = g.broadcastable(x.shape());
    let y = g.tensor_in(x.dtype(), &shape, 0.0, 8.0);
    let direction = g.rng.pick(&["LEFT", "RIGHT"]);
    on(x, Node::new(op, vec![Slot::X, Slot::T(y)]).attr("direction", direction))
}

fn several(g: &mut Gen, op: &'static str, x: Tensor) -> Made {
    let mut inputs = vec![Slot::X];
    for _ in 0..g.rng.below(3) {
        let shape = g.broadcastable_to(x.shape());
        inputs.push(Slot::T(g.tensor(x.dtype(), &shape)));
    }
    let at = g.rng.below(inputs.len());
    inputs.swap(0, at);
    on(x, Node::new(op, inputs))
}

fn variadic(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, if opset < 12 { FLOATS } else { NUMBERS })?;
    several(g, op, x)
}

fn variadic_float(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, FLOATS)?;
    several(g, op, x)
}

fn where_(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 0..=4, ANY)?;
    let (c, y) = (g.broadcastable(x.shape()), g.broadcastable_to(x.shape()));
    let (c, y) = (g.tensor(DType::Bool, &c), g.tensor(x.dtype(), &y));
    on(x, Node::new(op, vec![Slot::T(c), Slot::X, Slot::T(y)]))
}

fn cast(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let from = g.rng.pick(ANY);
    let to = g.rng.pick(ANY);
    let (rank, unsigned) = (g.rng.below(4), to.is_integer() && !to.is_signed_integer());
    let shape = g.shape(rank);
    // A float that does not fit an integer type gives what the machine gives; ONNX leaves it open.
    let x = if unsigned { g.tensor_in(from, &shape, 0.0, 90.0) } else { g.tensor(from, &shape) };
    on(x, Node::new(op, vec![Slot::X]).attr("to", i64::from(to.code())))
}
