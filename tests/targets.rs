//! Small models made for every target and in every type, run where they are to run: findings of `check`, agreement of
//! ONNX Runtime and OpenVINO with our interpreter, integer kernels where the target promises them.
//!
//! The support table of the README comes out of these runs: `UPDATE=1 cargo test --test targets` writes it.

mod common;

use std::fmt::Write as _;

use common::has_exact_products;
use common::made::{agree, arrays, interpreted, made, steps_apart};
use common::ort::openvino_run;
use onnx_quant::onnx::{WriteOptions, write};
use onnx_quant::quant::scheme::{Choices, Scheme};
use onnx_quant::quant::target::Target;
use onnx_quant::tensor::DType;

/// Models of every kind that the targets tell apart: convolutions with a residual, dense layers, an encoder with attention,
/// two inputs, concatenation.
const MODELS: &[&str] = &["small_cnn", "dense10", "encoder", "two_inputs", "concat_ranges"];

#[test]
fn every_target_on_every_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut problems = Vec::new();
    for target in Target::all().unwrap() {
        for name in MODELS {
            let what = format!("{name} for {}", target.name);
            let (done, inputs) = made(name, &target.name, &Choices::default());
            assert!(done.plan.n_integer() > 0, "{what}: nothing was quantized\n{}", done.plan.print(&done.prepared));
            problems.extend(agree(&what, &done, &target.name, &inputs, &dir.path().join("m.onnx")));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Every pair of types in every form that a target takes.
fn forms(target: &Target) -> Vec<(String, Choices)> {
    let mut out = Vec::new();
    for a in target.activation.types().unwrap() {
        for w in target.weight.types().unwrap() {
            for symmetric_activations in [false, true] {
                for symmetric_weights in [false, true] {
                    let choices = Choices {
                        activation: Some(a),
                        weight: Some(w),
                        symmetric_activations: Some(symmetric_activations),
                        symmetric_weights: Some(symmetric_weights),
                        ..Choices::default()
                    };
                    // An 8-bit float has one form only.
                    let is_float = a.is_float8() || w.is_float8();
                    if Scheme::new(target, &choices).is_ok()
                        && !(is_float && !(symmetric_activations && symmetric_weights))
                    {
                        let form = |s| if s { "symmetric" } else { "asymmetric" };
                        let what =
                            format!("{a} {}, weights {w} {}", form(symmetric_activations), form(symmetric_weights));
                        out.push((what, choices));
                    }
                }
            }
        }
    }
    out
}

#[test]
fn every_type_and_form_runs_in_onnx_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let mut problems = Vec::new();
    let mut n = 0;
    let target = Target::named("portable").unwrap();
    for (what, choices) in forms(&target) {
        for name in ["small_cnn", "dense10"] {
            let what = format!("{name}, {what}");
            let (done, inputs) = made(name, &target.name, &choices);
            problems.extend(agree(&what, &done, &target.name, &inputs, &dir.path().join("m.onnx")));
            n += 1;
        }
    }
    assert!(n >= 40, "{n} forms only");
    // The operators of com.microsoft have 16 bits at any opset.
    let choices = Choices { activation: Some(DType::U16), own_domain: true, ..Choices::default() };
    let (done, inputs) = made("small_cnn", "portable", &choices);
    assert!(done.model.onnx_opset() < 21);
    problems.extend(agree("com.microsoft", &done, "portable", &inputs, &dir.path().join("m.onnx")));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn openvino_runs_its_models_in_integers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    let mut problems = Vec::new();
    for target in ["openvino", "portable", "ort-cpu"] {
        for name in MODELS {
            let what = format!("{name} for {target}");
            // Eight bits saturate in OpenVINO's kernels, too, where the machine has no exact products.
            let choices = Choices { reduce_range: Some(!has_exact_products()), ..Choices::default() };
            let (done, inputs) = made(name, target, &choices);
            write(&done.model, &path, &WriteOptions::default()).unwrap();
            let given = arrays(&inputs);
            let given: Vec<_> = given.iter().map(|(n, a)| (*n, a)).collect();
            match openvino_run(&path, &given) {
                Err(e) => problems.push(format!("{what}: {e}")),
                Ok((theirs, layers)) => {
                    let ours = interpreted(&done.model, &inputs);
                    let apart = steps_apart(&done.model, &ours, &theirs);
                    let mut said = String::new();
                    for (kind, precision) in &layers {
                        let _ = write!(said, " {kind}:{precision}");
                    }
                    if apart > 2.01 {
                        problems.push(format!("{what}: OpenVINO is {apart:.2} steps away:{said}"));
                    }
                    let heavy = |kind: &str| matches!(kind, "Convolution" | "FullyConnected" | "MatMul");
                    let float = layers.iter().filter(|(k, p)| heavy(k) && p != "i8" && p != "u8").count();
                    let n_float: usize = done.report.weighted.values().map(|(int, all)| all - int).sum();
                    if target == "openvino" && float > n_float + attention_products(name) {
                        problems.push(format!("{what}: {float} products in float:{said}"));
                    }
                }
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Products of two activations, which have no weight and stay float.
fn attention_products(name: &str) -> usize {
    if name == "encoder" { 2 } else { 0 }
}
