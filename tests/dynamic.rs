//! Dynamically quantized models as ONNX Runtime runs them: products become `DynamicQuantizeMatMul`, recurrent layers
//! `DynamicQuantizeLSTM`, and both compute what our interpreter computes.

mod common;

use std::collections::BTreeMap;

use common::models::{Builder, numbers, quantized_without_data};
use common::npz::Array;
use common::ort::{Level, onnx_check, ort_optimized, ort_run};
use onnx_quant::interp::{CompileOptions, Program, RunOptions};
use onnx_quant::ir::{Attr, Model, Node};
use onnx_quant::onnx::{WriteOptions, write};
use onnx_quant::quant::Mode;
use onnx_quant::quant::dynamic::Options;
use onnx_quant::tensor::{DType, Tensor};

const WATCHED: &[&str] = &[
    "MatMul",
    "Gemm",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "LSTM",
    "Add",
];

#[track_caller]
fn check(what: &str, model: Model, options: Options, input: &Tensor, expect: &[(&str, usize)]) {
    let float = Program::compile(&model, &CompileOptions::default()).unwrap();
    let (done, _) = quantized_without_data(model, Mode::Dynamic(options));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    write(&done.model, &path, &WriteOptions::default()).unwrap();
    if !options.lstm {
        onnx_check(&path).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in ort_optimized(&path, Level::Extended).unwrap_or_else(|e| panic!("{what}: {e}")) {
        *counts.entry(node.op_type).or_default() += 1;
    }
    for op in WATCHED {
        let wanted = expect.iter().find(|(o, _)| o == op).map_or(0, |(_, n)| *n);
        assert_eq!(counts.get(*op).copied().unwrap_or(0), wanted, "{what}: {op} in {counts:?}");
    }
    let theirs = ort_run(&path, &[("x", &Array::new(input.shape(), input.slice::<f32>().unwrap()))]).unwrap();
    let theirs: Vec<f64> = theirs[0].1.to_vec::<f32>().into_iter().map(f64::from).collect();
    let run = |p: &Program| p.run_tensors(&[input.clone()], RunOptions::default()).unwrap()[0].to_f64s().unwrap();
    let ours = run(&Program::compile(&done.model, &CompileOptions::default()).unwrap());
    let apart = |a: &[f64], b: &[f64]| {
        assert_eq!(a.len(), b.len(), "{what}");
        let noise: f64 = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum();
        noise / a.iter().map(|x| x * x).sum::<f64>()
    };
    // The same integers: but where a value lies between two steps, which moves one output by one step.
    assert!(apart(&ours, &theirs) < 1e-6, "{what}: {:e} apart", apart(&ours, &theirs));
    let error = apart(&run(&float), &ours);
    assert!(error > 0.0 && error < 1e-3, "{what}: {error:e} from float");
}

#[test]
fn products_with_and_without_bias() {
    let input = Tensor::new(&[2, 3, 48], numbers(2 * 3 * 48, 5)).unwrap();
    let (mut b, x) = Builder::new(DType::F32, &[None, None, Some(48)]);
    // Query, key and value read the same data, which is quantized once.
    let mut sum = None;
    for _ in 0..3 {
        let w = b.weight(&[48, 64]);
        let bias = b.weight(&[64]);
        let y = b.op(Node::new("MatMul"), &[x, w]);
        let y = b.op(Node::new("Add"), &[y, bias]);
        sum = Some(sum.map_or(y, |s| b.op(Node::new("Max"), &[s, y])));
    }
    let w = b.weight(&[64, 64]);
    let y = b.op(Node::new("MatMul"), &[sum.unwrap(), w]);
    let y = b.op(Node::new("Tanh"), &[y]);
    let w = b.weight(&[16, 64]);
    let w = b.op(Node::new("Transpose"), &[w]);
    let y = b.op(Node::new("MatMul"), &[y, w]);
    let expect = &[("DynamicQuantizeLinear", 1), ("MatMulIntegerToFloat", 3), ("DynamicQuantizeMatMul", 2)];
    check("MatMul", b.done(y), Options::default(), &input, expect);
}

#[test]
fn gemm_in_both_layouts() {
    let input = Tensor::new(&[4, 48], numbers(4 * 48, 5)).unwrap();
    for turned in [0i64, 1] {
        for bias in [true, false] {
            let (mut b, x) = Builder::new(DType::F32, &[None, Some(48)]);
            let w = b.weight(if turned == 1 { &[32, 48] } else { &[48, 32] });
            let mut ins = vec![x, w];
            if bias {
                ins.push(b.weight(&[32]));
            }
            let y = b.op(Node::new("Gemm").attr("transB", Attr::Int(turned)), &ins);
            let what = format!("Gemm, transB {turned}, bias {bias}");
            check(&what, b.done(y), Options::default(), &input, &[("DynamicQuantizeMatMul", 1)]);
        }
    }
}

#[test]
fn recurrent_layers_when_asked() {
    let input = Tensor::new(&[6, 2, 24], numbers(6 * 2 * 24, 5)).unwrap();
    let model = || {
        let (mut b, x) = Builder::new(DType::F32, &[None, None, Some(24)]);
        let (w, r, bias) = (b.weight(&[2, 64, 24]), b.weight(&[2, 64, 16]), b.weight(&[2, 128]));
        let node = Node::new("LSTM").attr("hidden_size", 16i64).attr("direction", "bidirectional");
        let y = b.op(node, &[x, w, r, bias]);
        b.done(y)
    };
    check("LSTM", model(), Options { lstm: true }, &input, &[("DynamicQuantizeLSTM", 1)]);
    let (done, _) = quantized_without_data(model(), Mode::Dynamic(Options::default()));
    assert_eq!((done.report.weights.len(), done.report.kept[0].code), (0, "not-asked-for"));
}

#[test]
fn what_stays_float_is_said() {
    let (mut b, x) = Builder::new(DType::F32, &[Some(1), Some(4), Some(6), Some(6)]);
    let w = b.weight(&[32, 4, 3, 3]);
    let y = b.op(Node::new("Conv"), &[x, w]);
    let (done, _) = quantized_without_data(b.done(y), Mode::Dynamic(Options::default()));
    assert_eq!(done.report.kept.len(), 1);
    assert!(done.report.kept[0].why.contains("one scale for all channels"));
}
