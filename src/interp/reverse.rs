//! One pass back through a model: how each value moves the outputs.
//!
//! [`Recorder::record`] runs the model forward on one sample and keeps its values; [`Recording::reverse`] starts from
//! gradients of outputs and walks the main graph against the order of execution, with the operators' own rules
//! ([`crate::ops::reverse`]). A value's gradient is complete when the walk reaches its producer, is shown, and freed.
//!
//! Where an operator has no rule (control flow, recurrent layers, operators that we do not know) the gradient stops, and
//! [`Trace`] says so: what lies before it alone, or partly, has no gradient that means anything.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{CompileOptions, Program, RunOptions};
use crate::error::{At, Result, ensure};
use crate::ir::{Def, GraphId, Model, NodeId, ValueId};
use crate::ops::{Back, Item, OpDef, lookup, reverse_rule};
use crate::tensor::{DType, Tensor};

/// Sees gradients as they are made.
pub trait Gradient {
    /// Whether the gradient of a stored tensor, as input `slot` of a node, is wanted.
    fn wants_constant(&self, node: NodeId, slot: usize) -> bool;

    /// What input `slot` of a node alone contributes to the gradient of its value.
    ///
    /// # Errors
    /// What it returns ends the pass.
    fn edge(&mut self, node: NodeId, slot: usize, value: &Tensor, gradient: &[f32]) -> Result<()>;

    /// The whole gradient of a value that is no constant.
    ///
    /// # Errors
    /// What it returns ends the pass.
    fn value(&mut self, v: ValueId, value: &Tensor, gradient: &[f32]) -> Result<()>;
}

/// Where gradients stopped, and why.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Nodes whose outputs have a gradient that did not pass to their inputs.
    pub stopped: BTreeMap<NodeId, String>,
}

/// A model that is run forward and back.
pub struct Recorder<'m> {
    model: &'m Model,
    program: Program,
    order: Vec<NodeId>,
}

impl<'m> Recorder<'m> {
    /// Compiles a model so that all values of its main graph can be kept.
    ///
    /// # Errors
    /// The model does not compile.
    pub fn new(model: &'m Model) -> Result<Self> {
        let options = CompileOptions { watch: &|g, _| g == GraphId::MAIN, skip_unknown: true };
        Ok(Recorder { model, program: Program::compile(model, &options)?, order: model.main().order()? })
    }

    /// Runs the model on a sample and keeps every value.
    ///
    /// # Errors
    /// The model does not run on the sample.
    pub fn record(&self, sample: &[(String, Tensor)], threads: usize) -> Result<Recording<'_, 'm>> {
        let mut values = HashMap::new();
        let options = RunOptions { threads, ..RunOptions::default() };
        self.program.run_named(sample, options, &mut |_: GraphId, v: ValueId, item: &Item| {
            if let Item::Tensor(t) = item {
                values.insert(v, t.clone());
            }
            Ok(())
        })?;
        Ok(Recording { recorder: self, values })
    }

    fn def(&self, n: NodeId) -> Option<(&'static OpDef, i64)> {
        let node = self.model.main().node(n);
        if self.model.function(&node.domain, &node.op_type, &node.overload).is_some() {
            return None;
        }
        let opset = self.model.opset(&node.domain).unwrap_or(1);
        lookup(&node.domain, &node.op_type, opset).map(|d| (d, opset))
    }

    /// The values whose gradient is complete although gradients stopped at some nodes: all that reads them leads to
    /// the outputs through rules, or to nothing that has gradients (shapes, comparisons).
    #[must_use]
    pub fn complete(&self, trace: &Trace) -> HashSet<ValueId> {
        let g = self.model.main();
        let mut incomplete = HashSet::new();
        for &n in self.order.iter().rev() {
            let is_open = g.node_outputs(n).into_iter().flatten().any(|v| incomplete.contains(&v));
            if is_open || trace.stopped.contains_key(&n) {
                incomplete.extend(g.node_inputs(n).into_iter().flatten().chain(g.captures(n)));
            }
        }
        g.values().filter(|v| !incomplete.contains(v)).collect()
    }
}

/// The values of one run.
pub struct Recording<'r, 'm> {
    recorder: &'r Recorder<'m>,
    values: HashMap<ValueId, Tensor>,
}

impl Recording<'_, '_> {
    /// A value of the main graph.
    #[must_use]
    pub fn value(&self, v: ValueId) -> Option<&Tensor> {
        self.values.get(&v)
    }

    /// Walks back from gradients of some values (the outputs, as a rule), each float of its value's shape.
    ///
    /// # Errors
    /// A gradient has another shape than its value, a stored tensor cannot be read, or `see` fails.
    pub fn reverse(&self, from: Vec<(ValueId, Tensor)>, threads: usize, see: &mut dyn Gradient) -> Result<Trace> {
        let g = self.recorder.model.main();
        let mut trace = Trace::default();
        let mut gradients: HashMap<ValueId, Tensor> = HashMap::new();
        for (v, gradient) in from {
            add(&mut gradients, v, gradient)?;
        }
        for &n in self.recorder.order.iter().rev() {
            let outs = g.node_outputs(n);
            let mut of_outputs = Vec::with_capacity(outs.len());
            for v in &outs {
                let gradient = v.and_then(|v| gradients.remove(&v));
                if let (Some(gradient), Some(v)) = (&gradient, v)
                    && let Some(value) = self.value(*v)
                {
                    see.value(*v, value, gradient.slice()?)?;
                }
                of_outputs.push(gradient);
            }
            if of_outputs.iter().any(Option::is_some) {
                self.node(n, &of_outputs, threads, see, &mut gradients, &mut trace).at(|| g.node(n).location())?;
            }
        }
        // What is left belongs to graph inputs.
        for &v in g.inputs() {
            if let (Some(gradient), Some(value)) = (gradients.remove(&v), self.value(v)) {
                see.value(v, value, gradient.slice()?)?;
            }
        }
        Ok(trace)
    }

    fn node(
        &self,
        n: NodeId,
        of_outputs: &[Option<Tensor>],
        threads: usize,
        see: &mut dyn Gradient,
        gradients: &mut HashMap<ValueId, Tensor>,
        trace: &mut Trace,
    ) -> Result<()> {
        let g = self.recorder.model.main();
        let ins = g.node_inputs(n);
        let rule = self.recorder.def(n).and_then(|(def, opset)| Some((def, opset, reverse_rule(def)?)));
        let Some((def, opset, rule)) = rule else {
            trace.stopped.insert(n, format!("{} has no reverse rule", g.node(n).op_type));
            return Ok(());
        };
        let (mut inputs, mut wanted) = (Vec::with_capacity(ins.len()), Vec::with_capacity(ins.len()));
        for (slot, v) in ins.iter().enumerate() {
            let constant = v.and_then(|v| stored(&g.value(v).def));
            let x = match (v, constant) {
                (None, _) => None,
                (Some(_), Some(t)) => Some(t.get()?.clone()),
                (Some(v), None) => self.value(*v).cloned(),
            };
            let is_float = x.as_ref().is_some_and(|t| is_real(t.dtype()));
            wanted.push(is_float && (constant.is_none() || see.wants_constant(n, slot)));
            inputs.push(x);
        }
        if !wanted.contains(&true) {
            return Ok(());
        }
        let outputs: Vec<Option<Tensor>> =
            g.node_outputs(n).into_iter().map(|v| v.and_then(|v| self.value(v)).cloned()).collect();
        let attrs = &g.node(n).attrs;
        let back = Back {
            def,
            attrs,
            opset,
            inputs: &inputs,
            outputs: &outputs,
            gradients: of_outputs,
            wanted: &wanted,
            threads,
        };
        let of_inputs = match (rule.rule)(&back) {
            Ok(of_inputs) => of_inputs,
            Err(e) => {
                trace.stopped.insert(n, format!("{e:#}"));
                return Ok(());
            }
        };
        for (slot, gradient) in of_inputs.into_iter().enumerate() {
            let (Some(mut gradient), Some(Some(v)), Some(x)) = (gradient, ins.get(slot), back.optional(slot)) else {
                continue;
            };
            tame(gradient.slice_mut()?);
            see.edge(n, slot, x, gradient.slice()?)?;
            if stored(&g.value(*v).def).is_none() {
                add(gradients, *v, gradient)?;
            }
        }
        Ok(())
    }
}

fn stored(def: &Def) -> Option<&crate::ir::TensorRef> {
    match def {
        Def::Initializer(t) => Some(t),
        _ => None,
    }
}

/// Where a slope is infinite (`Log` and `Sqrt` at 0) an element has no gradient that means anything: it gets none, lest
/// it spoil all others.
fn tame(gradient: &mut [f32]) {
    // x * 0 is 0 for a finite x and NaN for any other. Lanes, so that no addition waits for the one before.
    let mut sums = [0f32; 16];
    let (chunks, rest) = gradient.as_chunks::<16>();
    chunks.iter().for_each(|c| sums.iter_mut().zip(c).for_each(|(s, g)| *s += g * 0.0));
    if !(sums.iter().sum::<f32>() + rest.iter().map(|g| g * 0.0).sum::<f32>()).is_nan() {
        return;
    }
    gradient.iter_mut().filter(|g| !g.is_finite()).for_each(|g| *g = 0.0);
}

/// Types that values have gradients in.
fn is_real(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64)
}

fn add(gradients: &mut HashMap<ValueId, Tensor>, v: ValueId, gradient: Tensor) -> Result<()> {
    match gradients.entry(v) {
        std::collections::hash_map::Entry::Vacant(e) => {
            e.insert(gradient);
        }
        std::collections::hash_map::Entry::Occupied(mut e) => {
            let sum = e.get_mut();
            ensure!(
                sum.len() == gradient.len(),
                "two gradients of one value have {} and {} elements",
                sum.len(),
                gradient.len()
            );
            sum.slice_mut::<f32>()?.iter_mut().zip(gradient.slice::<f32>()?).for_each(|(s, g)| *s += g);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text_parse::parse;

    /// Keeps the gradients of values.
    #[derive(Default)]
    struct Keep(HashMap<ValueId, Vec<f32>>, Vec<(NodeId, usize)>);

    impl Gradient for Keep {
        fn wants_constant(&self, _: NodeId, _: usize) -> bool {
            true
        }

        fn edge(&mut self, node: NodeId, slot: usize, _: &Tensor, _: &[f32]) -> Result<()> {
            self.1.push((node, slot));
            Ok(())
        }

        fn value(&mut self, v: ValueId, _: &Tensor, gradient: &[f32]) -> Result<()> {
            self.0.insert(v, gradient.to_vec());
            Ok(())
        }
    }

    #[test]
    fn gradients_of_a_branching_network_agree_with_differences() {
        let model = parse(
            r#"<ir_version: 8, opset_import: ["" : 13]>
            g (double[2,3] x) => (double[2,3] y, double[2,1] z)
            <double[3,3] w = {0.5, -1.0, 0.25, 2.0, 0.3, -0.7, 1.5, -0.2, 0.9}>
            {
                h = MatMul (x, w)
                r = Relu (h)
                s = Add (r, x)
                y = Mul (s, r)
                z = ReduceMean <axes = [1]> (h)
            }"#,
        )
        .unwrap();
        let g = model.main();
        let x = vec![0.3, -0.8, 0.5, 1.1, 0.4, -0.6];
        let loss = |x: &[f64]| -> f64 {
            let program = Program::compile(&model, &CompileOptions::default()).unwrap();
            let out = program.run_tensors(&[Tensor::of(&[2, 3], x.to_vec())], RunOptions::default()).unwrap();
            let sum =
                |t: &Tensor| t.to_f64s().unwrap().iter().enumerate().map(|(i, y)| y * (i as f64 + 1.0)).sum::<f64>();
            sum(&out[0]) - 2.0 * sum(&out[1])
        };
        let recorder = Recorder::new(&model).unwrap();
        let recording = recorder.record(&[("x".into(), Tensor::of(&[2, 3], x.clone()))], 1).unwrap();
        let seed = |name: &str, shape: &[usize], by: f32| {
            let n = shape.iter().product();
            (g.find_value(name).unwrap(), Tensor::of(shape, (0..n).map(|i: usize| by * (i as f32 + 1.0)).collect()))
        };
        let mut keep = Keep::default();
        let from = vec![seed("y", &[2, 3], 1.0), seed("z", &[2, 1], -2.0)];
        let trace = recording.reverse(from, 1, &mut keep).unwrap();
        assert!(trace.stopped.is_empty());
        let got = &keep.0[&g.find_value("x").unwrap()];
        for i in 0..x.len() {
            let moved = |by: f64| {
                let mut x = x.clone();
                x[i] += by;
                loss(&x)
            };
            let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((f64::from(got[i]) - want).abs() < 1e-4, "{i}: {} for {want}", got[i]);
        }
        // x and r are read twice, w and the others once.
        assert_eq!(keep.1.len(), 8, "{:?}", keep.1);
    }

    #[test]
    fn where_gradients_stop_is_known() {
        let model = parse(
            r#"<ir_version: 8, opset_import: ["" : 13]>
            g (float[1,2,1] x) => (float[1,2,1] y)
            {
                a = Neg (x)
                b = LRN <size = 1> (a)
                c = Exp (b)
                d = Shape (a)
                y = Reshape (c, d)
            }"#,
        )
        .unwrap();
        let g = model.main();
        let recorder = Recorder::new(&model).unwrap();
        let x = Tensor::of(&[1, 2, 1], vec![1.0f32, 2.0]);
        let recording = recorder.record(&[("x".into(), x.clone())], 1).unwrap();
        let from = vec![(g.find_value("y").unwrap(), x)];
        let trace = recording.reverse(from, 1, &mut Keep::default()).unwrap();
        assert_eq!(trace.stopped.values().collect::<Vec<_>>(), ["LRN has no reverse rule"]);
        let complete = recorder.complete(&trace);
        let is_complete = |name: &str| complete.contains(&g.find_value(name).unwrap());
        assert_eq!(["x", "a", "b", "c", "y"].map(is_complete), [false, false, true, true, true]);
    }
}
