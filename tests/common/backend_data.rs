//! ONNX's backend tests from the onnx wheel, as folders under `target/onnx-backend-data/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::python::{call, must, once, python};
use super::target_dir;

const SCRIPT: &str = include_str!("backend_data.py");

/// One backend test: a model with data sets of inputs and expected outputs.
#[derive(Clone, Debug)]
pub struct Case {
    /// `node`, `simple`, `pytorch-converted`, `pytorch-operator` or `light`.
    pub kind: String,
    pub name: String,
    /// Holds `model.onnx` and the data sets.
    pub dir: PathBuf,
    /// Tolerances that ONNX states for this case.
    pub rtol: f64,
    pub atol: f64,
}

impl Case {
    pub fn model(&self) -> PathBuf {
        self.dir.join("model.onnx")
    }

    /// The folders `test_data_set_N`, in order.
    pub fn data_sets(&self) -> Vec<PathBuf> {
        numbered(&self.dir, "test_data_set_", "")
    }
}

/// The files `input_M.pb` of a data set, in order of the graph's inputs.
pub fn inputs(data_set: &Path) -> Vec<PathBuf> {
    numbered(data_set, "input_", ".pb")
}

/// The files `output_M.pb` of a data set, in order of the graph's outputs.
pub fn outputs(data_set: &Path) -> Vec<PathBuf> {
    numbered(data_set, "output_", ".pb")
}

fn numbered(dir: &Path, prefix: &str, suffix: &str) -> Vec<PathBuf> {
    (0..).map(|i| dir.join(format!("{prefix}{i}{suffix}"))).take_while(|p| p.exists()).collect()
}

/// The folder with all cases, generated on first use (some 10 seconds, 80 MB).
pub fn backend_data() -> PathBuf {
    let version = call("import onnx\ndef main(_): return onnx.__version__", json!(null)).unwrap();
    let version = version.as_str().unwrap();
    let dir = target_dir().join("onnx-backend-data").join(version);
    once(&dir, SCRIPT, |dir| {
        must(Command::new(python()).args(["-c", SCRIPT]).arg(dir), "cannot write ONNX's backend test data");
    });
    dir
}

/// Every case, sorted by kind and name.
pub fn cases() -> Vec<Case> {
    let root = backend_data();
    let mut cases = Vec::new();
    for kind in sorted_dirs(&root) {
        for dir in sorted_dirs(&kind) {
            let tolerances: serde_json::Value =
                serde_json::from_slice(&fs::read(dir.join("case.json")).unwrap()).unwrap();
            let name_of = |p: &Path| p.file_name().unwrap().to_str().unwrap().to_string();
            cases.push(Case {
                kind: name_of(&kind),
                name: name_of(&dir),
                rtol: tolerances["rtol"].as_f64().unwrap(),
                atol: tolerances["atol"].as_f64().unwrap(),
                dir,
            });
        }
    }
    cases
}

fn sorted_dirs(dir: &Path) -> Vec<PathBuf> {
    let mut dirs: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    dirs.sort();
    dirs
}
