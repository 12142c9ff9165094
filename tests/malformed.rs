//! Every operator on malformed input: wrong numbers, kinds, ranks and types of inputs, absurd indices, sizes and
//! attributes. Evaluation and inference must give an error that names the node, or a result; never a panic, and never
//! an attempt to allocate what cannot be there.

mod common;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use common::rng::Rng;
use half::{bf16, f16};
use onnx_quant::diag::Sink;
use onnx_quant::infer::infer;
use onnx_quant::interp::{CompileOptions, NoTap, Program, RunOptions};
use onnx_quant::ir::{Attr, Attrs, Def, Domain, Model, Node, TensorRef, TensorType, ValueType};
use onnx_quant::ops::{ALL, Item, OpDef};
use onnx_quant::tensor::{C64, DType, Tensor};
use rayon::prelude::*;

/// Calls of each definition.
const CALLS: usize = 400;

/// Attribute names of ONNX's operators, with the kind that most of them have.
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

#[derive(Clone, Copy)]
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

/// One malformed call as a model with a node named `the_node`, and what is fed.
fn call(r: &mut Rng, def: &OpDef) -> (Model, Vec<Item>) {
    let version = def.since.max(1);
    let (onnx, own) = if def.domain.name().is_empty() { (version, None) } else { (21, Some(version)) };
    let mut model = Model::new(10, onnx);
    let domain = Domain::new(def.domain.name());
    if let Some(v) = own {
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
    let failures: Vec<String> = defs
        .par_iter()
        .enumerate()
        .flat_map_iter(|(i, def)| {
            let mut r = Rng::new(i as u64 + 1);
            let mut failures: Vec<String> = Vec::new();
            for _ in 0..CALLS {
                let (model, fed) = call(&mut r, def);
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
