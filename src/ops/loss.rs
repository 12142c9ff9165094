//! Losses: `NegativeLogLikelihoodLoss`, `SoftmaxCrossEntropyLoss`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__NegativeLogLikelihoodLoss.html> (opsets 12, 13, 22),
//! `onnx__SoftmaxCrossEntropyLoss.html` (12, 13)
//! Inputs: scores `[N, C, D…]` of floats, classes `[N, D…]` of integers, weights? `[C]`.
//! Outputs: the loss, scalar or `[N, D…]` with `reduction` "none"; log probabilities as the scores.
//! Quantized: no; losses belong to training. Errors: shapes that do not fit; a class out of range.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::ir::Dim;
use crate::tensor::Tensor;
use crate::tensor::cast::from_f64s;

const LOSS: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 12,
    inputs: Arity::range(2, 3),
    outputs: Arity::range(1, 2),
    is_pure: true,
    infer,
    eval: |_| bail!("no evaluation"),
    quant: QuantRule::Keep { why: "is a loss" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "NegativeLogLikelihoodLoss", outputs: Arity::exactly(1), eval: |c| eval(c, false), ..LOSS },
    OpDef { name: "SoftmaxCrossEntropyLoss", eval: |c| eval(c, true), ..LOSS },
];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype(0);
    let shape = match ctx.attrs.str("reduction").unwrap_or("mean") {
        "none" => ctx.shape(1).map(<[Dim]>::to_vec),
        "mean" | "sum" => Some(Vec::new()),
        other => bail!("attribute \"reduction\" is \"{other}\", expected \"none\", \"sum\" or \"mean\""),
    };
    ctx.set_tensor(0, dtype, shape);
    if let Some(t) = ctx.ty(0).cloned() {
        ctx.set(1, t);
    }
    Ok(())
}

fn eval(call: &mut Call<'_>, softmax: bool) -> Result<Vec<Item>> {
    let (x, target) = (call.input(0)?, call.input(1)?);
    let &[n, c, ref spatial @ ..] = x.shape() else { bail!("input 0 has rank {}, expected at least 2", x.rank()) };
    ensure!(
        target.shape().first() == Some(&n) && target.shape()[1..] == *spatial,
        "input 1 has shape {:?}, which does not fit {:?}",
        target.shape(),
        x.shape()
    );
    let d: usize = spatial.iter().product();
    let ignore = call.attrs.int("ignore_index");
    let weights = call.optional(2)?.map(Tensor::to_f64s).transpose()?;
    if let Some(w) = &weights {
        ensure!(w.len() == c, "input 2 has {} weights, expected {c}", w.len());
    }
    let mut scores = x.to_f64s()?;
    if softmax {
        log_softmax(&mut scores, c, d);
    }
    let (mut losses, mut total) = (Vec::with_capacity(n * d), 0.0);
    for (i, class) in target.to_i64s()?.into_iter().enumerate() {
        if ignore == Some(class) {
            losses.push(0.0);
            continue;
        }
        let Some(class) = usize::try_from(class).ok().filter(|k| *k < c) else {
            bail!("input 1 has the class {class}, expected 0 to {}", c as i64 - 1)
        };
        let w = weights.as_ref().map_or(1.0, |w| w[class]);
        total += w;
        losses.push(-w * scores[(i / d * c + class) * d + i % d]);
    }
    let sum: f64 = losses.iter().sum();
    let loss = match call.str("reduction", "mean") {
        "none" => from_f64s(x.dtype(), target.shape(), losses)?,
        "sum" => from_f64s(x.dtype(), &[], vec![sum])?,
        "mean" => from_f64s(x.dtype(), &[], vec![sum / total])?,
        other => bail!("attribute \"reduction\" is \"{other}\", expected \"none\", \"sum\" or \"mean\""),
    };
    let mut out: Vec<Item> = loss.into();
    if softmax && call.wants(1) {
        out.push(from_f64s(x.dtype(), x.shape(), scores)?.into());
    }
    Ok(out)
}

fn log_softmax(v: &mut [f64], c: usize, d: usize) {
    if c * d == 0 {
        return;
    }
    for slab in v.chunks_exact_mut(c * d) {
        for i in 0..d {
            let at = |k: usize| k * d + i;
            let m = (0..c).map(|k| slab[at(k)]).fold(f64::NEG_INFINITY, f64::max);
            let l = (0..c).map(|k| (slab[at(k)] - m).exp()).sum::<f64>().ln();
            (0..c).for_each(|k| slab[at(k)] -= m + l);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn reductions_and_weights() {
        let x = Tensor::of(&[2, 3, 2], vec![1.0f32, 2.0, 2.0, 2.0, 3.0, 2.0, 0.0, 1.0, 2.0, 2.0, 1.0, 2.0]);
        let t = |v: [i64; 4]| Tensor::of(&[2, 2], v.to_vec());
        let case = |op: &str, v| Case::new(op, 13).input(x.clone()).input(t(v)).tolerance(1e-6);
        let nll = "NegativeLogLikelihoodLoss";
        case(nll, [2, 1, 0, 2])
            .attr("reduction", "none")
            .expect(&[Tensor::of(&[2, 2], vec![-3.0f32, -2.0, 0.0, -2.0])]);
        case(nll, [2, 1, 0, 2]).expect(&[Tensor::scalar(-1.75f32)]);
        let w = || Tensor::vector(vec![0.2f32, 0.3, 0.1]);
        case(nll, [2, 1, 0, 2]).input(w()).attr("reduction", "sum").expect(&[Tensor::scalar(-1.1f32)]);
        case(nll, [2, 1, 0, 2]).input(w()).expect(&[Tensor::scalar(-1.1f32 / 0.7)]);
        case(nll, [2, 1, -1, 2]).attr("ignore_index", -1i64).expect(&[Tensor::scalar(-7.0f32 / 3.0)]);
        case(nll, [2, 1, 3, 2]).fails("class 3, expected 0 to 2");
        let even = Tensor::of(&[1, 2], vec![0.0f32, 0.0]);
        let l = std::f32::consts::LN_2;
        Case::new("SoftmaxCrossEntropyLoss", 13)
            .outputs(2)
            .input(even)
            .input(Tensor::vector(vec![1i64]))
            .tolerance(1e-6)
            .expect(&[Tensor::scalar(l), Tensor::of(&[1, 2], vec![-l, -l])]);
    }
}
