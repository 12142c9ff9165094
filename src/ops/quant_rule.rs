//! What an operator's definition says about quantization: facts of its arithmetic, no policy.

use crate::ir::{Attrs, Dim};

/// The operator that quantizes a tensor.
pub const QUANTIZE: &str = "QuantizeLinear";
/// The operator that dequantizes a tensor.
pub const DEQUANTIZE: &str = "DequantizeLinear";
/// The operator that a compressed weight is widened with.
pub const CAST: &str = "Cast";
/// Operators whose output holds elements of several inputs beside each other, or sums of them: what is small in one input is
/// lost in the range of the largest.
pub const JOINS: &[&str] = &["Add", "Concat", "Max", "Min", "Sub", "Sum", "Where"];
/// Those of them that add.
pub const ADDS: &[&str] = &["Add", "Sum"];
/// The operator to which nothing matters but by how much its inputs lie below the largest.
pub const SOFTMAX: &str = "Softmax";
/// Operators that a model has only when it was quantized before.
pub const QUANTIZED: &[&str] = &[
    QUANTIZE,
    DEQUANTIZE,
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "MatMulNBits",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "GatherBlockQuantized",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearAdd",
];

/// How an operator behaves when its tensors are quantized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QuantRule {
    /// Has no integer arithmetic; the reason is shown to the user.
    Keep {
        /// One phrase without a final dot: why it stays float.
        why: &'static str,
    },
    /// Multiplies data with a weight and sums: `Conv`, `Gemm`, `MatMul`.
    Weighted {
        /// Input slot of the data.
        data: usize,
        /// Input slot of the weight; for `MatMul` it may be data as well.
        weight: usize,
        /// Which axis of the weight is the output channel.
        axis: WeightAxis,
        /// Input slot of the bias, which is int32 with scale `scale(data) * scale(weight)`.
        bias: Option<usize>,
    },
    /// Computes new values from its data inputs: `Add`, `Concat`, `Sigmoid`, `AveragePool`.
    Combine {
        /// Which inputs are data (others are conditions, axes …).
        data: Slots,
        /// Where the output's range comes from.
        output: OutputRange,
    },
    /// Moves or selects elements of input 0: each output has its parameters.
    Share,
    /// Bounds its input (`Relu`, `Clip`): may vanish into the saturation of the `QuantizeLinear` after it.
    Bound,
}

impl QuantRule {
    /// Whether an input slot is read as quantized data.
    #[must_use]
    pub fn is_data(self, slot: usize) -> bool {
        match self {
            QuantRule::Weighted { data, .. } => data == slot,
            QuantRule::Combine { data, .. } => data.contains(slot),
            QuantRule::Share => slot == 0,
            QuantRule::Bound | QuantRule::Keep { .. } => false,
        }
    }
}

/// A set of input slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slots {
    /// Every input.
    All,
    /// These inputs.
    These(&'static [usize]),
}

impl Slots {
    /// Whether a slot belongs to the set.
    #[must_use]
    pub fn contains(self, slot: usize) -> bool {
        match self {
            Slots::All => true,
            Slots::These(s) => s.contains(&slot),
        }
    }
}

/// Where the range of an output comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OutputRange {
    /// From calibration.
    Observed,
    /// From the operator's definition: `Softmax`, `Sigmoid` give values in `[0, 1]`.
    Fixed(f32, f32),
}

/// Which axis of a weight counts output channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightAxis {
    /// This axis.
    Fixed(usize),
    /// The last axis (`MatMul`).
    Last,
    /// Axis 1, or 0 when the attribute `transB` is set (`Gemm`).
    TransB,
}

impl WeightAxis {
    /// The axis of a weight of this rank; `None` when the weight has no such axis.
    #[must_use]
    pub fn resolve(self, attrs: &Attrs, rank: usize) -> Option<usize> {
        let axis = match self {
            WeightAxis::Fixed(a) => a,
            WeightAxis::Last => rank.checked_sub(1)?,
            WeightAxis::TransB => usize::from(attrs.int("transB").unwrap_or(0) == 0),
        };
        (axis < rank).then_some(axis)
    }
}

/// Multiply-accumulate operations of a weighted operator per element of its output, times the output's elements; 0
/// when a dimension is not known. `weight` is the weight's shape, `output` the output's.
#[must_use]
pub fn macs(axis: WeightAxis, attrs: &Attrs, weight: &[usize], output: &[Dim]) -> u64 {
    let Some(out) = output.iter().map(|d| d.known().map(|n| n as u64)).product::<Option<u64>>() else { return 0 };
    let total: u64 = weight.iter().map(|&n| n as u64).product();
    match axis.resolve(attrs, weight.len()) {
        Some(a) if weight[a] > 0 => {
            // For MatMul with a batched weight only the last two axes count for one output element.
            let per_output = if axis == WeightAxis::Last && weight.len() >= 2 {
                weight[weight.len() - 2] as u64
            } else {
                total / weight[a] as u64
            };
            out * per_output
        }
        _ => out * total.max(1),
    }
}
