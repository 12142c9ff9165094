//! `SVMClassifier`, `SVMRegressor` — support vector machines.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxml_SVMClassifier.html>,
//! <https://onnx.ai/onnx/operators/onnx_aionnxml_SVMRegressor.html> (ai.onnx.ml 1)
//! Input: X `[N, F]`, any number type. Outputs: Y, labels `[N]` and Z, scores float; or Y float `[N, 1]`.
//! Attributes: kernel_type LINEAR, POLY, RBF, SIGMOID with kernel_params (gamma, coef0, degree); support_vectors,
//! coefficients, rho, vectors_per_class or n_supports, prob_a, prob_b, post_transform, labels, one_class.
//! A classifier without vectors_per_class is linear. Pairs of classes vote; prob_a and prob_b make probabilities of
//! their scores (Wu, Lin and Weng 2004, second method).
//! Quantized: stays float; there is no integer form of it.
//! Errors: lists that do not fit each other; an unknown kernel.

use super::post_transform::{
    Labels, PostTransform, arg_max, both_classes, classified, features, logistic, rows, scores,
};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::Dim;
use crate::tensor::DType;

const SVM_REGRESSOR: OpDef = OpDef {
    name: "SVMRegressor",
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
        name: "SVMClassifier",
        outputs: Arity::range(1, 2),
        infer: infer_classifier,
        eval: classify,
        ..SVM_REGRESSOR
    },
    SVM_REGRESSOR,
];

fn infer_classifier(ctx: &mut InferCtx<'_>) -> Result<()> {
    let labels = Labels::of(ctx.attrs, "classlabels_ints", "classlabels_strings");
    let n = rows(ctx.shape(0));
    ctx.set_tensor(0, Some(labels.dtype()), Some(vec![n.clone()]));
    ctx.set_tensor(1, Some(DType::F32), Some(vec![n, Dim::Unknown]));
    Ok(())
}

fn infer_regressor(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.set_tensor(0, Some(DType::F32), Some(vec![rows(ctx.shape(0)), Dim::Known(1)]));
    Ok(())
}

#[derive(Clone, Copy)]
enum Kernel {
    Linear,
    Poly { gamma: f64, coef0: f64, degree: f64 },
    Rbf { gamma: f64 },
    Sigmoid { gamma: f64, coef0: f64 },
}

impl Kernel {
    fn of(call: &Call<'_>) -> Result<Self> {
        let p = call.attrs.floats("kernel_params").unwrap_or_default();
        let at = |i: usize| f64::from(p.get(i).copied().unwrap_or(0.0));
        let (gamma, coef0, degree) = (at(0), at(1), at(2));
        Ok(match call.str("kernel_type", "LINEAR").to_ascii_uppercase().as_str() {
            "LINEAR" => Kernel::Linear,
            "POLY" => Kernel::Poly { gamma, coef0, degree },
            "RBF" => Kernel::Rbf { gamma },
            "SIGMOID" => Kernel::Sigmoid { gamma, coef0 },
            k => bail!("attribute \"kernel_type\" is \"{k}\", expected LINEAR, POLY, RBF or SIGMOID"),
        })
    }

    fn apply(self, a: &[f64], b: &[f64]) -> f64 {
        let dot = || a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        match self {
            Kernel::Linear => dot(),
            Kernel::Poly { gamma, coef0, degree } => (gamma * dot() + coef0).powf(degree),
            Kernel::Rbf { gamma } => (-gamma * a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f64>()).exp(),
            Kernel::Sigmoid { gamma, coef0 } => (gamma * dot() + coef0).tanh(),
        }
    }
}

fn list(call: &Call<'_>, name: &str) -> Vec<f64> {
    call.attrs.floats(name).unwrap_or_default().iter().map(|&x| x.into()).collect()
}

fn regress(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let transform = PostTransform::of(call.attrs)?;
    let (x, n, f) = features(call)?;
    let coefficients = list(call, "coefficients");
    let rho = list(call, "rho").first().copied().unwrap_or(0.0);
    let n_supports = usize::try_from(call.int("n_supports", 0)).unwrap_or(0);
    let vectors = list(call, "support_vectors");
    let kernel = if n_supports > 0 { Kernel::of(call)? } else { Kernel::Linear };
    if n_supports > 0 {
        ensure!(
            n_supports.checked_mul(f) == Some(vectors.len()) && coefficients.len() >= n_supports,
            "{n_supports} support vectors of {f} features have {} values and {} coefficients",
            vectors.len(),
            coefficients.len()
        );
    } else {
        ensure!(coefficients.len() == f, "{} coefficients for {f} features", coefficients.len());
    }
    let one_class = call.flag("one_class", false);
    let value = |row: &[f64]| {
        let s = if n_supports > 0 {
            vectors.chunks_exact(f.max(1)).zip(&coefficients).map(|(v, c)| c * kernel.apply(row, v)).sum()
        } else {
            kernel.apply(row, &coefficients)
        } + rho;
        if one_class { if s > 0.0 { 1.0 } else { -1.0 } } else { s }
    };
    let all = (0..n).map(|i| {
        let mut row = vec![value(&x[i * f..(i + 1) * f])];
        transform.apply(&mut row);
        row
    });
    Ok(scores(all.collect())?.into())
}

/// Probabilities of `k` classes from those of each pair, `r[i * k + j]` that it is i rather than j.
fn couple(k: usize, r: &[f64]) -> Vec<f64> {
    let at = |i: usize, j: usize| r[i * k + j];
    let mut q = vec![0.0; k * k];
    for t in 0..k {
        for j in (0..k).filter(|&j| j != t) {
            q[t * k + t] += at(j, t) * at(j, t);
            q[t * k + j] = -at(j, t) * at(t, j);
        }
    }
    let mut p = vec![1.0 / k as f64; k];
    for _ in 0..k.max(100) {
        let mut qp: Vec<f64> = (0..k).map(|t| (0..k).map(|j| q[t * k + j] * p[j]).sum()).collect();
        let mut pqp: f64 = p.iter().zip(&qp).map(|(a, b)| a * b).sum();
        if qp.iter().all(|x| (x - pqp).abs() < 0.005 / k as f64) {
            break;
        }
        for t in 0..k {
            let d = (pqp - qp[t]) / q[t * k + t];
            p[t] += d;
            pqp = (pqp + d * (d * q[t * k + t] + 2.0 * qp[t])) / (1.0 + d) / (1.0 + d);
            for (j, (qp, p)) in qp.iter_mut().zip(&mut p).enumerate() {
                *qp = (*qp + d * q[t * k + j]) / (1.0 + d);
                *p /= 1.0 + d;
            }
        }
    }
    p
}

/// A classifier as its attributes describe it.
struct Classifier {
    kernel: Kernel,
    n_classes: usize,
    features: usize,
    per_class: Vec<usize>,
    vectors: Vec<f64>,
    coefficients: Vec<f64>,
    rho: Vec<f64>,
    prob: Option<(Vec<f64>, Vec<f64>)>,
}

impl Classifier {
    fn of(call: &Call<'_>, n_classes: usize, features: usize) -> Result<Self> {
        let per_class = call.sizes("vectors_per_class", Vec::new)?;
        let total = per_class.iter().try_fold(0usize, |a, &b| a.checked_add(b)).context("too many support vectors")?;
        let (a, b) = (list(call, "prob_a"), list(call, "prob_b"));
        let c = Classifier {
            kernel: if total > 0 { Kernel::of(call)? } else { Kernel::Linear },
            n_classes,
            features,
            vectors: list(call, "support_vectors"),
            coefficients: list(call, "coefficients"),
            rho: list(call, "rho"),
            prob: (!a.is_empty() && total > 0).then_some((a, b)),
            per_class,
        };
        let pairs = n_classes * (n_classes - 1) / 2;
        let bad = |what: &str, n: usize, expected: usize| {
            anyhow!("attribute \"{what}\" has {n} entries, expected {expected}")
        };
        if total > 0 {
            ensure!(features > 0, "input 0 (X) has no features");
            let per = total.checked_mul(features).context("too many support vectors")?;
            ensure!(c.per_class.len() == n_classes, bad("vectors_per_class", c.per_class.len(), n_classes));
            ensure!(c.vectors.len() == per, bad("support_vectors", c.vectors.len(), per));
            let expected = total.saturating_mul(n_classes - 1);
            ensure!(c.coefficients.len() == expected, bad("coefficients", c.coefficients.len(), expected));
            ensure!(c.rho.len() >= pairs, bad("rho", c.rho.len(), pairs));
        } else {
            let expected = n_classes * features;
            ensure!(c.coefficients.len() == expected, bad("coefficients", c.coefficients.len(), expected));
            ensure!(!c.rho.is_empty(), bad("rho", 0, 1));
        }
        if let Some((a, b)) = &c.prob {
            ensure!(a.len() >= pairs && b.len() >= pairs, bad("prob_a", a.len().min(b.len()), pairs));
        }
        Ok(c)
    }

    /// Scores of each class, without support vectors.
    fn linear(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.coefficients.chunks_exact(self.features.max(1));
        rows.map(|w| self.rho[0] + self.kernel.apply(x, w)).collect()
    }

    /// Votes for each class, and the scores of the pairs.
    fn pairs(&self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let kernels: Vec<f64> =
            self.vectors.chunks_exact(self.features.max(1)).map(|v| self.kernel.apply(x, v)).collect();
        let total = kernels.len();
        let starts: Vec<usize> = self
            .per_class
            .iter()
            .scan(0, |s, &n| {
                let start = *s;
                *s += n;
                Some(start)
            })
            .collect();
        let sum = |row: usize, class: usize| -> f64 {
            let part = starts[class]..starts[class] + self.per_class[class];
            part.map(|k| self.coefficients[row * total + k] * kernels[k]).sum()
        };
        let (mut votes, mut out) = (vec![0.0; self.n_classes], Vec::new());
        for i in 0..self.n_classes {
            for j in i + 1..self.n_classes {
                let s = self.rho[out.len()] + sum(j - 1, i) + sum(i, j);
                votes[if s > 0.0 { i } else { j }] += 1.0;
                out.push(s);
            }
        }
        (votes, out)
    }

    /// Probabilities of the classes from the scores of the pairs.
    fn probabilities(&self, pairs: &[f64], a: &[f64], b: &[f64]) -> Vec<f64> {
        let k = self.n_classes;
        let mut r = vec![0.0; k * k];
        let mut index = 0;
        for i in 0..k {
            for j in i + 1..k {
                let p = (1.0 - logistic(pairs[index] * a[index] + b[index])).clamp(1e-7, 1.0 - 1e-7);
                r[i * k + j] = p;
                r[j * k + i] = 1.0 - p;
                index += 1;
            }
        }
        couple(k, &r)
    }
}

fn classify(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let transform = PostTransform::of(call.attrs)?;
    let labels = Labels::of(call.attrs, "classlabels_ints", "classlabels_strings");
    let (x, n, f) = features(call)?;
    let n_classes = labels.len().max(1);
    ensure!(n_classes < 1 << 12, "{n_classes} classes are too many");
    let svm = Classifier::of(call, n_classes, f)?;
    let all_positive = svm.coefficients.iter().all(|&c| c >= 0.0);
    let (mut classes, mut out) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for x in (0..n).map(|i| &x[i * f..(i + 1) * f]) {
        let (votes, mut row) = if svm.per_class.is_empty() {
            (None, svm.linear(x))
        } else {
            let (votes, pairs) = svm.pairs(x);
            match &svm.prob {
                Some((a, b)) => (Some(votes), svm.probabilities(&pairs, a, b)),
                None => (Some(votes), pairs),
            }
        };
        let decisive = votes.as_deref().unwrap_or(&row);
        let best = arg_max(decisive);
        let largest = decisive.get(best).copied().unwrap_or(0.0);
        let class = if svm.rho.len() == 1 && n_classes == 2 && svm.prob.is_none() && all_positive && largest >= 0.5 {
            1
        } else if svm.rho.len() == 1 && n_classes == 1 {
            usize::from(largest > 0.0)
        } else {
            best
        };
        classes.push(class);
        if row.len() == 1 && n_classes == 2 {
            row = both_classes(row[0], false, transform);
        } else {
            transform.apply(&mut row);
        }
        out.push(row);
    }
    let labels = labels.tensor(&classes);
    Ok(classified(call, labels, scores(out)?))
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn regression_and_votes() {
        let x = || Tensor::of(&[2, 1], vec![1.0f32, -2.0]);
        let case = |op: &str| Case::new(op, 1).domain("ai.onnx.ml").input(x());
        case("SVMRegressor")
            .attr("support_vectors", vec![1.0f32, 2.0])
            .attr("coefficients", vec![1.0f32, -1.0])
            .attr("n_supports", 2)
            .attr("rho", vec![0.5f32])
            .attr("kernel_type", "POLY")
            .attr("kernel_params", vec![1.0f32, 0.0, 2.0])
            .expect(&[Tensor::of(&[2, 1], vec![-2.5f32, -11.5])]);
        case("SVMRegressor").attr("coefficients", vec![1.0f32; 2]).fails("2 coefficients for 1 features");
        case("SVMClassifier")
            .attr("support_vectors", vec![1.0f32, -1.0])
            .attr("coefficients", vec![1.0f32, -1.0])
            .attr("vectors_per_class", vec![1i64, 1])
            .attr("classlabels_ints", vec![10i64, 20])
            .attr("rho", vec![0.0f32])
            .outputs(2)
            .expect(&[Tensor::vector(vec![10i64, 20]), Tensor::of(&[2, 2], vec![-2.0f32, 2.0, 4.0, -4.0])]);
        case("SVMClassifier").attr("coefficients", vec![1.0f32; 3]).fails("\"coefficients\" has 3 entries, expected 1");
    }

    #[test]
    fn pairs_make_probabilities() {
        // Each pair prefers the first class by 0.8.
        let r = [0.0, 0.8, 0.8, 0.2, 0.0, 0.5, 0.2, 0.5, 0.0];
        let p = super::couple(3, &r);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(p[0] > 0.6 && (p[1] - p[2]).abs() < 0.01, "{p:?}");
    }
}
