//! Real models in floating point: our outputs against ONNX Runtime's, and for some of them every value of the graph.
//!
//! The models of `testdata` run always; those of a folder of real models where `ONNX_QUANT_ZOO` (or `ZOO_DIR`) names
//! one. `ZOO_MODELS=mnist,superres` runs some of them, `ZOO_VALUES=mnist` compares every value of others.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::npz::{self, Array};
use common::ort::{Level, ort_run_npz};
use common::tensors::from_array;
use common::{testdata, zoo};
use onnx_quant::interp::{CompileOptions, NoTap, Program, RunOptions};
use onnx_quant::ir::{Def, Model, TensorType, ValueType};
use onnx_quant::onnx::{read, to_bytes};
use onnx_quant::ops::Item;
use onnx_quant::tensor::Tensor;

/// Largest difference of an output, relative to the output's largest element.
const TOLERANCE: f64 = 1e-4;

/// Models whose outputs ONNX Runtime itself does not reproduce to [`TOLERANCE`], with how far it is apart and why.
const LOOSE: &[(&str, f64, &str)] = &[
    (
        "isnet_fp16",
        2e-3,
        "half precision: every operator rounds to 11 bits, and ONNX Runtime computes some in single precision",
    ),
    (
        "basic_pitch",
        2e-4,
        "logarithms of small energies: ONNX Runtime differs by 1.1e-4 from itself when it changes layouts",
    ),
];

/// Models that are compared node by node instead of by their outputs. Inside smart_turn_int8 a difference of one unit
/// in the last place becomes a step of a quantized value, and five layers later ONNX Runtime's result without fusions
/// and with them differ by 1.2 times the output: such outputs say nothing, and each node must do what it should with
/// the inputs that ONNX Runtime gave it.
const NODE_BY_NODE: &[&str] = &["minilm_l6_int8", "smart_turn_int8"];

/// The share of a quantized tensor's elements that may be one step off: what lies on the edge between two steps.
const ON_EDGE: f64 = 1e-3;

/// Samples of each model.
const SAMPLES: usize = 3;

/// Models whose every value is compared.
const EVERY_VALUE: &[&str] = &["mnist", "crnn_en", "silero_vad_op15", "ppocr_v4_rec", "minilm_l3"];

#[test]
fn outputs_of_the_models_in_testdata() {
    let dir = testdata("models");
    let mut failures = Vec::new();
    let mut n_models = 0;
    for model in onnx_files(&dir) {
        let samples = model.with_extension("npz");
        // Models that show what is refused have no samples or operators that nobody knows.
        let Ok(m) = read(&model) else { continue };
        if !samples.exists() || Program::compile(&m, &CompileOptions::default()).is_err() {
            continue;
        }
        let Ok(theirs) = ort_run_npz(&model, &samples, Level::Disabled) else { continue };
        n_models += 1;
        match worst(&m, &samples, &theirs) {
            Ok((error, _)) if error <= TOLERANCE => {}
            // Half precision: one rounding step of 11 bits, where both round in another place.
            Ok((error, _)) if error <= 1e-3 && model.ends_with("half_precision.onnx") => {}
            Ok((error, name)) => failures.push(format!("{}: {name} differs by {error:.1e}", model.display())),
            Err(e) => failures.push(format!("{}: {e}", model.display())),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(n_models >= 4, "only {n_models} models of testdata ran");
}

#[test]
fn outputs_of_real_models() {
    let Some(zoo) = zoo() else { return };
    let mut failures = Vec::new();
    for (name, model) in models(&zoo).into_iter().filter(|(n, _)| n != "smart_turn_int8") {
        let started = Instant::now();
        let outcome = (|| {
            let m = read(&model).map_err(|e| format!("{e:#}"))?;
            let mut worst_of_all = (0.0, String::new());
            for sample in samples(&zoo, &name) {
                let theirs = ort_run_npz(&model, &sample, Level::Disabled)?;
                let found = worst(&m, &sample, &theirs)?;
                if found.0 >= worst_of_all.0 {
                    worst_of_all = found;
                }
            }
            Ok::<_, String>(worst_of_all)
        })();
        let tolerance = LOOSE.iter().find(|(n, _, _)| *n == name).map_or(TOLERANCE, |(_, t, _)| *t);
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok((error, output)) => {
                println!("{name:24} {error:.1e}  {output}  ({seconds:.1} s)");
                if error > tolerance {
                    failures.push(format!("{name}: {output} differs by {error:.1e}"));
                }
            }
            Err(e) => {
                println!("{name:24} FAILS {e}");
                failures.push(format!("{name}: {e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_value_of_real_models() {
    let Some(zoo) = zoo() else { return };
    let chosen = std::env::var("ZOO_VALUES").ok();
    let names: Vec<&str> = chosen.as_deref().map_or(EVERY_VALUE.to_vec(), |c| c.split(',').collect());
    let mut failures = Vec::new();
    for (name, model) in models(&zoo).into_iter().filter(|(n, _)| names.contains(&n.as_str())) {
        let sample = samples(&zoo, &name).remove(0);
        match every_value(&model, &sample) {
            Ok((n, error)) => println!("{name:24} {n} values, worst {error:.1e}"),
            Err(e) => failures.push(format!("{name}: {e}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_node_of_quantized_models() {
    let Some(zoo) = zoo() else { return };
    let mut failures = Vec::new();
    for (name, model) in models(&zoo).into_iter().filter(|(n, _)| NODE_BY_NODE.contains(&n.as_str())) {
        for sample in samples(&zoo, &name) {
            match every_node(&model, &sample) {
                Ok(r) => println!(
                    "{name:24} {} nodes, floats differ by {:.1e}, integers by a step in {:.1e} of their elements",
                    r.n_nodes, r.worst, r.edge
                ),
                Err(e) => failures.push(format!("{name}: {e}")),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The largest difference among the outputs, and the output that has it.
fn worst(model: &Model, sample: &Path, theirs: &[(String, Array)]) -> Result<(f64, String), String> {
    let ours = outputs(model, sample)?;
    let mut worst = (0.0, String::new());
    for (name, array) in theirs {
        let Some(Some(item)) = ours.get(name) else { return Err(format!("output {name} is not computed")) };
        let Some(t) = item.tensor() else { return Err(format!("output {name} is no tensor")) };
        let error = difference(t, &from_array(array)).map_err(|e| format!("output {name}: {e}"))?;
        if error >= worst.0 {
            worst = (error, name.clone());
        }
    }
    Ok(worst)
}

/// Runs a model on the arrays of a sample.
fn outputs(model: &Model, sample: &Path) -> Result<BTreeMap<String, Option<Item>>, String> {
    let program = Program::compile(model, &CompileOptions::default()).map_err(|e| format!("{e:#}"))?;
    let mut feeds: BTreeMap<String, Tensor> =
        npz::read(sample).iter().map(|(n, a)| (n.clone(), from_array(a))).collect();
    let mut items = Vec::new();
    for input in program.inputs() {
        let fed = feeds.remove(&input.name).map(Ok).or_else(|| input.default.as_ref().map(|d| d.get().cloned()));
        let fed = fed.ok_or_else(|| format!("the sample lacks input {}", input.name))?;
        items.push(Item::Tensor(fed.map_err(|e| format!("{e:#}"))?));
    }
    let options = RunOptions { threads: 2, ..RunOptions::default() };
    let made = program.run(items, options, &mut NoTap).map_err(|e| format!("{e:#}"))?;
    Ok(program.outputs().iter().cloned().zip(made).collect())
}

/// The largest difference of two tensors, relative to the largest element of the second.
fn difference(got: &Tensor, expected: &Tensor) -> Result<f64, String> {
    if (got.dtype(), got.shape()) != (expected.dtype(), expected.shape()) {
        let (g, e) = (got, expected);
        return Err(format!("{}{:?}, expected {}{:?}", g.dtype(), g.shape(), e.dtype(), e.shape()));
    }
    let (g, e) = (got.to_f64s().map_err(|e| e.to_string())?, expected.to_f64s().map_err(|e| e.to_string())?);
    let largest = e.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
    let error = |(g, e): (&f64, &f64)| match () {
        () if g == e || g.is_nan() && e.is_nan() => 0.0,
        () if g.is_finite() && e.is_finite() => (g - e).abs() / largest.max(f64::MIN_POSITIVE),
        () => f64::INFINITY,
    };
    Ok(g.iter().zip(&e).map(error).fold(0.0, f64::max))
}

/// Compares every value of the main graph, and names the first node that differs by itself: whose inputs agree.
fn every_value(path: &Path, sample: &Path) -> Result<(usize, f64), String> {
    let mut model = read(path).map_err(|e| format!("{e:#}"))?;
    let order = model.main().order().map_err(|e| format!("{e:#}"))?;
    let g = model.main_mut();
    let values: Vec<_> = order.iter().flat_map(|&n| g.node_outputs(n)).flatten().collect();
    // Sequences and optionals have no NumPy form; a value without elements to compare stays inside.
    let values: Vec<_> = values
        .into_iter()
        .filter(|&v| matches!(g.value(v).def, Def::Node))
        .filter(|&v| g.value(v).ty.as_ref().is_none_or(|t| t.as_tensor().is_some()))
        .collect();
    g.set_outputs(values.clone());
    let dir = tempfile::tempdir().unwrap();
    let all = dir.path().join("all.onnx");
    std::fs::write(&all, to_bytes(&model).map_err(|e| format!("{e:#}"))?).unwrap();
    let theirs: BTreeMap<String, Array> = ort_run_npz(&all, sample, Level::Disabled)?.into_iter().collect();
    let ours = outputs(&model, sample)?;
    let g = model.main();
    let (mut n, mut worst) = (0, 0.0f64);
    for &node in &order {
        for v in g.node_outputs(node).into_iter().flatten().filter(|v| values.contains(v)) {
            let name = &g.value(v).name;
            let (Some(Some(Item::Tensor(t))), Some(array)) = (ours.get(name), theirs.get(name)) else {
                return Err(format!("value {name} is not computed"));
            };
            let node = g.node(node);
            let at = |e: String| format!("{name} of node \"{}\" ({}): {e}", node.name, node.op_type);
            let error = difference(t, &from_array(array)).map_err(at)?;
            if error > 10.0 * TOLERANCE {
                return Err(at(format!("differs by {error:.1e}")));
            }
            worst = worst.max(error);
            n += 1;
        }
    }
    Ok((n, worst))
}

/// What came of comparing nodes.
#[derive(Default)]
struct Nodes {
    n_nodes: usize,
    /// Largest difference of a float, relative to the tensor's largest element.
    worst: f64,
    /// Largest share of a tensor's integers that are one step off.
    edge: f64,
}

/// Compares every node of the main graph on the inputs that ONNX Runtime gives it.
fn every_node(path: &Path, sample: &Path) -> Result<Nodes, String> {
    let model = read(path).map_err(|e| format!("{e:#}"))?;
    let theirs = all_values(&model, sample)?;
    let cut = cut_apart(&model, &theirs)?;
    let program = Program::compile(&cut, &CompileOptions::default()).map_err(|e| format!("{e:#}"))?;
    let given: BTreeMap<String, Tensor> = npz::read(sample).iter().map(|(n, a)| (n.clone(), from_array(a))).collect();
    let feeds = program.inputs().iter().map(|input| {
        let value = given.get(&input.name).or_else(|| theirs.get(input.name.strip_suffix(GIVEN)?));
        value.cloned().map(Item::Tensor).ok_or_else(|| format!("there is no value for {}", input.name))
    });
    let feeds = feeds.collect::<Result<Vec<_>, _>>()?;
    let options = RunOptions { threads: 2, ..RunOptions::default() };
    let made = program.run(feeds, options, &mut NoTap).map_err(|e| format!("{e:#}"))?;
    let mut found = Nodes::default();
    for (name, item) in program.outputs().iter().zip(made) {
        let Some(Item::Tensor(t)) = item else { return Err(format!("value {name} is not computed")) };
        let expected = &theirs[name];
        found.n_nodes += 1;
        if t.dtype().is_integer() && t.dtype().bits() == 8 && t.shape() == expected.shape() {
            let (g, e) = (t.to_i64s().unwrap(), expected.to_i64s().unwrap());
            let n_off = g.iter().zip(&e).filter(|(g, e)| g != e).count();
            let far = g.iter().zip(&e).any(|(g, e)| (g - e).abs() > 1);
            let share = n_off as f64 / g.len().max(1) as f64;
            if far || share > ON_EDGE {
                return Err(format!("{name}: {n_off} of {} integers differ", g.len()));
            }
            found.edge = found.edge.max(share);
            continue;
        }
        let error = difference(&t, expected).map_err(|e| format!("{name}: {e}"))?;
        if error > TOLERANCE {
            return Err(format!("{name} differs by {error:.1e}"));
        }
        found.worst = found.worst.max(error);
    }
    Ok(found)
}

/// What the inputs that stand for values of the graph are called.
const GIVEN: &str = ".given";

/// The model with every node on its own: what another node makes it gets as an input, and all that is made goes out.
fn cut_apart(model: &Model, values: &BTreeMap<String, Tensor>) -> Result<Model, String> {
    let mut cut = model.clone();
    let order = cut.main().order().map_err(|e| format!("{e:#}"))?;
    let g = cut.main_mut();
    let (mut inputs, mut given) = (g.inputs().to_vec(), BTreeMap::new());
    let made: Vec<_> = order.iter().flat_map(|&n| g.node_outputs(n)).flatten().collect();
    for &n in &order {
        for (slot, v) in g.node_inputs(n).into_iter().enumerate() {
            let Some(v) = v.filter(|v| matches!(g.value(*v).def, Def::Node)) else { continue };
            let name = g.value(v).name.clone();
            let value = values.get(&name).ok_or_else(|| format!("there is no value for {name}"))?;
            let input = *given.entry(name.clone()).or_insert_with(|| {
                let ty = ValueType::Tensor(TensorType::fixed(value.dtype(), value.shape()));
                let input = g.add_value(format!("{name}{GIVEN}"), Some(ty), Def::Input);
                inputs.push(input);
                input
            });
            g.set_input(n, slot, Some(input));
        }
    }
    g.set_inputs(inputs);
    g.set_outputs(made);
    Ok(cut)
}

/// Every value that nodes of the main graph make, as ONNX Runtime computes it without rewriting anything.
fn all_values(model: &Model, sample: &Path) -> Result<BTreeMap<String, Tensor>, String> {
    let mut model = model.clone();
    let order = model.main().order().map_err(|e| format!("{e:#}"))?;
    let g = model.main_mut();
    let made: Vec<_> = order.iter().flat_map(|&n| g.node_outputs(n)).flatten().collect();
    g.set_outputs(made);
    let dir = tempfile::tempdir().unwrap();
    let all = dir.path().join("all.onnx");
    std::fs::write(&all, to_bytes(&model).map_err(|e| format!("{e:#}"))?).unwrap();
    let theirs = ort_run_npz(&all, sample, Level::Disabled)?;
    Ok(theirs.into_iter().map(|(name, a)| (name, from_array(&a))).collect())
}

fn models(zoo: &Path) -> Vec<(String, PathBuf)> {
    let only = std::env::var("ZOO_MODELS").ok();
    let named = onnx_files(&zoo.join("models")).into_iter().map(|p| {
        let name = p.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, p)
    });
    named.filter(|(n, _)| only.as_deref().is_none_or(|o| o.split(',').any(|o| o == n))).collect()
}

fn samples(zoo: &Path, name: &str) -> Vec<PathBuf> {
    let dir = zoo.join("data").join(name).join("eval");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "npz"));
    files.sort();
    files.truncate(if name == "isnet_fp16" { 1 } else { SAMPLES });
    files
}

fn onnx_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    files.sort();
    files
}
