//! Folds what scales and shifts channels into the weights next to it.
//!
//! - `Conv`, `ConvTranspose`, `Gemm` (and `MatMul` with a constant matrix, once it is a `Gemm`), then
//!   `BatchNormalization` in inference: scaled weights, another bias.
//! - The same, then `Mul`, `Div`, `Add` or `Sub` with a constant scalar or a constant per channel.
//! - `BatchNormalization`, then `Conv` without padding or `Gemm`: exact only because no zero is padded in between.
//!
//! Weights that others use are left as they are; the node gets weights of its own. Results differ by rounding: the
//! new weights are computed in 64 bits and rounded once.

use super::rewrite::wherever;
use super::{Ctx, Info, Pass, pattern};
use crate::error::Result;
use crate::ir::builder::Beside;
use crate::ir::{Attr, Graph, GraphId, Model, Names, NodeId, TensorRef, ValueId};
use crate::tensor::{Tensor, cast};
use pattern::{Match, Skip, because, require};

/// The pass.
pub const PASS: &dyn Pass = &FuseConvBatchNorm;

struct FuseConvBatchNorm;

impl Pass for FuseConvBatchNorm {
    fn info(&self) -> Info {
        Info { name: "fuse_conv_batch_norm", summary: "folds normalization and constant factors into weights" }
    }

    fn run(&self, model: &mut Model, ctx: &mut Ctx<'_>) -> Result<bool> {
        let find = |model: &Model, id, n| {
            behind(model, id, n).or_else(|skip| match skip {
                Skip::No => before(model, id, n),
                near => Err(near),
            })
        };
        wherever(model, ctx, self.info().name, find, |model, names, id, _, fused| apply(model, names, id, fused))
    }
}

/// Channel-wise `y = x * scale + shift`, one element for each channel, or one for all.
struct Affine {
    scale: Vec<f64>,
    shift: Vec<f64>,
}

impl Affine {
    fn scale(&self, channel: usize) -> f64 {
        self.scale[if self.scale.len() == 1 { 0 } else { channel }]
    }

    fn shift(&self, channel: usize) -> f64 {
        self.shift[if self.shift.len() == 1 { 0 } else { channel }]
    }
}

/// A weighted node with constant weights.
struct Weighted {
    node: NodeId,
    weight: Tensor,
    bias: Option<Tensor>,
    /// Factors of product and bias; 1 except for `Gemm`.
    alpha: f64,
    beta: f64,
    channels: usize,
}

/// What a match makes of a weighted node.
struct Fused {
    node: NodeId,
    weight: Tensor,
    /// `None` where the node had none and gets none.
    bias: Option<Vec<f64>>,
    /// `Gemm`: the attribute `beta` becomes 1.
    resets_beta: bool,
    /// The value that the node makes from now on, or reads from now on.
    output: Option<ValueId>,
    input: Option<ValueId>,
}

fn apply(model: &mut Model, names: &mut Names, id: GraphId, f: Fused) -> Result<()> {
    let bias = f.bias.map(|b| cast::from_f64s(f.weight.dtype(), &[b.len()], b)).transpose()?;
    let g = model.graph(id);
    let old_weight = g.input(f.node, 1);
    let old_bias = g.input(f.node, 2);
    let mut beside = Beside::before(model, names, id, f.node);
    if let Some(v) = old_weight {
        beside = beside.named_after(v);
    }
    let weight = beside.constant("fused", f.weight);
    let bias = bias.map(|b| match old_bias {
        Some(v) => beside.named_after(v).constant("fused", b),
        None => beside.constant("bias", b),
    });
    let g = model.graph_mut(id);
    g.set_input(f.node, 1, Some(weight));
    if bias.is_some() {
        g.set_input(f.node, 2, bias);
    }
    if f.resets_beta {
        g.node_mut(f.node).attrs.set("beta", Attr::Float(1.0));
    }
    if let Some(x) = f.input {
        g.set_input(f.node, 0, Some(x));
    }
    if let Some(y) = f.output {
        g.take_over(f.node, 0, y);
    }
    Ok(())
}

/// A node behind a weighted one.
fn behind(model: &Model, id: GraphId, n: NodeId) -> Match<Fused> {
    let g = model.graph(id);
    let (between, factors) = channel_wise(model, id, n)?;
    let producer = ["Conv", "ConvTranspose", "Gemm"].iter().find_map(|op| pattern::made_by(g, between, op).ok());
    let w = weighted(model, id, producer.ok_or(Skip::No)?)?;
    pattern::only_user(g, between)?;
    let affine = factors.affine(w.channels, &w)?;
    let out_axis = Layout::of(g, &w);
    let weight = rescale(&w.weight, |i| affine.scale(out_axis.output_channel(i)))?;
    let old = bias_values(&w)?;
    let bias = match old {
        None if affine.shift.iter().all(|&x| x == 0.0) => None,
        old => Some(
            (0..w.channels).map(|c| old.as_ref().map_or(0.0, |b| b[c]) * affine.scale(c) + affine.shift(c)).collect(),
        ),
    };
    Ok(Fused {
        node: w.node,
        weight,
        bias,
        resets_beta: w.beta != 1.0,
        output: Some(pattern::output(g, n)?),
        input: None,
    })
}

/// A `BatchNormalization` in front of a weighted node.
fn before(model: &Model, id: GraphId, n: NodeId) -> Match<Fused> {
    let g = model.graph(id);
    let node = g.node(n);
    require(node.is("Conv") || node.is("Gemm"))?;
    let normalized = pattern::input(g, n, 0)?;
    let norm = pattern::made_by(g, normalized, "BatchNormalization")?;
    let w = weighted(model, id, n)?;
    let affine = normalization(model, id, norm)?;
    pattern::only_user(g, normalized)?;
    let is_gemm = node.is("Gemm");
    if is_gemm {
        require(node.attrs.int("transA").unwrap_or(0) == 0)?;
    } else {
        let pads = node.attrs.ints("pads").is_none_or(|p| p.iter().all(|&p| p == 0));
        let auto = matches!(node.attrs.str("auto_pad").unwrap_or("NOTSET"), "NOTSET" | "VALID");
        if !pads || !auto {
            return because("the normalization in front of it cannot be folded in: it pads with zeros");
        }
    }
    let layout = Layout::of(g, &w);
    require(affine.scale.len() == layout.n_inputs)?;
    let weight = rescale(&w.weight, |i| affine.scale(layout.input_channel(i)))?;
    // The shift, too, passes through the weights.
    let mut bias = bias_values(&w)?.unwrap_or_else(|| vec![0.0; w.channels]);
    let old = w.weight.to_f64s().map_err(|_| Skip::No)?;
    for (i, x) in old.into_iter().enumerate() {
        bias[layout.output_channel(i)] += w.alpha * x * affine.shift(layout.input_channel(i));
    }
    let input = Some(pattern::input(g, norm, 0)?);
    Ok(Fused { node: n, weight, bias: Some(bias), resets_beta: w.beta != 1.0, output: None, input })
}

fn rescale(weight: &Tensor, factor: impl Fn(usize) -> f64) -> Match<Tensor> {
    let values = weight.to_f64s().map_err(|_| Skip::No)?;
    let values = values.into_iter().enumerate().map(|(i, x)| x * factor(i)).collect();
    cast::from_f64s(weight.dtype(), weight.shape(), values).map_err(|_| Skip::No)
}

fn weighted(model: &Model, id: GraphId, n: NodeId) -> Match<Weighted> {
    let g = model.graph(id);
    let node = g.node(n);
    let Ok(weight) = pattern::constant_input(model, id, n, 1) else { return because("its weights are not constant") };
    let bias = match g.input(n, 2) {
        None => None,
        Some(_) => match pattern::constant_input(model, id, n, 2) {
            Ok(b) => Some(b),
            Err(_) => return because("its bias is not constant"),
        },
    };
    require(weight.dtype().is_float())?;
    let shape = weight.shape();
    let is_gemm = node.is("Gemm");
    require(if is_gemm { shape.len() == 2 } else { shape.len() >= 3 } && !weight.is_empty())?;
    let group = usize::try_from(node.attrs.int("group").unwrap_or(1)).map_err(|_| Skip::No)?;
    let channels = match node.op_type.as_str() {
        "Conv" => shape[0],
        "ConvTranspose" => shape[1] * group,
        _ => shape[usize::from(node.attrs.int("transB").unwrap_or(0) == 0)],
    };
    require(group > 0 && (is_gemm || shape[0].is_multiple_of(group)))?;
    let factor = |name: &str| f64::from(if is_gemm { node.attrs.float(name).unwrap_or(1.0) } else { 1.0 });
    Ok(Weighted { node: n, weight, bias, alpha: factor("alpha"), beta: factor("beta"), channels })
}

/// The bias per channel, multiplied by `beta`; `None` when there is none.
fn bias_values(w: &Weighted) -> Match<Option<Vec<f64>>> {
    let Some(b) = &w.bias else { return Ok(None) };
    let values = b.to_f64s().map_err(|_| Skip::No)?;
    // A matrix of biases, one row for each row of the product, is none per channel.
    let is_row = b.shape().iter().rev().skip(1).all(|&d| d == 1);
    let values: Vec<_> = match values.len() {
        1 => vec![values[0]; w.channels],
        n if n == w.channels && is_row => values,
        _ => return because("its bias is not one per channel"),
    };
    Ok(Some(values.into_iter().map(|b| b * w.beta).collect()))
}

/// Which channels an element of the weights connects.
struct Layout {
    /// Elements for one step along the output axis, and along the input axis.
    strides: (usize, usize),
    sizes: (usize, usize),
    /// Elements of one group, output channels and input channels of one group.
    group: (usize, usize, usize),
    n_inputs: usize,
}

impl Layout {
    fn of(g: &Graph, w: &Weighted) -> Self {
        let node = g.node(w.node);
        let shape = w.weight.shape();
        let taps: usize = shape[2..].iter().product();
        let group = usize::try_from(node.attrs.int("group").unwrap_or(1)).unwrap_or(1).max(1);
        let by_output = (taps * shape[1], taps);
        let by_input = (taps, taps * shape[1]);
        let per_group = w.weight.len() / group;
        match node.op_type.as_str() {
            "Conv" => Layout {
                strides: by_output,
                sizes: (shape[0] / group, shape[1]),
                group: (per_group, shape[0] / group, shape[1]),
                n_inputs: shape[1] * group,
            },
            "ConvTranspose" => Layout {
                strides: by_input,
                sizes: (shape[1], shape[0] / group),
                group: (per_group, shape[1], shape[0] / group),
                n_inputs: shape[0],
            },
            _ if node.attrs.int("transB").unwrap_or(0) != 0 => Layout {
                strides: by_output,
                sizes: (shape[0], shape[1]),
                group: (w.weight.len(), 0, 0),
                n_inputs: shape[1],
            },
            _ => Layout {
                strides: by_input,
                sizes: (shape[1], shape[0]),
                group: (w.weight.len(), 0, 0),
                n_inputs: shape[0],
            },
        }
    }

    fn output_channel(&self, i: usize) -> usize {
        i / self.group.0 * self.group.1 + i % self.group.0 / self.strides.0 % self.sizes.0
    }

    fn input_channel(&self, i: usize) -> usize {
        i / self.group.0 * self.group.2 + i % self.group.0 / self.strides.1 % self.sizes.1
    }
}

/// What a node does to each channel of its input.
enum Factors {
    Normalization(Affine),
    /// A constant that multiplies (or divides) or is added (or subtracted).
    Constant {
        values: TensorRef,
        op: String,
    },
}

/// The input of a node that works channel by channel with constants, and what it does.
fn channel_wise(model: &Model, id: GraphId, n: NodeId) -> Match<(ValueId, Factors)> {
    let g = model.graph(id);
    let node = g.node(n);
    require(node.domain.is_onnx() && g.node_outputs(n).iter().flatten().next().is_some())?;
    match node.op_type.as_str() {
        "BatchNormalization" => Ok((pattern::input(g, n, 0)?, Factors::Normalization(normalization(model, id, n)?))),
        op @ ("Mul" | "Add" | "Div" | "Sub") => {
            let sides: &[usize] = if matches!(op, "Mul" | "Add") { &[1, 0] } else { &[1] };
            for &side in sides {
                if let Some(values) = pattern::constant(model, id, pattern::input(g, n, side)?) {
                    let factors = Factors::Constant { values: values.clone(), op: op.to_owned() };
                    return Ok((pattern::input(g, n, 1 - side)?, factors));
                }
            }
            Err(Skip::No)
        }
        _ => Err(Skip::No),
    }
}

/// `BatchNormalization` in inference as a factor and a shift per channel.
fn normalization(model: &Model, id: GraphId, n: NodeId) -> Match<Affine> {
    let g = model.graph(id);
    let node = g.node(n);
    let trains = node.attrs.int("training_mode").unwrap_or(0) != 0
        || node.attrs.int("spatial").unwrap_or(1) == 0
        || g.node_outputs(n).iter().skip(1).flatten().any(|&v| g.n_uses(v) > 0);
    if trains {
        return because("it is in training mode or normalizes element by element");
    }
    let mut parts = Vec::new();
    for slot in 1..5 {
        let Ok(t) = pattern::constant_input(model, id, n, slot) else {
            return because(format!("its input {slot} is not constant"));
        };
        parts.push(t.to_f64s().map_err(|_| Skip::No)?);
    }
    let [scale, bias, mean, var] = &parts[..] else { return Err(Skip::No) };
    let n = scale.len();
    require(n > 0 && parts.iter().all(|p| p.len() == n))?;
    let epsilon = f64::from(node.attrs.float("epsilon").unwrap_or(1e-5));
    let factor: Vec<f64> = scale.iter().zip(var).map(|(s, v)| s / (v + epsilon).sqrt()).collect();
    let shift = (0..n).map(|c| bias[c] - mean[c] * factor[c]).collect();
    Ok(Affine { scale: factor, shift })
}

impl Factors {
    fn affine(self, channels: usize, w: &Weighted) -> Match<Affine> {
        let (values, op) = match self {
            Factors::Normalization(a) => {
                require(a.scale.len() == channels)?;
                return Ok(a);
            }
            Factors::Constant { values, op } => (values, op),
        };
        // The output has the weight's rank; a constant of higher rank would broadcast it.
        let (rank, shape) = (w.weight.shape().len(), values.shape());
        require(shape.len() <= rank)?;
        let is_per_channel =
            shape.iter().rev().enumerate().all(|(i, &d)| d == 1 || (rank - 1 - i == 1 && d == channels));
        if !is_per_channel {
            return because("the constant behind it is not one per channel");
        }
        let Ok(v) = values.get().and_then(Tensor::to_f64s) else { return because("the constant cannot be read") };
        Ok(match op.as_str() {
            "Mul" => Affine { shift: vec![0.0], scale: v },
            "Div" => {
                if v.contains(&0.0) {
                    return because("it is divided by 0");
                }
                Affine { shift: vec![0.0], scale: v.into_iter().map(|x| 1.0 / x).collect() }
            }
            "Add" => Affine { scale: vec![1.0], shift: v },
            _ => Affine { scale: vec![1.0], shift: v.into_iter().map(|x| -x).collect() },
        })
    }
}
