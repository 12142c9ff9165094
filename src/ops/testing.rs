//! Table tests of single operators: `Case::new("Add", 14).input(a).input(b).expect(&[c])`.
//!
//! Each case evaluates the operator, compares with what is expected, and checks that inference agrees with evaluation:
//! element type and rank must match, and every fixed dimension too.

use super::{Back, Bodies, Call, Gradients, InferBodies, InferCtx, Item, lookup, reverse_rule};
use crate::error::{Result, bail, ensure};
use crate::ir::{Attr, Attrs, Dim, Domain, GraphId, TensorType, ValueType};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor};

/// One call of an operator.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    op_type: String,
    domain: Domain,
    opset: i64,
    attrs: Attrs,
    inputs: Vec<Option<Tensor>>,
    n_outputs: usize,
    tolerance: f64,
}

struct NoBodies;

impl Bodies for NoBodies {
    fn run(&self, _: GraphId, _: Vec<Item>) -> Result<Vec<Item>> {
        bail!("a table test has no bodies")
    }
}

impl InferBodies for NoBodies {
    fn infer(&mut self, _: GraphId, _: &[Option<ValueType>]) -> Result<Vec<Option<ValueType>>> {
        bail!("a table test has no bodies")
    }

    fn try_infer(&mut self, _: GraphId, _: &[Option<ValueType>]) -> Result<Vec<Option<ValueType>>> {
        bail!("a table test has no bodies")
    }
}

impl Case {
    /// A call of an operator of ONNX's own domain at an opset.
    pub(crate) fn new(op_type: &str, opset: i64) -> Self {
        Case {
            op_type: op_type.into(),
            domain: Domain::onnx(),
            opset,
            attrs: Attrs::default(),
            inputs: Vec::new(),
            n_outputs: 1,
            tolerance: 0.0,
        }
    }

    /// In another domain.
    pub(crate) fn domain(mut self, name: &str) -> Self {
        self.domain = Domain::new(name);
        self
    }

    /// With the next input.
    pub(crate) fn input(mut self, t: Tensor) -> Self {
        self.inputs.push(Some(t));
        self
    }

    /// With an empty input slot.
    pub(crate) fn skip(mut self) -> Self {
        self.inputs.push(None);
        self
    }

    /// With an attribute.
    pub(crate) fn attr(mut self, name: &str, value: impl Into<Attr>) -> Self {
        self.attrs.set(name, value.into());
        self
    }

    /// With so many outputs.
    pub(crate) fn outputs(mut self, n: usize) -> Self {
        self.n_outputs = n;
        self
    }

    /// Floats may differ by this much, relative to the larger magnitude (absolute below 1).
    pub(crate) fn tolerance(mut self, t: f64) -> Self {
        self.tolerance = t;
        self
    }

    /// Evaluates, without comparing.
    pub(crate) fn run(&self) -> Result<Vec<Tensor>> {
        let Some(def) = lookup(&self.domain, &self.op_type, self.opset) else {
            bail!("{} {} is not defined", self.op_type, self.opset)
        };
        ensure!(self.inputs.len() >= def.inputs.min && self.inputs.len() <= def.inputs.max, "wrong number of inputs");
        let mut call = Call {
            op_type: &self.op_type,
            attrs: &self.attrs,
            opset: self.opset,
            inputs: self.inputs.iter().map(|t| t.clone().map(Item::Tensor)).collect(),
            constant: &vec![false; self.inputs.len()],
            wanted: &vec![true; self.n_outputs],
            threads: 1,
            seed: 0,
            bodies: &NoBodies,
            shared: &super::Shared::new(),
            fusion: super::Fusion::default(),
        };
        (def.eval)(&mut call)?.into_iter().map(Item::into_tensor).collect()
    }

    /// Infers the output types; inputs count as constants when `constants`.
    pub(crate) fn infer(&self, constants: bool) -> Result<Vec<Option<ValueType>>> {
        let Some(def) = lookup(&self.domain, &self.op_type, self.opset) else {
            bail!("{} {} is not defined", self.op_type, self.opset)
        };
        let ty = |t: &Tensor| ValueType::Tensor(TensorType::fixed(t.dtype(), t.shape()));
        let mut ctx = InferCtx {
            op_type: &self.op_type,
            attrs: &self.attrs,
            opset: self.opset,
            inputs: self.inputs.iter().map(|t| t.as_ref().map(ty)).collect(),
            present: self.inputs.iter().map(Option::is_some).collect(),
            constants: if constants { self.inputs.clone() } else { vec![None; self.inputs.len()] },
            values: vec![None; self.inputs.len()],
            outputs: vec![None; self.n_outputs],
            output_values: vec![None; self.n_outputs],
            bodies: &mut NoBodies,
        };
        (def.infer)(&mut ctx)?;
        Ok(ctx.outputs)
    }

    /// Evaluates, compares, and checks inference against evaluation.
    #[track_caller]
    pub(crate) fn expect(self, expected: &[Tensor]) {
        let got = self.run().unwrap_or_else(|e| panic!("{}: {e:#}", self.op_type));
        assert_eq!(got.len(), expected.len(), "{}: number of outputs", self.op_type);
        for (i, (g, e)) in got.iter().zip(expected).enumerate() {
            assert_eq!((g.dtype(), g.shape()), (e.dtype(), e.shape()), "{} output {i}", self.op_type);
            let same = if self.tolerance == 0.0 { g == e || bits_equal(g, e) } else { close(g, e, self.tolerance) };
            assert!(same, "{} output {i}:\n   got {:?}\nwanted {:?}", self.op_type, g.data(), e.data());
        }
        for constants in [true, false] {
            let types = self.infer(constants).unwrap_or_else(|e| panic!("{} inference: {e:#}", self.op_type));
            for (i, (ty, e)) in types.iter().zip(&got).enumerate() {
                let Some(ty) = ty.as_ref().and_then(ValueType::as_tensor) else { continue };
                assert!(ty.dtype.is_none_or(|d| d == e.dtype()), "{} output {i}: inferred {ty}", self.op_type);
                if let Some(s) = &ty.shape {
                    let ok = s.len() == e.rank()
                        && s.iter().zip(e.shape()).all(|(d, &n)| !matches!(d, Dim::Known(m) if *m != n));
                    assert!(ok, "{} output {i}: inferred {ty}, evaluated {:?}", self.op_type, e.shape());
                }
            }
        }
    }

    /// Evaluates and expects an error that contains this text.
    #[track_caller]
    pub(crate) fn fails(self, text: &str) {
        match self.run() {
            Ok(_) => panic!("{} succeeded, expected an error with \"{text}\"", self.op_type),
            Err(e) => assert!(format!("{e:#}").contains(text), "{}: {e:#}, expected \"{text}\"", self.op_type),
        }
    }

    /// Whether the rule of [`super::reverse`] agrees with central differences of the evaluation, in 64 bits, for these
    /// inputs: every element, on a fixed mixture of all float outputs. `step` is that of the differences; gradients
    /// may differ by `tolerance`, relative to the largest of them.
    ///
    /// # Errors
    /// What the first difference is.
    pub(crate) fn differentiates(&self, slots: &[usize], step: f64, tolerance: f64) -> Result<()> {
        if slots.is_empty() {
            return Ok(());
        }
        let outputs = self.run()?;
        let mix = |i: usize, k: usize| f64::from(((i * 7 + k * 13 + 5) % 11) as f32 - 4.7) / 4.0;
        let of = |(k, y): (usize, &Tensor)| {
            let g = (0..y.len()).map(|i| mix(i, k) as f32).collect();
            (y.dtype() == DType::F32).then(|| Tensor::of(y.shape(), g))
        };
        let gradients: Vec<Option<Tensor>> = outputs.iter().enumerate().map(of).collect();
        let outputs: Vec<Option<Tensor>> = outputs.into_iter().map(Some).collect();
        let found = self.reversed(&outputs, &gradients)?;
        let mut wide = self.clone();
        for t in wide.inputs.iter_mut().flatten().filter(|t| t.dtype() == DType::F32) {
            *t = cast(t, DType::F64, true)?;
        }
        let loss = |case: &Case| -> Result<f64> {
            let mut sum = 0.0;
            for (k, y) in case.run()?.iter().enumerate().filter(|(k, _)| gradients[*k].is_some()) {
                sum += y.to_f64s()?.iter().enumerate().map(|(i, y)| y * mix(i, k)).sum::<f64>();
            }
            Ok(sum)
        };
        for &slot in slots {
            let Some(x) = wide.inputs[slot].clone() else { bail!("input {slot} is missing") };
            let v = x.slice::<f64>()?;
            let got = match found.get(slot) {
                Some(Some(g)) => {
                    ensure!(g.shape() == x.shape(), "input {slot} has a gradient of shape {:?}", g.shape());
                    g.to_f64s()?
                }
                _ => vec![0.0; x.len()],
            };
            let moved = |i: usize, by: f64| {
                let mut v = v.to_vec();
                v[i] += by;
                let mut case = wide.clone();
                case.inputs[slot] = Some(Tensor::of(x.shape(), v));
                loss(&case)
            };
            let difference = |i: usize| Ok((moved(i, step)? - moved(i, -step)?) / (2.0 * step));
            let want: Vec<f64> = (0..v.len()).map(difference).collect::<Result<_>>()?;
            let scale = want.iter().fold(1e-3f64, |m, w| m.max(w.abs()));
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                let x = v[i];
                ensure!((g - w).abs() <= tolerance * scale, "input {slot}[{i}] = {x}: rule {g}, difference {w}");
            }
        }
        Ok(())
    }

    /// What the operator's reverse rule gives for these outputs and their gradients.
    pub(crate) fn reversed(&self, outputs: &[Option<Tensor>], gradients: &[Option<Tensor>]) -> Result<Gradients> {
        let Some(def) = lookup(&self.domain, &self.op_type, self.opset) else { bail!("the operator is not defined") };
        let Some(rule) = reverse_rule(def) else { bail!("the operator has no rule") };
        (rule.rule)(&Back {
            def,
            attrs: &self.attrs,
            opset: self.opset,
            inputs: &self.inputs,
            outputs,
            gradients,
            wanted: &vec![true; self.inputs.len()],
            threads: 2,
        })
    }

    /// The operator's domain and name.
    pub(crate) fn operator(&self) -> (&str, &str) {
        (self.domain.canonical(), &self.op_type)
    }
}

/// Evaluates an operator of ONNX's own domain without attributes on any items: sequences, optionals, maps.
pub(crate) fn call_items(op_type: &str, opset: i64, inputs: Vec<Item>) -> Result<Vec<Item>> {
    call_items_with(op_type, opset, inputs, &[])
}

/// Evaluates an operator of ONNX's own domain with integer attributes on any items.
pub(crate) fn call_items_with(
    op_type: &str,
    opset: i64,
    inputs: Vec<Item>,
    attrs: &[(&str, i64)],
) -> Result<Vec<Item>> {
    let Some(def) = lookup(&Domain::onnx(), op_type, opset) else { bail!("{op_type} {opset} is not defined") };
    let mut set = Attrs::default();
    attrs.iter().for_each(|(name, value)| set.set(name, (*value).into()));
    let constant = vec![false; inputs.len()];
    let mut call = Call {
        op_type,
        attrs: &set,
        opset,
        inputs: inputs.into_iter().map(Some).collect(),
        constant: &constant,
        wanted: &[true],
        threads: 1,
        seed: 0,
        bodies: &NoBodies,
        shared: &super::Shared::new(),
        fusion: super::Fusion::default(),
    };
    (def.eval)(&mut call)
}

/// Equal bit for bit, so that NaN equals NaN.
fn bits_equal(a: &Tensor, b: &Tensor) -> bool {
    match (a.to_f64s(), b.to_f64s()) {
        (Ok(x), Ok(y)) => x.iter().zip(&y).all(|(x, y)| x == y || (x.is_nan() && y.is_nan())),
        _ => false,
    }
}

fn close(a: &Tensor, b: &Tensor, tolerance: f64) -> bool {
    let (Ok(x), Ok(y)) = (a.to_f64s(), b.to_f64s()) else { return a == b };
    x.iter().zip(&y).all(|(x, y)| {
        x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance * x.abs().max(y.abs()).max(1.0)
    })
}
