//! Recurrent layers.

use bytes::Bytes;
use onnx_quant::ir::Attr;
use onnx_quant::tensor::{DType, Tensor};

use super::{Made, Spec, spec};
use crate::graph::{Node, Slot};
use crate::random::Gen;

pub(super) const SPECS: &[Spec] = &[
    spec("RNN", &[7, 14, 22], recurrent),
    spec("GRU", &[7, 14, 22], recurrent),
    spec("LSTM", &[7, 14, 22], recurrent),
];

fn recurrent(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let (t, n, i, h) = (g.positive(), g.positive(), g.positive(), g.positive());
    let direction = g.rng.pick(&["forward", "reverse", "bidirectional"]);
    let d = if direction == "bidirectional" { 2 } else { 1 };
    let gates = match op {
        "LSTM" => 4,
        "GRU" => 3,
        _ => 1,
    };
    let float = |g: &mut Gen, shape: &[usize]| Slot::T(g.tensor_in(DType::F32, shape, -0.8, 0.8));
    let x = g.tensor_in(DType::F32, &[t, n, i], -1.0, 1.0);
    let mut inputs = vec![Slot::X, float(g, &[d, gates * h, i]), float(g, &[d, gates * h, h])];
    let n_optional = if op == "LSTM" { 5 } else { 3 };
    for slot in 3..3 + n_optional {
        if g.rng.chance(0.5) {
            inputs.push(Slot::Empty);
            continue;
        }
        inputs.push(match slot {
            3 => float(g, &[d, 2 * gates * h]),
            4 => Slot::T(Tensor::vector(g.ints(n, 1, t as i64).into_iter().map(|v| v as i32).collect())),
            7 => float(g, &[d, 3 * h]),
            _ => float(g, &[d, n, h]),
        });
    }
    let mut node = Node::new(op, inputs).outputs(if op == "LSTM" { 3 } else { 2 }).tolerance(1e-4);
    node = node.attr("hidden_size", h as i64).attr("direction", direction);
    if g.rng.chance(0.3) {
        node = node.attr("clip", 0.5f32);
    }
    if op == "GRU" && g.rng.chance(0.5) {
        node = node.attr("linear_before_reset", 1i64);
    }
    if op == "LSTM" && g.rng.chance(0.2) {
        node = node.attr("input_forget", 1i64);
    }
    if g.rng.chance(0.3) {
        let per = match op {
            "LSTM" => 3,
            "GRU" => 2,
            _ => 1,
        };
        let names =
            (0..per * d).map(|_| Bytes::from_static(g.rng.pick(&["Relu", "Tanh", "Sigmoid", "Softsign"]).as_bytes()));
        node = node.attr("activations", Attr::Strings(names.collect()));
    }
    let _ = opset;
    Some((Some(x), node))
}
