//! `Transpose` — dimensions in another order.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Transpose.html> (opsets 1, 13, 21, 23, 24, 25)
//! Input: data, any type. Output: transposed, dimension `i` is the input's `perm[i]`. Attribute: perm, default reversed.
//! Quantized: moves elements, so the output has the input's parameters.
//! Errors: perm is no permutation of the input's dimensions.

use super::call::axes;
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, ensure};
use crate::tensor::broadcast::strides;
use crate::tensor::{Tensor, strided};
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Transpose",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Transpose", |b| b.moved(&[0]))];

fn permutation(perm: Option<&[i64]>, rank: usize) -> Result<Vec<usize>> {
    match perm {
        None => Ok((0..rank).rev().collect()),
        Some(p) => {
            ensure!(p.len() == rank, "attribute \"perm\" has {} entries for an input of rank {rank}", p.len());
            axes(p, rank).context("attribute \"perm\"")
        }
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match ctx.shape(0) {
        None => None,
        Some(s) => Some(permutation(ctx.attrs.ints("perm"), s.len())?.iter().map(|&a| s[a].clone()).collect()),
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

/// The tensor with its dimensions in the order of `perm`, a permutation of them. No copy when only dimensions of size 1
/// change their place.
pub(crate) fn transpose(x: Tensor, perm: &[usize]) -> Result<Tensor> {
    let shape: Vec<usize> = perm.iter().map(|&a| x.shape()[a]).collect();
    let moved: Vec<usize> = perm.iter().copied().filter(|&a| x.shape()[a] != 1).collect();
    if moved.is_sorted() {
        return x.reshaped(&shape);
    }
    let st = strides(x.shape());
    let steps: Vec<isize> = perm.iter().map(|&a| st[a] as isize).collect();
    with_data!(x.data(), T, b => strided::typed::<T>(x.dtype(), &shape, strided::gather(b.as_slice(), 0, &shape, &steps)))
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let perm = permutation(call.attrs.ints("perm"), call.input(0)?.rank())?;
    Ok(transpose(call.take(0)?, &perm)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn permutes() {
        let x = Tensor::of(&[2, 3], vec![1, 2, 3, 4, 5, 6i32]);
        Case::new("Transpose", 13).input(x.clone()).expect(&[Tensor::of(&[3, 2], vec![1, 4, 2, 5, 3, 6])]);
        let x3 = x.clone().reshaped(&[1, 2, 3]).unwrap();
        Case::new("Transpose", 13)
            .input(x3)
            .attr("perm", vec![1i64, 0, 2])
            .expect(&[x.clone().reshaped(&[2, 1, 3]).unwrap()]);
        let s = Tensor::of(&[1, 2], vec!["a".to_owned(), "b".to_owned()]);
        Case::new("Transpose", 13).input(s.clone()).expect(&[s.reshaped(&[2, 1]).unwrap()]);
        Case::new("Transpose", 13).input(x.clone()).attr("perm", vec![0i64, 0]).fails("given twice");
        Case::new("Transpose", 13).input(x).attr("perm", vec![0i64]).fails("1 entries for an input of rank 2");
    }
}
