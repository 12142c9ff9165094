//! `Range` — `start`, `start + delta`, … up to but without `limit`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Range.html> (opsets 11, 27)
//! Inputs: start, limit, delta, scalars of one type: float, double, int16, int32, int64; float16, bfloat16 (27).
//! Output: `[max(0, ceil((limit - start) / delta))]`. 16-bit floats are computed in float (stash_type 1) or double.
//! Quantized: gives positions, so nothing.
//! Errors: delta is 0; more elements than fit; an input is no scalar.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, bail, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::cast::from_f64s;
use crate::tensor::{DType, Tensor, cast};

const RANGE: OpDef = OpDef {
    name: "Range",
    domain: OpDomain::Onnx,
    since: 11,
    inputs: Arity::exactly(3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "gives a sequence of numbers" },
};

pub(super) const OPS: &[OpDef] = &[RANGE, OpDef { since: 27, ..RANGE }];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = (0..3).find_map(|i| ctx.dtype(i));
    let mut n = Dim::Unknown;
    if let (Some(a), Some(b), Some(c)) = (ctx.constant(0), ctx.constant(1), ctx.constant(2)) {
        n = Dim::Known(range(a, b, c, 1)?.len());
    } else if let (Some(a), Some(b), Some(c)) = (ctx.values(0), ctx.values(1), ctx.values(2))
        && let ([a], [b], Some(step @ 1..)) = (a.as_slice(), b.as_slice(), c.first().and_then(sym::constant))
    {
        // Rounded up; a negative length cannot be told from a symbol, and models do not make one.
        let length = sym::sub(b, a);
        n = sym::as_size(&sym::floor_div(&sym::add(&length, &sym::of_int(step - 1)), &sym::of_int(step)));
    }
    ctx.set_tensor(0, dtype, Some(vec![n]));
    Ok(())
}

fn range(start: &Tensor, limit: &Tensor, delta: &Tensor, stash: i64) -> Result<Tensor> {
    for (i, t) in [start, limit, delta].into_iter().enumerate() {
        ensure!(t.len() == 1, "input {i} has shape {:?}, expected a scalar", t.shape());
        ensure!(t.dtype() == start.dtype(), "input {i} has type {}, expected {}", t.dtype(), start.dtype());
    }
    const MAX: f64 = (1u64 << 36) as f64;
    if start.dtype().is_integer() {
        let (a, b, d) = (start.to_i64()?, limit.to_i64()?, delta.to_i64()?);
        ensure!(d != 0, "input 2 (delta) is 0");
        let span = if d > 0 { i128::from(b) - i128::from(a) } else { i128::from(a) - i128::from(b) };
        let n = if span <= 0 { 0 } else { span.unsigned_abs().div_ceil(i128::from(d).unsigned_abs()) };
        ensure!(n as f64 <= MAX, "{n} elements are too many");
        let v = Tensor::vector((0..n as i64).map(|i| a + i * d).collect::<Vec<i64>>());
        return cast::cast(&v, start.dtype(), true);
    }
    let (a, b, d) = (start.to_f64()?, limit.to_f64()?, delta.to_f64()?);
    ensure!(d != 0.0, "input 2 (delta) is 0");
    let n = ((b - a) / d).ceil().max(0.0);
    ensure!(n <= MAX, "{n} elements are too many");
    let n = n as usize;
    match start.dtype() {
        DType::F64 => Ok(Tensor::vector((0..n).map(|i| a + i as f64 * d).collect::<Vec<f64>>())),
        DType::F32 => Ok(Tensor::vector((0..n).map(|i| a as f32 + i as f32 * d as f32).collect::<Vec<f32>>())),
        t @ (DType::F16 | DType::BF16) => {
            let single = |i: usize| f64::from(a as f32 + i as f32 * d as f32);
            let double = |i: usize| a + i as f64 * d;
            let v = (0..n).map(|i| if stash == i64::from(DType::F64.code()) { double(i) } else { single(i) }).collect();
            from_f64s(t, &[n], v)
        }
        t => bail!("input 0 has type {t}, expected a number type"),
    }
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let stash = call.int("stash_type", 1);
    Ok(range(call.input(0)?, call.input(1)?, call.input(2)?, stash).context("Range")?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    fn case(a: Tensor, b: Tensor, d: Tensor) -> Case {
        Case::new("Range", 11).input(a).input(b).input(d)
    }

    #[test]
    fn counts() {
        let i = |x: i32| Tensor::scalar(x);
        case(i(10), i(4), i(-2)).expect(&[Tensor::vector(vec![10, 8, 6i32])]);
        case(i(10), i(4), i(2)).expect(&[Tensor::vector(Vec::<i32>::new())]);
        let f = |x: f32| Tensor::scalar(x);
        case(f(1.0), f(5.0), f(2.0)).expect(&[Tensor::vector(vec![1.0f32, 3.0])]);
        case(i(0), i(4), i(0)).fails("delta");
        case(f(0.0), f(1e30), f(1.0)).fails("too many");
        case(i(0), Tensor::vector(vec![1, 2]), i(1)).fails("expected a scalar");
        case(i(0), f(1.0), i(1)).fails("has type float");
    }
}
