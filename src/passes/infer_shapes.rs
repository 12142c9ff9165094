//! Finds types and shapes of values ([`crate::infer`]).
//!
//! The main graph's outputs keep the types that the file declares, even where more is known: they are the user's.

use super::{Ctx, Info, Pass};
use crate::error::Result;
use crate::infer::infer;
use crate::ir::{Model, ValueType};

/// The pass.
pub const PASS: &dyn Pass = &InferShapes;

struct InferShapes;

impl Pass for InferShapes {
    fn info(&self) -> Info {
        Info { name: "infer_shapes", summary: "finds types and shapes of all values" }
    }

    fn run(&self, model: &mut Model, ctx: &mut Ctx<'_>) -> Result<bool> {
        let before = types(model);
        let declared: Vec<_> = model.main().outputs().iter().map(|&v| (v, model.main().value(v).ty.clone())).collect();
        infer(model, ctx.sink)?;
        for (v, ty) in declared {
            model.main_mut().set_type(v, ty);
        }
        Ok(types(model) != before)
    }
}

fn types(model: &Model) -> Vec<Option<ValueType>> {
    let graphs = model.graph_ids().map(|id| model.graph(id));
    graphs.flat_map(|g| g.values().map(|v| g.value(v).ty.clone())).collect()
}
