//! `AveragePool` — the average of each window.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__AveragePool.html> (opsets 1, 7, 10, 11, 19, 22)
//! Inputs: X `[N, C, D…]` of T. Output: Y `[N, C, O…]` of T. T: float16, bfloat16 (22), float, double.
//! `count_include_pad` from opset 7, `ceil_mode` from 10, `dilations` from 19.
//! Quantized: the output's range is observed.
//! Errors: fewer than one spatial dimension; a window that does not fit.

use super::floats::{FLOATS, from_f32s, same_dtype};
use super::max_pool::{infer_dims, sizes};
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, OutputRange, QuantRule, Slots};
use crate::error::Result;
use crate::kernels::pool::{divide, fold, sums};
use crate::kernels::reverse;
use crate::tensor::{DType, Tensor, buffer};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "AveragePool",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Combine { data: Slots::These(&[0]), output: OutputRange::Observed },
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("AveragePool", reverse)];

/// Each window's gradient is spread over its elements.
fn reverse(b: &Back<'_>) -> Result<Gradients> {
    let x = b.input(0)?;
    let (p, _) = sizes(b.attrs, x.shape())?;
    let divisors = p.divisors(b.int("count_include_pad", 0) != 0);
    let mut g = b.gradient()?.to_vec();
    for g in g.chunks_exact_mut(divisors.len().max(1)) {
        g.iter_mut().zip(&divisors).for_each(|(g, &n)| *g /= n.max(1) as f32);
    }
    let mut dx = vec![0.0f32; x.len()];
    reverse::spread_sums(b.threads, &p, &g, &mut dx);
    Ok(vec![b.made(0, || Ok(dx))?])
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = infer_dims(ctx)?;
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let dtype = same_dtype(&[("X", Some(x))], FLOATS)?;
    let (p, shape) = sizes(call.attrs, x.shape())?;
    // A window that lies in the padding alone has no elements, and the average 0.
    let divisors = p.divisors(call.flag("count_include_pad", false)).into_iter().map(|n| n.max(1));
    if dtype == DType::F64 {
        let divisors: Vec<f64> = divisors.map(|n| n as f64).collect();
        let mut y = vec![0.0f64; shape.iter().product()];
        fold(call.threads, &p, x.slice()?, &mut y, 0.0, |y, x| y + x);
        for y in y.chunks_exact_mut(divisors.len().max(1)) {
            y.iter_mut().zip(&divisors).for_each(|(y, n)| *y /= n);
        }
        return Ok(Tensor::new(&shape, y)?.into());
    }
    let divisors: Vec<f32> = divisors.map(|n| n as f32).collect();
    let mut y = buffer(shape.iter().product());
    sums(call.threads, &p, &x.to_f32s()?, &mut y);
    divide(&divisors, &mut y);
    Ok(from_f32s(dtype, &shape, y)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Tensor, cast};

    fn x() -> Tensor {
        Tensor::new(&[1, 1, 3, 3], (1..=9).map(|i| i as f32).collect()).unwrap()
    }

    fn y(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    #[test]
    fn averages_each_window() {
        for dtype in super::FLOATS {
            let c = |t: Tensor| cast::cast(&t, *dtype, true).unwrap();
            let case = || Case::new("AveragePool", 22).input(c(x())).attr("kernel_shape", vec![2i64, 2]);
            case().expect(&[c(y(&[1, 1, 2, 2], &[3., 4., 6., 7.]))]);
            case().attr("dilations", vec![2i64, 2]).expect(&[c(y(&[1, 1, 1, 1], &[5.]))]);
            let padded = || case().attr("pads", vec![1i64, 1, 0, 0]).attr("strides", vec![2i64, 2]);
            padded().expect(&[c(y(&[1, 1, 2, 2], &[1., 2.5, 5.5, 7.]))]);
            padded().attr("count_include_pad", 1i64).expect(&[c(y(&[1, 1, 2, 2], &[0.25, 1.25, 2.75, 7.]))]);
        }
    }

    #[test]
    fn a_last_window_that_leaves_the_padded_input_counts_what_lies_inside() {
        let case = || {
            Case::new("AveragePool", 19)
                .input(x())
                .attr("kernel_shape", vec![2i64, 2])
                .attr("strides", vec![2i64, 2])
                .attr("ceil_mode", 1i64)
        };
        case().expect(&[y(&[1, 1, 2, 2], &[3., 4.5, 7.5, 9.])]);
        case().attr("count_include_pad", 1i64).expect(&[y(&[1, 1, 2, 2], &[3., 4.5, 7.5, 9.])]);
    }

    #[test]
    fn contradictions_are_errors() {
        Case::new("AveragePool", 19).input(x()).fails("\"kernel_shape\" is missing");
        let x = Tensor::new(&[1, 1, 2], vec![1i64, 2]).unwrap();
        Case::new("AveragePool", 19).input(x).attr("kernel_shape", vec![2i64]).fails("input 0 (X)");
    }
}
