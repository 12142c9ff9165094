//! `LRN` — local response normalization across neighbouring channels.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__LRN.html> (opsets 1, 13)
//! Inputs: X `[N, C, D…]` of T. Output: Y like X: `X / (bias + alpha / size * sum(X^2))^beta`, the sum over `size`
//! channels around each one. T: float16, bfloat16 (13), float, double.
//! Quantized: stays float, since it divides by a power.
//! Errors: rank below 2; `size` missing or below 1.

use super::floats::{FLOATS, from_f32s, same_dtype};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, ensure};
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "LRN",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "divides by a power of its input" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.same_as(0);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let dtype = same_dtype(&[("X", Some(x))], FLOATS)?;
    let shape = x.shape();
    ensure!(shape.len() >= 2, "input 0 (X) has shape {shape:?}, expected at least rank 2");
    let size = call.required_int("size")?;
    ensure!(size >= 1, "attribute \"size\" is {size}, expected at least 1");
    let size = size as usize;
    let (alpha, beta, bias) = (call.float("alpha", 1e-4), call.float("beta", 0.75), call.float("bias", 1.0));
    let (channels, places) = (shape[1], shape[2..].iter().product::<usize>());
    if dtype == DType::F64 {
        let x = x.slice::<f64>()?;
        let (alpha, beta, bias) = (f64::from(alpha), f64::from(beta), f64::from(bias));
        let y = normalized(x, channels, places, size, |x, sum| x / (bias + alpha / size as f64 * sum).powf(beta));
        return Ok(Tensor::new(shape, y)?.into());
    }
    // beta = 0.75 is what networks use: two square roots instead of a power.
    let power = |b: f32| if beta == 0.75 { b.sqrt() * b.sqrt().sqrt() } else { b.powf(beta) };
    let scale = alpha / size as f32;
    let y = normalized(&x.to_f32s()?, channels, places, size, |x, sum| x / power(bias + scale * sum));
    Ok(from_f32s(dtype, shape, y)?.into())
}

fn normalized<T: Copy + Default + std::ops::Mul<Output = T> + std::ops::Add<Output = T>>(
    x: &[T],
    channels: usize,
    places: usize,
    size: usize,
    f: impl Fn(T, T) -> T,
) -> Vec<T> {
    let (before, after) = ((size - 1) / 2, size / 2);
    let mut y = Vec::with_capacity(x.len());
    let mut sums = vec![T::default(); places];
    for image in x.chunks_exact((channels * places).max(1)) {
        let channel = |c: usize| &image[c * places..(c + 1) * places];
        for c in 0..channels {
            sums.fill(T::default());
            for i in c.saturating_sub(before)..(c + after + 1).min(channels) {
                sums.iter_mut().zip(channel(i)).for_each(|(s, &x)| *s = *s + x * x);
            }
            y.extend(channel(c).iter().zip(&sums).map(|(&x, &s)| f(x, s)));
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Tensor, cast};

    #[test]
    fn an_even_size_looks_further_ahead_than_back() {
        let x = Tensor::new(&[1, 3, 1], vec![1.0f32, 2.0, 3.0]).unwrap();
        let y = Tensor::new(&[1, 3, 1], vec![1.0f32 / 6.0, 2.0 / 14.0, 3.0 / 10.0]).unwrap();
        for dtype in super::FLOATS {
            let c = |t: &Tensor| cast::cast(t, *dtype, true).unwrap();
            let case = || Case::new("LRN", 13).input(c(&x)).attr("alpha", 2.0f32).attr("beta", 1.0f32);
            case().attr("size", 2i64).tolerance(1e-3).expect(&[c(&y)]);
            case().attr("size", 0i64).fails("\"size\"");
        }
        let root = Tensor::new(&[1, 3, 1], vec![1.0f32 / 8.0, 2.0 / 8.0, 3.0 / 8.0]).unwrap();
        Case::new("LRN", 13).input(x).attr("size", 9i64).attr("alpha", 0.0f32).attr("bias", 16.0f32).expect(&[root]);
    }
}
