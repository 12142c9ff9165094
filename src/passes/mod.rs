//! Passes: edits of a model that keep its meaning, one file each.
//!
//! **Add a pass:** a new file `src/passes/<name>.rs` with a `pub(super) const PASS: &dyn Pass`, its name in the
//! `passes!` list below, a place in a [`Pipeline`], and cases in `testdata/passes/<name>/`.
//!
//! A pass visits every graph (`model.graph_ids()`) unless its documentation says otherwise; it keeps name, order and
//! type of the main graph's inputs and outputs; it counts graph outputs and captures as uses and never takes an
//! overridable initializer for a constant; it deletes nothing: what is no longer used goes in `eliminate_dead`.
//! It says exactly whether it changed anything and does not repeat itself: [`manager`] does that, with a bound.

pub mod manager;
pub mod pattern;
mod rewrite;
mod splice;

use std::collections::HashSet;

use crate::diag::Sink;
use crate::error::{Location, Result};
use crate::ir::Model;
use pattern::Skip;

/// What a pass is called and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// The name: a verb phrase, the file's name.
    pub name: &'static str,
    /// One phrase without a final dot.
    pub summary: &'static str,
}

/// An edit of a model that keeps its meaning.
pub trait Pass: Sync {
    /// Its name and summary.
    fn info(&self) -> Info;

    /// Edits the model and says whether anything changed.
    ///
    /// # Errors
    /// The model cannot be converted; the error names the node.
    fn run(&self, model: &mut Model, ctx: &mut Ctx<'_>) -> Result<bool>;
}

/// What passes are told and where they report to.
pub struct Ctx<'a> {
    /// Where notes go.
    pub sink: &'a mut Sink,
    /// The opset version that the model must have at least.
    pub opset_floor: i64,
    /// Whether what is computed in half precision is to be computed in float32.
    pub widen_float16: bool,
    /// Whether a stored matrix that is transposed stays as it is, rather than being stored a second time.
    pub keep_transposed: bool,
    reported: HashSet<(&'static str, String)>,
}

impl<'a> Ctx<'a> {
    /// With the opset version that per-axis quantization needs.
    #[must_use]
    pub fn new(sink: &'a mut Sink) -> Self {
        Ctx { sink, opset_floor: 13, widen_float16: true, keep_transposed: false, reported: HashSet::new() }
    }

    /// With another opset version that the model must have at least.
    #[must_use]
    pub fn opset_floor(mut self, floor: i64) -> Self {
        self.opset_floor = floor;
        self
    }

    /// With or without widening half precision to float32.
    #[must_use]
    pub fn widen_float16(mut self, widen: bool) -> Self {
        self.widen_float16 = widen;
        self
    }

    /// With stored matrices that are transposed left as they are, for whoever reads through the `Transpose`.
    #[must_use]
    pub fn keep_transposed(mut self, keep: bool) -> Self {
        self.keep_transposed = keep;
        self
    }

    /// Reports a near miss once, as a note with the pass's name as its code; what does not match at all is not worth a word.
    pub fn skip(&mut self, pass: &'static str, location: Location, skip: Skip) {
        if let Skip::Because(reason) = skip
            && self.reported.insert((pass, format!("{location} {reason}")))
        {
            self.sink.note(pass, location, reason);
        }
    }
}

macro_rules! passes {
    ($($name:ident)*) => {
        $(pub mod $name;)*
        /// Every pass, in alphabetical order.
        pub const ALL: &[&dyn Pass] = &[$($name::PASS,)*];
    };
}

passes! {
    capture_unchanged_state
    eliminate_common_subexpressions
    eliminate_dead
    eliminate_identity
    fold_constants
    fuse_conv_batch_norm
    fuse_mat_mul_add
    hoist_channel_wise
    infer_shapes
    inline_functions
    name_nodes
    upgrade_opset
    widen_float16
}

/// The pass of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static dyn Pass> {
    ALL.iter().copied().find(|p| p.info().name == name)
}

/// One step of a pipeline.
#[derive(Clone, Copy)]
pub enum Step {
    /// A pass that runs once.
    Once(&'static dyn Pass),
    /// Passes that run in turn until none of them changes anything.
    Fixpoint(&'static [&'static dyn Pass]),
}

/// A named list of steps.
#[derive(Clone, Copy)]
pub struct Pipeline {
    /// The name.
    pub name: &'static str,
    /// The steps in order.
    pub steps: &'static [Step],
}

/// What a float model goes through before quantization is planned.
///
/// Functions go first, since an operator's attributes can be converted only where they have values; types are found
/// before the opset is raised, since some conversions need ranks.
pub const PREPARE: Pipeline = Pipeline {
    name: "prepare",
    steps: &[
        Step::Once(name_nodes::PASS),
        Step::Once(inline_functions::PASS),
        Step::Once(infer_shapes::PASS),
        Step::Once(upgrade_opset::PASS),
        Step::Once(widen_float16::PASS),
        Step::Fixpoint(&[
            infer_shapes::PASS,
            capture_unchanged_state::PASS,
            fold_constants::PASS,
            eliminate_identity::PASS,
            eliminate_common_subexpressions::PASS,
            hoist_channel_wise::PASS,
            fuse_mat_mul_add::PASS,
            fuse_conv_batch_norm::PASS,
            eliminate_dead::PASS,
        ]),
        Step::Once(name_nodes::PASS),
    ],
};

/// What a quantized model goes through before it is written.
pub const CLEANUP: Pipeline = Pipeline { name: "cleanup", steps: &[Step::Once(eliminate_dead::PASS)] };
