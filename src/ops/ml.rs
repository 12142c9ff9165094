//! What the operators of `ai.onnx.ml` share: class labels, transformations of scores, samples as rows.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Attr, Attrs, Dim};
use crate::tensor::{DType, Tensor};

/// A definition of `ai.onnx.ml` with one input and one output; operators override what differs.
pub(super) const ML: OpDef = OpDef {
    name: "",
    domain: OpDomain::Ml,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: |_| Ok(()),
    eval: |_| bail!("no evaluation"),
    quant: QuantRule::Keep { why: "belongs to classical machine learning, which has no integer arithmetic" },
};

/// A list of strings; `None` when it is missing or of another kind.
///
/// # Errors
/// One is not UTF-8.
pub(super) fn strings(attrs: &Attrs, name: &str) -> Result<Option<Vec<String>>> {
    let Some(Attr::Strings(v)) = attrs.get(name) else { return Ok(None) };
    let text =
        |b: &bytes::Bytes| String::from_utf8(b.to_vec()).map_err(|_| anyhow!("attribute \"{name}\" is not UTF-8"));
    v.iter().map(text).collect::<Result<_>>().map(Some)
}

/// Floats given as a list or, for doubles, as a tensor named `NAME_as_tensor`; empty when missing.
pub(super) fn floats(attrs: &Attrs, name: &str) -> Result<Vec<f64>> {
    if let Some(t) = attrs.tensor(&format!("{name}_as_tensor")) {
        return t.get()?.to_f64s();
    }
    Ok(attrs.floats(name).unwrap_or_default().iter().map(|&x| x.into()).collect())
}

/// Integers of an attribute; empty when missing.
pub(super) fn ints<'a>(attrs: &'a Attrs, name: &str) -> &'a [i64] {
    attrs.ints(name).unwrap_or_default()
}

/// Names of classes.
pub(super) enum Labels {
    Ints(Vec<i64>),
    Strings(Vec<String>),
}

impl Labels {
    /// The labels of a classifier; integers from 0 when it has none.
    pub(super) fn of(attrs: &Attrs, ints_name: &str, n: usize) -> Result<Self> {
        if let Some(v) = strings(attrs, "classlabels_strings")?.filter(|v| !v.is_empty()) {
            return Ok(Labels::Strings(v));
        }
        Ok(match attrs.ints(ints_name) {
            Some(v) if !v.is_empty() => Labels::Ints(v.to_vec()),
            _ => Labels::Ints((0..n as i64).collect()),
        })
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Labels::Ints(v) => v.len(),
            Labels::Strings(v) => v.len(),
        }
    }

    /// The labels of classes given by number.
    pub(super) fn pick(&self, classes: &[usize]) -> Result<Tensor> {
        for &c in classes {
            ensure!(c < self.len(), "class {c} has no label: there are {}", self.len());
        }
        Ok(match self {
            Labels::Ints(v) => Tensor::vector(classes.iter().map(|&c| v[c]).collect()),
            Labels::Strings(v) => Tensor::vector(classes.iter().map(|&c| v[c].clone()).collect()),
        })
    }
}

/// Types of a classifier's outputs: a label and the scores of each sample.
pub(super) fn infer_classifier(ctx: &mut InferCtx<'_>, ints_name: &str) -> Result<()> {
    let n = samples(ctx);
    let labels = if strings(ctx.attrs, "classlabels_strings")?.is_some_and(|v| !v.is_empty()) {
        DType::Str
    } else {
        let _ = ints_name;
        DType::I64
    };
    ctx.set_tensor(0, Some(labels), Some(vec![n.clone()]));
    ctx.set_tensor(1, Some(DType::F32), Some(vec![n, Dim::Unknown]));
    Ok(())
}

/// Type of a regressor's output: so many floats for each sample.
pub(super) fn infer_regressor(ctx: &mut InferCtx<'_>, targets: Option<i64>) -> Result<()> {
    let columns = targets.and_then(|t| usize::try_from(t).ok()).map_or(Dim::Unknown, Dim::Known);
    let n = samples(ctx);
    ctx.set_tensor(0, Some(DType::F32), Some(vec![n, columns]));
    Ok(())
}

fn samples(ctx: &InferCtx<'_>) -> Dim {
    match ctx.shape(0) {
        Some([_]) => Dim::Known(1),
        Some([n, ..]) => n.clone(),
        _ => Dim::Unknown,
    }
}

/// Samples as rows of doubles: `[N, C]`, or one sample `[C]`.
///
/// # Errors
/// The rank is another, or the elements are no numbers.
pub(super) fn rows(x: &Tensor) -> Result<(usize, usize, Vec<f64>)> {
    let (n, c) = match *x.shape() {
        [c] => (1, c),
        [n, c] => (n, c),
        _ => bail!("input 0 has rank {}, expected 1 or 2", x.rank()),
    };
    Ok((n, c, x.to_f64s()?))
}

/// What happens to scores at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PostTransform {
    None,
    Softmax,
    Logistic,
    SoftmaxZero,
    Probit,
}

impl PostTransform {
    /// By the attribute's name.
    pub(super) fn of(attrs: &Attrs) -> Result<Self> {
        Ok(match attrs.str("post_transform").unwrap_or("NONE") {
            "NONE" => PostTransform::None,
            "SOFTMAX" => PostTransform::Softmax,
            "LOGISTIC" => PostTransform::Logistic,
            "SOFTMAX_ZERO" => PostTransform::SoftmaxZero,
            "PROBIT" => PostTransform::Probit,
            other => bail!("attribute \"post_transform\" is \"{other}\", which names no transformation"),
        })
    }

    /// By the number that `TreeEnsemble` uses.
    pub(super) fn numbered(code: i64) -> Result<Self> {
        use PostTransform::*;
        let all = [None, Softmax, Logistic, SoftmaxZero, Probit];
        let found = usize::try_from(code).ok().and_then(|i| all.get(i).copied());
        found.ok_or_else(|| anyhow!("attribute \"post_transform\" is {code}, expected 0 to 4"))
    }

    /// Transforms the scores of one sample.
    pub(super) fn apply(self, scores: &mut [f64]) {
        match self {
            PostTransform::None => {}
            PostTransform::Logistic => scores.iter_mut().for_each(|s| *s = logistic(*s)),
            PostTransform::Probit => scores.iter_mut().for_each(|s| *s = probit(*s)),
            PostTransform::Softmax | PostTransform::SoftmaxZero => {
                let is_out = |s: f64| self == PostTransform::SoftmaxZero && s.abs() <= 1e-7;
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let mut sum = 0.0;
                for s in scores.iter_mut() {
                    if is_out(*s) {
                        *s *= (-max).exp();
                    } else {
                        *s = (*s - max).exp();
                        sum += *s;
                    }
                }
                if sum != 0.0 {
                    scores.iter_mut().for_each(|s| *s /= sum);
                }
            }
        }
    }
}

/// How the single score of a two-class model becomes two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SecondScore {
    /// A probability: `[1 - s, s]`.
    Complement,
    /// A signed distance: `[-s, s]`.
    Negation,
}

/// The two scores of a two-class model that has one.
pub(super) fn two_scores(score: f64, transform: PostTransform, second: SecondScore) -> Vec<f64> {
    match (transform, second) {
        (PostTransform::Probit, _) => vec![probit(score)],
        (PostTransform::Logistic, _) => vec![logistic(-score), logistic(score)],
        (_, SecondScore::Complement) => vec![1.0 - score, score],
        (_, SecondScore::Negation) => vec![-score, score],
    }
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The inverse of the normal distribution, by the approximation that ONNX Runtime uses.
fn probit(x: f64) -> f64 {
    let y = 2.0 * x - 1.0;
    let log = ((1.0 - y) * (1.0 + y)).ln();
    let v = 2.0 / (std::f64::consts::PI * 0.147) + 0.5 * log;
    let inverse = (-v + (v * v - log / 0.147).sqrt()).sqrt();
    std::f64::consts::SQRT_2 * inverse.copysign(y)
}

/// The first of the largest scores.
pub(super) fn best(scores: &[f64]) -> usize {
    (1..scores.len()).fold(0, |b, i| if scores[i] > scores[b] { i } else { b })
}

/// Scores `[N, M]` as floats.
pub(super) fn scores(n: usize, v: &[f64]) -> Result<Tensor> {
    let columns = if n == 0 { 0 } else { v.len() / n };
    Tensor::new(&[n, columns], v.iter().map(|&x| x as f32).collect())
}

/// Evaluates a function that maps rows to rows of as many floats.
pub(super) fn map_rows(call: &Call<'_>, f: impl Fn(&mut [f64])) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let (_, c, mut v) = rows(x)?;
    if c > 0 {
        v.chunks_mut(c).for_each(f);
    }
    Ok(Tensor::new(x.shape(), v.iter().map(|&x| x as f32).collect())?.into())
}
