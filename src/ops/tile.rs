//! `Tile` — repeated along each dimension.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Tile.html> (opsets 6, 13)
//! Inputs: input, any type; repeats int64 `[rank]`. Output: `shape[i] * repeats[i]`.
//! Quantized: repeats elements, so the output has the input's parameters.
//! Errors: not one count per dimension; a negative count.

use super::constant_of_shape::to_shape;
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::broadcast::strides;
use crate::tensor::{count, strided};
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Tile",
    domain: OpDomain::Onnx,
    since: 6,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Tile", |b| b.moved(&[0]))];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match (ctx.shape(0), ctx.values(1)) {
        (Some(s), Some(r)) => {
            ensure!(r.len() == s.len(), "input 1 (repeats) has {} counts for rank {}", r.len(), s.len());
            Some(s.iter().zip(&r).map(|(d, r)| sym::as_size(&sym::mul(d, r))).collect())
        }
        (Some(s), None) => Some(vec![Dim::Unknown; s.len()]),
        _ => None,
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let repeats = to_shape(&call.ints(1)?, 1)?;
    let x = call.input(0)?;
    ensure!(repeats.len() == x.rank(), "input 1 (repeats) has {} counts for rank {}", repeats.len(), x.rank());
    if repeats.iter().all(|&r| r == 1) {
        return Ok(call.take(0)?.into());
    }
    // Each dimension becomes two: which repetition (step 0), and where in it.
    let st = strides(x.shape());
    let (mut dims, mut steps) = (Vec::new(), Vec::new());
    for (i, (&n, &r)) in x.shape().iter().zip(&repeats).enumerate() {
        dims.extend([r, n]);
        steps.extend([0, st[i] as isize]);
    }
    count(&dims)?;
    let shape: Vec<usize> = x.shape().iter().zip(&repeats).map(|(n, r)| n * r).collect();
    let y = with_data!(x.data(), T, b => {
        strided::typed::<T>(x.dtype(), &shape, strided::gather(b.as_slice(), 0, &dims, &steps))
    })?;
    Ok(y.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn repeats() {
        let x = Tensor::of(&[2, 2], vec![1u16, 2, 3, 4]);
        let case = |r: &[i64]| Case::new("Tile", 13).input(x.clone()).input(Tensor::vector(r.to_vec()));
        case(&[1, 2]).expect(&[Tensor::of(&[2, 4], vec![1u16, 2, 1, 2, 3, 4, 3, 4])]);
        case(&[2, 1]).expect(&[Tensor::of(&[4, 2], vec![1u16, 2, 3, 4, 1, 2, 3, 4])]);
        case(&[0, 1]).expect(&[Tensor::of(&[0, 2], Vec::<u16>::new())]);
        case(&[1]).fails("1 counts for rank 2");
        case(&[1, -1]).fails("dimension -1");
        case(&[1 << 30, 1 << 40]).fails("too many");
    }
}
