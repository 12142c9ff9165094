//! Small models through the program and into ONNX Runtime: the output is valid, runs with integer kernels where the
//! plan says so, and gives nearly what the float model gives.

mod common;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use common::npz::{self, Array};
use common::ort::{Level, onnx_check, ort_optimized_ops, ort_run};
use common::testdata;

/// A model of `testdata/models` and what has to come of it.
struct Case {
    name: &'static str,
    /// The least SQNR of any output in ONNX Runtime, over all samples together, in dB. Some 3 dB below what is measured.
    sqnr: f64,
    /// Operators of the graph that ONNX Runtime runs, with their number.
    runs: &'static [(&'static str, usize)],
    /// Operators that must not be left in it.
    gone: &'static [&'static str],
}

const FLOAT: &[&str] = &["Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"];

const CASES: &[Case] = &[
    Case { name: "dense10", sqnr: 25.0, runs: &[("QGemm", 10)], gone: FLOAT },
    Case { name: "small_cnn", sqnr: 40.0, runs: &[("QLinearConv", 4), ("QGemm", 1), ("QLinearAdd", 1)], gone: FLOAT },
    Case { name: "two_inputs", sqnr: 38.0, runs: &[("MatMulIntegerToFloat", 1)], gone: FLOAT },
    Case { name: "old_opset", sqnr: 34.0, runs: &[("QLinearConv", 1), ("QGemm", 1)], gone: FLOAT },
    Case { name: "tied_weight", sqnr: 40.0, runs: &[("QGemm", 2)], gone: FLOAT },
    Case { name: "encoder", sqnr: 33.0, runs: &[("MatMulIntegerToFloat", 6)], gone: &[] },
    Case { name: "concat_ranges", sqnr: 36.0, runs: &[("QLinearConv", 2)], gone: FLOAT },
    Case { name: "hard_weights", sqnr: 32.0, runs: &[("QLinearConv", 3)], gone: FLOAT },
    Case { name: "branches", sqnr: 40.0, runs: &[("QGemm", 3)], gone: &[] },
    Case { name: "loop_body", sqnr: 28.0, runs: &[("QGemm", 4)], gone: FLOAT },
    Case { name: "scan_body", sqnr: 34.0, runs: &[("QGemm", 4)], gone: FLOAT },
    Case { name: "shared_outputs", sqnr: 30.0, runs: &[], gone: &[] },
    Case { name: "recurrent", sqnr: 30.0, runs: &[("QLinearConv", 1), ("LSTM", 1), ("QGemm", 1)], gone: FLOAT },
    Case { name: "half_precision", sqnr: 42.0, runs: &[("QLinearConv", 1), ("QGemm", 1)], gone: FLOAT },
];

/// Sample `i` of each array: alone, with a batch of one where the model has fixed shapes without a batch axis of its own.
fn sample(arrays: &[(String, Array)], i: usize, keep_axis: bool) -> Vec<(&str, Array)> {
    let one = |a: &Array| {
        let n = a.bytes.len() / a.shape[0];
        let mut shape = a.shape.clone();
        if keep_axis {
            shape[0] = 1
        } else {
            shape.remove(0);
        };
        Array { descr: a.descr.clone(), shape, bytes: a.bytes[i * n..(i + 1) * n].to_vec() }
    };
    arrays.iter().map(|(name, a)| (name.as_str(), one(a))).collect()
}

/// Values of a float output.
fn values(a: &Array) -> Vec<f64> {
    match a.descr.as_str() {
        "<f4" => a.to_vec::<f32>().into_iter().map(f64::from).collect(),
        "<f2" => a.to_vec::<half::f16>().into_iter().map(f64::from).collect(),
        "<i8" => a.to_vec::<i64>().into_iter().map(|x| x as f64).collect(),
        other => panic!("output of type {other}"),
    }
}

/// What is wrong with the case; empty when nothing is.
fn problems(case: &Case) -> String {
    let mut found = String::new();
    let dir = tempfile::tempdir().unwrap();
    let model = testdata(&format!("models/{}.onnx", case.name));
    let data = testdata(&format!("models/{}.npz", case.name));
    let int8 = dir.path().join("out.onnx");
    let out = Command::new(env!("CARGO_BIN_EXE_onnx-quant"))
        .args([&model, &int8])
        .args(["--prefer", "size", "--calib"])
        .arg(&data)
        .args(["--target", "ort-cpu"])
        .output()
        .unwrap();
    if !out.status.success() {
        return format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    if let Err(e) = onnx_check(&int8) {
        writeln!(found, "checker: {e}").unwrap();
    }
    let arrays = npz::read(&data);
    let keep_axis = case.name != "dense10";
    let mut sums: Vec<(String, f64, f64)> = Vec::new();
    for i in 0..arrays[0].1.shape[0] {
        let inputs = sample(&arrays, i, keep_axis);
        let inputs: Vec<(&str, &Array)> = inputs.iter().map(|(n, a)| (*n, a)).collect();
        let run = |model: &Path| ort_run(model, &inputs);
        let (before, after) = match (run(&model), run(&int8)) {
            (Ok(before), Ok(after)) => (before, after),
            (before, after) => return format!("{found}float: {:?}, int8: {:?}", before.err(), after.err()),
        };
        let form = |o: &[(String, Array)]| -> Vec<_> {
            o.iter().map(|(n, a)| (n.clone(), a.descr.clone(), a.shape.clone())).collect()
        };
        if form(&before) != form(&after) {
            return format!("{found}outputs differ: {:?} and {:?}", form(&before), form(&after));
        }
        sums.resize_with(before.len(), Default::default);
        for (sum, ((name, x), (_, y))) in sums.iter_mut().zip(before.iter().zip(&after)) {
            sum.0.clone_from(name);
            for (x, y) in values(x).into_iter().zip(values(y)) {
                sum.1 += x * x;
                sum.2 += (x - y) * (x - y);
            }
        }
    }
    for (name, signal, noise) in sums {
        let db = 10.0 * (signal / noise).log10();
        // Written so that NaN fails.
        // Where products saturate, weights have one bit less: twice the step, 6 dB.
        let least = case.sqnr;
        if !(db >= least) {
            writeln!(found, "output {name}: {db:.1} dB, expected {least}").unwrap();
        }
    }
    match ort_optimized_ops(&int8, Level::Extended) {
        Err(e) => writeln!(found, "optimized graph: {e}").unwrap(),
        Ok(ops) => {
            let count = |op: &str| ops.iter().filter(|(o, _)| o == op).count();
            let names: Vec<&str> = ops.iter().map(|(o, _)| o.as_str()).collect();
            for (op, n) in case.runs.iter().filter(|(op, n)| count(op) != *n) {
                writeln!(found, "{} {op}, expected {n}: {}", count(op), names.join(" ")).unwrap();
            }
            for op in case.gone.iter().filter(|op| count(op) > 0) {
                writeln!(found, "{} {op} left: {}", count(op), names.join(" ")).unwrap();
            }
        }
    }
    found
}

#[test]
fn small_models_run_quantized_in_onnx_runtime() {
    let mut failures = String::new();
    for case in CASES {
        let found = problems(case);
        if !found.is_empty() {
            writeln!(failures, "=== {}\n{found}", case.name).unwrap();
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}
