//! `proto/onnx.proto` is compiled alike by every compiler, and says what ONNX's own schema says.
//!
//! The build compiles the schema with protox unless told otherwise (see `build.rs`) and leaves the
//! descriptor set it used; the generated code is a function of that set alone. The first test
//! holds the set against that of a protoc: `PROTOC`, else `protoc` on the `PATH`, else the one in
//! the Python package grpcio-tools, installed below `target/`. The second holds it against the
//! descriptors of the Python package onnx.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

const USED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/onnx.fds"));
const COMPILER: &str = env!("ONNX_SCHEMA_COMPILER");

/// A Python package with a protoc for every system.
const GRPCIO_TOOLS: &str = "grpcio-tools==1.82.1";
/// The descriptor set of the Python package onnx, as a list of bytes.
const PACKAGE: &str = "
from onnx import onnx_ml_pb2, onnx_operators_ml_pb2, onnx_data_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
def main(_):
    s = FileDescriptorSet()
    for m in (onnx_ml_pb2, onnx_operators_ml_pb2, onnx_data_pb2):
        m.DESCRIPTOR.CopyToProto(s.file.add())
    return list(s.SerializeToString())";

fn used() -> FileDescriptorSet {
    FileDescriptorSet::decode(USED).expect("the build wrote a descriptor set")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn runs(command: &[&str]) -> bool {
    Command::new(command[0]).args(&command[1..]).output().is_ok_and(|o| o.status.success())
}

fn is_protoc(command: &[String]) -> bool {
    let command: Vec<_> = command.iter().map(String::as_str).chain(["--version"]).collect();
    runs(&command)
}

/// The command that starts a protoc, if one can be had.
fn protoc() -> Option<Vec<String>> {
    let at_hand = std::env::var("PROTOC").unwrap_or_else(|_| "protoc".to_owned());
    if is_protoc(std::slice::from_ref(&at_hand)) {
        return Some(vec![at_hand]);
    }
    let venv = common::target_dir().join("protoc-venv");
    common::python::once(&venv, GRPCIO_TOOLS, |venv| {
        let (venv, python) = (venv.display().to_string(), python_in(venv));
        let _ = runs(&["python3", "-m", "venv", &venv]) && runs(&[&python, "-m", "pip", "install", "-q", GRPCIO_TOOLS]);
    });
    let module = [&python_in(&venv), "-m", "grpc_tools.protoc"].map(str::to_owned).to_vec();
    is_protoc(&module).then_some(module)
}

fn python_in(venv: &Path) -> String {
    venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" }).display().to_string()
}

/// Comments by the path of what they belong to: all that prost-build reads of the source info.
fn comments(file: &FileDescriptorProto) -> BTreeMap<Vec<i32>, (String, String)> {
    file.source_code_info
        .iter()
        .flat_map(|info| &info.location)
        .map(|l| {
            let pair = (l.leading_comments().to_owned(), l.trailing_comments().to_owned());
            (l.path.clone(), pair)
        })
        .filter(|(_, (a, b))| !a.is_empty() || !b.is_empty())
        .collect()
}

#[test]
fn every_compiler_gives_the_same_descriptors() {
    let used = used();
    assert_eq!(used.file.len(), 1);
    assert!(comments(&used.file[0]).len() > 250, "comments become docs");
    let Some(protoc) = protoc() else {
        println!("no protoc to be had: {COMPILER} compared with nothing");
        return;
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let status = Command::new(&protoc[0])
        .args(&protoc[1..])
        .args(["--include_imports", "--include_source_info"])
        .arg(format!("--proto_path={}", root().join("proto").display()))
        .arg(format!("--descriptor_set_out={}", file.path().display()))
        .arg("onnx.proto")
        .status()
        .unwrap();
    assert!(status.success());
    let theirs = std::fs::read(file.path()).unwrap();
    let theirs = FileDescriptorSet::decode(theirs.as_slice()).unwrap();
    assert_eq!(theirs.file.len(), used.file.len());
    for (ours, theirs) in used.file.iter().zip(&theirs.file) {
        assert_eq!(comments(ours), comments(theirs));
        let bare = |file: &FileDescriptorProto| FileDescriptorProto { source_code_info: None, ..file.clone() };
        assert_eq!(bare(ours), bare(theirs));
    }
    println!(
        "compared {COMPILER} with {}: {} messages and their comments are equal",
        protoc.join(" "),
        used.file[0].message_type.len()
    );
}

/// One line per thing a schema says, without order, comments and source positions.
fn facts(file: &FileDescriptorProto, into: &mut Vec<String>) {
    assert_eq!(file.package(), "onnx");
    assert!(matches!(file.syntax(), "" | "proto2"), "{}", file.syntax());
    for e in &file.enum_type {
        enum_facts("onnx", e, into);
    }
    for m in &file.message_type {
        message_facts("onnx", m, into);
    }
}

fn enum_facts(scope: &str, e: &EnumDescriptorProto, into: &mut Vec<String>) {
    for v in &e.value {
        into.push(format!("{scope}.{} {} = {}", e.name(), v.name(), v.number()));
    }
}

fn message_facts(scope: &str, m: &DescriptorProto, into: &mut Vec<String>) {
    let name = format!("{scope}.{}", m.name());
    into.push(name.clone());
    for f in &m.field {
        let oneof = f.oneof_index.map(|i| m.oneof_decl[i as usize].name().to_owned());
        into.push(format!(
            "{name}.{} = {} {:?} {:?} {} packed {:?} default {:?} oneof {oneof:?}",
            f.name(),
            f.number(),
            f.label(),
            f.r#type(),
            f.type_name(),
            f.options.as_ref().and_then(|o| o.packed),
            f.default_value,
        ));
    }
    for r in &m.reserved_range {
        into.push(format!("{name} reserves {}..{}", r.start(), r.end()));
    }
    for r in &m.reserved_name {
        into.push(format!("{name} reserves {r}"));
    }
    for e in &m.enum_type {
        enum_facts(&name, e, into);
    }
    for nested in &m.nested_type {
        message_facts(&name, nested, into);
    }
}

#[test]
fn the_schema_is_that_of_the_onnx_package() {
    let mut ours = Vec::new();
    facts(&used().file[0], &mut ours);
    ours.sort();
    for newest in ["TensorProto.DataType FLOAT6E3M2 = 28", "Version IR_VERSION"] {
        assert!(ours.iter().any(|f| f.contains(newest)), "{newest}");
    }
    let theirs = common::python::call(PACKAGE, serde_json::json!(null)).unwrap();
    let bytes: Vec<u8> = serde_json::from_value(theirs).unwrap();
    let mut theirs = Vec::new();
    for file in &FileDescriptorSet::decode(bytes.as_slice()).unwrap().file {
        facts(file, &mut theirs);
    }
    theirs.sort();
    let missing: Vec<_> = theirs.iter().filter(|f| !ours.contains(f)).collect();
    let extra: Vec<_> = ours.iter().filter(|f| !theirs.contains(f)).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "only in the package: {missing:#?}\nonly in proto/onnx.proto: {extra:#?}"
    );
    println!("compared with the onnx package: {} facts are equal", theirs.len());
}
