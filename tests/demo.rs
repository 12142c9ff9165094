//! The demo from outside: ONNX Runtime runs what it writes, with integer kernels, and reads as many digits right.

mod common;

use std::path::Path;
use std::process::Command;

use common::npz::{self, Array};
use common::ort::{Level, onnx_check, ort_optimized_ops, ort_run};

fn demo(folder: &Path) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_onnx-quant")).arg("demo").arg(folder).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{}\n{text}{}", out.status, String::from_utf8_lossy(&out.stderr));
    text
}

fn n_right(model: &Path, image: &Array, label: &[u8]) -> usize {
    let outputs = ort_run(model, &[("image", image)]).unwrap();
    assert_eq!(outputs[0].1.shape, [label.len(), 10]);
    let logits = outputs[0].1.to_vec::<f32>();
    let best = |row: &[f32]| (0..10).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    logits.chunks(10).zip(label).filter(|(row, label)| best(row) == usize::from(**label)).count()
}

#[test]
fn the_demo_runs_in_integers_and_keeps_its_accuracy_in_onnx_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("demo");
    let text = demo(&folder);

    let test = npz::read(&folder.join("test.npz"));
    let [image, label] = ["image", "label"].map(|n| &test.iter().find(|(name, _)| name == n).unwrap().1);
    let label = label.to_vec::<u8>();
    let (float, int8) = (folder.join("digits.onnx"), folder.join("digits.int8.onnx"));
    onnx_check(&int8).unwrap();
    let (before, after) = (n_right(&float, image, &label), n_right(&int8, image, &label));
    assert_eq!((before, label.len()), (396, 400));
    assert!(after >= before - 4, "{after} of 400");
    let shown = format!("{:.2} %", 100.0 * before as f64 / 400.0);
    assert!(text.contains(&shown), "the demo does not say {shown}:\n{text}");

    let ops = ort_optimized_ops(&int8, Level::Extended).unwrap();
    let count = |op: &str| ops.iter().filter(|(o, _)| o == op).count();
    assert_eq!((count("QLinearConv"), count("QGemm")), (3, 2), "{ops:?}");
    assert_eq!((count("Conv") + count("FusedConv"), count("Gemm")), (0, 0), "{ops:?}");
    assert!(count("QuantizeLinear") <= 1 && count("DequantizeLinear") <= 1, "{ops:?}");

    // The same input gives the same bytes; a second run finds its own files and does not mind.
    let first = std::fs::read(&int8).unwrap();
    demo(&folder);
    assert!(first == std::fs::read(&int8).unwrap(), "two runs give two models");
}

#[test]
fn the_demo_does_not_overwrite_what_is_not_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = dir.path().join("calib.npz");
    std::fs::write(&theirs, "something of the user").unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_onnx-quant")).arg("demo").arg(dir.path()).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("is there and is not the demo's") && text.contains("help: give another folder"), "{text}");
    assert_eq!(std::fs::read_to_string(theirs).unwrap(), "something of the user");
}
