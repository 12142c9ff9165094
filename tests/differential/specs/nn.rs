//! Convolutions, pools, matrix products and normalizations with weights.

use onnx_quant::tensor::{DType, Tensor};

use super::{Made, Spec, link, microsoft, spec};
use crate::graph::{Node, Slot};
use crate::random::Gen;

pub(super) const SPECS: &[Spec] = &[
    link("Conv", &[7, 11, 22], conv),
    link("ConvTranspose", &[7, 11, 22], conv_transpose),
    link("MaxPool", &[8, 10, 11, 12, 22], max_pool),
    link("AveragePool", &[7, 10, 11, 19, 22], average_pool),
    link("LpPool", &[7, 11, 18], lp_pool),
    link("GlobalAveragePool", &[7, 22], global_pool),
    link("GlobalMaxPool", &[7, 22], global_pool),
    link("GlobalLpPool", &[7, 22], global_pool),
    spec("MatMul", &[9, 13], mat_mul),
    spec("Gemm", &[7, 9, 11, 13], gemm),
    link("BatchNormalization", &[7, 9, 14, 15], batch_normalization),
    link("InstanceNormalization", &[7, 22], instance_normalization),
    spec("GroupNormalization", &[21], group_normalization),
    link("LRN", &[7, 13], lrn),
    spec("GridSample", &[16, 20, 22], grid_sample),
    spec("Det", &[11], det),
    spec("MaxUnpool", &[11], max_unpool),
    spec("Col2Im", &[18], col2im),
    spec("RoiAlign", &[10, 16], roi_align),
    spec("Attention", &[23], attention),
    microsoft("FusedConv", fused_conv),
];

/// Window parameters of `n` spatial axes.
struct Window {
    kernel: Vec<usize>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
    auto_pad: Option<&'static str>,
}

impl Window {
    fn random(g: &mut Gen, n: usize, dilated: bool) -> Self {
        let kernel: Vec<usize> = (0..n).map(|_| g.rng.below(3) + 1).collect();
        let strides = g.ints(n, 1, 3);
        let dilations = if dilated && g.rng.chance(0.4) { g.ints(n, 1, 2) } else { vec![1; n] };
        let pads = (0..2 * n).map(|i| g.rng.between(0, kernel[i % n] as i64 - 1)).collect();
        let auto_pad =
            if g.rng.chance(0.3) { Some(g.rng.pick(&["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])) } else { None };
        Window { kernel, strides, dilations, pads, auto_pad }
    }

    /// Whether the window fits into the input.
    fn fits(&self, spatial: &[usize]) -> bool {
        let n = self.kernel.len();
        spatial.iter().enumerate().all(|(i, &d)| {
            let extent = (self.kernel[i] as i64 - 1) * self.dilations[i] + 1;
            let padded = d as i64 + if self.padded() { self.pads[i] + self.pads[i + n] } else { 0 };
            d > 0 && padded >= extent
        })
    }

    /// Whether the padding is found such that strides beyond the window would make it negative, which ONNX Runtime's
    /// pools refuse.
    fn is_stretched(&self) -> bool {
        !self.padded()
            && self.auto_pad != Some("VALID")
            && self.strides.iter().zip(&self.kernel).any(|(&s, &k)| s > k as i64)
    }

    fn padded(&self) -> bool {
        matches!(self.auto_pad, None | Some("NOTSET"))
    }

    fn set(&self, g: &mut Gen, mut node: Node) -> Node {
        node = node.attr("kernel_shape", self.kernel.iter().map(|&k| k as i64).collect::<Vec<_>>());
        if g.rng.chance(0.9) || self.strides.iter().any(|&s| s != 1) {
            node = node.attr("strides", self.strides.clone());
        }
        if self.dilations.iter().any(|&d| d != 1) {
            node = node.attr("dilations", self.dilations.clone());
        }
        if self.padded() && (self.pads.iter().any(|&p| p != 0) || g.rng.chance(0.5)) {
            node = node.attr("pads", self.pads.clone());
        }
        if let Some(a) = self.auto_pad {
            node = node.attr("auto_pad", a);
        }
        node
    }
}

/// An image `[N, C, D…]`; sizes from 1 on.
fn image(g: &mut Gen, x: Option<&Tensor>, spatial: std::ops::RangeInclusive<usize>) -> Option<Tensor> {
    match x {
        Some(x) => (spatial.contains(&x.rank().wrapping_sub(2)) && !x.is_empty()).then(|| x.clone()),
        None => {
            let n = g.rng.between(*spatial.start() as i64, *spatial.end() as i64) as usize;
            let mut shape = vec![g.rng.below(2) + 1, g.positive()];
            shape.extend((0..n).map(|_| g.positive() + g.rng.below(4)));
            Some(g.tensor(DType::F32, &shape))
        }
    }
}

fn conv_node(g: &mut Gen, op: &'static str, x: &Tensor) -> Option<Node> {
    let n = x.rank() - 2;
    let w = Window::random(g, n, true);
    if !w.fits(&x.shape()[2..]) {
        return None;
    }
    // ONNX Runtime defines these two without dilations only.
    if !w.padded() && w.auto_pad != Some("VALID") && w.dilations.iter().any(|&d| d != 1) {
        return None;
    }
    let c = x.shape()[1];
    let divisors: Vec<usize> = (1..=c).filter(|d| c.is_multiple_of(*d)).collect();
    let group = g.rng.pick(&divisors);
    let m = group * g.positive();
    let mut shape = vec![m, c / group];
    shape.extend(&w.kernel);
    let mut inputs = vec![Slot::X, Slot::T(g.tensor(DType::F32, &shape))];
    if g.rng.chance(0.5) {
        inputs.push(Slot::T(g.tensor(DType::F32, &[m])));
    }
    let mut node = Node::new(op, inputs).tolerance(1e-4);
    if group > 1 || g.rng.chance(0.3) {
        node = node.attr("group", group as i64);
    }
    Some(w.set(g, node))
}

fn conv(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = image(g, x, 1..=3)?;
    let node = conv_node(g, op, &x)?;
    Some((Some(x), node))
}

fn fused_conv(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = image(g, None, 1..=2)?;
    let node = conv_node(g, op, &x)?.domain("com.microsoft");
    let name = g.rng.pick(&["Relu", "Sigmoid", "Tanh"]);
    Some((Some(x), node.attr("activation", name)))
}

fn conv_transpose(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = image(g, x, 1..=2)?;
    let n = x.rank() - 2;
    let mut w = Window::random(g, n, true);
    if w.auto_pad.is_some() && w.dilations.iter().any(|&d| d != 1) {
        w.auto_pad = None;
    }
    let c = x.shape()[1];
    let divisors: Vec<usize> = (1..=c).filter(|d| c.is_multiple_of(*d)).collect();
    let group = g.rng.pick(&divisors);
    let per_group = g.positive();
    let mut shape = vec![c, per_group];
    shape.extend(&w.kernel);
    let mut inputs = vec![Slot::X, Slot::T(g.tensor(DType::F32, &shape))];
    if g.rng.chance(0.5) {
        inputs.push(Slot::T(g.tensor(DType::F32, &[group * per_group])));
    }
    let mut node = Node::new(op, inputs).tolerance(1e-4).attr("group", group as i64);
    if g.rng.chance(0.3) {
        let extra: Vec<i64> = w.strides.iter().map(|&s| g.rng.between(0, s - 1)).collect();
        node = node.attr("output_padding", extra);
    }
    let out = |i: usize| {
        (x.shape()[2 + i] as i64 - 1) * w.strides[i] + (w.kernel[i] as i64 - 1) * w.dilations[i] + 1
            - if w.padded() { w.pads[i] + w.pads[i + n] } else { 0 }
    };
    if (0..n).any(|i| out(i) <= 0) {
        return None;
    }
    Some((Some(x.clone()), w.set(g, node)))
}

fn max_pool(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = image(g, x, 1..=3)?;
    let w = Window::random(g, x.rank() - 2, opset >= 10);
    if w.is_stretched() || !w.fits(&x.shape()[2..]) || (!w.padded() && w.dilations.iter().any(|&d| d != 1)) {
        return None;
    }
    let mut node = Node::new(op, vec![Slot::X]);
    if opset >= 10 && g.rng.chance(0.4) {
        node = node.attr("ceil_mode", 1i64);
    }
    if g.rng.chance(0.3) {
        node = node.outputs(2);
        if g.rng.chance(0.3) {
            node = node.attr("storage_order", 1i64);
        }
    }
    Some((Some(x), w.set(g, node)))
}

fn average_pool(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = image(g, x, 1..=3)?;
    let w = Window::random(g, x.rank() - 2, opset >= 19);
    if w.is_stretched() || !w.fits(&x.shape()[2..]) || (!w.padded() && w.dilations.iter().any(|&d| d != 1)) {
        return None;
    }
    let mut node = Node::new(op, vec![Slot::X]);
    if opset >= 10 && g.rng.chance(0.4) {
        node = node.attr("ceil_mode", 1i64);
    }
    if g.rng.chance(0.5) {
        node = node.attr("count_include_pad", g.rng.between(0, 1));
    }
    Some((Some(x), w.set(g, node)))
}

fn lp_pool(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = image(g, x, 1..=3)?;
    let w = Window::random(g, x.rank() - 2, opset >= 18);
    if w.is_stretched() || !w.fits(&x.shape()[2..]) || (!w.padded() && w.dilations.iter().any(|&d| d != 1)) {
        return None;
    }
    let mut node = Node::new(op, vec![Slot::X]);
    if g.rng.chance(0.6) {
        node = node.attr("p", g.rng.between(1, 3));
    }
    Some((Some(x), w.set(g, node)))
}

fn global_pool(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = image(g, x, 1..=3)?;
    Some((Some(x), Node::new(op, vec![Slot::X])))
}

/// Shapes of two matrices with leading axes that broadcast.
fn matrices(g: &mut Gen) -> (Vec<usize>, Vec<usize>) {
    let (m, k, n) = (g.dim(), g.dim(), g.dim());
    let rank = g.rng.below(3);
    let batch = g.positive_shape(rank);
    let (mut a, mut b) = (batch.clone(), g.broadcastable_to(&batch));
    if g.rng.chance(0.15) {
        a = vec![k];
    } else {
        a.extend([m, k]);
    }
    if g.rng.chance(0.15) {
        b = vec![k];
    } else {
        b.extend([k, n]);
    }
    (a, b)
}

fn mat_mul(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (a, b) = matrices(g);
    let dtype = g.rng.pick(&[DType::F32, DType::F32, DType::F64, DType::I32, DType::I64, DType::U32]);
    let (a, b) = (g.tensor(dtype, &a), g.tensor(dtype, &b));
    Some((Some(a), Node::new(op, vec![Slot::X, Slot::T(b)]).tolerance(1e-4)))
}

fn gemm(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let (m, k, n) = (g.dim(), g.dim(), g.dim());
    let (ta, tb) = (g.rng.chance(0.4), g.rng.chance(0.4));
    let dtype = g.rng.pick(&[DType::F32, DType::F32, DType::F64]);
    let a = g.tensor(dtype, &if ta { [k, m] } else { [m, k] });
    let b = g.tensor(dtype, &if tb { [n, k] } else { [k, n] });
    let mut inputs = vec![Slot::X, Slot::T(b)];
    if opset < 11 || g.rng.chance(0.7) {
        let shape = g.broadcastable_to(&[m, n]);
        inputs.push(Slot::T(g.tensor(dtype, &shape)));
    }
    let mut node = Node::new(op, inputs).tolerance(1e-4);
    for (name, on) in [("transA", ta), ("transB", tb)] {
        if on {
            node = node.attr(name, 1i64);
        }
    }
    for name in ["alpha", "beta"] {
        if g.rng.chance(0.4) {
            node = node.attr(name, g.rng.pick(&[0.0f32, 0.5, 2.0]));
        }
    }
    Some((Some(a), node))
}

fn per_channel(g: &mut Gen, x: &Tensor, low: f64, high: f64) -> Slot {
    Slot::T(g.tensor_in(x.dtype(), &[x.shape()[1]], low, high))
}

fn batch_normalization(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 2..=5, &[DType::F32, DType::F64])?;
    let inputs = vec![
        Slot::X,
        per_channel(g, &x, -2.0, 2.0),
        per_channel(g, &x, -2.0, 2.0),
        per_channel(g, &x, -2.0, 2.0),
        per_channel(g, &x, 0.1, 2.0),
    ];
    let mut node = Node::new(op, inputs).tolerance(1e-4);
    if g.rng.chance(0.5) {
        node = node.attr("epsilon", 1e-2f32);
    }
    Some((Some(x), node))
}

fn instance_normalization(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = image(g, x, 1..=3)?;
    let inputs = vec![Slot::X, per_channel(g, &x, -2.0, 2.0), per_channel(g, &x, -2.0, 2.0)];
    Some((Some(x), Node::new(op, inputs).attr("epsilon", 1e-2f32).tolerance(1e-3)))
}

fn group_normalization(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = image(g, None, 1..=2)?;
    let c = x.shape()[1];
    let divisors: Vec<usize> = (1..=c).filter(|d| c.is_multiple_of(*d)).collect();
    let inputs = vec![Slot::X, per_channel(g, &x, -2.0, 2.0), per_channel(g, &x, -2.0, 2.0)];
    let node = Node::new(op, inputs).attr("num_groups", g.rng.pick(&divisors) as i64);
    Some((Some(x), node.attr("epsilon", 1e-2f32).tolerance(1e-3)))
}

fn lrn(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = image(g, x, 2..=2)?;
    let size = g.rng.pick(&[1i64, 3, 5]);
    let mut node = Node::new(op, vec![Slot::X]).attr("size", size);
    if g.rng.chance(0.5) {
        node = node.attr("alpha", 0.2f32).attr("beta", 0.5f32).attr("bias", 2.0f32);
    }
    Some((Some(x), node))
}

fn grid_sample(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let x = image(g, None, 2..=2)?;
    let shape = [x.shape()[0], g.positive(), g.positive(), 2];
    let grid = g.tensor_in(DType::F32, &shape, -1.4, 1.4);
    let modes: [&str; 3] =
        if opset >= 20 { ["linear", "nearest", "cubic"] } else { ["bilinear", "nearest", "bicubic"] };
    let mut node = Node::new(op, vec![Slot::X, Slot::T(grid)]).tolerance(1e-4).attr("mode", g.rng.pick(&modes));
    if g.rng.chance(0.7) {
        node = node.attr("padding_mode", g.rng.pick(&["zeros", "border", "reflection"]));
    }
    if g.rng.chance(0.5) {
        node = node.attr("align_corners", g.rng.between(0, 1));
    }
    Some((Some(x), node))
}

fn det(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let n = g.positive();
    let rank = g.rng.below(3);
    let mut shape = g.positive_shape(rank);
    shape.extend([n, n]);
    Some((Some(g.tensor(DType::F32, &shape)), Node::new(op, vec![Slot::X]).tolerance(1e-3)))
}

fn max_unpool(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (h, w) = (g.positive(), g.positive());
    let x = g.tensor(DType::F32, &[1, 1, h, w]);
    let places = g.rng.permutation(4 * h * w);
    let indices = places[..h * w].iter().map(|&i| i as i64).collect();
    let node = Node::new(op, vec![Slot::X, Slot::T(Tensor::of(&[1, 1, h, w], indices))]);
    Some((Some(x), node.attr("kernel_shape", vec![2i64, 2]).attr("strides", vec![2i64, 2])))
}

fn col2im(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (n, c) = (g.rng.below(2) + 1, g.positive());
    let (ih, iw) = (g.positive() + 2, g.positive() + 2);
    let (kh, kw) = (g.rng.below(2) + 1, g.rng.below(2) + 1);
    let (sh, sw) = (g.rng.below(2) + 1, g.rng.below(2) + 1);
    let p = g.rng.below(2);
    let blocks = |d: usize, k: usize, s: usize| (d + 2 * p - k) / s + 1;
    let x = g.tensor(DType::F32, &[n, c * kh * kw, blocks(ih, kh, sh) * blocks(iw, kw, sw)]);
    let inputs = vec![Slot::X, super::ints(vec![ih as i64, iw as i64]), super::ints(vec![kh as i64, kw as i64])];
    let node = Node::new(op, inputs).attr("strides", vec![sh as i64, sw as i64]).attr("pads", vec![p as i64; 4]);
    Some((Some(x), node))
}

fn roi_align(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let x = image(g, None, 2..=2)?;
    let n = g.positive();
    let mut rois = Vec::new();
    for _ in 0..n {
        let (x1, y1) = (g.rng.unit() * 3.0, g.rng.unit() * 3.0);
        rois.extend([
            x1 as f32,
            y1 as f32,
            (x1 + 0.5 + g.rng.unit() * 3.0) as f32,
            (y1 + 0.5 + g.rng.unit() * 3.0) as f32,
        ]);
    }
    let batch = g.ints(n, 0, x.shape()[0] as i64 - 1);
    let inputs = vec![Slot::X, Slot::T(Tensor::of(&[n, 4], rois)), Slot::T(Tensor::vector(batch))];
    let mut node =
        Node::new(op, inputs).attr("output_height", g.rng.between(1, 3)).attr("output_width", g.rng.between(1, 3));
    node = node.attr("sampling_ratio", g.rng.between(0, 2)).attr("mode", g.rng.pick(&["avg", "max"]));
    if opset >= 16 {
        node = node.attr("coordinate_transformation_mode", g.rng.pick(&["half_pixel", "output_half_pixel"]));
    }
    // Deviation of ONNX Runtime: its maximum is over the weighted corners, not over the interpolated samples.
    if node.attrs.str("mode") == Some("max") {
        return None;
    }
    Some((Some(x), node.attr("spatial_scale", 1.0f32).tolerance(1e-4)))
}

fn attention(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (batch, groups, share) = (g.positive(), g.rng.below(3) + 1, g.rng.below(2) + 1);
    let (q, k, size, v_size) = (g.positive(), g.positive(), g.positive(), g.positive());
    let heads = groups * share;
    let dtype = g.rng.pick(&[DType::F32, DType::F32, DType::F64]);
    // By heads, or with the heads beside each other.
    let flat = g.rng.chance(0.4);
    let shape = |heads: usize, len: usize, size: usize| {
        if flat { vec![batch, len, heads * size] } else { vec![batch, heads, len, size] }
    };
    let x = g.tensor(dtype, &shape(heads, q, size));
    let mut inputs = vec![Slot::X];
    inputs.extend([(k, size), (k, v_size)].map(|(len, size)| Slot::T(g.tensor(dtype, &shape(groups, len, size)))));
    let past = if g.rng.chance(0.3) { g.positive() } else { 0 };
    if g.rng.chance(0.4) {
        let lead = if g.rng.chance(0.5) { vec![] } else { vec![batch, 1] };
        let shape = [lead, vec![q, past + k]].concat();
        let kind = if g.rng.chance(0.5) { DType::Bool } else { dtype };
        let mut mask = g.tensor(kind, &shape);
        // Every query sees a key: what one that sees none gets is open.
        if let Ok(seen) = mask.slice_mut::<bool>() {
            seen.chunks_exact_mut(past + k).for_each(|row| row[0] = true);
        }
        inputs.push(Slot::T(mask));
    }
    if past > 0 {
        inputs.resize(4, Slot::Empty);
        inputs.extend([size, v_size].map(|size| Slot::T(g.tensor(dtype, &[batch, groups, past, size]))));
    }
    let mut node = Node::new(op, inputs).tolerance(1e-4);
    if flat {
        node = node.attr("q_num_heads", heads as i64).attr("kv_num_heads", groups as i64);
    }
    if past > 0 {
        node = node.outputs(3);
    }
    if g.rng.chance(0.4) {
        node = node.attr("is_causal", 1i64);
    }
    if g.rng.chance(0.3) {
        node = node.attr("scale", 0.4f32);
    }
    if g.rng.chance(0.3) {
        node = node.attr("softcap", 2.0f32);
    }
    Some((Some(x), node))
}
