//! Passes keep what a model computes: every pass alone, and the pipeline before quantization, on every float model of
//! `testdata/models`, with the interpreter before and after on its samples; and every pass on its own cases of
//! `testdata/passes`, so that each changes something that is run.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use common::testdata;
use onnx_quant::calibrate::dataset::{Dataset, Request, input_specs, open};
use onnx_quant::diag::Sink;
use onnx_quant::infer::infer;
use onnx_quant::interp::{CompileOptions, NoTap, Program, RunOptions};
use onnx_quant::ir::text_parse::parse;
use onnx_quant::ir::verify::verify;
use onnx_quant::ir::{Def, Model, ValueId};
use onnx_quant::ops::Item;
use onnx_quant::passes::{self, Ctx, Pass, manager};
use onnx_quant::tensor::{DType, Tensor};

const SAMPLES: usize = 3;

fn models() -> Vec<(PathBuf, PathBuf)> {
    let mut found: Vec<_> = fs::read_dir(testdata("models"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx") && p.with_extension("npz").exists())
        .map(|p| (p.clone(), p.with_extension("npz")))
        .collect();
    found.sort();
    found
}

/// The outputs on a few samples; `None` for those that depend on an operator that is not known.
fn outputs(model: &Model, samples: &dyn Dataset) -> Vec<Option<Tensor>> {
    let options = CompileOptions { skip_unknown: true, ..CompileOptions::default() };
    let program = Program::compile(model, &options).unwrap();
    let mut all = Vec::new();
    for i in 0..samples.len().min(SAMPLES) {
        let inputs = samples.sample(i).unwrap().inputs;
        for item in program.run_named(&inputs, RunOptions::default(), &mut NoTap).unwrap() {
            all.push(item.map(|i| if let Item::Tensor(t) = i { t } else { panic!("an output is no tensor") }));
        }
    }
    all
}

/// The largest difference relative to the largest magnitude; `None` when type, shape or presence differ.
fn difference(before: &[Option<Tensor>], after: &[Option<Tensor>]) -> Option<f64> {
    let mut worst = 0f64;
    for pair in before.iter().zip(after) {
        let (x, y) = match pair {
            (Some(x), Some(y)) => (x, y),
            (None, None) => continue,
            _ => return None,
        };
        if x.dtype() != y.dtype() || x.shape() != y.shape() {
            return None;
        }
        let (Ok(x), Ok(y)) = (x.to_f32s(), y.to_f32s()) else { continue };
        let scale = x.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
        let largest = x.iter().zip(&*y).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        worst = worst.max(f64::from(largest / scale));
    }
    (before.len() == after.len()).then_some(worst)
}

/// The passes' own cases.
fn fixtures() -> Vec<(&'static dyn Pass, PathBuf)> {
    let mut found = Vec::new();
    for folder in fs::read_dir(testdata("passes")).unwrap() {
        let folder = folder.unwrap().path();
        let pass = passes::find(folder.file_name().unwrap().to_str().unwrap()).unwrap();
        found.extend(fs::read_dir(&folder).unwrap().map(|case| (pass, case.unwrap().path())));
    }
    found.sort_by(|a, b| a.1.cmp(&b.1));
    found
}

/// Inputs of a fixed pattern; `None` where an input has a type that is not made here.
fn made_inputs(model: &Model) -> Option<Vec<(String, Tensor)>> {
    let g = model.main();
    let inputs = g.inputs().iter().filter(|&&v| matches!(g.value(v).def, Def::Input));
    let one = |&v: &ValueId| {
        let value = g.value(v);
        let ty = value.ty.as_ref()?;
        let shape: Vec<usize> = ty.shape()?.iter().map(|d| d.known().unwrap_or(2)).collect();
        let n: usize = shape.iter().product();
        let t = match ty.dtype()? {
            DType::F32 => Tensor::new(&shape, (0..n).map(|i| (i % 7) as f32 - 3.0).collect()),
            DType::F16 => Tensor::new(&shape, (0..n).map(|i| half::f16::from_f32((i % 7) as f32 - 3.0)).collect()),
            DType::I64 => Tensor::new(&shape, (0..n).map(|i| (i % 2) as i64).collect()),
            DType::Bool => Tensor::new(&shape, (0..n).map(|i| i % 3 > 0).collect()),
            _ => return None,
        };
        Some((value.name.clone(), t.ok()?))
    };
    inputs.map(one).collect()
}

/// The outputs on these inputs; `None` for a model that does not run.
fn run_once(model: &Model, inputs: &[(String, Tensor)]) -> Option<Vec<Option<Tensor>>> {
    let options = CompileOptions { skip_unknown: true, ..CompileOptions::default() };
    let items = Program::compile(model, &options).ok()?.run_named(inputs, RunOptions::default(), &mut NoTap).ok()?;
    Some(items.into_iter().map(|o| if let Some(Item::Tensor(t)) = o { Some(t) } else { None }).collect())
}

#[test]
fn passes_do_not_change_what_is_computed() {
    let mut failures = String::new();
    let mut n_changed: BTreeMap<&str, usize> = BTreeMap::new();
    for (path, data) in models() {
        let model = onnx_quant::onnx::read(&path).unwrap();
        let request =
            Request { specs: input_specs(&model).unwrap(), shapes: Vec::new(), seed: 0, ..Request::default() };
        let samples = open(&[data], &request, &mut Sink::default()).unwrap();
        let before = outputs(&model, &samples);
        // Half precision is widened: that rounds less than the model did.
        let tolerance = if path.file_stem().is_some_and(|s| s == "half_precision") { 2e-3 } else { 1e-5 };
        let mut compare = |name: &str, after: &Model| {
            let broken = verify(after);
            let found = difference(&before, &outputs(after, &samples));
            if !broken.is_empty() || found.is_none_or(|d| d > tolerance) {
                failures.push_str(&format!("{} after {name}: {found:?} {broken:?}\n", path.display()));
            }
        };
        for pass in passes::ALL {
            let mut after = model.clone();
            let mut sink = Sink::default();
            let changed = manager::run_pass(&mut after, *pass, &mut Ctx::new(&mut sink).opset_floor(13)).unwrap();
            *n_changed.entry(pass.info().name).or_default() += usize::from(changed);
            // A pass leaves what it has replaced for this one.
            manager::run(&mut after, &passes::CLEANUP, &mut Ctx::new(&mut sink), &mut |_, _| {}).unwrap();
            compare(pass.info().name, &after);
        }
        let mut after = model.clone();
        let mut sink = Sink::default();
        let mut ctx = Ctx::new(&mut sink).opset_floor(13);
        manager::run(&mut after, &passes::PREPARE, &mut ctx, &mut |_, _| {}).unwrap();
        compare("prepare", &after);
    }
    // The models of testdata/passes have what these have nothing of.
    let mut n_run = 0;
    for (pass, path) in fixtures() {
        let text = fs::read_to_string(&path).unwrap();
        let Ok(mut model) = parse(text.split("====\n").next().unwrap()) else { continue };
        if text.contains("#! infer") {
            infer(&mut model, &mut Sink::default()).unwrap();
        }
        let Some(inputs) = made_inputs(&model) else { continue };
        let Some(before) = run_once(&model, &inputs) else { continue };
        // What is drawn at random depends on the number of nodes: all but its values is compared.
        let is_random = text.contains("= Random");
        n_run += 1;
        let mut after = model.clone();
        let mut sink = Sink::default();
        let mut ctx = Ctx::new(&mut sink).opset_floor(13);
        let Ok(changed) = manager::run_pass(&mut after, pass, &mut ctx) else { continue };
        *n_changed.entry(pass.info().name).or_default() += usize::from(changed);
        manager::run(&mut after, &passes::CLEANUP, &mut Ctx::new(&mut sink), &mut |_, _| {}).unwrap();
        let tolerance = if pass.info().name == "widen_float16" { 2e-3 } else { 1e-5 };
        let found = run_once(&after, &inputs).and_then(|after| difference(&before, &after));
        if found.is_none_or(|d| d > tolerance && !is_random) {
            failures.push_str(&format!("{}: {found:?}\n", path.display()));
        }
    }
    let idle: Vec<&str> = n_changed.iter().filter(|(_, n)| **n == 0).map(|(name, _)| *name).collect();
    assert!(
        idle.is_empty() && n_run >= 20,
        "{n_run} fixtures; passes that change no model: {idle:?}; all: {n_changed:?}"
    );
    assert!(failures.is_empty(), "{failures}");
}
