//! Every operator on malformed input: wrong numbers, kinds, ranks and types of inputs, absurd indices, sizes and
//! attributes. Evaluation and inference must give an error that names the node, or a result; never a panic, and never
//! an attempt to allocate what cannot be there.

mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use common::rng::Rng;
use half::{bf16, f16};
use onnx_quant::diag::Sink;
use onnx_quant::infer::infer;
use onnx_quant::interp::{CompileOptions, NoTap, Program, RunOptions};
use onnx_quant::ir::text_parse::parse;
use onnx_quant::ir::{Attr, Attrs, Def, Domain, Model, Node, TensorRef, TensorType, ValueType};
use onnx_quant::ops::{ALL, Item, OpDef};
use onnx_quant::tensor::{C64, DType, Tensor};
use rayon::prelude::*;
use regex::Regex;

/// Calls of each definition.
const CALLS: usize = 400;

/// Attribute names of ONNX's operators, with the kind that most of them have: for operators that share the code that
/// reads them. What an operator's own file reads is found there (see [`Vocabulary`]).
const NAMES: &[(&str, Kind)] = &[
    ("activation", Kind::Str),
    ("activation_alpha", Kind::Floats),
    ("activations", Kind::Strings),
    ("align_corners", Kind::Int),
    ("allowzero", Kind::Int),
    ("alpha", Kind::Float),
    ("antialias", Kind::Int),
    ("approximate", Kind::Str),
    ("auto_pad", Kind::Str),
    ("axes", Kind::Ints),
    ("axis", Kind::Int),
    ("batch_axis", Kind::Int),
    ("batch_dims", Kind::Int),
    ("beta", Kind::Float),
    ("bits", Kind::Int),
    ("block_size", Kind::Int),
    ("blocksize", Kind::Int),
    ("ceil_mode", Kind::Int),
    ("coordinate_transformation_mode", Kind::Str),
    ("count_include_pad", Kind::Int),
    ("detect_negative", Kind::Int),
    ("dilations", Kind::Ints),
    ("direction", Kind::Str),
    ("dtype", Kind::Int),
    ("end", Kind::Int),
    ("ends", Kind::Ints),
    ("epsilon", Kind::Float),
    ("equation", Kind::Str),
    ("exclude_outside", Kind::Int),
    ("exclusive", Kind::Int),
    ("group", Kind::Int),
    ("hidden_size", Kind::Int),
    ("is_causal", Kind::Int),
    ("k", Kind::Int),
    ("K", Kind::Int),
    ("N", Kind::Int),
    ("keepdims", Kind::Int),
    ("kernel_shape", Kind::Ints),
    ("keep_aspect_ratio_policy", Kind::Str),
    ("kv_num_heads", Kind::Int),
    ("largest", Kind::Int),
    ("layout", Kind::Int),
    ("max", Kind::Float),
    ("min", Kind::Float),
    ("mode", Kind::Str),
    ("nearest_mode", Kind::Str),
    ("num_groups", Kind::Int),
    ("num_heads", Kind::Int),
    ("num_outputs", Kind::Int),
    ("num_scan_inputs", Kind::Int),
    ("onesided", Kind::Int),
    ("output_dtype", Kind::Int),
    ("output_height", Kind::Int),
    ("output_padding", Kind::Ints),
    ("output_shape", Kind::Ints),
    ("output_width", Kind::Int),
    ("p", Kind::Int),
    ("padding_mode", Kind::Str),
    ("pads", Kind::Ints),
    ("perm", Kind::Ints),
    ("q_num_heads", Kind::Int),
    ("reduction", Kind::Str),
    ("repeats", Kind::Ints),
    ("rotary_embedding_dim", Kind::Int),
    ("sample_size", Kind::Int),
    ("sampling_ratio", Kind::Int),
    ("scale", Kind::Float),
    ("scales", Kind::Floats),
    ("select_last_index", Kind::Int),
    ("shape", Kind::Ints),
    ("size", Kind::Int),
    ("sizes", Kind::Ints),
    ("sorted", Kind::Int),
    ("spatial_scale", Kind::Float),
    ("split", Kind::Ints),
    ("start", Kind::Int),
    ("starts", Kind::Ints),
    ("stash_type", Kind::Int),
    ("storage_order", Kind::Int),
    ("strides", Kind::Ints),
    ("time_axis", Kind::Int),
    ("to", Kind::Int),
    ("transA", Kind::Int),
    ("upper", Kind::Int),
    ("value", Kind::Tensor),
    ("value_ints", Kind::Ints),
    ("value_float", Kind::Float),
    ("zero_point", Kind::Int),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Int,
    Ints,
    Float,
    Floats,
    Str,
    Strings,
    Tensor,
}

/// Names of modes and the like, so that calls get past the check of their name.
const WORDS: &[&str] = &[
    "",
    "bogus",
    "constant",
    "reflect",
    "edge",
    "wrap",
    "linear",
    "nearest",
    "cubic",
    "SAME_UPPER",
    "SAME_LOWER",
    "VALID",
    "NOTSET",
    "forward",
    "reverse",
    "bidirectional",
    "sum",
    "none",
    "mean",
    "add",
    "mul",
    "max",
    "min",
    "LEFT",
    "RIGHT",
    "align_corners",
    "asymmetric",
    "half_pixel",
    "tf_crop_and_resize",
    "DCR",
    "CRD",
    "zeros",
    "border",
    "reflection",
    "ij,jk->ik",
    "...i,i",
    "i...->",
    "->",
    "ii->i",
    "tanh",
    "Relu",
    "round_prefer_ceil",
    "not_larger",
    "avg",
];

/// Numbers that break index arithmetic. What lies between a large tensor and an impossible one is left out: it would
/// only make this test slow.
const ABSURD: &[i64] = &[-1, 0, 1, 2, 3, -2, 4, 7, -9, 1 << 34, -(1 << 40), 1 << 62, i64::MAX, i64::MIN, i64::MIN + 1];

const WRONG_FLOATS: &[f32] = &[0.0, -0.0, 1.0, -1.0, 0.5, 2.5, 1e30, -1e30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

fn attr(r: &mut Rng, kind: Kind) -> Attr {
    match kind {
        Kind::Int => Attr::Int(r.pick(ABSURD)),
        Kind::Ints => Attr::Ints((0..r.below(5)).map(|_| r.pick(ABSURD)).collect()),
        Kind::Float => Attr::Float(r.pick(WRONG_FLOATS)),
        Kind::Floats => Attr::Floats((0..r.below(5)).map(|_| r.pick(WRONG_FLOATS)).collect()),
        Kind::Str => Attr::String(Bytes::from_static(r.pick(WORDS).as_bytes())),
        Kind::Strings => Attr::Strings((0..r.below(4)).map(|_| Bytes::from_static(r.pick(WORDS).as_bytes())).collect()),
        Kind::Tensor => Attr::Tensor(TensorRef::new(tensor(r))),
    }
}

fn tensor(r: &mut Rng) -> Tensor {
    let rank = r.pick(&[0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7]);
    let shape: Vec<usize> = (0..rank).map(|_| r.pick(&[0, 1, 1, 2, 2, 3, 4])).collect();
    tensor_of(r, &shape)
}

fn tensor_of(r: &mut Rng, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let float = |r: &mut Rng| r.pick(WRONG_FLOATS);
    match r.below(16) {
        0..=4 => Tensor::of(shape, (0..n).map(|_| float(r)).collect::<Vec<f32>>()),
        5..=7 => Tensor::of(shape, (0..n).map(|_| r.pick(ABSURD)).collect::<Vec<i64>>()),
        8 => Tensor::of(shape, (0..n).map(|_| r.pick(ABSURD) as i32).collect::<Vec<i32>>()),
        9 => Tensor::of(shape, (0..n).map(|_| r.bits() as u8).collect::<Vec<u8>>()),
        10 => Tensor::of(shape, (0..n).map(|_| r.bits() as i8).collect::<Vec<i8>>()),
        11 => Tensor::of(shape, (0..n).map(|_| r.chance(0.5)).collect::<Vec<bool>>()),
        12 => Tensor::of(shape, (0..n).map(|_| r.pick(WORDS).to_owned()).collect::<Vec<String>>()),
        13 => Tensor::of(shape, (0..n).map(|_| f16::from_f32(float(r))).collect::<Vec<f16>>()),
        14 => match r.below(4) {
            0 => Tensor::of(shape, (0..n).map(|_| bf16::from_f32(float(r))).collect::<Vec<bf16>>()),
            1 => Tensor::of(shape, (0..n).map(|_| C64::new(float(r), 1.0)).collect::<Vec<C64>>()),
            2 => Tensor::of(shape, vec![7u64; n]),
            _ => Tensor::zeros(r.pick(&[DType::U4, DType::I4, DType::F8E4M3FN, DType::F4E2M1, DType::U2]), shape)
                .unwrap(),
        },
        _ => Tensor::of(shape, (0..n).map(|_| f64::from(float(r))).collect::<Vec<f64>>()),
    }
}

fn item(r: &mut Rng) -> Item {
    match r.below(24) {
        0 => Item::Sequence(Arc::new((0..r.below(3)).map(|_| Item::Tensor(tensor(r))).collect())),
        1 => Item::Optional(r.chance(0.5).then(|| Arc::new(Item::Tensor(tensor(r))))),
        2 => Item::Map(Arc::new(vec![(Item::Tensor(Tensor::scalar(1i64)), Item::Tensor(tensor(r)))])),
        _ => Item::Tensor(tensor(r)),
    }
}

/// What the sources of an operator know: the attributes that they read, and words that may be values of them.
#[derive(Default)]
struct Vocabulary {
    attributes: Vec<(String, Kind)>,
    words: Vec<String>,
}

impl Vocabulary {
    /// Of the files that name the operator, of which there is one for each, with its folder.
    fn of(def: &OpDef, files: &[(PathBuf, String)]) -> Self {
        let mut found = Vocabulary::default();
        let quoted = format!("\"{}\"", def.name);
        let read = Regex::new(r#"\b(\w+)\(\s*(?:[\w.&]+,\s*)?"([A-Za-z_]+)""#).unwrap();
        let word = Regex::new(r#""([A-Za-z_]{2,24})""#).unwrap();
        let own: Vec<&Path> =
            files.iter().filter(|(_, text)| text.contains(&quoted)).map(|(p, _)| p.as_path()).collect();
        let is_own = |p: &Path| own.iter().any(|o| p == *o || o.ends_with("mod.rs") && p.parent() == o.parent());
        for (_, text) in files.iter().filter(|(p, _)| is_own(p)) {
            // What the tests of a file say is malformed enough.
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for c in read.captures_iter(code) {
                if let Some(kind) = Kind::of_getter(&c[1]) {
                    found.attributes.push((c[2].to_owned(), kind));
                }
            }
            found.words.extend(word.captures_iter(code).map(|c| c[1].to_owned()));
        }
        found
    }
}

impl Kind {
    fn of_getter(name: &str) -> Option<Kind> {
        Some(match name {
            "int" | "flag" | "required_int" | "dtype" | "dtype_attr" | "dtype_attr_unless_zero" => Kind::Int,
            "ints" | "sizes" | "list" => Kind::Ints,
            "float" => Kind::Float,
            "floats" => Kind::Floats,
            "str" => Kind::Str,
            "strings" => Kind::Strings,
            "tensor" | "required_tensor" => Kind::Tensor,
            _ => return None,
        })
    }
}

/// The sources of the operators.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let read = |p: PathBuf| match p.is_dir() {
        true => sources(&p),
        false => vec![(p.clone(), std::fs::read_to_string(&p).unwrap())],
    };
    paths.into_iter().flat_map(read).collect()
}

/// An attribute that the operator reads, mostly of the right kind.
fn own_attribute(r: &mut Rng, own: &Vocabulary) -> Option<(String, Attr)> {
    let (name, kind) = own.attributes.get(r.below(own.attributes.len().max(1)))?;
    let any = [Kind::Int, Kind::Ints, Kind::Float, Kind::Floats, Kind::Str, Kind::Strings, Kind::Tensor];
    let value = match if r.chance(0.85) { *kind } else { r.pick(&any) } {
        Kind::Str if r.chance(0.7) && !own.words.is_empty() => {
            Attr::String(own.words[r.below(own.words.len())].clone().into())
        }
        kind => attr(r, kind),
    };
    Some((name.clone(), value))
}

/// One malformed call as a model with a node named `the_node`, and what is fed.
fn call(r: &mut Rng, def: &OpDef, own: &Vocabulary) -> (Model, Vec<Item>) {
    let version = def.since.max(1);
    let (onnx, own_version) = if def.domain.name().is_empty() { (version, None) } else { (21, Some(version)) };
    let mut model = Model::new(10, onnx);
    let domain = Domain::new(def.domain.name());
    if let Some(v) = own_version {
        model.opsets.push((domain.clone(), v));
    }
    let mut node = Node::new(def.name);
    node.domain = domain;
    node.name = "the_node".into();
    node.attrs = Attrs::default();
    for _ in 0..r.below(7) {
        let (name, kind) = r.pick(NAMES);
        let kind = if r.chance(0.9) { kind } else { r.pick(&[Kind::Int, Kind::Ints, Kind::Float, Kind::Str]) };
        node.attrs.set(name, attr(r, kind));
    }
    for _ in 0..r.below(5) {
        if let Some((name, value)) = own_attribute(r, own) {
            node.attrs.set(&name, value);
        }
    }
    let most = def.inputs.max.min(def.inputs.min + 4).max(1);
    let n_inputs =
        if r.chance(0.9) { r.between(def.inputs.min as i64, most as i64) as usize } else { r.below(most + 2) };
    // Several inputs of one shape and type get further than all different ones.
    let like = tensor(r);
    let constants = r.chance(0.4);
    let g = model.main_mut();
    let (mut ins, mut fed, mut inputs) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..n_inputs {
        let value = match r.below(10) {
            0 => {
                ins.push(None);
                continue;
            }
            1..=4 => Item::Tensor(like.clone()),
            5 => Item::Tensor(tensor_of(r, &[like.rank()])),
            _ => item(r),
        };
        let name = format!("x{i}");
        ins.push(Some(match &value {
            Item::Tensor(t) if constants => g.add_initializer(name, t.clone()),
            _ => {
                let ty = value.tensor().map(|t| ValueType::Tensor(TensorType::fixed(t.dtype(), t.shape())));
                let v = g.add_value(name, ty, Def::Input);
                inputs.push(v);
                fed.push(value);
                v
            }
        }));
    }
    let extra = i64::from(r.chance(0.1));
    let n_outputs = r.between(1, def.outputs.max.min(4) as i64 + extra) as usize;
    let outputs: Vec<_> = (0..n_outputs).map(|i| g.add_result(format!("y{i}"), None)).collect();
    g.add_node(node, &ins, &outputs.iter().map(|&v| Some(v)).collect::<Vec<_>>());
    g.set_inputs(inputs);
    g.set_outputs(outputs);
    (model, fed)
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

fn describe(model: &Model, fed: &[Item]) -> String {
    let options = onnx_quant::ir::text::PrintOptions::default();
    let mut text = onnx_quant::ir::text::print(model, &options);
    for (i, x) in fed.iter().enumerate() {
        writeln!(text, "fed {i}: {}", common::compare::show(x)).unwrap();
    }
    text
}

/// What is wrong with how a call went, if anything is.
fn judge(mut model: Model, fed: Vec<Item>) -> Result<(), String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<(), String> {
        let program = Program::compile(&model, &CompileOptions::default());
        let result = program.and_then(|p| p.run(fed, RunOptions::default(), &mut NoTap));
        if let Err(e) = result {
            let text = format!("{e:#}");
            if !text.contains("the_node") {
                return Err(format!("the error does not name the node: {text}"));
            }
            if text.ends_with('.') || text.ends_with(": ") {
                return Err(format!("the error says too little, or ends with a dot: {text}"));
            }
        }
        infer(&mut model, &mut Sink::default()).map_err(|e| format!("inference failed altogether: {e:#}"))
    }));
    outcome.unwrap_or_else(|_| Err(format!("PANIC {}", PANIC.with(RefCell::take).replace('\n', " "))))
}

#[test]
fn malformed_input_is_an_error_and_never_a_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(|info| PANIC.with(|p| *p.borrow_mut() = info.to_string())));
    let only = std::env::var("MALFORMED").ok();
    let defs: Vec<&OpDef> =
        ALL.iter().copied().flatten().filter(|d| only.as_deref().is_none_or(|o| o == d.name)).collect();
    if only.is_none() {
        let domains: BTreeSet<&str> = defs.iter().map(|d| d.domain.name()).collect();
        assert!(domains.is_superset(&["", "ai.onnx.ml", "com.microsoft"].into()), "only {domains:?}");
    }
    let files = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops"));
    let failures: Vec<String> = defs
        .par_iter()
        .enumerate()
        .flat_map_iter(|(i, def)| {
            let mut r = Rng::new(i as u64 + 1);
            let own = Vocabulary::of(def, &files);
            let mut failures: Vec<String> = Vec::new();
            for _ in 0..CALLS {
                let (model, fed) = call(&mut r, def, &own);
                let started = std::time::Instant::now();
                let mut result = judge(model.clone(), fed.clone());
                if started.elapsed().as_secs() > 5 {
                    result = Err("takes more than 5 seconds".into());
                }
                if let Err(why) = result {
                    let what = why.chars().take(300).collect::<String>();
                    // One of each kind is enough.
                    let kind: String = what.chars().filter(|c| !c.is_ascii_digit()).take(80).collect();
                    if failures.len() < 3
                        && !failures
                            .iter()
                            .any(|f| f.chars().filter(|c| !c.is_ascii_digit()).collect::<String>().contains(&kind))
                    {
                        failures.push(format!("{} {}: {what}\n{}", def.name, def.since, describe(&model, &fed)));
                    }
                }
            }
            failures
        })
        .collect();
    std::panic::set_hook(print);
    assert!(failures.is_empty(), "{} kinds of failures:\n{}", failures.len(), failures.join("\n"));
}

/// Operators with bodies: name, attributes that hold one, and inputs at least and at most.
const WITH_BODIES: &[(&str, &[&str], usize, usize)] = &[
    ("Loop", &["body"], 2, 5),
    ("Scan", &["body"], 1, 4),
    ("If", &["then_branch", "else_branch"], 1, 1),
    ("SequenceMap", &["body"], 1, 4),
];

/// A body whose inputs and outputs seldom fit.
fn body(r: &mut Rng, name: &str, has_inputs: bool) -> String {
    let n_inputs = if has_inputs { r.below(6) } else { 0 };
    // A value of the outer graph may be read too.
    let known: Vec<String> = (0..n_inputs).map(|i| format!("{name}_i{i}")).chain(["x0".to_owned()]).collect();
    let n_outputs = r.below(5);
    let nodes: String = (0..n_outputs)
        .map(|i| {
            let (a, b) = (&known[r.below(known.len())], &known[r.below(known.len())]);
            let op = r.pick(&["Identity", "Not", "Shape", "Add", "Concat <axis = 0>", "SequenceConstruct", "Optional"]);
            let inputs = if matches!(op, "Add" | "SequenceConstruct") || op.starts_with("Concat") {
                format!("{a}, {b}")
            } else {
                a.clone()
            };
            format!("{name}_o{i} = {op} ({inputs})\n")
        })
        .collect();
    let outputs: Vec<String> = (0..n_outputs).map(|i| format!("{name}_o{i}")).collect();
    format!("{name} ({}) => ({}) {{ {nodes} }}", known[..n_inputs].join(", "), outputs.join(", "))
}

#[test]
fn malformed_bodies_are_errors_and_never_a_panic() {
    let mut failures = Vec::new();
    for (k, &(op, attributes, least, most)) in WITH_BODIES.iter().enumerate() {
        let mut r = Rng::new(k as u64 + 77);
        for _ in 0..CALLS {
            let n_inputs = r.between(least as i64, most as i64) as usize;
            let mut attrs: Vec<String> =
                attributes.iter().map(|a| format!("{a} = {}", body(&mut r, a, op != "If"))).collect();
            if op == "Scan" {
                attrs.push(format!("num_scan_inputs = {}", r.between(-1, 4)));
            }
            let inputs: Vec<String> = (0..n_inputs).map(|i| format!("x{i}")).collect();
            let outputs: Vec<String> = (0..r.below(4) + 1).map(|i| format!("y{i}")).collect();
            let (ins, outs) = (inputs.join(", "), outputs.join(", "));
            let text = format!(
                "<ir_version: 10, opset_import: [\"\" : 21]>\nmain ({ins}) => ({outs}) {{\n[the_node] {outs} = {op} <{}> ({ins})\n}}",
                attrs.join(", ")
            );
            let model = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            let mut fed: Vec<Item> = inputs.iter().map(|_| item(&mut r)).collect();
            // A loop that ends.
            if op == "Loop" {
                fed[0] = Item::Tensor(if r.chance(0.8) {
                    Tensor::scalar(r.between(-1, 3))
                } else {
                    Tensor::vector(vec![0i32; 2])
                });
            }
            if r.chance(0.7) && (op == "If" || op == "Loop") {
                let at = usize::from(op == "Loop");
                fed[at] = Item::Tensor(Tensor::scalar(r.chance(0.7)));
            }
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let mut model = model.clone();
                let _ = Program::compile(&model, &CompileOptions::default())
                    .and_then(|p| p.run(fed.clone(), RunOptions::default(), &mut NoTap));
                let _ = infer(&mut model, &mut Sink::default());
            }));
            if outcome.is_err() && failures.len() < 5 {
                failures.push(format!("{op} panics:\n{}", describe(&model, &fed)));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
