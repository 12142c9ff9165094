//! Makes one `Gemm` of a `MatMul` of two matrices and the constant added to it, and takes the factors `alpha` and
//! `beta` of a `Gemm` into its constants.
//!
//! Only for a first operand of rank 2 and a constant second one, so that the added vector becomes a bias. With a
//! higher rank the `MatMul` stays: `Gemm` would need a `Reshape` on either side, which ONNX Runtime adds by itself where it
//! pays. A transposed constant needs no pass of its own: `fold_constants` stores it transposed.

use super::rewrite::wherever;
use super::{Ctx, Info, Pass, pattern};
use crate::error::Result;
use crate::ir::builder::Beside;
use crate::ir::{Attr, GraphId, Model, Names, Node, NodeId, ValueId, ValueType};
use crate::tensor::{Tensor, cast};
use pattern::{Match, Skip, because, require};

/// The pass.
pub const PASS: &dyn Pass = &FuseMatMulAdd;

struct FuseMatMulAdd;

impl Pass for FuseMatMulAdd {
    fn info(&self) -> Info {
        Info { name: "fuse_mat_mul_add", summary: "makes one Gemm of MatMul and the constant added to it" }
    }

    fn run(&self, model: &mut Model, ctx: &mut Ctx<'_>) -> Result<bool> {
        let name = self.info().name;
        let mut changed = wherever(model, ctx, name, product_and_sum, |model, names, id, n, found| {
            fuse(model, names, id, n, found);
            Ok(())
        })?;
        for (slot, factor) in [(1, "alpha"), (2, "beta")] {
            let find = |model: &Model, id, n| factor_of(model, id, n, slot, factor);
            changed |= wherever(model, ctx, name, find, |model, names, id, n, scaled| {
                take_factor(model, names, id, n, slot, factor, scaled);
                Ok(())
            })?;
        }
        Ok(changed)
    }
}

struct Found {
    product: NodeId,
    bias: Tensor,
    old_bias: ValueId,
}

/// An `Add` of a constant row to a product of matrices.
fn product_and_sum(model: &Model, id: GraphId, n: NodeId) -> Match<Found> {
    let g = model.graph(id);
    require(g.node(n).is("Add"))?;
    let (a, b) = (pattern::input(g, n, 0)?, pattern::input(g, n, 1)?);
    let (between, old_bias) = if pattern::constant(model, id, b).is_some() { (a, b) } else { (b, a) };
    let Some(bias) = pattern::constant(model, id, old_bias) else { return Err(Skip::No) };
    let product = pattern::made_by(g, between, "MatMul")?;
    let weight = pattern::constant(model, id, pattern::input(g, product, 1)?).ok_or(Skip::No)?;
    let rank = g.value(pattern::input(g, product, 0)?).ty.as_ref().and_then(ValueType::shape).map(<[_]>::len);
    match rank {
        Some(2) => {}
        Some(r) => return because(format!("its first operand has rank {r}: Gemm takes matrices")),
        None => return because("the rank of its first operand is not known"),
    }
    require(weight.shape().len() == 2 && weight.dtype().is_float())?;
    pattern::only_user(g, between)?;
    let columns = weight.shape()[1];
    let shape = bias.shape();
    let is_row = shape.len() <= 2 && shape.iter().rev().skip(1).all(|&d| d == 1);
    if !is_row || (bias.len() != columns && bias.len() != 1) {
        return because("what is added is not one row");
    }
    let Ok(t) = bias.get() else { return because("what is added cannot be read") };
    let mut values = t.to_f64s().map_err(|_| Skip::No)?;
    if values.len() == 1 {
        values = vec![values[0]; columns];
    }
    let bias = cast::from_f64s(t.dtype(), &[columns], values).map_err(|_| Skip::No)?;
    Ok(Found { product, bias, old_bias })
}

fn fuse(model: &mut Model, names: &mut Names, id: GraphId, add: NodeId, found: Found) {
    let g = model.graph(id);
    let inputs = g.node_inputs(found.product);
    let output = g.output(add, 0);
    let mut gemm = Node::new("Gemm").named(g.node(found.product).name.clone()).at(g.node(found.product).pos);
    gemm.residue = g.node(found.product).residue.clone();
    // A bias that is a vector of the right length already is shared as it is.
    let bias = if g.constant(found.old_bias).is_some_and(|t| t.shape() == found.bias.shape()) {
        found.old_bias
    } else {
        Beside::before(model, names, id, add).named_after(found.old_bias).constant("row", found.bias)
    };
    let g = model.graph_mut(id);
    let n = g.add_node(gemm, &[inputs[0], inputs[1], Some(bias)], &[]);
    // The product is dead from now on and its name belongs to the new node.
    g.node_mut(found.product).name = String::new();
    if let Some(y) = output {
        g.take_over(n, 0, y);
    }
}

/// A constant of a `Gemm` multiplied by the factor that is not 1.
fn factor_of(model: &Model, id: GraphId, n: NodeId, slot: usize, factor: &str) -> Match<Tensor> {
    let g = model.graph(id);
    require(g.node(n).is("Gemm"))?;
    let factor = f64::from(g.node(n).attrs.float(factor).unwrap_or(1.0));
    require(factor != 1.0)?;
    let t = pattern::constant_input(model, id, n, slot)?;
    require(t.dtype().is_float())?;
    let values = t.to_f64s().map_err(|_| Skip::No)?.into_iter().map(|x| x * factor).collect();
    cast::from_f64s(t.dtype(), t.shape(), values).map_err(|_| Skip::No)
}

fn take_factor(
    model: &mut Model,
    names: &mut Names,
    id: GraphId,
    n: NodeId,
    slot: usize,
    factor: &str,
    scaled: Tensor,
) {
    let old = model.graph(id).input(n, slot);
    let mut beside = Beside::before(model, names, id, n);
    if let Some(v) = old {
        beside = beside.named_after(v);
    }
    let v = beside.constant("scaled", scaled);
    let g = model.graph_mut(id);
    g.set_input(n, slot, Some(v));
    g.node_mut(n).attrs.set(factor, Attr::Float(1.0));
}
