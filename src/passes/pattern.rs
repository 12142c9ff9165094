//! Match helpers: small questions about a node's surroundings that answer with the reason why not.
//!
//! A pass looks for a pattern with `?` on these; what does not even look like the pattern is [`Skip::No`], what does but
//! cannot be rewritten is [`Skip::Because`], which `-v` shows.

use crate::ir::{Def, Graph, GraphId, Model, Node, NodeId, TensorRef, ValueId};
use crate::tensor::Tensor;

/// Why a pattern was not rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// It is not the pattern.
    No,
    /// It is the pattern, but: one phrase without a final dot.
    Because(String),
}

/// What a matcher gives.
pub type Match<T> = std::result::Result<T, Skip>;

/// A near miss with its reason.
pub fn because<T>(reason: impl Into<String>) -> Match<T> {
    Err(Skip::Because(reason.into()))
}

/// `Ok` when the condition holds, else [`Skip::No`].
pub fn require(condition: bool) -> Match<()> {
    if condition { Ok(()) } else { Err(Skip::No) }
}

/// The value in an input slot.
pub fn input(g: &Graph, n: NodeId, slot: usize) -> Match<ValueId> {
    g.input(n, slot).ok_or(Skip::No)
}

/// The value in output slot 0.
pub fn output(g: &Graph, n: NodeId) -> Match<ValueId> {
    g.output(n, 0).ok_or(Skip::No)
}

/// The node that makes a value in its output slot 0, if it applies this operator of ONNX's own domain.
pub fn made_by(g: &Graph, v: ValueId, op_type: &str) -> Match<NodeId> {
    match g.producer(v) {
        Some((n, 0)) if g.node(n).is(op_type) => Ok(n),
        _ => Err(Skip::No),
    }
}

/// The node and slot that alone use a value.
///
/// A value that is also a graph output, that a body uses or that several nodes read is a near miss.
pub fn only_user(g: &Graph, v: ValueId) -> Match<(NodeId, usize)> {
    let users = g.consumers(v);
    match users[..] {
        [] => Err(Skip::No),
        [user] if g.n_uses(v) == 1 => Ok(user),
        _ if g.is_output(v) => because(format!("\"{}\" is a graph output too", g.value(v).name)),
        _ => because(format!("\"{}\" is used {} times", g.value(v).name, g.n_uses(v))),
    }
}

/// The stored tensor behind a value, through captures; `None` for what can change between runs.
#[must_use]
pub fn constant(model: &Model, graph: GraphId, v: ValueId) -> Option<&TensorRef> {
    let (mut graph, mut v) = (graph, v);
    loop {
        match &model.graph(graph).value(v).def {
            Def::Initializer(t) => return Some(t),
            Def::Capture(outer, source) => (graph, v) = (*outer, *source),
            _ => return None,
        }
    }
}

/// The elements of a constant in an input slot.
pub fn constant_input(model: &Model, graph: GraphId, n: NodeId, slot: usize) -> Match<Tensor> {
    let g = model.graph(graph);
    let v = input(g, n, slot)?;
    match constant(model, graph, v) {
        None => Err(Skip::No),
        Some(t) => match t.get() {
            Ok(t) => Ok(t.clone()),
            Err(e) => because(format!("\"{}\" cannot be read: {e:#}", g.value(v).name)),
        },
    }
}

/// A constant in an input slot as integers.
pub fn int_input(model: &Model, graph: GraphId, n: NodeId, slot: usize) -> Match<Vec<i64>> {
    constant_input(model, graph, n, slot)?.to_i64s().map_err(|_| Skip::No)
}

/// Nodes of a graph that apply an operator of ONNX's own domain, in topological order as far as there is one.
#[must_use]
pub fn nodes_of(g: &Graph, accept: impl Fn(&Node) -> bool) -> Vec<NodeId> {
    let order = g.order().unwrap_or_default();
    order.into_iter().filter(|&n| accept(g.node(n))).collect()
}
