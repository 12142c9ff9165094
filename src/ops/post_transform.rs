//! What the classifiers and regressors of `ai.onnx.ml` share: features, labels, and transforms of scores.

use super::{Call, Item};
use crate::error::{Context, Result, bail, ensure};
use crate::ir::{Attr, Attrs, Dim};
use crate::tensor::{DType, Tensor};

/// A transform of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PostTransform {
    None,
    Softmax,
    Logistic,
    /// Softmax that leaves zeros alone.
    SoftmaxZero,
    Probit,
}

impl PostTransform {
    /// From the attribute of that name.
    ///
    /// # Errors
    /// The specification does not define it.
    pub(super) fn of(attrs: &Attrs) -> Result<Self> {
        let code = |n: i64| {
            usize::try_from(n).ok().and_then(|n| ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"].get(n))
        };
        let name = match attrs.get("post_transform") {
            Some(Attr::Int(n)) => code(*n).copied().unwrap_or(""),
            _ => attrs.str("post_transform").unwrap_or("NONE"),
        };
        Ok(match name {
            "NONE" => Self::None,
            "SOFTMAX" => Self::Softmax,
            "LOGISTIC" => Self::Logistic,
            "SOFTMAX_ZERO" => Self::SoftmaxZero,
            "PROBIT" => Self::Probit,
            p => bail!(
                "attribute \"post_transform\" is \"{p}\", expected NONE, SOFTMAX, LOGISTIC, SOFTMAX_ZERO or PROBIT"
            ),
        })
    }

    /// Transforms the scores of one row.
    pub(super) fn apply(self, row: &mut [f64]) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match self {
            Self::None => {}
            Self::Softmax => {
                row.iter_mut().for_each(|x| *x = (*x - largest).exp());
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|x| *x /= sum);
            }
            Self::SoftmaxZero => {
                let small = (-largest).exp();
                row.iter_mut().for_each(|x| *x = if x.abs() > 1e-7 { (*x - largest).exp() } else { *x * small });
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|x| *x = if sum == 0.0 { 0.5 } else { *x / sum });
            }
            Self::Logistic => row.iter_mut().for_each(|x| *x = logistic(*x)),
            Self::Probit => row.iter_mut().for_each(|x| *x = probit(*x)),
        }
    }
}

/// `1 / (1 + e^-x)`.
pub(super) fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The quantile of the normal distribution, by the approximation of the inverse error function that ONNX Runtime has.
fn probit(x: f64) -> f64 {
    let e = x * 2.0 - 1.0;
    let rest = (1.0 - e) * (1.0 + e);
    if rest <= 0.0 {
        return 0.0;
    }
    let log = rest.ln();
    let v = 2.0 / (std::f64::consts::PI * 0.147) + 0.5 * log;
    std::f64::consts::SQRT_2 * (-v + (v * v - log / 0.147).sqrt()).sqrt().copysign(e)
}

/// The scores of both classes from the one score that a classifier of two classes computes.
pub(super) fn both_classes(score: f64, is_probability: bool, t: PostTransform) -> Vec<f64> {
    if t == PostTransform::Probit {
        return vec![probit(1.0 - score), probit(score)];
    }
    if is_probability {
        return vec![1.0 - score, score];
    }
    let mut row = vec![-score, score];
    t.apply(&mut row);
    row
}

/// The place of the largest score; the first of several.
pub(super) fn arg_max(row: &[f64]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// The labels of classes.
pub(super) enum Labels {
    Ints(Vec<i64>),
    Strings(Vec<String>),
}

impl Labels {
    /// From two attributes, of which one is there; without both labels are the classes' numbers.
    pub(super) fn of(attrs: &Attrs, ints: &str, strings_name: &str) -> Self {
        match strings(attrs, strings_name) {
            Some(v) if !v.is_empty() => Labels::Strings(v),
            _ => Labels::Ints(attrs.ints(ints).map(<[i64]>::to_vec).unwrap_or_default()),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Labels::Ints(v) => v.len(),
            Labels::Strings(v) => v.len(),
        }
    }

    pub(super) fn dtype(&self) -> DType {
        if matches!(self, Labels::Ints(_)) { DType::I64 } else { DType::Str }
    }

    /// The labels of these classes.
    pub(super) fn tensor(&self, classes: &[usize]) -> Tensor {
        match self {
            Labels::Ints(v) => Tensor::vector(classes.iter().map(|&c| v.get(c).copied().unwrap_or(c as i64)).collect()),
            Labels::Strings(v) => {
                Tensor::vector(classes.iter().map(|&c| v.get(c).cloned().unwrap_or_default()).collect::<Vec<String>>())
            }
        }
    }
}

/// The strings of an attribute.
pub(super) fn strings(attrs: &Attrs, name: &str) -> Option<Vec<String>> {
    match attrs.get(name) {
        Some(Attr::Strings(v)) => Some(v.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect()),
        _ => None,
    }
}

/// Numbers of a list of floats, or of the tensor that may stand in its place.
pub(super) fn numbers(attrs: &Attrs, name: &str) -> Result<Option<Vec<f64>>> {
    if let Some(v) = attrs.floats(name) {
        return Ok(Some(v.iter().map(|&x| x.into()).collect()));
    }
    for name in [name.to_owned(), format!("{name}_as_tensor")] {
        if let Some(t) = attrs.tensor(&name) {
            return Ok(Some(t.get()?.to_f64s().with_context(|| format!("attribute \"{name}\""))?));
        }
    }
    Ok(None)
}

/// The features of a batch: rows, their number and their length. A vector is one row.
pub(super) fn features(call: &Call<'_>) -> Result<(Vec<f64>, usize, usize)> {
    let x = call.input(0)?;
    let (n, f) = match x.shape() {
        [f] => (1, *f),
        [n, f] => (*n, *f),
        s => bail!("input 0 (X) has shape {s:?}, expected [N, F]"),
    };
    Ok((x.to_f64s().context("input 0 (X)")?, n, f))
}

/// The number of rows of input 0.
pub(super) fn rows(shape: Option<&[Dim]>) -> Dim {
    match shape {
        Some([n, _]) => n.clone(),
        Some([_]) => Dim::Known(1),
        _ => Dim::Unknown,
    }
}

/// Scores `[N, n]` in 32-bit floats.
pub(super) fn scores(rows: Vec<Vec<f64>>) -> Result<Tensor> {
    let n = rows.first().map_or(0, Vec::len);
    ensure!(rows.iter().all(|r| r.len() == n), "rows have different numbers of scores");
    Tensor::new(&[rows.len(), n], rows.concat().into_iter().map(|x| x as f32).collect::<Vec<f32>>())
}

/// Labels and scores, as far as the node has outputs.
pub(super) fn classified(call: &Call<'_>, labels: Tensor, scores: Tensor) -> Vec<Item> {
    let mut out = vec![Item::Tensor(labels), Item::Tensor(scores)];
    out.truncate(call.n_outputs().max(1));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transforms() {
        let apply = |t: PostTransform, v: &[f64]| {
            let mut v = v.to_vec();
            t.apply(&mut v);
            v
        };
        assert_eq!(apply(PostTransform::Softmax, &[1.0, 1.0]), [0.5, 0.5]);
        assert_eq!(apply(PostTransform::SoftmaxZero, &[2.0, 0.0]), [1.0, 0.0]);
        assert_eq!(apply(PostTransform::Logistic, &[0.0]), [0.5]);
        assert!(apply(PostTransform::Probit, &[0.5])[0].abs() < 1e-6);
        assert!((apply(PostTransform::Probit, &[0.975])[0] - 1.96).abs() < 0.01);
        assert_eq!(both_classes(0.25, true, PostTransform::None), [0.75, 0.25]);
        assert_eq!(both_classes(0.0, false, PostTransform::Logistic), [0.5, 0.5]);
        assert_eq!(arg_max(&[1.0, 3.0, 3.0]), 1);
    }
}
