//! Reading a model and writing it without a change gives the same bytes.

mod common;

use std::path::{Path, PathBuf};

use onnx_quant::ir::verify::verify;
use onnx_quant::onnx;

/// Reads a model, checks the IR, and compares what is written with what was read. Returns whether even the plain
/// encoding, which does not look at the file again, gives the same bytes.
fn round_trip(path: &Path) -> Result<bool, String> {
    let before = std::fs::read(path).map_err(|e| e.to_string())?;
    let model = onnx::read(path).map_err(|e| format!("{e:#}"))?;
    let violations = verify(&model);
    if !violations.is_empty() {
        return Err(violations.join("; "));
    }
    for id in model.graph_ids() {
        let g = model.graph(id);
        for &v in g.initializers() {
            let tensor = match &g.value(v).def {
                onnx_quant::ir::Def::Initializer(t) | onnx_quant::ir::Def::Overridable(t) => t,
                other => return Err(format!("initializer {} is {other:?}", g.value(v).name)),
            };
            tensor.get().map_err(|e| format!("{}: {e:#}", g.value(v).name))?;
        }
    }
    let after = onnx::to_bytes(&model).map_err(|e| format!("{e:#}"))?;
    if after != before {
        return Err(format!("{} bytes in, {} other bytes out", before.len(), after.len()));
    }
    Ok(onnx::to_canonical_bytes(&model).map_err(|e| format!("{e:#}"))? == before)
}

fn check(paths: &[PathBuf]) -> usize {
    let mut failed = Vec::new();
    let mut plain = 0;
    for path in paths {
        match round_trip(path) {
            Ok(same) => {
                plain += usize::from(same);
                if !same {
                    println!("{}: only by looking at the file again", path.display());
                }
            }
            Err(e) => failed.push(format!("{}: {e}", path.display())),
        }
    }
    println!("{} models, {plain} identical by encoding alone", paths.len());
    assert!(failed.is_empty(), "{} of {} models:\n{}", failed.len(), paths.len(), failed.join("\n"));
    plain
}

#[test]
fn every_backend_test_model() {
    let paths: Vec<_> = common::backend_data::cases().iter().map(|c| c.model()).collect();
    assert!(paths.len() > 1700, "{} models", paths.len());
    assert_eq!(check(&paths), paths.len());
}

#[test]
fn every_feature_and_the_small_models() {
    let mut paths: Vec<_> = ["read", "models", "demo"]
        .iter()
        .flat_map(|dir| std::fs::read_dir(common::testdata(dir)).unwrap())
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    paths.sort();
    assert!(paths.iter().any(|p| p.ends_with("every_feature.onnx")));
    assert_eq!(check(&paths), paths.len());
}

#[test]
fn every_real_model() {
    let Some(zoo) = common::zoo() else {
        println!("ONNX_QUANT_ZOO is not set: no real models compared");
        return;
    };
    let mut paths: Vec<_> = std::fs::read_dir(zoo.join("models"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    check(&paths);
}

/// Files that are legal but not encoded as protobuf recommends, and graphs that the IR puts right.
#[test]
fn unusual_files() {
    let script = r#"
import onnx
from onnx import helper, TensorProto
def main(path):
    vi = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [2])
    w = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, float("nan")])
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Add", ["x", "w"], ["a"])]
    g = helper.make_graph(nodes, "g", [vi("x")], [vi("y")], [w, w, helper.make_tensor("", TensorProto.FLOAT, [0], [])])
    g.node[0].attribute.append(helper.make_attribute("alpha", float("nan")))
    m = helper.make_model(g, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    files = {"unsorted_twice_nameless_nan": m.SerializeToString()}
    rest = onnx.ModelProto()
    rest.CopyFrom(m)
    rest.ClearField("graph")
    graph_only = onnx.ModelProto(graph=m.graph)
    files["graph_first"] = graph_only.SerializeToString() + rest.SerializeToString()
    # The IR version as a number of four bytes, and again; the last one counts.
    files["padded"] = bytes([0x08, 0x8a, 0x80, 0x80, 0x00]) + m.SerializeToString()
    for name, data in files.items():
        open(f"{path}/{name}.onnx", "wb").write(data)
    return sorted(files)
"#;
    let dir = tempfile::tempdir().unwrap();
    let names = common::python::call(script, serde_json::json!(dir.path())).unwrap();
    let paths: Vec<_> =
        names.as_array().unwrap().iter().map(|n| dir.path().join(format!("{}.onnx", n.as_str().unwrap()))).collect();
    assert_eq!(paths.len(), 3);
    assert_eq!(check(&paths), 0, "these are identical only by looking at the file again");
}
