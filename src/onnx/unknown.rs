//! Fields that the schema does not know: found when reading, put back when writing.

/// A message type: its name and its fields, sorted by number.
#[derive(Debug)]
pub(crate) struct KnownMessage {
    /// Full name, for messages.
    pub(crate) name: &'static str,
    /// Field number, and the index in [`KNOWN`] of the message it holds, if it holds one.
    pub(crate) fields: &'static [(u32, Option<usize>)],
}

include!(concat!(env!("OUT_DIR"), "/known_fields.rs"));
