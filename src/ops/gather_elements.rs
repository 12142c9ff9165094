//! `GatherElements` — one element of `data` for each index, picked along `axis`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__GatherElements.html> (opsets 11, 13)
//! Inputs: data, any type, rank ≥ 1; indices int32 or int64 of the same rank, no larger than data but along axis.
//! Output: of indices' shape. Attribute: axis, default 0.
//! Quantized: selects elements, so the output has the data's parameters.
//! Errors: ranks differ; indices larger than data; an index or the axis out of range.

use super::call::axis;
use super::gather::checked;
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, ensure};
use crate::tensor::broadcast::strides;
use crate::tensor::strided;
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "GatherElements",
    domain: OpDomain::Onnx,
    since: 11,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("GatherElements", |b| b.moved(&[0]))];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.set_tensor(0, ctx.dtype(0), ctx.shape(1).map(<[_]>::to_vec));
    Ok(())
}

/// The offset in `data` of the element that each index points at, in the order of the indices.
///
/// # Errors
/// Ranks differ, indices are larger than data but along the axis, or an index or the axis is out of range.
pub(crate) fn element_offsets(data: &[usize], shape: &[usize], indices: &[i64], at: i64) -> Result<Vec<usize>> {
    ensure!(data.len() == shape.len(), "input 1 (indices) has rank {}, expected {}", shape.len(), data.len());
    let at = axis(at, data.len())?;
    for (i, (&n, &d)) in shape.iter().zip(data).enumerate() {
        ensure!(i == at || n <= d, "input 1 (indices) has size {n} in dimension {i}, expected at most {d}");
    }
    let mut st = strides(data);
    let (step, n) = (st[at], data[at]);
    // Moving along the axis changes the offset by the index alone.
    st[at] = 0;
    let steps: Vec<isize> = st.iter().map(|&s| s as isize).collect();
    let mut offsets = Vec::with_capacity(indices.len());
    let mut index = vec![0usize; shape.len()];
    let mut base = 0usize;
    for &i in indices {
        offsets.push(base + checked(i, n).context("input 1 (indices)")? * step);
        for d in (0..shape.len()).rev() {
            index[d] += 1;
            base = base.wrapping_add_signed(steps[d]);
            if index[d] < shape[d] {
                break;
            }
            base = base.wrapping_add_signed(-(steps[d] * shape[d] as isize));
            index[d] = 0;
        }
    }
    Ok(offsets)
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let indices = call.ints(1)?;
    let (x, shape) = (call.input(0)?, call.input(1)?.shape());
    let offsets = element_offsets(x.shape(), shape, &indices, call.int("axis", 0))?;
    let y = with_data!(x.data(), T, b => {
        let src = b.as_slice();
        strided::typed::<T>(x.dtype(), shape, offsets.iter().map(|&o| src[o].clone()).collect())
    })?;
    Ok(y.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn picks_elements() {
        let x = Tensor::of(&[2, 2], vec![1.0f32, 2.0, 3.0, 4.0]);
        let case = |shape: &[usize], i: &[i64], axis: i64| {
            Case::new("GatherElements", 13).input(x.clone()).input(Tensor::of(shape, i.to_vec())).attr("axis", axis)
        };
        case(&[2, 2], &[0, 0, 1, 0], 1).expect(&[Tensor::of(&[2, 2], vec![1.0f32, 1.0, 4.0, 3.0])]);
        case(&[3, 1], &[-1, 0, 1], 0).expect(&[Tensor::of(&[3, 1], vec![3.0f32, 1.0, 3.0])]);
        case(&[0, 2], &[], 0).expect(&[Tensor::of(&[0, 2], Vec::<f32>::new())]);
        case(&[1, 3], &[0, 0, 0], 0).fails("expected at most 2");
        case(&[1], &[0], 0).fails("has rank 1");
        case(&[1, 1], &[2], 0).fails("index 2 is out of range");
    }
}
