//! What one run of the float model shows: element type and shape of every value. So planning never depends on shape
//! inference getting through.

use std::collections::BTreeMap;

use super::plan::Place;
use crate::error::Result;
use crate::interp::{CompileOptions, Program, RunOptions};
use crate::ir::{Def, GraphId, Model, ValueId};
use crate::ops::Item;
use crate::tensor::{DType, Tensor};

/// Element types and shapes on one sample.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    values: BTreeMap<Place, (DType, Vec<usize>)>,
}

impl Facts {
    /// Runs the model once and notes what it sees.
    ///
    /// # Errors
    /// The model does not run on the sample.
    pub fn of(model: &Model, sample: &[(String, Tensor)], options: RunOptions, skip_unknown: bool) -> Result<Self> {
        let program = Program::compile(model, &CompileOptions { watch: &|_, _| true, skip_unknown })?;
        let mut values = BTreeMap::new();
        program.run_named(sample, options, &mut |g: GraphId, v: ValueId, item: &Item| {
            if let Item::Tensor(t) = item {
                values.insert((g, v), (t.dtype(), t.shape().to_vec()));
            }
            Ok(())
        })?;
        // What a body uses of the graph around it is made there. An owner comes before its bodies.
        for id in model.graph_ids() {
            let g = model.graph(id);
            for v in g.values() {
                if let Def::Capture(outer, source) = g.value(v).def
                    && let Some(known) = values.get(&(outer, source)).cloned()
                {
                    values.insert((id, v), known);
                }
            }
        }
        Ok(Facts { values })
    }

    /// The element type of a value, if it was made.
    #[must_use]
    pub fn dtype(&self, place: Place) -> Option<DType> {
        self.values.get(&place).map(|(d, _)| *d)
    }

    /// The shape of a value, if it was made.
    #[must_use]
    pub fn shape(&self, place: Place) -> Option<&[usize]> {
        self.values.get(&place).map(|(_, s)| s.as_slice())
    }
}
