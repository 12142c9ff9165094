//! Small models made for a target and compared between our interpreter, ONNX Runtime and OpenVINO.

use std::path::Path;

use onnx_quant::calibrate::dataset::{Dataset, Request, Samples, input_specs, open};
use onnx_quant::diag::Sink;
use onnx_quant::interp::{CompileOptions, Program, RunOptions};
use onnx_quant::ir::Model;
use onnx_quant::onnx::{WriteOptions, read, write};
use onnx_quant::quant::check::check;
use onnx_quant::quant::scheme::{Choices, Scheme};
use onnx_quant::quant::target::Target;
use onnx_quant::quant::{Config, Data, Quantized, Quiet, quantize};
use onnx_quant::tensor::{DType, Tensor};

use super::npz::Array;
use super::ort::{Level, onnx_check, ort_run_at};
use super::testdata;

/// A model of `testdata/models` with its samples.
pub fn load(name: &str) -> (Model, Samples) {
    let model = read(&testdata(&format!("models/{name}.onnx"))).unwrap();
    let request = Request { specs: input_specs(&model).unwrap(), ..Request::default() };
    let data = open(&[testdata(&format!("models/{name}.npz"))], &request, &mut Sink::default()).unwrap();
    (model, data)
}

/// A model of `testdata/models` made for a target, and its first sample.
pub fn made(name: &str, target: &str, choices: &Choices) -> (Quantized, Vec<(String, Tensor)>) {
    made_with(name, target, choices, |_| {})
}

/// [`made`] with other settings.
pub fn made_with(
    name: &str,
    target: &str,
    choices: &Choices,
    set: impl FnOnce(&mut Config),
) -> (Quantized, Vec<(String, Tensor)>) {
    let (model, samples) = load(name);
    let base = Config::new(target).unwrap();
    let scheme = Scheme::new(&base.target, choices).unwrap();
    // No floor: what the types give is looked at, however coarse.
    let mut config = Config { scheme, min_sqnr_db: f64::NEG_INFINITY, threads: 1, ..base };
    config.target.cost = None;
    set(&mut config);
    let data = Data { calibration: &samples, holdout: &samples, is_shared: true, labels: None };
    let done = quantize(model, &config, &data, &Quiet, &mut |_, _| {}, &mut Sink::default())
        .unwrap_or_else(|e| panic!("{name} for {target}: {e:#}"));
    (done, samples.sample(0).unwrap().inputs)
}

/// Inputs as what goes to Python.
pub fn arrays(inputs: &[(String, Tensor)]) -> Vec<(&str, Array)> {
    let of = |t: &Tensor| match t.dtype() {
        DType::F32 => Array::new(t.shape(), t.slice::<f32>().unwrap()),
        DType::I64 => Array::new(t.shape(), t.slice::<i64>().unwrap()),
        d => panic!("an input of type {d}"),
    };
    inputs.iter().map(|(n, t)| (n.as_str(), of(t))).collect()
}

/// The elements of an output.
pub fn numbers(a: &Array) -> Vec<f64> {
    match a.descr.as_str() {
        "<f4" => a.to_vec::<f32>().into_iter().map(f64::from).collect(),
        "<i8" => a.to_vec::<i64>().into_iter().map(|x| x as f64).collect(),
        other => panic!("an output of type {other}"),
    }
}

/// What the scale of the `DequantizeLinear` in front of an output says; without one a hundredth of what is measured, as
/// then nothing but the order of float sums is different.
pub fn step(model: &Model, output: &str, values: &[f64]) -> f64 {
    let g = model.main();
    let v = g.find_value(output).unwrap();
    let scale = g.producer(v).filter(|(n, _)| g.node(*n).op_type == "DequantizeLinear").and_then(|(n, _)| {
        let s = g.constant(g.input(n, 1)?)?;
        s.get().ok()?.to_f64().ok()
    });
    scale.unwrap_or_else(|| values.iter().fold(0f64, |m, x| m.max(x.abs())) / 100.0)
}

/// How far apart two runtimes are, in steps of the output, over all outputs.
pub fn steps_apart(model: &Model, ours: &[(String, Vec<f64>)], theirs: &[(String, Array)]) -> f64 {
    let mut worst = 0f64;
    for (name, a) in ours {
        let b = &theirs.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("output {name} is missing")).1;
        let b = numbers(b);
        assert_eq!(a.len(), b.len());
        let step = step(model, name, a);
        for (x, y) in a.iter().zip(&b) {
            worst = worst.max((x - y).abs() / step);
        }
    }
    worst
}

/// What our interpreter makes of a sample.
pub fn interpreted(model: &Model, inputs: &[(String, Tensor)]) -> Vec<(String, Vec<f64>)> {
    let program = Program::compile(model, &CompileOptions::default()).unwrap();
    let ordered: Vec<Tensor> = model
        .main()
        .inputs()
        .iter()
        .map(|&v| inputs.iter().find(|(n, _)| *n == model.main().value(v).name).unwrap().1.clone())
        .collect();
    let values = program.run_tensors(&ordered, RunOptions::default()).unwrap();
    let names = model.main().outputs().iter().map(|&v| model.main().value(v).name.clone());
    names.zip(values).map(|(n, t)| (n, t.to_f64s().unwrap())).collect()
}

/// Writes, checks with ONNX's own checker and ours, runs in ONNX Runtime without fusions, and compares.
pub fn agree(what: &str, done: &Quantized, target: &str, inputs: &[(String, Tensor)], path: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    write(&done.model, path, &WriteOptions::default()).unwrap();
    if let Err(e) = onnx_check(path) {
        problems.push(format!("{what}: the checker says {e}"));
    }
    let target = Target::named(target).unwrap();
    let found = check(&read(path).unwrap(), Some(&target));
    // Open shapes are the model's, not ours; a floor on operators likewise.
    let ours = found.iter().filter(|f| !["shape-not-fixed", "float-operator"].contains(&f.code));
    problems.extend(ours.map(|f| format!("{what}: {f}")));
    let given = arrays(inputs);
    let given: Vec<_> = given.iter().map(|(n, a)| (*n, a)).collect();
    let ours = interpreted(&done.model, inputs);
    match ort_run_at(path, &given, Level::Disabled) {
        Err(e) => problems.push(format!("{what}: ONNX Runtime says {e}")),
        Ok(theirs) => {
            let apart = steps_apart(&done.model, &ours, &theirs);
            if apart > 1.01 {
                problems.push(format!("{what}: ONNX Runtime is {apart:.2} steps away"));
            }
        }
    }
    problems
}
