//! Front and back end: ONNX files to [`ir::Model`](crate::ir::Model) and back.
//!
//! These are the only modules that name protobuf types. Reading a model and writing it again without a change gives
//! the same bytes: what the IR does not model rides along (`residue.rs`), fields that the schema does not know
//! included (`unknown.rs`).

#![cfg_attr(not(test), warn(clippy::as_conversions, clippy::indexing_slicing))]

mod data;
mod export;
mod external;
mod import;
pub(crate) mod proto;
mod read;
mod residue;
mod tensor;
mod unknown;
mod write;

pub use data::{Stored, read_tensor_pb, read_value_pb, write_tensor_pb};
pub use read::{read, read_bytes};
pub use write::{External, WriteOptions, to_bytes, to_canonical_bytes, write};

use crate::diag::Diagnostic;
use crate::ir::Model;

/// What reading a model had to say that is not an error: undefined values, unknown fields, nodes out of order.
#[must_use]
pub fn diagnostics(model: &Model) -> &[Diagnostic] {
    model.residue.get::<residue::KeptModel>().map_or(&[], |kept| &kept.notes)
}
