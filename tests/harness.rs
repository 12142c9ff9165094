//! The test harness itself: the Python worker, arrays there and back, ONNX Runtime's answers, ONNX's data.

mod common;

use common::backend_data;
use common::npz::{self, Array};
use common::ort::{Level, onnx_check, ort_optimized_ops, ort_run};
use common::python;
use serde_json::json;

#[test]
fn arrays_keep_type_shape_and_values_through_numpy() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from.npz"), dir.path().join("to.npz"));
    let arrays = [
        ("a/b:0", Array::new(&[2, 3], &[0.5f32, -1.0, 2.0, f32::MAX, f32::MIN_POSITIVE, -0.0])),
        ("scalar", Array::new(&[], &[7i64])),
        ("empty", Array::new::<f64>(&[0, 4], &[])),
        ("flags", Array::bools(&[3], &[true, false, true])),
        ("bytes", Array::new(&[1, 2, 1], &[0u8, 255])),
    ];
    npz::write(&from, &arrays.each_ref().map(|(n, a)| (*n, a)));
    let script = "import numpy as np\n\
                  def main(p):\n    z = np.load(p[0])\n    np.savez(p[1], **{k: z[k] for k in z.files})\n";
    python::call(script, json!([from, to])).unwrap();
    assert_eq!(npz::read(&to), arrays.map(|(n, a)| (n.to_string(), a)));
}

#[test]
fn a_python_exception_is_an_error_and_the_worker_survives_it() {
    let error = python::call("def main(x): return {}[x]", json!("missing key")).unwrap_err();
    assert!(error.contains("KeyError: 'missing key'"), "{error}");
    let sum = python::call("def main(x): print('noise'); return sum(x)", json!([1, 2, 3])).unwrap();
    assert_eq!(sum, json!(6));
}

#[test]
fn a_worker_that_dies_is_replaced() {
    // Other tests of this binary use the same worker; a lost request of theirs would show here as a failure.
    let error = python::call("import os\ndef main(x): os._exit(9)", json!(null)).unwrap_err();
    assert!(error.contains("died"), "{error}");
    assert_eq!(python::call("def main(x): return x", json!("alive")).unwrap(), json!("alive"));
}

#[test]
fn onnx_runtime_runs_checks_and_fuses() {
    let cases = backend_data::cases();
    let add = cases.iter().find(|c| c.kind == "node" && c.name == "test_add").unwrap();
    onnx_check(&add.model()).unwrap();
    let x = Array::random(&[3, 4, 5], -1.0, 1.0, 1);
    let y = Array::random(&[3, 4, 5], -1.0, 1.0, 2);
    assert_ne!(x, y);
    let out = ort_run(&add.model(), &[("x", &x), ("y", &y)]).unwrap();
    let sum: Vec<f32> = x.to_vec::<f32>().iter().zip(y.to_vec::<f32>()).map(|(x, y)| x + y).collect();
    assert_eq!(out, [("sum".to_string(), Array::new(&[3, 4, 5], &sum))]);
    assert!(ort_run(&add.model(), &[("x", &x)]).unwrap_err().contains('y'));

    let resnet = cases.iter().find(|c| c.name == "light_resnet50").unwrap();
    let before = ort_optimized_ops(&resnet.model(), Level::Disabled).unwrap();
    let after = ort_optimized_ops(&resnet.model(), Level::Extended).unwrap();
    let count = |ops: &[(String, String)], op: &str| ops.iter().filter(|(o, _)| o == op).count();
    assert_eq!((count(&before, "Conv"), count(&before, "BatchNormalization")), (53, 53));
    // 49 activations, of which 16 follow an addition.
    assert_eq!((count(&after, "BatchNormalization"), count(&after, "FusedConv")), (0, 33));
}

#[test]
fn the_backend_data_is_complete() {
    let cases = backend_data::cases();
    let count = |kind: &str| cases.iter().filter(|c| c.kind == kind).count();
    let counts = ["node", "simple", "pytorch-converted", "pytorch-operator", "light"].map(count);
    assert!(counts[0] > 1800, "{counts:?}");
    assert_eq!(counts[1..], [23, 82, 35, 9]);
    for case in &cases {
        assert!(case.model().exists(), "{}", case.name);
        let sets = case.data_sets();
        assert!(!sets.is_empty(), "{}", case.name);
        assert!(sets.iter().all(|s| !backend_data::outputs(s).is_empty()), "{}", case.name);
    }
}
