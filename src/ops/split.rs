//! `Split` — parts along `axis`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Split.html> (opsets 2, 11, 13, 18)
//! Inputs: input, any type; split int64 `[n]`? (an attribute before opset 13). Outputs: one tensor per part.
//! Without split the parts are equal; from opset 18 (num_outputs) the last one may be smaller. Attribute: axis, default 0.
//! Quantized: selects elements, so the outputs have the input's parameters.
//! Errors: sizes negative, or not adding up to the dimension; not one size per output; axis out of range.

use super::call::axis;
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::{Tensor, strided};
use crate::with_data;

const SPLIT: OpDef = OpDef {
    name: "Split",
    domain: OpDomain::Onnx,
    since: 2,
    inputs: Arity::exactly(1),
    outputs: Arity::at_least(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
};

pub(super) const OPS: &[OpDef] = &[
    SPLIT,
    OpDef { since: 13, inputs: Arity::range(1, 2), ..SPLIT },
    OpDef { since: 18, inputs: Arity::range(1, 2), ..SPLIT },
];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Split", |b| b.moved(&[0]))];

/// Sizes of the parts of a dimension of size `n`.
fn sizes(n: usize, given: Option<&[i64]>, n_outputs: usize, even: bool) -> Result<Vec<usize>> {
    if let Some(v) = given {
        ensure!(v.len() == n_outputs, "split has {} sizes for {n_outputs} outputs", v.len());
        let v = v
            .iter()
            .map(|&s| usize::try_from(s).map_err(|_| anyhow!("split has the negative size {s}")))
            .collect::<Result<Vec<_>>>()?;
        let sum = v.iter().try_fold(0usize, |a, &b| a.checked_add(b));
        ensure!(sum == Some(n), "split is {v:?}, which does not add up to the dimension's size {n}");
        return Ok(v);
    }
    ensure!(n_outputs > 0, "there are no outputs to split into");
    ensure!(
        !even || n.is_multiple_of(n_outputs),
        "a dimension of size {n} does not split into {n_outputs} equal parts"
    );
    let chunk = n.div_ceil(n_outputs);
    Ok((0..n_outputs).map(|i| chunk.min(n.saturating_sub(i * chunk))).collect())
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n_outputs = ctx.outputs.len();
    if let Some(s) = ctx.shape(0).map(<[Dim]>::to_vec) {
        let at = axis(ctx.attrs.int("axis").unwrap_or(0), s.len())?;
        let known = if ctx.has(1) { ctx.ints(1) } else { ctx.attrs.ints("split").map(<[i64]>::to_vec) };
        let parts: Vec<Dim> = match (s[at].known(), &known) {
            (_, None) if ctx.has(1) => vec![Dim::Unknown; n_outputs],
            (Some(n), _) => {
                sizes(n, known.as_deref(), n_outputs, ctx.opset < 18)?.into_iter().map(Dim::Known).collect()
            }
            (None, Some(v)) => v.iter().map(|&n| sym::as_size(&sym::of_int(n))).collect(),
            (None, None) if ctx.opset < 18 => vec![sym::floor_div(&s[at], &Dim::Known(n_outputs)); n_outputs],
            (None, None) => vec![Dim::Unknown; n_outputs],
        };
        let values = ctx.values(0);
        let mut start = 0;
        for (i, d) in parts.into_iter().enumerate().take(n_outputs) {
            if let (Some(v), Some(n)) = (&values, d.known())
                && let Some(part) = v.get(start..start + n)
            {
                let part = part.to_vec();
                ctx.set_values(i, part);
                start += n;
            }
            let mut shape = s.clone();
            shape[at] = d;
            ctx.set_tensor(i, ctx.dtype(0), Some(shape));
        }
    } else {
        for i in 0..n_outputs {
            ctx.set_tensor(i, ctx.dtype(0), None);
        }
    }
    Ok(())
}

/// The parts of these sizes, which add up to the dimension.
pub(crate) fn split(x: &Tensor, at: usize, sizes: &[usize]) -> Result<Vec<Tensor>> {
    let inner: usize = x.shape()[at + 1..].iter().product();
    let outer: usize = x.shape()[..at].iter().product();
    let row = x.shape()[at] * inner;
    let mut start = 0;
    let mut parts = Vec::with_capacity(sizes.len());
    for &n in sizes {
        let mut shape = x.shape().to_vec();
        shape[at] = n;
        let from = start * inner;
        parts.push(with_data!(x.data(), T, b => strided::typed::<T>(
            x.dtype(),
            &shape,
            strided::gather(b.as_slice(), from, &[outer, n * inner], &[row as isize, 1]),
        ))?);
        start += n;
    }
    Ok(parts)
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let given = match call.optional_ints(1)? {
        Some(v) => Some(v),
        None => call.attrs.ints("split").map(<[i64]>::to_vec),
    };
    let x = call.input(0)?;
    let at = axis(call.int("axis", 0), x.rank())?;
    let n_outputs = match call.attrs.int("num_outputs") {
        Some(n) => usize::try_from(n).map_err(|_| anyhow!("attribute \"num_outputs\" is {n}"))?,
        None => call.n_outputs(),
    };
    ensure!(
        n_outputs <= call.n_outputs(),
        "attribute \"num_outputs\" is {n_outputs}, but the node has {} outputs",
        call.n_outputs()
    );
    let sizes = sizes(x.shape()[at], given.as_deref(), n_outputs, call.opset < 18)?;
    if sizes.len() == 1 {
        return Ok(call.take(0)?.into());
    }
    Ok(split(x, at, &sizes)?.into_iter().map(Item::Tensor).collect())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn splits() {
        let x = Tensor::of(&[2, 3], vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let two = [Tensor::of(&[2, 2], vec![1.0f32, 2.0, 4.0, 5.0]), Tensor::of(&[2, 1], vec![3.0f32, 6.0])];
        let case = |opset| Case::new("Split", opset).input(x.clone()).outputs(2);
        case(11).attr("axis", 1).attr("split", vec![2i64, 1]).expect(&two);
        case(13).attr("axis", -1).input(Tensor::vector(vec![2i64, 1])).expect(&two);
        case(18).attr("axis", 1).attr("num_outputs", 2).expect(&two);
        case(13).expect(&[Tensor::of(&[1, 3], vec![1.0f32, 2.0, 3.0]), Tensor::of(&[1, 3], vec![4.0f32, 5.0, 6.0])]);
        case(13).attr("axis", 1).fails("does not split into 2 equal parts");
        case(13).attr("axis", 1).input(Tensor::vector(vec![2i64, 2])).fails("does not add up");
        case(13).input(Tensor::vector(vec![2i64])).fails("1 sizes for 2 outputs");
        case(13).attr("axis", 1).input(Tensor::vector(vec![4i64, -1])).fails("negative size");
    }
}
