//! `Where` — elements of X where the condition holds, else of Y.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Where.html> (opsets 9, 16)
//! Inputs: condition bool, X, Y of T, broadcast. Output: of T, the broadcast shape. T: every type.
//! Quantized: X and Y are data; the output's range is observed.
//! Errors: X and Y of different types; shapes that do not broadcast.

use super::elementwise::{infer_same_dtype, is_unique};
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, OutputRange, QuantRule, Slots};
use crate::error::{Result, ensure};
use crate::ir::Dim;
use crate::tensor::broadcast::{broadcast_all, for_each_row};
use crate::tensor::{Element, Tensor};
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Where",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Combine { data: Slots::These(&[1, 2]), output: OutputRange::Observed },
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Where", |b| b.moved(&[1, 2]))];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = infer_same_dtype(ctx, 1..3)?;
    let shape = ctx.broadcast(0..3)?;
    ctx.set_tensor(0, dtype, shape);
    // Shapes chosen by a condition that is known, as in exported `expand`.
    let (Some(c), Some(x), Some(y)) = (condition(ctx), ctx.values(1), ctx.values(2)) else { return Ok(()) };
    let n = c.len().max(x.len()).max(y.len());
    let fits = |len: usize| len == 1 || len == n;
    if fits(c.len()) && fits(x.len()) && fits(y.len()) {
        let at = |v: &[Dim], i: usize| v[if v.len() == 1 { 0 } else { i }].clone();
        let choose = |i: usize| match at(&c, i) {
            Dim::Known(0) => at(&y, i),
            Dim::Known(_) => at(&x, i),
            _ if at(&x, i) == at(&y, i) => at(&x, i),
            _ => Dim::Unknown,
        };
        let out = (0..n).map(choose).collect();
        ctx.set_values(0, out);
    }
    Ok(())
}

/// The elements of the condition as 1 and 0: of a constant, or of a comparison of shapes.
fn condition(ctx: &InferCtx<'_>) -> Option<Vec<Dim>> {
    match ctx.constant(0) {
        Some(c) => Some(c.slice::<bool>().ok()?.iter().map(|&c| Dim::Known(c.into())).collect()),
        None => ctx.values(0),
    }
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (c, x, y) = (call.take(0)?, call.take(1)?, call.take(2)?);
    ensure!(x.dtype() == y.dtype(), "input 2 has element type {}, expected {} as input 1", y.dtype(), x.dtype());
    let shape = broadcast_all([c.shape(), x.shape(), y.shape()])?;
    let out = with_data!(x.data(), T, _b => choose::<T>(&shape, &c, x, y)?);
    Ok(out.into())
}

fn choose<T: Element>(shape: &[usize], c: &Tensor, mut x: Tensor, mut y: Tensor) -> Result<Tensor> {
    let dtype = x.dtype();
    let cond = c.slice::<bool>()?;
    // In place over the operand that has the result's shape: the other's elements are copied in.
    let y_is_base = y.shape() == shape && is_unique::<T>(&y);
    if y_is_base || (x.shape() == shape && is_unique::<T>(&x)) {
        if y_is_base {
            std::mem::swap(&mut x, &mut y);
        }
        let base = x.slice_mut::<T>()?;
        let other = y.slice::<T>()?;
        for_each_row(shape, [c.shape(), y.shape()], |o, [ic, iy], n, [sc, sy]| {
            for (i, b) in base[o..o + n].iter_mut().enumerate() {
                if cond[ic + i * sc] == y_is_base {
                    *b = other[iy + i * sy].clone();
                }
            }
        });
        return Ok(x);
    }
    let mut out = vec![T::default(); crate::tensor::count(shape)?];
    let (vx, vy) = (x.slice::<T>()?, y.slice::<T>()?);
    for_each_row(shape, [c.shape(), x.shape(), y.shape()], |o, [ic, ix, iy], n, [sc, sx, sy]| {
        for (i, out) in out[o..o + n].iter_mut().enumerate() {
            let v = if cond[ic + i * sc] { &vx[ix + i * sx] } else { &vy[iy + i * sy] };
            out.clone_from(v);
        }
    });
    Tensor::new(shape, out)?.retyped(dtype)
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn chooses_and_broadcasts() {
        let c = Tensor::of(&[2, 1], vec![true, false]);
        let (x, y) = (Tensor::vector(vec![1i64, 2]), Tensor::scalar(9i64));
        let expected = Tensor::of(&[2, 2], vec![1i64, 2, 9, 9]);
        Case::new("Where", 16).input(c.clone()).input(x).input(y.clone()).expect(&[expected]);
        let full = || Tensor::of(&[2, 2], vec![1i64, 2, 3, 4]);
        let expected = Tensor::of(&[2, 2], vec![1i64, 2, 9, 9]);
        Case::new("Where", 16).input(c.clone()).input(full()).input(y.clone()).expect(&[expected]);
        let expected = Tensor::of(&[2, 2], vec![9i64, 9, 3, 4]);
        Case::new("Where", 16).input(c.clone()).input(y).input(full()).expect(&[expected]);
        let s = |s: &str| Tensor::scalar(s.to_owned());
        Case::new("Where", 16).input(Tensor::scalar(false)).input(s("a")).input(s("b")).expect(&[s("b")]);
        Case::new("Where", 16)
            .input(c)
            .input(s("a"))
            .input(Tensor::scalar(1i64))
            .fails("input 2 has element type int64");
        Case::new("Where", 16).input(s("a")).input(s("a")).input(s("a")).fails("expected bool");
    }
}
