//! Task metrics: what the outputs of a model are worth by the labels of its samples.
//!
//! | metric | label of a sample | score |
//! |---|---|---|
//! | [`Metric::Agreement`] | none | share of the rows of class scores whose first class is the float model's |
//! | [`Metric::Top1`] | class index, or one for each row of the output | share of the rows with that class first |
//! | [`Metric::Top5`] | the same | share of the rows with that class among the first five |
//! | [`Metric::Mse`] | as many numbers as the output has | mean squared difference |
//!
//! A drop is what a quantized model loses: of shares the difference, so that 0.01 is a point; of the mean squared
//! difference how much larger it becomes, as a share of the float model's.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::Data;
use crate::calibrate::dataset::Dataset;
use crate::error::{Context, Result, WithHelp, anyhow, bail, ensure};
use crate::interp::{NoTap, Program, RunOptions};
use crate::kernels;
use crate::ops::Item;
use crate::tensor::Tensor;

/// How outputs are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// By the float model's first class, without labels.
    Agreement,
    /// By the first class.
    Top1,
    /// By the first five classes.
    Top5,
    /// By the mean squared difference to what the labels say.
    Mse,
}

impl Metric {
    /// What is called what.
    pub const ALL: [(&'static str, Metric); 4] =
        [("agreement", Metric::Agreement), ("top-1", Metric::Top1), ("top-5", Metric::Top5), ("mse", Metric::Mse)];

    /// The metric's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, m)| *m == self).map_or("", |(name, _)| name)
    }

    /// How many classes may come first; `None` for a metric that is not about classes.
    fn first(self) -> Option<usize> {
        match self {
            Metric::Top1 => Some(1),
            Metric::Top5 => Some(5),
            Metric::Agreement | Metric::Mse => None,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known of one sample: the class of each row of an output, or the numbers of one.
pub type Label = Vec<f64>;

/// Labels as a file gives them.
#[derive(Debug, Clone, PartialEq)]
pub enum Table {
    /// One for each sample, in their order; `None` for a sample without.
    InOrder(Vec<Option<Label>>),
    /// By the name of the sample's file.
    ByName(Vec<(String, Label)>),
}

impl Table {
    /// The label of each sample of a data set. A sample goes by the name of its file, with or without extension, with or
    /// without the folders that it lies in.
    ///
    /// # Errors
    /// There are more or fewer labels than samples, or a name matches no sample, or several, or one that has a label.
    pub fn of(self, data: &dyn Dataset) -> Result<Vec<Option<Label>>> {
        let n = data.len();
        let named = match self {
            Table::InOrder(labels) => {
                ensure!(labels.len() == n, "{} labels for {n} samples", labels.len());
                return Ok(labels);
            }
            Table::ByName(named) => named,
        };
        let mut samples: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for i in 0..n {
            for name in data.name(i).iter().flat_map(|n| spellings(n)) {
                samples.entry(name).or_default().push(i);
            }
        }
        if samples.is_empty() {
            return Err(anyhow!("these samples have no names, since they lie in one file"))
                .help(|| "give the labels as a JSON array in the order of the samples".into());
        }
        let mut labels: Vec<Option<Label>> = vec![None; n];
        for (name, label) in named {
            match samples.get(name.trim_start_matches("./")).map(Vec::as_slice) {
                Some(&[i]) if labels[i].is_none() => labels[i] = Some(label),
                Some([_]) => bail!("the sample \"{name}\" has two labels"),
                Some(several) => {
                    bail!("\"{name}\" is the name of {} samples: give their folders as well", several.len())
                }
                None => bail!("\"{name}\" is the name of no sample"),
            }
        }
        Ok(labels)
    }
}

/// What a sample of this path may be called.
fn spellings(path: &str) -> Vec<String> {
    let path = path.replace('\\', "/");
    let bare = Path::new(&path).with_extension("");
    let bare = bare.to_string_lossy().replace('\\', "/");
    let mut out: Vec<String> = Vec::new();
    for spelled in [path.as_str(), bare.as_str()] {
        let mut rest = Some(spelled.trim_start_matches("./"));
        while let Some(name) = rest {
            if !name.is_empty() && !out.iter().any(|o| o == name) {
                out.push(name.to_owned());
            }
            rest = name.split_once('/').map(|(_, rest)| rest);
        }
    }
    out
}

/// The labels of a run.
#[derive(Debug, Clone)]
pub struct Labels {
    /// How outputs are judged.
    pub metric: Metric,
    /// Of the calibration samples.
    pub calibration: Vec<Option<Label>>,
    /// Of the samples held out; the same where those are the calibration samples.
    pub held_out: Vec<Option<Label>>,
}

/// Labelled rows below which a drop says nothing: a single one would be more than a quarter of them.
const LEAST_LABELLED: usize = 4;

impl Labels {
    /// Fails when the labels are too few to judge by.
    ///
    /// # Errors
    /// Fewer than four of the samples held out have one.
    pub fn check(&self) -> Result<()> {
        let of_one = |label: &Label| if self.metric == Metric::Mse { 1 } else { label.len() };
        let n: usize = self.held_out.iter().flatten().map(of_one).sum();
        let (samples, all) = (self.held_out.iter().flatten().count(), self.held_out.len());
        ensure!(
            n >= LEAST_LABELLED,
            "{samples} of the {all} samples that are held out have a label, and at least {LEAST_LABELLED} are needed to measure by"
        );
        Ok(())
    }
}

/// What models are worth on the labelled samples of a data set.
pub struct Scorer<'a> {
    data: &'a dyn Dataset,
    labelled: Vec<(usize, &'a Label)>,
    metric: Metric,
    output: usize,
}

impl<'a> Scorer<'a> {
    /// For the samples that have a label. The output that is judged is the first with as many rows of class scores, or
    /// numbers, as the first label says, of the float model.
    ///
    /// # Errors
    /// No sample has a label, the model does not run on the first that has, or has no such output.
    pub fn new(
        float: &Program,
        data: &'a dyn Dataset,
        labels: &'a [Option<Label>],
        metric: Metric,
        threads: usize,
    ) -> Result<Self> {
        let labelled: Vec<(usize, &Label)> =
            labels.iter().enumerate().filter_map(|(i, l)| l.as_ref().map(|l| (i, l))).collect();
        let &(first, label) = labelled.first().ok_or_else(|| anyhow!("no sample has a label"))?;
        let fits = |t: &Tensor| match metric.first() {
            Some(_) => classes(t).is_some_and(|c| c >= 2 && t.len() == c * label.len()),
            None => t.len() == label.len(),
        };
        let (_, outputs) = run(float, data, first, threads)?;
        let output = outputs.iter().position(|t| t.as_ref().is_some_and(|t| t.dtype().is_float() && fits(t)));
        let what = if metric == Metric::Mse { "numbers" } else { "rows of class scores" };
        let output =
            output.ok_or_else(|| anyhow!("no output has {} {what}, as the first label has ({metric})", label.len()))?;
        Ok(Scorer { data, labelled, metric, output })
    }

    /// How outputs are judged.
    #[must_use]
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The number of samples that have a label.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labelled.len()
    }

    /// Whether no sample has a label; never, by construction.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labelled.is_empty()
    }

    /// The score of a model.
    ///
    /// # Errors
    /// A sample cannot be read, the model does not run on it, or its label does not fit the output.
    pub fn score(&self, program: &Program, threads: usize) -> Result<f64> {
        let inner = if self.labelled.len() >= threads { 1 } else { threads };
        let parts = kernels::try_map(self.labelled.len(), |k| {
            let (i, label) = self.labelled[k];
            let (origin, outputs) = run(program, self.data, i, inner)?;
            let t = outputs.get(self.output).and_then(Option::as_ref).context("the output is not computed")?;
            self.one(t, label).with_context(|| format!("the label of {origin}"))
        })?;
        let (sum, n) = parts.iter().fold((0.0, 0.0), |a, p| (a.0 + p.0, a.1 + p.1));
        Ok(sum / n)
    }

    /// What one sample adds, and how often it counts.
    fn one(&self, output: &Tensor, label: &Label) -> Result<(f64, f64)> {
        let y = output.to_f32s()?;
        let Some(first) = self.metric.first() else {
            ensure!(y.len() == label.len(), "has {} numbers, the output {}", label.len(), y.len());
            let sum = y.iter().zip(label).map(|(&y, l)| (f64::from(y) - l).powi(2)).sum();
            return Ok((sum, y.len() as f64));
        };
        let n = classes(output).unwrap_or(1);
        ensure!(y.len() == n * label.len(), "has {} classes, the output {} rows", label.len(), y.len() / n);
        let mut right = 0.0;
        for (row, &class) in y.chunks_exact(n).zip(label) {
            let is_class = class.fract() == 0.0 && (0.0..n as f64).contains(&class);
            ensure!(is_class, "{class} is none of the {n} classes, which count from 0");
            let c = class as usize;
            // Of equal scores the first counts. Written so that a score that is no number is never right.
            let before = row.iter().enumerate().filter(|&(i, s)| *s > row[c] || *s == row[c] && i < c).count();
            right += f64::from(u8::from(before < first && !row[c].is_nan()));
        }
        Ok((right, label.len() as f64))
    }
}

/// The length of the axis that classes lie along: the last that is longer than one.
fn classes(t: &Tensor) -> Option<usize> {
    t.shape().iter().rev().copied().find(|&d| d != 1)
}

/// Where a sample is from, and the outputs on it.
fn run(program: &Program, data: &dyn Dataset, i: usize, threads: usize) -> Result<(String, Vec<Option<Tensor>>)> {
    let sample = data.sample(i)?;
    let options = RunOptions { threads, ..RunOptions::default() };
    let outputs = program.run_named(&sample.inputs, options, &mut NoTap).with_context(|| sample.origin.clone())?;
    let tensors = outputs.into_iter().map(|o| if let Some(Item::Tensor(t)) = o { Some(t) } else { None }).collect();
    Ok((sample.origin, tensors))
}

/// The scores of the float and the quantized model on the same samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Of the float model.
    pub float: f64,
    /// Of the quantized model.
    pub quantized: f64,
    /// Samples with a label.
    pub samples: usize,
}

impl Scores {
    /// What the quantized model loses: a share, negative where it gains.
    #[must_use]
    pub fn drop(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Mse if self.quantized == self.float => 0.0,
            Metric::Mse => self.quantized / self.float - 1.0,
            _ => self.float - self.quantized,
        }
    }
}

/// What the labels say of a result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// How outputs were judged.
    pub metric: Metric,
    /// On the samples held out, which a drop is measured on.
    pub held_out: Scores,
    /// On all samples that have a label, those for calibration included.
    pub all: Scores,
}

/// The float model, judged by labels before anything else is done: labels that do not fit are found before the work.
pub struct Judging<'a> {
    metric: Metric,
    /// On the samples held out, and on those for calibration where some have labels.
    parts: Vec<(Scorer<'a>, f64)>,
}

impl<'a> Judging<'a> {
    /// Runs the float model on all labelled samples, those for calibration and those held out; `None` without labels.
    ///
    /// # Errors
    /// As [`Scorer::new`] and [`Scorer::score`].
    pub fn of(float: &Program, data: &Data<'a>, threads: usize) -> Result<Option<Self>> {
        let Some(labels) = data.labels else { return Ok(None) };
        let mut parts = Vec::new();
        for (data, labels_of) in [(data.holdout, &labels.held_out), (data.calibration, &labels.calibration)] {
            if parts.is_empty() || labels_of.iter().any(Option::is_some) {
                let scorer = Scorer::new(float, data, labels_of, labels.metric, threads)?;
                let score = scorer.score(float, threads)?;
                parts.push((scorer, score));
            }
        }
        Ok(Some(Judging { metric: labels.metric, parts }))
    }

    /// Runs the quantized model on the same samples.
    ///
    /// # Errors
    /// As [`Scorer::score`].
    pub fn finish(&self, quantized: &Program, threads: usize) -> Result<Judged> {
        let mut each = Vec::new();
        for (scorer, float) in &self.parts {
            let quantized = scorer.score(quantized, threads)?;
            each.push(Scores { float: *float, quantized, samples: scorer.len() });
        }
        let samples = each.iter().map(|s| s.samples).sum::<usize>();
        let mean =
            |of: fn(&Scores) -> f64| each.iter().map(|s| of(s) * s.samples as f64).sum::<f64>() / samples.max(1) as f64;
        let all = Scores { float: mean(|s| s.float), quantized: mean(|s| s.quantized), samples };
        let held_out = *each.first().context("nothing was judged")?;
        Ok(Judged { metric: self.metric, held_out, all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::dataset::Sample;
    use crate::interp::CompileOptions;
    use crate::ir::text_parse::parse;

    /// Samples of one input with the names of files.
    struct Named(Vec<(&'static str, Vec<f32>)>);

    impl Dataset for Named {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn sample(&self, i: usize) -> Result<Sample> {
            let x = Tensor::new(&[1, self.0[i].1.len()], self.0[i].1.clone())?;
            Ok(Sample { origin: self.0[i].0.into(), inputs: vec![("x".into(), x)] })
        }
        fn name(&self, i: usize) -> Option<String> {
            Some(self.0[i].0.to_owned()).filter(|n| !n.is_empty())
        }
    }

    fn program() -> Program {
        let text = "<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[1,6] x) => (float[1,6] y) { y = Relu (x) }";
        Program::compile(&parse(text).unwrap(), &CompileOptions::default()).unwrap()
    }

    fn score(metric: Metric, x: &[f32], label: &[f64]) -> Result<f64> {
        let (data, labels) = (Named(vec![("a", x.to_vec())]), [Some(label.to_vec())]);
        Scorer::new(&program(), &data, &labels, metric, 1)?.score(&program(), 1)
    }

    #[test]
    fn scores_are_what_can_be_counted_by_hand() {
        let x = [0.1, 0.5, 0.3, 0.5, 0.2, 0.0];
        for (class, top1, top5) in [(1.0, 1.0, 1.0), (3.0, 0.0, 1.0), (0.0, 0.0, 1.0), (5.0, 0.0, 0.0)] {
            assert_eq!(score(Metric::Top1, &x, &[class]).unwrap(), top1, "{class}");
            assert_eq!(score(Metric::Top5, &x, &[class]).unwrap(), top5, "{class}");
        }
        assert_eq!(score(Metric::Top1, &[f32::NAN; 6], &[0.0]).unwrap(), 0.0);
        let mse = score(Metric::Mse, &[1.0, 2.0, 3.0, -4.0, 0.0, 0.0], &[1.0, 0.0, 3.0, 1.0, 0.0, 1.0]).unwrap();
        assert!((mse - (4.0 + 1.0 + 1.0) / 6.0).abs() < 1e-12, "{mse}");
    }

    #[test]
    fn labels_that_do_not_fit_are_refused() {
        let said = |metric, label: &[f64]| format!("{:#}", score(metric, &[0.0; 6], label).unwrap_err());
        assert_eq!(said(Metric::Top1, &[6.0]), "the label of a: 6 is none of the 6 classes, which count from 0");
        assert!(said(Metric::Top1, &[-1.0]).ends_with("-1 is none of the 6 classes, which count from 0"));
        assert!(said(Metric::Top5, &[0.5]).ends_with("0.5 is none of the 6 classes, which count from 0"));
        assert_eq!(
            said(Metric::Top1, &[0.0, 1.0]),
            "no output has 2 rows of class scores, as the first label has (top-1)"
        );
        assert_eq!(said(Metric::Mse, &[0.0; 3]), "no output has 3 numbers, as the first label has (mse)");
        let few = Labels { metric: Metric::Top1, calibration: vec![], held_out: vec![Some(vec![1.0]), None] };
        let e = few.check().unwrap_err().to_string();
        assert!(e.starts_with("1 of the 2 samples that are held out have a label"), "{e}");
        // A batch of four is enough.
        Labels { held_out: vec![Some(vec![1.0; 4])], ..few }.check().unwrap();
    }

    #[test]
    fn names_find_their_samples() {
        let data = Named(vec![("p/cat/1.jpg", vec![]), ("p/dog/1.jpg", vec![]), ("p/dog/2.jpg", vec![])]);
        let of = |names: &[&str]| {
            let named = names.iter().enumerate().map(|(i, n)| ((*n).to_owned(), vec![i as f64])).collect();
            Table::ByName(named).of(&data).map_err(|e| e.to_string())
        };
        let found = of(&["dog/1.jpg", "2", "p/cat/1"]).unwrap();
        assert_eq!(found, vec![Some(vec![2.0]), Some(vec![0.0]), Some(vec![1.0])]);
        assert_eq!(of(&["2.jpg"]).unwrap(), vec![None, None, Some(vec![0.0])]);
        assert_eq!(of(&["3.jpg"]).unwrap_err(), "\"3.jpg\" is the name of no sample");
        assert!(of(&["1.jpg"]).unwrap_err().starts_with("\"1.jpg\" is the name of 2 samples"));
        assert_eq!(of(&["2", "2.jpg"]).unwrap_err(), "the sample \"2.jpg\" has two labels");
        let in_order = Table::InOrder(vec![None, Some(vec![1.0])]);
        assert_eq!(in_order.of(&data).unwrap_err().to_string(), "2 labels for 3 samples");
        let nameless = Named(vec![("", vec![])]);
        let e = Table::ByName(vec![("a".into(), vec![1.0])]).of(&nameless).unwrap_err();
        assert!(e.to_string().contains("have no names"), "{e}");
    }

    #[test]
    fn drops_are_points_of_shares_and_growth_of_squares() {
        let s = |float, quantized| Scores { float, quantized, samples: 9 };
        assert!((s(0.95, 0.94).drop(Metric::Top1) - 0.01).abs() < 1e-12);
        assert!((s(0.02, 0.03).drop(Metric::Mse) - 0.5).abs() < 1e-12);
        assert_eq!((s(0.0, 0.0).drop(Metric::Mse), s(0.0, 1.0).drop(Metric::Mse)), (0.0, f64::INFINITY));
    }
}
