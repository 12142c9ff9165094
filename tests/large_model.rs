//! Weight-only quantization goes through a model tensor by tensor: memory does not grow with the model.
//!
//! The models here are small enough for every run of the tests. `LARGE_MODEL_MB=2200 cargo test --test large_model`
//! makes one of that many megabytes instead, with external data under `target/`, and prints what it took.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::process::Command;

use onnx_quant::error::Result;
use onnx_quant::ir::{Attr, Def, Model, Node, TensorRef, TensorSource, TensorType, ValueType};
use onnx_quant::onnx::{External, WriteOptions, write};
use onnx_quant::tensor::{DType, Tensor};

/// A square matrix of pseudo-random numbers that exists only while it is written.
struct Noise {
    shape: [usize; 2],
    seed: u64,
}

impl TensorSource for Noise {
    fn dtype(&self) -> DType {
        DType::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn load(&self) -> Result<Tensor> {
        let mut s = self.seed;
        let mut next = || {
            s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        Tensor::new(&self.shape, (0..self.shape[0] * self.shape[1]).map(|_| next()).collect())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A chain of products with `n` matrices `[k, k]`, every other one transposed.
fn make(path: &Path, n: usize, k: usize) {
    let mut model = Model::new(8, 17);
    let ty = ValueType::Tensor(TensorType::fixed(DType::F32, &[1, k]));
    let g = model.main_mut();
    let mut x = g.add_value("x", Some(ty.clone()), Def::Input);
    g.set_inputs(vec![x]);
    for i in 0..n {
        let w = TensorRef::new(Noise { shape: [k, k], seed: i as u64 });
        let w = g.add_initializer(format!("w{i}"), w);
        let y = g.add_result(format!("y{i}"), Some(ty.clone()));
        let node = if i % 2 == 0 { Node::new("MatMul") } else { Node::new("Gemm").attr("transB", Attr::Int(1)) };
        g.add_node(node.named(format!("n{i}")), &[Some(x), Some(w)], &[Some(y)]);
        x = y;
    }
    g.set_outputs(vec![x]);
    write(&model, path, &WriteOptions { external: External::Always, ..WriteOptions::default() }).unwrap();
}

/// Bytes that the command line had in memory at most, and bytes that it wrote.
fn quantize(input: &Path, output: &Path, more: &[&str]) -> (u64, u64) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-quant"));
    command.args([input, output]).args(["--mode", "weight-only", "--weight-type", "int4", "--json", "-j", "2"]);
    let out = command.args(more).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    (json["peak_memory_bytes"].as_u64().unwrap(), json["after"]["bytes"].as_u64().unwrap())
}

fn data_of(path: &Path) -> PathBuf {
    let mut data = path.as_os_str().to_owned();
    data.push(".data");
    data.into()
}

#[test]
fn memory_does_not_grow_with_the_model() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let wanted: Option<usize> = std::env::var("LARGE_MODEL_MB").ok().map(|mb| mb.parse().unwrap());
    if let Some(mb) = wanted {
        let (input, output) = (folder.path().join("large.onnx"), folder.path().join("large.int4.onnx"));
        make(&input, (mb * 1_000_000).div_ceil(4096 * 4096 * 4), 4096);
        let before = std::fs::metadata(data_of(&input)).unwrap().len();
        let (peak, bytes) = quantize(&input, &output, &[]);
        println!("{before} bytes of weights -> {bytes}, peak memory {peak}");
        assert!(peak < 1_000_000_000, "{peak}");
        return;
    }
    for form in ["qdq", "matmulnbits"] {
        let run = |n: usize| {
            let (input, output) = (folder.path().join("m.onnx"), folder.path().join("m.int4.onnx"));
            make(&input, n, 1024);
            let (peak, bytes) = quantize(&input, &output, &["--format", form]);
            // 4 bits and a scale for 32 of them.
            let expected = (n * 1024 * 1024 * 5 / 8) as u64;
            assert!((expected..expected * 11 / 10).contains(&bytes), "{form}: {bytes} bytes, expected {expected}");
            peak
        };
        // 32 MB and 160 MB of weights.
        let (small, large) = (run(8), run(40));
        assert!(large < small + 12_000_000, "{form}: {small} bytes, then {large}");
    }
}
