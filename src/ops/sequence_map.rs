//! `SequenceMap` — a body for each element of a sequence.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__SequenceMap.html> (opset 17)
//! Inputs: input_sequence; more sequences of the same length, or tensors that every call gets. Outputs: a sequence for
//! each output of the body.
//! Quantized: its body is quantized by itself.
//! Errors: sequences of different lengths; a body with too few outputs.

use std::sync::Arc;

use super::if_::body;
use super::sequence::element_type;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, bail, ensure};
use crate::ir::ValueType;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "SequenceMap",
    domain: OpDomain::Onnx,
    since: 17,
    inputs: Arity::at_least(1),
    outputs: Arity::at_least(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "control flow: its body is quantized by itself" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let graph = body(ctx.attrs, "body")?;
    let inputs: Vec<Option<ValueType>> = (0..ctx.inputs.len())
        .map(|i| match ctx.ty(i) {
            Some(ValueType::Sequence(_)) => element_type(ctx.ty(i)),
            t => t.cloned(),
        })
        .collect();
    for (i, ty) in ctx.bodies.infer(graph, &inputs)?.into_iter().enumerate() {
        if let Some(t) = ty {
            ctx.set(i, ValueType::Sequence(Box::new(t)));
        }
    }
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let graph = body(call.attrs, "body")?;
    let inputs = (0..call.n_inputs()).map(|i| call.take_item(i)).collect::<Result<Vec<_>>>()?;
    let Item::Sequence(first) = &inputs[0] else { bail!("input 0 is {}, expected a sequence", inputs[0].kind()) };
    let mut out: Vec<Vec<Item>> = vec![Vec::new(); call.n_outputs()];
    for k in 0..first.len() {
        let mut arguments = Vec::with_capacity(inputs.len());
        for (i, item) in inputs.iter().enumerate() {
            arguments.push(match item {
                Item::Sequence(v) => {
                    ensure!(v.len() == first.len(), "input {i} has {} elements, expected {}", v.len(), first.len());
                    v[k].clone()
                }
                other => other.clone(),
            });
        }
        let mut results = call.bodies.run(graph, arguments).with_context(|| format!("element {k}"))?.into_iter();
        for o in &mut out {
            o.push(results.next().context("the body has too few outputs")?);
        }
    }
    Ok(out.into_iter().map(|v| Item::Sequence(Arc::new(v))).collect())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn bad_inputs_are_errors() {
        Case::new("SequenceMap", 17).input(Tensor::scalar(1i64)).fails("attribute \"body\"");
    }
}
