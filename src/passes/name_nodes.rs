//! Gives every node a name of its own: messages, plans and configurations speak of nodes by name.
//!
//! A node without one is named after its operator and place (`Conv_12`); of several nodes of one name, bodies
//! included, all but the first get a number.

use std::collections::HashSet;

use super::{Ctx, Info, Pass};
use crate::error::Result;
use crate::ir::{Model, Names};

/// The pass.
pub const PASS: &dyn Pass = &NameNodes;

struct NameNodes;

impl Pass for NameNodes {
    fn info(&self) -> Info {
        Info { name: "name_nodes", summary: "gives every node a name of its own" }
    }

    fn run(&self, model: &mut Model, _: &mut Ctx<'_>) -> Result<bool> {
        let mut names = Names::of(model);
        let mut seen = HashSet::new();
        let mut changed = false;
        for id in model.graph_ids().collect::<Vec<_>>() {
            for n in model.graph(id).order()? {
                let node = model.graph(id).node(n);
                if !node.name.is_empty() && seen.insert(node.name.clone()) {
                    continue;
                }
                let wanted = if node.name.is_empty() {
                    format!("{}_{}", node.op_type, node.pos.anchor)
                } else {
                    node.name.clone()
                };
                let name = names.fresh(&wanted);
                seen.insert(name.clone());
                model.graph_mut(id).node_mut(n).name = name;
                changed = true;
            }
        }
        Ok(changed)
    }
}
