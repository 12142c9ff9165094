//! The operator table against the schemas of the onnx package: every operator from opset 7 on is there, with as many
//! inputs and outputs, under no other name, and it takes every element type that the specification gives it.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use common::backend_data::{self, Case};
use common::{compare, pb, python};
use onnx_quant::diag::Sink;
use onnx_quant::infer::infer;
use onnx_quant::interp::{CompileOptions, NoTap, Program, RunOptions};
use onnx_quant::ir::{Attr, Def, Domain, Model, Node, TensorType, ValueType};
use onnx_quant::ops::{ALL, Item, OpDomain, lookup};
use onnx_quant::tensor::cast::cast;
use onnx_quant::tensor::{C64, C128, DType, Tensor};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::json;

/// One version of an operator in the specification.
#[derive(Deserialize)]
struct Schema {
    domain: String,
    name: String,
    since: i64,
    deprecated: bool,
    /// Fewest and most inputs, fewest and most outputs.
    arity: [usize; 4],
    /// The type variable, or type, of each formal input and output; the last repeats when `variadic`.
    inputs: Vec<String>,
    outputs: Vec<String>,
    /// Codes of the element types of each type variable, of plain tensors only.
    types: BTreeMap<String, Vec<i32>>,
}

const SCHEMAS: &str = "
import onnx
def code(t):
    inner = t.removeprefix('tensor(').removesuffix(')')
    return getattr(onnx.TensorProto, inner.upper()) if t == f'tensor({inner})' else None
def main(_):
    out = []
    for s in onnx.defs.get_all_schemas_with_history():
        types = {c.type_param_str: [k for k in map(code, c.allowed_type_strs) if k] for c in s.type_constraints}
        out.append(dict(domain=s.domain, name=s.name, since=s.since_version, deprecated=s.deprecated,
            arity=[s.min_input, s.max_input, s.min_output, s.max_output], types=types,
            inputs=[i.type_str for i in s.inputs], outputs=[o.type_str for o in s.outputs]))
    return out";

fn schemas() -> Vec<Schema> {
    serde_json::from_value(python::call(SCHEMAS, json!(null)).unwrap()).unwrap()
}

/// Versions that hold at opset 7 or later, each with the last opset that it holds for.
fn in_force(all: &[Schema]) -> Vec<(&Schema, i64)> {
    let next = |s: &Schema| {
        all.iter().filter(|t| t.domain == s.domain && t.name == s.name && t.since > s.since).map(|t| t.since).min()
    };
    let is_onnx = |s: &Schema| s.domain.is_empty();
    all.iter()
        .map(|s| (s, next(s).map_or(i64::MAX, |n| n - 1)))
        .filter(|(s, last)| !s.deprecated && (!is_onnx(s) || *last >= 7))
        .collect()
}

/// Operators of the specification that have no evaluation, with the reason.
const ABSENT: &[(&str, &str)] =
    &[("Gradient", "differentiates a part of the graph around it; it appears only in training graphs")];

/// Operators that we have in a domain of the specification which does not have them.
const EXTRA: &[(&str, &str)] =
    &[("SimplifiedLayerNormalization", "ONNX Runtime's optimizer writes it into the domain ai.onnx")];

#[test]
fn every_operator_of_the_specification_is_there() {
    let all = schemas();
    assert!(all.len() > 500, "the onnx package has {} schemas only", all.len());
    let mut wrong = String::new();
    for (s, last) in in_force(&all) {
        if ABSENT.iter().any(|(name, _)| *name == s.name) {
            continue;
        }
        let domain = Domain::new(s.domain.as_str());
        let first = if s.domain.is_empty() { s.since.max(7) } else { s.since };
        for version in [first, last] {
            let Some(def) = lookup(&domain, &s.name, version) else {
                writeln!(wrong, "{} {} {version}: not there", s.domain, s.name).unwrap();
                continue;
            };
            // What the specification allows must be allowed; ours may allow more, for what runtimes write.
            let [min_in, max_in, min_out, max_out] = s.arity;
            let (i, o) = (def.inputs, def.outputs);
            if i.min > min_in
                || i.max < max_in.min(i32::MAX as usize)
                || o.min > min_out
                || o.max < max_out.min(i32::MAX as usize)
            {
                writeln!(
                    wrong,
                    "{} {} {version}: inputs {i:?} outputs {o:?}, specified {:?}",
                    s.domain, s.name, s.arity
                )
                .unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_operator_of_ours_is_specified() {
    let all = schemas();
    let mut wrong = String::new();
    for def in ALL.iter().copied().flatten().filter(|d| d.domain != OpDomain::Microsoft) {
        let versions: Vec<i64> =
            all.iter().filter(|s| s.domain == def.domain.name() && s.name == def.name).map(|s| s.since).collect();
        let known = EXTRA.iter().any(|(name, _)| *name == def.name);
        if versions.is_empty() != known {
            writeln!(
                wrong,
                "{} {}: versions {versions:?}, in the list of exceptions: {known}",
                def.domain.name(),
                def.name
            )
            .unwrap();
        } else if !known && def.since > 7 && !versions.contains(&def.since) {
            writeln!(wrong, "{} {}: since {}, specified {versions:?}", def.domain.name(), def.name, def.since).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A tensor with the same numbers in another element type.
fn converted(t: &Tensor, dtype: DType) -> Option<Tensor> {
    let real = |t: &Tensor| t.to_f64s().ok();
    match dtype {
        DType::C64 => Some(Tensor::of(t.shape(), real(t)?.iter().map(|&x| C64::new(x as f32, 0.5)).collect())),
        DType::C128 => Some(Tensor::of(t.shape(), real(t)?.iter().map(|&x| C128::new(x, 0.5)).collect())),
        _ => cast(t, dtype, true).ok(),
    }
}

/// The case with every input of one type variable given in another element type.
fn with_type(model: &Model, inputs: &[Item], slots: &[usize], dtype: DType) -> Option<(Model, Vec<Item>)> {
    let (mut model, mut inputs) = (model.clone(), inputs.to_vec());
    let node = model.main().nodes().next()?;
    let ins = model.main().node_inputs(node);
    for &slot in slots {
        let value = ins.get(slot).copied().flatten()?;
        let at = model.main().inputs().iter().position(|&v| v == value)?;
        let t = converted(inputs[at].tensor()?, dtype)?;
        let ty = ValueType::Tensor(TensorType::fixed(dtype, t.shape()));
        inputs[at] = Item::Tensor(t);
        model.main_mut().set_type(value, Some(ty));
    }
    let graph = model.main_mut();
    for v in graph.values().collect::<Vec<_>>() {
        if matches!(graph.value(v).def, Def::Node) {
            graph.set_type(v, None);
        }
    }
    Some((model, inputs))
}

/// Runs the model, and checks that inference agrees and that outputs of the type variable have the type.
fn run(mut model: Model, inputs: Vec<Item>, outputs: &[usize], dtype: DType) -> Result<(), String> {
    let program = Program::compile(&model, &CompileOptions::default()).map_err(|e| format!("{e:#}"))?;
    let got = program.run(inputs, RunOptions::default(), &mut NoTap).map_err(|e| format!("{e:#}"))?;
    infer(&mut model, &mut Sink::default()).map_err(|e| format!("{e:#}"))?;
    for (i, item) in got.iter().enumerate() {
        let Some(item) = item else { return Err(format!("output {i} is not computed")) };
        let ty = model.main().value(model.main().outputs()[i]).ty.as_ref();
        compare::inferred(ty, item).map_err(|e| format!("inference of output {i}: {e}"))?;
        if let (true, Some(t)) = (outputs.contains(&i), item.tensor())
            && t.dtype() != dtype
        {
            return Err(format!("output {i} is {}", t.dtype()));
        }
    }
    Ok(())
}

/// Why a case of an operator says nothing about another element type, where that is so.
fn excuse(node: &Node, from: DType, to: DType) -> Option<&'static str> {
    let is_number = to.is_float() || to.is_integer();
    Some(match node.op_type.as_str() {
        _ if node.attrs.iter().any(|a| matches!(a.value, Attr::Graph(_))) => {
            "its body has the type that it was made for"
        }
        "BitCast" if from.bits() != to.bits() => "the width of the output's type is given",
        "SequenceInsert" => "the element has the type of the sequence's",
        "TfIdfVectorizer" => "the pool has the type of the input",
        "Mod" if from.is_float() && to.is_integer() => "its fractions become 0, by which nothing is divided",
        "ScatterElements" | "ScatterND" if to == DType::Str && node.attrs.get("reduction").is_some() => {
            "strings are neither added nor compared"
        }
        "Resize" | "GridSample" if !is_number && to != DType::Bool => "only numbers are interpolated",
        "Col2Im" if !is_number => "only numbers are added",
        _ => return None,
    })
}

/// The version of a node's operator that holds at an opset.
fn schema_of<'a>(all: &'a [Schema], node: &Node, opset: i64) -> Option<&'a Schema> {
    all.iter()
        .filter(|s| s.domain == node.domain.canonical() && s.name == node.op_type && s.since <= opset)
        .max_by_key(|s| s.since)
}

/// The formal parameter of a slot; the last one repeats.
fn formal(list: &[String], slot: usize) -> Option<&String> {
    list.get(slot).or(list.last())
}

/// Every other element type that the operator of a case takes: how many were tried, and which do not work.
fn try_types(case: &Case, all: &[Schema]) -> (usize, Vec<String>) {
    let Ok(model) = onnx_quant::onnx::read(&case.model()) else { return (0, Vec::new()) };
    let g = model.main();
    let mut nodes = g.nodes();
    let (Some(id), None) = (nodes.next(), nodes.next()) else { return (0, Vec::new()) };
    let node = g.node(id);
    let opset = model.opset(&node.domain).unwrap_or(1);
    let (Some(schema), Some(set)) = (schema_of(all, node, opset), case.data_sets().first().cloned()) else {
        return (0, Vec::new());
    };
    let inputs = read_inputs(&model, &set);
    let (ins, outs) = (g.node_inputs(id), g.node_outputs(id));
    let (mut n, mut wrong) = (0, Vec::new());
    for (variable, codes) in &schema.types {
        let slots: Vec<usize> =
            (0..ins.len()).filter(|&i| ins[i].is_some() && formal(&schema.inputs, i) == Some(variable)).collect();
        let outputs: Vec<usize> = (0..outs.len()).filter(|&i| formal(&schema.outputs, i) == Some(variable)).collect();
        for dtype in codes.iter().map(|&c| DType::from_code(c).expect("an element type of the specification")) {
            let from = slots.first().and_then(|&i| g.value(ins[i]?).ty.as_ref()?.dtype());
            if from.is_none_or(|from| excuse(node, from, dtype).is_some()) {
                continue;
            }
            let Some((model, inputs)) = with_type(&model, &inputs, &slots, dtype) else { continue };
            n += 1;
            let outcome = catch_unwind(AssertUnwindSafe(|| run(model, inputs, &outputs, dtype)));
            if let Err(why) = outcome.unwrap_or_else(|_| Err("PANIC".into())) {
                wrong.push(format!("{} {} {variable} = {dtype}: {}: {why}", schema.name, schema.since, case.name));
            }
        }
    }
    (n, wrong)
}

fn read_inputs(model: &Model, set: &Path) -> Vec<Item> {
    let types = model.main().inputs().iter().map(|&v| model.main().value(v).ty.as_ref());
    backend_data::inputs(set).iter().zip(types).map(|(path, ty)| pb::read(path, ty)).collect()
}

/// The case with doubles that single precision does not hold; `None` when the case has no floats.
fn with_doubles(model: &Model, inputs: &[Item], slots: &[usize]) -> Option<(Model, Vec<Item>)> {
    let (model, mut inputs) = with_type(model, inputs, slots, DType::F64)?;
    for item in &mut inputs {
        if let Item::Tensor(t) = item
            && t.dtype() == DType::F64
        {
            t.slice_mut::<f64>().ok()?.iter_mut().for_each(|x| *x *= 1.0 + 1e-10);
        }
    }
    Some((model, inputs))
}

/// Whether fractions of doubles come out, all of which single precision holds: then they were computed in it.
fn is_single(model: &Model, inputs: Vec<Item>) -> bool {
    let Ok(program) = Program::compile(model, &CompileOptions::default()) else { return false };
    let Ok(got) = program.run(inputs, RunOptions::default(), &mut NoTap) else { return false };
    let doubles = got.iter().flatten().filter_map(Item::tensor).filter_map(|t| t.slice::<f64>().ok());
    let values: Vec<f64> = doubles.flatten().copied().filter(|x| x.is_finite() && (x * 8.0).fract() != 0.0).collect();
    values.len() > 2 && values.iter().all(|&x| f64::from(x as f32) == x)
}

/// Operators whose doubles are computed in single precision, with the reason.
const SINGLE: &[(&str, &str)] =
    &[("CastLike", "takes the type of its second input, and its first holds what single precision holds")];

fn uses_single_precision(case: &Case, all: &[Schema]) -> Option<String> {
    let model = onnx_quant::onnx::read(&case.model()).ok()?;
    let g = model.main();
    let mut nodes = g.nodes();
    let (Some(id), None) = (nodes.next(), nodes.next()) else { return None };
    let node = g.node(id);
    let opset = model.opset(&node.domain).unwrap_or(1);
    let schema = schema_of(all, node, opset)?;
    let inputs = read_inputs(&model, case.data_sets().first()?);
    let ins = g.node_inputs(id);
    let slots: Vec<usize> = (0..ins.len())
        .filter(|&i| {
            let Some(v) = ins[i] else { return false };
            let takes = formal(&schema.inputs, i).and_then(|t| schema.types.get(t));
            g.value(v).ty.as_ref().and_then(ValueType::dtype) == Some(DType::F32)
                && takes.is_some_and(|codes| codes.contains(&DType::F64.code()))
        })
        .collect();
    if slots.is_empty() || SINGLE.iter().any(|(op, _)| *op == node.op_type) {
        return None;
    }
    let (model, inputs) = with_doubles(&model, &inputs, &slots)?;
    is_single(&model, inputs).then(|| format!("{} {}: {}", schema.name, schema.since, case.name))
}

#[test]
fn doubles_are_computed_in_doubles() {
    let all = schemas();
    let cases: Vec<Case> = backend_data::cases().into_iter().filter(|c| c.kind == "node").collect();
    let wrong: Vec<String> = cases.par_iter().filter_map(|c| uses_single_precision(c, &all)).collect();
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_element_type_of_the_specification_is_taken() {
    let all = schemas();
    let cases: Vec<Case> = backend_data::cases().into_iter().filter(|c| c.kind == "node").collect();
    let results: Vec<(usize, Vec<String>)> = cases.par_iter().map(|c| try_types(c, &all)).collect();
    let n: usize = results.iter().map(|r| r.0).sum();
    let wrong: Vec<String> = results.into_iter().flat_map(|r| r.1).collect();
    assert!(n > 5000, "{n} combinations only");
    assert!(wrong.is_empty(), "{} of {n} combinations:\n{}", wrong.len(), wrong.join("\n"));
}
