//! `GlobalAveragePool`, `GlobalMaxPool`, `GlobalLpPool` — one number for each channel.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html>, `GlobalMaxPool` (opsets 1, 22), `GlobalLpPool`
//! (opsets 1, 2, 22)
//! Inputs: X `[N, C, D…]` of T. Output: Y `[N, C, 1…]` of T. T: float16, bfloat16 (22), float, double.
//! Quantized: a maximum selects elements; of averages and norms the output's range is observed.
//! Errors: rank below 2.

use super::floats::{FLOATS, from_f32s, same_dtype};
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, OutputRange, QuantRule, Slots};
use crate::error::{Result, bail, ensure};
use crate::ir::Dim;
use crate::kernels::pool::{maximum, sum};
use crate::kernels::{self, for_each};
use crate::tensor::{DType, Tensor};

const OBSERVED: QuantRule = QuantRule::Combine { data: Slots::All, output: OutputRange::Observed };

const fn def(name: &'static str, eval: fn(&mut Call<'_>) -> Result<Vec<Item>>, quant: QuantRule) -> OpDef {
    OpDef {
        name,
        domain: OpDomain::Onnx,
        since: 1,
        inputs: Arity::exactly(1),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer,
        eval,
        quant,
    }
}

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "GlobalAveragePool", ..def("", average, OBSERVED) },
    OpDef { name: "GlobalMaxPool", ..def("", max, QuantRule::Share) },
    // Opset 1 has `p` as a float, later ones as an integer; either is taken.
    OpDef { name: "GlobalLpPool", ..def("", norm, OBSERVED) },
];

pub(super) const REVERSE: &[Reverse] = &[
    Reverse::of("GlobalAveragePool", |b| reverse(b, |x, g| x.fill(g / x.len() as f32))),
    Reverse::of("GlobalMaxPool", |b| reverse(b, reverse_max)),
];

/// `spread(x, g)` puts the gradient of each element into the place of the channel's elements.
fn reverse(b: &Back<'_>, spread: fn(&mut [f32], f32)) -> Result<Gradients> {
    let x = b.input(0)?;
    let size: usize = x.shape()[2..].iter().product();
    let mut dx = x.to_f32s()?.into_owned();
    dx.chunks_exact_mut(size.max(1)).zip(b.gradient()?).for_each(|(x, &g)| spread(x, g));
    Ok(vec![b.made(0, || Ok(dx))?])
}

/// The first largest element takes the gradient.
fn reverse_max(x: &mut [f32], g: f32) {
    let best = maximum(x);
    let at = x.iter().position(|&x| x == best);
    x.fill(0.0);
    if let Some(at) = at {
        x[at] = g;
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match ctx.shape(0) {
        None => None,
        Some(s) => {
            ensure!(s.len() >= 2, "input 0 (X) has rank {}, expected at least 2", s.len());
            Some(s.iter().enumerate().map(|(i, d)| if i < 2 { d.clone() } else { Dim::Known(1) }).collect())
        }
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn average(call: &mut Call<'_>) -> Result<Vec<Item>> {
    channels(call, |x| sum(x) / x.len() as f32, |x| x.iter().sum::<f64>() / x.len() as f64)
}

fn max(call: &mut Call<'_>) -> Result<Vec<Item>> {
    channels(call, maximum, |x| x.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

fn norm(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let p = call.attrs.int("p").map(|p| p as f64).or(call.attrs.float("p").map(f64::from)).unwrap_or(2.0);
    ensure!(p > 0.0, "attribute \"p\" is {p}, expected a positive number");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x.abs().powf(p)).sum::<f64>().powf(1.0 / p);
    channels(call, |x| norm(&mut x.iter().map(|&x| f64::from(x))) as f32, |x| norm(&mut x.iter().copied()))
}

/// One number for each channel.
fn channels(
    call: &mut Call<'_>,
    f: impl Fn(&[f32]) -> f32 + Send + Sync,
    f64s: impl Fn(&[f64]) -> f64,
) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let dtype = same_dtype(&[("X", Some(x))], FLOATS)?;
    ensure!(x.rank() >= 2, "input 0 (X) has shape {:?}, expected at least rank 2", x.shape());
    let n = x.shape()[0] * x.shape()[1];
    let size: usize = x.shape()[2..].iter().product();
    let shape: Vec<usize> = x.shape().iter().enumerate().map(|(i, &d)| if i < 2 { d } else { 1 }).collect();
    if size == 0 && n > 0 {
        bail!("input 0 (X) has shape {:?}, expected no empty spatial dimension", x.shape());
    }
    if dtype == DType::F64 {
        let y = x.slice::<f64>()?.chunks_exact(size.max(1)).map(f64s).collect::<Vec<f64>>();
        return Ok(Tensor::new(&shape, y)?.into());
    }
    let x = x.to_f32s()?;
    let mut y = vec![0.0f32; n];
    let out = kernels::Slots::new(&mut y);
    // Small tasks: threads pay only for large tensors.
    let threads = if x.len() < 1 << 16 { 1 } else { call.threads };
    for_each(threads, n, |c| out.chunk(c, 1)[0] = f(&x[c * size..(c + 1) * size]));
    Ok(from_f32s(dtype, &shape, y)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Tensor, cast};

    #[test]
    fn one_number_a_channel() {
        let x = Tensor::new(&[1, 2, 2, 1], vec![3.0f32, -4.0, 1.0, 2.0]).unwrap();
        let y = |v: [f32; 2]| Tensor::new(&[1, 2, 1, 1], v.to_vec()).unwrap();
        for dtype in super::FLOATS {
            let c = |t: Tensor| cast::cast(&t, *dtype, true).unwrap();
            Case::new("GlobalAveragePool", 22).input(c(x.clone())).expect(&[c(y([-0.5, 1.5]))]);
            Case::new("GlobalMaxPool", 22).input(c(x.clone())).expect(&[c(y([3.0, 2.0]))]);
            Case::new("GlobalLpPool", 22).input(c(x.clone())).attr("p", 1i64).expect(&[c(y([7.0, 3.0]))]);
            let root = c(y([5.0, 5.0f32.sqrt()]));
            Case::new("GlobalLpPool", 1).input(c(x.clone())).attr("p", 2.0f32).tolerance(1e-3).expect(&[root]);
        }
    }

    #[test]
    fn long_channels() {
        let x = Tensor::new(&[1, 1, 1000], (0..1000).map(|i| i as f32).collect()).unwrap();
        let y = |v: f32| Tensor::new(&[1, 1, 1], vec![v]).unwrap();
        Case::new("GlobalAveragePool", 1).input(x.clone()).expect(&[y(499.5)]);
        Case::new("GlobalMaxPool", 1).input(x).expect(&[y(999.0)]);
    }

    #[test]
    fn contradictions_are_errors() {
        Case::new("GlobalMaxPool", 1).input(Tensor::vector(vec![1.0f32])).fails("expected at least rank 2");
        let x = Tensor::new(&[1, 1, 0], Vec::<f32>::new()).unwrap();
        Case::new("GlobalAveragePool", 1).input(x).fails("no empty spatial dimension");
    }
}
