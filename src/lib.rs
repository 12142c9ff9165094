//! Post-training quantization of ONNX models.
