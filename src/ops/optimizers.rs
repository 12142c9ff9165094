//! `Adagrad`, `Adam`, `Momentum` — one step of training.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Adam.html> (`ai.onnx.preview.training` 1)
//! Inputs: R, the learning rate; T, the number of steps done; then n tensors X, their n gradients, and their n or 2n
//! accumulated values, float or double. Outputs: the new X and the new accumulated values, in the same order.
//! Errors: a number of inputs that is no multiple, tensors of one group that differ in shape.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::tensor::Tensor;
use crate::tensor::cast::cast;

const STEP: OpDef = OpDef {
    name: "",
    domain: OpDomain::Training,
    since: 1,
    inputs: Arity::at_least(3),
    outputs: Arity::at_least(1),
    is_pure: true,
    infer: infer_2,
    eval: adagrad,
    quant: QuantRule::Keep { why: "is a step of training" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "Adagrad", eval: adagrad, ..STEP },
    OpDef { name: "Adam", infer: infer_3, eval: adam, ..STEP },
    OpDef { name: "Momentum", eval: momentum, ..STEP },
];

fn infer_of(ctx: &mut InferCtx<'_>, kinds: usize) -> Result<()> {
    // Outputs are the new values of the first and of the last groups; the gradients have none.
    let n = ctx.present.len().saturating_sub(2) / (kinds + 1);
    for i in 0..ctx.outputs.len().min(n * kinds) {
        let group = if i < n { 0 } else { i / n + 1 };
        if let Some(t) = ctx.ty(2 + group * n + i % n).cloned() {
            ctx.set(i, t);
        }
    }
    Ok(())
}

fn infer_2(ctx: &mut InferCtx<'_>) -> Result<()> {
    infer_of(ctx, 2)
}

fn infer_3(ctx: &mut InferCtx<'_>) -> Result<()> {
    infer_of(ctx, 3)
}

/// Applies `step` to each variable: it gets the elements of X, of the gradient and of the `N` accumulated values, and
/// gives the new X and the new accumulated values.
fn each<const N: usize>(call: &Call<'_>, step: impl Fn(f64, f64, [f64; N]) -> (f64, [f64; N])) -> Result<Vec<Item>> {
    let groups = N + 2;
    let n = (call.n_inputs() - 2) / groups;
    ensure!(
        n > 0 && n * groups + 2 == call.n_inputs(),
        "has {} inputs, expected 2 and a multiple of {groups}",
        call.n_inputs()
    );
    let mut out: Vec<Vec<Item>> = vec![Vec::new(); N + 1];
    for i in 0..n {
        let x = call.input(2 + i)?;
        let mut parts = Vec::new();
        for group in 0..groups {
            let t = call.input(2 + group * n + i)?;
            ensure!(
                t.shape() == x.shape() && t.dtype() == x.dtype(),
                "input {} differs from input {} in shape or type",
                2 + group * n + i,
                2 + i
            );
            parts.push(t.to_f64s()?);
        }
        let mut new: Vec<Vec<f64>> = vec![Vec::with_capacity(x.len()); N + 1];
        for e in 0..x.len() {
            let (x, state) = step(parts[0][e], parts[1][e], std::array::from_fn(|k| parts[2 + k][e]));
            new[0].push(x);
            for (k, s) in state.into_iter().enumerate() {
                new[k + 1].push(s);
            }
        }
        for (out, v) in out.iter_mut().zip(new) {
            out.push(cast(&Tensor::new(x.shape(), v)?, x.dtype(), true)?.into());
        }
    }
    Ok(out.into_iter().flatten().collect())
}

/// The learning rate and the number of steps.
fn rate(call: &Call<'_>) -> Result<(f64, f64)> {
    Ok((call.input(0)?.to_f64()?, call.input(1)?.to_f64()?))
}

fn adagrad(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (r, t) = rate(call)?;
    let r = r / (1.0 + t * f64::from(call.float("decay_factor", 0.0)));
    let (norm, epsilon) = (f64::from(call.float("norm_coefficient", 0.0)), f64::from(call.float("epsilon", 1e-6)));
    each(call, |x, g, [h]| {
        let g = norm * x + g;
        let h = h + g * g;
        (x - r * g / (h.sqrt() + epsilon), [h])
    })
}

fn adam(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (r, t) = rate(call)?;
    let (alpha, beta) = (f64::from(call.float("alpha", 0.9)), f64::from(call.float("beta", 0.999)));
    let (norm, post) =
        (f64::from(call.float("norm_coefficient", 0.0)), f64::from(call.float("norm_coefficient_post", 0.0)));
    let epsilon = f64::from(call.float("epsilon", 1e-6));
    let r = if t > 0.0 { r * (1.0 - beta.powf(t)).sqrt() / (1.0 - alpha.powf(t)) } else { r };
    each(call, |x, g, [v, h]| {
        let g = norm * x + g;
        let v = alpha * v + (1.0 - alpha) * g;
        let h = beta * h + (1.0 - beta) * g * g;
        ((1.0 - post) * (x - r * v / (h.sqrt() + epsilon)), [v, h])
    })
}

fn momentum(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (r, t) = rate(call)?;
    let number = |name: &str| call.attrs.float(name).map(f64::from);
    let (Some(alpha), Some(beta), Some(norm)) = (number("alpha"), number("beta"), number("norm_coefficient")) else {
        bail!("attributes \"alpha\", \"beta\" and \"norm_coefficient\" are required")
    };
    let is_nesterov = match call.str("mode", "") {
        "standard" => false,
        "nesterov" => true,
        other => bail!("attribute \"mode\" is \"{other}\", expected standard or nesterov"),
    };
    let beta = if t > 0.0 { beta } else { 1.0 };
    each(call, |x, g, [v]| {
        let g = norm * x + g;
        let v = alpha * v + beta * g;
        (x - r * if is_nesterov { g + alpha * v } else { v }, [v])
    })
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn momentum_takes_a_step() {
        let case = Case::new("Momentum", 1)
            .domain("ai.onnx.preview.training")
            .input(Tensor::scalar(0.5f32))
            .input(Tensor::scalar(1i64))
            .input(Tensor::vector(vec![1.0f32]))
            .input(Tensor::vector(vec![2.0f32]))
            .attr("alpha", 0.5f32)
            .attr("beta", 1.0f32)
            .attr("norm_coefficient", 0.0f32)
            .attr("mode", "standard");
        case.clone().fails("expected 2 and a multiple of 3");
        case.input(Tensor::vector(vec![4.0f32]))
            .outputs(2)
            .expect(&[Tensor::vector(vec![-1.0f32]), Tensor::vector(vec![4.0f32])]);
    }
}
