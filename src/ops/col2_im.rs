//! `Col2Im` — adds column blocks back into an image.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Col2Im.html> (opset 18)
//! Inputs: input `[N, C * product(block), L]` of T, image_shape `[n]` int64, block_shape `[n]` int64.
//! Output: `[N, C, image_shape…]` of T. T: floats and integers, whose sums wrap.
//! Deviation: not strings, booleans and complex numbers, which the specification lists and gives no sum.
//! Quantized: stays float, since blocks overlap and add up.
//! Errors: another rank; a second dimension that is no multiple of the block's size; L is not the number of blocks.

use std::num::Wrapping;

use super::floats::{FLOATS, from_f32s};
use super::window::sizes;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Attrs, Dim};
use crate::kernels::conv_transpose::{Scatter, scatter};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor, count};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Col2Im",
    domain: OpDomain::Onnx,
    since: 18,
    inputs: Arity::exactly(3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "adds overlapping blocks" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dim = |i: usize| ctx.shape(0).and_then(|s| s.get(i)).cloned().unwrap_or(Dim::Unknown);
    let block = ctx.ints(2).map(|b| b.iter().fold(1i64, |n, &k| n.saturating_mul(k)).max(1) as usize);
    let channels = match (dim(1), block) {
        (Dim::Known(n), Some(block)) => Dim::Known(n / block),
        _ => Dim::Unknown,
    };
    let shape = ctx.values(1).map(|image| [vec![dim(0), channels], image].concat());
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

/// How blocks of shape `kernel` lie in an image.
fn layout(attrs: &Attrs, image: Vec<usize>, kernel: Vec<usize>) -> Result<Scatter> {
    let rank = image.len();
    let pads = sizes(attrs, "pads", 2 * rank, 0, 0)?;
    let (stride, dilation) = (sizes(attrs, "strides", rank, 1, 1)?, sizes(attrs, "dilations", rank, 1, 1)?);
    let mut input = Vec::new();
    for d in 0..rank {
        let reach = (kernel[d] - 1) * dilation[d] + 1;
        let padded = image[d] + pads[d] + pads[rank + d];
        ensure!(padded >= reach, "a block of {reach} elements does not fit into spatial dimension {d} of {padded}");
        input.push((padded - reach) / stride[d] + 1);
    }
    Ok(Scatter { input, output: image, kernel, stride, dilation, begin: pads[..rank].to_vec() })
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let dtype = x.dtype();
    ensure!(
        FLOATS.contains(&dtype) || dtype.is_integer(),
        "input 0 (input) has element type {dtype}, expected a number type"
    );
    let &[n, columns, places] = x.shape() else {
        return Err(anyhow!("input 0 (input) has shape {:?}, expected rank 3", x.shape()));
    };
    let list = |slot: usize, name: &str| -> Result<Vec<usize>> {
        let list = call.input(slot)?.to_i64s()?;
        list.iter()
            .map(|&v| match usize::try_from(v) {
                Ok(n @ 1..) if n < 1 << 31 => Ok(n),
                _ => bail!("input {slot} ({name}) has the element {v}, expected at least 1"),
            })
            .collect()
    };
    let (image, block) = (list(1, "image_shape")?, list(2, "block_shape")?);
    ensure!(
        !image.is_empty() && image.len() == block.len(),
        "input 2 (block_shape) has {} elements, expected {} as image_shape",
        block.len(),
        image.len()
    );
    let taps = count(&block)?;
    ensure!(columns.is_multiple_of(taps), "input 0 (input) has {columns} rows, expected a multiple of {taps}");
    let s = layout(call.attrs, image, block)?;
    let blocks = count(&s.input)?;
    ensure!(places == blocks, "input 0 (input) has {places} columns, expected {blocks} blocks");
    let shape = [&[n, columns / taps], s.output.as_slice()].concat();
    let size = count(&shape)?;
    if dtype == DType::F64 {
        let mut y = vec![0.0f64; size];
        scatter(call.threads, &s, x.slice()?, &mut y);
        return Ok(Tensor::new(&shape, y)?.into());
    }
    if dtype.is_integer() {
        let x = cast(x, DType::I64, true)?;
        let x: Vec<_> = x.slice::<i64>()?.iter().copied().map(Wrapping).collect();
        let mut y = vec![Wrapping(0i64); size];
        scatter(call.threads, &s, &x, &mut y);
        let y = Tensor::new(&shape, y.into_iter().map(|v| v.0).collect::<Vec<i64>>())?;
        return Ok(cast(&y, dtype, true)?.into());
    }
    let mut y = vec![0.0f32; size];
    scatter(call.threads, &s, &x.to_f32s()?, &mut y);
    Ok(from_f32s(dtype, &shape, y)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Tensor, cast};

    #[test]
    fn overlapping_blocks_add_up() {
        for dtype in super::FLOATS {
            let c = |t: Tensor| cast::cast(&t, *dtype, true).unwrap();
            let case = |columns: usize| {
                let x = Tensor::new(&[1, 2, columns], (1..=2 * columns).map(|i| i as f32).collect()).unwrap();
                let v = |v: &[i64]| Tensor::vector(v.to_vec());
                Case::new("Col2Im", 18).input(c(x)).input(v(&[1, 3])).input(v(&[1, 2]))
            };
            case(2).expect(&[c(Tensor::new(&[1, 1, 1, 3], vec![1.0f32, 5.0, 4.0]).unwrap())]);
            let padded = case(2).attr("pads", vec![0i64, 1, 0, 0]).attr("strides", vec![1i64, 2]);
            padded.expect(&[c(Tensor::new(&[1, 1, 1, 3], vec![3.0f32, 2.0, 4.0]).unwrap())]);
            case(3).fails("expected 2 blocks");
        }
    }
}
