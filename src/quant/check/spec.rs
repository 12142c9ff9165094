//! What the specification demands and ONNX's checker does not look at.

use std::collections::{BTreeMap, BTreeSet};

use super::view::View;
use super::{Find, Found, Rule, Severity, rule};
use crate::diag::Sink;
use crate::error::Location;
use crate::ir::{Def, Dim, Model};
use crate::tensor::DType;

use Find::{Graph, Inference, Model as Whole};
use Severity::{Error, Warning};

/// Rules of the specification.
pub(super) const RULES: &[Rule] = &[
    rule("malformed-graph", Error, "graphs have no cycles, every value is defined once", Whole(malformed)),
    rule("domain-not-imported", Error, "every operator's domain is imported with a version", Whole(not_imported)),
    rule("opset-newer-than-ir", Warning, "the IR version is at least that of the opset's release", Whole(opset_ir)),
    rule("type-before-ir", Error, "element types are defined in the IR version", Graph(type_before_ir)),
    rule("type-before-opset", Error, "element types and blocks are defined in the opset", Graph(type_before_opset)),
    rule("duplicate-node-name", Warning, "no two nodes have the same name", Whole(duplicate_names)),
    rule("stale-value-info", Error, "declared types and shapes are those of the operators", Inference(stale)),
    rule("unused-initializer", Warning, "every stored tensor is read", Graph(unused)),
    rule("scale-not-constant", Warning, "scales are stored", Graph(scale_not_constant)),
    rule("scale-not-positive", Error, "scales are positive and finite", Graph(scale_not_positive)),
    rule("scale-type", Error, "scales have the type of the floats", Graph(scale_type)),
    rule("scale-length", Error, "there are as many scales as channels or blocks", Graph(scale_length)),
    rule("axis-out-of-range", Error, "the axis exists", Graph(axis_out_of_range)),
    rule("zero-point-shape", Error, "zero points have the shape of the scales", Graph(zero_shape)),
    rule("zero-point-type", Error, "zero points have the type of the integers", Graph(zero_type)),
];

fn malformed(model: &Model, out: &mut Found) {
    out.extend(crate::ir::verify::verify(model).into_iter().map(|what| (Location::default(), what)));
}

fn not_imported(model: &Model, out: &mut Found) {
    let mut said = BTreeSet::new();
    for id in model.graph_ids() {
        let g = model.graph(id);
        for n in g.nodes() {
            let node = g.node(n);
            let known = model.opsets_in(id).iter().any(|(d, _)| *d == node.domain);
            let is_function = model.function(&node.domain, &node.op_type, &node.overload).is_some();
            if !known && !is_function && said.insert(node.domain.canonical().to_owned()) {
                out.push((node.location(), format!("domain {} is not among the model's opsets", node.domain)));
            }
        }
    }
}

/// The IR version that came with an opset of ONNX's own domain (the specification's table of versions).
#[must_use]
fn ir_of(opset: i64) -> i64 {
    match opset {
        ..=12 => 3,
        13..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        25..=27 => 13,
        _ => 14,
    }
}

fn opset_ir(model: &Model, out: &mut Found) {
    let (opset, ir) = (model.onnx_opset(), model.ir_version);
    let least = ir_of(opset);
    if ir < least {
        out.push((Location::default(), format!("opset {opset} came with IR version {least}, the model says {ir}")));
    }
}

/// The first opset and IR version with an element type.
fn since(d: DType) -> (i64, i64) {
    match d {
        d if d.is_float8() && d != DType::F8E8M0 => (19, 9),
        DType::U4 | DType::I4 => (21, 10),
        DType::F4E2M1 => (23, 11),
        DType::F8E8M0 => (24, 12),
        DType::U2 | DType::I2 => (25, 13),
        DType::F6E2M3 | DType::F6E3M2 => (28, 14),
        DType::BF16 => (13, 4),
        _ => (1, 1),
    }
}

fn type_before_ir(v: &View<'_>, out: &mut Found) {
    for value in v.g.values() {
        let Some(d) = v.dtype(value) else { continue };
        let (least, ir) = (since(d).1, v.model.ir_version);
        if ir < least {
            let what = format!("is {d}, which IR version {least} brought; the model says {ir}");
            out.push((Location::value(&v.g.value(value).name), what));
        }
    }
}

fn type_before_opset(v: &View<'_>, out: &mut Found) {
    for n in v.quantizers().filter(|&n| v.node(n).domain.is_onnx()) {
        let opset = v.opset(n);
        let mut need = |least: i64, what: String| {
            if opset < least {
                out.push((v.at(n), format!("{what} came with opset {least}, the model's is {opset}")));
            }
        };
        if let Some(d) = v.quantized_type(n) {
            let of_quantizers = if d.bits() == 16 { 21 } else { 10 };
            need(since(d).0.max(of_quantizers), format!("the element type {d}"));
        }
        if v.node(n).attrs.int("block_size").is_some_and(|b| b != 0) {
            need(21, "quantization in blocks".into());
        }
        if v.stored_input(n, 1).is_some_and(|s| s.shape().len() == 1 && s.len() > 1) {
            need(13, "a scale for each channel".into());
        }
    }
}

fn duplicate_names(model: &Model, out: &mut Found) {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for id in model.graph_ids().filter(|&id| !model.is_in_function(id)) {
        let g = model.graph(id);
        for n in g.nodes().filter(|&n| !g.node(n).name.is_empty()) {
            *count.entry(&g.node(n).name).or_default() += 1;
        }
    }
    for (name, n) in count.into_iter().filter(|(_, n)| *n > 1) {
        let location = Location { node: Some(format!("node \"{name}\"")), value: None };
        out.push((location, format!("{n} nodes have this name: tools that go by names mistake them")));
    }
}

/// Inference says it in terms of its own; here it is a breach.
fn stale(sink: &Sink, out: &mut Found) {
    let breaches = ["stale-value-info", "output-type-contradicted", "shape-inference"];
    for d in sink.diagnostics().iter().filter(|d| breaches.contains(&d.code)) {
        out.push((d.location.clone(), d.message.clone()));
    }
}

fn unused(v: &View<'_>, out: &mut Found) {
    for &i in v.g.initializers() {
        // A default of an input belongs to the input.
        if matches!(v.g.value(i).def, Def::Initializer(_)) && v.g.n_uses(i) == 0 {
            out.push((Location::value(&v.g.value(i).name), "is stored, and nothing reads it".into()));
        }
    }
}

fn scale_not_constant(v: &View<'_>, out: &mut Found) {
    for n in v.quantizers() {
        if v.stored_input(n, 1).is_none() {
            out.push((v.at(n), "its scale is computed: runtimes fuse pairs with stored scales only".into()));
        }
    }
}

fn scale_not_positive(v: &View<'_>, out: &mut Found) {
    for n in v.quantizers() {
        let Some(scale) = v.elements(n, 1).and_then(|s| s.to_f64s().ok()) else { continue };
        if let Some((i, s)) = scale.iter().enumerate().find(|(_, s)| !(**s > 0.0 && s.is_finite())) {
            out.push((v.at(n), format!("scale {i} is {s}, not positive and finite")));
        }
    }
}

fn scale_type(v: &View<'_>, out: &mut Found) {
    for n in v.quantizers().filter(|&n| v.node(n).domain.is_onnx()) {
        let float = if v.is_q(n) { v.input(n, 0) } else { v.g.output(n, 0) };
        let (Some(scale), Some(float)) = (v.input(n, 1).and_then(|s| v.dtype(s)), float.and_then(|f| v.dtype(f)))
        else {
            continue;
        };
        let wanted = match v.opset(n) {
            ..=18 => DType::F32,
            19..=22 => float,
            // From opset 23 on both are free.
            _ => scale,
        };
        if scale != wanted && float.is_float() {
            out.push((v.at(n), format!("its scale is {scale}, expected {wanted} at opset {}", v.opset(n))));
        }
    }
}

fn scale_length(v: &View<'_>, out: &mut Found) {
    for n in v.quantizers() {
        let (Some(scale), Some(dims)) = (v.stored_input(n, 1), v.input(n, 0).and_then(|x| v.dims(x))) else { continue };
        let block = v.node(n).attrs.int("block_size").unwrap_or(0);
        let axis = v.axis(n).and_then(|a| usize::try_from(a).ok()).filter(|&a| a < dims.len());
        if block > 0 {
            let block = block as usize;
            let fits = scale.shape().len() == dims.len()
                && axis.is_some_and(|a| {
                    scale.shape().iter().zip(&dims).enumerate().all(|(i, (&s, d))| match d {
                        Dim::Known(d) if i == a => s == d.div_ceil(block),
                        Dim::Known(d) => s == *d,
                        _ => true,
                    })
                });
            if !fits {
                let shape = scale.shape();
                out.push((v.at(n), format!("scales of shape {shape:?} do not fit blocks of {block} of its data")));
            }
        } else if scale.shape().len() == 1 && scale.len() > 1 {
            if let Some(Dim::Known(d)) = axis.and_then(|a| dims.get(a))
                && *d != scale.len()
            {
                out.push((v.at(n), format!("{} scales for {d} channels", scale.len())));
            }
        } else if scale.len() != 1 {
            out.push((v.at(n), format!("scales of shape {:?}, expected one or one a channel", scale.shape())));
        }
    }
}

fn axis_out_of_range(v: &View<'_>, out: &mut Found) {
    for n in v.quantizers() {
        let (Some(scale), Some(dims)) = (v.stored_input(n, 1), v.input(n, 0).and_then(|x| v.dims(x))) else { continue };
        let is_split = scale.len() > 1 || v.node(n).attrs.int("block_size").is_some_and(|b| b > 0);
        let axis = v.axis(n).unwrap_or(0);
        if is_split && !(0..dims.len() as i64).contains(&axis) {
            out.push((v.at(n), format!("axis {axis} is out of range for rank {}", dims.len())));
        }
    }
}

fn zero_shape(v: &View<'_>, out: &mut Found) {
    for n in v.quantizers() {
        let (Some(scale), Some(zero)) = (v.stored_input(n, 1), v.stored_input(n, 2)) else { continue };
        // [1] and [] are both one number to every runtime.
        if scale.shape() != zero.shape() && (scale.len(), zero.len()) != (1, 1) {
            out.push((v.at(n), format!("scales of shape {:?}, zero points of {:?}", scale.shape(), zero.shape())));
        }
    }
}

fn zero_type(v: &View<'_>, out: &mut Found) {
    for n in v.quantizers() {
        let Some(zero) = v.input(n, 2).and_then(|z| v.dtype(z)) else { continue };
        let side = if v.is_dq(n) { v.input(n, 0) } else { v.g.output(n, 0) };
        if let Some(q) = side.and_then(|s| v.dtype(s))
            && q != zero
        {
            out.push((v.at(n), format!("its integers are {q}, its zero point is {zero}")));
        }
    }
}
