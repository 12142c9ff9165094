//! Post-training quantization of ONNX models: a trained float model and samples in, a quantized model out.
//!
//! ```text
//! file -> onnx::read -> ir::Model -> passes (prepare) -> calibrate (interp runs the samples)
//!                                 -> quant: plan, then one editing step, self-check, error on held-out samples
//!                                 -> onnx::write -> file
//! ```
//!
//! Dependencies point down this list only:
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | verbs, options, tables; the only module that prints, exits and reads the environment |
//! | [`quant`] | policy and algorithms: what is quantized, where, with which parameters, and why |
//! | [`passes`], [`calibrate`] | rewrites of the graph, one file each; samples and range statistics |
//! | [`interp`], [`infer`] | running a model; types and shapes |
//! | [`ops`] | one file per operator: signature, inference, evaluation, quantization facts |
//! | [`ir`] | the graph; no files, no protobuf |
//! | [`tensor`], [`kernels`] | arrays and data types; the loops that take the time |
//! | [`onnx`] | the file format, in and out, on top of [`ir`] |
//! | [`error`], [`diag`] | below all |
//!
//! What holds everywhere (`tests/tidy.rs` checks the first five):
//!
//! 1. Only [`onnx`] names protobuf types; only `ir/graph.rs`, `ir/order.rs` and `quant/cut.rs`
//!    (minimum cuts) import petgraph.
//! 2. An operator is defined in one file. Policy asks for its rule, not its name.
//! 3. Only the readers and writers of [`onnx`], `calibrate::dataset` and `cli` touch files; only `cli` prints.
//! 4. Unsafe code is in [`kernels`], and where a file is mapped into memory.
//! 5. The same input gives the same bytes: no clock, no order of hashes or threads.
//! 6. Without passes, the bytes written are the bytes read. Graph inputs and outputs keep name, type and order.
//! 7. What is not known stays float and is reported.
//! 8. Malformed input is an error that says where, never a panic.
// Tests may print and unwrap; the library may not.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, clippy::panic))]

pub mod calibrate;
pub mod cli;
pub mod diag;
pub mod error;
pub mod infer;
pub mod interp;
pub mod ir;
pub mod kernels;
pub mod onnx;
pub mod ops;
pub mod passes;
pub mod quant;
pub mod tensor;
