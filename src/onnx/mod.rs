//! Front and back end: ONNX files to `ir::Model` and back.
//!
//! The only modules that name protobuf types.

pub(crate) mod proto;
mod unknown;
