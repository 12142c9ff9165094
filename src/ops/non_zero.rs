//! `NonZero` — the indices of the elements that are not zero, in row-major order.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__NonZero.html> (opsets 9, 13)
//! Input: X, any type (strings: not empty). Output: int64 `[rank, n]`; `[0, n]` for a scalar.
//! Quantized: gives indices, so nothing.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::Result;
use crate::ir::Dim;
use crate::tensor::broadcast::strides;
use crate::tensor::{DType, Element, Tensor};
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "NonZero",
    domain: OpDomain::Onnx,
    since: 9,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "gives indices" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let rank = ctx.rank(0).map_or(Dim::Unknown, Dim::Known);
    ctx.set_tensor(0, Some(DType::I64), Some(vec![rank, Dim::Unknown]));
    Ok(())
}

fn positions<T: Element>(v: &[T]) -> Vec<usize> {
    let zero = T::default();
    v.iter().enumerate().filter(|(_, x)| **x != zero).map(|(i, _)| i).collect()
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let found = with_data!(x.data(), T, b => positions::<T>(b.as_slice()));
    let st = strides(x.shape());
    let mut out = Vec::with_capacity(found.len() * x.rank());
    for (&step, &n) in st.iter().zip(x.shape()) {
        out.extend(found.iter().map(|&o| ((o / step) % n) as i64));
    }
    Ok(Tensor::new(&[x.rank(), found.len()], out)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn finds() {
        let case = |t: Tensor| Case::new("NonZero", 13).input(t);
        case(Tensor::of(&[2, 2], vec![1.0f32, 0.0, -0.0, f32::NAN]))
            .expect(&[Tensor::of(&[2, 2], vec![0i64, 1, 0, 1])]);
        case(Tensor::scalar(true)).expect(&[Tensor::of(&[0, 1], Vec::<i64>::new())]);
        case(Tensor::of(&[0], Vec::<u8>::new())).expect(&[Tensor::of(&[1, 0], Vec::<i64>::new())]);
    }
}
