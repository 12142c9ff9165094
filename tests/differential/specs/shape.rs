//! Operators that move, select and make elements.

use onnx_quant::ir::{Attr, TensorRef};
use onnx_quant::tensor::{DType, Tensor};

use super::{Made, Spec, ints, link, spec};
use crate::graph::{Node, Slot};
use crate::random::{ANY, Gen, NUMBERS, from_f64s};

pub(super) const SPECS: &[Spec] = &[
    link("Transpose", &[7, 13, 21], transpose),
    link("Reshape", &[7, 13, 14, 21], reshape),
    link("Flatten", &[9, 11, 13], flatten),
    link("Squeeze", &[11, 13, 21], squeeze),
    link("Unsqueeze", &[11, 13, 21], unsqueeze),
    link("Concat", &[7, 11, 13], concat),
    spec("Split", &[11, 13, 18], split),
    link("Slice", &[9, 10, 11, 13], slice),
    link("Gather", &[7, 11, 13], gather),
    spec("GatherElements", &[11, 13], gather_elements),
    spec("GatherND", &[11, 12, 13], gather_nd),
    spec("ScatterElements", &[11, 13, 16, 18], scatter_elements),
    spec("ScatterND", &[11, 13, 16, 18], scatter_nd),
    link("Pad", &[7, 11, 13, 18, 19, 21], pad),
    link("Tile", &[7, 13], tile),
    link("Expand", &[8, 13], expand),
    spec("Shape", &[7, 13, 15, 19], shape),
    spec("Size", &[7, 13], size),
    spec("ConstantOfShape", &[9, 20], constant_of_shape),
    spec("Range", &[11], range),
    spec("EyeLike", &[9], eye_like),
    spec("OneHot", &[9, 11], one_hot),
    spec("NonZero", &[9, 13], non_zero),
    spec("Compress", &[9, 11], compress),
    spec("Trilu", &[14], trilu),
    link("DepthToSpace", &[7, 11, 13], depth_to_space),
    link("SpaceToDepth", &[7, 13], space_to_depth),
    spec("ReverseSequence", &[10], reverse_sequence),
    spec("Unique", &[11], unique),
    spec("CenterCropPad", &[18], center_crop_pad),
    link("Resize", &[10, 11, 13, 18, 19], resize),
    spec("Upsample", &[7, 9], upsample),
    spec("Einsum", &[12], einsum),
    spec("NonMaxSuppression", &[10, 11], nms),
];

fn transpose(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=5, ANY)?;
    let mut node = Node::new(op, vec![Slot::X]);
    if g.rng.chance(0.8) && x.rank() > 0 {
        node = node.attr("perm", g.rng.permutation(x.rank()).into_iter().map(|a| a as i64).collect::<Vec<_>>());
    }
    Some((Some(x), node))
}

fn reshape(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, ANY)?;
    let mut target: Vec<i64> = x.shape().iter().map(|&d| d as i64).collect();
    // Join neighbours, then split a size, then leave one open.
    while target.len() > 1 && g.rng.chance(0.5) {
        let i = g.rng.below(target.len() - 1);
        let d = target.remove(i + 1);
        target[i] *= d;
    }
    if g.rng.chance(0.5) {
        let i = g.rng.below(target.len() + 1);
        target.insert(i, 1);
    }
    if let Some(i) = target.iter().position(|&d| d > 1 && d % 2 == 0)
        && g.rng.chance(0.4)
    {
        target[i] /= 2;
        target.insert(i, 2);
    }
    let zero_allowed = opset >= 14 && x.is_empty();
    if !target.is_empty() && g.rng.chance(0.4) && !x.is_empty() {
        let i = g.rng.below(target.len());
        target[i] = -1;
    }
    if !zero_allowed && x.is_empty() {
        return None;
    }
    let mut node = Node::new(op, vec![Slot::X, ints(target)]);
    if zero_allowed {
        node = node.attr("allowzero", 1i64);
    }
    Some((Some(x), node))
}

fn flatten(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=4, ANY)?;
    let mut node = Node::new(op, vec![Slot::X]);
    if g.rng.chance(0.7) || x.rank() == 0 {
        let low = if opset >= 11 { -(x.rank() as i64) } else { 0 };
        node = node.attr("axis", g.rng.between(low, x.rank() as i64));
    }
    Some((Some(x), node))
}

/// Axes as an attribute or, from an opset on, as an input.
fn with_axes(node: Node, axes: Vec<i64>, as_input: bool) -> Node {
    if as_input {
        let mut node = node;
        node.inputs.push(ints(axes));
        node
    } else {
        node.attr("axes", axes)
    }
}

fn squeeze(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = match x {
        Some(x) => x.clone(),
        None => {
            let rank = g.rng.below(5);
            let shape: Vec<usize> = (0..rank).map(|_| if g.rng.chance(0.5) { 1 } else { g.dim() }).collect();
            let dtype = g.rng.pick(ANY);
            g.tensor(dtype, &shape)
        }
    };
    let ones: Vec<i64> = (0..x.rank()).filter(|&i| x.shape()[i] == 1).map(|i| i as i64).collect();
    let mut node = Node::new(op, vec![Slot::X]);
    if !ones.is_empty() && g.rng.chance(0.7) {
        let axis = g.rng.pick(&ones);
        let axis = if g.rng.chance(0.5) { axis - x.rank() as i64 } else { axis };
        node = with_axes(node, vec![axis], opset >= 13);
    }
    Some((Some(x), node))
}

fn unsqueeze(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=3, ANY)?;
    let n = g.rng.below(2) + 1;
    let rank = x.rank() + n;
    let p = g.rng.permutation(rank);
    let axes = p[..n].iter().map(|&a| if g.rng.chance(0.4) { a as i64 - rank as i64 } else { a as i64 }).collect();
    Some((Some(x), with_axes(Node::new(op, vec![Slot::X]), axes, opset >= 13)))
}

fn concat(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 1..=4, ANY)?;
    let axis = g.axis(x.rank());
    let at = axis.rem_euclid(x.rank() as i64) as usize;
    let mut inputs = vec![Slot::X];
    for _ in 0..g.rng.below(3) {
        let mut shape = x.shape().to_vec();
        shape[at] = g.dim();
        inputs.push(Slot::T(g.tensor(x.dtype(), &shape)));
    }
    let i = g.rng.below(inputs.len());
    inputs.swap(0, i);
    Some((Some(x), Node::new(op, inputs).attr("axis", if opset < 11 { at as i64 } else { axis })))
}

fn split(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 1..=4, ANY)?;
    let axis = g.axis(x.rank());
    let size = x.shape()[axis.rem_euclid(x.rank() as i64) as usize];
    let n = g.rng.below(3) + 1;
    let mut node = Node::new(op, vec![Slot::X]).outputs(n).attr("axis", axis);
    if g.rng.chance(0.6) {
        let mut rest = size;
        let mut sizes = Vec::new();
        for i in 0..n {
            let s = if i + 1 == n { rest } else { g.rng.below(rest + 1) };
            sizes.push(s as i64);
            rest -= s;
        }
        if opset < 13 {
            node = node.attr("split", sizes);
        } else {
            node.inputs.push(ints(sizes));
        }
    } else if opset >= 18 {
        if size.div_ceil(n) * (n - 1) > size {
            return None;
        }
        node = node.attr("num_outputs", n as i64);
    } else if size % n != 0 {
        return None;
    }
    Some((Some(x), node))
}

fn slice(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 1..=4, ANY)?;
    let mut axes = g.axes(x.rank());
    if axes.is_empty() {
        axes.push(0);
    }
    let n = axes.len();
    let bound = |g: &mut Gen| {
        if g.rng.chance(0.15) { g.rng.pick(&[i64::MAX, i64::MIN, 1000, -1000]) } else { g.rng.between(-6, 6) }
    };
    let starts: Vec<i64> = (0..n).map(|_| bound(g)).collect();
    let mut ends: Vec<i64> = (0..n).map(|_| bound(g)).collect();
    if opset < 10 {
        let axes: Vec<i64> = axes.iter().map(|a| a.rem_euclid(x.rank() as i64)).collect();
        let node = Node::new(op, vec![Slot::X]).attr("starts", starts).attr("ends", ends).attr("axes", axes);
        return Some((Some(x), node));
    }
    let steps: Vec<i64> = (0..n).map(|_| g.rng.pick(&[1, 1, 2, 3, -1, -2])).collect();
    let with_steps = g.rng.chance(0.6);
    for (end, step) in ends.iter_mut().zip(&steps) {
        // ONNX Runtime takes the largest number for the far end in either direction; to NumPy it is nothing backwards.
        if with_steps && *step < 0 && *end == i64::MAX {
            *end = i64::MIN;
        }
    }
    let narrow = g.rng.chance(0.3) && starts.iter().chain(&ends).all(|v| i32::try_from(*v).is_ok());
    let list = |v: Vec<i64>| {
        if narrow {
            Slot::T(Tensor::vector(v.into_iter().map(|v| v as i32).collect()))
        } else {
            Slot::T(Tensor::vector(v))
        }
    };
    let mut inputs = vec![Slot::X, list(starts), list(ends), list(axes)];
    if with_steps {
        inputs.push(list(steps));
    }
    Some((Some(x), Node::new(op, inputs)))
}

/// Indices into an axis of this size, some counted from the end when that is allowed.
fn indices(g: &mut Gen, shape: &[usize], size: usize, negative: bool) -> Option<Tensor> {
    let n: usize = shape.iter().product();
    if size == 0 && n > 0 {
        return None;
    }
    let low = if negative { -(size as i64) } else { 0 };
    let v = g.ints(n, low, size as i64 - 1);
    Some(if g.rng.chance(0.3) {
        Tensor::of(shape, v.into_iter().map(|v| v as i32).collect())
    } else {
        Tensor::of(shape, v)
    })
}

fn gather(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 1..=4, ANY)?;
    let axis = g.axis(x.rank());
    let at = axis.rem_euclid(x.rank() as i64) as usize;
    let rank = g.rng.below(3);
    let shape = g.shape(rank);
    let i = indices(g, &shape, x.shape()[at], opset >= 11)?;
    Some((Some(x), Node::new(op, vec![Slot::X, Slot::T(i)]).attr("axis", if opset < 11 { at as i64 } else { axis })))
}

fn gather_elements(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 1..=4, ANY)?;
    let axis = g.axis(x.rank());
    let at = axis.rem_euclid(x.rank() as i64) as usize;
    let mut shape: Vec<usize> = x.shape().iter().map(|&d| g.rng.below(d + 1)).collect();
    shape[at] = g.dim();
    let i = indices(g, &shape, x.shape()[at], true)?;
    Some((Some(x), Node::new(op, vec![Slot::X, Slot::T(i)]).attr("axis", axis)))
}

fn gather_nd(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 1..=4, ANY)?;
    let batch = if opset >= 12 { g.rng.below(x.rank().min(2)) } else { 0 };
    let depth = g.rng.below(x.rank() - batch) + 1;
    let rows = g.positive_shape(g.rng.clone().below(2) + 1);
    if x.is_empty() {
        return None;
    }
    let mut shape = x.shape()[..batch].to_vec();
    shape.extend(rows);
    let n: usize = shape.iter().product();
    let mut v = Vec::new();
    for _ in 0..n {
        for d in 0..depth {
            let size = x.shape()[batch + d] as i64;
            v.push(g.rng.between(-size, size - 1));
        }
    }
    shape.push(depth);
    let mut node = Node::new(op, vec![Slot::X, Slot::T(Tensor::of(&shape, v))]);
    if batch > 0 {
        node = node.attr("batch_dims", batch as i64);
    }
    Some((Some(x), node))
}

fn reduction(g: &mut Gen, node: Node, opset: i64, unique: bool) -> Node {
    let names: &[&str] = match opset {
        18.. => &["none", "add", "mul", "min", "max"],
        16.. => &["none", "add", "mul"],
        _ => return node,
    };
    let name = g.rng.pick(names);
    // Without a reduction the order of equal indices is open.
    if name == "none" && !unique { node.attr("reduction", "add") } else { node.attr("reduction", name) }
}

fn scatter_elements(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 1..=3, if opset >= 16 { NUMBERS } else { ANY })?;
    let axis = g.axis(x.rank());
    let at = axis.rem_euclid(x.rank() as i64) as usize;
    let mut shape: Vec<usize> = x.shape().iter().map(|&d| g.rng.below(d + 1)).collect();
    let size = x.shape()[at];
    let unique = opset < 16 || g.rng.chance(0.5);
    if unique {
        shape[at] = 1;
    }
    let i = indices(g, &shape, size, true)?;
    let updates = g.tensor(x.dtype(), &shape);
    let node = Node::new(op, vec![Slot::X, Slot::T(i), Slot::T(updates)]).attr("axis", axis);
    let node = reduction(g, node, opset, unique);
    Some((Some(x), node))
}

fn scatter_nd(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 1..=3, if opset >= 16 { NUMBERS } else { ANY })?;
    if x.is_empty() {
        return None;
    }
    let depth = g.rng.below(x.rank()) + 1;
    // Different rows along the first axis, so that no element is written twice.
    let n = g.rng.below(x.shape()[0]) + 1;
    let rows = g.rng.permutation(x.shape()[0]);
    let mut v = Vec::new();
    for &row in &rows[..n] {
        v.push(if g.rng.chance(0.3) { row as i64 - x.shape()[0] as i64 } else { row as i64 });
        for d in 1..depth {
            v.push(g.rng.below(x.shape()[d]) as i64);
        }
    }
    let mut shape = vec![n];
    shape.extend(&x.shape()[depth..]);
    let updates = g.tensor(x.dtype(), &shape);
    let node = Node::new(op, vec![Slot::X, Slot::T(Tensor::of(&[n, depth], v)), Slot::T(updates)]);
    let node = reduction(g, node, opset, true);
    Some((Some(x), node))
}

fn pad(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let kinds = if opset < 11 {
        &[DType::F32, DType::F64][..]
    } else {
        &[DType::F32, DType::F64, DType::I32, DType::I64, DType::I8, DType::U8, DType::Bool]
    };
    let x = g.x(x, 1..=4, kinds)?;
    let modes: &[&str] =
        if opset >= 19 { &["constant", "reflect", "edge", "wrap"] } else { &["constant", "reflect", "edge"] };
    let mode = g.rng.pick(modes);
    let axes = if opset >= 18 && g.rng.chance(0.4) { Some(g.axes(x.rank())) } else { None };
    let padded: Vec<usize> = match &axes {
        Some(axes) => axes.iter().map(|a| a.rem_euclid(x.rank() as i64) as usize).collect(),
        None => (0..x.rank()).collect(),
    };
    if mode != "constant" && x.is_empty() {
        return None;
    }
    let mut pads = Vec::new();
    for _ in 0..2 {
        for &a in &padded {
            let d = x.shape()[a] as i64;
            pads.push(match mode {
                "constant" => g.rng.between(-(d / 3), 3),
                "reflect" => g.rng.between(0, (d - 1).max(0)),
                "wrap" => g.rng.between(0, d),
                _ => g.rng.between(0, 3),
            });
        }
    }
    let value = g.tensor(x.dtype(), &[]);
    if opset < 11 {
        let value = value.to_f64().unwrap_or(0.0) as f32;
        return Some((
            Some(x),
            Node::new(op, vec![Slot::X]).attr("mode", mode).attr("pads", pads).attr("value", value),
        ));
    }
    let mut inputs = vec![Slot::X, ints(pads)];
    if mode == "constant" && g.rng.chance(0.6) {
        inputs.push(Slot::T(value));
    } else if axes.is_some() {
        inputs.push(Slot::Empty);
    }
    if let Some(axes) = axes {
        if inputs.len() < 3 {
            inputs.push(Slot::Empty);
        }
        inputs.push(ints(axes));
    }
    Some((Some(x), Node::new(op, inputs).attr("mode", mode)))
}

fn tile(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 1..=3, ANY)?;
    let repeats = (0..x.rank()).map(|_| g.rng.pick(&[1, 1, 2, 3, 0])).collect();
    Some((Some(x), Node::new(op, vec![Slot::X, ints(repeats)])))
}

fn expand(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let x = g.x(x, 0..=3, ANY)?;
    let shape = g.broadcastable(x.shape()).into_iter().map(|d| d as i64).collect();
    Some((Some(x), Node::new(op, vec![Slot::X, ints(shape)])))
}

fn shape(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 0..=5, ANY)?;
    let mut node = Node::new(op, vec![Slot::X]);
    if opset >= 15 {
        for name in ["start", "end"] {
            if g.rng.chance(0.5) {
                node = node.attr(name, g.rng.between(-7, 7));
            }
        }
    }
    Some((Some(x), node))
}

fn size(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 0..=5, ANY)?;
    Some((Some(x), Node::new(op, vec![Slot::X])))
}

fn constant_of_shape(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let rank = g.rng.below(4);
    let shape = g.shape(rank).into_iter().map(|d| d as i64).collect();
    let mut node = Node::new(op, vec![ints(shape)]);
    if g.rng.chance(0.7) {
        let dtype = g.rng.pick(ANY);
        let value = g.tensor(dtype, &[1]);
        node = node.attr("value", Attr::Tensor(TensorRef::new(value)));
    }
    Some((None, node))
}

fn range(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let dtype = g.rng.pick(&[DType::F32, DType::F64, DType::I32, DType::I64, DType::I16]);
    let step = g.rng.pick(&[1.0, 2.0, 3.0, -1.0, -2.0, 0.5]);
    let step = if dtype.is_float() { step } else { f64::max(1.0, f64::abs(step)) * f64::signum(step) };
    let start = g.rng.between(-5, 5) as f64;
    let limit = start + g.rng.between(-3, 10) as f64 * step + if dtype.is_float() { 0.25 } else { 0.0 };
    let one = |v: f64| Slot::T(from_f64s(dtype, &[], &[v], 0));
    Some((None, Node::new(op, vec![one(start), one(limit), one(step)])))
}

fn eye_like(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 2..=2, &[DType::F32, DType::F64, DType::I32, DType::I64, DType::U64])?;
    let mut node = Node::new(op, vec![Slot::X]);
    if g.rng.chance(0.5) {
        node = node.attr("k", g.rng.between(-4, 4));
    }
    if g.rng.chance(0.5) {
        node = node.attr("dtype", i64::from(g.rng.pick(&[DType::F32, DType::I32, DType::I64, DType::F64]).code()));
    }
    Some((Some(x), node))
}

fn one_hot(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let rank = g.rng.below(3) + 1;
    let shape = g.shape(rank);
    let depth = g.rng.between(1, 6);
    // Indices out of range give a row that is all off.
    let low = if opset >= 11 { -depth - 1 } else { 0 };
    let v = g.ints(shape.iter().product(), low, depth);
    let x = Tensor::of(&shape, v);
    let dtype = g.rng.pick(&[DType::F32, DType::I64, DType::I32]);
    let values = from_f64s(dtype, &[2], &[2.0, 5.0], 0);
    let depth = Tensor::vector(vec![depth]);
    let mut node = Node::new(op, vec![Slot::X, Slot::T(depth), Slot::T(values)]);
    if g.rng.chance(0.7) {
        node = node.attr("axis", g.rng.between(-(shape.len() as i64) - 1, shape.len() as i64));
    }
    Some((Some(x), node))
}

fn non_zero(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (rank, dtype) = (g.rng.below(4) + 1, g.rng.pick(&[DType::F32, DType::I32, DType::I64, DType::U8, DType::Bool]));
    let shape = g.shape(rank);
    let v: Vec<f64> = (0..shape.iter().product::<usize>()).map(|_| g.rng.below(2) as f64).collect();
    let bits = g.rng.bits();
    Some((Some(from_f64s(dtype, &shape, &v, bits)), Node::new(op, vec![Slot::X])))
}

fn compress(g: &mut Gen, op: &'static str, opset: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 1..=4, ANY)?;
    let axis = g.axis(x.rank());
    let at = axis.rem_euclid(x.rank() as i64) as usize;
    let flat = g.rng.chance(0.4);
    let n = if flat { x.len() } else { x.shape()[at] };
    let n = g.rng.below(n + 1);
    let condition = g.tensor(DType::Bool, &[n]);
    let mut node = Node::new(op, vec![Slot::X, Slot::T(condition)]);
    if !flat {
        node = node.attr("axis", if opset < 11 { at as i64 } else { axis });
    }
    Some((Some(x), node))
}

fn trilu(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 2..=4, &[DType::F32, DType::F64, DType::I64, DType::Bool])?;
    let mut inputs = vec![Slot::X];
    if g.rng.chance(0.7) {
        inputs.push(Slot::T(Tensor::scalar(g.rng.between(-6, 6))));
    }
    let mut node = Node::new(op, inputs);
    if g.rng.chance(0.6) {
        node = node.attr("upper", g.rng.between(0, 1));
    }
    Some((Some(x), node))
}

fn depth_to_space(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let b = g.rng.below(2) + 2;
    let shape = [g.positive(), g.positive() * b * b, g.dim(), g.dim()];
    let x = match x {
        Some(x) if x.rank() == 4 && x.shape()[1] % (b * b) == 0 => x.clone(),
        Some(_) => return None,
        None => g.tensor(DType::F32, &shape),
    };
    let mut node = Node::new(op, vec![Slot::X]).attr("blocksize", b as i64);
    if opset >= 11 && g.rng.chance(0.6) {
        node = node.attr("mode", g.rng.pick(&["DCR", "CRD"]));
    }
    Some((Some(x), node))
}

fn space_to_depth(g: &mut Gen, op: &'static str, _: i64, x: Option<&Tensor>) -> Made {
    let b = g.rng.below(2) + 2;
    let shape = [g.positive(), g.positive(), g.dim() * b, g.dim() * b];
    let x = match x {
        Some(x) if x.rank() == 4 && x.shape()[2] % b == 0 && x.shape()[3] % b == 0 => x.clone(),
        Some(_) => return None,
        None => g.tensor(DType::F32, &shape),
    };
    Some((Some(x), Node::new(op, vec![Slot::X]).attr("blocksize", b as i64)))
}

fn reverse_sequence(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let rank = g.rng.below(3) + 2;
    let shape = g.positive_shape(rank);
    let dtype = g.rng.pick(ANY);
    let x = g.tensor(dtype, &shape);
    let (time, batch) = g.rng.pick(&[(0, 1), (1, 0)]);
    let v = g.ints(shape[batch], 1, shape[time] as i64);
    let node = Node::new(op, vec![Slot::X, Slot::T(Tensor::vector(v))]);
    Some((Some(x), node.attr("time_axis", time as i64).attr("batch_axis", batch as i64)))
}

fn unique(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (rank, dtype) = (g.rng.below(3) + 1, g.rng.pick(&[DType::F32, DType::I64, DType::F64, DType::I8]));
    let shape = g.positive_shape(rank);
    let v: Vec<f64> = (0..shape.iter().product::<usize>()).map(|_| g.rng.below(3) as f64).collect();
    let mut node = Node::new(op, vec![Slot::X]).outputs(4);
    if g.rng.chance(0.5) {
        node = node.attr("axis", g.axis(shape.len()));
    }
    if g.rng.chance(0.6) {
        node = node.attr("sorted", g.rng.between(0, 1));
    }
    Some((Some(from_f64s(dtype, &shape, &v, 0)), node))
}

fn center_crop_pad(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let x = g.x(None, 1..=4, &[DType::F32, DType::I32])?;
    let target = (0..x.rank()).map(|_| g.rng.between(1, 7)).collect();
    Some((Some(x), Node::new(op, vec![Slot::X, ints(target)])))
}

fn resize(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let shape = g.positive_shape(4);
    let x = match x {
        Some(x) if x.rank() == 4 && !x.is_empty() => x.clone(),
        Some(_) => return None,
        None => g.tensor(DType::F32, &shape),
    };
    let scales: Vec<f32> =
        vec![1.0, 1.0, g.rng.pick(&[0.5, 0.6, 1.0, 1.5, 2.0, 3.0]), g.rng.pick(&[0.5, 0.7, 1.0, 2.0, 2.5])];
    if opset < 11 {
        let mode = g.rng.pick(&["nearest", "linear"]);
        let node = Node::new(op, vec![Slot::X, Slot::Const(Tensor::vector(scales))]).attr("mode", mode);
        return Some((Some(x), node));
    }
    let mode = g.rng.pick(&["nearest", "linear", "cubic"]);
    let ctm: &[&str] = &["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"];
    let by_sizes = g.rng.chance(0.4);
    let inputs = if by_sizes {
        let mut sizes: Vec<i64> = x.shape().iter().map(|&d| d as i64).collect();
        sizes[2] = g.rng.between(1, 9);
        sizes[3] = g.rng.between(1, 9);
        let roi = Slot::Const(Tensor::vector(Vec::<f32>::new()));
        let none = Slot::Const(Tensor::vector(Vec::<f32>::new()));
        if opset < 13 {
            vec![Slot::X, roi, none, ints(sizes)]
        } else {
            vec![Slot::X, Slot::Empty, Slot::Empty, ints(sizes)]
        }
    } else {
        let roi = if opset < 13 { Slot::Const(Tensor::vector(Vec::<f32>::new())) } else { Slot::Empty };
        vec![Slot::X, roi, Slot::Const(Tensor::vector(scales))]
    };
    let mut node = Node::new(op, inputs).attr("mode", mode).attr("coordinate_transformation_mode", g.rng.pick(ctm));
    if mode == "nearest" {
        let modes = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"];
        node = node.attr("nearest_mode", g.rng.pick(&modes));
    }
    if mode == "cubic" && g.rng.chance(0.5) {
        node = node.attr("cubic_coeff_a", -0.5f32).attr("exclude_outside", g.rng.between(0, 1));
    }
    if opset >= 18 && mode != "nearest" && g.rng.chance(0.3) {
        node = node.attr("antialias", 1i64);
    }
    Some((Some(x), node.tolerance(1e-4)))
}

fn upsample(g: &mut Gen, op: &'static str, opset: i64, x: Option<&Tensor>) -> Made {
    let shape = g.positive_shape(4);
    let x = match x {
        Some(x) if x.rank() == 4 && !x.is_empty() => x.clone(),
        Some(_) => return None,
        None => g.tensor(DType::F32, &shape),
    };
    let scales: Vec<f32> = vec![1.0, 1.0, g.rng.pick(&[1.0, 1.5, 2.0, 3.0]), g.rng.pick(&[1.0, 2.0, 2.5])];
    let mode = g.rng.pick(&["nearest", "linear"]);
    let node = if opset < 9 {
        Node::new(op, vec![Slot::X]).attr("scales", scales)
    } else {
        Node::new(op, vec![Slot::X, Slot::Const(Tensor::vector(scales))])
    };
    Some((Some(x), node.attr("mode", mode)))
}

fn einsum(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    const EQUATIONS: &[&str] = &[
        "ij,jk->ik",
        "ij->ji",
        "ij->",
        "ij->i",
        "ii->i",
        "ii",
        "bij,bjk->bik",
        "bij,bkj->bik",
        "i,j->ij",
        "ij,ij->ij",
        "ij,j",
        "...ij,...jk->...ik",
        "b...,b...->b...",
        "abc,cd->abd",
        "bhid,bhjd->bhij",
        "ij,kj,kl->il",
        "i,i->",
        "ijj->i",
        "abcd->acbd",
        "...->...",
        "i...->...i",
    ];
    let equation = g.rng.pick(EQUATIONS);
    let dtype = g.rng.pick(&[DType::F32, DType::F32, DType::F64, DType::I64]);
    let mut sizes = std::collections::BTreeMap::new();
    let terms = equation.split("->").next().unwrap();
    let mut tensors = Vec::new();
    let batch = g.positive_shape(2);
    for term in terms.split(',') {
        let mut shape = Vec::new();
        let mut rest = term;
        while let Some(c) = rest.chars().next() {
            if let Some(r) = rest.strip_prefix("...") {
                shape.extend(&batch);
                rest = r;
            } else {
                let size = *sizes.entry(c).or_insert_with(|| g.dim());
                shape.push(size);
                rest = &rest[1..];
            }
        }
        tensors.push(g.tensor(dtype, &shape));
    }
    let x = tensors.remove(0);
    let inputs = std::iter::once(Slot::X).chain(tensors.into_iter().map(Slot::T)).collect();
    Some((Some(x), Node::new(op, inputs).attr("equation", equation).tolerance(1e-4)))
}

fn nms(g: &mut Gen, op: &'static str, _: i64, _: Option<&Tensor>) -> Made {
    let (batch, classes, n) = (g.positive().min(2), g.positive().min(3), g.positive() + 1);
    let mut boxes = Vec::new();
    for _ in 0..batch * n {
        let (y, x, h, w) = (g.rng.unit(), g.rng.unit(), g.rng.unit() + 0.1, g.rng.unit() + 0.1);
        boxes.extend([y, x, y + h, x + w]);
    }
    let boxes = from_f64s(DType::F32, &[batch, n, 4], &boxes, 0);
    let scores = g.tensor_in(DType::F32, &[batch, classes, n], 0.0, 1.0);
    let mut inputs = vec![Slot::X, Slot::T(scores), Slot::Const(Tensor::vector(vec![g.rng.between(0, 4)]))];
    if g.rng.chance(0.8) {
        inputs.push(Slot::Const(Tensor::vector(vec![g.rng.unit() as f32])));
        if g.rng.chance(0.6) {
            inputs.push(Slot::Const(Tensor::vector(vec![g.rng.unit() as f32 * 0.5])));
        }
    }
    let mut node = Node::new(op, inputs);
    if g.rng.chance(0.4) {
        node = node.attr("center_point_box", g.rng.between(0, 1));
    }
    Some((Some(boxes), node))
}
