//! `--labels` on the digits of the demo: the metric is what ONNX Runtime gives, and a drop that is asked for holds.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::npz::{self, Array};
use common::ort::ort_run;
use common::testdata;
use serde_json::Value;

/// The demo's test images as samples in a folder, and the digit of each.
struct Digits {
    dir: tempfile::TempDir,
    images: Array,
    labels: Vec<u8>,
}

impl Digits {
    fn new(n: usize) -> Self {
        // Both files hold bytes behind NumPy's header of 128.
        let read = |name: &str| fs::read(testdata(&format!("demo/{name}"))).unwrap()[128..].to_vec();
        let (pixels, labels) = (read("test_images.npy"), read("test_labels.npy"));
        assert_eq!((pixels.len(), labels.len()), (400 * 64, 400));
        let pixels: Vec<f32> = pixels[..n * 64].iter().map(|&p| f32::from(p) / 16.0).collect();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("samples")).unwrap();
        for i in 0..n {
            let one = Array::new(&[1, 1, 8, 8], &pixels[i * 64..][..64]);
            npz::write(&dir.path().join(format!("samples/{i:03}.npz")), &[("image", &one)]);
        }
        Digits { dir, images: Array::new(&[n, 1, 8, 8], &pixels), labels: labels[..n].to_vec() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Quantizes and gives the exit code, the result and what was said.
    fn run(&self, labels: &str, more: &[&str]) -> (i32, Value, String) {
        let out = Command::new(env!("CARGO_BIN_EXE_onnx-quant"))
            .arg(testdata("demo/digits.onnx"))
            .arg(self.path("out.onnx"))
            .args(["--calib"])
            .arg(self.path("samples"))
            .args(["--prefer", "size", "--json", "-n", "400", "--labels"])
            .arg(self.path(labels))
            .args(more)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let json = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
        (out.status.code().unwrap(), json, said)
    }

    /// The logits of a model in ONNX Runtime.
    fn logits(&self, model: &Path) -> Vec<f32> {
        ort_run(model, &[("image", &self.images)]).unwrap()[0].1.to_vec::<f32>()
    }
}

fn metric(json: &Value, part: &str, of: &str) -> f64 {
    json["metric"][part][of].as_f64().unwrap_or_else(|| panic!("no {part} {of}: {}", json["metric"]))
}

/// Rows whose label is among the first `k`.
fn n_right(logits: &[f32], labels: &[u8], k: usize) -> usize {
    let is_right = |(row, &label): (&[f32], &u8)| {
        let l = usize::from(label);
        row.iter().enumerate().filter(|&(i, x)| *x > row[l] || *x == row[l] && i < l).count() < k
    };
    logits.chunks(10).zip(labels).filter(|&p| is_right(p)).count()
}

#[test]
fn shares_are_those_of_onnx_runtime_however_labels_are_given() {
    let digits = Digits::new(400);
    let in_order = format!("{:?}", digits.labels);
    let by_name: Vec<String> = digits.labels.iter().enumerate().map(|(i, l)| format!("\"{i:03}\": {l}")).collect();
    let lines: String = digits.labels.iter().enumerate().map(|(i, l)| format!("{i:03}.npz,{l}\n")).collect();
    fs::write(digits.path("order.json"), in_order).unwrap();
    fs::write(digits.path("names.json"), format!("{{{}}}", by_name.join(", "))).unwrap();
    fs::write(digits.path("names.csv"), format!("file,label\n{lines}")).unwrap();
    let float = digits.logits(&testdata("demo/digits.onnx"));
    let mut metrics = Vec::new();
    for (file, k) in [("order.json", 1), ("names.json", 1), ("names.csv", 1), ("names.csv", 5)] {
        let more = ["--max-drop", "1", "--metric", if k == 1 { "top-1" } else { "top-5" }];
        let (code, json, said) = digits.run(file, &more);
        assert_eq!(code, 0, "{said}");
        let of = |logits: &[f32]| n_right(logits, &digits.labels, k) as f64 / 400.0;
        assert_eq!(metric(&json, "all", "samples"), 400.0);
        assert!((metric(&json, "all", "float") - of(&float)).abs() < 1e-9, "{file} top-{k}: {json}");
        // An image whose two first digits are all but equal may come out differently.
        let int8 = of(&digits.logits(&digits.path("out.onnx")));
        assert!((metric(&json, "all", "quantized") - int8).abs() < 0.003, "{file} top-{k}: {int8} {}", json["metric"]);
        // Every fifth sample is held out.
        let held: Vec<usize> = (4..400).step_by(5).collect();
        let logits: Vec<f32> = held.iter().flat_map(|i| float[i * 10..][..10].to_vec()).collect();
        let labels: Vec<u8> = held.iter().map(|&i| digits.labels[i]).collect();
        assert!((metric(&json, "held_out", "float") - n_right(&logits, &labels, k) as f64 / 80.0).abs() < 1e-9);
        metrics.push(json["metric"].clone());
    }
    assert!(metrics[0] == metrics[1] && metrics[1] == metrics[2] && metrics[2]["name"] == "top-1", "{metrics:?}");
}

/// Labels that are the float logits and some noise, so that what is lost can be told to the percent.
fn noisy_logits(digits: &Digits, n: usize) {
    let float = digits.logits(&testdata("demo/digits.onnx"));
    let noise = Array::random(&[n, 10], -0.2, 0.2, 7).to_vec::<f32>();
    for i in 0..n {
        let row: Vec<f32> = (0..10).map(|c| float[i * 10 + c] + noise[i * 10 + c]).collect();
        fs::write(digits.path(&format!("{i:03}.npy")), Array::new(&[1, 10], &row).to_npy()).unwrap();
    }
    let lines: Vec<String> = (0..n).map(|i| format!("\"{i:03}.npz\": \"{i:03}.npy\"")).collect();
    fs::write(digits.path("labels.json"), format!("{{{}}}", lines.join(", "))).unwrap();
}

#[test]
fn operators_stay_float_until_the_drop_holds() {
    let digits = Digits::new(100);
    noisy_logits(&digits, 100);
    let (code, whole, said) = digits.run("labels.json", &[]);
    assert_eq!(code, 0, "{said}");
    let drop = |json: &Value| json["metric"]["drop"].as_f64().unwrap() * 100.0;
    assert!(whole["metric"]["name"] == "mse" && drop(&whole) > 5.0, "{}", whole["metric"]);
    // The variance of the noise, which is even.
    assert!((metric(&whole, "all", "float") - 0.4f64.powi(2) / 12.0).abs() < 0.002, "{}", whole["metric"]);
    // As it is said again: without zeros behind it.
    let asked = ((drop(&whole) * 500.0).round() / 1000.0).to_string();
    let (code, kept, said) = digits.run("labels.json", &["--max-drop", &asked]);
    let nodes = |json: &Value| json["integer_nodes"].as_u64().unwrap();
    assert_eq!(code, 0, "{said}");
    assert!(drop(&kept) <= drop(&whole) / 2.0, "asked {asked}: {}", kept["metric"]);
    assert!(nodes(&kept) > 0 && nodes(&kept) < nodes(&whole), "{} of {}", nodes(&kept), nodes(&whole));
    assert!(kept["kept"].as_array().unwrap().iter().any(|k| k["code"] == "accuracy"), "{}", kept["kept"]);
    // Where none may stay float for it, the best model is written all the same, and the exit code says so.
    let (code, best, said) = digits.run("labels.json", &["--max-drop", &asked, "--without", "float-fallback"]);
    assert_eq!((code, nodes(&best)), (3, nodes(&whole)), "{said}");
    let line = format!("mse is worse by {:.2} % on held-out samples (--max-drop {asked})", drop(&best));
    assert!(said.contains(&line), "{said}");
}
