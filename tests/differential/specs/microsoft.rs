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
    let past = if g.rng.chance(0.3) { g.positive() } else { 0 };
    // ONNX Runtime keeps keys and values in one tensor, so only without a cache may their sizes differ.
    let v_size = if past == 0 { g.positive() } else { size };
    let columns = 2 * hidden + heads * v_size;
    let mut inputs = vec![Slot::X, float(g, &[input, columns]), float(g, &[columns])];
    inputs.push(if g.rng.chance(0.5) { mask(g, b, s, s + past) } else { Slot::Empty });
    inputs.push(if past > 0 { float(g, &[2, b, heads, past, size]) } else { Slot::Empty });
    // ONNX Runtime does not take both a cache and a bias.
    if past == 0 && g.rng.chance(0.3) {
        let first = if g.rng.chance(0.5) { b } else { 1 };
        inputs.push(float(g, &[first, heads, s, s]));
    }
    let mut node = node(op, inputs).attr("num_heads", heads as i64);
    if v_size != size {
        node = node.attr("qkv_hidden_sizes", vec![hidden as i64, hidden as i64, (heads * v_size) as i64]);
    }
    if past > 0 {
        node = node.outputs(2);
    }
    if g.rng.chance(0.3) {
        node = node.attr("unidirectional", 1i64);
    }
    if g.rng.chance(0.3) {
        node = node.attr("scale", 0.4f32);
    }
    Some((Some(x), node))
}

/// A mask in one of the forms that ONNX Runtime takes: at least one key is there.
fn mask(g: &mut Gen, b: usize, queries: usize, keys: usize) -> Slot {
    let lengths: Vec<i32> = g.ints(b, 1, keys as i64).into_iter().map(|n| n as i32).collect();
    let rows = |n: i32| (0..keys as i32).map(move |i| i32::from(i < n));
    Slot::T(match g.rng.below(4) {
        0 => Tensor::vector(lengths),
        1 => {
            // Lengths, and their sums.
            let sums = (0..=b as i32).chain(0..=b as i32);
            Tensor::vector(lengths.iter().copied().chain(sums).collect::<Vec<i32>>())
        }
        2 => {
            let rows = lengths.iter().flat_map(|&n| (0..queries).flat_map(move |_| rows(n)));
            Tensor::of(&[b, queries, keys], rows.collect::<Vec<i32>>())
        }
        _ => Tensor::of(&[b, keys], lengths.iter().flat_map(|&n| rows(n)).collect::<Vec<i32>>()),
    })
}

/// A cache with room behind what is there, and perhaps beams that share their past.
fn shared_buffer(g: &mut Gen, op: &'static str) -> Made {
    let (samples, width, heads, size) = (g.positive(), g.rng.below(2) + 1, g.positive(), g.positive());
    let (batch, past) = (samples * width, g.positive());
    let beams = g.rng.chance(0.5);
    let s = if beams { 1 } else { g.positive() };
    let room = past + s + g.rng.below(3);
    let x = g.tensor(DType::F32, &[batch, s, heads * size]);
    let new = [batch, s, heads * size];
    let mut inputs = vec![Slot::X, float(g, &new), float(g, &new), Slot::Empty, Slot::Empty, Slot::Empty];
    inputs.extend([float(g, &[batch, heads, room, size]), float(g, &[batch, heads, room, size])]);
    inputs.push(Slot::T(Tensor::vector(vec![past as i32])));
    if beams {
        let n = samples * width * room;
        let from: Vec<i32> = g.ints(n, 0, width as i64 - 1).into_iter().map(|b| b as i32).collect();
        inputs.push(Slot::T(Tensor::of(&[samples, width, room], from)));
    }
    Some((Some(x), node(op, inputs).outputs(3).attr("num_heads", heads as i64)))
}

fn multi_head_attention(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    if g.rng.chance(0.2) {
        return shared_buffer(g, op);
    }
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
    inputs.push(if masked { mask(g, b, s, l) } else { Slot::Empty });
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
    let sink = g.rng.chance(0.3);
    let bias = g.rng.chance(0.3);
    if sink || bias {
        inputs.resize(10, Slot::Empty);
        inputs.push(if bias { float(g, &[1, 1, s, total]) } else { Slot::Empty });
        if sink {
            inputs.push(float(g, &[heads]));
        }
    }
    let mut node = node(op, inputs).outputs(3).attr("num_heads", heads as i64).attr("kv_num_heads", kv as i64);
    if !sink && g.rng.chance(0.3) {
        node = node.attr("smooth_softmax", 1i64);
    }
    if g.rng.chance(0.3) {
        node = node.outputs(4).attr("qk_output", g.rng.between(1, 2));
    }
    if rotate {
        node = node.attr("do_rotary", 1i64).attr("rotary_interleaved", g.rng.between(0, 1));
    }
    match g.rng.below(4) {
        0 => node = node.attr("local_window_size", g.rng.between(1, 4)),
        1 => node = node.attr("causal", 0i64),
        _ => {}
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
