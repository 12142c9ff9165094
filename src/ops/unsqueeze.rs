//! `Unsqueeze` — with further dimensions of size 1.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Unsqueeze.html> (opsets 1, 11, 13, 21, 23, 24, 25)
//! Inputs: data, any type; axes int64 `[n]` (an attribute before opset 13), indices into the output's shape.
//! Output: expanded. No copy.
//! Quantized: moves elements, so the output has the input's parameters.
//! Errors: an axis out of range or given twice; no axes.

use super::call::axes;
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow};
use crate::ir::Dim;

const UNSQUEEZE: OpDef = OpDef {
    name: "Unsqueeze",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
};

pub(super) const OPS: &[OpDef] = &[UNSQUEEZE, OpDef { since: 13, inputs: Arity::exactly(2), ..UNSQUEEZE }];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Unsqueeze", |b| b.reshaped())];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let given = ctx.ints(1).or_else(|| ctx.attrs.ints("axes").map(<[i64]>::to_vec));
    let n_axes = given.as_ref().map(Vec::len);
    let shape = match (ctx.shape(0), given) {
        (Some(s), Some(list)) => Some(insert(s, &list, &Dim::Known(1))?),
        _ => None,
    };
    if let (Some(v), Some(0), Some(1)) = (ctx.values(0), ctx.rank(0), n_axes) {
        ctx.set_values(0, v);
    }
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn insert<T: Clone>(shape: &[T], list: &[i64], one: &T) -> Result<Vec<T>> {
    let rank = shape.len() + list.len();
    let list = axes(list, rank)?;
    let mut old = shape.iter();
    Ok((0..rank).filter_map(|i| if list.contains(&i) { Some(one.clone()) } else { old.next().cloned() }).collect())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let list = match call.optional_ints(1)? {
        Some(list) => list,
        None => call.attrs.ints("axes").ok_or_else(|| anyhow!("axes are missing"))?.to_vec(),
    };
    let x = call.take(0)?;
    let shape = insert(x.shape(), &list, &1)?;
    Ok(x.reshaped(&shape)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn adds_dimensions_of_one() {
        let x = |shape: &[usize]| Tensor::of(shape, vec![1u8; 6]);
        Case::new("Unsqueeze", 11).input(x(&[2, 3])).attr("axes", vec![0i64, 3]).expect(&[x(&[1, 2, 3, 1])]);
        let new = |axes: Vec<i64>| Case::new("Unsqueeze", 13).input(x(&[2, 3])).input(Tensor::vector(axes));
        new(vec![-1]).expect(&[x(&[2, 3, 1])]);
        new(vec![3, 0]).expect(&[x(&[1, 2, 3, 1])]);
        new(vec![0, 0]).fails("axis 0 is given twice");
        new(vec![4]).fails("out of range");
        Case::new("Unsqueeze", 11).input(x(&[2, 3])).fails("axes are missing");
    }
}
