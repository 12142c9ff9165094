//! Removes nodes that give their input unchanged, and merges neighbours that undo or repeat each other.
//!
//! Removed: `Identity`; `Dropout` in inference; `Cast` to the same type; `Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`
//! and `Expand` to the same shape; `Transpose` that moves nothing; `Pad` by nothing; `Slice` of everything; `Tile` by
//! ones; `Concat`, `Sum`, `Max`, `Min` and `Mean` of one input; adding 0 and multiplying by 1.
//! Merged: `Transpose` after `Transpose`, `Reshape` after `Reshape`, `Squeeze` after the same `Unsqueeze`.
//!
//! Adding 0 makes 0 of -0; nothing else changes a bit. A node between a graph input, a stored tensor or a graph output
//! and a graph output stays: the output's name needs a node.

use super::rewrite::unify;
use super::{Ctx, Info, Pass, pattern};
use crate::error::Result;
use crate::ir::{Attr, Dim, Graph, GraphId, Model, NodeId, ValueId, ValueType};
use crate::tensor::DType;
use pattern::{Match, Skip, require};

/// The pass.
pub const PASS: &dyn Pass = &EliminateIdentity;

struct EliminateIdentity;

impl Pass for EliminateIdentity {
    fn info(&self) -> Info {
        Info { name: "eliminate_identity", summary: "removes nodes that give their input unchanged" }
    }

    fn run(&self, model: &mut Model, _: &mut Ctx<'_>) -> Result<bool> {
        let mut changed = false;
        for id in model.graph_ids().collect::<Vec<_>>() {
            for n in model.graph(id).order()? {
                if let Ok((y, x)) = no_op(model, id, n) {
                    changed |= unify(model, id, y, x);
                } else if let Ok((y, x)) = undone(model, id, n) {
                    changed |= unify(model, id, y, x);
                } else if let Ok((source, perm)) = transposes(model.graph(id), n) {
                    let g = model.graph_mut(id);
                    g.set_input(n, 0, Some(source));
                    g.node_mut(n).attrs.set("perm", Attr::Ints(perm));
                    changed = true;
                } else if let Ok(source) = reshapes(model, id, n) {
                    model.graph_mut(id).set_input(n, 0, Some(source));
                    changed = true;
                }
            }
        }
        Ok(changed)
    }
}

/// What a value equals that only nodes without effect lie behind.
pub(super) fn origin(model: &Model, id: GraphId, mut v: ValueId) -> ValueId {
    while let Some((n, 0)) = model.graph(id).producer(v) {
        match no_op(model, id, n).or_else(|_| undone(model, id, n)) {
            Ok((_, x)) => v = x,
            Err(_) => break,
        }
    }
    v
}

/// Output and input of a node that changes nothing.
fn no_op(model: &Model, id: GraphId, n: NodeId) -> Match<(ValueId, ValueId)> {
    let g = model.graph(id);
    let node = g.node(n);
    require(node.domain.is_onnx())?;
    require(model.function(&node.domain, &node.op_type, &node.overload).is_none())?;
    require(!node.attrs.iter().any(|a| matches!(a.value, Attr::Ref(_))))?;
    let x = pattern::input(g, n, 0)?;
    let y = pattern::output(g, n)?;
    match node.op_type.as_str() {
        "Identity" => {}
        "Dropout" => {
            let mask_is_used = g.output(n, 1).is_some_and(|m| g.n_uses(m) > 0);
            let trains = match g.input(n, 2) {
                None => false,
                Some(_) => pattern::int_input(model, id, n, 2)? != [0],
            };
            require(!mask_is_used && !trains)?;
        }
        "Cast" => {
            let from = dtype(g, x).ok_or(Skip::No)?;
            require(node.attrs.int("to") == Some(from.code().into()))?;
        }
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => require(same_shape(g, x, y))?,
        "Expand" => {
            let (x, y) = (fixed(g, x).ok_or(Skip::No)?, fixed(g, y).ok_or(Skip::No)?);
            require(x == y)?;
        }
        "Transpose" => {
            let perm = node.attrs.ints("perm").ok_or(Skip::No)?;
            require(perm.iter().enumerate().all(|(i, &p)| p == i as i64))?;
        }
        "Pad" => {
            let pads = match node.attrs.ints("pads") {
                Some(p) => p.to_vec(),
                None => pattern::int_input(model, id, n, 1)?,
            };
            require(pads.iter().all(|&p| p == 0))?;
        }
        "Slice" => whole(model, id, n)?,
        "Tile" => require(pattern::int_input(model, id, n, 1)?.iter().all(|&r| r == 1))?,
        "Concat" | "Sum" | "Max" | "Min" | "Mean" => require(g.node_inputs(n).len() == 1)?,
        "Add" | "Mul" | "Sub" | "Div" => return neutral(model, id, n),
        _ => return Err(Skip::No),
    }
    Ok((y, x))
}

fn dtype(g: &Graph, v: ValueId) -> Option<DType> {
    g.value(v).ty.as_ref().and_then(ValueType::dtype)
}

fn shape(g: &Graph, v: ValueId) -> Option<&[Dim]> {
    g.value(v).ty.as_ref().and_then(ValueType::shape)
}

fn fixed(g: &Graph, v: ValueId) -> Option<Vec<usize>> {
    g.value(v).ty.as_ref()?.as_tensor()?.fixed_shape()
}

/// Whether two values of equally many elements have the same shape: all but one dimension are fixed and equal, so that
/// the remaining one is equal too, whatever it is called.
fn same_shape(g: &Graph, x: ValueId, y: ValueId) -> bool {
    let (Some(x), Some(y)) = (shape(g, x), shape(g, y)) else { return false };
    if x.len() != y.len() {
        return false;
    }
    let different: Vec<_> = x.iter().zip(y).filter(|(a, b)| a.known().is_none() || a.known() != b.known()).collect();
    match different[..] {
        [] => true,
        // A dimension of size 0 elsewhere would leave this one open.
        [(a, b)] => (a.known().is_none() || b.known().is_none()) && x.iter().all(|d| *d != Dim::Known(0)),
        _ => false,
    }
}

/// A `Slice` that takes everything.
fn whole(model: &Model, id: GraphId, n: NodeId) -> Match<()> {
    let g = model.graph(id);
    let node = g.node(n);
    let list = |slot: usize, name: &str| match node.attrs.ints(name) {
        Some(v) => Ok(v.to_vec()),
        None => pattern::int_input(model, id, n, slot),
    };
    let (starts, ends) = (list(1, "starts")?, list(2, "ends")?);
    let axes = match g.input(n, 3) {
        None => node.attrs.ints("axes").map_or((0..starts.len() as i64).collect(), <[i64]>::to_vec),
        Some(_) => pattern::int_input(model, id, n, 3)?,
    };
    let steps = match g.input(n, 4) {
        None => vec![1; starts.len()],
        Some(_) => pattern::int_input(model, id, n, 4)?,
    };
    require(starts.len() == ends.len() && starts.len() == axes.len() && starts.len() == steps.len())?;
    let x = shape(g, pattern::input(g, n, 0)?);
    for i in 0..starts.len() {
        let rank = x.map_or(0, <[Dim]>::len) as i64;
        let axis = if axes[i] < 0 { axes[i] + rank } else { axes[i] };
        let size = x.and_then(|s| s.get(usize::try_from(axis).ok()?)?.known());
        let to_the_end = ends[i] >= i64::from(i32::MAX) || size.is_some_and(|s| ends[i] >= s as i64);
        require(starts[i] == 0 && steps[i] == 1 && to_the_end)?;
    }
    Ok(())
}

/// Adding or subtracting 0, multiplying with or dividing by 1, where the constant does not broadcast the other operand.
fn neutral(model: &Model, id: GraphId, n: NodeId) -> Match<(ValueId, ValueId)> {
    let g = model.graph(id);
    let op = g.node(n).op_type.as_str();
    let wanted = if matches!(op, "Add" | "Sub") { 0.0 } else { 1.0 };
    let sides: &[usize] = if matches!(op, "Add" | "Mul") { &[1, 0] } else { &[1] };
    for &side in sides {
        let (c, x) = (pattern::input(g, n, side)?, pattern::input(g, n, 1 - side)?);
        let Some(t) = pattern::constant(model, id, c) else { continue };
        let fits = t.shape().is_empty() || shape(g, x).is_some_and(|s| t.shape().len() <= s.len());
        if t.len() == 1 && fits && t.get().ok().and_then(|t| t.to_f64().ok()) == Some(wanted) {
            return Ok((pattern::output(g, n)?, x));
        }
    }
    Err(Skip::No)
}

/// `Squeeze` of what an `Unsqueeze` of the same axes made, or the other way round.
fn undone(model: &Model, id: GraphId, n: NodeId) -> Match<(ValueId, ValueId)> {
    let g = model.graph(id);
    let inverse = match g.node(n).op_type.as_str() {
        "Squeeze" => "Unsqueeze",
        "Unsqueeze" => "Squeeze",
        _ => return Err(Skip::No),
    };
    require(g.node(n).domain.is_onnx())?;
    let inner = pattern::made_by(g, pattern::input(g, n, 0)?, inverse)?;
    let axes = |n: NodeId| match g.node(n).attrs.ints("axes") {
        Some(v) => Ok(v.to_vec()),
        None => pattern::int_input(model, id, n, 1),
    };
    // Equal lists of the same sign mean equal axes, since both count in the longer shape.
    require(axes(n)? == axes(inner)?)?;
    Ok((pattern::output(g, n)?, pattern::input(g, inner, 0)?))
}

/// `Transpose` of a `Transpose`: where it all comes from, and the way there in one step.
fn transposes(g: &Graph, n: NodeId) -> Match<(ValueId, Vec<i64>)> {
    require(g.node(n).is("Transpose"))?;
    let inner = pattern::made_by(g, pattern::input(g, n, 0)?, "Transpose")?;
    let perm = |n: NodeId| g.node(n).attrs.ints("perm").map(<[i64]>::to_vec).ok_or(Skip::No);
    let (outer, first) = (perm(n)?, perm(inner)?);
    let merged = outer
        .iter()
        .map(|&p| usize::try_from(p).ok().and_then(|p| first.get(p).copied()).ok_or(Skip::No))
        .collect::<Match<Vec<_>>>()?;
    Ok((pattern::input(g, inner, 0)?, merged))
}

/// `Reshape` of a value that was only reshaped before: its source. A 0 in the shape would look at the value between.
fn reshapes(model: &Model, id: GraphId, n: NodeId) -> Match<ValueId> {
    let g = model.graph(id);
    require(g.node(n).is("Reshape"))?;
    let between = pattern::input(g, n, 0)?;
    let inner =
        ["Reshape", "Flatten", "Squeeze", "Unsqueeze"].iter().find_map(|op| pattern::made_by(g, between, op).ok());
    let shape = pattern::int_input(model, id, n, 1)?;
    require(shape.iter().all(|&d| d != 0))?;
    pattern::input(g, inner.ok_or(Skip::No)?, 0)
}
