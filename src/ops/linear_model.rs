//! `LinearClassifier`, `LinearRegressor` — products of samples and coefficients.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxml_LinearClassifier.html> (`ai.onnx.ml` 1)
//! Input: X `[N, C]` or `[C]` of float, double, int32 or int64. Attributes: coefficients `[M, C]`, intercepts `[M]`,
//! post_transform, and labels or `targets`.
//! Outputs: the label of each sample and its scores as floats; or the values `[N, targets]`.
//! Errors: coefficients that do not fit the samples.

use super::ml::{
    self, Labels, ML, PostTransform, SecondScore, best, infer_classifier, infer_regressor, rows, two_scores,
};
use super::{Arity, Call, InferCtx, Item, OpDef};
use crate::error::{Result, ensure};

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "LinearClassifier",
        outputs: Arity::range(1, 2),
        infer: |ctx| infer_classifier(ctx, "classlabels_ints"),
        eval: classify,
        ..ML
    },
    OpDef { name: "LinearRegressor", infer: infer_targets, eval: regress, ..ML },
];

fn infer_targets(ctx: &mut InferCtx<'_>) -> Result<()> {
    infer_regressor(ctx, Some(ctx.attrs.int("targets").unwrap_or(1)))
}

/// `X · coefficientsᵀ + intercepts` for `m` rows of coefficients.
fn products(call: &Call<'_>, m: usize) -> Result<(usize, Vec<f64>)> {
    let (n, c, x) = rows(call.input(0)?)?;
    let coefficients = ml::floats(call.attrs, "coefficients")?;
    let intercepts = ml::floats(call.attrs, "intercepts")?;
    ensure!(
        m.checked_mul(c) == Some(coefficients.len()),
        "attribute \"coefficients\" has {} elements, expected {m} times {c}",
        coefficients.len()
    );
    ensure!(
        intercepts.is_empty() || intercepts.len() >= m,
        "attribute \"intercepts\" has {} elements, expected {m}",
        intercepts.len()
    );
    let mut out = Vec::with_capacity(n * m);
    for i in 0..n {
        for j in 0..m {
            let dot: f64 = x[i * c..(i + 1) * c].iter().zip(&coefficients[j * c..]).map(|(x, w)| x * w).sum();
            out.push(dot + intercepts.get(j).copied().unwrap_or(0.0));
        }
    }
    Ok((n, out))
}

fn classify(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let transform = PostTransform::of(call.attrs)?;
    let (_, c, _) = rows(call.input(0)?)?;
    let n_coefficients = ml::floats(call.attrs, "coefficients")?.len();
    let m = match ml::floats(call.attrs, "intercepts")?.len() {
        0 if c > 0 => n_coefficients / c,
        m => m,
    };
    let (n, products) = products(call, m)?;
    ensure!(m > 0, "has no classes: attribute \"coefficients\" is empty");
    let labels = Labels::of(call.attrs, "classlabels_ints", m.max(2))?;
    let (mut classes, mut scores) = (Vec::new(), Vec::new());
    for row in products.chunks(m) {
        if let [score] = *row {
            classes.push(usize::from(score > 0.0));
            // Without a label for it the second class has no score either.
            if labels.len() == 2 {
                scores.extend(two_scores(score, transform, SecondScore::Complement));
            } else {
                let mut row = [score];
                transform.apply(&mut row);
                scores.extend(row);
            }
        } else {
            classes.push(best(row));
            let mut row = row.to_vec();
            transform.apply(&mut row);
            scores.extend(row);
        }
    }
    let labels = if labels.len() == 1 && m == 1 { Labels::Ints(vec![0, 1]) } else { labels };
    Ok(vec![labels.pick(&classes)?.into(), ml::scores(n, &scores)?.into()])
}

fn regress(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let transform = PostTransform::of(call.attrs)?;
    let targets = call.int("targets", 1);
    let m = usize::try_from(targets).unwrap_or(0);
    ensure!(m > 0, "attribute \"targets\" is {targets}, expected at least 1");
    let (n, mut products) = products(call, m)?;
    products.chunks_mut(m).for_each(|row| transform.apply(row));
    Ok(ml::scores(n, &products)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn a_regressor_multiplies_and_adds() {
        let x = Tensor::of(&[2, 2], vec![1.0f32, 2.0, 3.0, 4.0]);
        Case::new("LinearRegressor", 1)
            .domain("ai.onnx.ml")
            .input(x)
            .attr("coefficients", vec![1.0f32, 10.0])
            .attr("intercepts", vec![0.5f32])
            .expect(&[Tensor::of(&[2, 1], vec![21.5f32, 43.5])]);
    }

    #[test]
    fn a_classifier_takes_the_class_with_the_largest_score() {
        let x = Tensor::of(&[2, 1], vec![1.0f32, -1.0]);
        Case::new("LinearClassifier", 1)
            .domain("ai.onnx.ml")
            .input(x.clone())
            .attr("coefficients", vec![1.0f32, -1.0])
            .attr("intercepts", vec![0.0f32, 0.0])
            .attr("classlabels_ints", vec![7i64, 8])
            .outputs(2)
            .expect(&[Tensor::vector(vec![7i64, 8]), Tensor::of(&[2, 2], vec![1.0f32, -1.0, -1.0, 1.0])]);
        Case::new("LinearRegressor", 1).domain("ai.onnx.ml").input(x).attr("coefficients", vec![1.0f32; 3]).fails("coefficients");
    }
}
