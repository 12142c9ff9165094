//! The interpreter: compiles a model once, runs it on many samples.
//!
//! [`Program::compile`] fixes the order of the steps, resolves operands to slots and finds each value's last use;
//! [`Program::run`] executes it. A value is freed at its last use, and its last user holds the only reference to it,
//! so that operators may write in place. A compiled program is shared between threads.
//!
//! Chosen values are shown to a [`Tap`] as they are made, which is how calibration observes a model.

mod compile;
pub mod reverse;
mod run;

use crate::error::Result;
use crate::ir::{GraphId, TensorRef, ValueId, ValueType};
use crate::ops::Item;

pub use compile::{CompileOptions, Program};

/// Sees chosen values while a program runs.
pub trait Tap {
    /// A value was made.
    ///
    /// # Errors
    /// What it returns ends the run.
    fn see(&mut self, graph: GraphId, value: ValueId, item: &Item) -> Result<()>;
}

/// Sees nothing.
pub struct NoTap;

impl Tap for NoTap {
    fn see(&mut self, _: GraphId, _: ValueId, _: &Item) -> Result<()> {
        Ok(())
    }
}

impl<F: FnMut(GraphId, ValueId, &Item) -> Result<()>> Tap for F {
    fn see(&mut self, graph: GraphId, value: ValueId, item: &Item) -> Result<()> {
        self(graph, value, item)
    }
}

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Threads that operators may use, through `rayon`'s current pool. The results do not depend on it.
    pub threads: usize,
    /// Seed for random operators without one of their own.
    pub seed: u64,
}

impl Default for RunOptions {
    fn default() -> Self {
        RunOptions { threads: 1, seed: 0 }
    }
}

/// A graph input of a program.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its declared type.
    pub ty: Option<ValueType>,
    /// What it is when no value is given.
    pub default: Option<TensorRef>,
}
