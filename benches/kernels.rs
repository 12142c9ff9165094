//! Operators on the shapes of ResNet-50, MobileNet and BERT against ONNX Runtime, one thread each, in the same run.
//!
//! `cargo bench --bench kernels [-- FILTER]` prints microseconds and the ratio ONNX Runtime / ours: above 1 we are
//! faster. Runs are interleaved, and the fastest of each side counts, since anything else that the machine does only
//! adds. ONNX Runtime's time for a model without work is taken off its side.

use std::path::{Path, PathBuf};
use std::time::Instant;

use onnx_quant::error::{Result, bail};
use onnx_quant::ir::{Attr, Attrs, Domain, GraphId};
use onnx_quant::ops::{Bodies, Call, Fusion, Item, Shared, lookup};
use onnx_quant::tensor::Tensor;
use serde_json::{Value, json};

#[allow(dead_code, unreachable_pub, reason = "shared with the tests")]
#[path = "../tests/common/python.rs"]
mod python;

const SCRIPT: &str = r#"
import sys, time, numpy as np, onnx, onnxruntime as ort
from onnx import helper, numpy_helper
def session(nodes, inputs, inits):
    g = helper.make_graph(nodes, 'g',
        [helper.make_tensor_value_info(n, 1, a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info('y', 0, None)],
        [numpy_helper.from_array(a, n) for n, a in inits.items()])
    for o in g.output: o.ClearField('type')
    m = helper.make_model(g, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    so = ort.SessionOptions(); so.intra_op_num_threads = 1; so.log_severity_level = 3
    s = ort.InferenceSession(m.SerializeToString(), so, providers=['CPUExecutionProvider'])
    b = s.io_binding()
    for n, a in inputs.items(): b.bind_ortvalue_input(n, ort.OrtValue.ortvalue_from_numpy(a))
    b.bind_output('y')
    return s, b
def best(sb, reps):
    s, b = sb
    t = []
    for _ in range(reps):
        t0 = time.perf_counter(); s.run_with_iobinding(b); t.append(time.perf_counter() - t0)
    return min(t) * 1e6
def main(a):
    store = sys.__dict__.setdefault('kernel_bench', {})
    if a['do'] == 'make':
        r = np.random.default_rng(0)
        arrays = [(r.random(s, dtype=np.float32) - .5) for s in a['shapes']]
        names = ['x%d' % i for i in range(len(arrays))]
        n = a['constants_from']
        node = helper.make_node(a['op'], names, ['y'], **a['attrs'])
        store['s'] = session([node], dict(zip(names[:n], arrays[:n])), dict(zip(names[n:], arrays[n:])))
        if 'none' not in store:
            store['none'] = session([helper.make_node('Relu', ['x'], ['y'])], {'x': np.zeros(1, np.float32)}, {})
        best(store['s'], 3)
        return 0
    return [best(store['s'], a['reps']), best(store['none'], 5)]
"#;

struct NoBodies;

impl Bodies for NoBodies {
    fn run(&self, _: GraphId, _: Vec<Item>) -> Result<Vec<Item>> {
        bail!("no bodies here")
    }
}

/// One operator on some shapes; inputs from `constants_from` on are stored constants.
struct Case {
    name: String,
    op: &'static str,
    shapes: Vec<Vec<usize>>,
    constants_from: usize,
    attrs: Vec<(&'static str, Attr, Value)>,
}

fn ints(name: &'static str, v: &[i64]) -> (&'static str, Attr, Value) {
    (name, Attr::Ints(v.to_vec()), json!(v))
}

/// `c -> m` channels at `size`, kernel `k`, stride `s`, `g` groups.
fn conv(c: usize, m: usize, size: usize, k: usize, s: i64, g: usize) -> Case {
    let p = (k / 2) as i64;
    let kind = if g > 1 { "depthwise " } else { "" };
    Case {
        name: format!("conv {kind}{k}x{k} s{s} {c}->{m} @{size}"),
        op: "Conv",
        shapes: vec![vec![1, c, size, size], vec![m, c / g, k, k], vec![m]],
        constants_from: 1,
        attrs: vec![ints("pads", &[p; 4]), ints("strides", &[s; 2]), ("group", Attr::Int(g as i64), json!(g))],
    }
}

fn matmul(m: usize, k: usize, n: usize) -> Case {
    let shapes = vec![vec![m, k], vec![k, n]];
    Case { name: format!("matmul {m} {k} {n}"), op: "MatMul", shapes, constants_from: 1, attrs: vec![] }
}

fn batched(b: usize, m: usize, k: usize, n: usize) -> Case {
    let shapes = vec![vec![b, m, k], vec![b, k, n]];
    Case { name: format!("matmul {b} x {m} {k} {n}"), op: "MatMul", shapes, constants_from: 2, attrs: vec![] }
}

fn pool(op: &'static str, c: usize, size: usize, k: i64, s: i64, p: i64) -> Case {
    Case {
        name: format!("{op} {k}x{k} s{s} {c} @{size}"),
        op,
        shapes: vec![vec![1, c, size, size]],
        constants_from: 1,
        attrs: vec![ints("kernel_shape", &[k; 2]), ints("strides", &[s; 2]), ints("pads", &[p; 4])],
    }
}

fn cases() -> Vec<Case> {
    let mut v = vec![
        conv(3, 64, 224, 7, 2, 1),
        conv(64, 64, 56, 1, 1, 1),
        conv(64, 64, 56, 3, 1, 1),
        conv(64, 256, 56, 1, 1, 1),
        conv(256, 128, 56, 1, 1, 1),
        conv(128, 128, 28, 3, 1, 1),
        conv(256, 512, 56, 1, 2, 1),
        conv(256, 512, 28, 1, 1, 1),
        conv(256, 256, 14, 3, 1, 1),
        conv(1024, 256, 14, 1, 1, 1),
        conv(512, 512, 7, 3, 1, 1),
        conv(2048, 512, 7, 1, 1, 1),
        conv(3, 32, 224, 3, 2, 1),
        conv(16, 96, 112, 1, 1, 1),
        conv(96, 24, 56, 1, 1, 1),
        conv(576, 96, 14, 1, 1, 1),
        conv(320, 1280, 7, 1, 1, 1),
        conv(32, 32, 112, 3, 1, 32),
        conv(96, 96, 112, 3, 2, 96),
        conv(144, 144, 56, 3, 1, 144),
        conv(192, 192, 28, 3, 1, 192),
        conv(576, 576, 14, 3, 1, 576),
        conv(960, 960, 7, 3, 1, 960),
        conv(240, 240, 28, 5, 1, 240),
        matmul(1, 2048, 1000),
        matmul(8, 768, 768),
        matmul(64, 384, 384),
        matmul(64, 384, 1536),
        matmul(64, 1536, 384),
        matmul(128, 768, 768),
        matmul(128, 768, 3072),
        matmul(128, 3072, 768),
        matmul(512, 512, 512),
        batched(12, 128, 64, 128),
        batched(12, 128, 128, 64),
        pool("MaxPool", 64, 112, 3, 2, 1),
        pool("MaxPool", 64, 56, 2, 2, 0),
        pool("MaxPool", 256, 14, 5, 1, 2),
        pool("AveragePool", 128, 28, 3, 1, 1),
    ];
    let shapes = vec![vec![1, 2048, 7, 7]];
    v.push(Case {
        name: "GlobalAveragePool".into(),
        op: "GlobalAveragePool",
        shapes,
        constants_from: 1,
        attrs: vec![],
    });
    v
}

/// Numbers around 0 that need no generator of random numbers.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect()
}

fn target_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("cargo's tmp folder lies in target").to_path_buf()
}

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    println!("{:<36} {:>10} {:>10} {:>7}", "us, one thread", "ours", "ORT", "ratio");
    let mut ratios = Vec::new();
    for case in cases().iter().filter(|c| filter.is_empty() || filter.iter().any(|f| c.name.contains(f.as_str()))) {
        let (ours, theirs) = measure(case);
        println!("{:<36} {ours:>10.1} {theirs:>10.1} {:>7.2}", case.name, theirs / ours);
        ratios.push(theirs / ours);
    }
    if !ratios.is_empty() {
        let mean = (ratios.iter().map(|r: &f64| r.ln()).sum::<f64>() / ratios.len() as f64).exp();
        println!("{:<36} {:>10} {:>10} {mean:>7.2}", "geometric mean", "", "");
    }
}

/// Microseconds of the fastest run: ours, ONNX Runtime's.
fn measure(case: &Case) -> (f64, f64) {
    let attrs_json: serde_json::Map<String, Value> =
        case.attrs.iter().map(|(name, _, v)| ((*name).to_owned(), v.clone())).collect();
    let make = json!({"do": "make", "op": case.op, "shapes": case.shapes, "constants_from": case.constants_from,
        "attrs": attrs_json});
    python::call(SCRIPT, make).expect("ONNX Runtime loads the model");
    let mut attrs = Attrs::default();
    for (name, value, _) in &case.attrs {
        attrs.set(name, value.clone());
    }
    let inputs: Vec<Tensor> = case
        .shapes
        .iter()
        .map(|s| Tensor::new(s, values(s.iter().product())).expect("as many values as the shape says"))
        .collect();
    let constant: Vec<bool> = (0..inputs.len()).map(|i| i >= case.constants_from).collect();
    let def = lookup(&Domain::onnx(), case.op, 17).expect("a known operator");
    let shared = Shared::new();
    let run = || {
        let mut call = Call {
            op_type: case.op,
            attrs: &attrs,
            opset: 17,
            inputs: inputs.iter().map(|t| Some(Item::Tensor(t.clone()))).collect(),
            constant: &constant,
            wanted: &[true],
            threads: 1,
            seed: 0,
            bodies: &NoBodies,
            shared: &shared,
            fusion: Fusion::default(),
        };
        (def.eval)(&mut call).expect("the operator runs")
    };
    let once = {
        drop(run());
        let t = Instant::now();
        drop(run());
        t.elapsed().as_secs_f64()
    };
    let reps = ((0.004 / once) as usize).clamp(3, 200);
    let (mut ours, mut theirs, mut overhead) = (f64::MAX, f64::MAX, f64::MAX);
    for _ in 0..12 {
        for _ in 0..reps {
            let t = Instant::now();
            let y = run();
            ours = ours.min(t.elapsed().as_secs_f64() * 1e6);
            drop(y);
        }
        let t = python::call(SCRIPT, json!({"do": "run", "reps": reps})).expect("ONNX Runtime runs");
        theirs = theirs.min(t[0].as_f64().unwrap_or(f64::MAX));
        overhead = overhead.min(t[1].as_f64().unwrap_or(f64::MAX));
    }
    (ours, theirs - overhead)
}
