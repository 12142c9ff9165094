//! The plan: what is quantized, where, with which parameters, and why; and why not. Complete before anything is edited.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::params::{QParams, Range, WeightParams};
use crate::ir::{GraphId, Model, NodeId, ValueId};
use crate::ops::QuantRule;
use crate::tensor::Tensor;

/// A value of a model.
pub type Place = (GraphId, ValueId);
/// A node of a model.
pub type NodePlace = (GraphId, NodeId);

/// Which of a quantized tensor's consumers read the quantized values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// All: its producer runs in integers, so nothing else exists.
    All,
    /// Only nodes that run in integers; float nodes read what the float producer made.
    Integer,
}

/// Where the range of a tensor comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RangeFrom {
    /// From calibration.
    Observed,
    /// From the operator that makes it.
    Fixed(f32, f32),
}

/// A quantized activation.
#[derive(Debug, Clone)]
pub struct TensorPlan {
    /// Who reads the quantized values.
    pub readers: Readers,
    /// Tensors of one group have the same parameters (operators that move elements); it is named by its first tensor.
    pub group: Place,
    /// Where the range comes from.
    pub range: RangeFrom,
    /// Scale and zero point, once the ranges are known.
    pub params: Option<QParams>,
}

/// What becomes of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Runs in integers.
    Integer,
    /// Vanishes into the saturation of the `QuantizeLinear` of this tensor (`Relu`, `Clip`).
    Absorbed(Place),
    /// Stays float.
    Float {
        /// Kebab-case kind of reason, for counting.
        code: &'static str,
        /// One phrase without a final dot.
        why: String,
    },
}

/// How a weight and its bias are stored.
#[derive(Debug, Clone)]
pub struct WeightPlan {
    /// Scales.
    pub params: WeightParams,
    /// The integers, where an algorithm chose them otherwise than by rounding to nearest.
    pub rounded: Option<Tensor>,
    /// The float bias to store instead of the model's (bias correction); one number per channel.
    pub bias: Option<Vec<f32>>,
}

/// A node's part of the plan.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// The node.
    pub place: NodePlace,
    /// What becomes of it.
    pub decision: Decision,
    /// How the target quantizes it.
    pub rule: QuantRule,
    /// Input slots that read quantized data when it runs in integers.
    pub data: Vec<usize>,
    /// Quantized weight and bias, for a node with a weight that runs in integers, once activation ranges are known.
    pub weight: Option<WeightPlan>,
    /// Multiply-accumulate operations per inference on the first calibration sample.
    pub macs: u64,
}

/// The whole plan.
#[derive(Debug, Clone, Default)]
pub struct QuantPlan {
    /// Quantized activations.
    pub tensors: BTreeMap<Place, TensorPlan>,
    /// Every node of every graph, in the order of execution.
    pub nodes: Vec<NodePlan>,
    /// Ranges of stored operands, where that is not what they hold ([`super::masks`]).
    pub operands: BTreeMap<Place, Range>,
}

impl QuantPlan {
    /// What becomes of a node.
    #[must_use]
    pub fn node(&self, place: NodePlace) -> Option<&NodePlan> {
        self.nodes.iter().find(|n| n.place == place)
    }

    /// The number of nodes that run in integers.
    #[must_use]
    pub fn n_integer(&self) -> usize {
        self.nodes.iter().filter(|n| n.decision == Decision::Integer).count()
    }

    /// The number of nodes with a quantized weight.
    #[must_use]
    pub fn n_weighted(&self) -> usize {
        self.nodes.iter().filter(|n| n.weight.is_some()).count()
    }

    /// The multiply-accumulate operations of all nodes, and of those that run in integers.
    #[must_use]
    pub fn macs(&self) -> (u64, u64) {
        let sum = |f: &dyn Fn(&&NodePlan) -> bool| self.nodes.iter().filter(f).map(|n| n.macs).sum();
        (sum(&|_| true), sum(&|n| n.decision == Decision::Integer))
    }

    /// The plan as text, one line a node or tensor: what golden tests and `-v` show.
    #[must_use]
    pub fn print(&self, model: &Model) -> String {
        let mut s = String::new();
        for n in &self.nodes {
            let node = model.graph(n.place.0).node(n.place.1);
            let what = match &n.decision {
                Decision::Integer => match &n.weight {
                    Some(w) => format!(
                        "integer, weight {}",
                        if w.params.axis.is_some() { "per channel" } else { "per tensor" }
                    ),
                    None => "integer".to_owned(),
                },
                Decision::Absorbed(t) => {
                    format!("absorbed by the quantization of {}", model.graph(t.0).value(t.1).name)
                }
                Decision::Float { code, why } => format!("float [{code}] {why}"),
            };
            let _ = writeln!(s, "node   {} {}: {what}", node.label(), node.op_type);
        }
        for (place, t) in &self.tensors {
            let name = |p: &Place| model.graph(p.0).value(p.1).name.clone();
            let _ = write!(s, "tensor {}", name(place));
            match t.params {
                Some(p) => {
                    let _ = write!(s, ": {} scale {} zero_point {}", p.dtype, p.scale, p.zero_point);
                }
                None => s.push_str(": no parameters yet"),
            }
            if let RangeFrom::Fixed(lo, hi) = t.range {
                let _ = write!(s, ", range [{lo}, {hi}] by definition");
            }
            if t.group != *place {
                let _ = write!(s, ", as {}", name(&t.group));
            }
            if t.readers == Readers::Integer {
                s.push_str(", float readers keep the float tensor");
            }
            s.push('\n');
        }
        s
    }
}
