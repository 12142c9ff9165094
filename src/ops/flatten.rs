//! `Flatten` — a matrix: the dimensions before `axis` times those from `axis` on.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Flatten.html> (opsets 1, 9, 11, 13, 21, 23, 24, 25)
//! Input: any type. Output: `[prod(shape[..axis]), prod(shape[axis..])]`. Attribute: axis in `[-r, r]`, default 1. No copy.
//! Quantized: moves elements, so the output has the input's parameters.
//! Errors: axis out of range.

use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail};
use crate::ir::{Dim, sym};
use crate::tensor::count;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Flatten",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Flatten", |b| b.reshaped())];

fn split_at(axis: i64, rank: usize) -> Result<usize> {
    let r = rank as i64;
    if axis < -r || axis > r {
        bail!("axis {axis} is out of range for rank {rank}");
    }
    Ok(if axis < 0 { axis + r } else { axis } as usize)
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match ctx.shape(0) {
        None => vec![Dim::Unknown; 2],
        Some(s) => {
            let (a, b) = s.split_at(split_at(ctx.attrs.int("axis").unwrap_or(1), s.len())?);
            vec![sym::product(a), sym::product(b)]
        }
    };
    ctx.set_tensor(0, ctx.dtype(0), Some(shape));
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let axis = call.int("axis", 1);
    let x = call.take(0)?;
    let (a, b) = x.shape().split_at(split_at(axis, x.rank())?);
    let shape = [count(a)?, count(b)?];
    Ok(x.reshaped(&shape)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn gives_a_matrix() {
        let case = |axis: i64| Case::new("Flatten", 13).input(Tensor::of(&[2, 3, 4], vec![0i8; 24])).attr("axis", axis);
        for (axis, shape) in [(0, [1, 24]), (1, [2, 12]), (-1, [6, 4]), (3, [24, 1])] {
            case(axis).expect(&[Tensor::of(&shape, vec![0i8; 24])]);
        }
        case(4).fails("axis 4 is out of range");
    }
}
