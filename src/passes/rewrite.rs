//! What several passes do: editing wherever a pattern is found, letting users of a value read another one, replacing a
//! value by an equal one.

use super::Ctx;
use super::pattern::Match;
use crate::error::Result;
use crate::ir::{Def, GraphId, Model, Names, NodeId, ValueId};

/// Edits every node at which `find` finds its pattern, in the order of execution, outside functions, and says whether
/// there was one. Near misses are told to the pass's user.
pub(super) fn wherever<F>(
    model: &mut Model,
    ctx: &mut Ctx<'_>,
    pass: &'static str,
    find: impl Fn(&Model, GraphId, NodeId) -> Match<F>,
    mut edit: impl FnMut(&mut Model, &mut Names, GraphId, NodeId, F) -> Result<()>,
) -> Result<bool> {
    let mut names: Option<Names> = None;
    for id in model.graph_ids().collect::<Vec<_>>() {
        if model.is_in_function(id) {
            continue;
        }
        for n in model.graph(id).order()? {
            match find(model, id, n) {
                Ok(found) => {
                    let names = match &mut names {
                        Some(names) => names,
                        None => names.insert(Names::of(model)),
                    };
                    edit(model, names, id, n, found)?;
                }
                Err(skip) => ctx.skip(pass, model.graph(id).node(n).location(), skip),
            }
        }
    }
    Ok(names.is_some())
}

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
