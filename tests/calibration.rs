//! Calibrators against numpy, and the way from samples through a cache to a quantized model.

mod common;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use common::python::python;
use common::testdata;
use onnx_quant::calibrate::{Method, Settings, find};
use serde_json::Value;

/// Values whose tails are longer on one side, from a fixed sequence.
fn values(n: usize) -> Vec<f32> {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..n).map(|_| (unit() + unit() - 0.7) * (1.0 + 3.0 * unit() * unit())).collect()
}

fn range(method: &str, percentile: f64, parts: &[&[f32]]) -> (f32, f32) {
    let settings = Settings { percentile, ..Settings::default() };
    let mut t = Method { calibrator: find(method).unwrap(), settings }.tracker();
    (0..).zip(parts).for_each(|(i, part)| t.see(part, &[part.len()], i));
    t.range().unwrap()
}

#[test]
fn percentiles_are_those_of_numpy() {
    let values = values(200_000);
    // Samples of different sizes.
    let (a, rest) = values.split_at(17);
    let (b, c) = rest.split_at(150_001);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("values.bin");
    std::fs::write(&path, values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let percentiles = [90.0, 99.0, 99.9, 99.99];
    let mut code = String::from("import sys, numpy as np\nx = np.fromfile(sys.argv[1], '<f4')\n");
    for p in percentiles {
        let (low, high) = ((100.0 - p) / 2.0, (100.0 + p) / 2.0);
        writeln!(code, "print(*np.percentile(x, [{low}, {high}], method='nearest'))").unwrap();
    }
    let out = Command::new(python()).args(["-c", &code]).arg(&path).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let (min, max) = values.iter().fold((f32::MAX, f32::MIN), |(a, b), &x| (a.min(x), b.max(x)));
    // Two bins of the histogram, which has at least 4,096, and as much as a rank more or less is in the tails.
    let tolerance = (max - min) / 2048.0;
    for (p, line) in percentiles.iter().zip(text.lines()) {
        let expected: Vec<f32> = line.split(' ').map(|x| x.parse().unwrap()).collect();
        let (low, high) = range("percentile", *p, &[a, b, c]);
        assert!(
            (low - expected[0]).abs() <= tolerance && (high - expected[1]).abs() <= tolerance,
            "{p}: [{low}, {high}], numpy {expected:?}"
        );
    }
}

fn onnx_quant(dir: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_onnx-quant")).current_dir(dir).args(line.split(' ')).output().unwrap()
}

fn succeed(dir: &Path, line: &str) {
    let out = onnx_quant(dir, line);
    assert!(out.status.success(), "{line}\n{}", String::from_utf8_lossy(&out.stderr));
}

fn fail(dir: &Path, line: &str) -> String {
    let out = onnx_quant(dir, line);
    assert!(!out.status.success(), "{line}");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// A folder with a model, its samples in one file, and in two halves.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(testdata("models/small_cnn.onnx"), dir.path().join("m.onnx")).unwrap();
    std::fs::copy(testdata("models/small_cnn.npz"), dir.path().join("all.npz")).unwrap();
    let code = "import numpy as np\nd = dict(np.load('all.npz'))\nn = len(next(iter(d.values())))\n\
                np.savez('a.npz', **{k: v[:n // 3] for k, v in d.items()})\nnp.savez('b.npz', **{k: v[n // 3:] for k, v in d.items()})";
    let out = Command::new(python()).current_dir(dir.path()).args(["-c", code]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    dir
}

#[test]
fn joined_caches_are_the_cache_of_all_samples() {
    let dir = folder();
    let d = dir.path();
    for method in ["auto", "min-max", "moving-average", "percentile", "entropy", "mse"] {
        for part in ["all", "a", "b"] {
            succeed(d, &format!("calibrate m.onnx --calib {part}.npz -o {part}.json --calib-method {method} -j 2"));
        }
        succeed(d, "calibrate --merge a.json b.json -o joined.json");
        let read = |name: &str| std::fs::read_to_string(d.join(name)).unwrap();
        assert!(read("joined.json") == read("all.json"), "{method}: the joined cache differs from one of all samples");
        succeed(d, &format!("calibrate m.onnx --calib all.npz -o one.json --calib-method {method} -j 1"));
        assert!(read("one.json") == read("all.json"), "{method}: the cache depends on the number of threads");
    }
}

#[test]
fn a_cache_replaces_samples() {
    let dir = folder();
    let d = dir.path();
    succeed(d, "calibrate m.onnx --calib all.npz -o c.json");
    succeed(d, "m.onnx without.onnx --calib-cache c.json --prefer size");
    succeed(d, "m.onnx with.onnx --calib-cache c.json --calib all.npz --prefer size");
    // An edited range reaches the model.
    let mut cache: Value = serde_json::from_str(&std::fs::read_to_string(d.join("c.json")).unwrap()).unwrap();
    let name = cache["tensors"].as_object().unwrap().keys().next().unwrap().clone();
    cache["tensors"][&name]["range"] = serde_json::json!([-50.0, 52.0]);
    std::fs::write(d.join("edited.json"), cache.to_string()).unwrap();
    let out = onnx_quant(d, "m.onnx edited.onnx --calib-cache edited.json -v");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("scale 0.4 zero_point 125"), "{text}");
    // What does not match is said.
    assert!(
        fail(d, "m.onnx x.onnx --calib-cache c.json --calib-method entropy --prefer size")
            .contains("method auto, not entropy")
    );
    succeed(d, "calibrate m.onnx --calib a.npz -o a.json");
    assert!(fail(d, "m.onnx x.onnx --calib-cache a.json --calib all.npz --prefer size").contains("other samples"));
    let mut other = std::fs::read(d.join("m.onnx")).unwrap();
    // An unknown field at the end: another file, the same model.
    other.extend([0xba, 0x3e, 0x00]);
    std::fs::write(d.join("other.onnx"), other).unwrap();
    assert!(fail(d, "other.onnx x.onnx --calib-cache c.json").contains("another model"));
    assert!(fail(d, "m.onnx x.onnx --calib-cache c.json --min-sqnr 20 --prefer size").contains("needs samples"));
    assert!(fail(d, "m.onnx x.onnx --calib-cache c.json --sparsity 0.5 --prefer size").contains("needs samples"));
    assert!(fail(d, "calibrate --merge a.json c.json -o x.json").contains("count twice"));
}

#[test]
fn memory_is_kept_or_what_is_needed_is_said() {
    let dir = folder();
    let d = dir.path();
    let text = fail(d, "m.onnx x.onnx --calib all.npz --max-memory 1M --prefer size");
    let least =
        text.split("help: --max-memory ").nth(1).and_then(|t| t.split(' ').next()).unwrap_or_else(|| panic!("{text}"));
    succeed(d, &format!("m.onnx x.onnx --calib all.npz --max-memory {least} --prefer size"));
    succeed(d, "m.onnx y.onnx --calib all.npz --prefer size");
    assert!(std::fs::read(d.join("x.onnx")).unwrap() == std::fs::read(d.join("y.onnx")).unwrap());
}
