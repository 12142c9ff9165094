//! `SplitToSequence`, `ConcatFromSequence` — a tensor as a sequence of parts, and back.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__SplitToSequence.html> (opsets 11, 24),
//! <https://onnx.ai/onnx/operators/onnx__ConcatFromSequence.html> (opset 11)
//! SplitToSequence: input, any type; split?, the size of every part (scalar) or of each part (vector); without it parts
//! of size 1, whose dimension keepdims (default 1) keeps or drops. Attribute: axis, default 0.
//! ConcatFromSequence: input_sequence. Attributes: axis, required; new_axis: stack along a new dimension.
//! Quantized: sequences are not quantized.
//! Errors: sizes that do not add up; an empty sequence; parts that do not fit; axis out of range.

use std::sync::Arc;

use super::call::axis;
use super::concat::concat;
use super::sequence::{element_type, elements};
use super::split::split;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, ensure};
use crate::ir::{Dim, TensorType, ValueType};

const SPLIT: OpDef = OpDef {
    name: "SplitToSequence",
    domain: OpDomain::Onnx,
    since: 11,
    inputs: Arity::range(1, 2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_split,
    eval: eval_split,
    quant: QuantRule::Keep { why: "sequences are not quantized" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "ConcatFromSequence", inputs: Arity::exactly(1), infer: infer_concat, eval: eval_concat, ..SPLIT },
    SPLIT,
];

fn infer_split(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match ctx.shape(0) {
        None => None,
        Some(s) => {
            let mut out = s.to_vec();
            let at = axis(ctx.attrs.int("axis").unwrap_or(0), s.len())?;
            if ctx.has(1) {
                out[at] = Dim::Unknown;
            } else if ctx.attrs.int("keepdims").unwrap_or(1) == 0 {
                out.remove(at);
            } else {
                out[at] = Dim::Known(1);
            }
            Some(out)
        }
    };
    let ty = TensorType { dtype: ctx.dtype(0), shape };
    ctx.set(0, ValueType::Sequence(Box::new(ValueType::Tensor(ty))));
    Ok(())
}

fn eval_split(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let given = call.optional(1)?.map(|t| Ok::<_, anyhow::Error>((t.rank(), t.to_i64s()?))).transpose()?;
    let x = call.input(0)?;
    let at = axis(call.int("axis", 0), x.rank())?;
    let n = x.shape()[at];
    let sizes = match &given {
        None => vec![1; n],
        Some((0, v)) => {
            let size = usize::try_from(v[0]).ok().filter(|&s| s > 0);
            let size = size.ok_or_else(|| anyhow!("input 1 (split) is {}, expected a positive size", v[0]))?;
            (0..n).step_by(size).map(|i| size.min(n - i)).collect()
        }
        Some((_, v)) => {
            let sizes: Option<Vec<usize>> = v.iter().map(|&s| usize::try_from(s).ok()).collect();
            let sizes = sizes.ok_or_else(|| anyhow!("input 1 (split) has a negative size: {v:?}"))?;
            let sum = sizes.iter().try_fold(0usize, |a, &b| a.checked_add(b));
            ensure!(sum == Some(n), "input 1 (split) is {v:?}, which does not add up to {n}");
            sizes
        }
    };
    let mut parts = split(x, at, &sizes)?;
    if given.is_none() && !call.flag("keepdims", true) {
        let mut shape = x.shape().to_vec();
        shape.remove(at);
        parts = parts.into_iter().map(|p| p.reshaped(&shape)).collect::<Result<_>>()?;
    }
    Ok(vec![Item::Sequence(Arc::new(parts.into_iter().map(Item::Tensor).collect()))])
}

fn infer_concat(ctx: &mut InferCtx<'_>) -> Result<()> {
    let Some(element) = element_type(ctx.ty(0)) else { return Ok(()) };
    let shape = match element.shape() {
        None => None,
        Some(s) => {
            let mut out = s.to_vec();
            let at = ctx.attrs.int("axis").unwrap_or(0);
            if ctx.attrs.int("new_axis").unwrap_or(0) != 0 {
                out.insert(axis(at, s.len() + 1)?, Dim::Unknown);
            } else {
                out[axis(at, s.len())?] = Dim::Unknown;
            }
            Some(out)
        }
    };
    ctx.set_tensor(0, element.dtype(), shape);
    Ok(())
}

fn eval_concat(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let at = call.required_int("axis")?;
    let is_new = call.flag("new_axis", false);
    let items = elements(call.take_item(0)?, 0)?;
    let mut parts = items.into_iter().map(Item::into_tensor).collect::<Result<Vec<_>>>().context("input 0")?;
    if is_new {
        for p in &mut parts {
            let mut shape = p.shape().to_vec();
            shape.insert(axis(at, shape.len() + 1)?, 1);
            *p = p.clone().reshaped(&shape)?;
        }
    }
    Ok(concat(&parts.iter().collect::<Vec<_>>(), at).context("input 0 (input_sequence)")?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::Item;
    use crate::ops::testing::call_items_with;
    use crate::tensor::Tensor;

    #[test]
    fn splits_and_joins() {
        let x = || Item::Tensor(Tensor::of(&[3, 2], vec![1, 2, 3, 4, 5, 6i32]));
        let split =
            |inputs: Vec<Item>, attrs: &[(&str, i64)]| match call_items_with("SplitToSequence", 11, inputs, attrs)?
                .remove(0)
            {
                Item::Sequence(v) => Ok(v.iter().map(|i| i.tensor().unwrap().clone()).collect::<Vec<_>>()),
                other => panic!("{}", other.kind()),
            };
        let parts = split(vec![x(), Item::Tensor(Tensor::scalar(2i64))], &[]).unwrap();
        assert_eq!(parts, [Tensor::of(&[2, 2], vec![1, 2, 3, 4]), Tensor::of(&[1, 2], vec![5, 6])]);
        let parts = split(vec![x()], &[("keepdims", 0), ("axis", 1)]).unwrap();
        assert_eq!(parts, [Tensor::vector(vec![1, 3, 5]), Tensor::vector(vec![2, 4, 6])]);
        let joined = |attrs: &[(&str, i64)]| {
            let parts = split(vec![x()], &[("keepdims", 0), ("axis", 1)]).unwrap();
            let seq = Item::Sequence(std::sync::Arc::new(parts.into_iter().map(Item::Tensor).collect()));
            call_items_with("ConcatFromSequence", 11, vec![seq], attrs).unwrap().remove(0).into_tensor().unwrap()
        };
        assert_eq!(joined(&[("axis", 0)]), Tensor::vector(vec![1, 3, 5, 2, 4, 6]));
        assert_eq!(joined(&[("axis", -1), ("new_axis", 1)]), Tensor::of(&[3, 2], vec![1, 2, 3, 4, 5, 6]));
        let bad: crate::error::Result<_> = split(vec![x(), Item::Tensor(Tensor::vector(vec![1i64, 1]))], &[]);
        assert!(format!("{:#}", bad.unwrap_err()).contains("does not add up"));
        let bad = split(vec![x(), Item::Tensor(Tensor::scalar(0i64))], &[]);
        assert!(format!("{:#}", bad.unwrap_err()).contains("positive size"));
    }
}
