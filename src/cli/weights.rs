//! Options of weight-only and dynamic quantization, and what its summary says.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::session::{human_bytes, usage};
use crate::error::Result;
use crate::quant::algo::Improvement;
use crate::quant::dynamic;
use crate::quant::report::StoredWeight;
use crate::quant::scheme::Form;
use crate::quant::weight_only::{Algorithm, Options, Output};
use crate::quant::{Mode, Report};
use crate::tensor::DType;

/// Options of the modes.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Mode")]
pub(super) struct Args {
    /// What becomes integers
    #[arg(long, value_name = "MODE", default_value = "static")]
    mode: ModeName,
    /// Weights that share a scale, for `--mode weight-only`: 16, 32, 64, 128 or 256 [default: 128 of 8 bits, else 32]
    #[arg(long, value_name = "N")]
    block_size: Option<usize>,
    /// How weights are rounded, for `--mode weight-only`
    #[arg(long, value_name = "ALGORITHM", default_value = "rtn")]
    algorithm: AlgorithmName,
    /// Percent of the products' weights that may take 8 bits, those that fewer hurt most, for `--mode weight-only`
    #[arg(long, value_name = "PCT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    mixed_bits: u8,
    /// Zero points that need not be whole numbers, for `--format matmulnbits` with uint4 or uint2: more accurate,
    /// 4 bytes a block larger, and on CPUs ONNX Runtime widens such a weight on every run
    #[arg(long)]
    float_zero_points: bool,
    /// How the quantized model is written
    #[arg(long, visible_alias = "quant-format", value_name = "FORMAT", default_value = "qdq")]
    format: Format,
    /// Quantize LSTM layers as well, for `--mode dynamic` (ONNX Runtime's DynamicQuantizeLSTM)
    #[arg(long)]
    dynamic_lstm: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ModeName {
    /// Weights and activations, with ranges from calibration data
    Static,
    /// Weights only, in blocks; needs no data
    WeightOnly,
    /// Weights, and activations with the range that they have at each run; needs no data
    Dynamic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AlgorithmName {
    /// Round to nearest, clipped where that lowers the squared error
    Rtn,
    /// Half-quadratic: forgives outliers
    Hqq,
    /// Error compensation; needs --calib
    Gptq,
    /// Activation-aware scaling; needs --calib
    Awq,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// ONNX's QuantizeLinear and DequantizeLinear
    Qdq,
    /// Operators on quantized tensors (QLinearConv, QLinearMatMul and ONNX Runtime's own), for `--mode static`
    Qoperator,
    /// ONNX Runtime's MatMulNBits and GatherBlockQuantized, for `--mode weight-only`
    Matmulnbits,
}

impl Args {
    /// The form that was asked for, for static quantization.
    pub(super) fn form(&self) -> Form {
        if self.format == Format::Qoperator { Form::QOperator } else { Form::Qdq }
    }

    /// The mode that was asked for, with this type of weights if one was given. `has_floor` says whether accuracy was asked
    /// for as well.
    pub(super) fn mode(&self, weight_type: Option<DType>, has_floor: bool, without: &[Improvement]) -> Result<Mode> {
        let clips = !without.contains(&Improvement::WeightClip);
        let chooses_scales = self.mode == ModeName::WeightOnly && self.algorithm == AlgorithmName::Rtn;
        let is_known = |i: Improvement| self.mode == ModeName::Static || i == Improvement::WeightClip && chooses_scales;
        if let Some((_, name, _)) = Improvement::ALL.iter().find(|(i, ..)| without.contains(i) && !is_known(*i)) {
            let more = if *name == "weight-clip" { " and --algorithm rtn" } else { "" };
            return usage(format!("--without {name} is for --mode static{more}"));
        }
        if self.format == Format::Qoperator && self.mode != ModeName::Static {
            return usage("--format qoperator needs --mode static");
        }
        if self.format == Format::Matmulnbits && self.mode != ModeName::WeightOnly {
            return usage("--format matmulnbits needs --mode weight-only");
        }
        if self.dynamic_lstm && self.mode != ModeName::Dynamic {
            return usage("--dynamic-lstm needs --mode dynamic");
        }
        if self.float_zero_points && self.mode != ModeName::WeightOnly {
            return usage("--float-zero-points needs --mode weight-only");
        }
        if self.mixed_bits > 0 && self.mode != ModeName::WeightOnly {
            return usage("--mixed-bits needs --mode weight-only");
        }
        match self.mode {
            ModeName::Static => return Ok(Mode::Static),
            ModeName::Dynamic => return Ok(Mode::Dynamic(dynamic::Options { lstm: self.dynamic_lstm })),
            ModeName::WeightOnly => {}
        }
        let dtype = weight_type.unwrap_or(DType::I8);
        if !matches!(dtype, DType::I8 | DType::U8 | DType::I4 | DType::U4 | DType::I2 | DType::U2) {
            return usage(format!(
                "--weight-type {dtype}; --mode weight-only has int8, uint8, int4, uint4, int2, uint2"
            ));
        }
        if self.mixed_bits > 0 && dtype.bits() == 8 {
            return usage(format!("--mixed-bits with --weight-type {dtype}; expected int4, uint4, int2 or uint2"));
        }
        if self.float_zero_points && (self.format != Format::Matmulnbits || !matches!(dtype, DType::U4 | DType::U2)) {
            return usage("--float-zero-points needs --format matmulnbits and --weight-type uint4 or uint2");
        }
        let base = Options::new(dtype);
        let block = self.block_size.unwrap_or(base.block);
        if !block.is_power_of_two() || !(16..=256).contains(&block) {
            return usage(format!("--block-size {block}; expected 16, 32, 64, 128 or 256"));
        }
        let algorithm = match self.algorithm {
            AlgorithmName::Rtn => Algorithm::Rtn,
            AlgorithmName::Hqq => Algorithm::Hqq,
            AlgorithmName::Gptq => Algorithm::Gptq,
            AlgorithmName::Awq => Algorithm::Awq,
        };
        let output = if self.format == Format::Matmulnbits { Output::NBits } else { Output::Qdq };
        Ok(Mode::WeightOnly(Options {
            block,
            algorithm,
            output,
            wide_percent: self.mixed_bits,
            // A floor that was asked for says how many.
            is_least_wide: has_floor,
            float_zeros: self.float_zero_points,
            clips,
            ..base
        }))
    }
}

/// What the summary's first line says of the mode; `None` for static quantization.
pub(super) fn scheme_text(mode: &Mode) -> Option<String> {
    match mode {
        Mode::Static => None,
        Mode::Dynamic(_) => Some("dynamic int8".into()),
        Mode::WeightOnly(o) => {
            let zeros = if o.float_zeros { " with float zero points" } else { "" };
            let clips = if o.clips { "" } else { " without clipping" };
            let text = format!("weight-only {}{zeros} in blocks of {}, {:?}{clips}", o.dtype, o.block, o.algorithm);
            Some(text.replace("Rtn", "RTN"))
        }
    }
}

/// The ending of the default output: `int4` of `model.int4.onnx`.
pub(super) fn extension(mode: &Mode) -> String {
    match mode {
        Mode::WeightOnly(o) => o.dtype.to_string(),
        Mode::Static | Mode::Dynamic(_) => "int8".into(),
    }
}

/// Weights by operator: stored in blocks, of all that have a weight.
pub(super) fn counts(r: &Report) -> String {
    let mut by_op: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for w in &r.weights {
        let c = by_op.entry(&w.op_type).or_default();
        *c = (c.0 + 1, c.1 + 1);
    }
    for k in &r.kept {
        by_op.entry(&k.op_type).or_default().1 += 1;
    }
    by_op.iter().map(|(op, (q, of))| format!("{op} {q} of {of}")).collect::<Vec<_>>().join(", ")
}

/// Bytes of the weights before and after, and bits that one takes after, scales included.
pub(super) fn sizes(r: &Report) -> (u64, u64, f64) {
    let own = || r.weights.iter().filter(|w| !w.is_copy);
    let before: u64 = own().map(|w| w.len as u64 * 4).sum();
    let after: u64 = own().map(|w| w.job.n_bytes()).sum();
    (before, after, after as f64 * 32.0 / before.max(1) as f64)
}

/// Every weight, one line each.
pub(super) fn lines(r: &Report) -> String {
    let mut s = String::new();
    for w in &r.weights {
        let j = &w.job;
        let error = j.sqnr_db().map_or(String::new(), |db| format!(", {db:.1} dB"));
        let _ = writeln!(
            s,
            "weight {} {}: {} [{}, {}] {} in blocks of {}, {:.2} bits each, {}{error}{}",
            w.node,
            w.op_type,
            j.name,
            j.n,
            j.k,
            j.scheme.dtype,
            j.scheme.block,
            j.n_bytes() as f64 * 8.0 / w.len.max(1) as f64,
            human_bytes(j.n_bytes()),
            if w.is_copy { ", shared" } else { "" }
        );
    }
    for k in &r.kept {
        let _ = writeln!(s, "node   {} {}: float [{}] {}", k.node, k.op_type, k.code, k.why);
    }
    s
}

/// A weight as JSON.
pub(super) fn weight_json(w: &StoredWeight) -> Value {
    let j = &w.job;
    json!({
        "node": w.node, "op_type": w.op_type, "weight": j.name, "type": j.scheme.dtype.to_string(),
        "block_size": j.scheme.block, "n": j.n, "k": j.k, "bytes": j.n_bytes(), "shared": w.is_copy,
        "bits_per_weight": j.n_bytes() as f64 * 8.0 / w.len.max(1) as f64, "sqnr_db": j.sqnr_db(),
    })
}
