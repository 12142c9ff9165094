//! Every structural invariant of a model; all violations are returned, not only the first.

use std::collections::HashSet;

use super::{Def, GraphId, Model};

/// The violations of a model, one line each; empty when it is sound.
///
/// Checked: acyclic graphs; every used value is defined; names of values are unique in each graph and do not shadow
/// enclosing ones; initializer lists and definitions agree; captures name values of enclosing graphs and have an edge
/// to the owner; bodies know their owner.
#[must_use]
pub fn verify(model: &Model) -> Vec<String> {
    let mut bad = Vec::new();
    for id in model.graph_ids() {
        verify_graph(model, id, &mut bad);
    }
    bad
}

fn verify_graph(model: &Model, id: GraphId, bad: &mut Vec<String>) {
    let g = model.graph(id);
    let mut say = |what: String| bad.push(format!("graph \"{}\": {what}", g.name));
    if let Err(e) = g.order() {
        say(e.to_string());
    }
    let mut names = HashSet::new();
    for v in g.values() {
        let value = g.value(v);
        if !matches!(value.def, Def::Capture(..)) && !names.insert(value.name.as_str()) {
            say(format!("two values are named \"{}\"", value.name));
        }
        match (&value.def, g.producer(v)) {
            (Def::Node, None) if g.n_uses(v) > 0 => say(format!("value \"{}\" has no producer", value.name)),
            (Def::Node, _) | (_, None) => {}
            (_, Some(_)) => say(format!("value \"{}\" has a producer and another definition", value.name)),
        }
        if let Def::Capture(outer, source) = value.def {
            if !is_ancestor(model, outer, id) {
                say(format!("value \"{}\" captures from a graph that does not enclose this one", value.name));
            } else if !model.graph(outer).has_value(source) {
                say(format!("value \"{}\" captures a deleted value", value.name));
            }
            if let Some(o) = g.owner()
                && o.graph == outer
                && !model.graph(outer).captures(o.node).contains(&source)
            {
                say(format!("capture of \"{}\" has no edge to the owner", value.name));
            }
        }
        let stored = matches!(value.def, Def::Initializer(_) | Def::Overridable(_));
        if stored != g.initializers().contains(&v) {
            say(format!("value \"{}\" and the list of initializers disagree", value.name));
        }
    }
    for &o in g.outputs() {
        if !g.has_value(o) {
            say("an output was deleted".into());
        }
    }
    for n in g.nodes() {
        for body in g.node(n).attrs.graphs() {
            let owner = model.graph(body).owner();
            if owner.is_none_or(|o| o.graph != id || o.node != n) {
                say(format!("{}: its body does not know its owner", g.node(n).location()));
            }
        }
    }
}

fn is_ancestor(model: &Model, outer: GraphId, inner: GraphId) -> bool {
    let mut g = inner;
    while let Some(o) = model.graph(g).owner() {
        if o.graph == outer {
            return true;
        }
        g = o.graph;
    }
    false
}
