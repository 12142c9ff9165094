//! `If` — one of two bodies.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__If.html> (opsets 1, 11, 13, 16, 19, 21, 23, 24, 25)
//! Input: cond, a bool of one element. Outputs: those of then_branch or else_branch, any types.
//! Quantized: its bodies are quantized by themselves.
//! Errors: cond has not one element; a body has another number of outputs.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, ensure};
use crate::ir::{Attr, Attrs, Dim, GraphId, TensorType, ValueType};
use crate::tensor::Tensor;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "If",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::at_least(0),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "control flow: its bodies are quantized by themselves" },
}];

/// A body that the specification requires.
pub(super) fn body(attrs: &Attrs, name: &str) -> Result<GraphId> {
    match attrs.get(name) {
        Some(Attr::Graph(g)) => Ok(*g),
        _ => Err(anyhow!("attribute \"{name}\" is missing or no graph")),
    }
}

/// What holds for a value that has one of two types.
pub(super) fn either(a: Option<ValueType>, b: Option<ValueType>) -> Option<ValueType> {
    Some(match (a?, b?) {
        (a, b) if a == b => a,
        (ValueType::Tensor(a), ValueType::Tensor(b)) => {
            let dim = |(x, y): (Dim, Dim)| if x == y { x } else { Dim::Unknown };
            let shape = match (a.shape, b.shape) {
                (Some(x), Some(y)) if x.len() == y.len() => Some(x.into_iter().zip(y).map(dim).collect()),
                _ => None,
            };
            ValueType::Tensor(TensorType { dtype: a.dtype.filter(|d| Some(*d) == b.dtype), shape })
        }
        (ValueType::Sequence(a), ValueType::Sequence(b)) => ValueType::Sequence(Box::new(either(Some(*a), Some(*b))?)),
        (ValueType::Optional(a), ValueType::Optional(b)) => ValueType::Optional(Box::new(either(Some(*a), Some(*b))?)),
        _ => return None,
    })
}

/// Whether the condition holds, where that is known: it often asks for a size.
fn taken(ctx: &InferCtx<'_>) -> Option<bool> {
    if let Some(c) = ctx.constant(0) {
        return Some(c.to_i64s().ok()?.first()? != &0);
    }
    match ctx.values(0)?.as_slice() {
        [Dim::Known(n)] => Some(*n != 0),
        _ => None,
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let (then, other) = (body(ctx.attrs, "then_branch")?, body(ctx.attrs, "else_branch")?);
    let then = ctx.bodies.infer(then, &[])?;
    let other = ctx.bodies.infer(other, &[])?;
    let taken = taken(ctx);
    for (i, (a, b)) in then.into_iter().zip(other).enumerate() {
        let ty = match taken {
            Some(true) => a,
            Some(false) => b,
            None => either(a, b),
        };
        if let Some(t) = ty {
            ctx.set(i, t);
        }
    }
    Ok(())
}

/// A condition: one element of type bool.
pub(super) fn condition(t: &Tensor) -> Result<bool> {
    match t.slice::<bool>()? {
        [c] => Ok(*c),
        _ => Err(anyhow!("cond has shape {:?}, expected one element", t.shape())),
    }
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let name = if condition(call.input(0)?)? { "then_branch" } else { "else_branch" };
    let outputs = call.bodies.run(body(call.attrs, name)?, Vec::new())?;
    ensure!(outputs.len() >= call.n_outputs(), "{name} has {} outputs, expected {}", outputs.len(), call.n_outputs());
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;
    use crate::tensor::DType;

    #[test]
    fn types_of_both_bodies_are_joined() {
        let t = |shape: &[usize]| Some(ValueType::Tensor(TensorType::fixed(DType::F32, shape)));
        assert_eq!(either(t(&[1, 2]), t(&[1, 2])), t(&[1, 2]));
        let joined = either(t(&[1, 2]), t(&[1, 3])).unwrap();
        assert_eq!(joined.shape(), Some(&[Dim::Known(1), Dim::Unknown][..]));
        assert_eq!(either(t(&[1]), t(&[1, 3])).unwrap().shape(), None);
    }

    #[test]
    fn bad_conditions_are_errors() {
        Case::new("If", 13).input(Tensor::vector(vec![true, false])).fails("expected one element");
        Case::new("If", 13).input(Tensor::scalar(1i64)).fails("expected bool");
        Case::new("If", 13).input(Tensor::scalar(true)).fails("\"then_branch\" is missing");
    }
}
