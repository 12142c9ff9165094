//! `ReverseSequence` — the first elements of each sequence of a batch backwards.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ReverseSequence.html> (opsets 10, 28)
//! Inputs: input, any type, rank ≥ 2; sequence_lens int64 `[batch]`. Output: the input's shape.
//! Attributes: batch_axis (default 1), time_axis (default 0), of which one is 0 and the other 1.
//! Quantized: moves elements, so the output has the input's parameters.
//! Errors: rank below 2; equal axes; lengths that do not fit.

use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, ensure};
use crate::tensor::strided;
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "ReverseSequence",
    domain: OpDomain::Onnx,
    since: 10,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("ReverseSequence", |b| b.moved(&[0]))];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.same_as(0);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let lengths = call.ints(1)?;
    let (batch_axis, time_axis) = (call.int("batch_axis", 1), call.int("time_axis", 0));
    let x = call.input(0)?;
    ensure!(x.rank() >= 2, "input 0 has rank {}, expected at least 2", x.rank());
    ensure!(
        matches!((batch_axis, time_axis), (0, 1) | (1, 0)),
        "batch_axis is {batch_axis} and time_axis {time_axis}, expected 0 and 1 or 1 and 0"
    );
    let (batch, time) = (x.shape()[batch_axis as usize], x.shape()[time_axis as usize]);
    ensure!(lengths.len() == batch, "input 1 (sequence_lens) has {} lengths, expected {batch}", lengths.len());
    for l in &lengths {
        ensure!(*l >= 0 && *l as usize <= time, "input 1 (sequence_lens) has the length {l}, expected 0 to {time}");
    }
    let inner: usize = x.shape()[2..].iter().product();
    let columns = x.shape()[1];
    let y = with_data!(x.data(), T, b => {
        let src = b.as_slice();
        let mut out: Vec<T> = Vec::with_capacity(src.len());
        for i in 0..x.shape()[0] {
            for j in 0..columns {
                let (b, t) = if batch_axis == 0 { (i, j) } else { (j, i) };
                let length = lengths[b] as usize;
                let t = if t < length { length - 1 - t } else { t };
                let at = if batch_axis == 0 { b * columns + t } else { t * columns + b };
                out.extend_from_slice(&src[at * inner..(at + 1) * inner]);
            }
        }
        strided::typed::<T>(x.dtype(), x.shape(), out)
    })?;
    Ok(y.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn reverses_each_sequence() {
        let x = Tensor::of(&[2, 3], vec![1, 2, 3, 4, 5, 6i32]);
        let case = |l: &[i64]| Case::new("ReverseSequence", 10).input(x.clone()).input(Tensor::vector(l.to_vec()));
        case(&[2, 1, 2]).expect(&[Tensor::of(&[2, 3], vec![4, 2, 6, 1, 5, 3])]);
        case(&[3, 2]).attr("batch_axis", 0).attr("time_axis", 1).expect(&[Tensor::of(&[2, 3], vec![3, 2, 1, 5, 4, 6])]);
        case(&[1, 2]).fails("2 lengths, expected 3");
        case(&[1, 2, 3]).fails("the length 3");
        case(&[1, 2, 1]).attr("batch_axis", 0).fails("expected 0 and 1");
    }
}
