//! Output forms: the only step that edits a model for quantization.

pub mod qdq;
