//! `Loop` — a body again and again, with values carried from one iteration to the next.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Loop.html> (opsets 1, 11, 13, 16, 19, 21, 23, 24, 25)
//! Inputs: M int64?, the number of iterations at most; cond bool?, whether to start; v_initial, any types.
//! Outputs: the carried values at the end, then for each further output of the body its values of all iterations,
//! stacked along a new first dimension.
//! Quantized: its body is quantized by itself.
//! Errors: the body's inputs and outputs do not fit; what is stacked differs in type or shape.

use super::concat::concat;
use super::if_::{body, condition, either};
use super::{Arity, Call, InferBodies, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, ensure};
use crate::ir::{Dim, GraphId, TensorType, ValueType, sym};
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Loop",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity { min: 0, max: usize::MAX },
    outputs: Arity::at_least(0),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "control flow: its body is quantized by itself" },
}];

/// Attempts to find what every iteration leaves as it is; each one gives up at least one size.
const MAX_ROUNDS: usize = 8;

/// A type without its shape: what is carried may grow from one iteration to the next.
fn without_shape(t: &ValueType) -> ValueType {
    match t {
        ValueType::Tensor(t) => ValueType::Tensor(TensorType { dtype: t.dtype, shape: None }),
        ValueType::Sequence(t) => ValueType::Sequence(Box::new(without_shape(t))),
        ValueType::Optional(t) => ValueType::Optional(Box::new(without_shape(t))),
        t => t.clone(),
    }
}

/// Types of a body's inputs that hold in every iteration, from those of the first: what an iteration changes is left
/// open, until nothing changes any more.
fn invariant(
    bodies: &mut dyn InferBodies,
    graph: GraphId,
    mut inputs: Vec<Option<ValueType>>,
) -> Result<Vec<Option<ValueType>>> {
    for _ in 0..MAX_ROUNDS {
        let outputs = bodies.try_infer(graph, &inputs)?;
        let carried = inputs.iter().skip(2).zip(outputs.iter().skip(1)).map(|(input, output)| widened(input, output));
        let next: Vec<_> = inputs[..2].iter().cloned().chain(carried).collect();
        if next == inputs {
            return Ok(inputs);
        }
        inputs = next;
    }
    let rest = inputs.split_off(2);
    Ok(inputs.into_iter().chain(rest.iter().map(|t| t.as_ref().map(without_shape))).collect())
}

/// The type of a carried value without the sizes that an iteration changes.
fn widened(input: &Option<ValueType>, output: &Option<ValueType>) -> Option<ValueType> {
    match (input, output) {
        (Some(ValueType::Tensor(t)), Some(ValueType::Tensor(o))) => {
            let shape = match (&t.shape, &o.shape) {
                (Some(x), Some(y)) if x.len() == y.len() => {
                    let kept = |(x, y): (&Dim, &Dim)| if sym::is_same(x, y) { x.clone() } else { Dim::Unknown };
                    Some(x.iter().zip(y).map(kept).collect())
                }
                _ => None,
            };
            Some(ValueType::Tensor(TensorType { dtype: t.dtype, shape }))
        }
        (input, output) if input == output => input.clone(),
        (input, _) => input.as_ref().map(without_shape),
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let graph = body(ctx.attrs, "body")?;
    let scalar = |dtype| Some(ValueType::tensor(dtype, vec![]));
    let mut inputs = vec![scalar(DType::I64), scalar(DType::Bool)];
    let n_carried = ctx.inputs.len().saturating_sub(2);
    inputs.extend((0..n_carried).map(|i| ctx.ty(i + 2).cloned()));
    let inputs = invariant(ctx.bodies, graph, inputs)?;
    let outputs = ctx.bodies.infer(graph, &inputs)?;
    for (i, ty) in outputs.into_iter().skip(1).enumerate() {
        if i < n_carried {
            // After no iteration at all it is the initial value.
            if let Some(t) = either(ty, ctx.ty(i + 2).cloned()) {
                ctx.set(i, t);
            }
        } else if let Some(ValueType::Tensor(t)) = ty {
            let shape = t.shape.map(|s| [&[Dim::Unknown], s.as_slice()].concat());
            ctx.set_tensor(i, t.dtype, shape);
        }
    }
    Ok(())
}

/// Tensors of one shape as one, along a new dimension in front.
fn stack(parts: Vec<Item>) -> Result<Tensor> {
    let parts = parts
        .into_iter()
        .map(|p| {
            let t = p.into_tensor()?;
            let shape = [&[1], t.shape()].concat();
            t.reshaped(&shape)
        })
        .collect::<Result<Vec<_>>>()?;
    concat(&parts.iter().collect::<Vec<_>>(), 0)
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let graph = body(call.attrs, "body")?;
    let limit = match call.optional(0)? {
        Some(m) => m.to_i64().context("input 0 (M)")?,
        None => i64::MAX,
    };
    let mut go_on = call.optional(1)?.map_or(Ok(true), condition).context("input 1 (cond)")?;
    let mut carried = (2..call.n_inputs()).map(|i| call.take_item(i)).collect::<Result<Vec<Item>>>()?;
    let n_scans = call.n_outputs().saturating_sub(carried.len());
    let mut scans: Vec<Vec<Item>> = vec![Vec::new(); n_scans];
    let mut i = 0;
    while i < limit && go_on {
        let n_carried = carried.len();
        let mut inputs = vec![Item::Tensor(Tensor::scalar(i)), Item::Tensor(Tensor::scalar(go_on))];
        inputs.append(&mut carried);
        let mut outputs = call.bodies.run(graph, inputs).with_context(|| format!("iteration {i}"))?.into_iter();
        let cond = outputs.next().context("the body has no outputs")?.into_tensor().context("the body's output 0")?;
        go_on = condition(&cond).context("the body's output 0")?;
        carried.extend(outputs.by_ref().take(n_carried));
        ensure!(carried.len() == n_carried, "the body has {} outputs, expected {}", carried.len() + 1, n_carried + 1);
        for s in &mut scans {
            s.push(outputs.next().with_context(|| format!("the body has fewer than {n_scans} outputs to stack"))?);
        }
        i += 1;
    }
    for (k, s) in scans.into_iter().enumerate() {
        let stacked = if s.is_empty() {
            no_iteration(call, graph, carried.len() + 1)?
        } else {
            stack(s).with_context(|| format!("stacked output {k}"))?
        };
        carried.push(Item::Tensor(stacked));
    }
    Ok(carried)
}

/// What is stacked when there was no iteration: an empty tensor of the body's type, dimensions that are not known 0.
fn no_iteration(call: &Call<'_>, graph: crate::ir::GraphId, output: usize) -> Result<Tensor> {
    let ty = call.bodies.output_types(graph).into_iter().nth(output).flatten();
    let ty = ty.as_ref().and_then(ValueType::as_tensor);
    let dims = ty.and_then(|t| t.shape.as_deref()).unwrap_or_default();
    let shape: Vec<usize> = std::iter::once(0).chain(dims.iter().map(|d| d.known().unwrap_or(0))).collect();
    Tensor::zeros(ty.and_then(|t| t.dtype).unwrap_or(DType::F32), &shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    #[test]
    fn stacks_tensors_of_one_shape() {
        let t = |v: Vec<i32>| Item::Tensor(Tensor::vector(v));
        assert_eq!(stack(vec![t(vec![1, 2]), t(vec![3, 4])]).unwrap(), Tensor::of(&[2, 2], vec![1, 2, 3, 4]));
        assert!(stack(vec![t(vec![1, 2]), t(vec![3])]).is_err());
    }

    #[test]
    fn bad_inputs_are_errors() {
        Case::new("Loop", 13).input(Tensor::vector(vec![1i64, 2])).skip().fails("attribute \"body\"");
    }
}
