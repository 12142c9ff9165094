//! `QLinearMatMul` — product of quantized matrices, quantized; and ONNX Runtime's `QGemm`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html> (opsets 10, 21),
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md> (com.microsoft 1)
//! `QLinearMatMul`: a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point -> y.
//! a `[…, M, K]`, b `[…, K, N]` int8, uint8 or (21) float8; scales float or (21) float16, bfloat16; parameters one for
//! all, or of a for each row, of b for each column.
//! `QGemm`: A, a_scale, a_zero_point, B, b_scale, b_zero_point, C? int32 `[N]` or `[M, N]`, y_scale?, y_zero_point? -> Y,
//! which is float without y_scale.
//! Quantized: stays as it is.
//! Errors: other element types; shapes that do not multiply; parameters that do not fit.

use super::integers::{Along, centered, one_scale, requantized, rescaled, scales};
use super::mat_mul::{Product, infer_dims, product};
use super::mat_mul_integer::{exact, fixed};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, ensure};
use crate::ir::Dim;
use crate::tensor::broadcast::{broadcast, for_each_row};
use crate::tensor::{DType, Tensor};

const KEEP: QuantRule = QuantRule::Keep { why: "is quantized already" };

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "QLinearMatMul",
        domain: OpDomain::Onnx,
        since: 10,
        inputs: Arity::exactly(8),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer: infer_matmul,
        eval: matmul,
        quant: KEEP,
    },
    OpDef {
        name: "QLinearMatMul",
        domain: OpDomain::Microsoft,
        since: 1,
        inputs: Arity::exactly(8),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer: infer_matmul,
        eval: matmul,
        quant: KEEP,
    },
    OpDef {
        name: "QGemm",
        domain: OpDomain::Microsoft,
        since: 1,
        inputs: Arity::range(6, 9),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer: infer_gemm,
        eval: gemm,
        quant: KEEP,
    },
];

fn infer_matmul(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = infer_dims(ctx.shape(0), ctx.shape(3))?;
    ctx.set_tensor(0, ctx.dtype(7), shape);
    Ok(())
}

fn matmul(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (a, b) = (call.input(0)?, call.input(3)?);
    let p = Product::new(a.shape(), b.shape())?;
    let values = centered("input 0 (a)", a, Some(call.input(2)?), Along::Rows)?;
    let b_zero = call.input(5)?;
    let pack = || centered("input 3 (b)", b, Some(b_zero), Along::Columns);
    let rows = scales("input 0 (a)", call.input(1)?, Along::Rows, a.shape())?;
    let columns = scales("input 3 (b)", call.input(4)?, Along::Columns, b.shape())?;
    let y_scale = one_scale("input 6 (y_scale)", call.input(6)?)?;
    let x = if a.dtype().is_float8() || b.dtype().is_float8() {
        let mut x = product(call.threads, &p, &values, None, || Ok(pack()?.into()))?;
        let factors = rescaled(&vec![1; x.len()], &p.shape, &rows, &columns, 1.0 / y_scale);
        x.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
        x
    } else {
        let sums = exact(call, &p, &values, pack, fixed(call, &[3, 5]))?;
        rescaled(&sums, &p.shape, &rows, &columns, 1.0 / y_scale)
    };
    Ok(requantized("input 7 (y_zero_point)", &p.shape, &x, call.input(7)?)?.into())
}

fn infer_gemm(ctx: &mut InferCtx<'_>) -> Result<()> {
    let matrix = |slot: usize, name: &str, flag: &str| -> Result<(Dim, Dim)> {
        let Some(s) = ctx.shape(slot) else { return Ok((Dim::Unknown, Dim::Unknown)) };
        ensure!(s.len() == 2, "input {slot} ({name}) has rank {}, expected 2", s.len());
        let transposed = ctx.attrs.int(flag).unwrap_or(0) != 0;
        Ok(if transposed { (s[1].clone(), s[0].clone()) } else { (s[0].clone(), s[1].clone()) })
    };
    let ((m, _), (_, n)) = (matrix(0, "A", "transA")?, matrix(3, "B", "transB")?);
    let dtype = if ctx.has(7) { ctx.dtype(8) } else { Some(DType::F32) };
    ctx.set_tensor(0, dtype, Some(vec![m, n]));
    Ok(())
}

fn gemm(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (a, b) = (call.input(0)?, call.input(3)?);
    ensure!(a.rank() == 2, "input 0 (A) has shape {:?}, expected rank 2", a.shape());
    ensure!(b.rank() == 2, "input 3 (B) has shape {:?}, expected rank 2", b.shape());
    let flip = |s: &[usize], flag: bool| if flag { [s[1], s[0]] } else { [s[0], s[1]] };
    let (ta, tb) = (call.flag("transA", false), call.flag("transB", false));
    let (a_shape, b_shape) = (flip(a.shape(), ta), flip(b.shape(), tb));
    let p = Product::new(&a_shape, &b_shape)?;
    let turn = |v: Vec<f32>, s: &[usize], flag: bool| if flag { super::gemm::transposed(&v, s[0], s[1]) } else { v };
    let one = call.input(2)?;
    ensure!(one.len() == 1, "input 2 (a_zero_point) has shape {:?}, expected one element", one.shape());
    let values = turn(centered("input 0 (A)", a, Some(one), Along::Rows)?, a.shape(), ta);
    let b_zero = call.input(5)?;
    // One parameter for each column of B': with transB, for each row of B.
    let along = if tb { Along::First } else { Along::Columns };
    let pack = || Ok(turn(centered("input 3 (B)", b, Some(b_zero), along)?, b.shape(), tb));
    let mut sums = exact(call, &p, &values, pack, fixed(call, &[3, 5]))?;
    if let Some(c) = call.optional(6)? {
        let fits = broadcast(c.shape(), &[p.m, p.n]).is_ok_and(|s| s.as_slice() == [p.m, p.n]);
        ensure!(fits, "input 6 (C) has shape {:?}, which does not broadcast to [{}, {}]", c.shape(), p.m, p.n);
        let c32 = c.slice::<i32>()?;
        for_each_row(&[p.m, p.n], [c.shape()], |at, [from], len, [step]| {
            for (i, y) in sums[at..at + len].iter_mut().enumerate() {
                *y = y.wrapping_add(c32[from + i * step]);
            }
        });
    }
    let a_scale = one_scale("input 1 (a_scale)", call.input(1)?)?;
    let columns = scales("input 3 (B)", call.input(4)?, Along::Columns, &b_shape)?;
    let alpha = call.float("alpha", 1.0);
    let Some(y_scale) = call.optional(7)? else {
        let y = rescaled(&sums, &p.shape, &[a_scale], &columns, alpha);
        return Ok(Tensor::new(&p.shape, y)?.into());
    };
    let factor = alpha / one_scale("input 7 (y_scale)", y_scale)?;
    let x = rescaled(&sums, &p.shape, &[a_scale], &columns, factor);
    Ok(requantized("input 8 (y_zero_point)", &p.shape, &x, call.input(8)?)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{DType, Element, Tensor, cast};

    fn t<T: Element>(shape: &[usize], v: &[T]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    fn matmul(b_scale: Tensor, y_scale: f32) -> Case {
        Case::new("QLinearMatMul", 21)
            .input(t(&[1, 2], &[5u8, 1]))
            .input(t(&[], &[0.5f32]))
            .input(t(&[], &[1u8]))
            .input(t(&[2, 2], &[3i8, -3, 9, 9]))
            .input(b_scale)
            .input(t(&[], &[1i8]))
            .input(t(&[], &[y_scale]))
            .input(t(&[], &[10u8]))
    }

    #[test]
    fn products_are_rounded_half_to_even_and_saturate() {
        // Sums: 4 * 2 = 8 and 4 * -4 = -16.
        matmul(t(&[], &[1.0f32]), 8.0).expect(&[t(&[1, 2], &[10u8, 9])]);
        matmul(t(&[2], &[3.0f32, 1.0]), 8.0).expect(&[t(&[1, 2], &[12u8, 9])]);
        matmul(t(&[], &[1.0f32]), 0.01).expect(&[t(&[1, 2], &[255u8, 0])]);
        let half = cast::cast(&t(&[], &[1.0f32]), DType::F16, true).unwrap();
        matmul(half, 8.0).expect(&[t(&[1, 2], &[10u8, 9])]);
        matmul(t(&[3], &[1.0f32; 3]), 8.0).fails("scale of input 3 (b)");
    }

    #[test]
    fn eight_bit_floats() {
        let f8 = |v: f32, shape: &[usize]| cast::cast(&t(shape, &[v]), DType::F8E4M3FN, true).unwrap();
        Case::new("QLinearMatMul", 21)
            .input(f8(3.0, &[1, 1]))
            .input(t(&[], &[0.5f32]))
            .input(f8(0.0, &[]))
            .input(f8(-2.0, &[1, 1]))
            .input(t(&[], &[2.0f32]))
            .input(f8(0.0, &[]))
            .input(t(&[], &[1.5f32]))
            .input(f8(0.0, &[]))
            .expect(&[f8(-4.0, &[1, 1])]);
    }

    #[test]
    fn gemm_with_bias_quantized_or_float() {
        let case = |tb: i64| {
            Case::new("QGemm", 1)
                .domain("com.microsoft")
                .attr("transB", tb)
                .attr("alpha", 2.0f32)
                .input(t(&[1, 2], &[5u8, 1]))
                .input(t(&[], &[0.5f32]))
                .input(t(&[], &[1u8]))
                .input(if tb == 1 { t(&[2, 2], &[3i8, 9, -3, 9]) } else { t(&[2, 2], &[3i8, -3, 9, 9]) })
                .input(t(&[2], &[1.0f32, 2.0]))
                .input(t(&[2], &[1i8, 1]))
                .input(t(&[2], &[2i32, 1]))
        };
        for tb in [0, 1] {
            case(tb).expect(&[t(&[1, 2], &[10.0f32, -30.0])]);
            case(tb).input(t(&[], &[4.0f32])).input(t(&[], &[0i8])).expect(&[t(&[1, 2], &[2i8, -8])]);
        }
    }
}
