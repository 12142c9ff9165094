//! `SequenceEmpty`, `SequenceConstruct`, `SequenceAt`, `SequenceInsert`, `SequenceErase`, `SequenceLength` — sequences of
//! tensors.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__SequenceAt.html> and its siblings (opset 11)
//! A sequence holds tensors of one element type, shapes may differ. Positions are int32 or int64 of one element;
//! negative ones count from the end.
//! Quantized: sequences are not quantized.
//! Errors: a position out of range; an element of another type.

use std::sync::Arc;

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, bail, ensure};
use crate::ir::{TensorType, ValueType};
use crate::tensor::{DType, Tensor};

use super::if_::either;

const SEQUENCE: OpDef = OpDef {
    name: "SequenceConstruct",
    domain: OpDomain::Onnx,
    since: 11,
    inputs: Arity::at_least(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_construct,
    eval: construct,
    quant: QuantRule::Keep { why: "sequences are not quantized" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "SequenceAt", inputs: Arity::exactly(2), infer: infer_at, eval: at, ..SEQUENCE },
    SEQUENCE,
    OpDef { name: "SequenceEmpty", inputs: Arity::exactly(0), infer: infer_empty, eval: empty, ..SEQUENCE },
    OpDef { name: "SequenceErase", inputs: Arity::range(1, 2), infer: same, eval: erase, ..SEQUENCE },
    OpDef { name: "SequenceInsert", inputs: Arity::range(2, 3), infer: infer_insert, eval: insert, ..SEQUENCE },
    OpDef { name: "SequenceLength", inputs: Arity::exactly(1), infer: infer_length, eval: length, ..SEQUENCE },
];

/// The elements of a sequence.
///
/// # Errors
/// The input is something else.
pub(super) fn elements(item: Item, slot: usize) -> Result<Vec<Item>> {
    match item {
        Item::Sequence(v) => Ok(Arc::try_unwrap(v).unwrap_or_else(|shared| (*shared).clone())),
        other => bail!("input {slot} is {}, expected a sequence", other.kind()),
    }
}

/// The type of a sequence's elements.
pub(super) fn element_type(ty: Option<&ValueType>) -> Option<ValueType> {
    match ty {
        Some(ValueType::Sequence(t)) => Some((**t).clone()),
        _ => None,
    }
}

fn sequence_of(ty: ValueType) -> ValueType {
    ValueType::Sequence(Box::new(ty))
}

fn infer_construct(ctx: &mut InferCtx<'_>) -> Result<()> {
    let all = (0..ctx.inputs.len()).map(|i| ctx.ty(i).cloned()).reduce(either).flatten();
    if let Some(t) = all {
        ctx.set(0, sequence_of(t));
    }
    Ok(())
}

fn construct(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let v = (0..call.n_inputs()).map(|i| call.take_item(i)).collect::<Result<Vec<_>>>()?;
    for (i, item) in v.iter().enumerate() {
        check_type(&v[0], item, i)?;
    }
    Ok(vec![Item::Sequence(Arc::new(v))])
}

fn check_type(first: &Item, item: &Item, slot: usize) -> Result<()> {
    if let (Some(a), Some(b)) = (first.tensor(), item.tensor()) {
        ensure!(a.dtype() == b.dtype(), "input {slot} has type {}, expected {}", b.dtype(), a.dtype());
    }
    Ok(())
}

fn infer_empty(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = Some(ctx.dtype_attr("dtype")?.unwrap_or(DType::F32));
    ctx.set(0, sequence_of(ValueType::Tensor(TensorType { dtype, shape: None })));
    Ok(())
}

fn empty(call: &mut Call<'_>) -> Result<Vec<Item>> {
    call.dtype("dtype", DType::F32)?;
    Ok(vec![Item::Sequence(Arc::default())])
}

/// A position among `n`, or up to `n` itself where something is put in.
fn position(t: &Tensor, n: usize, slot: usize) -> Result<usize> {
    let p = t.to_i64().with_context(|| format!("input {slot} (position)"))?;
    super::gather::checked(p, n).with_context(|| format!("input {slot} (position)"))
}

fn infer_at(ctx: &mut InferCtx<'_>) -> Result<()> {
    if let Some(t) = element_type(ctx.ty(0)) {
        ctx.set(0, t);
    }
    Ok(())
}

fn at(call: &mut Call<'_>) -> Result<Vec<Item>> {
    match call.item(0)? {
        Item::Sequence(v) => Ok(vec![v[position(call.input(1)?, v.len(), 1)?].clone()]),
        other => bail!("input 0 is {}, expected a sequence", other.kind()),
    }
}

fn same(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.same_as(0);
    Ok(())
}

fn erase(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let mut v = elements(call.take_item(0)?, 0)?;
    let i = match call.optional(1)? {
        Some(t) => position(t, v.len(), 1)?,
        None => v.len().checked_sub(1).context("input 0 is an empty sequence")?,
    };
    v.remove(i);
    Ok(vec![Item::Sequence(Arc::new(v))])
}

fn infer_insert(ctx: &mut InferCtx<'_>) -> Result<()> {
    // Of an empty sequence the element's shape says nothing, so what both share is what holds.
    if let Some(t) = either(element_type(ctx.ty(0)), ctx.ty(1).cloned()) {
        ctx.set(0, sequence_of(t));
    }
    Ok(())
}

fn insert(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let mut v = elements(call.take_item(0)?, 0)?;
    let item = call.take_item(1)?;
    if let Some(first) = v.first() {
        check_type(first, &item, 1)?;
    }
    let i = match call.optional(2)? {
        None => v.len(),
        Some(t) if t.to_i64().ok() == Some(v.len() as i64) => v.len(),
        Some(t) => position(t, v.len(), 2)?,
    };
    v.insert(i, item);
    Ok(vec![Item::Sequence(Arc::new(v))])
}

fn infer_length(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.set_tensor(0, Some(DType::I64), Some(vec![]));
    Ok(())
}

fn length(call: &mut Call<'_>) -> Result<Vec<Item>> {
    match call.item(0)? {
        Item::Sequence(v) => Ok(Tensor::scalar(v.len() as i64).into()),
        other => bail!("input 0 is {}, expected a sequence", other.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Case, call_items};

    fn seq(v: &[i64]) -> Item {
        Item::Sequence(Arc::new(v.iter().map(|&x| Item::Tensor(Tensor::scalar(x))).collect()))
    }

    fn numbers(item: &Item) -> Vec<i64> {
        match item {
            Item::Sequence(v) => v.iter().map(|i| i.tensor().unwrap().to_i64().unwrap()).collect(),
            other => vec![other.tensor().unwrap().to_i64().unwrap()],
        }
    }

    #[test]
    fn sequences_grow_and_shrink() {
        let n = |x: i64| Item::Tensor(Tensor::scalar(x));
        let run = |op: &str, inputs: Vec<Item>| numbers(&call_items(op, 11, inputs).unwrap()[0]);
        assert_eq!(run("SequenceConstruct", vec![n(1), n(2)]), [1, 2]);
        assert_eq!(run("SequenceEmpty", vec![]), Vec::<i64>::new());
        assert_eq!(run("SequenceAt", vec![seq(&[1, 2, 3]), n(-1)]), [3]);
        assert_eq!(run("SequenceInsert", vec![seq(&[1, 2]), n(9)]), [1, 2, 9]);
        assert_eq!(run("SequenceInsert", vec![seq(&[1, 2]), n(9), n(-1)]), [1, 9, 2]);
        assert_eq!(run("SequenceInsert", vec![seq(&[1, 2]), n(9), n(2)]), [1, 2, 9]);
        assert_eq!(run("SequenceErase", vec![seq(&[1, 2, 3]), n(0)]), [2, 3]);
        assert_eq!(run("SequenceErase", vec![seq(&[1, 2, 3])]), [1, 2]);
        assert_eq!(run("SequenceLength", vec![seq(&[1, 2, 3])]), [3]);
    }

    #[test]
    fn bad_positions_and_types_are_errors() {
        let n = |x: i64| Item::Tensor(Tensor::scalar(x));
        let fails = |op: &str, inputs: Vec<Item>| format!("{:#}", call_items(op, 11, inputs).unwrap_err());
        assert!(fails("SequenceAt", vec![seq(&[1]), n(1)]).contains("index 1 is out of range"));
        assert!(fails("SequenceErase", vec![seq(&[])]).contains("empty sequence"));
        assert!(fails("SequenceInsert", vec![seq(&[1]), Item::Tensor(Tensor::scalar(1.0f32))]).contains("type float"));
        assert!(fails("SequenceAt", vec![n(1), n(1)]).contains("expected a sequence"));
        Case::new("SequenceLength", 11).input(Tensor::scalar(1i64)).fails("expected a sequence");
    }
}
