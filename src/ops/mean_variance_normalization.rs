//! `MeanVarianceNormalization` and `LpNormalization` — scaling by statistics over axes.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__MeanVarianceNormalization.html> (opsets 9, 13),
//! `onnx__LpNormalization.html` (1, 22)
//! Input: X of floats, any shape that has the axes. Output: as X.
//! Quantized: no; square roots have no integer arithmetic.
//! Errors: an axis out of range; `p` other than 1 or 2.

use super::elementwise::{UNARY, is_half, map_tensor, scalars, zip_in_place};
use super::reduce::{Op, reduce};
use super::{Call, InferCtx, Item, OpDef, QuantRule, call};
use crate::error::{Result, bail};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor};

const WHY: QuantRule = QuantRule::Keep { why: "normalises: a mean and a square root have no integer arithmetic" };

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "LpNormalization", infer, eval: eval_lp, quant: WHY, ..UNARY },
    OpDef { name: "MeanVarianceNormalization", since: 9, infer, eval: eval_mvn, quant: WHY, ..UNARY },
];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    if let Some(rank) = ctx.rank(0) {
        match (ctx.attrs.ints("axes"), ctx.attrs.int("axis")) {
            (Some(axes), _) => drop(call::axes(axes, rank)?),
            (_, Some(axis)) => drop(call::axis(axis, rank)?),
            _ => {}
        }
    }
    ctx.same_as(0);
    Ok(())
}

fn zip(a: Tensor, b: Tensor, threads: usize, f: fn(f64, f64) -> f64) -> Result<Tensor> {
    match a.dtype() {
        DType::F64 => zip_in_place::<f64>(a, b, threads, f),
        _ => zip_in_place::<f32>(a, b, threads, |x, y| f(x.into(), y.into()) as f32),
    }
}

scalars! {
    /// The square root, and a little more, so that a constant channel does not divide by 0.
    Deviation {} |x| x.sqrt() + 1e-9, x.sqrt() + 1e-9;
    Square {} |x| x * x, x * x;
}

fn widened(call: &mut Call<'_>) -> Result<(Tensor, DType)> {
    let x = call.take(0)?;
    let dtype = x.dtype();
    Ok((if is_half(dtype) { cast(&x, DType::F32, true)? } else { x }, dtype))
}

fn eval_mvn(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, dtype) = widened(call)?;
    let axes = call::axes(call.attrs.ints("axes").unwrap_or(&[0, 2, 3]), x.rank())?;
    let t = call.threads;
    let mean = reduce(&x, &axes, Op::Mean, t)?;
    let centered = zip(x, mean, t, |x, m| x - m)?;
    let variance = reduce(&map_tensor(centered.clone(), t, Square {})?, &axes, Op::Mean, t)?;
    let y = zip(centered, map_tensor(variance, 1, Deviation {})?, t, |x, d| x / d)?;
    Ok(cast(&y, dtype, true)?.into())
}

fn eval_lp(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, dtype) = widened(call)?;
    let axis = call::axis(call.int("axis", -1), x.rank())?;
    let op = match call.int("p", 2) {
        1 => Op::L1,
        2 => Op::L2,
        p => bail!("attribute \"p\" is {p}, expected 1 or 2"),
    };
    let norm = reduce(&x, &[axis], op, call.threads)?;
    let y = zip(x, norm, call.threads, |x, n| if n == 0.0 { 0.0 } else { x / n })?;
    Ok(cast(&y, dtype, true)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn mean_and_variance() {
        let x = Tensor::of(&[2, 1, 1, 1], vec![1.0f32, 3.0]);
        let y = Tensor::of(&[2, 1, 1, 1], vec![-1.0f32, 1.0]);
        Case::new("MeanVarianceNormalization", 13).input(x.clone()).tolerance(1e-6).expect(&[y]);
        Case::new("MeanVarianceNormalization", 13).attr("axes", vec![4i64]).input(x).fails("axis 4 is out of range");
    }

    #[test]
    fn norms() {
        let x = Tensor::of(&[2, 2], vec![3.0f32, 4.0, 0.0, 0.0]);
        let case = || Case::new("LpNormalization", 22).input(x.clone()).tolerance(1e-6);
        case().expect(&[Tensor::of(&[2, 2], vec![0.6f32, 0.8, 0.0, 0.0])]);
        case().attr("p", 1i64).expect(&[Tensor::of(&[2, 2], vec![3.0f32 / 7.0, 4.0 / 7.0, 0.0, 0.0])]);
        case().attr("p", 3i64).fails("\"p\" is 3");
    }
}
