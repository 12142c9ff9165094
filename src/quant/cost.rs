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
    /// Output channels of a convolution, which kernels compute in whole blocks; 0 for others and for depthwise ones.
    pub channels: u64,
    /// How often each weight is used: rows of a product, positions of a convolution; 0 without weights.
    pub rows: u64,
    /// Elements of its data inputs; of a convolution the runs of input channels that are gathered, one for each position
    /// of the output and of the window (none for a window of 1).
    pub inputs: u64,
    /// Elements of its outputs.
    pub outputs: u64,
    /// Whether it is a convolution in which each output channel reads one input channel.
    pub is_depthwise: bool,
    /// Whether it is a convolution over one axis.
    pub is_line: bool,
    /// Whether the node that makes its data takes it into its own loop when both run in float.
    pub is_fused: bool,
}

/// Output channels that a convolution computes at a time, whether they are needed or not.
const CHANNEL_BLOCK: u64 = 16;
/// The same for float convolutions of fewer channels than this, which do not take the blocked layout.
const LEAST_BLOCK: u64 = 8;

type Line = [f64; 4];

/// One kind of node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    float: Line,
    integer: Line,
    /// In float, right behind a node that `fuses`.
    fused: Option<Line>,
    /// Rows that kernels compute at least, in float and in integers, whether there are so many or not: with few, the time
    /// goes into reading weights.
    #[serde(default)]
    least_rows: [u64; 2],
    /// Whether it takes what follows into its own loop when it runs in float.
    #[serde(default)]
    fuses: bool,
    /// Whether its float kernel takes and gives the blocked layout of the float convolutions.
    #[serde(default)]
    blocked: bool,
}

/// The `[cost]` table of a target.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    quantize: Line,
    dequantize: Line,
    /// Change of layout, at the border of a region of spatial operators.
    layout: Line,
    /// Change between the blocked layout of float convolutions and the plain one: into it by input elements, out of it by
    /// output elements.
    #[serde(default)]
    reorder: Line,
    /// Float operators that take longer behind a `DequantizeLinear` (in the layout of integer convolutions): microseconds
    /// per thousand elements.
    #[serde(default)]
    slowed: BTreeMap<String, f64>,
    /// Predicted share of the time that quantization must save to be worth it.
    #[serde(default)]
    pub least_gain: f64,
    /// Any operator without a line of its own, which costs the same in both.
    #[serde(default)]
    other: Line,
    ops: BTreeMap<String, Row>,
}

impl Work {
    /// With the operations of at least so many rows.
    fn in_rows(&self, least: u64) -> Work {
        if self.rows == 0 || self.rows >= least {
            return *self;
        }
        Work { macs: self.macs / self.rows * least, ..*self }
    }

    /// With the operations of whole blocks of output channels.
    fn in_blocks(&self, block: u64) -> Work {
        if self.channels == 0 {
            return *self;
        }
        Work { macs: self.macs / self.channels * self.channels.next_multiple_of(block), ..*self }
    }
}

fn time(line: &Line, w: &Work) -> f64 {
    line[0] + line[1] * w.macs as f64 / 1e6 + line[2] * w.inputs as f64 / 1e3 + line[3] * w.outputs as f64 / 1e3
}

impl Costs {
    fn row(&self, op_type: &str, w: &Work) -> Option<&Row> {
        let kind = if w.is_depthwise { "depthwise" } else { "1d" };
        let special = (w.is_depthwise || w.is_line).then(|| self.ops.get(&format!("{op_type}/{kind}"))).flatten();
        special.or_else(|| self.ops.get(op_type))
    }

    /// Microseconds of a node in float and in integers. A kind that is not in the table costs the same in both.
    #[must_use]
    pub fn node(&self, op_type: &str, w: &Work) -> (f64, f64) {
        let Some(row) = self.row(op_type, w) else {
            let same = time(&self.other, w);
            return (same, same);
        };
        let float = row.fused.as_ref().filter(|_| w.is_fused).unwrap_or(&row.float);
        let block = if w.channels < LEAST_BLOCK { LEAST_BLOCK } else { CHANNEL_BLOCK };
        let [least_float, least_integer] = row.least_rows;
        (
            time(float, &w.in_rows(least_float).in_blocks(block)),
            time(&row.integer, &w.in_rows(least_integer).in_blocks(CHANNEL_BLOCK)),
        )
    }

    /// Whether a node of this kind takes what follows into its own loop when both run in float.
    #[must_use]
    pub fn fuses(&self, op_type: &str) -> bool {
        self.ops.get(op_type).is_some_and(|r| r.fuses)
    }

    /// Whether a float node of this kind works in the blocked layout of float convolutions.
    #[must_use]
    pub fn is_blocked(&self, op_type: &str) -> bool {
        self.ops.get(op_type).is_some_and(|r| r.blocked)
    }

    /// Microseconds to bring so many elements into the blocked layout, and out of it.
    #[must_use]
    pub fn reorder(&self, elements: u64) -> (f64, f64) {
        let [call, _, into, out] = self.reorder;
        let thousands = elements as f64 / 1e3;
        (call + into * thousands, call + out * thousands)
    }

    /// Microseconds that a float node of this kind takes longer behind a `DequantizeLinear` of so many elements.
    #[must_use]
    pub fn slowed(&self, op_type: &str, elements: u64) -> f64 {
        self.slowed.get(op_type).map_or(0.0, |per_thousand| per_thousand * elements as f64 / 1e3)
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
        let work =
            |macs, outputs, is_depthwise| Work { macs, inputs: outputs, outputs, is_depthwise, ..Work::default() };
        let (float, integer) = costs.node("Conv", &work(100_000_000, 100_000, false));
        assert!(integer < float / 1.5, "{float} {integer}");
        // Depthwise convolutions gain nothing, average pools lose much.
        let (float, integer) = costs.node("Conv", &work(900_000, 100_000, true));
        assert!(integer > float, "{float} {integer}");
        let (float, integer) = costs.node("AveragePool", &work(900_000, 100_000, false));
        assert!(integer > 5.0 * float, "{float} {integer}");
        // A product of one row reads weights rather than multiplies: 82 and 28 microseconds were measured.
        let one = Work { rows: 1, ..work(1 << 20, 1024, false) };
        let (float, integer) = costs.node("MatMul", &one);
        assert!((75.0..100.0).contains(&float) && (24.0..34.0).contains(&integer), "{float} {integer}");
        // A convolution over one axis with four positions: 22 and 9.
        let line = Work { rows: 4, channels: 128, is_line: true, inputs: 12, ..work(198_144, 512, false) };
        let (float, integer) = costs.node("Conv", &line);
        assert!((18.0..27.0).contains(&float) && (7.0..12.0).contains(&integer), "{float} {integer}");
        let (float, integer) = costs.node("Nothing", &work(1, 1, false));
        assert_eq!(float, integer);
    }
}
