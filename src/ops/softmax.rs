//! `Softmax`, `LogSoftmax`, `Hardmax` along an axis.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Softmax.html> and so on (opsets 1, 11: the input seen as a matrix split
//! at `axis`, default 1; opset 13: along `axis`, default -1)
//! Input: X, any shape. Output: as X. Types: floats.
//! Quantized: `Softmax` with the fixed output range [0, 1]; the others stay float.
//! Errors: an axis out of range.

use super::elementwise::{KEEP, PARALLEL_FROM, UNARY, is_half, wrong_type};
use super::reverse::{Back, Gradients, Reverse};
use super::{Call, InferCtx, Item, OpDef, OutputRange, QuantRule, Slots, call};
use crate::error::Result;
use crate::kernels::{for_each_chunk, rows};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor};

const FIXED: QuantRule = QuantRule::Combine { data: Slots::All, output: OutputRange::Fixed(0.0, 1.0) };

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "Hardmax", infer, eval: |c| eval(c, hard, hard), quant: KEEP, ..UNARY },
    OpDef { name: "LogSoftmax", infer, eval: |c| eval(c, log_f32, log_f64), quant: KEEP, ..UNARY },
    OpDef { name: "Softmax", infer, eval: |c| eval(c, soft_f32, soft_f64), quant: FIXED, ..UNARY },
];

pub(super) const REVERSE: &[Reverse] = &[
    Reverse::of("LogSoftmax", |b| reverse(b, |g, y, sum, _| g - y.exp() * sum)),
    Reverse::of("Softmax", |b| reverse(b, |g, y, _, along| y * (g - along))),
];

/// `slope(g, y, sum g, sum g * y)` of every element, the sums over its row.
fn reverse(b: &Back<'_>, slope: fn(f32, f32, f32, f32) -> f32) -> Result<Gradients> {
    let y = b.output(0)?;
    let over = split(b.opset, b.attrs.int("axis"), y.rank())?;
    let n: usize = y.shape()[over.clone()].iter().product();
    let inner: usize = y.shape()[over.end..].iter().product();
    let (v, g) = (y.to_f32s()?, b.gradient()?);
    let mut dx = vec![0.0f32; g.len()];
    let slab = (n * inner).max(1);
    for (dx, (y, g)) in dx.chunks_exact_mut(slab).zip(v.chunks_exact(slab).zip(g.chunks_exact(slab))) {
        for i in 0..inner {
            let (mut sum, mut along) = (0.0f64, 0.0f64);
            for at in (i..slab).step_by(inner) {
                sum += f64::from(g[at]);
                along += f64::from(g[at]) * f64::from(y[at]);
            }
            for at in (i..slab).step_by(inner) {
                dx[at] = slope(g[at], y[at], sum as f32, along as f32);
            }
        }
    }
    Ok(vec![b.made(0, || Ok(dx))?])
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    if let Some(rank) = ctx.rank(0) {
        split(ctx.opset, ctx.attrs.int("axis"), rank)?;
    }
    ctx.same_as(0);
    Ok(())
}

/// The dimensions that a row spans.
fn split(opset: i64, axis: Option<i64>, rank: usize) -> Result<std::ops::Range<usize>> {
    if opset >= 13 {
        if rank == 0 && matches!(axis, None | Some(-1 | 0)) {
            return Ok(0..0);
        }
        let a = call::axis(axis.unwrap_or(-1), rank)?;
        return Ok(a..a + 1);
    }
    let axis = axis.unwrap_or(1);
    // The split may lie behind the last dimension.
    Ok(if usize::try_from(axis).is_ok_and(|a| a == rank) { rank..rank } else { call::axis(axis, rank)?..rank })
}

/// Applies `rows(data, row_length)` along the axis.
fn eval(call: &mut Call<'_>, f32s: fn(&mut [f32], usize), f64s: fn(&mut [f64], usize)) -> Result<Vec<Item>> {
    let x = call.take(0)?;
    let over = split(call.opset, call.attrs.int("axis"), x.rank())?;
    let n: usize = x.shape()[over.clone()].iter().product();
    let inner: usize = x.shape()[over.end..].iter().product();
    let dtype = x.dtype();
    let y = match dtype {
        DType::F32 => along(x, n, inner, call.threads, f32s)?,
        DType::F64 => along(x, n, inner, call.threads, f64s)?,
        d if is_half(d) => cast(&along(cast(&x, DType::F32, true)?, n, inner, call.threads, f32s)?, d, true)?,
        d => return wrong_type(0, d, "a floating-point type"),
    };
    Ok(y.into())
}

/// Applies `rows` to rows of `n` elements that lie `inner` apart, in place.
fn along<T>(mut x: Tensor, n: usize, inner: usize, threads: usize, rows: fn(&mut [T], usize)) -> Result<Tensor>
where
    T: crate::tensor::Element + Copy,
{
    if x.is_empty() {
        return Ok(x);
    }
    let data = x.slice_mut::<T>()?;
    let split = |v: &mut [T]| {
        let threads = if v.len() >= PARALLEL_FROM / 4 { threads } else { 1 };
        for_each_chunk(threads, v, (16 * 1024usize).div_ceil(n) * n, &|_, c| rows(c, n));
    };
    if inner == 1 {
        split(data);
        return Ok(x);
    }
    // The rows are gathered, one slab at a time.
    let mut slab = vec![T::default(); n * inner];
    for part in data.chunks_exact_mut(n * inner) {
        for (i, row) in slab.chunks_exact_mut(n).enumerate() {
            for (j, v) in row.iter_mut().enumerate() {
                *v = part[j * inner + i];
            }
        }
        split(&mut slab);
        for (i, row) in slab.chunks_exact(n).enumerate() {
            for (j, v) in row.iter().enumerate() {
                part[j * inner + i] = *v;
            }
        }
    }
    Ok(x)
}

fn soft_f32(v: &mut [f32], n: usize) {
    rows::softmax(v, n, false);
}

fn log_f32(v: &mut [f32], n: usize) {
    rows::softmax(v, n, true);
}

fn soft_f64(v: &mut [f64], n: usize) {
    for row in v.chunks_exact_mut(n) {
        let m = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|x| *x = (*x - m).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
    }
}

fn log_f64(v: &mut [f64], n: usize) {
    for row in v.chunks_exact_mut(n) {
        let m = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let l = row.iter().map(|x| (x - m).exp()).sum::<f64>().ln();
        row.iter_mut().for_each(|x| *x = *x - m - l);
    }
}

/// 1 at the first largest element of the row, 0 elsewhere.
fn hard<T: Copy + PartialOrd + From<u8>>(v: &mut [T], n: usize) {
    for row in v.chunks_exact_mut(n) {
        let mut best = 0;
        for (i, x) in row.iter().enumerate() {
            if *x > row[best] {
                best = i;
            }
        }
        row.fill(T::from(0));
        row[best] = T::from(1);
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn along_an_axis() {
        let x = Tensor::of(&[2, 3], vec![0.0f32, 1.0, 2.0, 5.0, 5.0, 5.0]);
        let rows = vec![0.090_030_57, 0.244_728_48, 0.665_240_94, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0];
        let y = Tensor::of(&[2, 3], rows.clone());
        Case::new("Softmax", 13).input(x.clone()).tolerance(1e-6).expect(&[y.clone()]);
        Case::new("Softmax", 7).input(x.clone()).tolerance(1e-6).expect(&[y]);
        let logs: Vec<f32> = rows.iter().map(|x: &f32| x.ln()).collect();
        Case::new("LogSoftmax", 13).input(x.clone()).tolerance(1e-6).expect(&[Tensor::of(&[2, 3], logs)]);
        let y = Tensor::of(&[2, 3], vec![0.0f32, 0.0, 1.0, 1.0, 0.0, 0.0]);
        Case::new("Hardmax", 13).input(x.clone()).expect(&[y]);
        let s = |a: f32, b: f32| 1.0 / (1.0 + (b - a).exp());
        let y = [s(0.0, 5.0), s(1.0, 5.0), s(2.0, 5.0), s(5.0, 0.0), s(5.0, 1.0), s(5.0, 2.0)];
        Case::new("Softmax", 13)
            .attr("axis", 0i64)
            .input(x.clone())
            .tolerance(1e-6)
            .expect(&[Tensor::of(&[2, 3], y.to_vec())]);
        Case::new("Softmax", 13).attr("axis", 2i64).input(x.clone()).fails("axis 2 is out of range for rank 2");
        Case::new("Softmax", 13).input(Tensor::scalar(1i64)).fails("element type int64");
    }

    #[test]
    fn old_versions_flatten_behind_the_axis() {
        let x = Tensor::of(&[1, 2, 2], vec![0.0f32; 4]);
        Case::new("Softmax", 11).input(x.clone()).expect(&[Tensor::of(&[1, 2, 2], vec![0.25f32; 4])]);
        Case::new("Softmax", 13).input(x).expect(&[Tensor::of(&[1, 2, 2], vec![0.5f32; 4])]);
    }
}
