//! Files: external data, what must not be overwritten, what is not a model, and edits that reach the file.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::npz::Array;
use onnx_quant::diag::Sink;
use onnx_quant::error::help_of;
use onnx_quant::ir::{Def, Model, Node, TensorType, ValueType};
use onnx_quant::onnx::{self, External, WriteOptions, read, write};
use onnx_quant::passes::{Ctx, eliminate_dead, manager};
use onnx_quant::tensor::{DType, Tensor};
use serde_json::json;
use tempfile::TempDir;

/// A model of two weights that stores the larger one outside.
const MAKE: &str = r#"
import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto

def main(path):
    rng = np.random.default_rng(0)
    w = numpy_helper.from_array(rng.normal(size=(64, 32)).astype(np.float32), "w")
    b = numpy_helper.from_array(rng.normal(size=(32,)).astype(np.float32), "b")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [w, b]), ir_version=10,
                              opset_imports=[helper.make_opsetid("", 21)])
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
"#;

fn made() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    common::python::call(MAKE, json!(path)).unwrap();
    (dir, path)
}

fn run(path: &Path) -> Vec<f32> {
    let x = Array::random(&[2, 64], -1.0, 1.0, 7);
    common::ort::ort_run(path, &[("x", &x)]).unwrap()[0].1.to_vec()
}

fn initializer(model: &Model, name: &str) -> Tensor {
    let g = model.main();
    match &g.value(g.find_value(name).unwrap()).def {
        Def::Initializer(t) => t.get().unwrap().clone(),
        other => panic!("{other:?}"),
    }
}

fn message<T>(result: onnx_quant::error::Result<T>) -> String {
    result.map_or_else(|e| format!("{e:#}"), |_| panic!("this should have failed"))
}

#[test]
fn external_data_is_read_and_written() {
    let (dir, path) = made();
    let expected = run(&path);
    let model = read(&path).unwrap();
    let w = initializer(&model, "w");
    assert_eq!(w.shape(), [64, 32]);
    assert_eq!(w.slice::<f32>().unwrap()[0].to_le_bytes(), fs::read(dir.path().join("weights.bin")).unwrap()[..4]);

    // Beside the original, the unchanged model shares its data; the bytes are the same.
    let beside = dir.path().join("copy.onnx");
    write(&model, &beside, &WriteOptions::default()).unwrap();
    assert_eq!(fs::read(&beside).unwrap(), fs::read(&path).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);

    // Elsewhere it gets data of its own, on a page boundary, the small tensor inside.
    let other = tempfile::tempdir().unwrap();
    let moved = other.path().join("moved.onnx");
    write(&model, &moved, &WriteOptions::default()).unwrap();
    assert_eq!(fs::metadata(other.path().join("moved.onnx.data")).unwrap().len(), 64 * 32 * 4);
    assert!(!fs::read(&moved).unwrap().windows(11).any(|w| w == b"weights.bin"));
    assert_eq!(run(&moved), expected);
    common::ort::onnx_check(&moved).unwrap();

    // Inside, on request; and outside again.
    let inside = other.path().join("inside.onnx");
    write(&model, &inside, &WriteOptions { external: External::Never, ..WriteOptions::default() }).unwrap();
    assert_eq!(run(&inside), expected);
    assert!(!other.path().join("inside.onnx.data").exists());
    let again = other.path().join("again.onnx");
    let always = WriteOptions { external: External::Always, ..WriteOptions::default() };
    write(&read(&inside).unwrap(), &again, &always).unwrap();
    assert_eq!(run(&again), expected);
    assert_eq!(
        fs::read(other.path().join("again.onnx.data")).unwrap(),
        fs::read(other.path().join("moved.onnx.data")).unwrap()
    );
}

#[test]
fn tensors_outside_start_on_pages() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::new(10, 21);
    let g = model.main_mut();
    for (name, n) in [("a", 300), ("b", 5000), ("c", 8)] {
        let v = g.add_initializer(name, Tensor::of(&[n, 1], vec![n as f32; n]));
        let y = g.add_result(format!("y_{name}"), Some(ValueType::tensor(DType::F32, vec![n.into(), 1.into()])));
        g.add_node(Node::new("Relu"), &[Some(v)], &[Some(y)]);
        g.set_outputs(g.outputs().iter().copied().chain([y]).collect());
    }
    let scale = g.add_initializer("scale", Tensor::vector(vec![1.0f32; 4096]));
    let y = g.add_result("y", Some(ValueType::tensor(DType::F32, vec![4096.into()])));
    g.add_node(Node::new("Relu"), &[Some(scale)], &[Some(y)]);
    g.set_outputs(g.outputs().iter().copied().chain([y]).collect());
    let path = dir.path().join("m.onnx");
    write(&model, &path, &WriteOptions { external: External::Always, ..WriteOptions::default() }).unwrap();
    // 1200 bytes, then 20000 from the next page on; `c` and the vector stay inside.
    assert_eq!(fs::metadata(dir.path().join("m.onnx.data")).unwrap().len(), 4096 + 20000);
    common::ort::onnx_check(&path).unwrap();
    let back = read(&path).unwrap();
    assert_eq!(initializer(&back, "b").slice::<f32>().unwrap(), vec![5000f32; 5000]);
    assert_eq!(initializer(&back, "scale").len(), 4096);
}

#[test]
fn external_data_that_is_not_as_promised() {
    let (dir, path) = made();
    let weights = dir.path().join("weights.bin");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..100]).unwrap();
    let short = message(read(&path));
    assert!(short.contains("model.onnx: initializer \"w\": weights.bin has 100 bytes, expected 8192"), "{short}");
    fs::remove_file(&weights).unwrap();
    let missing = read(&path).unwrap_err();
    assert!(format!("{missing:#}").contains("initializer \"w\": external data file"), "{missing:#}");
    assert!(help_of(&missing).is_some());
    let bytes = fs::read(&path).unwrap();
    let nowhere = message(onnx::read_bytes(bytes.into(), None));
    assert!(nowhere.contains("external data \"weights.bin\", but the model has no folder"), "{nowhere}");
}

#[test]
fn inputs_are_never_overwritten() {
    let (dir, path) = made();
    let before = (fs::read(&path).unwrap(), fs::read(dir.path().join("weights.bin")).unwrap());
    let model = read(&path).unwrap();
    let options = WriteOptions::default();
    assert!(message(write(&model, &path, &options)).ends_with("output and input are the same file"));
    let dotted = dir.path().join("./model.onnx");
    assert!(message(write(&model, &dotted, &options)).ends_with("output and input are the same file"));
    let weights = dir.path().join("weights.bin");
    assert!(message(write(&model, &weights, &options)).ends_with("output and input are the same file"));
    let calibration = dir.path().join("calibration.npz");
    fs::write(&calibration, b"samples").unwrap();
    let also = WriteOptions { inputs: vec![calibration.clone()], ..WriteOptions::default() };
    assert!(message(write(&model, &calibration, &also)).ends_with("output and input are the same file"));

    // Data of the output under the name of the input's data: the same length, so nothing else in the file changes.
    fs::rename(&weights, dir.path().join("o.onnx.data")).unwrap();
    let at = before.0.windows(11).position(|w| w == b"weights.bin").unwrap();
    let renamed = [&before.0[..at], b"o.onnx.data", &before.0[at + 11..]].concat();
    fs::write(&path, &renamed).unwrap();
    let model = read(&path).unwrap();
    let always = WriteOptions { external: External::Always, ..WriteOptions::default() };
    let same = message(write(&model, &dir.path().join("o.onnx"), &always));
    assert!(same.contains("o.onnx.data: output and input are the same file"), "{same}");
    assert_eq!(fs::read(dir.path().join("o.onnx.data")).unwrap(), before.1);
    assert_eq!(fs::read(&path).unwrap(), renamed);
    assert!(!dir.path().join("o.onnx").exists());
}

#[cfg(unix)]
#[test]
fn links_and_permissions() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let (dir, path) = made();
    let model = read(&path).unwrap();
    let link = dir.path().join("link.onnx");
    symlink("model.onnx", &link).unwrap();
    assert!(message(write(&model, &link, &WriteOptions::default())).ends_with("output and input are the same file"));
    fs::write(dir.path().join("real.onnx"), b"old").unwrap();
    fs::remove_file(&link).unwrap();
    symlink("real.onnx", &link).unwrap();
    write(&model, &link, &WriteOptions::default()).unwrap();
    assert!(link.is_symlink());
    assert_eq!(fs::read(dir.path().join("real.onnx")).unwrap(), fs::read(&path).unwrap());
    // As any other new file: readable by all whom the umask allows.
    fs::write(dir.path().join("plain"), b"").unwrap();
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("real.onnx"), mode("plain"));
    assert!(message(write(&model, Path::new("/dev/null"), &WriteOptions::default())).contains("not a regular file"));
}

#[test]
fn outputs_that_cannot_be_written() {
    let (dir, path) = made();
    let model = read(&path).unwrap();
    let options = WriteOptions::default();
    let of = |p: PathBuf| message(write(&model, &p, &options));
    assert!(of(dir.path().to_path_buf()).ends_with("is a directory, expected the name of a file"));
    let missing = of(dir.path().join("no/such/out.onnx"));
    assert!(missing.contains("no/such does not exist"), "{missing}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
}

#[test]
fn files_that_are_no_models() {
    let dir = tempfile::tempdir().unwrap();
    let seed = fs::read(common::testdata("models/small_cnn.onnx")).unwrap();
    let of = |bytes: &[u8]| {
        let path = dir.path().join("file");
        fs::write(&path, bytes).unwrap();
        let text = message(read(&path));
        assert!(text.starts_with(&path.display().to_string()) && !text.contains('\n'), "{text:?}");
        text.trim_start_matches(&format!("{}: ", path.display())).to_owned()
    };
    assert_eq!(of(b""), "the file is empty");
    assert_eq!(of(b"hello, this is a text\n"), "a text file, not an ONNX model");
    assert_eq!(of("\u{feff}{\"ir_version\": 8}".as_bytes()), "a text file, not an ONNX model");
    assert_eq!(
        of(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "a Git LFS pointer (run `git lfs pull`), not an ONNX model"
    );
    assert_eq!(of(b"PK\x03\x04archive"), "a zip archive, such as a PyTorch checkpoint, not an ONNX model");
    assert_eq!(of(&[0x80; 64]), "not an ONNX model: invalid number at byte 9 (onnx.ModelProto)");
    assert_eq!(
        of(&[0xff; 3]),
        "not an ONNX model: truncated at byte 3: a field of onnx.ModelProto takes 1 more bytes, 0 are left"
    );
    assert_eq!(of(&[0xf8, 0x7f, 1]), "not an ONNX model: no field of a model in it");
    assert_eq!(of(&[8, 8]), "the model has no graph");
    let half = of(&seed[..seed.len() / 2]);
    assert!(half.starts_with("damaged ONNX model: truncated at byte "), "{half}");

    let nothing = message(read(&dir.path().join("nothing")));
    assert!(nothing.ends_with("nothing: no such file"), "{nothing}");
    let folder = message(read(dir.path()));
    assert!(folder.ends_with("is a directory, expected a file"), "{folder}");
}

/// New nodes, tensors, types and names reach the file; what was not touched stays as it was.
#[test]
fn edits_reach_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = read(&common::testdata("read/every_feature.onnx")).unwrap();
    let g = model.main_mut();
    let relu = g.find_value("relu").unwrap();
    let producer = g.producer(relu).unwrap().0;
    // `relu` is captured by bodies two levels down, annotated, sharded and declared.
    g.rename(relu, "activated");
    let scale = g.add_initializer("activated_scale", Tensor::scalar(0.5f32));
    let q = g.add_result("activated_quantized", None);
    let pos = g.node(producer).pos.after();
    g.add_node(
        Node::new("QuantizeLinear").named("q").at(pos).attr("output_dtype", 2i64),
        &[Some(relu), Some(scale)],
        &[Some(q)],
    );
    let ty = ValueType::Tensor(TensorType { dtype: Some(DType::F16), shape: None });
    g.set_type(relu, Some(ty));
    model.producer_name = "somebody".into();
    let path = dir.path().join("out.onnx");
    write(&model, &path, &WriteOptions::default()).unwrap();

    let script = r#"
import onnx
def names(g, into):
    for n in g.node:
        into.extend([*n.input, *n.output])
        for a in n.attribute:
            for b in [a.g, *a.graphs]:
                names(b, into)
    into.extend(o.name for o in g.output)
    return into

def main(argument):
    before, after = onnx.load(argument[0]), onnx.load(argument[1])
    g = after.graph
    [note] = g.quantization_annotation
    strange = g.node[[n.op_type for n in g.node].index("Strange")]
    info = {i.name: i for i in g.value_info}
    answer = {
        "order": [n.op_type for n in g.node],
        "relu left": "relu" in names(g, []),
        "uses": names(g, []).count("activated"),
        "note": note.tensor_name,
        "sharded": strange.device_configurations[0].sharding_spec[0].tensor_name,
        "type": info["activated"].type.tensor_type.elem_type,
        "quantize": [str(n) for n in g.node if n.op_type == "QuantizeLinear"][0].split(),
        "producer": after.producer_name,
        "scale": g.initializer[-1].name,
    }
    # Undo by hand, then nothing may differ.
    before_uses = names(before.graph, []).count("relu")
    answer["all uses"] = answer["uses"] == before_uses + 1
    answer["function"] = before.functions[0] == after.functions[0]
    answer["training"] = before.training_info == after.training_info
    answer["weights"] = list(before.graph.initializer) == list(g.initializer)[:-1]
    answer["attributes"] = [a.name for a in strange.attribute]
    return answer
"#;
    let source = common::testdata("read/every_feature.onnx");
    let answer = common::python::call(script, json!([source, path])).unwrap();
    assert_eq!(answer["order"], json!(["Relu", "QuantizeLinear", "Half", "If", "Strange", "Nothing"]));
    assert_eq!(answer["relu left"], json!(false));
    for key in ["all uses", "function", "training", "weights"] {
        assert_eq!(answer[key], json!(true), "{key}");
    }
    assert_eq!(answer["note"], json!("activated"));
    assert_eq!(answer["sharded"], json!("activated"));
    assert_eq!(answer["type"], json!(10));
    assert_eq!(answer["producer"], json!("somebody"));
    assert_eq!(answer["scale"], json!("activated_scale"));
    let quantize = answer["quantize"].to_string();
    assert!(quantize.contains("\"type:\",\"INT\""), "{quantize}");
    assert_eq!(answer["attributes"].as_array().unwrap().len(), 16);
}

/// What a file says of a value goes when the value goes: it is not said of what is made later.
#[test]
fn declared_types_do_not_pass_to_new_values() {
    let script = r#"
import onnx
def main(path):
    text = "<ir_version: 8, opset_import: ['' : 17]> g (float[N,2] x) => (float[N,2] y) { dead = Neg (x) y = Abs (x) }"
    m = onnx.parser.parse_model(text.replace("'", '"'))
    m.graph.value_info.append(onnx.helper.make_tensor_value_info("dead", 1, ["N", "M"]))
    onnx.save(m, path)
"#;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("given.onnx");
    common::python::call(script, json!(path)).unwrap();
    let mut model = read(&path).unwrap();
    let dead = model.main().find_value("dead").unwrap();
    manager::run_pass(&mut model, eliminate_dead::PASS, &mut Ctx::new(&mut Sink::default())).unwrap();
    let g = model.main_mut();
    assert!(!g.has_value(dead));
    let y = g.find_value("y").unwrap();
    let abs = g.producer(y).unwrap().0;
    let (between, more) = (g.add_result("between", None), g.add_result("more", None));
    g.set_output(abs, 0, Some(between));
    g.add_node(Node::new("Neg"), &[Some(between)], &[Some(more)]);
    g.add_node(Node::new("Neg"), &[Some(more)], &[Some(y)]);
    let read = onnx::read_bytes(onnx::to_bytes(&model).unwrap().into(), None).unwrap();
    for name in ["between", "more"] {
        assert_eq!(read.main().value(read.main().find_value(name).unwrap()).ty, None, "{name}");
    }
}

/// Below IR version 4 constants have to be listed as inputs; above, that would let users override them.
#[test]
fn listed_constants_follow_the_ir_version() {
    let script = r#"
import onnx
from onnx import helper, TensorProto
def main(path):
    w = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    vi = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [2])
    g = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [vi("w"), vi("x")], [vi("y")], [w])
    for ir in (3, 4):
        m = helper.make_model(g, ir_version=ir, opset_imports=[helper.make_opsetid("", 8)])
        open(f"{path}/{ir}.onnx", "wb").write(m.SerializeToString())
"#;
    let dir = tempfile::tempdir().unwrap();
    common::python::call(script, json!(dir.path())).unwrap();
    let names = |model: &Model| {
        let g = model.main();
        g.inputs().iter().map(|&v| g.value(v).name.clone()).collect::<Vec<_>>()
    };
    let mut old = read(&dir.path().join("3.onnx")).unwrap();
    assert_eq!(names(&old), ["x"]);
    assert!(old.main().constant(old.main().find_value("w").unwrap()).is_some());
    assert_eq!(onnx::to_canonical_bytes(&old).unwrap(), fs::read(dir.path().join("3.onnx")).unwrap());
    old.ir_version = 10;
    let raised = onnx::to_bytes(&old).unwrap();
    assert_eq!(names(&onnx::read_bytes(raised.into(), None).unwrap()), ["x"]);

    let new = read(&dir.path().join("4.onnx")).unwrap();
    assert_eq!(names(&new), ["w", "x"]);
    assert!(matches!(new.main().value(new.main().inputs()[0]).def, Def::Overridable(_)));
}

#[test]
fn what_reading_notes() {
    let model = read(&common::testdata("read/every_feature.onnx")).unwrap();
    let notes: Vec<_> = onnx::diagnostics(&model).iter().map(ToString::to_string).collect();
    let unknown = notes.iter().filter(|n| n.starts_with("note[unknown-field]: field 2047 of onnx.")).count();
    assert_eq!(unknown, 8, "{notes:#?}");
    assert_eq!(
        notes[unknown..],
        ["warning[undefined-value]: tensor \"nowhere\": node \"\" (Nothing) uses it, but nothing defines it"]
    );
}

/// Files above 2 GiB, protobuf's own limit, which some exporters write nevertheless.
#[test]
fn more_than_two_gibibytes() {
    fn varint(mut n: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while n > 0x7f {
            bytes.push(n.to_le_bytes()[0] | 0x80);
            n >>= 7;
        }
        bytes.push(n.to_le_bytes()[0]);
        bytes
    }
    fn bytes(key: u8, head: &[u8], holes: u64) -> Vec<u8> {
        [&[key], varint(head.len() as u64 + holes).as_slice(), head].concat()
    }
    // The elements come last in the file and are a hole in it: raw_data of an initializer of the graph.
    let elements = (1u64 << 31) + 4;
    let raw_data = bytes(0x4a, &[], elements);
    let dims_type_name = [&[0x08], varint(elements).as_slice(), &[0x10, 0x02, 0x42, 0x01, b'w']].concat();
    let initializer = bytes(0x2a, &[dims_type_name, raw_data].concat(), elements);
    let graph = bytes(0x3a, &initializer, elements);
    let head = [vec![0x08, 0x08], graph].concat();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.onnx");
    fs::write(&path, &head).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(head.len() as u64 + elements).unwrap();

    let model = read(&path).unwrap();
    let w = model.main().find_value("w").unwrap();
    assert_eq!(model.main().constant(w).unwrap().len() as u64, elements);
    let never = WriteOptions { external: External::Never, ..WriteOptions::default() };
    let mut changed = model.clone();
    changed.producer_name = "somebody".into();
    let error = message(write(&changed, &dir.path().join("out.onnx"), &never));
    assert!(error.contains("too many for one file"), "{error}");
}
