//! `SVMClassifier`, `SVMRegressor` — support vector machines; linear models when there are no support vectors.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxml_SVMClassifier.html> (`ai.onnx.ml` 1); votes and pairwise
//! probabilities as in LIBSVM, whose models these operators hold.
//! Input: X `[N, C]` or `[C]` of numbers. Outputs: the label of each sample and its scores; or one value a sample.
//! Errors: lists whose lengths do not fit together.

use super::ml::{
    self, Labels, ML, PostTransform, SecondScore, best, infer_classifier, infer_regressor, ints, rows, two_scores,
};
use super::{Arity, Call, Item, OpDef};
use crate::error::{Result, bail, ensure};
use crate::ir::Attrs;

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "SVMClassifier",
        outputs: Arity::range(1, 2),
        infer: |ctx| infer_classifier(ctx, "classlabels_ints"),
        eval: classify,
        ..ML
    },
    OpDef { name: "SVMRegressor", infer: |ctx| infer_regressor(ctx, Some(1)), eval: regress, ..ML },
];

#[derive(Clone, Copy)]
enum Shape {
    Linear,
    Poly,
    Rbf,
    Sigmoid,
}

struct Kernel {
    shape: Shape,
    gamma: f64,
    coef0: f64,
    degree: f64,
}

impl Kernel {
    fn of(attrs: &Attrs) -> Result<Self> {
        let shape = match attrs.str("kernel_type").unwrap_or("LINEAR") {
            "LINEAR" => Shape::Linear,
            "POLY" => Shape::Poly,
            "RBF" => Shape::Rbf,
            "SIGMOID" => Shape::Sigmoid,
            other => bail!("attribute \"kernel_type\" is \"{other}\", expected LINEAR, POLY, RBF or SIGMOID"),
        };
        let p = ml::floats(attrs, "kernel_params")?;
        let at = |i: usize| p.get(i).copied().unwrap_or(0.0);
        Ok(Kernel { shape, gamma: at(0), coef0: at(1), degree: at(2) })
    }

    fn eval(&self, a: &[f64], b: &[f64]) -> f64 {
        let dot = || a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        match self.shape {
            Shape::Linear => dot(),
            Shape::Poly => (self.gamma * dot() + self.coef0).powf(self.degree),
            Shape::Sigmoid => (self.gamma * dot() + self.coef0).tanh(),
            Shape::Rbf => (-self.gamma * a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>()).exp(),
        }
    }
}

fn regress(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let kernel = Kernel::of(call.attrs)?;
    let transform = PostTransform::of(call.attrs)?;
    let (n, c, x) = rows(call.input(0)?)?;
    let vectors = ml::floats(call.attrs, "support_vectors")?;
    let coefficients = ml::floats(call.attrs, "coefficients")?;
    let rho = ml::floats(call.attrs, "rho")?.first().copied().unwrap_or(0.0);
    let n_supports = usize::try_from(call.int("n_supports", 0)).unwrap_or(0);
    let mut out = Vec::with_capacity(n);
    if n_supports > 0 {
        ensure!(
            n_supports.checked_mul(c) == Some(vectors.len()) && coefficients.len() == n_supports,
            "{} elements of support vectors and {} coefficients, expected {n_supports} times {c} and {n_supports}",
            vectors.len(),
            coefficients.len()
        );
    } else {
        ensure!(coefficients.len() == c, "attribute \"coefficients\" has {} elements, expected {c}", coefficients.len());
    }
    for i in 0..n {
        let x = &x[i * c..(i + 1) * c];
        let sum = if n_supports > 0 {
            (0..n_supports).map(|j| coefficients[j] * kernel.eval(x, &vectors[j * c..(j + 1) * c])).sum::<f64>()
        } else {
            kernel.eval(x, &coefficients)
        };
        let mut value = [sum + rho];
        if call.flag("one_class", false) {
            value = [if value[0] > 0.0 { 1.0 } else { -1.0 }];
        }
        transform.apply(&mut value);
        out.extend(value);
    }
    Ok(ml::scores(n, &out)?.into())
}

/// What a classifier's attributes hold.
struct Classifier {
    kernel: Kernel,
    c: usize,
    per_class: Vec<usize>,
    vectors: Vec<f64>,
    coefficients: Vec<f64>,
    rho: Vec<f64>,
    prob: Option<(Vec<f64>, Vec<f64>)>,
}

impl Classifier {
    fn of(attrs: &Attrs, c: usize) -> Result<Self> {
        let per_class = ints(attrs, "vectors_per_class")
            .iter()
            .map(|&v| usize::try_from(v).map_err(|_| crate::error::anyhow!("attribute \"vectors_per_class\" has {v}")))
            .collect::<Result<Vec<_>>>()?;
        let classes = per_class.len();
        let pairs = classes * classes.saturating_sub(1) / 2;
        let total = per_class.iter().try_fold(0usize, |n, &v| n.checked_add(v)).unwrap_or(usize::MAX);
        let vectors = ml::floats(attrs, "support_vectors")?;
        let coefficients = ml::floats(attrs, "coefficients")?;
        let rho = ml::floats(attrs, "rho")?;
        let (a, b) = (ml::floats(attrs, "prob_a")?, ml::floats(attrs, "prob_b")?);
        if classes > 0 {
            ensure!(classes > 1, "attribute \"vectors_per_class\" names one class, expected at least 2");
            ensure!(
                total.checked_mul(c) == Some(vectors.len())
                    && total.checked_mul(classes - 1) == Some(coefficients.len())
                    && rho.len() >= pairs
                    && (a.is_empty() || a.len() >= pairs && b.len() >= pairs),
                "support vectors, coefficients, rho and prob_a do not fit {classes} classes of {total} vectors of {c}"
            );
        }
        let prob = (!a.is_empty()).then_some((a, b));
        Ok(Classifier { kernel: Kernel::of(attrs)?, c, per_class, vectors, coefficients, rho, prob })
    }

    /// The decision value of each pair of classes, and the votes that each class gets.
    fn decide(&self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let n = self.per_class.len();
        let total: usize = self.per_class.iter().sum();
        let kernels: Vec<f64> =
            (0..total).map(|j| self.kernel.eval(x, &self.vectors[j * self.c..(j + 1) * self.c])).collect();
        let start: Vec<usize> = self.per_class.iter().scan(0, |s, &v| Some(std::mem::replace(s, *s + v))).collect();
        let (mut values, mut votes) = (Vec::new(), vec![0.0; n]);
        for i in 0..n {
            for j in i + 1..n {
                let side = |from: usize, row: usize| -> f64 {
                    let range = start[from]..start[from] + self.per_class[from];
                    range.map(|k| self.coefficients[row * total + k] * kernels[k]).sum()
                };
                let value = side(i, j - 1) + side(j, i) + self.rho[values.len()];
                values.push(value);
                votes[if value > 0.0 { i } else { j }] += 1.0;
            }
        }
        (values, votes)
    }

    /// Probabilities of the classes from those of the pairs (Wu, Lin and Weng 2004, as LIBSVM solves it).
    fn probabilities(&self, values: &[f64], a: &[f64], b: &[f64]) -> Vec<f64> {
        let n = self.per_class.len();
        let mut r = vec![0.0; n * n];
        let mut at = 0;
        for i in 0..n {
            for j in i + 1..n {
                let f = values[at] * a[at] + b[at];
                let p = (1.0 / (1.0 + f.exp())).clamp(1e-7, 1.0 - 1e-7);
                r[i * n + j] = p;
                r[j * n + i] = 1.0 - p;
                at += 1;
            }
        }
        let mut q = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                if i != j {
                    q[i * n + i] += r[j * n + i] * r[j * n + i];
                    q[i * n + j] = -r[j * n + i] * r[i * n + j];
                }
            }
        }
        let mut p = vec![1.0 / n as f64; n];
        for _ in 0..100 {
            let mut qp: Vec<f64> = (0..n).map(|i| (0..n).map(|j| q[i * n + j] * p[j]).sum()).collect();
            let mut pqp: f64 = p.iter().zip(&qp).map(|(p, q)| p * q).sum();
            let worst = qp.iter().map(|q| (q - pqp).abs()).fold(0.0, f64::max);
            if worst < 0.005 / n as f64 {
                break;
            }
            for i in 0..n {
                let diff = (pqp - qp[i]) / q[i * n + i];
                p[i] += diff;
                pqp = (pqp + diff * (diff * q[i * n + i] + 2.0 * qp[i])) / ((1.0 + diff) * (1.0 + diff));
                for j in 0..n {
                    qp[j] = (qp[j] + diff * q[i * n + j]) / (1.0 + diff);
                    p[j] /= 1.0 + diff;
                }
            }
        }
        p
    }
}

fn classify(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let transform = PostTransform::of(call.attrs)?;
    let (n, c, x) = rows(call.input(0)?)?;
    let machine = Classifier::of(call.attrs, c)?;
    if machine.per_class.is_empty() {
        return classify_linear(call, &machine, transform);
    }
    let n_classes = machine.per_class.len();
    let labels = Labels::of(call.attrs, "classlabels_ints", n_classes)?;
    let (mut classes, mut out) = (Vec::new(), Vec::new());
    for i in 0..n {
        let (values, votes) = machine.decide(&x[i * c..(i + 1) * c]);
        let (class, mut scores) = match &machine.prob {
            Some((a, b)) => {
                let p = machine.probabilities(&values, a, b);
                (best(&p), p)
            }
            None => (best(&votes), values.clone()),
        };
        // The value of the only pair is positive for the first class; scores count for the second.
        let class = if n_classes == 2 && machine.prob.is_none() { usize::from(values[0] <= 0.0) } else { class };
        classes.push(class);
        if machine.prob.is_none() && scores.len() == 1 {
            let second =
                if transform == PostTransform::None { SecondScore::Negation } else { SecondScore::Complement };
            scores = two_scores(scores[0], transform, second);
        } else {
            transform.apply(&mut scores);
        }
        out.extend(scores);
    }
    Ok(vec![labels.pick(&classes)?.into(), ml::scores(n, &out)?.into()])
}

/// Without support vectors the coefficients are those of one linear function a class.
fn classify_linear(call: &Call<'_>, machine: &Classifier, transform: PostTransform) -> Result<Vec<Item>> {
    let (n, c, x) = rows(call.input(0)?)?;
    let m = machine.coefficients.len().checked_div(c).unwrap_or(0);
    ensure!(m > 0 && m * c == machine.coefficients.len(), "attribute \"coefficients\" does not fit samples of {c}");
    let labels = Labels::of(call.attrs, "classlabels_ints", m.max(2))?;
    let rho = machine.rho.first().copied().unwrap_or(0.0);
    let (mut classes, mut out) = (Vec::new(), Vec::new());
    for i in 0..n {
        let row = &x[i * c..(i + 1) * c];
        let mut scores: Vec<f64> =
            (0..m).map(|j| machine.kernel.eval(row, &machine.coefficients[j * c..(j + 1) * c]) + rho).collect();
        if m == 1 {
            classes.push(usize::from(scores[0] > 0.0));
            scores = two_scores(scores[0], transform, SecondScore::Complement);
        } else {
            classes.push(best(&scores));
            transform.apply(&mut scores);
        }
        out.extend(scores);
    }
    Ok(vec![labels.pick(&classes)?.into(), ml::scores(n, &out)?.into()])
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn a_regressor_sums_kernels() {
        Case::new("SVMRegressor", 1)
            .domain("ai.onnx.ml")
            .input(Tensor::of(&[1, 2], vec![1.0f32, 2.0]))
            .attr("support_vectors", vec![1.0f32, 0.0, 0.0, 1.0])
            .attr("coefficients", vec![2.0f32, -1.0])
            .attr("n_supports", 2i64)
            .attr("rho", vec![0.5f32])
            .expect(&[Tensor::of(&[1, 1], vec![0.5f32])]);
        Case::new("SVMRegressor", 1)
            .domain("ai.onnx.ml")
            .input(Tensor::of(&[1, 2], vec![1.0f32, 2.0]))
            .attr("coefficients", vec![2.0f32])
            .fails("coefficients");
    }

    fn classifier() -> Case {
        Case::new("SVMClassifier", 1)
            .domain("ai.onnx.ml")
            .input(Tensor::of(&[3, 1], vec![2.0f32, -2.0, 0.3]))
            .attr("support_vectors", vec![1.0f32, -1.0])
            .attr("vectors_per_class", vec![1i64, 1])
            .attr("coefficients", vec![1.0f32, -1.0])
            .attr("rho", vec![0.1f32])
            .attr("classlabels_ints", vec![5i64, 6])
            .outputs(2)
            .tolerance(1e-5)
    }

    /// The numbers of this test and the next are ONNX Runtime's.
    #[test]
    fn two_classes_have_one_score() {
        let labels = Tensor::vector(vec![5i64, 6, 5]);
        classifier().expect(&[labels.clone(), Tensor::of(&[3, 2], vec![-4.1f32, 4.1, 3.9, -3.9, -0.7, 0.7])]);
        let logistic = vec![0.0163025f32, 0.9836975, 0.9801598, 0.0198402, 0.3318122, 0.6681878];
        classifier().attr("post_transform", "LOGISTIC").expect(&[labels, Tensor::of(&[3, 2], logistic)]);
    }

    #[test]
    fn several_classes_vote_or_have_probabilities() {
        let case = classifier()
            .attr("support_vectors", vec![1.0f32, -1.0, 3.0])
            .attr("vectors_per_class", vec![1i64, 1, 1])
            .attr("coefficients", vec![1.0f32, -1.0, 0.5, 0.3, -0.2, 0.7])
            .attr("rho", vec![0.1f32, 0.2, 0.3])
            .attr("classlabels_ints", vec![5i64, 6, 7])
            .attr("kernel_type", "RBF")
            .attr("kernel_params", vec![0.5f32, 0.0, 0.0]);
        let labels = Tensor::vector(vec![5i64, 6, 5]);
        let values = vec![
            0.6954217f32, 0.6852245, 0.7223496, -0.4954217, 0.2033346, 0.1786965, 0.4531471, 0.4478721, 0.2323735,
        ];
        case.clone().expect(&[labels.clone(), Tensor::of(&[3, 3], values)]);
        let probabilities = vec![
            0.4484387f32, 0.3610448, 0.1905165, 0.2518388, 0.4559892, 0.2921721, 0.3814533, 0.3454794, 0.2730671,
        ];
        case.attr("prob_a", vec![-1.0f32, -0.5, -2.0])
            .attr("prob_b", vec![0.2f32, 0.1, 0.0])
            .tolerance(1e-4)
            .expect(&[labels, Tensor::of(&[3, 3], probabilities)]);
    }
}
