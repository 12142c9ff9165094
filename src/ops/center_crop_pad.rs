//! `CenterCropPad` — the middle of the input, or the input in the middle of zeros.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__CenterCropPad.html> (opset 18)
//! Inputs: input_data, any type; shape int32 or int64, the sizes of `axes` (default all). Output: output_data.
//! Quantized: padding brings zeros that the input's range may not hold.
//! Errors: not one size per axis; a negative size; an axis out of range or given twice.

use super::call::axes;
use super::constant_of_shape::to_shape;
use super::pad::{Mode, pad};
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::Tensor;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "CenterCropPad",
    domain: OpDomain::Onnx,
    since: 18,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "padding brings values that its input's range may not hold" },
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("CenterCropPad", |b| b.moved(&[0]))];

fn wanted_axes(given: Option<&[i64]>, rank: usize) -> Result<Vec<usize>> {
    match given {
        Some(l) => axes(l, rank),
        None => Ok((0..rank).collect()),
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match ctx.shape(0) {
        None => None,
        Some(s) => {
            let mut out = s.to_vec();
            let sizes = ctx.values(1);
            for (i, a) in wanted_axes(ctx.attrs.ints("axes"), s.len())?.into_iter().enumerate() {
                out[a] = sizes.as_ref().and_then(|v| v.get(i)).map_or(Dim::Unknown, sym::as_size);
            }
            Some(out)
        }
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let sizes = to_shape(&call.ints(1)?, 1)?;
    let x = call.input(0)?;
    let list = wanted_axes(call.attrs.ints("axes"), x.rank())?;
    ensure!(sizes.len() == list.len(), "input 1 (shape) has {} sizes for {} axes", sizes.len(), list.len());
    let mut pads = vec![(0, 0); x.rank()];
    for (&a, &to) in list.iter().zip(&sizes) {
        let (n, to) = (x.shape()[a] as i64, to as i64);
        // Half of the difference rounded down is cut or added before, what remains after.
        let before = if n > to { -((n - to) / 2) } else { (to - n) / 2 };
        pads[a] = (before, to - n - before);
    }
    Ok(pad(x, &pads, Mode::Constant, &Tensor::zeros(x.dtype(), &[])?)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn crops_and_pads_around_the_middle() {
        let x = Tensor::of(&[1, 4], vec![1, 2, 3, 4i32]);
        let case = |v: &[i64]| Case::new("CenterCropPad", 18).input(x.clone()).input(Tensor::vector(v.to_vec()));
        case(&[2, 3]).expect(&[Tensor::of(&[2, 3], vec![1, 2, 3, 0, 0, 0])]);
        case(&[5]).attr("axes", vec![-1i64]).expect(&[Tensor::of(&[1, 5], vec![1, 2, 3, 4, 0])]);
        case(&[1]).attr("axes", vec![1i64]).expect(&[Tensor::of(&[1, 1], vec![2])]);
        case(&[1]).fails("1 sizes for 2 axes");
        case(&[1, -1]).fails("input 1");
    }
}
