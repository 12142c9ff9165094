//! What a target refuses, runs in float, or computes slowly; the facts are in the target's table.

use super::view::View;
use super::{Find, Found, Rule, Severity, rule};
use crate::error::Location;
use crate::ir::{Def, Dim, NodeId};
use crate::ops::{QuantRule, WeightAxis, quant_rule};
use crate::quant::target::{BiasType, OutputNeed, Row, Target};
use crate::tensor::DType;

use Find::Target as On;
use Severity::{Error, Warning};

/// Rules of targets.
pub(super) const RULES: &[Rule] = &[
    rule("opset-too-low", Warning, "the opset is at least what the target's scheme needs", On(opset_too_low)),
    rule("shape-not-fixed", Warning, "inputs have fixed shapes where the target needs them", On(shape_not_fixed)),
    rule("form-not-supported", Error, "operators with quantized tensors are known to the target", On(form)),
    rule("activation-type", Warning, "activations have a type that the target runs", On(activation_type)),
    rule("activation-zero-point", Warning, "zero points of activations are what the target runs", On(activation_zero)),
    rule("activation-per-channel", Warning, "activations have one scale", On(activation_per_channel)),
    rule("weight-type", Warning, "weights have a type that the target runs", On(weight_type)),
    rule("weight-zero-point", Warning, "zero points of weights are what the target runs", On(weight_zero)),
    rule("weight-per-channel", Warning, "scales per channel only where the target runs them", On(weight_per_channel)),
    rule("weight-saturates", Warning, "weights keep to 7 bits where products saturate", On(weight_saturates)),
    rule("mixed-sign", Warning, "no unsigned weight meets a signed activation", On(mixed_sign)),
    rule("bias-form", Warning, "biases have a form that the target takes", On(bias_form)),
    rule("zero-point-missing", Warning, "zero points are written out where fusion needs them", On(zero_missing)),
    rule("weight-dequantized-every-run", Warning, "every stored weight is read by an integer kernel", On(every_run)),
    rule("no-integer-kernel", Warning, "operators between quantized tensors have integer kernels", On(no_kernel)),
    rule("input-not-quantized", Warning, "all data of a quantized operator is quantized", On(input_not_quantized)),
    rule("output-not-quantized", Warning, "a quantized operator's output is quantized", On(output_not_quantized)),
    rule(
        "output-read-as-float",
        Warning,
        "only one QuantizeLinear reads a quantized operator's output",
        On(read_as_float),
    ),
    rule("bound-not-absorbed", Warning, "Relu vanishes into the zero point behind it", On(bound_not_absorbed)),
    rule("fused-branch-quantized", Warning, "what an addition is fused with stays float", On(branch_quantized)),
    rule("useless-pair", Warning, "no pair stands between two float operators", On(useless_pair)),
    rule("float-operator", Warning, "everything is quantized where the target has no float units", On(float_operator)),
];

/// Rules whose breach a strict target answers with an error.
pub(super) fn is_refusal(code: &str) -> bool {
    let refused = ["activation-type", "activation-zero-point", "weight-type", "weight-zero-point", "bias-form"];
    refused.contains(&code)
}

/// Quantizers of activations: all but those of stored tensors.
fn activations<'a>(v: &'a View<'_>) -> impl Iterator<Item = NodeId> + 'a {
    v.quantizers().filter(|&n| !v.is_weight(n))
}

/// Weighted nodes with a dequantized weight.
fn weights<'a>(v: &'a View<'_>, t: &'a Target) -> impl Iterator<Item = (NodeId, super::view::Weighted)> + 'a {
    v.nodes.iter().filter_map(|&n| Some((n, v.weighted(n, Some(t))?)))
}

/// Nodes that the target could run in integers and whose data is all quantized.
fn integer<'a>(v: &'a View<'_>, t: &'a Target) -> impl Iterator<Item = (NodeId, &'a Row)> + 'a {
    v.nodes.iter().filter_map(|&n| {
        let row = t.row(v.node(n), v.opset(n)).ok()?;
        is_integer(v, t, n).then_some((n, row))
    })
}

fn is_integer(v: &View<'_>, t: &Target, n: NodeId) -> bool {
    let slots = v.data_slots(n, Some(t));
    t.row(v.node(n), v.opset(n)).is_ok_and(|row| {
        let mut quantized = slots.iter().filter(|&&s| v.dq_at(n, s).is_some());
        !slots.is_empty() && if row.residual { quantized.next().is_some() } else { quantized.count() == slots.len() }
    })
}

fn names(types: &[DType]) -> String {
    types.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ")
}

fn opset_too_low(v: &View<'_>, t: &Target, out: &mut Found) {
    let opset = v.model.onnx_opset();
    if v.g.owner().is_none() && opset < t.opset && v.quantizers().any(|n| v.node(n).domain.is_onnx()) {
        out.push((Location::default(), format!("opset {opset}; {} wants {} and above", t.name, t.opset)));
    }
}

fn shape_not_fixed(v: &View<'_>, t: &Target, out: &mut Found) {
    if !t.fixed_shapes || v.g.owner().is_some() {
        return;
    }
    for &i in v.g.inputs() {
        let is_fixed = v.dims(i).is_some_and(|d| d.iter().all(|d| matches!(d, Dim::Known(_))));
        if matches!(v.g.value(i).def, Def::Input) && !is_fixed {
            out.push((Location::value(&v.g.value(i).name), format!("has an open shape, {} needs fixed ones", t.name)));
        }
    }
}

fn form(v: &View<'_>, t: &Target, out: &mut Found) {
    if t.qoperator {
        return;
    }
    for &n in v.nodes.iter().filter(|&&n| !v.is_q(n) && !v.is_dq(n)) {
        let op = &v.node(n).op_type;
        if quant_rule::QUANTIZED.contains(&op.as_str()) || op.starts_with("QLinear") {
            out.push((v.at(n), format!("{} does not know {op}: it reads the QDQ form", t.name)));
        }
    }
    for n in v.quantizers().filter(|&n| !v.node(n).domain.is_onnx()) {
        out.push((v.at(n), format!("{} does not know the operators of {}", t.name, v.node(n).domain)));
    }
}

fn activation_type(v: &View<'_>, t: &Target, out: &mut Found) {
    for n in activations(v).filter(|&n| v.is_q(n)) {
        let Some(d) = v.quantized_type(n) else { continue };
        if !t.activation.allows(d) {
            let allowed = t.activation.types().unwrap_or_default();
            let what = format!("quantizes to {d}; {} takes {}: {}", t.name, names(&allowed), t.activation.why);
            out.push((v.at(n), what));
        }
    }
}

fn middle(d: DType) -> i64 {
    match d.int_range() {
        Some((lo, hi)) if !d.is_float8() => (lo + hi + 1) / 2,
        _ => 0,
    }
}

fn activation_zero(v: &View<'_>, t: &Target, out: &mut Found) {
    if t.activation.symmetric.contains(&false) {
        return;
    }
    for n in activations(v).filter(|&n| v.is_q(n)) {
        if v.zero_is(n, middle) == Some(false) {
            out.push((v.at(n), format!("has a zero point that is not in the middle: {}", t.activation.why)));
        }
    }
}

fn activation_per_channel(v: &View<'_>, _: &Target, out: &mut Found) {
    for n in activations(v) {
        if v.stored_input(n, 1).is_some_and(|s| s.len() > 1) {
            out.push((v.at(n), "has a scale for each channel, which integer kernels take of weights only".into()));
        }
    }
}

fn weight_type(v: &View<'_>, t: &Target, out: &mut Found) {
    for (n, w) in weights(v, t).filter(|&(n, w)| v.dq_at(n, w.data).is_some()) {
        let Some(d) = v.quantized_type(w.dq) else { continue };
        if !t.weight.allows(d) {
            let allowed = t.weight.types().unwrap_or_default();
            out.push((v.at(n), format!("its weight is {d}; {} takes {}: {}", t.name, names(&allowed), t.weight.why)));
        }
    }
}

fn weight_zero(v: &View<'_>, t: &Target, out: &mut Found) {
    if t.weight.symmetric.contains(&false) {
        return;
    }
    for (n, w) in weights(v, t) {
        if v.zero_is(w.dq, middle) == Some(false) {
            out.push((v.at(n), format!("its weight's zero point is not in the middle: {}", t.weight.why)));
        }
    }
}

fn weight_per_channel(v: &View<'_>, t: &Target, out: &mut Found) {
    for (n, w) in weights(v, t) {
        let is_split = v.stored_input(w.dq, 1).is_some_and(|s| s.len() > 1);
        let row = t.row(v.node(n), v.opset(n));
        if is_split && row.is_ok_and(|r| !r.per_channel) {
            let op = &v.node(n).op_type;
            out.push((v.at(n), format!("its weight has scales per channel, which {} does not run in {op}", t.name)));
        }
    }
}

fn weight_saturates(v: &View<'_>, t: &Target, out: &mut Found) {
    if t.weight.reduce_range.first() != Some(&true) {
        return;
    }
    for (n, w) in weights(v, t) {
        let Some(q) = v.elements(w.dq, 0).and_then(|q| q.slice::<i8>().ok()) else { continue };
        let worst = q.iter().map(|q| i32::from(*q).abs()).max().unwrap_or(0);
        if worst > 64 {
            let what =
                format!("its weight reaches {worst}, and sums of two products saturate above 64: reduce its range");
            out.push((v.at(n), what));
        }
    }
}

fn mixed_sign(v: &View<'_>, t: &Target, out: &mut Found) {
    if t.weight.mixed_sign {
        return;
    }
    for (n, w) in weights(v, t) {
        let x = v.dq_at(n, w.data).and_then(|x| v.quantized_type(x));
        let is_unsigned = v.quantized_type(w.dq).is_some_and(|d| d.is_integer() && !d.is_signed_integer());
        if is_unsigned && x.is_some_and(DType::is_signed_integer) {
            out.push((v.at(n), format!("{} has no kernel for signed data with an unsigned weight", t.name)));
        }
    }
}

fn bias_form(v: &View<'_>, t: &Target, out: &mut Found) {
    for (n, w) in weights(v, t) {
        let Some(slot) = w.bias.filter(|&slot| v.input(n, slot).is_some() && v.dq_at(n, w.data).is_some()) else {
            continue;
        };
        let form = if v.dq_at(n, slot).is_some() { BiasType::Int32 } else { BiasType::Float32 };
        if !t.bias.types.contains(&form) {
            let is = if form == BiasType::Int32 { "quantized" } else { "float" };
            out.push((v.at(n), format!("its bias is {is}: {}", t.bias.why)));
        }
    }
}

fn zero_missing(v: &View<'_>, t: &Target, out: &mut Found) {
    if !t.explicit_zero_points {
        return;
    }
    for n in v.quantizers() {
        if v.input(n, 2).is_none() && v.quantized_type(n) != Some(DType::I32) {
            out.push((v.at(n), "has no zero point input: some kernels fuse only when it is written out".into()));
        }
    }
}

fn every_run(v: &View<'_>, t: &Target, out: &mut Found) {
    if t.folds_weights {
        return;
    }
    for dq in v.quantizers().filter(|&n| v.is_dq(n) && v.is_weight(n)) {
        let (Some(w), Some(y)) = (v.stored_input(dq, 0), v.g.output(dq, 0)) else { continue };
        if w.shape().len() < 2 {
            continue;
        }
        let readers = v.g.consumers(y);
        if let Some(&(n, _)) =
            readers.iter().find(|&&(n, slot)| !(is_integer(v, t, n) || fuses_weight_only(v, n, slot)))
        {
            let node = v.node(n);
            let what =
                format!("is dequantized on every run, for {} \"{}\" which runs in float", node.op_type, node.label());
            out.push((v.at(dq), what));
        }
    }
}

/// Whether a product with a dequantized weight and float data becomes one operator on the stored integers
/// (`MatMulNBits`): weights `[K, N]`, in blocks along K or with scales per column.
fn fuses_weight_only(v: &View<'_>, n: NodeId, slot: usize) -> bool {
    let Some(QuantRule::Weighted { data, weight, axis, .. }) = v.rule(n, None) else { return false };
    let is_kn = match axis {
        WeightAxis::Last => true,
        WeightAxis::TransB => v.node(n).attrs.int("transB").unwrap_or(0) == 0,
        WeightAxis::Fixed(_) => false,
    };
    let Some(dq) = v.dq_at(n, slot) else { return false };
    let rank = v.stored_input(dq, 0).map(|t| t.shape().len());
    let block = v.node(dq).attrs.int("block_size").unwrap_or(0);
    let blocked = block > 0 && v.axis(dq) == Some(0) && (16..=256).contains(&block) && block.count_ones() == 1;
    let by_column = v.stored_input(dq, 1).is_some_and(|s| s.len() == 1) || v.axis(dq) == Some(1);
    let raw_output = v.g.output(n, 0).is_none_or(|y| v.qs_on(v.behind(y)).is_empty());
    let shared = v.g.output(dq, 0).is_some_and(|y| v.g.n_uses(y) > 1);
    is_kn
        && slot == weight
        && rank == Some(2)
        && v.dq_at(n, data).is_none()
        && raw_output
        && !shared
        && if block > 0 { blocked } else { by_column }
}

fn no_kernel(v: &View<'_>, t: &Target, out: &mut Found) {
    for &n in v.nodes.iter().filter(|&&n| !v.is_q(n) && !v.is_dq(n)) {
        let reads = v.g.node_inputs(n).into_iter().flatten().any(|x| v.dq_of(x).is_some_and(|dq| !v.is_weight(dq)));
        let writes = v.g.node_outputs(n).into_iter().flatten().any(|y| !v.qs_on(y).is_empty());
        let is_bound = matches!(v.rule(n, None), Some(QuantRule::Bound));
        if let (true, true, false, Err(why)) = (reads, writes, is_bound, t.row(v.node(n), v.opset(n))) {
            out.push((v.at(n), format!("stands between quantized tensors: {why}")));
        }
    }
}

fn input_not_quantized(v: &View<'_>, t: &Target, out: &mut Found) {
    for &n in &v.nodes {
        let (Ok(row), slots) = (t.row(v.node(n), v.opset(n)), v.data_slots(n, Some(t))) else { continue };
        let (yes, no): (Vec<usize>, Vec<usize>) = slots.into_iter().partition(|&s| v.dq_at(n, s).is_some());
        let is_output_quantized = v.g.node_outputs(n).into_iter().flatten().any(|y| !v.qs_on(v.behind(y)).is_empty());
        // An operator that reads quantized tensors and gives floats may be meant to run in float.
        if !row.residual && !no.is_empty() && !yes.is_empty() && is_output_quantized {
            out.push((v.at(n), format!("input {} is not quantized, so that all of it runs in float", no[0])));
        }
    }
}

fn output_not_quantized(v: &View<'_>, t: &Target, out: &mut Found) {
    for (n, row) in integer(v, t) {
        let missing =
            v.g.node_outputs(n).into_iter().flatten().any(|y| v.g.n_uses(y) > 0 && v.qs_on(v.behind(y)).is_empty());
        let is_weighted = v.weighted(n, Some(t)).is_some();
        let float_bias = match v.weighted(n, Some(t)).and_then(|w| w.bias) {
            Some(slot) => v.input(n, slot).is_some() && v.dq_at(n, slot).is_none(),
            None => false,
        };
        match row.output {
            OutputNeed::Required if missing && (is_weighted || t.whole) => {
                out.push((v.at(n), "no QuantizeLinear follows, so that it runs in float".into()));
            }
            OutputNeed::Optional if missing && float_bias => {
                let what = "its bias is float and no QuantizeLinear follows, so that it runs in float";
                out.push((v.at(n), what.into()));
            }
            _ => {}
        }
    }
}

fn read_as_float(v: &View<'_>, t: &Target, out: &mut Found) {
    for (n, _) in integer(v, t).filter(|(_, row)| row.output != OutputNeed::Float) {
        for y in v.g.node_outputs(n).into_iter().flatten() {
            let (near, far) = (y, v.behind(y));
            let qs = v.qs_on(far);
            let others = v.g.n_uses(far) > qs.len() || (near != far && v.g.n_uses(near) > 1);
            if !qs.is_empty() && (others || qs.len() > 1) {
                let what = "its output is also read as float or quantized twice, so that it runs in float";
                out.push((v.at(n), what.into()));
            }
        }
    }
}

fn bound_not_absorbed(v: &View<'_>, t: &Target, out: &mut Found) {
    if !t.absorb {
        return;
    }
    for (n, _) in integer(v, t) {
        let Some(y) = v.g.output(n, 0) else { continue };
        let Some(bound) = v.bound_after(y) else { continue };
        // A Clip may bound elsewhere than at 0; only what bounds nothing but the sign is certain.
        if v.node(bound).attrs.iter().next().is_some() || v.g.node_inputs(bound).len() > 1 {
            continue;
        }
        let lowest = |d: DType| d.int_range().map_or(0, |(lo, _)| lo);
        for q in v.qs_on(v.behind(y)) {
            if v.zero_is(q, lowest) == Some(false) {
                let what =
                    "the zero point behind it is not the lowest integer: it stays, and what is before runs in float";
                out.push((v.at(bound), what.into()));
            }
        }
    }
}

fn branch_quantized(v: &View<'_>, t: &Target, out: &mut Found) {
    for (n, _) in integer(v, t).filter(|(_, row)| row.residual) {
        let slots = v.data_slots(n, Some(t));
        if slots.len() > 1 && slots.iter().all(|&s| v.dq_at(n, s).is_some()) {
            let what = "both operands are quantized: the operator before it cannot be fused with it";
            out.push((v.at(n), what.into()));
        }
    }
}

fn useless_pair(v: &View<'_>, t: &Target, out: &mut Found) {
    for dq in v.quantizers().filter(|&n| v.is_dq(n)) {
        let Some(x) = v.input(dq, 0) else { continue };
        let Some((q, _)) = v.g.producer(x).filter(|&(n, _)| v.is_q(n)) else { continue };
        let Some(source) = v.input(q, 0) else { continue };
        // Through the bounds that stayed in the graph.
        let made_in_integers = |mut s| loop {
            let Some((p, _)) = v.g.producer(s) else { break false };
            if is_integer(v, t, p) {
                break true;
            }
            match (v.rule(p, None), v.input(p, 0)) {
                (Some(QuantRule::Bound), Some(up)) => s = up,
                _ => break false,
            }
        };
        let read_in_integers = v.g.consumers(x).iter().any(|&(d, _)| {
            let y = v.g.output(d, 0).filter(|_| v.is_dq(d));
            y.is_some_and(|y| {
                v.g.consumers(y).iter().any(|&(r, s)| {
                    // A second QuantizeLinear changes the scale or type for those behind it.
                    v.is_q(r) || (is_integer(v, t, r) && v.data_slots(r, Some(t)).contains(&s))
                })
            })
        });
        // Quantized inputs and outputs are a wish of the user's.
        let y = v.g.output(dq, 0);
        let at_the_edge = v.g.producer(source).is_none() && y.is_some_and(|y| v.g.is_output(y));
        if !made_in_integers(source) && !read_in_integers && !at_the_edge {
            out.push((v.at(dq), "stands with its QuantizeLinear between two float operators".into()));
        }
    }
}

fn float_operator(v: &View<'_>, t: &Target, out: &mut Found) {
    if !t.whole || v.quantizers().next().is_none() {
        return;
    }
    for &n in v.nodes.iter().filter(|&&n| !v.is_q(n) && !v.is_dq(n)) {
        let outputs = v.g.node_outputs(n);
        let is_float = outputs.into_iter().flatten().any(|y| v.dtype(y) == Some(DType::F32));
        let is_bound = matches!(v.rule(n, None), Some(QuantRule::Bound));
        if is_float && !is_bound && !is_integer(v, t, n) {
            out.push((v.at(n), format!("runs in float, and {} has no float units", t.name)));
        }
    }
}
