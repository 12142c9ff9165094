//! `Optional`, `OptionalGetElement`, `OptionalHasElement` — a value or nothing.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Optional.html> (opsets 15, 28) and its siblings (opsets 15, 18, 28)
//! Optional: input? of any type; attribute type says what an empty one would hold. OptionalGetElement: an optional, or
//! from opset 18 a tensor or sequence, which it gives back. OptionalHasElement: the same, from opset 18 also nothing.
//! Quantized: optionals are not quantized.
//! Errors: the element of an empty optional.

use std::sync::Arc;

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail};
use crate::ir::{Attr, ValueType};
use crate::tensor::{DType, Tensor};

const OPTIONAL: OpDef = OpDef {
    name: "Optional",
    domain: OpDomain::Onnx,
    since: 15,
    inputs: Arity::range(0, 1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_optional,
    eval: optional,
    quant: QuantRule::Keep { why: "optionals are not quantized" },
};

const GET: OpDef =
    OpDef { name: "OptionalGetElement", inputs: Arity::exactly(1), infer: infer_get, eval: get, ..OPTIONAL };
const HAS: OpDef = OpDef { name: "OptionalHasElement", infer: infer_has, eval: has, ..OPTIONAL };

pub(super) const OPS: &[OpDef] = &[
    OPTIONAL,
    GET,
    OpDef { since: 18, ..GET },
    OpDef { inputs: Arity::exactly(1), ..HAS },
    OpDef { since: 18, ..HAS },
];

fn infer_optional(ctx: &mut InferCtx<'_>) -> Result<()> {
    let element = match (ctx.ty(0), ctx.attrs.get("type")) {
        (Some(t), _) => Some(t.clone()),
        (None, Some(Attr::Type(t))) => Some(t.clone()),
        _ => None,
    };
    if let Some(t) = element {
        ctx.set(0, ValueType::Optional(Box::new(t)));
    }
    Ok(())
}

fn optional(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let element = call.inputs.first_mut().and_then(Option::take).map(Arc::new);
    Ok(vec![Item::Optional(element)])
}

fn infer_get(ctx: &mut InferCtx<'_>) -> Result<()> {
    let element = match ctx.ty(0) {
        Some(ValueType::Optional(t)) => Some((**t).clone()),
        t => t.cloned(),
    };
    if let Some(t) = element {
        ctx.set(0, t);
    }
    Ok(())
}

fn get(call: &mut Call<'_>) -> Result<Vec<Item>> {
    match call.take_item(0)? {
        Item::Optional(Some(v)) => Ok(vec![Arc::try_unwrap(v).unwrap_or_else(|shared| (*shared).clone())]),
        Item::Optional(None) => bail!("input 0 is an empty optional, which has no element"),
        other => Ok(vec![other]),
    }
}

fn infer_has(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.set_tensor(0, Some(DType::Bool), Some(vec![]));
    Ok(())
}

fn has(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let is_there = !matches!(call.inputs.first(), None | Some(None | Some(Item::Optional(None))));
    Ok(Tensor::scalar(is_there).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::call_items;

    #[test]
    fn wraps_unwraps_and_tells() {
        let x = || Item::Tensor(Tensor::scalar(5i32));
        let run = |op: &str, inputs: Vec<Item>| call_items(op, 18, inputs);
        let full = || run("Optional", vec![x()]).unwrap().remove(0);
        assert_eq!(run("OptionalGetElement", vec![full()]).unwrap()[0].tensor(), x().tensor());
        assert_eq!(run("OptionalGetElement", vec![x()]).unwrap()[0].tensor(), x().tensor());
        let told = |inputs: Vec<Item>| run("OptionalHasElement", inputs).unwrap()[0].tensor().unwrap().clone();
        assert_eq!(told(vec![full()]), Tensor::scalar(true));
        assert_eq!(told(vec![Item::Optional(None)]), Tensor::scalar(false));
        assert_eq!(told(vec![]), Tensor::scalar(false));
        let e = run("OptionalGetElement", vec![Item::Optional(None)]).unwrap_err();
        assert!(e.to_string().contains("empty optional"));
    }
}
