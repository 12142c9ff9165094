//! Every element type in every encoding, against ONNX's own reader and writer.

mod common;

use std::path::Path;

use onnx_quant::onnx::{read_tensor_pb, write_tensor_pb};
use onnx_quant::tensor::{DType, Tensor};
use serde_json::{Value, json};

/// Writes, for each type, a tensor as `raw_data` and in its typed list, and returns its elements as numbers.
const WRITE: &str = r#"
import numpy as np
from onnx import TensorProto, helper, numpy_helper
import os

def numbers(a):
    if a.dtype == object:
        return [x if isinstance(x, str) else x.decode() for x in a.flat]
    if a.dtype.kind == "c":
        return [[repr(float(x.real)), repr(float(x.imag))] for x in a.flat]
    return [repr(float(x)) if a.dtype.kind != "i" and a.dtype.kind != "u" else int(x) for x in a.flat]

def main(folder):
    rng = np.random.default_rng(1)
    made = []
    for name, code in TensorProto.DataType.items():
        if code == TensorProto.UNDEFINED:
            continue
        shape = [3, 7]
        if code == TensorProto.STRING:
            t = helper.make_tensor("t", code, [2, 2], [b"a", b"", "\u00e4\u20ac".encode(), b"long" * 9])
            open(f"{folder}/{code}.list.pb", "wb").write(t.SerializeToString())
            made.append([code, [2, 2], False, True, numbers(numpy_helper.to_array(t))])
            continue
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(code))
        values = rng.normal(size=shape) * 40
        if dtype.kind == "c":
            values = values + 1j * rng.normal(size=shape)
        if dtype.kind == "u" or dtype.name.startswith("uint"):
            values = np.abs(values)
        if code == TensorProto.BOOL:
            values = values > 0
        if name in ("UINT2", "INT2", "UINT4", "INT4"):
            values = rng.integers(-8 if name == "INT4" else -2 if name == "INT2" else 0, 16 if name == "UINT4" else 8 if name == "INT4" else 4 if name == "UINT2" else 2, size=shape)
        a = values.astype(dtype)
        t = numpy_helper.from_array(a, "t")
        raw = t.HasField("raw_data")
        open(f"{folder}/{code}.raw.pb", "wb").write(t.SerializeToString())
        is_list = not name.startswith("FLOAT6")
        if is_list:
            t = helper.make_tensor("t", code, shape, a)
            assert not t.HasField("raw_data")
            open(f"{folder}/{code}.list.pb", "wb").write(t.SerializeToString())
        else:
            bits = a.view(np.uint8).flatten().tolist()
            t = TensorProto(name="t", dims=shape, data_type=code, int32_data=bits)
            open(f"{folder}/{code}.list.pb", "wb").write(t.SerializeToString())
        made.append([code, shape, raw, True, numbers(a)])
    return made
"#;

/// The elements of files that were written here, and the fields that hold them.
const READ: &str = r#"
import onnx
from onnx import numpy_helper

def main(argument):
    ours, theirs = argument
    a, b = onnx.load_tensor(ours), onnx.load_tensor(theirs)
    return [a == b, a.raw_data == b.raw_data, a.name, list(a.dims), a.data_type]
"#;

fn numbers(t: &Tensor) -> Value {
    use onnx_quant::tensor::Data;
    match t.data() {
        Data::Str(b) => json!(b.as_slice()),
        Data::C64(b) => json!(b.as_slice().iter().map(|c| [c.re, c.im]).collect::<Vec<_>>()),
        Data::C128(b) => json!(b.as_slice().iter().map(|c| [c.re, c.im]).collect::<Vec<_>>()),
        Data::I64(b) => json!(b.as_slice()),
        Data::U64(b) => json!(b.as_slice()),
        _ => json!(t.to_f64s().unwrap()),
    }
}

fn same(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::String(a), Value::String(b)) => a == b,
        // Python's text of a float, which knows infinity and not-a-number; JSON has null for both.
        (Value::Null, Value::String(b)) => matches!(b.as_str(), "nan" | "inf" | "-inf"),
        (Value::Number(a), Value::String(b)) => a.as_f64() == b.parse().ok(),
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => false,
    }
}

#[test]
fn every_type_in_every_encoding() {
    let dir = tempfile::tempdir().unwrap();
    let made = common::python::call(WRITE, json!(dir.path())).unwrap();
    let made = made.as_array().unwrap();
    assert_eq!(made.len(), DType::ALL.len());
    for case in made {
        let code = i32::try_from(case[0].as_i64().unwrap()).unwrap();
        let shape: Vec<usize> = serde_json::from_value(case[1].clone()).unwrap();
        for encoding in ["raw", "list"] {
            let path = dir.path().join(format!("{code}.{encoding}.pb"));
            if encoding == "raw" && case[2] != json!(true) {
                assert_eq!(code, DType::Str.code());
                continue;
            }
            let (name, tensor) = read_tensor_pb(&path).unwrap();
            assert_eq!((name.as_str(), tensor.dtype().code(), tensor.shape()), ("t", code, shape.as_slice()));
            let ours = numbers(&tensor);
            assert!(same(&ours, &case[4]), "{} {encoding}: {ours}, expected {}", tensor.dtype(), case[4]);
            check_written(dir.path(), &tensor, code);
        }
    }
}

/// What we write is what ONNX would have written.
fn check_written(dir: &Path, tensor: &Tensor, code: i32) {
    let ours = dir.join("ours.pb");
    write_tensor_pb(&ours, "t", tensor).unwrap();
    let theirs = dir.join(format!("{code}.{}.pb", if code == DType::Str.code() { "list" } else { "raw" }));
    let answer = common::python::call(READ, json!([ours, theirs])).unwrap();
    assert_eq!(answer, json!([true, true, "t", tensor.shape(), code]), "{}", tensor.dtype());
}

#[test]
fn backend_test_data_is_read() {
    use onnx_quant::onnx::{Stored, read, read_value_pb};
    let (mut n_tensors, mut n_others) = (0, 0);
    for case in common::backend_data::cases().iter().step_by(3) {
        let model = read(&case.model()).unwrap();
        let g = model.main();
        for set in case.data_sets() {
            let inputs = common::backend_data::inputs(&set).into_iter().zip(g.inputs());
            for (path, &value) in inputs.chain(common::backend_data::outputs(&set).into_iter().zip(g.outputs())) {
                let ty = g.value(value).ty.as_ref().unwrap();
                let (_, stored) = read_value_pb(&path, ty).unwrap_or_else(|e| panic!("{e:#}"));
                match stored {
                    Stored::Tensor(t) => {
                        assert_eq!(Some(t.dtype()), ty.dtype(), "{}", path.display());
                        n_tensors += 1;
                    }
                    _ => n_others += 1,
                }
            }
        }
    }
    println!("{n_tensors} tensors, {n_others} sequences and optionals");
    assert!(n_tensors > 1000 && n_others > 5);
}
