//! `GatherND` — slices of `data`, picked by index tuples.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__GatherND.html> (opsets 11, 12, 13)
//! Inputs: data, any type, rank r; indices int64 `[B…, I…, k]`, k ≤ r - batch_dims.
//! Output: `[B…, I…] + data.shape[batch_dims + k..]`. Attribute: batch_dims, default 0, from opset 12.
//! Quantized: selects elements, so the output has the data's parameters.
//! Errors: rank 0; k too large; batch dimensions that differ; an index out of range.

use super::gather::checked;
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, ensure};
use crate::ir::Dim;
use crate::tensor::broadcast::strides;
use crate::tensor::{count, strided};
use crate::with_data;

const GATHER_ND: OpDef = OpDef {
    name: "GatherND",
    domain: OpDomain::Onnx,
    since: 11,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
};

pub(super) const OPS: &[OpDef] = &[GATHER_ND, OpDef { since: 12, ..GATHER_ND }];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("GatherND", |b| b.moved(&[0]))];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let b = usize::try_from(ctx.attrs.int("batch_dims").unwrap_or(0)).unwrap_or(0);
    let shape = match (ctx.shape(0), ctx.shape(1)) {
        (Some(d), Some(i)) => match i.last().and_then(Dim::known) {
            Some(k) => {
                ensure!(
                    b + k <= d.len(),
                    "input 1 (indices) has tuples of {k}, expected at most {}",
                    d.len() - b.min(d.len())
                );
                Some([&i[..i.len() - 1], &d[b + k..]].concat())
            }
            None => None,
        },
        _ => None,
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

/// Offsets in `data` of the slices that index tuples point at.
///
/// # Errors
/// A tuple is too long, batch dimensions differ, an index is out of range.
pub(crate) fn slice_offsets(data: &[usize], shape: &[usize], indices: &[i64], batch: usize) -> Result<Vec<usize>> {
    ensure!(!shape.is_empty() && !data.is_empty(), "data and indices need rank 1 at least");
    let k = shape[shape.len() - 1];
    ensure!(
        batch < shape.len() && batch + k <= data.len() && k > 0,
        "input 1 (indices) has shape {shape:?}, which does not fit data of shape {data:?} with batch_dims {batch}"
    );
    ensure!(data[..batch] == shape[..batch], "the batch dimensions of shapes {data:?} and {shape:?} differ");
    let st = strides(data);
    let n_batches: usize = data[..batch].iter().product();
    let batch_step: usize = data[batch..].iter().product();
    let per_batch = indices.len() / k / n_batches.max(1);
    let mut offsets = Vec::with_capacity(indices.len() / k);
    for (i, tuple) in indices.chunks_exact(k).enumerate() {
        let mut o = (i / per_batch.max(1)) * batch_step;
        for (j, &index) in tuple.iter().enumerate() {
            o += checked(index, data[batch + j]).context("input 1 (indices)")? * st[batch + j];
        }
        offsets.push(o);
    }
    Ok(offsets)
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let indices = call.ints(1)?;
    let batch = usize::try_from(call.int("batch_dims", 0)).context("attribute \"batch_dims\" is negative")?;
    let (x, shape) = (call.input(0)?, call.input(1)?.shape());
    let offsets = slice_offsets(x.shape(), shape, &indices, batch)?;
    let k = shape[shape.len() - 1];
    let out = [&shape[..shape.len() - 1], &x.shape()[batch + k..]].concat();
    let n = count(&out)?;
    let run: usize = x.shape()[batch + k..].iter().product();
    let y = with_data!(x.data(), T, b => {
        let src = b.as_slice();
        let mut v: Vec<T> = Vec::with_capacity(n);
        for &o in &offsets {
            v.extend_from_slice(&src[o..o + run]);
        }
        strided::typed::<T>(x.dtype(), &out, v)
    })?;
    Ok(y.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn picks_slices() {
        let x = Tensor::of(&[2, 2, 2], (0..8).collect::<Vec<i32>>());
        let case = |shape: &[usize], i: &[i64]| {
            Case::new("GatherND", 13).input(x.clone()).input(Tensor::of(shape, i.to_vec()))
        };
        case(&[2, 2], &[0, 1, 1, 0]).expect(&[Tensor::of(&[2, 2], vec![2, 3, 4, 5])]);
        case(&[2, 1, 2], &[0, 1, -1, 0]).expect(&[Tensor::of(&[2, 1, 2], vec![2, 3, 4, 5])]);
        case(&[2, 1], &[1, 0]).attr("batch_dims", 1).expect(&[Tensor::of(&[2, 2], vec![2, 3, 4, 5])]);
        case(&[3], &[0, 0, 1]).expect(&[Tensor::scalar(1i32)]);
        case(&[1, 4], &[0, 0, 0, 0]).fails("does not fit");
        case(&[1, 1], &[2]).fails("index 2 is out of range");
        case(&[3, 1], &[0, 0, 0]).attr("batch_dims", 1).fails("batch dimensions");
    }
}
