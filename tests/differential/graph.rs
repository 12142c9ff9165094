//! A random case: nodes in a row with their inputs, as a model.

use onnx_quant::ir::text::{PrintOptions, print};
use onnx_quant::ir::{Attr, Attrs, Def, Domain, Model, Node as IrNode, TensorType, ValueType};
use onnx_quant::tensor::{DType, Tensor};

use crate::common::compare::{self, Tolerance};
use crate::common::tensors::to_array;
use crate::random::{Gen, from_f64s};

/// What is connected to an input slot.
#[derive(Clone, Debug)]
pub enum Slot {
    /// The case's tensor, or the output of the node before.
    X,
    /// A tensor that may be a graph input or a constant.
    T(Tensor),
    /// A constant.
    Const(Tensor),
    Empty,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub op: &'static str,
    pub domain: &'static str,
    pub attrs: Attrs,
    pub inputs: Vec<Slot>,
    pub n_outputs: usize,
    /// How far single precision may be off, relative to the largest element.
    pub tolerance: f64,
    /// How many steps an integer output may be off.
    pub steps: i64,
}

impl Node {
    pub fn new(op: &'static str, inputs: Vec<Slot>) -> Self {
        Node { op, domain: "", attrs: Attrs::default(), inputs, n_outputs: 1, tolerance: 2e-5, steps: 0 }
    }

    pub fn attr(mut self, name: &str, value: impl Into<Attr>) -> Self {
        self.attrs.set(name, value.into());
        self
    }

    pub fn outputs(mut self, n: usize) -> Self {
        self.n_outputs = n;
        self
    }

    pub fn domain(mut self, domain: &'static str) -> Self {
        self.domain = domain;
        self
    }

    /// A quantized operator: its result may be one step off, since the order of rounding is open.
    pub fn quantized(mut self) -> Self {
        self.steps = 1;
        self
    }

    pub fn tolerance(mut self, t: f64) -> Self {
        self.tolerance = t;
        self
    }
}

#[derive(Clone, Debug)]
pub struct Case {
    opset: i64,
    x: Option<Tensor>,
    pub nodes: Vec<Node>,
    /// Whether the tensors of [`Slot::T`] are graph inputs.
    fed: bool,
}

impl Case {
    pub fn new(g: &mut Gen, opset: i64, x: Option<Tensor>, nodes: Vec<Node>) -> Self {
        Case { opset, x, nodes, fed: g.rng.chance(0.5) }
    }

    pub fn label(&self) -> String {
        let names: Vec<String> = self.nodes.iter().map(|n| n.op.to_owned()).collect();
        format!("{}-{}", names.join("+"), self.opset)
    }

    pub fn opset_of(&self, domain: &str) -> i64 {
        if domain.is_empty() { self.opset } else { 1 }
    }

    pub fn is_of_integers(&self) -> bool {
        self.x.as_ref().is_some_and(|x| x.dtype().is_integer())
    }

    /// The graph inputs that are fed, in order.
    pub fn fed(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let x = self.x.iter().filter(|x| to_array(x).is_some()).map(|x| ("x".to_owned(), x));
        let others = self.nodes.iter().enumerate().flat_map(move |(n, node)| {
            node.inputs.iter().enumerate().filter_map(move |(i, s)| match s {
                Slot::T(t) if self.fed && to_array(t).is_some() => Some((format!("b{n}_{i}"), t)),
                _ => None,
            })
        });
        x.chain(others)
    }

    pub fn model(&self) -> Model {
        let mut model = Model::new(10, self.opset);
        for node in &self.nodes {
            let domain = Domain::new(node.domain);
            if model.opset(&domain).is_none() {
                model.opsets.push((domain, 1));
            }
        }
        let fed: Vec<String> = self.fed().map(|(name, _)| name).collect();
        let g = model.main_mut();
        let mut inputs = Vec::new();
        let mut add = |g: &mut onnx_quant::ir::Graph, name: String, t: &Tensor| {
            if fed.contains(&name) {
                let ty = ValueType::Tensor(TensorType::fixed(t.dtype(), t.shape()));
                let v = g.add_value(name, Some(ty), Def::Input);
                inputs.push(v);
                v
            } else {
                g.add_initializer(name, t.clone())
            }
        };
        let mut at = self.x.as_ref().map(|x| add(g, "x".into(), x));
        let mut outputs = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let ins: Vec<_> = node
                .inputs
                .iter()
                .enumerate()
                .map(|(i, s)| match s {
                    Slot::X => at,
                    Slot::Empty => None,
                    Slot::T(t) => Some(add(g, format!("b{n}_{i}"), t)),
                    Slot::Const(t) => Some(g.add_initializer(format!("c{n}_{i}"), t.clone())),
                })
                .collect();
            outputs = (0..node.n_outputs).map(|i| g.add_result(format!("y{n}_{i}"), None)).collect();
            let mut ir = IrNode::new(node.op);
            ir.domain = Domain::new(node.domain);
            ir.attrs = node.attrs.clone();
            g.add_node(ir, &ins, &outputs.iter().map(|&v| Some(v)).collect::<Vec<_>>());
            at = outputs.first().copied();
        }
        g.set_inputs(inputs);
        g.set_outputs(outputs);
        model
    }

    /// Whether an output is close enough; else what differs.
    pub fn compare(&self, got: &Tensor, expected: &Tensor) -> Result<(), String> {
        let steps = self.nodes.iter().map(|n| n.steps).max().unwrap_or(0);
        if steps > 0
            && expected.dtype().is_integer()
            && got.dtype() == expected.dtype()
            && got.shape() == expected.shape()
        {
            let (g, e) = (got.to_i64s().unwrap(), expected.to_i64s().unwrap());
            return match g.iter().zip(&e).position(|(g, e)| (g - e).abs() > steps) {
                Some(i) => Err(format!("element {i} is {} instead of {}", g[i], e[i])),
                None => Ok(()),
            };
        }
        compare::tensors(got, expected, self.tolerance(expected))
    }

    /// Operators of which ONNX Runtime computes doubles with single precision, or with constants of single precision.
    const SINGLE: [&str; 3] = ["Attention", "Gelu", "Shrink"];

    /// How close an output must be: rounding grows with the length of a chain.
    pub fn tolerance(&self, expected: &Tensor) -> Tolerance {
        let relative = self.nodes.iter().map(|n| n.tolerance).fold(0.0, f64::max)
            * match expected.dtype() {
                DType::F64 if self.nodes.iter().all(|n| !Self::SINGLE.contains(&n.op)) => 1e-5,
                DType::F16 => 300.0,
                DType::BF16 => 2000.0,
                _ => 1.0,
            }
            * if self.nodes.len() > 1 { 20.0 } else { 1.0 };
        let largest = match expected.to_f64s() {
            Ok(v) => v.into_iter().map(f64::abs).filter(|x| x.is_finite()).fold(1.0, f64::max),
            Err(_) => 1.0,
        };
        Tolerance { relative, absolute: relative * largest }
    }

    /// How large a case is, for finding the smallest.
    pub fn weight(&self) -> usize {
        let n_attrs: usize = self.nodes.iter().map(|n| n.attrs.iter().count()).sum();
        let tensors = self.nodes.iter().flat_map(|n| &n.inputs).filter_map(|s| match s {
            Slot::T(t) | Slot::Const(t) => Some(t),
            _ => None,
        });
        let elements: usize = tensors.chain(&self.x).map(|t| t.len() + t.rank()).sum();
        elements + 4 * n_attrs + 20 * self.nodes.len()
    }

    /// Cases that are a little simpler than this one.
    pub fn simpler(&self) -> Vec<Case> {
        let mut out = Vec::new();
        if self.nodes.len() > 1 {
            let mut c = self.clone();
            c.nodes.pop();
            out.push(c);
        }
        for (n, node) in self.nodes.iter().enumerate() {
            for a in node.attrs.iter() {
                let mut c = self.clone();
                c.nodes[n].attrs.remove(&a.name);
                out.push(c);
            }
        }
        // Whole numbers instead of fractions; small cases only, so that this ends.
        if let Some(x) = self.x.as_ref().filter(|x| x.dtype().is_float() && to_array(x).is_some()) {
            let v = x.to_f64s().unwrap();
            let rounded: Vec<f64> = v.iter().map(|x| x.round()).collect();
            if rounded != v && v.iter().all(|x| x.is_finite()) {
                let mut c = self.clone();
                c.x = Some(from_f64s(x.dtype(), x.shape(), &rounded, 0));
                out.push(c);
            }
        }
        out
    }

    /// The case in ONNX's textual syntax; inputs are printed as constants.
    pub fn fixture(&self) -> String {
        let mut constant = self.clone();
        constant.fed = false;
        let text = print(&constant.model(), &PrintOptions { max_elements: 200, value_types: true });
        let x = self.x.as_ref().filter(|x| to_array(x).is_some());
        let x = x.map(|x| format!("x = {} {:?} {:?}\n", x.dtype(), x.shape(), x.data()));
        x.unwrap_or_default().chars().take(3000).collect::<String>() + &text
    }
}
