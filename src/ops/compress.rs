//! `Compress` — the slices along `axis` (or the elements) where a condition holds.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Compress.html> (opsets 9, 11, 28)
//! Inputs: input, any type, rank ≥ 1; condition bool `[n]`, which may be shorter than the dimension. Attribute: axis;
//! without it the input is taken as a vector.
//! Quantized: selects elements, so the output has the input's parameters.
//! Errors: condition longer than the dimension with a true beyond it, or no vector; axis out of range.

use super::call::axis;
use super::gather::gather;
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, ensure};
use crate::ir::Dim;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Compress",
    domain: OpDomain::Onnx,
    since: 9,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Compress", |b| b.moved(&[0]))];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match (ctx.attrs.int("axis"), ctx.shape(0)) {
        (None, _) => Some(vec![Dim::Unknown]),
        (Some(a), Some(s)) => {
            let mut out = s.to_vec();
            out[axis(a, s.len())?] = Dim::Unknown;
            Some(out)
        }
        _ => None,
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let condition = call.input(1)?;
    ensure!(condition.rank() <= 1, "input 1 (condition) has rank {}, expected 1", condition.rank());
    let picked = condition.slice::<bool>().context("input 1 (condition)")?.iter().enumerate().filter(|(_, c)| **c);
    let picked: Vec<i64> = picked.map(|(i, _)| i as i64).collect();
    let x = call.take(0)?;
    let (x, at) = match call.attrs.int("axis") {
        Some(a) => {
            let at = axis(a, x.rank())?;
            (x, at)
        }
        None => {
            let n = x.len();
            (x.reshaped(&[n])?, 0)
        }
    };
    Ok(gather(&x, &picked, &[picked.len()], at)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn selects() {
        let x = Tensor::of(&[2, 3], vec![1, 2, 3, 4, 5, 6i32]);
        let case = |c: &[bool]| Case::new("Compress", 11).input(x.clone()).input(Tensor::vector(c.to_vec()));
        case(&[false, true]).attr("axis", 0).expect(&[Tensor::of(&[1, 3], vec![4, 5, 6])]);
        case(&[true, false, true]).attr("axis", -1).expect(&[Tensor::of(&[2, 2], vec![1, 3, 4, 6])]);
        case(&[false, true, false, false, true]).expect(&[Tensor::vector(vec![2, 5])]);
        case(&[false, false, true]).attr("axis", 0).fails("out of range");
        case(&[true]).attr("axis", 2).fails("axis 2");
    }
}
