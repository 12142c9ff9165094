//! Post-training quantization of ONNX models.
pub mod diag;
pub mod error;
pub mod ir;
pub mod onnx;
pub mod ops;
pub mod tensor;
