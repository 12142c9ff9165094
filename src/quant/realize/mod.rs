//! Output forms: the only step that edits a model for quantization.

pub mod dynamic;
pub mod qdq;
pub mod qoperator;
pub mod quantized_io;
pub mod strip;
pub mod weight_only;
