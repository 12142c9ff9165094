//! Edits that several passes make: letting users of a value read another one, replacing a value by an equal one.

use crate::ir::{Def, GraphId, Model, ValueId};

/// Lets every node that reads `old`, and every body that uses it, read `new`. Graph outputs stay.
pub(super) fn redirect(model: &mut Model, graph: GraphId, old: ValueId, new: ValueId) {
    let name = model.graph(graph).value(new).name.clone();
    for node in model.graph(graph).capturers(old) {
        for body in model.graph(graph).node(node).attrs.graphs().collect::<Vec<_>>() {
            let b = model.graph_mut(body);
            let here: Vec<_> = b
                .values()
                .filter(|&v| matches!(b.value(v).def, Def::Capture(g, source) if (g, source) == (graph, old)))
                .collect();
            for v in here {
                b.set_def(v, Def::Capture(graph, new));
                b.rename(v, name.clone());
            }
        }
        let g = model.graph_mut(graph);
        g.remove_capture(node, old);
        g.add_capture(node, new);
    }
    model.graph_mut(graph).replace_uses(old, new);
}

/// Removes the difference between `y` and the equal value `x` that it is made of: users of `y` read `x`, or, where `y`
/// is a graph output, whoever makes `x` makes `y`. Says whether that was possible: an output cannot take the place of
/// an input, a stored tensor or another output.
pub(super) fn unify(model: &mut Model, graph: GraphId, y: ValueId, x: ValueId) -> bool {
    let g = model.graph(graph);
    if !g.is_output(y) {
        if g.n_uses(y) == 0 {
            return false;
        }
        redirect(model, graph, y, x);
        return true;
    }
    let Some((node, slot)) = g.producer(x).filter(|_| !g.is_output(x)) else { return false };
    model.graph_mut(graph).take_over(node, slot, y);
    redirect(model, graph, x, y);
    true
}
