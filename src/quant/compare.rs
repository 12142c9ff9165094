//! Two models on the same inputs: how far the outputs are apart, and the tensors inside that both have.
//!
//! A tensor of the second model belongs to one of the first when it has its name, or its name with a suffix that
//! quantizers add (`_DequantizeLinear_Output` and so on); the dequantized one is preferred, since it is what the
//! operators behind it read.

use std::collections::{BTreeMap, HashMap};

use super::measure::{OutputError, Sums, is_measured};
use super::progress::Progress;
use crate::calibrate::dataset::Dataset;
use crate::error::{Context, Result, ensure};
use crate::interp::{CompileOptions, Program, RunOptions};
use crate::ir::{GraphId, Model, ValueId};
use crate::ops::Item;
use crate::tensor::Tensor;

/// What quantizers make of a tensor's name, the best counterpart first.
const SUFFIXES: &[&str] = &["_DequantizeLinear_Output", "_dequantized", "_qdq", "_DequantizeLinear", ""];

/// A tensor that both models have.
#[derive(Debug, Clone)]
pub struct TensorError {
    /// Its name in the second model.
    pub other: String,
    /// The error, under its name in the first model.
    pub error: OutputError,
}

/// How far two models are apart.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The outputs, in order.
    pub outputs: Vec<OutputError>,
    /// The tensors that both have, worst first; the outputs are not among them.
    pub tensors: Vec<TensorError>,
    /// Samples that were run.
    pub samples: usize,
}

/// Runs both models on at most `limit` samples, spread evenly.
///
/// # Errors
/// The models have different numbers of outputs, or one does not run on a sample.
pub fn compare(
    a: &Model,
    b: &Model,
    data: &dyn Dataset,
    limit: usize,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Comparison> {
    let (outs_a, outs_b) = (a.main().outputs(), b.main().outputs());
    ensure!(
        outs_a.len() == outs_b.len(),
        "the models have {} and {} outputs, which cannot be compared",
        outs_a.len(),
        outs_b.len()
    );
    let pairs = pairs(a, b);
    let (mut inner, mut outer) = (Watched::new(a)?, Watched::new(b)?);
    inner.values = pairs.values().map(|p| p.0).chain(outs_a.iter().copied()).collect();
    outer.values = pairs.values().map(|p| p.1).chain(outs_b.iter().copied()).collect();
    let mut outputs: Vec<Sums> = vec![Sums::default(); outs_a.len()];
    let mut tensors: BTreeMap<&str, Sums> = BTreeMap::new();
    let n = data.len().min(limit);
    progress.begin("comparing", n as u64);
    for i in 0..n {
        let sample = data.sample(i * data.len() / n)?;
        let x = inner.run(&sample.inputs, threads).with_context(|| format!("the first model on {}", sample.origin))?;
        let y = outer.run(&sample.inputs, threads).with_context(|| format!("the second model on {}", sample.origin))?;
        for (sums, (x, y)) in outputs.iter_mut().zip(x.outputs.iter().zip(&y.outputs)) {
            if let (Some(x), Some(y)) = (x, y) {
                sums.add(&Sums::of(x, y)?);
            }
        }
        for (name, (va, vb)) in &pairs {
            if let (Some(x), Some(y)) = (x.values.get(va), y.values.get(vb))
                && is_measured(x.dtype())
                && is_measured(y.dtype())
                && x.shape() == y.shape()
            {
                tensors.entry(name).or_default().add(&Sums::of(x, y)?);
            }
        }
        progress.advance(1);
    }
    progress.end();
    let name = |v: ValueId| a.main().value(v).name.as_str();
    let outputs = outputs.into_iter().zip(outs_a).map(|(s, &v)| s.finish(name(v))).collect();
    let mut tensors: Vec<TensorError> = tensors
        .into_iter()
        .filter(|(n, _)| !outs_a.iter().any(|&v| name(v) == *n))
        .map(|(n, s)| TensorError { other: b.main().value(pairs[n].1).name.clone(), error: s.finish(n) })
        .collect();
    tensors.sort_by(|a, b| a.error.sqnr_db.total_cmp(&b.error.sqnr_db).then(a.error.name.cmp(&b.error.name)));
    Ok(Comparison { outputs, tensors, samples: n })
}

/// Tensors of the main graphs by the name in the first model, with what they are in both.
fn pairs(a: &Model, b: &Model) -> BTreeMap<String, (ValueId, ValueId)> {
    let made = |m: &Model, v: ValueId| m.main().producer(v).is_some();
    let of_b: HashMap<&str, ValueId> =
        b.main().values().filter(|&v| made(b, v)).map(|v| (b.main().value(v).name.as_str(), v)).collect();
    let mut pairs = BTreeMap::new();
    for v in a.main().values().filter(|&v| made(a, v)) {
        let name = &a.main().value(v).name;
        let found = SUFFIXES.iter().find_map(|s| of_b.get(format!("{name}{s}").as_str()));
        if let Some(&w) = found {
            pairs.insert(name.clone(), (v, w));
        }
    }
    pairs
}

/// A model whose values are kept.
struct Watched {
    program: Program,
    values: std::collections::HashSet<ValueId>,
}

/// One run of it.
struct Kept {
    outputs: Vec<Option<Tensor>>,
    values: HashMap<ValueId, Tensor>,
}

impl Watched {
    fn new(model: &Model) -> Result<Self> {
        let options = CompileOptions { watch: &|g, _| g == GraphId::MAIN, skip_unknown: true };
        Ok(Watched { program: Program::compile(model, &options)?, values: std::collections::HashSet::new() })
    }

    fn run(&self, inputs: &[(String, Tensor)], threads: usize) -> Result<Kept> {
        let mut values = HashMap::new();
        let options = RunOptions { threads, ..RunOptions::default() };
        let outputs = self.program.run_named(inputs, options, &mut |_: GraphId, v: ValueId, item: &Item| {
            if let (Item::Tensor(t), true) = (item, self.values.contains(&v)) {
                values.insert(v, t.clone());
            }
            Ok(())
        })?;
        let tensor = |o: Option<Item>| if let Some(Item::Tensor(t)) = o { Some(t) } else { None };
        let measured = |t: &Tensor| is_measured(t.dtype());
        Ok(Kept { outputs: outputs.into_iter().map(|o| tensor(o).filter(measured)).collect(), values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_suffix() {
        let a = crate::ir::text_parse::parse(A).unwrap();
        let b = crate::ir::text_parse::parse(B).unwrap();
        let found: Vec<(String, String)> =
            pairs(&a, &b).into_iter().map(|(n, (_, w))| (n, b.main().value(w).name.clone())).collect();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(found, [pair("h", "h_DequantizeLinear_Output"), pair("y", "y")]);
    }

    const A: &str = r#"<ir_version: 8, opset_import: ["" : 13]>
        a (float[2] x) => (float[2] y) { h = Relu(x) y = Neg(h) }"#;
    const B: &str = r#"<ir_version: 8, opset_import: ["" : 13]>
        b (float[2] x) => (float[2] y) {
            h = Relu(x)
            h_DequantizeLinear_Output = Identity(h)
            y = Neg(h_DequantizeLinear_Output)
        }"#;
}
