//! Evaluates what depends on constants alone, and chooses the branch of an `If` whose condition is known.
//!
//! - A `Constant` becomes an initializer. `Shape` and `Size` of a value whose shape is fixed become one, too.
//! - A pure node whose inputs are all stored is evaluated; its outputs become initializers.
//! - Never through `DequantizeLinear`: what is stored quantized is meant to stay so. Never an operator with bodies.
//! - A result of more than 64 KiB and more than twice its inputs' bytes is not stored: the file would grow.
//! - Where the caller reads through a `Transpose` of a stored tensor, that is not folded above 64 KiB.
//! - Graph outputs stay nodes: not every runtime takes a graph whose output is an initializer.
//!
//! Function bodies, which store nothing, are left alone.

use super::splice::Splice;
use super::{Ctx, Info, Pass, pattern};
use crate::error::{At, Result};
use crate::ir::{Attr, Bindings, Def, GraphId, Model, Names, Node, NodeId, TensorRef, TensorType, ValueType};
use crate::ops::{evaluate, lookup};
use crate::tensor::{DType, Tensor, count};
use pattern::{Match, Skip, because, require};

/// The pass.
pub const PASS: &dyn Pass = &FoldConstants;

/// Results up to this many bytes are always stored.
const SMALL: usize = 64 << 10;

struct FoldConstants;

impl Pass for FoldConstants {
    fn info(&self) -> Info {
        Info { name: "fold_constants", summary: "evaluates what depends on constants alone" }
    }

    fn run(&self, model: &mut Model, ctx: &mut Ctx<'_>) -> Result<bool> {
        let mut changed = false;
        let mut names: Option<Names> = None;
        for id in model.graph_ids().collect::<Vec<_>>() {
            if model.is_in_function(id) {
                continue;
            }
            for n in model.graph(id).order()? {
                let location = model.graph(id).node(n).location();
                if let Ok(branch) = known_branch(model, id, n) {
                    let names = names.get_or_insert_with(|| Names::of(model));
                    take_branch(model, names, id, n, branch).at(|| location)?;
                    changed = true;
                    continue;
                }
                match folded(model, id, n, ctx.keep_transposed) {
                    Ok(tensors) => {
                        store(model, id, n, tensors);
                        changed = true;
                    }
                    Err(skip) => ctx.skip("fold_constants", location, skip),
                }
            }
        }
        Ok(changed)
    }
}

/// What a node always gives, for each output that is there.
fn folded(model: &Model, id: GraphId, n: NodeId, keep_transposed: bool) -> Match<Vec<TensorRef>> {
    let g = model.graph(id);
    let node = g.node(n);
    let outputs = g.node_outputs(n);
    require(outputs.iter().any(Option::is_some))?;
    require(!node.is("DequantizeLinear") && node.attrs.graphs().next().is_none())?;
    require(!node.attrs.iter().any(|a| matches!(a.value, Attr::Ref(_))))?;
    require(model.function(&node.domain, &node.op_type, &node.overload).is_none())?;
    require(outputs.iter().flatten().all(|&v| !g.is_output(v)))?;
    if let Some(t) = node.attrs.tensor("value").filter(|_| node.is("Constant")) {
        return Ok(vec![t.clone()]);
    }
    if let Some(t) = known_shape(model, id, n) {
        return Ok(vec![t.into()]);
    }
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    let def = lookup(&node.domain, &node.op_type, opset).ok_or(Skip::No)?;
    require(def.is_pure)?;
    let stored = g
        .node_inputs(n)
        .into_iter()
        .map(|v| v.map_or(Ok(None), |v| pattern::constant(model, id, v).map(Some).ok_or(Skip::No)))
        .collect::<Match<Vec<_>>>()?;
    let n_bytes: usize = stored.iter().flatten().map(|t| t.len().saturating_mul(t.dtype().bits().max(8) / 8)).sum();
    require(!(keep_transposed && node.is("Transpose") && n_bytes > SMALL))?;
    let too_large = |bytes: usize| bytes > SMALL && bytes > 2 * n_bytes;
    let expected = outputs.iter().flatten().filter_map(|&v| fixed_bytes(g.value(v).ty.as_ref())).sum();
    if too_large(expected) {
        return because(format!("the result would take {expected} bytes, its inputs take {n_bytes}"));
    }
    let mut inputs = Vec::new();
    for t in stored {
        inputs.push(match t.map(TensorRef::get) {
            None => None,
            Some(Ok(t)) => Some(t.clone()),
            Some(Err(e)) => return because(format!("an input cannot be read: {e:#}")),
        });
    }
    let tensors = match evaluate(def, &node.attrs, opset, inputs, outputs.len()) {
        Ok(t) => t,
        Err(e) => return because(format!("cannot be evaluated: {e:#}")),
    };
    let bytes = tensors.iter().map(Tensor::n_bytes).sum();
    if too_large(bytes) {
        return because(format!("the result would take {bytes} bytes, its inputs take {n_bytes}"));
    }
    require(outputs.iter().enumerate().all(|(slot, v)| v.is_none() || slot < tensors.len()))?;
    Ok(tensors.into_iter().map(TensorRef::from).collect())
}

fn fixed_bytes(ty: Option<&ValueType>) -> Option<usize> {
    let t = ty?.as_tensor()?;
    Some(count(&t.fixed_shape()?).ok()?.saturating_mul(t.dtype?.bits().max(8) / 8))
}

/// `Shape` or `Size` of a value whose shape is fixed.
fn known_shape(model: &Model, id: GraphId, n: NodeId) -> Option<Tensor> {
    let g = model.graph(id);
    let node = g.node(n);
    if !node.is("Shape") && !node.is("Size") {
        return None;
    }
    let ty = g.value(g.input(n, 0)?).ty.as_ref()?;
    let dims: Vec<i64> = ty.as_tensor()?.fixed_shape()?.into_iter().map(|d| d as i64).collect();
    if node.is("Size") {
        return Some(Tensor::scalar(dims.iter().product::<i64>()));
    }
    let rank = dims.len() as i64;
    let clamp = |x: i64| (if x < 0 { x + rank } else { x }).clamp(0, rank) as usize;
    let (start, end) = (clamp(node.attrs.int("start").unwrap_or(0)), clamp(node.attrs.int("end").unwrap_or(rank)));
    Some(Tensor::vector(dims.get(start..end).unwrap_or_default().to_vec()))
}

fn store(model: &mut Model, id: GraphId, n: NodeId, tensors: Vec<TensorRef>) {
    let g = model.graph_mut(id);
    for (slot, (v, t)) in g.node_outputs(n).into_iter().zip(tensors).enumerate() {
        let Some(v) = v else { continue };
        g.set_output(n, slot, None);
        g.set_type(v, Some(ValueType::Tensor(TensorType::fixed(t.dtype(), t.shape()))));
        g.set_def(v, Def::Initializer(t));
    }
}

/// The body that an `If` always runs.
fn known_branch(model: &Model, id: GraphId, n: NodeId) -> Match<GraphId> {
    let g = model.graph(id);
    let node: &Node = g.node(n);
    require(node.is("If") && g.node_outputs(n).iter().any(Option::is_some))?;
    let condition = pattern::constant_input(model, id, n, 0)?;
    require(condition.dtype() == DType::Bool && condition.len() == 1)?;
    let is_true = condition.to_i64().map_err(|_| Skip::No)? != 0;
    node.attrs.graph(if is_true { "then_branch" } else { "else_branch" }).ok_or(Skip::No)
}

fn take_branch(model: &mut Model, names: &mut Names, id: GraphId, n: NodeId, branch: GraphId) -> Result<()> {
    let splice =
        Splice { model, names, source: branch, target: id, node: n, prefix: String::new(), bindings: Bindings::new() };
    splice.run(&[])
}
