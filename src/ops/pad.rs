//! `Pad` — more elements (or fewer) before and after each dimension.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Pad.html> (opsets 2, 11, 13, 18, 19, 21, 23, 24, 25)
//! Inputs: data, any type; pads int64 `[2 * n]`, first all befores, then all afters; constant_value?; axes? (opset 18).
//! Before opset 11 pads and value are attributes. Negative pads cut off. Attribute mode: constant, reflect, edge, wrap.
//! Output: `shape[i] + before[i] + after[i]`.
//! Quantized: pads with the zero point, so it stays between Q and DQ only with the input's own range.
//! Errors: not two pads per axis; a dimension that becomes negative; padding an empty dimension with its own elements.

use super::call::axes;
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::{Tensor, cast, count, strided};
use crate::with_data;

const PAD: OpDef = OpDef {
    name: "Pad",
    domain: OpDomain::Onnx,
    since: 2,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "padding brings values that its input's range may not hold" },
};

pub(super) const OPS: &[OpDef] = &[
    PAD,
    OpDef { since: 11, inputs: Arity::range(2, 3), ..PAD },
    OpDef { since: 18, inputs: Arity::range(2, 4), ..PAD },
    OpDef { since: 19, inputs: Arity::range(2, 4), ..PAD },
];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Pad", reverse)];

/// What is padded with a constant has no place in the input.
fn reverse(b: &Back<'_>) -> Result<Gradients> {
    let mut attrs = b.attrs.clone();
    attrs.remove("value");
    b.moved_with(&[0], &attrs, &[2])
}

/// What lies outside the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One value.
    Constant,
    /// Mirrored at the first and last element, which are not repeated.
    Reflect,
    /// The first or last element.
    Edge,
    /// The input again, from its other end.
    Wrap,
}

fn mode(name: &str, opset: i64) -> Result<Mode> {
    match name {
        "constant" => Ok(Mode::Constant),
        "reflect" => Ok(Mode::Reflect),
        "edge" => Ok(Mode::Edge),
        "wrap" if opset >= 19 => Ok(Mode::Wrap),
        m => bail!("attribute \"mode\" is \"{m}\", expected constant, reflect, edge, or wrap from opset 19"),
    }
}

/// Pads before and after each dimension of an input of this rank.
fn per_axis(pads: &[i64], list: Option<&[i64]>, rank: usize) -> Result<Vec<(i64, i64)>> {
    let list = match list {
        Some(l) => axes(l, rank).context("input 3 (axes)")?,
        None => (0..rank).collect(),
    };
    ensure!(
        pads.len() == 2 * list.len(),
        "pads has {} entries, expected 2 for each of {} axes",
        pads.len(),
        list.len()
    );
    let mut out = vec![(0, 0); rank];
    for (i, &a) in list.iter().enumerate() {
        out[a] = (pads[i], pads[i + list.len()]);
    }
    Ok(out)
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let from_inputs = ctx.opset >= 11;
    let pads = if from_inputs { ctx.ints(1) } else { ctx.attrs.ints("pads").map(<[i64]>::to_vec) };
    let list = if ctx.has(3) { ctx.ints(3).map(Some) } else { Some(None) };
    let shape = match (ctx.shape(0), pads, list) {
        (Some(s), Some(p), Some(l)) => {
            let mut out = Vec::with_capacity(s.len());
            for (d, (before, after)) in s.iter().zip(per_axis(&p, l.as_deref(), s.len())?) {
                out.push(match (before, after, d.known()) {
                    (0, 0, _) => d.clone(),
                    (_, _, Some(n)) => Dim::Known(padded(n, before, after)?),
                    _ => sym::as_size(&sym::add(d, &sym::of_int(before.saturating_add(after)))),
                });
            }
            Some(out)
        }
        (Some(s), _, _) => Some(vec![Dim::Unknown; s.len()]),
        _ => None,
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn padded(n: usize, before: i64, after: i64) -> Result<usize> {
    let total = i128::from(before) + i128::from(after) + n as i128;
    ensure!(total >= 0, "a dimension of size {n} cannot lose {before} before and {after} after it");
    usize::try_from(total).map_err(|_| anyhow!("a dimension of size {total} is too large"))
}

/// One dimension: which part of the input stays, and how much comes before and after.
struct Side {
    start: usize,
    n: usize,
    before: usize,
    after: usize,
    /// Elements between neighbours in the input, and in the output.
    step: usize,
    out_step: usize,
}

/// The tensor with `pads` (before, after) for each dimension; negative ones cut off. `value` is used by
/// [`Mode::Constant`] only and has the tensor's type and one element.
///
/// # Errors
/// A dimension becomes negative or too large; there is nothing to repeat.
pub(crate) fn pad(x: &Tensor, pads: &[(i64, i64)], mode: Mode, value: &Tensor) -> Result<Tensor> {
    let mut shape = Vec::with_capacity(x.rank());
    let mut sides = Vec::with_capacity(x.rank());
    for (&n, &(before, after)) in x.shape().iter().zip(pads) {
        shape.push(padded(n, before, after)?);
        // Cutting comes first, so what a mode repeats is what is left. A cut may exceed what the input itself holds.
        let start = ((-before).max(0).unsigned_abs() as usize).min(n);
        let end = n.saturating_sub((-after).max(0).unsigned_abs() as usize).max(start);
        let (mut before, mut after) = (before.max(0) as usize, after.max(0) as usize);
        let excess = (before + (end - start) + after) - shape[shape.len() - 1];
        let cut = excess.min(after);
        after -= cut;
        before -= excess - cut;
        sides.push(Side { start, n: end - start, before, after, step: 0, out_step: 0 });
    }
    let total = count(&shape)?;
    ensure!(total <= 1 << 36, "shape {shape:?} has too many elements");
    // Dimensions behind the last padded one move as one block.
    while let Some(s) = sides.last()
        && s.before == 0
        && s.after == 0
        && s.start == 0
        && s.n == x.shape()[sides.len() - 1]
    {
        sides.pop();
    }
    let inner: usize = x.shape()[sides.len()..].iter().product();
    let (mut step, mut out_step) = (inner, inner);
    for (i, s) in sides.iter_mut().enumerate().rev() {
        (s.step, s.out_step) = (step, out_step);
        step *= x.shape()[i];
        out_step *= shape[i];
    }
    if total > 0 && mode != Mode::Constant && sides.iter().any(|s| s.n == 0) {
        bail!("an empty dimension cannot be padded with its own elements");
    }
    with_data!(x.data(), T, b => {
        let fill = &value.slice::<T>()?[0];
        let mut out: Vec<T> = Vec::with_capacity(total);
        if total > 0 {
            let offset = sides.iter().map(|s| s.start * s.step).sum();
            emit(&mut out, b.as_slice(), &sides, inner, offset, mode, fill);
        }
        strided::typed::<T>(x.dtype(), &shape, out)
    })
}

/// The element of `0..n` that stands at `i`, which lies outside.
fn outside(i: i64, n: usize, mode: Mode) -> Option<usize> {
    let size = n as i64;
    Some(match mode {
        Mode::Constant => return None,
        Mode::Edge => i.clamp(0, size - 1),
        Mode::Wrap => i.rem_euclid(size),
        Mode::Reflect if n == 1 => 0,
        Mode::Reflect => {
            let k = i.rem_euclid(2 * (size - 1));
            k.min(2 * (size - 1) - k)
        }
    } as usize)
}

fn emit<T: Clone>(out: &mut Vec<T>, src: &[T], sides: &[Side], inner: usize, offset: usize, mode: Mode, fill: &T) {
    let Some((s, rest)) = sides.split_first() else {
        out.extend_from_slice(&src[offset..offset + inner]);
        return;
    };
    let one = |out: &mut Vec<T>, i: i64| match outside(i, s.n, mode) {
        Some(k) => emit(out, src, rest, inner, offset + k * s.step, mode, fill),
        None => out.extend(std::iter::repeat_n(fill, s.out_step).cloned()),
    };
    for i in 0..s.before {
        one(out, i as i64 - s.before as i64);
    }
    if rest.is_empty() {
        out.extend_from_slice(&src[offset..offset + s.n * s.step]);
    } else {
        for i in 0..s.n {
            emit(out, src, rest, inner, offset + i * s.step, mode, fill);
        }
    }
    for i in 0..s.after {
        one(out, (s.n + i) as i64);
    }
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let mode = mode(call.str("mode", "constant"), call.opset)?;
    let x = call.input(0)?;
    let (pads, list, value) = if call.opset < 11 {
        let pads = call.attrs.ints("pads").ok_or_else(|| anyhow!("attribute \"pads\" is missing"))?.to_vec();
        (pads, None, cast::cast(&Tensor::scalar(call.float("value", 0.0)), x.dtype(), true)?)
    } else {
        let value = match call.optional(2)? {
            Some(v) if !v.is_empty() => v.clone(),
            _ => Tensor::zeros(x.dtype(), &[])?,
        };
        (call.ints(1)?, call.optional_ints(3)?, value)
    };
    ensure!(
        value.dtype() == x.dtype() && value.len() == 1,
        "input 2 (constant_value) is {}{:?}, expected one element of type {}",
        value.dtype(),
        value.shape(),
        x.dtype()
    );
    let pads = per_axis(&pads, list.as_deref(), x.rank())?;
    if pads.iter().all(|&p| p == (0, 0)) {
        return Ok(call.take(0)?.into());
    }
    Ok(pad(x, &pads, mode, &value)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    fn case(pads: &[i64], mode: &str) -> Case {
        let x = Tensor::of(&[2, 3], vec![1, 2, 3, 4, 5, 6i32]);
        Case::new("Pad", 19).input(x).input(Tensor::vector(pads.to_vec())).attr("mode", mode)
    }

    #[test]
    fn pads_in_every_mode() {
        let row = |v: &[i32]| Tensor::of(&[2, v.len() / 2], v.to_vec());
        case(&[0, 2, 0, 1], "constant").expect(&[row(&[0, 0, 1, 2, 3, 0, 0, 0, 4, 5, 6, 0])]);
        case(&[0, 1, 0, 1], "constant").input(Tensor::scalar(9i32)).expect(&[row(&[9, 1, 2, 3, 9, 9, 4, 5, 6, 9])]);
        case(&[0, 2, 0, 1], "reflect").expect(&[row(&[3, 2, 1, 2, 3, 2, 6, 5, 4, 5, 6, 5])]);
        case(&[0, 5, 0, 0], "reflect").expect(&[row(&[2, 1, 2, 3, 2, 1, 2, 3, 5, 4, 5, 6, 5, 4, 5, 6])]);
        case(&[0, 2, 0, 1], "edge").expect(&[row(&[1, 1, 1, 2, 3, 3, 4, 4, 4, 5, 6, 6])]);
        case(&[0, 2, 0, 1], "wrap").expect(&[row(&[2, 3, 1, 2, 3, 1, 5, 6, 4, 5, 6, 4])]);
        case(&[1, 0, 0, 0], "edge").expect(&[Tensor::of(&[3, 3], vec![1, 2, 3, 1, 2, 3, 4, 5, 6])]);
        case(&[0, -1, 0, 1], "constant").expect(&[row(&[2, 3, 0, 5, 6, 0])]);
        case(&[-1, 0, 0, -2], "constant").expect(&[Tensor::of(&[1, 1], vec![4])]);
        case(&[1, 1], "constant")
            .skip()
            .input(Tensor::vector(vec![-1i64]))
            .expect(&[row(&[0, 1, 2, 3, 0, 0, 4, 5, 6, 0])]);
        let x = Tensor::vector(vec![1.0f32]);
        Case::new("Pad", 2)
            .input(x)
            .attr("pads", vec![0i64, 1])
            .attr("value", 2.0)
            .expect(&[Tensor::vector(vec![1.0f32, 2.0])]);
    }

    #[test]
    fn bad_pads_are_errors() {
        case(&[0, 1], "constant").fails("expected 2 for each of 2 axes");
        case(&[0, -2, 0, -2], "constant").fails("cannot lose");
        case(&[0, i64::MAX, 0, 0], "constant").fails("too");
        case(&[0, 0, 0, 1], "mirror").fails("mode");
        case(&[0, 0, 0, 1], "constant").input(Tensor::scalar(1.0f32)).fails("input 2 (constant_value)");
        let empty = Tensor::of(&[0], Vec::<f32>::new());
        let pads = Tensor::vector(vec![1i64, 1]);
        Case::new("Pad", 19).input(empty).input(pads).attr("mode", "edge").fails("empty dimension");
    }
}
