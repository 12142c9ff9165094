//! `Slice` — every `steps`-th element from `starts` to `ends` along each of `axes`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Slice.html> (opsets 1, 10, 11, 13)
//! Inputs: data, any type; starts, ends, axes?, steps? int32 or int64 `[n]` (attributes without steps before opset 10).
//! Negative starts and ends count from the end; what lies outside is clamped. Output: output, of data's type.
//! Quantized: selects elements, so the output has the input's parameters.
//! Errors: lists of different lengths; an axis out of range or given twice; a step of 0.

use super::call::axes;
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::broadcast::strides;
use crate::tensor::strided;
use crate::with_data;

const SLICE: OpDef = OpDef {
    name: "Slice",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
};

pub(super) const OPS: &[OpDef] = &[SLICE, OpDef { since: 10, inputs: Arity::range(3, 5), ..SLICE }];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Slice", |b| b.moved(&[0]))];

/// First index, step and number of elements along a dimension of size `n`.
fn range(start: i64, end: i64, step: i64, n: usize) -> Result<(usize, i64, usize)> {
    ensure!(step != 0, "a step is 0");
    let size = n as i64;
    let wrap = |i: i64| if i < 0 { i.saturating_add(size) } else { i };
    let (lo, hi) = if step > 0 { (0, size) } else { (-1, size - 1) };
    // A start before the first element is the first; with a negative step an end before it is "all of them".
    let start = wrap(start).clamp(if step > 0 { 0 } else { 0.min(hi) }, if step > 0 { size } else { hi });
    let end = wrap(end).clamp(lo, hi.max(lo));
    let len = if step > 0 {
        (end - start).max(0).unsigned_abs().div_ceil(step.unsigned_abs())
    } else {
        (start - end).max(0).unsigned_abs().div_ceil(step.unsigned_abs())
    };
    let len = if n == 0 { 0 } else { len as usize };
    Ok((if len == 0 { 0 } else { start as usize }, step, len))
}

/// Size of a slice along a dimension of unknown size: exact where the size cancels.
fn symbolic(n: &Dim, start: &Dim, end: &Dim, step: i64) -> Dim {
    if step < 1 {
        // The whole dimension backwards.
        let all = step == -1
            && sym::constant(start) == Some(-1)
            && sym::constant(end).is_some_and(|e| e <= -i64::from(i32::MAX));
        return if all { n.clone() } else { Dim::Unknown };
    }
    const FAR: i64 = i32::MAX as i64;
    let (from, to) = (sym::constant(start), sym::constant(end));
    let from_end = |d: &Dim| match sym::constant(d) {
        Some(c) if c < 0 => sym::add(n, d),
        Some(_) => d.clone(),
        None => d.clone(),
    };
    let start = match sym::constant(start) {
        Some(c) if c <= -FAR => Dim::Known(0),
        _ => from_end(start),
    };
    let end = match sym::constant(end) {
        Some(c) if c >= FAR => n.clone(),
        // Whether a fixed end lies inside is not known.
        Some(c) if c >= 0 && start.known().is_some() && c as usize <= start.known().unwrap_or(0) => {
            return Dim::Known(0);
        }
        Some(c) if c >= 0 => return Dim::Unknown,
        _ => from_end(end),
    };
    let len = sym::sub(&end, &start);
    // A fixed part of an open size may lie outside it; only that there is a last element is taken for granted.
    if len.known().is_some_and(|n| n > 0) && (from.is_some() || to.is_some()) && from != Some(-1) {
        return Dim::Unknown;
    }
    sym::as_size(&sym::floor_div(&sym::add(&len, &sym::of_int(step - 1)), &sym::of_int(step)))
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let Some(shape) = ctx.shape(0).map(<[Dim]>::to_vec) else {
        ctx.set_tensor(0, ctx.dtype(0), None);
        return Ok(());
    };
    let attr = |name| ctx.attrs.ints(name).map(|v: &[i64]| v.iter().map(|&n| sym::of_int(n)).collect::<Vec<_>>());
    let from_inputs = ctx.has(1);
    let (starts, ends) = if from_inputs { (ctx.values(1), ctx.values(2)) } else { (attr("starts"), attr("ends")) };
    let n = starts.as_ref().or(ends.as_ref()).map(Vec::len);
    let given_axes = if from_inputs { ctx.ints(3) } else { ctx.attrs.ints("axes").map(<[i64]>::to_vec) };
    let axes_known = given_axes.is_some() || !ctx.has(3);
    let list = match (given_axes, n) {
        (Some(v), _) => Some(v),
        (None, Some(n)) if axes_known => Some((0..n as i64).collect()),
        _ => None,
    };
    let steps = match (ctx.has(4), ctx.ints(4)) {
        (false, _) => list.as_ref().map(|l| vec![Some(1); l.len()]),
        (true, Some(v)) => Some(v.into_iter().map(Some).collect()),
        (true, None) => list.as_ref().map(|l| vec![None; l.len()]),
    };
    let mut out = shape.clone();
    let mut selected = ctx.values(0);
    match (list, steps) {
        (Some(list), Some(steps)) => {
            for (i, a) in axes(&list, shape.len())?.into_iter().enumerate() {
                let at = |v: &Option<Vec<Dim>>| v.as_ref().and_then(|v| v.get(i)).cloned().unwrap_or(Dim::Unknown);
                let (start, end) = (at(&starts), at(&ends));
                let step = steps.get(i).copied().flatten();
                let fixed = step.zip(sym::constant(&start)).zip(sym::constant(&end));
                out[a] = match (shape[a].known(), fixed, step) {
                    (Some(n), Some(((step, start), end)), _) => {
                        let (first, step, len) = range(start, end, step, n)?;
                        selected = selected
                            .take()
                            .filter(|v| v.len() == n)
                            .map(|v| (0..len as i64).map(|k| v[(first as i64 + k * step) as usize].clone()).collect());
                        Dim::Known(len)
                    }
                    (_, _, Some(step)) => {
                        selected = None;
                        symbolic(&shape[a], &start, &end, step)
                    }
                    _ => {
                        selected = None;
                        Dim::Unknown
                    }
                };
            }
        }
        _ => {
            out.fill(Dim::Unknown);
            selected = None;
        }
    }
    if let Some(v) = selected {
        ctx.set_values(0, v);
    }
    ctx.set_tensor(0, ctx.dtype(0), Some(out));
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let attr = |name: &str| call.attrs.ints(name).map(<[i64]>::to_vec);
    let missing = |name: &str| anyhow!("attribute \"{name}\" is missing");
    let (starts, ends, list) = if call.opset < 10 {
        (attr("starts").ok_or_else(|| missing("starts"))?, attr("ends").ok_or_else(|| missing("ends"))?, attr("axes"))
    } else {
        (call.ints(1)?, call.ints(2)?, call.optional_ints(3)?)
    };
    let list = list.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let every = call.optional_ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    ensure!(
        ends.len() == starts.len() && list.len() == starts.len() && every.len() == starts.len(),
        "{} starts, {} ends, {} axes and {} steps, expected equally many",
        starts.len(),
        ends.len(),
        list.len(),
        every.len()
    );
    let x = call.input(0)?;
    let mut shape = x.shape().to_vec();
    let mut steps: Vec<isize> = strides(x.shape()).iter().map(|&s| s as isize).collect();
    let mut offset = 0;
    for (i, a) in axes(&list, x.rank())?.into_iter().enumerate() {
        let (first, step, len) = range(starts[i], ends[i], every[i], x.shape()[a])?;
        shape[a] = len;
        offset += first * steps[a] as usize;
        // Of a single element the step does not matter, and it may be too large to multiply.
        steps[a] = if len > 1 { steps[a] * step as isize } else { steps[a] };
    }
    if shape == x.shape() && steps.iter().zip(&shape).all(|(&s, &n)| s > 0 || n <= 1) {
        return Ok(call.take(0)?.into());
    }
    let y = with_data!(x.data(), T, b => {
        strided::typed::<T>(x.dtype(), &shape, strided::gather(b.as_slice(), offset, &shape, &steps))
    })?;
    Ok(y.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn case(starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64]) -> Case {
        let x = Tensor::of(&[2, 4], (1..=8).collect::<Vec<i32>>());
        let v = |v: &[i64]| Tensor::vector(v.to_vec());
        Case::new("Slice", 13).input(x).input(v(starts)).input(v(ends)).input(v(axes)).input(v(steps))
    }

    #[test]
    fn selects() {
        case(&[1, 0], &[2, 3], &[0, 1], &[1, 2]).expect(&[Tensor::of(&[1, 2], vec![5, 7])]);
        case(&[-1], &[-1000], &[1], &[-1]).expect(&[Tensor::of(&[2, 4], vec![4, 3, 2, 1, 8, 7, 6, 5])]);
        case(&[0], &[-1], &[1], &[1]).expect(&[Tensor::of(&[2, 3], vec![1, 2, 3, 5, 6, 7])]);
        case(&[3], &[0], &[1], &[-2]).expect(&[Tensor::of(&[2, 2], vec![4, 2, 8, 6])]);
        case(&[2], &[i64::MAX], &[-1], &[1]).expect(&[Tensor::of(&[2, 2], vec![3, 4, 7, 8])]);
        case(&[1000], &[2000], &[1], &[1]).expect(&[Tensor::of(&[2, 0], Vec::<i32>::new())]);
        case(&[0], &[i64::MAX], &[1], &[i64::MAX]).expect(&[Tensor::of(&[2, 1], vec![1, 5])]);
        case(&[i64::MAX], &[i64::MIN], &[1], &[i64::MIN]).expect(&[Tensor::of(&[2, 1], vec![4, 8])]);
        let x = Tensor::vector(vec![1.0f32, 2.0, 3.0]);
        Case::new("Slice", 9)
            .input(x)
            .attr("starts", vec![1i64])
            .attr("ends", vec![9i64])
            .expect(&[Tensor::vector(vec![2.0f32, 3.0])]);
    }

    #[test]
    fn bad_lists_are_errors() {
        case(&[0], &[1], &[0], &[0]).fails("a step is 0");
        case(&[0, 1], &[1], &[0], &[1]).fails("expected equally many");
        case(&[0, 0], &[1, 1], &[0, -2], &[1, 1]).fails("given twice");
        case(&[0], &[1], &[2], &[1]).fails("out of range");
    }

    #[test]
    fn sizes_of_symbols() {
        let n = Dim::Symbol("N".into());
        let size = |a: i64, b: i64, step| symbolic(&n, &sym::of_int(a), &sym::of_int(b), step).to_string();
        assert_eq!(size(1, i64::MAX, 1), "N - 1");
        assert_eq!(size(0, -1, 1), "N - 1");
        assert_eq!(size(0, i64::MAX, 2), "floor((N + 1)/2)");
        assert_eq!(size(0, 5, 1), "?");
        // Fewer than 3 where N is less.
        assert_eq!(size(-3, i64::MAX, 1), "?");
    }
}
