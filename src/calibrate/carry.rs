//! State that is fed back: outputs of one sample become inputs of the next, as in recurrent models that are called step
//! by step and in language models with a cache.

use std::sync::Arc;

use super::dataset::{Dataset, InputSpec, Sample};
use crate::error::{Context, Result, WithHelp, anyhow, bail, ensure};
use crate::interp::{CompileOptions, NoTap, Program, RunOptions};
use crate::ir::Model;
use crate::ops::Item;
use crate::tensor::{DType, Tensor};

/// An input and the output that it gets its next value from.
pub type Pair = (String, String);

/// The pairs that `INPUT=OUTPUT` stands for. One `*` on both sides stands for the same text: `past.*=present.*`.
///
/// # Errors
/// The text has another form, or no input of the model is meant, or an output is not there.
pub fn pairs(text: &str, model: &Model) -> Result<Vec<Pair>> {
    let name = |v: &crate::ir::ValueId| model.main().value(*v).name.clone();
    let inputs: Vec<String> = model.main().inputs().iter().map(name).collect();
    let outputs: Vec<String> = model.main().outputs().iter().map(name).collect();
    let (input, output) = text.split_once('=').ok_or_else(|| anyhow!("\"{text}\" is not INPUT=OUTPUT"))?;
    let found: Vec<Pair> = match (input.split_once('*'), output.split_once('*')) {
        (None, None) => vec![(input.to_owned(), output.to_owned())],
        (Some((head, tail)), Some((before, after))) => inputs
            .iter()
            .filter_map(|i| {
                i.strip_prefix(head)?.strip_suffix(tail).map(|m| (i.clone(), format!("{before}{m}{after}")))
            })
            .collect(),
        _ => bail!("\"{text}\" has a * on one side only"),
    };
    ensure!(!found.is_empty(), "\"{input}\" names no input of the model: {}", inputs.join(", "));
    for (i, o) in &found {
        ensure!(inputs.contains(i), "the model has no input \"{i}\": {}", inputs.join(", "));
        ensure!(outputs.contains(o), "the model has no output \"{o}\": {}", outputs.join(", "));
    }
    Ok(found)
}

/// Samples whose carried inputs hold what the float model gave for the sample before. The first one's own value counts,
/// or zeros.
pub struct Carried {
    of: Arc<dyn Dataset>,
    states: Vec<Vec<(String, Tensor)>>,
}

impl Carried {
    /// Runs the model on all samples in their order.
    ///
    /// # Errors
    /// A sample cannot be read, the model does not run on it, or the first sample lacks a state whose size is open.
    pub fn new(
        of: Arc<dyn Dataset>,
        model: &Model,
        specs: &[InputSpec],
        pairs: &[Pair],
        threads: usize,
    ) -> Result<Self> {
        let program = Program::compile(model, &CompileOptions { skip_unknown: true, ..CompileOptions::default() })?;
        let names = program.outputs().to_vec();
        let options = RunOptions { threads, ..RunOptions::default() };
        let mut states: Vec<Vec<(String, Tensor)>> = Vec::with_capacity(of.len());
        let mut next: Option<Vec<(String, Tensor)>> = None;
        for i in 0..of.len() {
            let sample = of.sample(i)?;
            let state = match next.take() {
                Some(state) => state,
                None => start(&sample, specs, pairs)?,
            };
            let outputs = program
                .run_named(&with_state(sample.inputs, &state), options, &mut NoTap)
                .with_context(|| sample.origin.clone())?;
            let mut carried = Vec::new();
            for (input, output) in pairs {
                let at = names.iter().position(|n| n == output);
                match at.and_then(|at| outputs.get(at).cloned().flatten()) {
                    Some(Item::Tensor(t)) => carried.push((input.clone(), t)),
                    _ => bail!("output \"{output}\" is not computed or no tensor, so it cannot be carried"),
                }
            }
            states.push(state);
            next = Some(carried);
        }
        Ok(Carried { of, states })
    }
}

/// The state before the first sample.
fn start(sample: &Sample, specs: &[InputSpec], pairs: &[Pair]) -> Result<Vec<(String, Tensor)>> {
    let mut state = Vec::new();
    for (input, _) in pairs {
        if let Some((_, t)) = sample.inputs.iter().find(|(name, _)| name == input) {
            state.push((input.clone(), t.clone()));
            continue;
        }
        let ty = specs.iter().find(|s| s.name == *input).map(|s| &s.ty);
        let fixed = ty.and_then(|t| t.fixed_shape());
        let Some(shape) = fixed else {
            return Err(anyhow!("{}: the size of \"{input}\" is open and the sample does not give it", sample.origin))
                .help(|| format!("put what \"{input}\" is at the start into the first sample"));
        };
        state.push((input.clone(), Tensor::zeros(ty.and_then(|t| t.dtype).unwrap_or(DType::F32), &shape)?));
    }
    Ok(state)
}

fn with_state(mut inputs: Vec<(String, Tensor)>, state: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    inputs.retain(|(name, _)| !state.iter().any(|(s, _)| s == name));
    inputs.extend(state.iter().cloned());
    inputs
}

impl Dataset for Carried {
    fn len(&self) -> usize {
        self.of.len()
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        let sample = self.of.sample(i)?;
        let state = self.states.get(i).ok_or_else(|| anyhow!("there is no sample {i}"))?;
        Ok(Sample { inputs: with_state(sample.inputs, state), ..sample })
    }

    fn name(&self, i: usize) -> Option<String> {
        self.of.name(i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::dataset::input_specs;
    use crate::ir::text_parse::parse;

    struct Steps;

    impl Dataset for Steps {
        fn len(&self) -> usize {
            3
        }
        fn sample(&self, i: usize) -> Result<Sample> {
            Ok(Sample { origin: format!("step {i}"), inputs: vec![("x".into(), Tensor::vector(vec![i as f32 + 1.0]))] })
        }
    }

    const MODEL: &str = "<ir_version: 8, opset_import: [\"\": 17]>
        g (float[1] x, float[1] \"s.0.in\", float[N] \"s.1.in\") => (float[1] \"s.0.out\", float[N] \"s.1.out\")
        { \"s.0.out\" = Add(x, \"s.0.in\") \"s.1.out\" = Mul(x, \"s.1.in\") }";

    #[test]
    fn states_come_from_the_sample_before() {
        let model = parse(&MODEL.replace("[N]", "[1]")).unwrap();
        let pairs = pairs("s.*.in=s.*.out", &model).unwrap();
        assert_eq!(pairs.len(), 2);
        let c = Carried::new(Arc::new(Steps), &model, &input_specs(&model).unwrap(), &pairs, 1).unwrap();
        let state = |i: usize| c.sample(i).unwrap().inputs[1].1.to_f64().unwrap();
        assert_eq!((state(0), state(1), state(2)), (0.0, 1.0, 3.0));
    }

    #[test]
    fn what_cannot_be_carried_is_said() {
        let model = parse(MODEL).unwrap();
        for (text, part) in [
            ("s.0.in", "is not INPUT=OUTPUT"),
            ("y=s.0.out", "no input \"y\""),
            ("x=s.2.out", "no output \"s.2.out\""),
            ("t.*=s.*", "names no input"),
            ("s.*=x", "one side only"),
        ] {
            let e = pairs(text, &model).unwrap_err().to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
        let all = pairs("s.*.in=s.*.out", &model).unwrap();
        let e = Carried::new(Arc::new(Steps), &model, &input_specs(&model).unwrap(), &all, 1).err().unwrap();
        assert!(e.to_string().contains("the size of \"s.1.in\" is open"), "{e}");
    }
}
