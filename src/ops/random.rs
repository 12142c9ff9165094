//! Random numbers: `RandomNormal`, `RandomUniform`, their `…Like` forms, `Bernoulli`, `Multinomial`, `Dropout`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__RandomNormal.html> and so on (opsets 1, 7, 10, 12, 13, 15, 22)
//! Seeded by the attribute `seed`, or else by the run, so that equal runs give equal numbers. The generator is the
//! Mersenne Twister, seeded as `numpy.random.RandomState` does: `Dropout` in training mode drops what onnx's own drops.
//! Quantized: `Dropout` moves its input; the others make their output, which stays float.
//! Errors: a missing shape; probabilities that are no floats.

use super::elementwise::{is_half, map_tensor, scalars};
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::Dim;
use crate::tensor::cast::{cast, from_f64s};
use crate::tensor::{DType, Tensor, count};

const RANDOM: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: false,
    infer: infer_like,
    eval: |_| bail!("no evaluation"),
    quant: QuantRule::Keep { why: "makes random numbers" },
};
/// Pure as models for inference use it; in training mode one sample is as good as another.
const DROPOUT: OpDef = OpDef {
    name: "Dropout",
    is_pure: true,
    outputs: Arity::range(1, 2),
    infer: infer_dropout,
    eval: dropout,
    quant: QuantRule::Share,
    ..RANDOM
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "Bernoulli", since: 15, eval: bernoulli, ..RANDOM },
    DROPOUT,
    OpDef { since: 10, ..DROPOUT },
    OpDef { since: 12, inputs: Arity::range(1, 3), ..DROPOUT },
    OpDef { name: "Multinomial", since: 7, infer: infer_multinomial, eval: multinomial, ..RANDOM },
    OpDef { name: "RandomNormal", inputs: Arity::exactly(0), infer: infer_shape, eval: normal, ..RANDOM },
    OpDef { name: "RandomNormalLike", eval: normal, ..RANDOM },
    OpDef { name: "RandomUniform", inputs: Arity::exactly(0), infer: infer_shape, eval: uniform, ..RANDOM },
    OpDef { name: "RandomUniformLike", eval: uniform, ..RANDOM },
];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Dropout", reverse_dropout)];

/// In inference the input passes.
fn reverse_dropout(b: &Back<'_>) -> Result<Gradients> {
    let drops = b.optional(2).is_some_and(|t| t.to_f64().is_ok_and(|x| x != 0.0));
    ensure!(!drops, "there is no rule for training mode");
    b.reshaped()
}

/// The Mersenne Twister MT19937.
struct Twister {
    state: [u32; 624],
    at: usize,
    /// Normal numbers come in pairs.
    spare: Option<f64>,
}

impl Twister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624 {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Twister { state, at: 624, spare: None }
    }

    fn of(call: &Call<'_>) -> Self {
        match (call.attrs.int("seed"), call.attrs.float("seed")) {
            (Some(s), _) => Self::new(s as u32),
            (_, Some(s)) if s.fract() == 0.0 && s.abs() < 2e9 => Self::new(s as i64 as u32),
            (_, Some(s)) => Self::new(s.to_bits()),
            _ => Self::new((call.seed ^ (call.seed >> 32)) as u32),
        }
    }

    fn bits(&mut self) -> u32 {
        if self.at == 624 {
            for i in 0..624 {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ odd;
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number in `[0, 1)`, of 53 bits.
    fn unit(&mut self) -> f64 {
        let (a, b) = (f64::from(self.bits() >> 5), f64::from(self.bits() >> 6));
        (a * 67_108_864.0 + b) / 9_007_199_254_740_992.0
    }

    /// A normally distributed number, by the polar method.
    fn gauss(&mut self) -> f64 {
        if let Some(x) = self.spare.take() {
            return x;
        }
        loop {
            let (x, y) = (2.0 * self.unit() - 1.0, 2.0 * self.unit() - 1.0);
            let r = x * x + y * y;
            if r < 1.0 && r != 0.0 {
                let f = (-2.0 * r.ln() / r).sqrt();
                self.spare = Some(f * x);
                return f * y;
            }
        }
    }
}

fn infer_like(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype_attr("dtype")?.or(ctx.dtype(0));
    let shape = ctx.shape(0).map(<[Dim]>::to_vec);
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

fn infer_shape(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype_attr("dtype")?.unwrap_or(DType::F32);
    let shape = ctx.attrs.ints("shape").ok_or_else(|| anyhow!("attribute \"shape\" is missing"))?;
    let shape = shape.iter().map(|&n| usize::try_from(n).map_or(Dim::Unknown, Dim::Known)).collect();
    ctx.set_tensor(0, Some(dtype), Some(shape));
    Ok(())
}

/// The shape and type to fill.
fn target(call: &Call<'_>) -> Result<(Vec<usize>, DType)> {
    if call.n_inputs() == 0 {
        ensure!(call.attrs.ints("shape").is_some(), "attribute \"shape\" is missing");
        return Ok((call.sizes("shape", Vec::new)?, call.dtype("dtype", DType::F32)?));
    }
    let x = call.input(0)?;
    Ok((x.shape().to_vec(), call.dtype("dtype", x.dtype())?))
}

fn fill(call: &Call<'_>, mut f: impl FnMut(&mut Twister) -> f64) -> Result<Vec<Item>> {
    let (shape, dtype) = target(call)?;
    let n = count(&shape)?;
    ensure!(n <= isize::MAX as usize / 16, "shape {shape:?} is too large");
    let mut random = Twister::of(call);
    Ok(from_f64s(dtype, &shape, (0..n).map(|_| f(&mut random)).collect())?.into())
}

fn normal(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (mean, scale) = (f64::from(call.float("mean", 0.0)), f64::from(call.float("scale", 1.0)));
    fill(call, |r| mean + scale * r.gauss())
}

fn uniform(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (low, high) = (f64::from(call.float("low", 0.0)), f64::from(call.float("high", 1.0)));
    fill(call, |r| low + (high - low) * r.unit())
}

fn bernoulli(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let p = call.input(0)?;
    ensure!(p.dtype().is_float(), "input 0 has element type {}, expected a floating-point type", p.dtype());
    let p = p.to_f64s()?;
    let mut p = p.iter();
    fill(call, |r| f64::from(u8::from(r.unit() < p.next().copied().unwrap_or(0.0))))
}

fn infer_multinomial(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype_attr("dtype")?.unwrap_or(DType::I32);
    let n = usize::try_from(ctx.attrs.int("sample_size").unwrap_or(1)).map_or(Dim::Unknown, Dim::Known);
    let shape = ctx.shape(0).map(<[Dim]>::to_vec);
    if let Some(s) = &shape {
        ensure!(s.len() == 2, "input 0 has rank {}, expected 2", s.len());
    }
    ctx.set_tensor(0, Some(dtype), shape.map(|s| vec![s[0].clone(), n]));
    Ok(())
}

/// Classes drawn by unnormalised log probabilities.
fn multinomial(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let &[batch, classes] = x.shape() else { bail!("input 0 has rank {}, expected 2", x.rank()) };
    let n = call.int("sample_size", 1);
    let n = usize::try_from(n).map_err(|_| anyhow!("attribute \"sample_size\" is {n}, expected a positive number"))?;
    ensure!(classes > 0 || batch == 0, "input 0 has no classes");
    let mut random = Twister::of(call);
    let mut out = Vec::with_capacity(count(&[batch, n])?);
    for row in x.to_f64s()?.chunks_exact(classes.max(1)) {
        let m = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut total = 0.0;
        let cumulative: Vec<f64> = row
            .iter()
            .map(|l| {
                total += (l - m).exp();
                total
            })
            .collect();
        for _ in 0..n {
            let at = random.unit() * total;
            out.push(cumulative.iter().position(|c| at < *c).unwrap_or(classes - 1) as f64);
        }
    }
    Ok(from_f64s(call.dtype("dtype", DType::I32)?, &[batch, n], out)?.into())
}

fn infer_dropout(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.same_as(0);
    let shape = ctx.shape(0).map(<[Dim]>::to_vec);
    let mask = if ctx.opset < 10 { ctx.dtype(0) } else { Some(DType::Bool) };
    ctx.set_tensor(1, mask, shape);
    if let Some(v) = ctx.values(0) {
        ctx.set_values(0, v);
    }
    Ok(())
}

scalars! {
    Times { factor } |x| x * factor, x * factor;
}

/// The input, unless `training_mode` is set.
fn dropout(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let ratio = match call.optional(1)? {
        Some(t) => t.to_f64()?,
        None => call.float("ratio", 0.5).into(),
    };
    let training = match call.optional(2)? {
        Some(t) => t.to_f64()? != 0.0,
        None => false,
    };
    let mut x = call.take(0)?;
    let mut mask = vec![true; x.len()];
    if training && ratio > 0.0 {
        ensure!(ratio < 1.0, "input 1 is {ratio}, expected a ratio below 1");
        let mut random = Twister::of(call);
        mask.iter_mut().for_each(|m| *m = random.unit() >= ratio);
        let dtype = x.dtype();
        let mut y = if is_half(dtype) || dtype.bits() == 8 { cast(&x, DType::F32, true)? } else { x };
        y = map_tensor(y, 1, Times { factor: (1.0 / (1.0 - ratio)) as f32 })?;
        let mut v = y.to_f64s()?;
        v.iter_mut().zip(&mask).filter(|(_, m)| !**m).for_each(|(x, _)| *x = 0.0);
        x = from_f64s(dtype, y.shape(), v)?;
    }
    let shape = x.shape().to_vec();
    let mask_type = if call.opset < 10 { x.dtype() } else { DType::Bool };
    let mut out = vec![Item::Tensor(x)];
    if call.wants(1) {
        out.push(cast(&Tensor::new(&shape, mask)?, mask_type, true)?.into());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    #[test]
    fn numbers_of_numpy() {
        let mut r = Twister::new(0);
        assert_eq!((r.unit(), r.unit()), (0.548_813_503_927_324_8, 0.715_189_366_372_419_5));
        assert!((Twister::new(0).gauss() - 1.764_052_345_967_664).abs() < 1e-14);
    }

    #[test]
    fn distributions() {
        let run = |c: Case| c.run().unwrap()[0].to_f64s().unwrap();
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        let v = run(Case::new("RandomNormal", 22)
            .attr("shape", vec![100i64, 50])
            .attr("mean", 3.0f32)
            .attr("scale", 2.0f32));
        assert!(v.len() == 5000 && (mean(&v) - 3.0).abs() < 0.1);
        let sd = mean(&v.iter().map(|x| (x - 3.0) * (x - 3.0)).collect::<Vec<_>>()).sqrt();
        assert!((sd - 2.0).abs() < 0.1, "{sd}");
        let like = Tensor::of(&[1000], vec![0.25f32; 1000]);
        let v = run(Case::new("RandomUniformLike", 22).attr("low", 1.0f32).attr("high", 2.0f32).input(like.clone()));
        assert!(v.iter().all(|x| (1.0..=2.0).contains(x)) && (mean(&v) - 1.5).abs() < 0.05);
        let v = run(Case::new("Bernoulli", 22).attr("seed", 1.0f32).input(like));
        assert!((mean(&v) - 0.25).abs() < 0.05);
        let logs = Tensor::of(&[1, 3], vec![0.0f32, f32::NEG_INFINITY, 3f32.ln()]);
        let v = run(Case::new("Multinomial", 22).attr("sample_size", 1000i64).input(logs));
        assert!(v.iter().all(|x| *x == 0.0 || *x == 2.0) && (mean(&v) - 1.5).abs() < 0.1);
        Case::new("RandomNormal", 1).fails("\"shape\" is missing");
    }

    #[test]
    fn dropout_is_the_identity_unless_training() {
        let x = Tensor::vector(vec![1.0f32, 2.0, 3.0]);
        let mask = Tensor::vector(vec![true; 3]);
        Case::new("Dropout", 13).outputs(2).input(x.clone()).expect(&[x.clone(), mask]);
        Case::new("Dropout", 7).outputs(2).input(x.clone()).expect(&[x.clone(), Tensor::vector(vec![1.0f32; 3])]);
        let y = Tensor::vector(vec![2.0f32, 4.0, 6.0]);
        Case::new("Dropout", 13)
            .attr("seed", 0i64)
            .input(x)
            .input(Tensor::scalar(0.5f32))
            .input(Tensor::scalar(true))
            .expect(&[y]);
    }
}
