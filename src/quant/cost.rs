//! What running a node costs on a target, in float and in integers, and what conversions between both cost.
//!
//! A target's `[cost]` table holds, for each kind of node, four numbers: microseconds per call, per million
//! multiply-accumulate operations, per thousand input elements and per thousand output elements. They were fitted to
//! measurements (`benches/ort_costs.py`); what counts is their ratio, which holds for machines of one kind.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What a node does, in the units of the table.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Multiply-accumulate operations.
    pub macs: u64,
    /// Elements of its data inputs.
    pub inputs: u64,
    /// Elements of its outputs.
    pub outputs: u64,
    /// Whether it is a convolution in which each output channel reads one input channel.
    pub is_depthwise: bool,
    /// Whether the node that makes its data takes it into its own loop when both run in float.
    pub is_fused: bool,
}

type Line = [f64; 4];

/// One kind of node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    float: Line,
    integer: Line,
    /// In float, right behind a node that `fuses`.
    fused: Option<Line>,
    /// Whether it takes what follows into its own loop when it runs in float.
    #[serde(default)]
    fuses: bool,
}

/// The `[cost]` table of a target.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    quantize: Line,
    dequantize: Line,
    /// Change of layout, at the border of a region of spatial operators.
    layout: Line,
    /// Predicted share of the time that quantization must save to be worth it.
    #[serde(default)]
    pub least_gain: f64,
    ops: BTreeMap<String, Row>,
}

fn time(line: &Line, w: &Work) -> f64 {
    line[0] + line[1] * w.macs as f64 / 1e6 + line[2] * w.inputs as f64 / 1e3 + line[3] * w.outputs as f64 / 1e3
}

impl Costs {
    fn row(&self, op_type: &str, w: &Work) -> Option<&Row> {
        let depthwise = w.is_depthwise.then(|| self.ops.get(&format!("{op_type}/depthwise"))).flatten();
        depthwise.or_else(|| self.ops.get(op_type))
    }

    /// Microseconds of a node in float and in integers. A kind that is not in the table costs the same in both.
    #[must_use]
    pub fn node(&self, op_type: &str, w: &Work) -> (f64, f64) {
        let Some(row) = self.row(op_type, w) else { return (0.0, 0.0) };
        let float = row.fused.as_ref().filter(|_| w.is_fused).unwrap_or(&row.float);
        (time(float, w), time(&row.integer, w))
    }

    /// Whether a node of this kind takes what follows into its own loop when both run in float.
    #[must_use]
    pub fn fuses(&self, op_type: &str) -> bool {
        self.ops.get(op_type).is_some_and(|r| r.fuses)
    }

    /// Microseconds to quantize and to dequantize a tensor of so many elements.
    #[must_use]
    pub fn conversions(&self, elements: u64, is_spatial: bool) -> (f64, f64) {
        let w = Work { inputs: elements, outputs: elements, ..Work::default() };
        let layout = if is_spatial { time(&self.layout, &w) } else { 0.0 };
        (time(&self.quantize, &w) + layout, time(&self.dequantize, &w) + layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::target::Target;

    #[test]
    fn measured_facts_are_in_the_table() {
        let costs = Target::named("ort-cpu").unwrap().cost.unwrap();
        let work = |macs, outputs, is_depthwise| Work { macs, inputs: outputs, outputs, is_depthwise, is_fused: false };
        let (float, integer) = costs.node("Conv", &work(100_000_000, 100_000, false));
        assert!(integer < float / 1.5, "{float} {integer}");
        // Depthwise convolutions gain nothing, average pools lose much.
        let (float, integer) = costs.node("Conv", &work(900_000, 100_000, true));
        assert!(integer > float, "{float} {integer}");
        let (float, integer) = costs.node("AveragePool", &work(900_000, 100_000, false));
        assert!(integer > 5.0 * float, "{float} {integer}");
        assert_eq!(costs.node("Nothing", &work(1, 1, false)), (0.0, 0.0));
    }
}
