//! `LpPool` — the Lp norm of each window.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__LpPool.html> (opsets 1, 2, 11, 18, 22)
//! Inputs: X `[N, C, D…]` of T. Output: Y `[N, C, O…]` of T: `sum(|x|^p)^(1/p)`. T: float16, bfloat16 (22), float, double.
//! `p` is a float in opset 1; `ceil_mode` and `dilations` come with opset 18.
//! Quantized: the output's range is observed.
//! Errors: fewer than one spatial dimension; a window that does not fit; `p` below 1.

use super::floats::{FLOATS, from_f32s, same_dtype};
use super::max_pool::{infer_dims, sizes};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, OutputRange, QuantRule, Slots};
use crate::error::{Result, ensure};
use crate::kernels::pool::{fold, sums};
use crate::tensor::{DType, Tensor, buffer};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "LpPool",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Combine { data: Slots::These(&[0]), output: OutputRange::Observed },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = infer_dims(ctx)?;
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let dtype = same_dtype(&[("X", Some(x))], FLOATS)?;
    let (p, shape) = sizes(call.attrs, x.shape())?;
    let norm = call.attrs.int("p").map(|p| p as f64).or(call.attrs.float("p").map(f64::from)).unwrap_or(2.0);
    ensure!(norm >= 1.0, "attribute \"p\" is {norm}, expected at least 1");
    if dtype == DType::F64 {
        let powers: Vec<f64> = x.slice::<f64>()?.iter().map(|x| x.abs().powf(norm)).collect();
        let mut y = vec![0.0f64; shape.iter().product()];
        fold(call.threads, &p, &powers, &mut y, 0.0, |y, x| y + x);
        y.iter_mut().for_each(|y| *y = y.powf(1.0 / norm));
        return Ok(Tensor::new(&shape, y)?.into());
    }
    let norm = norm as f32;
    let powers: Vec<f32> = x.to_f32s()?.iter().map(|x| if norm == 2.0 { x * x } else { x.abs().powf(norm) }).collect();
    let mut y = buffer(shape.iter().product());
    sums(call.threads, &p, &powers, &mut y);
    y.iter_mut().for_each(|y| *y = if norm == 2.0 { y.sqrt() } else { y.powf(1.0 / norm) });
    Ok(from_f32s(dtype, &shape, y)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Tensor, cast};

    #[test]
    fn norms_of_windows() {
        let x = Tensor::new(&[1, 1, 4], vec![3.0f32, -4.0, 0.0, 2.0]).unwrap();
        for dtype in super::FLOATS {
            let c = |t: &Tensor| cast::cast(t, *dtype, true).unwrap();
            let case = || Case::new("LpPool", 22).input(c(&x)).attr("kernel_shape", vec![2i64]);
            case().expect(&[c(&Tensor::new(&[1, 1, 3], vec![5.0f32, 4.0, 2.0]).unwrap())]);
            case().attr("p", 1i64).expect(&[c(&Tensor::new(&[1, 1, 3], vec![7.0f32, 4.0, 2.0]).unwrap())]);
            case().attr("p", 0i64).fails("\"p\"");
        }
    }
}
