//! `ScatterND` — `data` with slices replaced by, or combined with, `updates`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ScatterND.html> (opsets 11, 13, 16, 18)
//! Inputs: data, any type; indices int64 `[I…, k]`; updates `[I…] + data.shape[k..]` of data's type. Output: data's shape.
//! Attribute: reduction: none, add, mul (opset 16), max, min (opset 18).
//! Quantized: keeps float, since data and updates would need one range.
//! Errors: shapes that do not fit; an index out of range; a reduction of strings.

use super::gather_nd::slice_offsets;
use super::reverse::Reverse;
use super::scatter_elements::{Reduction, scatter};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, ensure};

const SCATTER_ND: OpDef = OpDef {
    name: "ScatterND",
    domain: OpDomain::Onnx,
    since: 11,
    inputs: Arity::exactly(3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "data and updates would need one range" },
};

pub(super) const OPS: &[OpDef] = &[SCATTER_ND, OpDef { since: 16, ..SCATTER_ND }, OpDef { since: 18, ..SCATTER_ND }];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("ScatterND", super::scatter_elements::reverse)];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.same_as(0);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let indices = call.ints(1)?;
    let shape = call.input(1)?.shape().to_vec();
    let data = call.input(0)?.shape().to_vec();
    let updates = call.take(2)?;
    let offsets = slice_offsets(&data, &shape, &indices, 0)?;
    let k = shape[shape.len() - 1];
    let expected = [&shape[..shape.len() - 1], &data[k..]].concat();
    ensure!(updates.shape() == expected, "input 2 (updates) has shape {:?}, expected {expected:?}", updates.shape());
    let r = Reduction::parse(call.str("reduction", "none"), updates.dtype())?;
    let mut x = call.take(0)?;
    scatter(&mut x, &updates, &offsets, data[k..].iter().product(), r)?;
    Ok(x.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn replaces_slices() {
        let case = |i: Tensor, u: Tensor| {
            Case::new("ScatterND", 18).input(Tensor::of(&[2, 2], vec![1, 2, 3, 4i32])).input(i).input(u)
        };
        let row = || Tensor::of(&[1, 1], vec![-1i64]);
        case(row(), Tensor::of(&[1, 2], vec![8, 9])).expect(&[Tensor::of(&[2, 2], vec![1, 2, 8, 9])]);
        case(row(), Tensor::of(&[1, 2], vec![8, 9]))
            .attr("reduction", "add")
            .expect(&[Tensor::of(&[2, 2], vec![1, 2, 11, 13])]);
        case(Tensor::of(&[1, 2], vec![0i64, 1]), Tensor::vector(vec![7]))
            .expect(&[Tensor::of(&[2, 2], vec![1, 7, 3, 4])]);
        case(row(), Tensor::vector(vec![8, 9])).fails("input 2 (updates) has shape [2]");
        case(Tensor::of(&[1, 1], vec![2i64]), Tensor::of(&[1, 2], vec![8, 9])).fails("out of range");
    }
}
