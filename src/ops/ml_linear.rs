//! `LinearClassifier`, `LinearRegressor` — sums of weighted features.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxml_LinearClassifier.html>,
//! <https://onnx.ai/onnx/operators/onnx_aionnxml_LinearRegressor.html> (ai.onnx.ml 1)
//! Input: X `[N, F]`, any number type. Outputs: Y, labels `[N]` and Z, scores float `[N, E]`; or Y float `[N, targets]`.
//! Attributes: coefficients, intercepts, post_transform; labels; targets.
//! Quantized: stays float; there is no integer form of it.
//! Errors: coefficients that do not fit the features.

use super::post_transform::{Labels, PostTransform, arg_max, classified, features, rows, scores};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, ensure};
use crate::ir::Dim;
use crate::tensor::DType;

const LINEAR_REGRESSOR: OpDef = OpDef {
    name: "LinearRegressor",
    domain: OpDomain::Ml,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_regressor,
    eval: regress,
    quant: QuantRule::Keep { why: "has no integer form" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "LinearClassifier",
        outputs: Arity::range(1, 2),
        infer: infer_classifier,
        eval: classify,
        ..LINEAR_REGRESSOR
    },
    LINEAR_REGRESSOR,
];

fn infer_classifier(ctx: &mut InferCtx<'_>) -> Result<()> {
    let labels = Labels::of(ctx.attrs, "classlabels_ints", "classlabels_strings");
    let n = rows(ctx.shape(0));
    ctx.set_tensor(0, Some(labels.dtype()), Some(vec![n.clone()]));
    let classes = if labels.len() > 0 { Dim::Known(labels.len()) } else { Dim::Unknown };
    ctx.set_tensor(1, Some(DType::F32), Some(vec![n, classes]));
    Ok(())
}

fn infer_regressor(ctx: &mut InferCtx<'_>) -> Result<()> {
    let targets = usize::try_from(ctx.attrs.int("targets").unwrap_or(1)).map_or(Dim::Unknown, Dim::Known);
    ctx.set_tensor(0, Some(DType::F32), Some(vec![rows(ctx.shape(0)), targets]));
    Ok(())
}

/// The sums of each row; one for each `f` coefficients.
fn sums(call: &Call<'_>, targets: Option<usize>) -> Result<Vec<Vec<f64>>> {
    let (x, n, f) = features(call)?;
    let w = call.attrs.floats("coefficients").ok_or_else(|| anyhow!("attribute \"coefficients\" is missing"))?;
    let intercepts = call.attrs.floats("intercepts").unwrap_or_default();
    let targets = targets.unwrap_or(w.len().checked_div(f).unwrap_or(0));
    ensure!(
        targets.checked_mul(f) == Some(w.len()),
        "attribute \"coefficients\" has {} entries for {f} features and {targets} targets",
        w.len()
    );
    ensure!(
        intercepts.is_empty() || intercepts.len() == targets,
        "attribute \"intercepts\" has {} entries, expected {targets}",
        intercepts.len()
    );
    // Without features the coefficients do not say how many targets there are, and nothing else bounds the attribute.
    ensure!(
        f > 0 || targets <= intercepts.len().max(1),
        "attribute \"targets\" is {targets}, but there are neither features nor intercepts"
    );
    let dot = |row: &[f64], t: usize| -> f64 {
        let sum: f64 = row.iter().zip(&w[t * f..(t + 1) * f]).map(|(x, &w)| x * f64::from(w)).sum();
        sum + f64::from(intercepts.get(t).copied().unwrap_or(0.0))
    };
    Ok((0..n).map(|i| (0..targets).map(|t| dot(&x[i * f..(i + 1) * f], t)).collect()).collect())
}

fn classify(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let transform = PostTransform::of(call.attrs)?;
    let labels = Labels::of(call.attrs, "classlabels_ints", "classlabels_strings");
    let mut all = sums(call, None)?;
    let mut classes = Vec::with_capacity(all.len());
    for row in &mut all {
        if row.len() == 1 && labels.len() == 2 {
            row.insert(0, -row[0]);
        }
        transform.apply(row);
        classes.push(match row.as_slice() {
            // A single score decides for or against its class.
            [s] => usize::from(*s >= if transform == PostTransform::None { 0.0 } else { 0.5 }),
            _ => arg_max(row),
        });
    }
    let labels = labels.tensor(&classes);
    Ok(classified(call, labels, scores(all)?))
}

fn regress(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let transform = PostTransform::of(call.attrs)?;
    let targets = call.int("targets", 1);
    let targets = usize::try_from(targets).map_err(|_| anyhow!("attribute \"targets\" is {targets}"))?;
    let mut all = sums(call, Some(targets))?;
    all.iter_mut().for_each(|row| transform.apply(row));
    Ok(scores(all)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn sums_and_decides() {
        let x = || Tensor::of(&[2, 2], vec![1.0f32, 2.0, -3.0, 1.0]);
        let case = |op: &str| Case::new(op, 1).domain("ai.onnx.ml").input(x());
        case("LinearRegressor")
            .attr("coefficients", vec![1.0f32, 10.0])
            .attr("intercepts", vec![0.5f32])
            .expect(&[Tensor::of(&[2, 1], vec![21.5f32, 7.5])]);
        case("LinearClassifier")
            .attr("coefficients", vec![1.0f32, 0.0])
            .attr("classlabels_ints", vec![5i64, 7])
            .outputs(2)
            .expect(&[Tensor::vector(vec![7i64, 5]), Tensor::of(&[2, 2], vec![-1.0f32, 1.0, 3.0, -3.0])]);
        case("LinearClassifier")
            .attr("coefficients", vec![1.0f32, 0.0, 0.0, 1.0])
            .attr("classlabels_ints", vec![5i64, 7])
            .attr("post_transform", "SOFTMAX_ZERO")
            .expect(&[Tensor::vector(vec![7i64, 7])]);
        case("LinearRegressor").attr("coefficients", vec![1.0f32]).fails("1 entries for 2 features");
        case("LinearRegressor").fails("\"coefficients\" is missing");
    }
}
