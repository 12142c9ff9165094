//! Replaces calls of the model's own functions by their bodies.
//!
//! Attribute references get the call's values or the function's defaults; what is inlined gets unique names in front of
//! which the call's name stands. Functions that nothing calls any more go in `eliminate_dead`. A function may import
//! other opset versions than the model only where its operators are the same in both (`IR.md` of the specification).

use super::splice::Splice;
use super::{Ctx, Info, Pass};
use crate::error::{At, Result, bail};
use crate::ir::{GraphId, Model, Names, NodeId};

/// The pass.
pub const PASS: &dyn Pass = &InlineFunctions;

struct InlineFunctions;

impl Pass for InlineFunctions {
    fn info(&self) -> Info {
        Info { name: "inline_functions", summary: "replaces calls of the model's own functions by their bodies" }
    }

    fn run(&self, model: &mut Model, _: &mut Ctx<'_>) -> Result<bool> {
        if model.functions.is_empty() {
            return Ok(false);
        }
        let mut names = Names::of(model);
        let mut changed = false;
        // Each round inlines one level; functions may call each other but not in a circle.
        for _ in 0..=model.functions.len() {
            let calls = calls(model);
            if calls.is_empty() {
                return Ok(changed);
            }
            for (graph, node) in calls {
                let location = model.graph(graph).node(node).location();
                inline(model, &mut names, graph, node).at(|| location)?;
                changed = true;
            }
        }
        bail!("the model's functions call each other in a circle")
    }
}

/// Calls outside functions that have not been inlined: an inlined one has no outputs.
fn calls(model: &Model) -> Vec<(GraphId, NodeId)> {
    let mut calls = Vec::new();
    for id in model.graph_ids().filter(|&id| model.root_of(id) == GraphId::MAIN) {
        let g = model.graph(id);
        let mut here: Vec<_> = g
            .nodes()
            .filter(|&n| {
                let node = g.node(n);
                model.function(&node.domain, &node.op_type, &node.overload).is_some()
                    && g.node_outputs(n).iter().any(Option::is_some)
            })
            .collect();
        here.sort_by_key(|&n| (g.node(n).pos, n));
        calls.extend(here.into_iter().map(|n| (id, n)));
    }
    calls
}

fn inline(model: &mut Model, names: &mut Names, graph: GraphId, node: NodeId) -> Result<()> {
    let g = model.graph(graph);
    let call = g.node(node);
    let Some(f) = model.function(&call.domain, &call.op_type, &call.overload) else {
        bail!("the model has no such function")
    };
    let inputs = g.node_inputs(node);
    let prefix = format!("{}/", if call.name.is_empty() { &f.name } else { &call.name });
    let (source, bindings) = (f.body, f.bind(&call.attrs));
    let imports: Vec<_> = f.opsets.iter().filter(|(d, _)| model.opset(d).is_none()).cloned().collect();
    Splice { model, names, source, target: graph, node, prefix, bindings }.run(&inputs)?;
    model.opsets.extend(imports);
    // The call is dead; without inputs it keeps nothing alive meanwhile.
    model.graph_mut(graph).truncate_inputs(node, 0);
    Ok(())
}
