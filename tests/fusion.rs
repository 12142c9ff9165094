//! What we count as integer really runs in integers: emitted models are loaded in ONNX Runtime and the operators of
//! its optimised graph are listed. One small model for each pattern that the target's table promises.

mod common;

use std::collections::BTreeMap;

use common::npz::Array;
use common::optimized;
use common::ort::{Level, ort_optimized, ort_run};
use onnx_quant::calibrate::dataset::{Dataset, Sample};
use onnx_quant::diag::Sink;
use onnx_quant::error::Result;
use onnx_quant::interp::{CompileOptions, Program, RunOptions};
use onnx_quant::ir::{Attr, Def, Model, Node, TensorType, ValueId, ValueType};
use onnx_quant::onnx::{WriteOptions, write};
use onnx_quant::quant::{Config, Data, Quantized, Quiet, quantize};
use onnx_quant::tensor::{DType, Tensor};

/// Builds a graph node by node; weights are pseudo-random.
struct Builder {
    model: Model,
    n: usize,
    shape: Vec<usize>,
    seed: u64,
}

/// Numbers in [-1, 1), the same in every run.
fn numbers(n: usize, seed: &mut u64) -> Vec<f32> {
    (0..n)
        .map(|_| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

impl Builder {
    fn new(shape: &[usize]) -> (Self, ValueId) {
        let mut model = Model::new(8, 17);
        let ty = ValueType::Tensor(TensorType::fixed(DType::F32, shape));
        let g = model.main_mut();
        let x = g.add_value("x", Some(ty), Def::Input);
        g.set_inputs(vec![x]);
        (Builder { model, n: 0, shape: shape.to_vec(), seed: 7 }, x)
    }

    fn name(&mut self, stem: &str) -> String {
        self.n += 1;
        format!("{stem}{}", self.n)
    }

    fn weight(&mut self, shape: &[usize]) -> ValueId {
        let v = numbers(shape.iter().product(), &mut self.seed);
        let name = self.name("w");
        self.model.main_mut().add_initializer(name, Tensor::new(shape, v).unwrap())
    }

    fn ints(&mut self, v: &[i64]) -> ValueId {
        let name = self.name("i");
        self.model.main_mut().add_initializer(name, Tensor::vector(v.to_vec()))
    }

    fn op(&mut self, node: Node, ins: &[ValueId]) -> ValueId {
        self.ops(node, ins, 1)[0]
    }

    fn ops(&mut self, node: Node, ins: &[ValueId], outs: usize) -> Vec<ValueId> {
        let stem = node.op_type.to_lowercase();
        let out: Vec<ValueId> = (0..outs)
            .map(|_| {
                let name = self.name(&stem);
                self.model.main_mut().add_result(name, None)
            })
            .collect();
        let name = self.name("n_");
        let ins: Vec<_> = ins.iter().map(|&v| Some(v)).collect();
        let made: Vec<_> = out.iter().map(|&v| Some(v)).collect();
        self.model.main_mut().add_node(node.named(name), &ins, &made);
        out
    }

    fn conv(&mut self, x: ValueId, c: usize, m: usize, group: usize) -> ValueId {
        let w = self.weight(&[m, c / group, 3, 3]);
        let b = self.weight(&[m]);
        let node = Node::new("Conv").attr("pads", vec![1i64; 4]).attr("group", group as i64);
        self.op(node, &[x, w, b])
    }

    fn unary(&mut self, op: &str, x: ValueId) -> ValueId {
        self.op(Node::new(op), &[x])
    }

    fn done(mut self, y: ValueId) -> (Model, Vec<usize>) {
        self.model.main_mut().set_outputs(vec![y]);
        let mut sink = Sink::default();
        onnx_quant::infer::infer(&mut self.model, &mut sink).unwrap();
        (self.model, self.shape)
    }
}

struct Random {
    shape: Vec<usize>,
}

impl Dataset for Random {
    fn len(&self) -> usize {
        6
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        let mut seed = 1000 + i as u64;
        let x = Tensor::new(&self.shape, numbers(self.shape.iter().product(), &mut seed))?;
        Ok(Sample { origin: format!("sample {i}"), inputs: vec![("x".into(), x)] })
    }
}

fn quantized(model: Model, shape: &[usize]) -> Quantized {
    let data = Random { shape: shape.to_vec() };
    // No floor: what a pattern gives is looked at, however coarse its random weights are in integers.
    let mut config = Config { min_sqnr_db: f64::NEG_INFINITY, threads: 1, ..Config::new("ort-cpu").unwrap() };
    config.target.cost = None;
    let data = Data { calibration: &data, holdout: &data, is_shared: true, labels: None };
    quantize(model, &config, &data, &Quiet, &mut |_, _| {}, &mut Sink::default()).unwrap()
}

/// Quantizes, loads in ONNX Runtime, and checks that each of `integer` is there as often as said, that no weighted
/// operator is float beyond what our report says, and that both compute the same.
#[track_caller]
fn check(what: &str, (model, shape): (Model, Vec<usize>), integer: &[(&str, usize)]) {
    let done = quantized(model, &shape);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    write(&done.model, &path, &WriteOptions::default()).unwrap();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in ort_optimized(&path, Level::Extended).unwrap_or_else(|e| panic!("{what}: {e}")) {
        *counts.entry(node.op_type).or_default() += 1;
    }
    let count = |op: &str| counts.get(op).copied().unwrap_or(0);
    for (op, n) in integer {
        assert_eq!(count(op), *n, "{what}: {op} in {counts:?}\n{}", done.plan.print(&done.prepared));
    }
    let float =
        ["Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"].iter().map(|op| count(op)).sum::<usize>();
    let kept: usize = done.report.weighted.values().map(|(int, all)| all - int).sum();
    assert_eq!(float, kept, "{what}: float operators in {counts:?}");

    let mut seed = 5;
    let x = numbers(shape.iter().product(), &mut seed);
    let given = Array::new(&shape, &x);
    let theirs = ort_run(&path, &[("x", &given)]).unwrap();
    // What the optimizer makes of our output is a model, too.
    optimized::agrees(&path, &[("x", &given)]).unwrap_or_else(|e| panic!("{what}, optimized: {e}"));
    let program = Program::compile(&done.model, &CompileOptions::default()).unwrap();
    let ours = program.run_tensors(&[Tensor::new(&shape, x).unwrap()], RunOptions::default()).unwrap();
    let (a, b) = (ours[0].to_f64s().unwrap(), theirs[0].1.to_vec::<f32>());
    assert_eq!(a.len(), b.len(), "{what}");
    let signal: f64 = a.iter().map(|x| x * x).sum();
    let noise: f64 = a.iter().zip(&b).map(|(x, &y)| (x - f64::from(y)).powi(2)).sum();
    // Fused integer kernels may differ by one step where a value lies between two; that is 35 dB and more below.
    assert!(noise <= signal * 1e-3, "{what}: {:.1} dB apart", 10.0 * (signal / noise).log10());
}

const X: [usize; 4] = [1, 8, 12, 12];

#[test]
fn convolutions_with_absorbed_activations() {
    let (mut b, x) = Builder::new(&X);
    let y = b.conv(x, 8, 16, 1);
    let y = b.unary("Relu", y);
    let y = b.conv(y, 16, 16, 16);
    let y = b.op(Node::new("Clip"), &[y]);
    let y = b.conv(y, 16, 8, 2);
    check("Conv, Relu, depthwise, Clip, grouped", b.done(y), &[("QLinearConv", 3), ("Relu", 0), ("Clip", 0)]);
}

#[test]
fn residual_addition() {
    let (mut b, x) = Builder::new(&X);
    let a = b.conv(x, 8, 8, 1);
    let a = b.unary("Relu", a);
    let c = b.conv(a, 8, 8, 1);
    let y = b.op(Node::new("Add"), &[a, c]);
    let y = b.unary("Relu", y);
    let y = b.conv(y, 8, 8, 1);
    check("residual", b.done(y), &[("QLinearConv", 3), ("QLinearAdd", 1), ("Relu", 0)]);
}

#[test]
fn concat_and_pools() {
    let (mut b, x) = Builder::new(&X);
    let a = b.conv(x, 8, 8, 1);
    let c = b.conv(x, 8, 8, 1);
    let y = b.op(Node::new("Concat").attr("axis", 1i64), &[a, c]);
    let y = b.op(Node::new("MaxPool").attr("kernel_shape", vec![2i64, 2]).attr("strides", vec![2i64, 2]), &[y]);
    let y = b.conv(y, 16, 8, 1);
    let y = b.op(Node::new("AveragePool").attr("kernel_shape", vec![2i64, 2]), &[y]);
    let y = b.conv(y, 8, 8, 1);
    let y = b.unary("GlobalAveragePool", y);
    let y = b.conv(y, 8, 4, 1);
    let expect = [
        ("QLinearConv", 5),
        ("QLinearConcat", 1),
        ("MaxPool", 1),
        ("QLinearAveragePool", 1),
        ("QLinearGlobalAveragePool", 1),
    ];
    check("Concat and pools", b.done(y), &expect);
}

#[test]
fn silu_gate_and_leaky_relu() {
    let (mut b, x) = Builder::new(&X);
    let a = b.conv(x, 8, 8, 1);
    let s = b.unary("Sigmoid", a);
    let y = b.op(Node::new("Mul"), &[a, s]);
    let y = b.conv(y, 8, 8, 1);
    let y = b.op(Node::new("LeakyRelu").attr("alpha", 0.1f32), &[y]);
    let y = b.conv(y, 8, 8, 1);
    let expect = [("QLinearConv", 3), ("QLinearSigmoid", 1), ("QLinearMul", 1), ("QLinearLeakyRelu", 1)];
    check("SiLU and LeakyRelu", b.done(y), &expect);
}

#[test]
fn element_movers_share_parameters() {
    let (mut b, x) = Builder::new(&X);
    let y = b.conv(x, 8, 8, 1);
    let scales = b.model.main_mut().add_initializer("scales", Tensor::vector(vec![1.0f32, 1.0, 2.0, 2.0]));
    let none = b.model.main_mut().add_initializer("roi", Tensor::vector(Vec::<f32>::new()));
    let node = Node::new("Resize").attr("mode", "nearest").attr("coordinate_transformation_mode", "asymmetric");
    let y = b.op(node.attr("nearest_mode", "floor"), &[y, none, scales]);
    let y = b.op(Node::new("Transpose").attr("perm", vec![0i64, 1, 3, 2]), &[y]);
    let (starts, ends, axes) = (b.ints(&[0]), b.ints(&[20]), b.ints(&[2]));
    let y = b.op(Node::new("Slice"), &[y, starts, ends, axes]);
    let parts = b.ops(Node::new("Split").attr("axis", 1i64), &[y], 2);
    let a = b.conv(parts[0], 4, 4, 1);
    let c = b.conv(parts[1], 4, 4, 1);
    let y = b.op(Node::new("Add"), &[a, c]);
    let y = b.conv(y, 4, 4, 1);
    let expect = [("QLinearConv", 4), ("Split", 1), ("QLinearAdd", 1), ("QuantizeLinear", 1), ("DequantizeLinear", 1)];
    check("Resize, Transpose, Slice, Split", b.done(y), &expect);
}

#[test]
fn fully_connected() {
    let (mut b, x) = Builder::new(&[4, 32]);
    let mut y = x;
    for (k, n) in [(32, 64), (64, 16)] {
        let (w, bias) = (b.weight(&[k, n]), b.weight(&[n]));
        y = b.op(Node::new("Gemm"), &[y, w, bias]);
        y = b.unary("Relu", y);
    }
    let (w, bias) = (b.weight(&[5, 16]), b.weight(&[5]));
    let y = b.op(Node::new("Gemm").attr("transB", Attr::Int(1)), &[y, w, bias]);
    check("Gemm, Relu", b.done(y), &[("QGemm", 3)]);
}

#[test]
fn matrix_products_between_float_operators() {
    for shape in [vec![2, 6, 32], vec![6, 32]] {
        let (mut b, x) = Builder::new(&shape);
        let (w, bias) = (b.weight(&[32, 64]), b.weight(&[64]));
        let y = b.op(Node::new("MatMul"), &[x, w]);
        let y = b.op(Node::new("Add"), &[y, bias]);
        let y = b.unary("Tanh", y);
        let w = b.weight(&[64, 16]);
        let y = b.op(Node::new("MatMul"), &[y, w]);
        let y = b.unary("Tanh", y);
        check("MatMul + Add, Tanh, MatMul", b.done(y), &[("MatMul", 0), ("Gemm", 0)]);
    }
}

#[test]
fn flatten_and_classifier() {
    let (mut b, x) = Builder::new(&X);
    let y = b.conv(x, 8, 8, 1);
    let y = b.unary("Relu", y);
    let y = b.op(Node::new("Flatten"), &[y]);
    let (w, bias) = (b.weight(&[8 * 144, 10]), b.weight(&[10]));
    let y = b.op(Node::new("Gemm"), &[y, w, bias]);
    check("Flatten, Gemm", b.done(y), &[("QLinearConv", 1), ("QGemm", 1)]);
}
