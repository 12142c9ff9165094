//! What a run did, as data: the command line prints it as a table or as JSON.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::labels::Judged;
use super::lazy::Job;
use super::measure::OutputError;
use super::plan::{Decision, QuantPlan};
use crate::ir::{Model, Node};
use crate::ops::QuantRule;
use crate::ops::quant_rule;

/// Before or after.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Side {
    /// Opset of ONNX's own domain.
    pub opset: i64,
    /// IR version.
    pub ir_version: i64,
    /// Nodes in all graphs.
    pub nodes: usize,
}

impl Side {
    /// Of a model.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        Side {
            opset: model.onnx_opset(),
            ir_version: model.ir_version,
            nodes: model.graph_ids().map(|g| model.graph(g).nodes().count()).sum(),
        }
    }
}

/// A node that stayed float.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The node's name.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// Kebab-case kind of reason.
    pub code: &'static str,
    /// The reason.
    pub why: String,
    /// Its multiply-accumulate operations.
    pub macs: u64,
}

/// A weight that is stored as integers in blocks.
#[derive(Debug, Clone)]
pub struct StoredWeight {
    /// The node that reads it.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// Elements.
    pub len: usize,
    /// Whether another node of the list has brought the same integers into the model.
    pub is_copy: bool,
    /// What makes it; says how far it is off once it was written.
    pub job: Arc<Job>,
}

impl StoredWeight {
    /// What a node reads.
    #[must_use]
    pub fn of(node: &Node, job: &Arc<Job>, len: usize, is_copy: bool) -> Self {
        StoredWeight { node: node.label(), op_type: node.op_type.clone(), len, is_copy, job: Arc::clone(job) }
    }
}

/// What a run did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The model before.
    pub before: Side,
    /// The model after.
    pub after: Side,
    /// Weighted operators (`Conv`, `Gemm`, `MatMul`) by operator: in integers, of all.
    pub weighted: BTreeMap<String, (usize, usize)>,
    /// Nodes in integers, weighted or not.
    pub n_integer: usize,
    /// `QuantizeLinear` and `DequantizeLinear` nodes.
    pub n_quantize: usize,
    /// `DequantizeLinear` nodes.
    pub n_dequantize: usize,
    /// Multiply-accumulate operations of all operators on the first sample.
    pub macs: u64,
    /// Those in integers.
    pub integer_macs: u64,
    /// Weights in blocks (weight-only), in the order of execution.
    pub weights: Vec<StoredWeight>,
    /// Nodes that stayed float, in the order of execution.
    pub kept: Vec<Kept>,
    /// Error of the outputs on held-out samples.
    pub outputs: Vec<OutputError>,
    /// What the labels say, where there are any.
    pub judged: Option<Judged>,
    /// Samples used for calibration.
    pub n_calibration: usize,
    /// Samples held out for the error.
    pub n_holdout: usize,
    /// Whether the held-out samples are calibration samples too, for want of others.
    pub holdout_is_calibration: bool,
    /// What the model has that often goes wrong in 8 bits, and what became of it, one sentence each ([`super::traps`]).
    pub traps: Vec<String>,
    /// What was tried to reach the accuracy floor, one sentence each.
    pub notes: Vec<String>,
    /// Predicted microseconds on the target, all in float and as planned; `None` where the target has no cost table.
    pub time: Option<(f64, f64)>,
    /// Whether quantization is predicted to save no time worth having: then the model stays float.
    pub saves_nothing: bool,
    /// Whether the accuracy floor was reached.
    pub is_floor_met: bool,
}

impl Report {
    /// Fills in what the plan and the emitted model say.
    pub fn describe(&mut self, prepared: &Model, plan: &QuantPlan, emitted: &Model) {
        self.after = Side::of(emitted);
        (self.macs, self.integer_macs) = plan.macs();
        self.n_integer = plan.n_integer();
        for n in &plan.nodes {
            let node = prepared.graph(n.place.0).node(n.place.1);
            let opset = prepared.opsets_in(n.place.0).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
            let def = crate::ops::lookup(&node.domain, &node.op_type, opset);
            if n.macs > 0 || def.is_some_and(|d| matches!(d.quant, QuantRule::Weighted { .. })) {
                let count = self.weighted.entry(node.op_type.clone()).or_default();
                count.0 += usize::from(n.decision == Decision::Integer);
                count.1 += 1;
            }
            if let Decision::Float { code, why } = &n.decision {
                self.kept.push(Kept {
                    node: node.label(),
                    op_type: node.op_type.clone(),
                    code,
                    why: why.clone(),
                    macs: n.macs,
                });
            }
        }
        for id in emitted.graph_ids() {
            let g = emitted.graph(id);
            for n in g.nodes() {
                match g.node(n).op_type.as_str() {
                    quant_rule::QUANTIZE => self.n_quantize += 1,
                    quant_rule::DEQUANTIZE => self.n_dequantize += 1,
                    _ => {}
                }
            }
        }
    }
}
