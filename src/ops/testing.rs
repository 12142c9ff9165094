//! Table tests of single operators: `Case::new("Add", 14).input(a).input(b).expect(&[c])`.
//!
//! Each case evaluates the operator, compares with what is expected, and checks that inference agrees with evaluation:
//! element type and rank must match, and every fixed dimension too.

use super::{Bodies, Call, InferBodies, InferCtx, Item, lookup};
use crate::error::{Result, bail, ensure};
use crate::ir::{Attr, Attrs, Dim, Domain, GraphId, TensorType, ValueType};
use crate::tensor::Tensor;

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
