//! Post-training quantization of ONNX models.
pub mod onnx;
