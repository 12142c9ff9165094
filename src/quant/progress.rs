//! How the library says what it is doing, without printing.

/// Sees the stages of a run; the command line draws a bar.
pub trait Progress: Sync {
    /// A stage begins that takes so many steps.
    fn begin(&self, stage: &str, steps: u64);
    /// So many steps are done.
    fn advance(&self, steps: u64);
    /// The stage is over.
    fn end(&self);
}

/// Sees nothing.
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
}
