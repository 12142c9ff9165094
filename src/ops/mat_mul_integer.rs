//! `MatMulInteger` — exact product of 8-bit matrices, and ONNX Runtime's forms that scale it:
//! `MatMulIntegerToFloat` and `DynamicQuantizeMatMul`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__MatMulInteger.html> (opset 10),
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md> (com.microsoft 1)
//! `MatMulInteger`: A, B, a_zero_point?, b_zero_point? -> Y int32.
//! `MatMulIntegerToFloat`: A, B, a_scale, b_scale, a_zero_point?, b_zero_point?, bias? -> Y float.
//! `DynamicQuantizeMatMul`: A float, B, b_scale, b_zero_point?, bias? -> Y float; A is quantized to uint8 by its range.
//! A `[…, M, K]`, B `[…, K, N]` int8 or uint8; parameters one for all, or of A for each row, of B for each column.
//! Quantized: stays as it is.
//! Errors: other element types; shapes that do not multiply; parameters that do not fit.

use super::integers::{Along, centered, rescaled, scales};
use super::mat_mul::{Product, infer_dims};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, ensure};
use crate::kernels::integer::{PackedInts, gemm_exact};
use crate::tensor::{DType, Tensor, affine};

const KEEP: QuantRule = QuantRule::Keep { why: "is quantized already" };

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "MatMulInteger",
        domain: OpDomain::Onnx,
        since: 10,
        inputs: Arity::range(2, 4),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer: infer_integer,
        eval: integer,
        quant: KEEP,
    },
    OpDef {
        name: "MatMulIntegerToFloat",
        domain: OpDomain::Microsoft,
        since: 1,
        inputs: Arity::range(4, 7),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer: infer_float,
        eval: to_float,
        quant: KEEP,
    },
    OpDef {
        name: "DynamicQuantizeMatMul",
        domain: OpDomain::Microsoft,
        since: 1,
        inputs: Arity::range(3, 5),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer: infer_float,
        eval: dynamic,
        quant: KEEP,
    },
];

fn infer_integer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = infer_dims(ctx.shape(0), ctx.shape(1))?;
    ctx.set_tensor(0, Some(DType::I32), shape);
    Ok(())
}

fn infer_float(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = infer_dims(ctx.shape(0), ctx.shape(1))?;
    ctx.set_tensor(0, Some(DType::F32), shape);
    Ok(())
}

/// The exact product of centered values `a` with the matrices of input 1, which are packed once when constant.
pub(super) fn exact(
    call: &Call<'_>,
    p: &Product,
    a: &[f32],
    b: impl Fn() -> Result<Vec<f32>>,
    fixed: bool,
) -> Result<Vec<i32>> {
    let pack = || Ok(b()?.chunks_exact((p.k * p.n).max(1)).map(|b| PackedInts::new(b, p.k, p.n)).collect());
    let made;
    let packed: &Vec<PackedInts> = if fixed {
        call.shared(pack)?
    } else {
        made = pack()?;
        &made
    };
    let (am, cm) = (p.m * p.k, p.m * p.n);
    let mut y = vec![0i32; cm * p.batches.len()];
    if p.k > 0 {
        for (y, &(i, j)) in y.chunks_exact_mut(cm.max(1)).zip(&p.batches) {
            gemm_exact(call.threads, p.m, &a[i * am..][..am], &packed[j], y);
        }
    }
    Ok(y)
}

/// Whether every connected slot of these is a constant.
pub(super) fn fixed(call: &Call<'_>, slots: &[usize]) -> bool {
    slots.iter().all(|&s| call.inputs.get(s).is_none_or(Option::is_none) || call.is_constant(s))
}

fn product(call: &Call<'_>, a_zero: usize, b_zero: usize) -> Result<(Product, Vec<i32>)> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let p = Product::new(a.shape(), b.shape())?;
    let values = centered("input 0 (A)", a, call.optional(a_zero)?, Along::Rows)?;
    let b_zero_point = call.optional(b_zero)?;
    let pack = || centered("input 1 (B)", b, b_zero_point, Along::Columns);
    let y = exact(call, &p, &values, pack, fixed(call, &[1, b_zero]))?;
    Ok((p, y))
}

fn integer(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (p, y) = product(call, 2, 3)?;
    Ok(Tensor::new(&p.shape, y)?.into())
}

fn to_float(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (p, y) = product(call, 4, 5)?;
    let rows = scales("input 0 (A)", call.input(2)?, Along::Rows, call.input(0)?.shape())?;
    let columns = scales("input 1 (B)", call.input(3)?, Along::Columns, call.input(1)?.shape())?;
    let y = rescaled(&y, &p.shape, &rows, &columns, 1.0);
    Ok(Tensor::new(&p.shape, with_bias(y, call.optional(6)?, p.n)?)?.into())
}

/// Adds one value for each column.
fn with_bias(mut y: Vec<f32>, bias: Option<&Tensor>, n: usize) -> Result<Vec<f32>> {
    if let Some(bias) = bias {
        ensure!(bias.shape() == [n], "the bias has shape {:?}, expected [{n}]", bias.shape());
        let bias = bias.to_f32s()?;
        for y in y.chunks_exact_mut(n.max(1)) {
            y.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
        }
    }
    Ok(y)
}

fn dynamic(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let p = Product::new(a.shape(), b.shape())?;
    let a = a.slice::<f32>()?;
    // As `DynamicQuantizeLinear`: the range with 0 on 256 steps.
    let lo = a.iter().copied().fold(0.0f32, f32::min);
    let hi = a.iter().copied().fold(0.0f32, f32::max);
    let scale = if hi > lo { (hi - lo) / 255.0 } else { 1.0 };
    let zero = affine::quantize_one(-lo, scale, 0, 0, 255);
    let values: Vec<f32> = a.iter().map(|&x| (affine::quantize_one(x, scale, zero, 0, 255) - zero) as f32).collect();
    let zero_point = call.optional(3)?;
    let y = exact(call, &p, &values, || centered("input 1 (B)", b, zero_point, Along::Columns), fixed(call, &[1, 3]))?;
    let columns = scales("input 1 (B)", call.input(2)?, Along::Columns, b.shape())?;
    let y = rescaled(&y, &p.shape, &[scale], &columns, 1.0);
    Ok(Tensor::new(&p.shape, with_bias(y, call.optional(4)?, p.n)?)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Element, Tensor};

    fn t<T: Element>(shape: &[usize], v: &[T]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    fn a() -> Tensor {
        t(&[2, 2], &[11u8, 7, 3, 255])
    }

    fn b() -> Tensor {
        t(&[2, 2], &[1i8, -128, 4, 2])
    }

    #[test]
    fn integers_are_exact_with_all_forms_of_zero_points() {
        let case = || Case::new("MatMulInteger", 10).input(a()).input(b());
        case().expect(&[t(&[2, 2], &[39i32, -1394, 1023, 126])]);
        case().input(t(&[], &[1u8])).expect(&[t(&[2, 2], &[34i32, -1268, 1018, 252])]);
        case().input(t(&[2], &[1u8, 255])).expect(&[t(&[2, 2], &[34i32, -1268, -252, 32256])]);
        case().skip().input(t(&[2], &[1i8, 2])).expect(&[t(&[2, 2], &[21i32, -1430, 765, -390])]);
        let y = t(&[1, 2, 2], &[34i32, -1268, -252, 32256]);
        Case::new("MatMulInteger", 10)
            .input(a().reshaped(&[1, 2, 2]).unwrap())
            .input(b())
            .input(t(&[1, 2, 1], &[1u8, 255]))
            .expect(&[y]);
    }

    #[test]
    fn scaled_products() {
        let ms = |op: &str| Case::new(op, 1).domain("com.microsoft");
        ms("MatMulIntegerToFloat")
            .input(a())
            .input(b())
            .input(t(&[], &[0.5f32]))
            .input(t(&[2], &[1.0f32, 2.0]))
            .input(t(&[], &[1u8]))
            .skip()
            .input(t(&[2], &[1.0f32, 2.0]))
            .expect(&[t(&[2, 2], &[18.0f32, -1266.0, 510.0, 254.0])]);
        // -1 and 1.55 on 256 steps of 0.01: exact.
        ms("DynamicQuantizeMatMul")
            .input(t(&[1, 2], &[-1.0f32, 1.55]))
            .input(b())
            .input(t(&[], &[0.5f32]))
            .tolerance(1e-5)
            .expect(&[t(&[1, 2], &[2.6f32, 65.55])]);
    }

    #[test]
    fn contradictions_are_errors() {
        let case = || Case::new("MatMulInteger", 10).input(a());
        case().input(t(&[3, 2], &[0i8; 6])).fails("input 1 (B)");
        case().input(t(&[2, 2], &[0i32; 4])).fails("input 1 (B) has element type int32");
        case().input(b()).input(t(&[], &[0i8])).fails("zero point of input 0 (A) has element type int8");
        case().input(b()).input(t(&[3], &[0u8; 3])).fails("zero point of input 0 (A) has 3 elements");
    }
}
