//! Compiles `proto/onnx.proto` into Rust types and a table of the fields it knows.
//!
//! The schema is compiled to a descriptor set by, in this order: the protoc that `PROTOC` names;
//! the protoc of protobuf-src, when the feature `vendored-protoc` is on; protox, which is pure
//! Rust. Everything after that step is the same for all three, so equal descriptor sets give
//! equal code; `tests/schema.rs` compares them. Written to `OUT_DIR`:
//!
//! - `onnx.rs`: prost's message types, `bytes` fields as `bytes::Bytes` so that they can point
//!   into a memory map;
//! - `known_fields.rs`: per message its field numbers and the messages they hold, for the scan
//!   that finds fields which the schema does not know (prost drops those in silence);
//! - `onnx.fds`: the descriptor set itself, for the tests.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorSet};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SCHEMA: &str = "onnx.proto";

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-env-changed=PROTOC");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let include = root.join("proto");

    let (compiler, descriptors) = match protoc() {
        Some(protoc) => (protoc.display().to_string(), compile_with(&protoc, &include, &out)?),
        None => ("protox".to_owned(), protox::compile([SCHEMA], [&include])?),
    };
    println!("cargo::rustc-env=ONNX_SCHEMA_COMPILER={compiler}");
    fs::write(out.join("onnx.fds"), descriptors.encode_to_vec())?;
    fs::write(out.join("known_fields.rs"), known_fields(&descriptors)?)?;
    prost_build::Config::new().bytes(["."]).out_dir(&out).compile_fds(descriptors)?;
    Ok(())
}

/// The protoc to use, if any.
fn protoc() -> Option<PathBuf> {
    if let Some(path) = env::var_os("PROTOC").filter(|p| !p.is_empty()) {
        return Some(path.into());
    }
    #[cfg(feature = "vendored-protoc")]
    return Some(protobuf_src::protoc());
    #[cfg(not(feature = "vendored-protoc"))]
    None
}

/// The schema's descriptor set as `protoc` makes it, comments included.
fn compile_with(protoc: &Path, include: &Path, out: &Path) -> Result<FileDescriptorSet> {
    let file = out.join("protoc.fds");
    let status = Command::new(protoc)
        .args(["--include_imports", "--include_source_info"])
        .arg(format!("--proto_path={}", include.display()))
        .arg(format!("--descriptor_set_out={}", file.display()))
        .arg(SCHEMA)
        .status()
        .map_err(|e| format!("cannot run protoc {}: {e}", protoc.display()))?;
    if !status.success() {
        return Err(format!("protoc {} failed: {status}", protoc.display()).into());
    }
    Ok(FileDescriptorSet::decode(fs::read(file)?.as_slice())?)
}

/// Rust source of the table of known fields: an array of `KnownMessage` sorted by name, and a
/// constant with the index of each message that can be a whole file.
fn known_fields(set: &FileDescriptorSet) -> Result<String> {
    let mut messages = Vec::new();
    for file in &set.file {
        for message in &file.message_type {
            collect(file.package(), message, &mut messages);
        }
    }
    messages.sort_by(|a, b| a.0.cmp(&b.0));
    let index = |name: &str| messages.iter().position(|(n, _)| n == name);

    let mut code = String::from("pub(crate) static KNOWN: &[KnownMessage] = &[\n");
    for (name, message) in &messages {
        let mut fields: Vec<_> = message.field.iter().collect();
        fields.sort_by_key(|f| f.number());
        writeln!(code, "    KnownMessage {{ name: {name:?}, fields: &[")?;
        for field in fields {
            let held = match field.type_name() {
                "" => None,
                name => index(name.trim_start_matches('.')),
            };
            writeln!(code, "        ({}, {held:?}),", field.number())?;
        }
        code.push_str("    ] },\n");
    }
    code.push_str("];\n");
    for root in ["ModelProto", "TensorProto", "SequenceProto", "OptionalProto"] {
        let at = index(&format!("onnx.{root}")).ok_or_else(|| format!("no message {root}"))?;
        let name = root.trim_end_matches("Proto").to_ascii_uppercase();
        writeln!(code, "pub(crate) const {name}: usize = {at};")?;
    }
    Ok(code)
}

/// Adds `message` and the messages nested in it, by full name.
fn collect<'a>(scope: &str, message: &'a DescriptorProto, into: &mut Vec<(String, &'a DescriptorProto)>) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(&name, nested, into);
    }
    into.push((name, message));
}
