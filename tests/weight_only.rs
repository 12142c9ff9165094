//! Weight-only models as ONNX Runtime runs them: each form becomes `MatMulNBits` or `GatherBlockQuantized`, nothing is
//! dequantized on every run, and both compute what our interpreter computes.

mod common;

use std::collections::BTreeMap;

use common::models::{Builder, numbers, quantized_without_data};
use common::npz::Array;
use common::ort::{Level, onnx_check, ort_optimized, ort_run, ort_run_at};
use onnx_quant::calibrate::dataset::{Dataset, Sample};
use onnx_quant::diag::Sink;
use onnx_quant::error::Result;
use onnx_quant::interp::{CompileOptions, Program, RunOptions};
use onnx_quant::ir::{Attr, Model, Node};
use onnx_quant::onnx::{WriteOptions, write};
use onnx_quant::quant::measure::worst_sqnr;
use onnx_quant::quant::weight_only::{Algorithm, Options, Output};
use onnx_quant::quant::{Config, Data, Mode, Quantized, Quiet, quantize};
use onnx_quant::tensor::{DType, Tensor};

fn quantized(model: Model, options: Options) -> (Quantized, Sink) {
    quantized_without_data(model, Mode::WeightOnly(options))
}

const FLOAT: &[&str] = &["MatMul", "Gemm", "FusedGemm", "FusedMatMul", "DequantizeLinear", "Gather", "Transpose"];

/// Quantizes, lists what ONNX Runtime runs, compares its result with ours. Gives the bytes of the file.
#[track_caller]
fn check(what: &str, model: Model, options: Options, input: &Tensor, expect: &[(&str, usize)]) -> u64 {
    let (done, _) = quantized(model, options);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    write(&done.model, &path, &WriteOptions::default()).unwrap();
    if options.output == Output::Qdq {
        onnx_check(&path).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in ort_optimized(&path, Level::Extended).unwrap_or_else(|e| panic!("{what}: {e}")) {
        *counts.entry(node.op_type).or_default() += 1;
    }
    for op in FLOAT.iter().chain(expect.iter().map(|(op, _)| op)) {
        let wanted = expect.iter().find(|(o, _)| o == op).map_or(0, |(_, n)| *n);
        assert_eq!(counts.get(*op).copied().unwrap_or(0), wanted, "{what}: {op} in {counts:?}");
    }

    let given = match input.dtype() {
        DType::I64 => Array::new(input.shape(), input.slice::<i64>().unwrap()),
        _ => Array::new(input.shape(), input.slice::<f32>().unwrap()),
    };
    let program = Program::compile(&done.model, &CompileOptions::default()).unwrap();
    let ours = program.run_tensors(&[input.clone()], RunOptions::default()).unwrap()[0].to_f64s().unwrap();
    let noise = |theirs: Vec<f32>| {
        assert_eq!(theirs.len(), ours.len(), "{what}");
        let signal: f64 = ours.iter().map(|x| x * x).sum();
        let noise: f64 = ours.iter().zip(&theirs).map(|(x, &y)| (x - f64::from(y)).powi(2)).sum();
        noise / signal
    };
    let fused = noise(ort_run(&path, &[("x", &given)]).unwrap()[0].1.to_vec());
    // Accuracy level 4 rounds activations to 8 bits in blocks on the way: some 45 dB. A wrong scale, zero point or
    // order of elements is 20 dB and less.
    assert!(fused < 1e-4, "{what}: {:.1} dB apart", -10.0 * fused.log10());
    if options.output == Output::Qdq {
        // Without optimizations ONNX Runtime computes the QDQ form as it is written, in floats.
        let plain = noise(ort_run_at(&path, &[("x", &given)], Level::Disabled).unwrap()[0].1.to_vec());
        assert!(plain < 1e-10, "{what}: {:.1} dB apart without fusion", -10.0 * plain.log10());
    }
    std::fs::metadata(&path).unwrap().len()
}

const TYPES: [DType; 6] = [DType::I8, DType::U8, DType::I4, DType::U4, DType::I2, DType::U2];

#[test]
fn products_in_every_type_and_form() {
    let input = Tensor::new(&[2, 3, 72], numbers(2 * 3 * 72, 5)).unwrap();
    for dtype in TYPES {
        for output in [Output::Qdq, Output::NBits] {
            let (mut b, x) = Builder::new(DType::F32, &[None, None, Some(72)]);
            // The last block of 72 rows is cut off.
            let (w, bias) = (b.weight(&[72, 64]), b.weight(&[64]));
            let y = b.op(Node::new("MatMul"), &[x, w]);
            let y = b.op(Node::new("Add"), &[y, bias]);
            let y = b.op(Node::new("Tanh"), &[y]);
            let w = b.weight(&[48, 64]);
            let w = b.op(Node::new("Transpose"), &[w]);
            let y = b.op(Node::new("MatMul"), &[y, w]);
            let options = Options { block: 16, output, ..Options::new(dtype) };
            check(&format!("{dtype} {output:?}"), b.done(y), options, &input, &[("MatMulNBits", 2)]);
        }
    }
}

#[test]
fn any_number_of_columns_is_read_right() {
    let input = Tensor::new(&[4, 64], numbers(4 * 64, 5)).unwrap();
    for dtype in TYPES {
        for (columns, output) in [(33, Output::Qdq), (34, Output::Qdq), (35, Output::NBits)] {
            let (mut b, x) = Builder::new(DType::F32, &[None, Some(64)]);
            let w = b.weight(&[64, columns]);
            let y = b.op(Node::new("MatMul"), &[x, w]);
            let options = Options { block: 32, output, ..Options::new(dtype) };
            let what = format!("{dtype}, {columns} columns, {output:?}");
            check(&what, b.done(y), options, &input, &[("MatMulNBits", 1)]);
        }
    }
}

#[test]
fn the_weight_that_few_bits_hurt_most_takes_eight() {
    let input = Tensor::new(&[5, 64], numbers(5 * 64, 5)).unwrap();
    for output in [Output::Qdq, Output::NBits] {
        let (mut b, x) = Builder::new(DType::F32, &[None, Some(64)]);
        let mut sum = None;
        for i in 0..4 {
            let mut values = numbers(64 * 64, 30 + i);
            if i == 2 {
                // Of a few that are far off, the others of their blocks see only coarse steps.
                values.iter_mut().step_by(29).for_each(|v| *v *= 40.0);
            }
            let w = b.stored(Tensor::new(&[64, 64], values).unwrap());
            let y = b.op(Node::new("MatMul"), &[x, w]);
            sum = Some(sum.map_or(y, |s| b.op(Node::new("Add"), &[s, y])));
        }
        let model = b.done(sum.unwrap());
        let bits = |percent| {
            let options = Options { wide_percent: percent, output, ..Options::new(DType::I4) };
            let (done, _) = quantized(model.clone(), options);
            done.report.weights.iter().map(|w| w.job.scheme.bits()).collect::<Vec<_>>()
        };
        assert_eq!(bits(0), [4, 4, 4, 4]);
        assert_eq!(bits(24), [4, 4, 4, 4]);
        assert_eq!(bits(25), [4, 4, 8, 4]);
        assert_eq!(bits(100), [8, 8, 8, 8]);
        let options = Options { wide_percent: 25, output, ..Options::new(DType::I4) };
        check(&format!("mixed, {output:?}"), model, options, &input, &[("MatMulNBits", 4)]);
    }
}

/// Samples of one input `x`, `[5, 64]`.
struct Numbers(u64);

impl Dataset for Numbers {
    fn len(&self) -> usize {
        6
    }
    fn sample(&self, i: usize) -> Result<Sample> {
        let x = Tensor::new(&[5, 64], numbers(5 * 64, self.0 + i as u64)).unwrap();
        Ok(Sample { inputs: vec![("x".to_owned(), x)], origin: format!("sample {i}") })
    }
}

#[test]
fn as_many_weights_take_eight_bits_as_the_floor_needs() {
    let (mut b, x) = Builder::new(DType::F32, &[None, Some(64)]);
    let mut y = x;
    for _ in 0..6 {
        let w = b.weight(&[64, 64]);
        y = b.op(Node::new("MatMul"), &[y, w]);
        y = b.op(Node::new("Tanh"), &[y]);
    }
    let model = b.done(y);
    let run = |percent, is_least_wide, min_sqnr_db, algorithm| {
        let options = Options { wide_percent: percent, is_least_wide, algorithm, ..Options::new(DType::I4) };
        let config =
            Config { mode: Mode::WeightOnly(options), min_sqnr_db, threads: 1, ..Config::new("ort-cpu").unwrap() };
        let data = Data { calibration: &Numbers(50), holdout: &Numbers(90), is_shared: false, labels: None };
        let done = quantize(model.clone(), &config, &data, &Quiet, &mut |_, _| {}, &mut Sink::default()).unwrap();
        let bits: Vec<usize> = done.report.weights.iter().map(|w| w.job.scheme.bits()).collect();
        (worst_sqnr(&done.report.outputs), done.report.is_floor_met, bits)
    };
    for algorithm in [Algorithm::Rtn, Algorithm::Gptq] {
        // Six weights of one size: with each percentage one more takes 8 bits.
        let each = [0, 17, 34, 50, 67, 84, 100].map(|percent| run(percent, false, 0.0, algorithm));
        for (n, (db, _, bits)) in each.iter().enumerate() {
            assert_eq!(bits.iter().filter(|b| **b == 8).count(), n, "{algorithm:?} {bits:?}");
            assert!(n == 0 || *db > each[n - 1].0, "{algorithm:?}: {n} of 8 bits give {db:.2} dB");
        }
        for n in 1..=6 {
            let floor = f64::midpoint(each[n - 1].0, each[n].0);
            assert_eq!(run(100, true, floor, algorithm), (each[n].0, true, each[n].2.clone()), "{algorithm:?}, {n}");
        }
        assert_eq!(run(100, true, each[0].0 - 1.0, algorithm).2, [4; 6]);
        // Out of reach: the best that the share allows, and the report says so.
        assert_eq!(run(100, true, 200.0, algorithm), (each[6].0, false, each[6].2.clone()));
        assert_eq!(run(50, true, 200.0, algorithm), (each[3].0, false, each[3].2.clone()));
    }
}

#[test]
fn zero_points_that_are_floats() {
    let input = Tensor::new(&[5, 64], numbers(5 * 64, 5)).unwrap();
    for dtype in [DType::U4, DType::U2] {
        let (mut b, x) = Builder::new(DType::F32, &[None, Some(64)]);
        // Far from zero, where whole zero points lose most.
        let w = b.stored(Tensor::new(&[64, 64], numbers(64 * 64, 3).iter().map(|x| x + 4.0).collect()).unwrap());
        let y = b.op(Node::new("MatMul"), &[x, w]);
        let model = b.done(y);
        let sqnr = |float_zeros| {
            let options = Options { block: 16, output: Output::NBits, float_zeros, ..Options::new(dtype) };
            check(&format!("{dtype}, {float_zeros}"), model.clone(), options, &input, &[("MatMulNBits", 1)]);
            quantized(model.clone(), options).0.report.weights[0].job.sqnr_db().unwrap()
        };
        let (float, whole) = (sqnr(true), sqnr(false));
        assert!(float > whole + 6.0, "{dtype}: {float:.1} dB and {whole:.1} dB");
    }
    let (mut b, x) = Builder::new(DType::F32, &[None, Some(64)]);
    let w = b.weight(&[64, 64]);
    let y = b.op(Node::new("MatMul"), &[x, w]);
    let model = b.done(y);
    for (dtype, output) in [(DType::I4, Output::NBits), (DType::U8, Output::NBits), (DType::U4, Output::Qdq)] {
        let options = Options { float_zeros: true, output, ..Options::new(dtype) };
        let config = Config { mode: Mode::WeightOnly(options), threads: 1, ..Config::new("ort-cpu").unwrap() };
        let data = Data { calibration: &Numbers(50), holdout: &Numbers(90), is_shared: false, labels: None };
        let done = quantize(model.clone(), &config, &data, &Quiet, &mut |_, _| {}, &mut Sink::default());
        assert!(done.is_err_and(|e| e.to_string().contains("zero points can be floats")), "{dtype} {output:?}");
    }
}

#[test]
fn gemm_with_a_turned_weight_and_any_bias() {
    let input = Tensor::new(&[5, 64], numbers(5 * 64, 5)).unwrap();
    for output in [Output::Qdq, Output::NBits] {
        for bias in [Some(vec![96]), Some(vec![1, 96]), None] {
            for turned in [0i64, 1] {
                let (mut b, x) = Builder::new(DType::F32, &[None, Some(64)]);
                let w = b.weight(if turned == 1 { &[96, 64] } else { &[64, 96] });
                let mut ins = vec![x, w];
                ins.extend(bias.as_ref().map(|s| b.weight(s)));
                let y = b.op(Node::new("Gemm").attr("transB", Attr::Int(turned)), &ins);
                let options = Options { output, algorithm: Algorithm::Hqq, ..Options::new(DType::U4) };
                let what = format!("Gemm, transB {turned}, bias {bias:?}, {output:?}");
                check(&what, b.done(y), options, &input, &[("MatMulNBits", 1)]);
            }
        }
    }
}

#[test]
fn a_bias_that_is_no_row_is_added() {
    let input = Tensor::new(&[5, 64], numbers(5 * 64, 5)).unwrap();
    let (mut b, x) = Builder::new(DType::F32, &[Some(5), Some(64)]);
    let (w, bias) = (b.weight(&[64, 96]), b.weight(&[5, 1]));
    let y = b.op(Node::new("Gemm"), &[x, w, bias]);
    let options = Options { output: Output::NBits, ..Options::new(DType::I4) };
    check("Gemm with a column", b.done(y), options, &input, &[("MatMulNBits", 1), ("Add", 1)]);
}

#[test]
fn tables_are_looked_up_without_widening_them() {
    let input = Tensor::new(&[2, 3], vec![0i64, 7, 99, 5, 5, 42]).unwrap();
    for (dtype, output, expect) in [
        (DType::I4, Output::Qdq, ("Gather", 2)),
        (DType::I8, Output::Qdq, ("Gather", 2)),
        (DType::I4, Output::NBits, ("GatherBlockQuantized", 1)),
        (DType::U4, Output::NBits, ("GatherBlockQuantized", 1)),
        (DType::I8, Output::NBits, ("GatherBlockQuantized", 1)),
        (DType::U8, Output::NBits, ("GatherBlockQuantized", 1)),
        (DType::I2, Output::NBits, ("GatherBlockQuantized", 1)),
    ] {
        let (mut b, x) = Builder::new(DType::I64, &[None, None]);
        let w = b.weight(&[100, 80]);
        let y = b.op(Node::new("Gather"), &[w, x]);
        let options = Options { output, ..Options::new(dtype) };
        let bytes = check(&format!("{dtype} table, {output:?}"), b.done(y), options, &input, &[expect]);
        let bits = if output == Output::Qdq { 8 } else { dtype.bits().max(4) };
        assert!(bytes < 100 * 80 * bits as u64 / 8 + 100 * 80 / 32 * 5 + 2500, "{dtype} {output:?}: {bytes} bytes");
    }
}

#[test]
fn a_table_that_is_a_matrix_as_well_is_stored_once_where_a_form_allows() {
    let input = Tensor::new(&[1, 4], vec![0i64, 7, 99, 5]).unwrap();
    let model = || {
        let (mut b, x) = Builder::new(DType::I64, &[None, None]);
        let table = b.weight(&[512, 64]);
        let y = b.op(Node::new("Gather"), &[table, x]);
        let w = b.weight(&[64, 64]);
        let y = b.op(Node::new("MatMul"), &[y, w]);
        let head = b.op(Node::new("Transpose"), &[table]);
        let y = b.op(Node::new("MatMul"), &[y, head]);
        b.done(y)
    };
    let tied = |dtype| {
        let options = Options { output: Output::NBits, ..Options::new(dtype) };
        let expect = [("GatherBlockQuantized", 1), ("MatMulNBits", 2)];
        let options = Options { block: 32, ..options };
        check(&format!("tied {dtype}"), model(), options, &input, &expect)
    };
    let stored = 512 * 64 + 64 * 64;
    assert!(tied(DType::I4) < stored * 5 / 8 + 3000);
    assert!(tied(DType::U4) < stored * 5 / 8 + stored / 32 + 3000);
    assert!(tied(DType::I8) < stored * 9 / 8 + 3000);
    let qdq = Options::new(DType::I4);
    let bytes = check("untied", model(), qdq, &input, &[("Gather", 2), ("MatMulNBits", 2)]);
    assert!(bytes > stored * 3 / 2, "{bytes}");
    assert!(quantized(model(), qdq).1.diagnostics().iter().any(|d| d.code == "untied-table"));
}

#[test]
fn what_stays_float_is_said() {
    let (mut b, x) = Builder::new(DType::F32, &[Some(1), Some(4), Some(6), Some(6)]);
    let w = b.weight(&[32, 4, 3, 3]);
    let y = b.op(Node::new("Conv"), &[x, w]);
    let w = b.weight(&[1, 1, 4, 128]);
    let y = b.op(Node::new("MatMul"), &[y, w]);
    let z = b.op(Node::new("Transpose").attr("perm", vec![0i64, 1, 3, 2]), &[y]);
    let y = b.op(Node::new("MatMul"), &[z, y]);
    let (done, _) = quantized(b.done(y), Options::new(DType::I4));
    let kept: Vec<_> = done.report.kept.iter().map(|k| (k.op_type.as_str(), k.code)).collect();
    assert_eq!(
        kept,
        [("Conv", "no-weight-only-form"), ("MatMul", "no-weight-only-form"), ("MatMul", "no-constant-weight")]
    );
    assert!(done.report.weights.is_empty());
}

#[test]
fn results_do_not_depend_on_threads() {
    let model = || {
        let (mut b, x) = Builder::new(DType::F32, &[None, Some(256)]);
        let w = b.weight(&[256, 300]);
        let y = b.op(Node::new("MatMul"), &[x, w]);
        b.done(y)
    };
    let bytes = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let options = Options { algorithm: Algorithm::Hqq, ..Options::new(DType::U4) };
        pool.install(|| onnx_quant::onnx::to_bytes(&quantized(model(), options).0.model).unwrap())
    };
    assert_eq!(bytes(1), bytes(3));
}
