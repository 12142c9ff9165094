//! ONNX's protobuf messages, generated from `proto/onnx.proto` by `build.rs`.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]

include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
