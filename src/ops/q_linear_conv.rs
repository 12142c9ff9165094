//! `ConvInteger` and `QLinearConv` — exact convolution of 8-bit tensors, as int32 or quantized again.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ConvInteger.html>, `QLinearConv` (opset 10)
//! `ConvInteger`: x, w, x_zero_point?, w_zero_point? -> y int32.
//! `QLinearConv`: x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, B? int32 `[M]` -> y. The
//! bias has the scale x_scale * w_scale.
//! x `[N, C, D…]`, w `[M, C/group, K…]` int8 or uint8; the weight's parameters one for all or one for each filter.
//! Padding is the zero point, that is a real 0.
//! Quantized: stays as it is.
//! Errors: those of a float convolution; other element types; parameters that do not fit.

use super::conv::{geometry, infer_dims, output_shape};
use super::integers::{Along, centered, one_scale, requantized, scales};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, ensure};
use crate::kernels::conv::Geometry;
use crate::kernels::integer::conv_exact;
use crate::tensor::{DType, Tensor};

const KEEP: QuantRule = QuantRule::Keep { why: "is quantized already" };

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "ConvInteger",
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
        name: "QLinearConv",
        domain: OpDomain::Onnx,
        since: 10,
        inputs: Arity::range(8, 9),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer: infer_linear,
        eval: linear,
        quant: KEEP,
    },
];

fn infer_integer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = infer_dims(ctx.attrs, ctx.shape(0), ctx.shape(1))?;
    ctx.set_tensor(0, Some(DType::I32), shape);
    Ok(())
}

fn infer_linear(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = infer_dims(ctx.attrs, ctx.shape(0), ctx.shape(3))?;
    ctx.set_tensor(0, ctx.dtype(7), shape);
    Ok(())
}

/// The exact sums, with slots of x, w and their zero points.
fn sums(call: &Call<'_>, x: usize, w: usize, x_zero: usize, w_zero: usize) -> Result<(Geometry, Vec<i32>)> {
    let (x, w) = ((format!("input {x} (x)"), call.input(x)?), (format!("input {w} (w)"), call.input(w)?));
    let g = geometry(call.attrs, (&x.0, x.1.shape()), (&w.0, w.1.shape()))?;
    if let Some(zero) = call.optional(x_zero)? {
        ensure!(zero.len() == 1, "the zero point of {} has shape {:?}, expected one element", x.0, zero.shape());
    }
    let n = crate::tensor::count(&output_shape(&g))?;
    let values = centered(&x.0, x.1, call.optional(x_zero)?, Along::First)?;
    let weights = centered(&w.0, w.1, call.optional(w_zero)?, Along::First)?;
    let mut y = vec![0i32; n];
    conv_exact(call.threads, &g, &values, &weights, &mut y);
    Ok((g, y))
}

fn integer(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (g, y) = sums(call, 0, 1, 2, 3)?;
    Ok(Tensor::new(&output_shape(&g), y)?.into())
}

fn linear(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (g, mut y) = sums(call, 0, 3, 2, 5)?;
    let shape = output_shape(&g);
    let size: usize = g.output.iter().product::<usize>().max(1);
    if let Some(b) = call.optional(8)? {
        ensure!(b.shape() == [g.filters], "input 8 (B) has shape {:?}, expected [{}]", b.shape(), g.filters);
        let b = b.slice::<i32>()?;
        for (y, b) in y.chunks_exact_mut(size).zip(b.iter().cycle()) {
            y.iter_mut().for_each(|y| *y = y.wrapping_add(*b));
        }
    }
    let x_scale = one_scale("input 1 (x_scale)", call.input(1)?)?;
    let w_scale = scales("input 3 (w)", call.input(4)?, Along::First, call.input(3)?.shape())?;
    let y_scale = one_scale("input 6 (y_scale)", call.input(6)?)?;
    let mut units = Vec::with_capacity(y.len());
    for (i, y) in y.chunks_exact(size).enumerate() {
        let factor = x_scale * w_scale[if w_scale.len() == 1 { 0 } else { i % g.filters }] / y_scale;
        units.extend(y.iter().map(|&y| y as f32 * factor));
    }
    Ok(requantized("input 7 (y_zero_point)", &shape, &units, call.input(7)?)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Element, Tensor};

    fn t<T: Element>(shape: &[usize], v: &[T]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    #[test]
    fn integers_are_exact_and_padding_is_a_real_zero() {
        let case = || {
            Case::new("ConvInteger", 10)
                .input(t(&[1, 1, 3], &[2u8, 4, 255]))
                .input(t(&[2, 1, 2], &[1i8, 1, -128, 2]))
                .attr("pads", vec![1i64, 0])
        };
        case().expect(&[t(&[1, 2, 3], &[2i32, 6, 259, 4, -248, -2])]);
        case().input(t(&[], &[2u8])).expect(&[t(&[1, 2, 3], &[0i32, 2, 255, 0, 4, 250])]);
        case().input(t(&[], &[2u8])).input(t(&[2], &[1i8, 2])).expect(&[t(&[1, 2, 3], &[0i32, 0, 0, 0, 0, -260])]);
    }

    fn linear(w_scale: Tensor) -> Case {
        Case::new("QLinearConv", 10)
            .input(t(&[1, 1, 2], &[2u8, 4]))
            .input(t(&[], &[0.5f32]))
            .input(t(&[], &[1u8]))
            .input(t(&[2, 1, 1], &[2i8, -4]))
            .input(w_scale)
            .input(t(&[], &[0i8]))
            .input(t(&[], &[1.0f32]))
            .input(t(&[], &[3i8]))
    }

    #[test]
    fn scaled_for_all_or_for_each_filter_with_bias() {
        linear(t(&[], &[1.0f32])).expect(&[t(&[1, 2, 2], &[4i8, 6, 1, -3])]);
        linear(t(&[2], &[1.0f32, 100.0])).expect(&[t(&[1, 2, 2], &[4i8, 6, -128, -128])]);
        linear(t(&[], &[1.0f32])).input(t(&[2], &[2i32, 4])).expect(&[t(&[1, 2, 2], &[5i8, 7, 3, -1])]);
    }

    #[test]
    fn contradictions_are_errors() {
        linear(t(&[3], &[1.0f32; 3])).fails("scale of input 3 (w)");
        linear(t(&[], &[1.0f32])).input(t(&[3], &[0i32; 3])).fails("input 8 (B)");
        Case::new("ConvInteger", 10).input(t(&[1, 1, 1], &[0i32])).input(t(&[1, 1, 1], &[0i8])).fails("input 0 (x)");
    }
}
