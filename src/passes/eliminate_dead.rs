//! Removes nodes, values and initializers that no output depends on, and bodies and functions that no node uses.
//!
//! The only pass that deletes. Graph inputs and outputs stay. A node without any output slot stays: only an effect can
//! be its purpose. Unused outputs of nodes that are needed stay too.

use std::collections::HashSet;

use super::{Ctx, Info, Pass};
use crate::error::Result;
use crate::ir::{Def, GraphId, Model, NodeId, ValueId};

/// The pass.
pub const PASS: &dyn Pass = &EliminateDead;

struct EliminateDead;

impl Pass for EliminateDead {
    fn info(&self) -> Info {
        Info { name: "eliminate_dead", summary: "removes nodes, values and tensors that no output depends on" }
    }

    fn run(&self, model: &mut Model, _: &mut Ctx<'_>) -> Result<bool> {
        let mut changed = false;
        // Bodies come after their owners: from the last graph to the first, a body has given up its captures before
        // the graph that they come from is looked at.
        let graphs: Vec<_> = model.graph_ids().collect();
        for id in graphs.into_iter().rev() {
            changed |= sweep(model, id);
        }
        Ok(changed | drop_functions(model))
    }
}

fn sweep(model: &mut Model, id: GraphId) -> bool {
    let mut changed = false;
    let live = live_nodes(model, id);
    let dead: Vec<_> = model.graph(id).nodes().filter(|n| !live.contains(n)).collect();
    for n in dead {
        let bodies: Vec<_> = model.graph(id).node(n).attrs.graphs().collect();
        for b in bodies {
            model.discard_graph(b);
        }
        model.graph_mut(id).delete_node(n);
        changed = true;
    }
    let g = model.graph(id);
    let kept: HashSet<_> = g.inputs().iter().chain(g.outputs()).copied().collect();
    let unused: Vec<_> =
        g.values().filter(|v| g.n_uses(*v) == 0 && g.producer(*v).is_none() && !kept.contains(v)).collect();
    for v in unused {
        release_capture(model, id, v);
        model.graph_mut(id).delete_value(v);
        changed = true;
    }
    changed
}

/// Nodes that an output depends on, and nodes without outputs with all that those depend on.
fn live_nodes(model: &Model, id: GraphId) -> HashSet<NodeId> {
    let g = model.graph(id);
    let mut live = HashSet::new();
    let mut nodes: Vec<NodeId> = g.nodes().filter(|&n| g.node_outputs(n).is_empty()).collect();
    let mut values: Vec<ValueId> = g.outputs().to_vec();
    loop {
        if let Some(v) = values.pop() {
            nodes.extend(g.producer(v).map(|(n, _)| n));
        } else if let Some(n) = nodes.pop() {
            if live.insert(n) {
                values.extend(g.node_inputs(n).into_iter().flatten());
                values.extend(g.captures(n));
            }
        } else {
            return live;
        }
    }
}

/// Takes back what a body's unused capture says to the owner, unless another body of the owner uses the same value.
fn release_capture(model: &mut Model, id: GraphId, v: ValueId) {
    let Def::Capture(outer, source) = model.graph(id).value(v).def else { return };
    let Some(owner) = model.graph(id).owner() else { return };
    let still_used = model.graph(outer).node(owner.node).attrs.graphs().any(|body| {
        let b = model.graph(body);
        b.values()
            .any(|w| (body, w) != (id, v) && matches!(b.value(w).def, Def::Capture(o, s) if (o, s) == (outer, source)))
    });
    if !still_used {
        model.graph_mut(outer).remove_capture(owner.node, source);
    }
}

/// Drops functions that nothing calls.
fn drop_functions(model: &mut Model) -> bool {
    let mut changed = false;
    loop {
        let called = |f: &crate::ir::Function| {
            model.graph_ids().any(|id| {
                let g = model.graph(id);
                id != f.body
                    && g.nodes().any(|n| {
                        let n = g.node(n);
                        n.op_type == f.name && n.domain == f.domain && n.overload == f.overload
                    })
            })
        };
        let Some(i) = model.functions.iter().position(|f| !called(f)) else { return changed };
        let f = model.functions.remove(i);
        model.discard_graph(f.body);
        changed = true;
    }
}
