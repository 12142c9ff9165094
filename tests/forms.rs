//! The other forms of a quantized model, and the ways in and out: QOperator and back, quantized inputs and outputs, back
//! to float, a part of a model, overrides and regions.

mod common;

use std::collections::BTreeMap;

use common::made::{agree, arrays, interpreted, load, made, made_with, steps_apart};
use common::npz::Array;
use common::ort::{Level, onnx_check, ort_run_at};
use onnx_quant::calibrate::dataset::Dataset;
use onnx_quant::ir::Model;
use onnx_quant::onnx::{WriteOptions, write};
use onnx_quant::quant::overrides;
use onnx_quant::quant::prune::{By, Pattern, Pruning};
use onnx_quant::quant::realize::{qoperator, strip};
use onnx_quant::quant::region::Region;
use onnx_quant::quant::scheme::{Choices, Form};
use onnx_quant::quant::{Effort, extract};
use onnx_quant::tensor::{DType, Tensor, affine};

fn ops(model: &Model) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for id in model.graph_ids() {
        let g = model.graph(id);
        for n in g.nodes() {
            *out.entry(g.node(n).op_type.clone()).or_default() += 1;
        }
    }
    out
}

/// A `Clip` that vanished into a zero point comes back as a `Relu`: nothing says where its upper bound was.
fn bounds_as_one(mut ops: BTreeMap<String, usize>) -> BTreeMap<String, usize> {
    let n = ops.remove("Clip").unwrap_or(0);
    *ops.entry("Relu".into()).or_default() += n;
    ops
}

fn qoperator() -> Choices {
    Choices { form: Form::QOperator, ..Choices::default() }
}

#[test]
fn operators_on_quantized_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    let mut problems = Vec::new();
    let cases: [(&str, &[(&str, usize)]); 5] = [
        ("small_cnn", &[("QLinearConv", 4), ("QGemm", 1), ("QLinearAdd", 1)]),
        ("dense10", &[("QGemm", 10)]),
        ("concat_ranges", &[("QLinearConv", 2)]),
        ("two_inputs", &[("QLinearMatMul", 1)]),
        ("encoder", &[("QLinearMatMul", 6)]),
    ];
    for (name, expected) in cases {
        let (mut done, inputs) = made(name, "ort-cpu", &qoperator());
        let have = ops(&done.model);
        for (op, n) in expected {
            assert_eq!(have.get(*op), Some(n), "{name}: {op} in {have:?}");
        }
        problems.extend(agree(name, &done, "ort-cpu", &inputs, &path));
        // And back: the same results, and the same operators again when it is converted once more.
        let before = interpreted(&done.model, &inputs);
        qoperator::to_qdq(&mut done.model).unwrap();
        assert!(ops(&done.model).keys().all(|op| !op.starts_with("QLinear") && op != "QGemm"), "{name}");
        problems.extend(agree(&format!("{name} back in QDQ"), &done, "ort-cpu", &inputs, &path));
        let after = interpreted(&done.model, &inputs);
        for ((name, a), (_, b)) in before.iter().zip(&after) {
            let shown = [(name.clone(), Array::new(&[b.len()], &b.iter().map(|x| *x as f32).collect::<Vec<_>>()))];
            let apart = steps_apart(&done.model, &[(name.clone(), a.clone())], &shown);
            assert!(apart <= 1.01, "{name}: {apart:.2} steps between the forms");
        }
        qoperator::from_qdq(&mut done.model).unwrap();
        assert_eq!(ops(&done.model), have, "{name}");
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn back_to_float() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    for form in [Form::Qdq, Form::QOperator] {
        for name in ["small_cnn", "dense10", "concat_ranges", "encoder"] {
            let (mut done, inputs) = made(name, "ort-cpu", &Choices { form, ..Choices::default() });
            let done_strip = strip::strip(&mut done.model).unwrap();
            assert!(done_strip.n_weights > 0, "{name}: {done_strip:?}");
            assert_eq!(bounds_as_one(ops(&done.model)), bounds_as_one(ops(&done.prepared)), "{name} in {form:?}");
            write(&done.model, &path, &WriteOptions::default()).unwrap();
            onnx_check(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
            let given = arrays(&inputs);
            let given: Vec<_> = given.iter().map(|(n, a)| (*n, a)).collect();
            let theirs = ort_run_at(&path, &given, Level::Disabled).unwrap();
            // The weights are those of the quantized model: close to the float model, not equal.
            for (name, a) in interpreted(&done.prepared, &inputs) {
                let b = common::made::numbers(&theirs.iter().find(|(n, _)| *n == name).unwrap().1);
                let signal: f64 = a.iter().map(|x| x * x).sum();
                let noise: f64 = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum();
                assert!(noise < signal * 1e-2, "{name}: {:.1} dB", 10.0 * (signal / noise).log10());
            }
        }
    }
}

#[test]
fn inputs_and_outputs_hold_integers_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    let (plain, inputs) = made("small_cnn", "ort-cpu", &qoperator());
    let (done, _) = made_with("small_cnn", "ort-cpu", &qoperator(), |c| c.quantize_io = true);
    let g = done.model.main();
    let types: Vec<_> =
        g.inputs().iter().chain(g.outputs()).map(|&v| g.value(v).ty.as_ref().unwrap().dtype()).collect();
    assert!(types.iter().all(|t| *t == Some(DType::U8)), "{types:?}");
    assert_eq!(done.report.notes.iter().filter(|n| n.contains("holds uint8")).count(), types.len());
    write(&done.model, &path, &WriteOptions::default()).unwrap();
    onnx_check(&path).unwrap();
    // What the plain model quantizes first, the caller quantizes here.
    let p = plain.model.main();
    let (input, x) = &inputs[0];
    let (q, _) = p.consumers(p.find_value(input).unwrap())[0];
    let stored = |slot| p.constant(p.input(q, slot).unwrap()).unwrap().get().unwrap().to_f64().unwrap();
    let (scale, zero) = (stored(1) as f32, stored(2) as i32);
    let bytes: Vec<u8> =
        x.slice::<f32>().unwrap().iter().map(|x| affine::quantize_one(*x, scale, zero, 0, 255) as u8).collect();
    let given = Array::new(x.shape(), &bytes);
    let theirs = ort_run_at(&path, &[(input, &given)], Level::All).unwrap();
    let quantized = theirs[0].1.to_vec::<u8>();
    let (name, want) = &interpreted(&plain.model, &inputs)[0];
    let dq = p.producer(p.find_value(name).unwrap()).unwrap().0;
    let stored = |slot| p.constant(p.input(dq, slot).unwrap()).unwrap().get().unwrap().to_f64().unwrap();
    for (q, y) in quantized.iter().zip(want) {
        let y_theirs = (f64::from(*q) - stored(2)) * stored(1);
        assert!((y_theirs - y).abs() <= stored(1) * 1.01, "{y_theirs} and {y}");
    }
}

#[test]
fn a_part_of_a_model() {
    let (model, samples) = load("small_cnn");
    let inputs = samples.sample(0).unwrap().inputs;
    let g = model.main();
    let order = g.order().unwrap();
    let middle = g.value(g.output(order[order.len() / 2], 0).unwrap()).name.clone();
    let mut head = model.clone();
    extract::extract(&mut head, &[], &[middle.clone()]).unwrap();
    let mut tail = model.clone();
    extract::extract(&mut tail, &[middle.clone()], &[]).unwrap();
    assert_eq!(head.main().nodes().count() + tail.main().nodes().count(), g.nodes().count());
    let half = interpreted(&head, &inputs);
    let shape: Vec<usize> = {
        let program = onnx_quant::interp::Program::compile(&head, &Default::default()).unwrap();
        let out = program.run_tensors(&[inputs[0].1.clone()], Default::default()).unwrap();
        out[0].shape().to_vec()
    };
    let half = Tensor::new(&shape, half[0].1.iter().map(|x| *x as f32).collect::<Vec<f32>>()).unwrap();
    assert_eq!(interpreted(&tail, &[(middle, half)]), interpreted(&model, &inputs));
    let e = extract::extract(&mut model.clone(), &["nope".into()], &[]).unwrap_err();
    assert!(e.to_string().contains("\"nope\" is no tensor"), "{e}");
}

#[test]
fn overrides_and_regions() {
    let (plain, _) = made("small_cnn", "ort-cpu", &Choices::default());
    let name = |place: &(onnx_quant::ir::GraphId, onnx_quant::ir::ValueId)| {
        plain.prepared.graph(place.0).value(place.1).name.clone()
    };
    let input = plain.prepared.main().value(plain.prepared.main().inputs()[0]).name.clone();
    let text = format!(r#"{{ "{input}": [{{"scale": 0.125, "zero_point": 100}}] }}"#);
    let (done, _) =
        made_with("small_cnn", "ort-cpu", &Choices::default(), |c| c.overrides = overrides::parse(&text).unwrap());
    let p = done.plan.tensors.iter().find(|(place, _)| name(place) == input).unwrap().1.params.unwrap();
    assert_eq!((p.scale, p.zero_point), (0.125, 100));

    let convs: Vec<String> = {
        let g = plain.prepared.main();
        let order = g.order().unwrap();
        order.into_iter().filter(|&n| g.node(n).op_type == "Conv").map(|n| g.node(n).label()).collect()
    };
    let region = Region { from: None, to: Some(convs[0].clone()) };
    let (done, _) = made_with("small_cnn", "ort-cpu", &Choices::default(), |c| c.regions = vec![region]);
    assert_eq!(done.report.weighted["Conv"].0, 1, "{:?}", done.report.weighted);
    assert!(done.report.kept.iter().any(|k| k.why == "outside --region"));
}

#[test]
fn pruned_weights_stay_zero() {
    let patterns = [Pattern::Share(0.5), Pattern::TwoInFour];
    for (pattern, by) in patterns.into_iter().flat_map(|p| [(p, By::Magnitude), (p, By::Gradient)]) {
        let (done, inputs) = made_with("dense10", "ort-cpu", &Choices::default(), |c| {
            c.prune = Some(Pruning { pattern, by });
            // All that rounds weights: none may undo it.
            c.effort = Effort::Best;
        });
        let g = done.model.main();
        let (mut zeros, mut all) = (0, 0);
        for &v in g.initializers() {
            let t = g.constant(v).unwrap();
            if t.dtype() == DType::I8 && t.shape().len() == 2 {
                let q = t.get().unwrap().slice::<i8>().unwrap().to_vec();
                zeros += q.iter().filter(|q| **q == 0).count();
                all += q.len();
            }
        }
        assert!(zeros * 2 >= all && all > 0, "{zeros} of {all}");
        assert!(done.report.notes.iter().any(|n| n.contains("--sparsity")));
        assert!(!interpreted(&done.model, &inputs).is_empty());
    }
}
