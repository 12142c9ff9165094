//! Post-training quantization of ONNX models.
// Tests may print and unwrap; the library may not.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, clippy::panic))]

pub mod calibrate;
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
