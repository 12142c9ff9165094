//! ONNX Runtime's own operators that exporters and its optimizer leave in models; the quantized ones are in `quantized`.

use onnx_quant::tensor::{DType, Tensor};

use super::{Made, Spec, microsoft};
use crate::graph::{Node, Slot};
use crate::random::Gen;

pub(super) const SPECS: &[Spec] = &[
    microsoft("Gelu", activation),
    microsoft("FastGelu", activation),
    microsoft("QuickGelu", activation),
    microsoft("BiasGelu", bias_gelu),
    microsoft("FusedMatMul", fused_mat_mul),
    microsoft("FusedGemm", fused_gemm),
    microsoft("SkipLayerNormalization", skip_layer_normalization),
    microsoft("SkipSimplifiedLayerNormalization", skip_layer_normalization),
    microsoft("EmbedLayerNormalization", embed_layer_normalization),
    microsoft("Attention", attention),
    microsoft("MultiHeadAttention", multi_head_attention),
    microsoft("GroupQueryAttention", group_query_attention),
    microsoft("RotaryEmbedding", rotary_embedding),
];

fn float(g: &mut Gen, shape: &[usize]) -> Slot {
    Slot::T(g.tensor(DType::F32, shape))
}

fn node(op: &'static str, inputs: Vec<Slot>) -> Node {
    Node::new(op, inputs).domain("com.microsoft").tolerance(1e-4)
}

fn activation(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let rank = g.rng.below(3) + 1;
    let shape = g.positive_shape(rank);
    let mut inputs = vec![Slot::X];
    if op == "FastGelu" && g.rng.chance(0.4) {
        inputs.push(float(g, &shape[rank - 1..]));
    }
    let mut node = node(op, inputs);
    if op == "QuickGelu" && g.rng.chance(0.5) {
        node = node.attr("alpha", 1.3f32);
    }
    Some((Some(g.tensor(DType::F32, &shape)), node))
}

fn bias_gelu(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let rank = g.rng.below(3) + 1;
    let shape = g.positive_shape(rank);
    let bias = float(g, &shape[rank - 1..]);
    Some((Some(g.tensor(DType::F32, &shape)), node(op, vec![Slot::X, bias])))
}

fn fused_mat_mul(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (m, k, n, batch) = (g.positive(), g.positive(), g.positive(), g.positive());
    let (ta, tb) = (g.rng.chance(0.5), g.rng.chance(0.5));
    let a = g.tensor(DType::F32, &if ta { [batch, k, m] } else { [batch, m, k] });
    let b = float(g, &if tb { [batch, n, k] } else { [batch, k, n] });
    let node = node(op, vec![Slot::X, b]).attr("alpha", g.rng.pick(&[0.5f32, 1.0]));
    Some((Some(a), node.attr("transA", i64::from(ta)).attr("transB", i64::from(tb))))
}

fn fused_gemm(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (m, k, n) = (g.positive(), g.positive(), g.positive());
    let (ta, tb) = (g.rng.chance(0.4), g.rng.chance(0.4));
    let a = g.tensor(DType::F32, &if ta { [k, m] } else { [m, k] });
    let mut inputs = vec![Slot::X, float(g, &if tb { [n, k] } else { [k, n] })];
    if g.rng.chance(0.7) {
        let shape = g.broadcastable_to(&[m, n]);
        inputs.push(float(g, &shape));
    }
    let name = g.rng.pick(&["Relu", "Sigmoid", "Tanh", "LeakyRelu"]);
    let mut node = node(op, inputs).attr("activation", name).attr("alpha", 0.5f32);
    if name == "LeakyRelu" {
        node = node.attr("activation_alpha", 0.2f32);
    }
    Some((Some(a), node.attr("transA", i64::from(ta)).attr("transB", i64::from(tb))))
}

fn skip_layer_normalization(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let shape = [g.positive(), g.positive(), g.positive() + 1];
    let skip = if g.rng.chance(0.2) { vec![1, shape[1], shape[2]] } else { shape.to_vec() };
    let mut inputs = vec![Slot::X, float(g, &skip), float(g, &shape[2..])];
    for _ in 0..if op == "SkipLayerNormalization" { 2 } else { 1 } {
        inputs.push(if g.rng.chance(0.6) { float(g, &shape[2..]) } else { Slot::Empty });
    }
    // The second and third outputs are statistics that only training has.
    Some((Some(g.tensor(DType::F32, &shape)), node(op, inputs).attr("epsilon", 1e-2f32).tolerance(1e-3)))
}

fn embed_layer_normalization(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (b, s, h) = (g.positive(), g.positive(), g.positive() + 1);
    let (words, positions, segments) = (g.positive() + 2, s + g.rng.below(3), g.positive());
    let ids = |g: &mut Gen, n: usize, shape: &[usize]| {
        let v = g.ints(shape.iter().product(), 0, n as i64 - 1);
        Tensor::of(shape, v.into_iter().map(|i| i as i32).collect::<Vec<i32>>())
    };
    let x = ids(g, words, &[b, s]);
    let with_segments = g.rng.chance(0.6);
    let segment_ids = if with_segments { Slot::T(ids(g, segments, &[b, s])) } else { Slot::Empty };
    let mut inputs = vec![Slot::X, segment_ids, float(g, &[words, h]), float(g, &[positions, h])];
    inputs.push(if with_segments { float(g, &[segments, h]) } else { Slot::Empty });
    inputs.extend([float(g, &[h]), float(g, &[h])]);
    inputs.push(if g.rng.chance(0.5) { Slot::T(ids(g, 2, &[b, s])) } else { Slot::Empty });
    if g.rng.chance(0.3) {
        inputs.push(Slot::T(ids(g, positions, &[b, s])));
    }
    // ONNX Runtime wants the second output, with a mask or without.
    Some((Some(x), node(op, inputs).attr("epsilon", 1e-2f32).tolerance(1e-3).outputs(2)))
}

fn attention(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (b, s, input, heads, size) = (g.positive(), g.positive(), g.positive(), g.positive(), g.positive());
    let hidden = heads * size;
    let x = g.tensor(DType::F32, &[b, s, input]);
    let mut inputs = vec![Slot::X, float(g, &[input, 3 * hidden]), float(g, &[3 * hidden])];
    let node_of = |inputs: Vec<Slot>| node(op, inputs).attr("num_heads", heads as i64);
    // A mask of keys that are there: ones from the left, at least one.
    if g.rng.chance(0.5) {
        let lengths: Vec<i64> = g.ints(b, 1, s as i64);
        let rows = lengths.iter().flat_map(|&n| (0..s as i64).map(move |i| i32::from(i < n)));
        inputs.push(Slot::T(Tensor::of(&[b, s], rows.collect::<Vec<i32>>())));
    }
    let mut node = node_of(inputs);
    if g.rng.chance(0.3) {
        node = node.attr("unidirectional", 1i64);
    }
    if g.rng.chance(0.3) {
        node = node.attr("scale", 0.4f32);
    }
    Some((Some(x), node))
}

fn multi_head_attention(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (b, s, l, heads, size) = (g.positive(), g.positive(), g.positive(), g.positive(), g.positive());
    let (hidden, v_size) = (heads * size, g.positive());
    let causal = g.rng.chance(0.25);
    let l = if causal { s } else { l };
    let with_bias = g.rng.chance(0.4);
    let masked = g.rng.chance(0.3);
    let with_past = !masked && !causal && g.rng.chance(0.3);
    // ONNX Runtime wants values as wide as keys here.
    let v_size = if with_bias || with_past { size } else { v_size };
    let x = g.tensor(DType::F32, &[b, s, hidden]);
    let mut inputs = vec![Slot::X, float(g, &[b, l, hidden]), float(g, &[b, l, heads * v_size])];
    inputs.push(if with_bias { float(g, &[3 * hidden]) } else { Slot::Empty });
    let past = if with_past { g.positive() } else { 0 };
    inputs.push(if masked {
        let lengths: Vec<i64> = g.ints(b, 1, l as i64);
        let rows = lengths.iter().flat_map(|&n| (0..l as i64).map(move |i| i32::from(i < n)));
        Slot::T(Tensor::of(&[b, l], rows.collect::<Vec<i32>>()))
    } else {
        Slot::Empty
    });
    inputs.push(if g.rng.chance(0.4) {
        let first = if g.rng.chance(0.5) { b } else { 1 };
        float(g, &[first, heads, s, l + past])
    } else {
        Slot::Empty
    });
    if with_past {
        inputs.extend([float(g, &[b, heads, past, size]), float(g, &[b, heads, past, v_size])]);
    }
    let mut node = node(op, inputs).attr("num_heads", heads as i64);
    if causal {
        node = node.attr("unidirectional", 1i64);
    }
    if g.rng.chance(0.3) {
        node = node.attr("scale", 0.4f32);
    }
    Some((Some(x), if with_past { node.outputs(3) } else { node }))
}

fn group_query_attention(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (b, kv, groups) = (g.rng.below(2) + 1, g.rng.below(2) + 1, g.rng.below(2) + 1);
    // ONNX Runtime wants heads of a multiple of 16 elements when it rotates them.
    let rotate = g.rng.chance(0.5);
    let (heads, size) = (kv * groups, if rotate { 16 } else { 8 } * (g.rng.below(2) + 1));
    let prompt = g.rng.chance(0.5);
    let (s, past) = if prompt { (g.positive() + 1, 0) } else { (1, g.positive()) };
    let total = s + past;
    let x = g.tensor(DType::F32, &[b, s, heads * size]);
    let mut inputs = vec![Slot::X, float(g, &[b, s, kv * size]), float(g, &[b, s, kv * size])];
    for _ in 0..2 {
        inputs.push(if prompt { Slot::Empty } else { float(g, &[b, kv, past, size]) });
    }
    let lengths = vec![total as i32 - 1; b];
    inputs.extend([Slot::T(Tensor::vector(lengths)), Slot::T(Tensor::scalar(total as i32))]);
    if rotate {
        let shape = [total + g.rng.below(3), size / 2];
        inputs.extend([
            Slot::T(g.tensor_in(DType::F32, &shape, -1.0, 1.0)),
            Slot::T(g.tensor_in(DType::F32, &shape, -1.0, 1.0)),
        ]);
    }
    let mut node = node(op, inputs).outputs(3).attr("num_heads", heads as i64).attr("kv_num_heads", kv as i64);
    if rotate {
        node = node.attr("do_rotary", 1i64).attr("rotary_interleaved", g.rng.between(0, 1));
    }
    if g.rng.chance(0.3) {
        node = node.attr("local_window_size", g.rng.between(1, 4));
    }
    if g.rng.chance(0.3) {
        node = node.attr("softcap", 2.0f32);
    }
    Some((Some(x), node))
}

fn rotary_embedding(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (b, s, heads, half) = (g.positive(), g.positive(), g.positive(), g.positive());
    let (size, positions) = (2 * half, s + g.rng.below(3));
    let four = g.rng.chance(0.5);
    let x = if four { g.tensor(DType::F32, &[b, heads, s, size]) } else { g.tensor(DType::F32, &[b, s, heads * size]) };
    let ids = if g.rng.chance(0.5) {
        Tensor::vector(vec![g.rng.between(0, (positions - s) as i64)])
    } else {
        Tensor::of(&[b, s], g.ints(b * s, 0, positions as i64 - 1))
    };
    let table = |g: &mut Gen| Slot::T(g.tensor_in(DType::F32, &[positions, half], -1.0, 1.0));
    let inputs = vec![Slot::X, Slot::T(ids), table(g), table(g)];
    Some((Some(x), node(op, inputs).attr("interleaved", g.rng.between(0, 1))))
}
