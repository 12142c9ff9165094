//! `Identity` — the input.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Identity.html> (opsets 1, 13, 14, 16, 19, 21, 23, 24, 25)
//! Input: V, any type. Output: V.
//! Quantized: moves elements, so the output has the input's parameters.

use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::Result;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Identity",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Identity", |b| b.reshaped())];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.same_as(0);
    if let Some(v) = ctx.values(0) {
        ctx.set_values(0, v);
    }
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    Ok(vec![call.take_item(0)?])
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn gives_the_input() {
        let x = Tensor::vector(vec![1.0f32, 2.0]);
        Case::new("Identity", 13).input(x.clone()).expect(&[x]);
    }
}
