//! Targets: what a runtime really runs in integers, as a table of facts, one embedded TOML file each with the source of
//! every rule in its comments.
//!
//! **Add a target:** a new file `src/quant/targets/<name>.toml` and a line in [`TABLES`]. `like` takes over what
//! another target says, operators included; a row of the same operator replaces that target's row.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::cost::Costs;
use crate::error::{Context, Result, WithHelp, anyhow, bail};
use crate::ir::Node;
use crate::ops::{OutputRange, QuantRule, Slots, WeightAxis};
use crate::tensor::DType;

/// A runtime and what it runs in integers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its name on the command line.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The lowest opset that its scheme needs.
    pub opset: i64,
    /// Quantized activations.
    pub activation: Tensors,
    /// Quantized weights.
    pub weight: Tensors,
    /// Biases.
    pub bias: Bias,
    /// Whether `Relu` and `Clip` vanish into the saturation of the `QuantizeLinear` behind them. Where they do not, the
    /// runtime fuses them with what comes before.
    pub absorb: bool,
    /// Whether everything that can be quantized is, from the inputs to the outputs: the runtime has no float units, or
    /// leaving them costs more than it gains.
    #[serde(default)]
    pub whole: bool,
    /// Whether what the table does not allow is refused by the runtime instead of running in float.
    #[serde(default)]
    pub strict: bool,
    /// Whether every dimension must be known before the model is loaded.
    #[serde(default)]
    pub fixed_shapes: bool,
    /// Whether a weight that no integer operator reads is dequantized once, when the model is loaded.
    #[serde(default)]
    pub folds_weights: bool,
    /// Whether operators with quantized tensors (`QLinearConv`) are understood, besides the QDQ form.
    #[serde(default)]
    pub qoperator: bool,
    /// Whether some kernels are used only when zero points are written out, even where the specification has a default.
    #[serde(default)]
    pub explicit_zero_points: bool,
    /// Whether kernels may add the products of two neighbours in 16 bits, which saturates for large weights side by side.
    #[serde(default)]
    pub adds_pairs_in_16_bits: bool,
    /// Operators of ONNX's own domain with integer kernels.
    ops: BTreeMap<String, Row>,
    /// What nodes cost in float and in integers; without it everything that can run in integers does.
    pub cost: Option<Costs>,
}

/// How a target has tensors quantized. In each list the first is the default and the others are allowed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tensors {
    /// ONNX's names of the element types.
    types: Vec<String>,
    /// Whether the zero point is in the middle.
    pub symmetric: Vec<bool>,
    /// Whether there is a scale for each output channel (weights).
    #[serde(default)]
    pub per_channel: Vec<bool>,
    /// Whether one bit is left unused (weights).
    #[serde(default)]
    pub reduce_range: Vec<bool>,
    /// Whether an unsigned weight may meet a signed activation.
    #[serde(default)]
    pub mixed_sign: bool,
    /// Why nothing else is allowed: one phrase for the user.
    pub why: String,
}

impl Tensors {
    /// The element types, the default first.
    ///
    /// # Errors
    /// The table names no type, which a test rules out.
    pub fn types(&self) -> Result<Vec<DType>> {
        let of = |t: &String| DType::from_name(t).with_context(|| format!("a target names the type \"{t}\""));
        self.types.iter().map(of).collect()
    }

    /// Whether the type is allowed.
    #[must_use]
    pub fn allows(&self, dtype: DType) -> bool {
        self.types.iter().any(|t| t == dtype.name())
    }
}

/// How a target takes biases.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bias {
    /// The forms, the default first.
    pub types: Vec<BiasType>,
    /// Why no other form is allowed: one phrase for the user.
    pub why: String,
}

/// How biases are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BiasType {
    /// int32 with the product of the scales of data and weight.
    Int32,
    /// As they are.
    Float32,
}

/// What a target needs to run an operator in integers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Whether a `QuantizeLinear` must follow.
    pub output: OutputNeed,
    /// The lowest opset from which on it holds.
    #[serde(default)]
    pub opset: i64,
    /// Whether float operands that are small beside the output are quantized for it.
    #[serde(default)]
    pub small: bool,
    /// Whether only the operand that does not come from the operator before is quantized: that one is fused with this.
    #[serde(default)]
    pub residual: bool,
    /// Whether its weight may have a scale for each output channel.
    #[serde(default = "yes")]
    pub per_channel: bool,
    /// How an operator is quantized that other targets have no integer arithmetic for.
    #[serde(default)]
    rule: Option<Rule>,
    /// Whether it may run in integers only behind a node that does.
    #[serde(default)]
    pub integer_input: bool,
    /// Attributes that must have one of these values.
    #[serde(default)]
    only: BTreeMap<String, Vec<String>>,
    /// What those attributes are when they are missing.
    #[serde(default)]
    defaults: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

/// Whether a node runs in integers without a `QuantizeLinear` behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputNeed {
    /// It needs one.
    Required,
    /// It gives floats without.
    Optional,
    /// It wants none of its own: the runtime looks at what the operators after it read.
    Float,
}

/// How a target quantizes an operator that has no integer arithmetic elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Rule {
    /// All floats that it reads and what it makes.
    Elementwise,
    /// Input 0 and what it makes; the others are bounds, axes, lengths.
    First,
    /// Input 0, a weight of one number per channel in input 1, an int32 bias in input 2 (`LayerNormalization`).
    Normalization,
}

/// Every target: name and table, in the order in which they are listed.
const TABLES: &[(&str, &str)] = &[
    ("ort-cpu", include_str!("targets/ort-cpu.toml")),
    ("ort-cpu-avx2", include_str!("targets/ort-cpu-avx2.toml")),
    ("ort-arm64", include_str!("targets/ort-arm64.toml")),
    ("ort-web", include_str!("targets/ort-web.toml")),
    ("openvino", include_str!("targets/openvino.toml")),
    ("tensorrt", include_str!("targets/tensorrt.toml")),
    ("qnn", include_str!("targets/qnn.toml")),
    ("portable", include_str!("targets/portable.toml")),
];

/// A table with what it takes over from another.
fn table(name: &str) -> Result<toml::Table> {
    let Some((_, text)) = TABLES.iter().find(|(n, _)| *n == name) else {
        let names: Vec<_> = TABLES.iter().map(|(n, _)| *n).collect();
        return Err(anyhow!("unknown target \"{name}\"")).help(|| format!("there are: {}", names.join(", ")));
    };
    let mut own: toml::Table = toml::from_str(text).with_context(|| format!("table of target {name}"))?;
    let Some(base) = own.remove("like") else { return Ok(own) };
    let mut base = table(base.as_str().unwrap_or_default())?;
    let ops = own.remove("ops");
    base.extend(own);
    if let (Some(toml::Value::Table(rows)), Some(toml::Value::Table(ops))) = (base.get_mut("ops"), ops) {
        rows.extend(ops);
    }
    Ok(base)
}

impl Target {
    /// Name and description of each, read off without parsing the tables, since every help text lists them.
    pub fn descriptions() -> impl Iterator<Item = (&'static str, &'static str)> {
        TABLES.iter().map(|&(name, text)| {
            let quoted = text.lines().find_map(|line| line.strip_prefix("description = \""));
            (name, quoted.map_or("", |q| q.trim_end_matches('"')))
        })
    }

    /// All targets.
    ///
    /// # Errors
    /// An embedded table is wrong, which a test rules out.
    pub fn all() -> Result<Vec<Target>> {
        TABLES.iter().map(|(name, _)| Self::named(name)).collect()
    }

    /// The target of this name.
    ///
    /// # Errors
    /// There is none; the error lists those that there are.
    pub fn named(name: &str) -> Result<Target> {
        table(name)?.try_into().with_context(|| format!("table of target {name}"))
    }

    /// The target's table as it is written, sources in its comments, and behind it those of the targets that it takes
    /// rows over from.
    ///
    /// # Errors
    /// There is no such target.
    pub fn text(name: &str) -> Result<String> {
        let mut text = String::new();
        let mut next = Some(name.to_owned());
        while let Some(name) = next {
            table(&name)?;
            let Some((_, t)) = TABLES.iter().find(|(n, _)| *n == name) else { bail!("unknown target \"{name}\"") };
            if !text.is_empty() {
                text.push_str(&format!("\n# ---- {name}, which the table above builds on\n"));
            }
            text.push_str(t);
            let own: toml::Table = toml::from_str(t).with_context(|| format!("table of target {name}"))?;
            next = own.get("like").and_then(|v| v.as_str()).map(str::to_owned);
        }
        Ok(text)
    }

    /// The operators that it runs in integers, in alphabetical order.
    pub fn op_types(&self) -> impl Iterator<Item = &str> {
        self.ops.keys().map(String::as_str)
    }

    /// What the target needs to run this node in integers at an opset, or why it cannot.
    ///
    /// # Errors
    /// The reason, one phrase for the user; not a failure.
    pub fn row(&self, node: &Node, opset: i64) -> std::result::Result<&Row, String> {
        let row = self.ops.get(&node.op_type).filter(|_| node.domain.is_onnx());
        let Some(row) = row else { return Err(format!("{} has no integer kernel in {}", node.op_type, self.name)) };
        if opset < row.opset {
            return Err(format!("{} has no integer kernel below opset {} in {}", node.op_type, row.opset, self.name));
        }
        for (name, allowed) in &row.only {
            let value = node.attrs.str(name).or(row.defaults.get(name).map(String::as_str)).unwrap_or("");
            if !allowed.iter().any(|a| a == value) {
                return Err(format!("{} with {name} = {value} has no integer kernel in {}", node.op_type, self.name));
            }
        }
        Ok(row)
    }

    /// How the target quantizes a node: what the operator's definition says, unless the table has a rule of its own.
    #[must_use]
    pub fn rule(&self, node: &Node, opset: i64, fact: QuantRule) -> QuantRule {
        let observed = |data| QuantRule::Combine { data, output: OutputRange::Observed };
        match (fact, self.row(node, opset).ok().and_then(|r| r.rule)) {
            (QuantRule::Keep { .. }, Some(Rule::Elementwise)) => observed(Slots::All),
            (QuantRule::Keep { .. }, Some(Rule::First)) => observed(Slots::These(&[0])),
            (QuantRule::Keep { .. }, Some(Rule::Normalization)) => {
                QuantRule::Weighted { data: 0, weight: 1, axis: WeightAxis::Fixed(0), bias: Some(2) }
            }
            _ => fact,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::scheme::{Choices, Scheme};

    #[test]
    fn embedded_tables_are_sound() {
        for (t, said) in Target::all().unwrap().iter().zip(Target::descriptions()) {
            assert_eq!((t.name.as_str(), t.description.as_str()), said);
            assert!(!t.activation.types().unwrap().is_empty() && !t.weight.types().unwrap().is_empty(), "{}", t.name);
            assert!(t.row(&Node::new("Conv"), 13).is_ok(), "{}", t.name);
            assert!(t.row(&Node::new("Resize").attr("mode", "linear"), 13).is_err() || t.name == "qnn", "{}", t.name);
            Scheme::new(t, &Choices::default()).unwrap();
            for op in t.op_types() {
                let known = crate::ops::ALL.iter().copied().flatten().any(|d| d.name == op);
                assert!(known, "{}: operator {op} is not known", t.name);
            }
            assert!(Target::text(&t.name).unwrap().contains("# "), "{}: no source is given", t.name);
        }
        let e = Target::named("nope").unwrap_err();
        assert!(crate::error::help_of(&e).unwrap().contains("ort-cpu"));
    }

    #[test]
    fn a_table_builds_on_another() {
        let (base, own) = (Target::named("ort-cpu").unwrap(), Target::named("ort-cpu-avx2").unwrap());
        assert_eq!(base.op_types().collect::<Vec<_>>(), own.op_types().collect::<Vec<_>>());
        assert_eq!((base.weight.reduce_range[0], own.weight.reduce_range[0]), (false, true));
        assert!(Target::text("ort-cpu-avx2").unwrap().contains("[ops.QLinear") || own.absorb);
    }

    #[test]
    fn a_rule_of_the_target_serves_operators_without_one() {
        let keep = QuantRule::Keep { why: "x" };
        let (qnn, cpu) = (Target::named("qnn").unwrap(), Target::named("ort-cpu").unwrap());
        let node = Node::new("Tanh");
        assert!(matches!(qnn.rule(&Node::new("Gelu"), 20, keep), QuantRule::Combine { .. }));
        assert!(matches!(qnn.rule(&Node::new("LayerNormalization"), 17, keep), QuantRule::Weighted { .. }));
        assert_eq!(cpu.rule(&node, 20, keep), keep);
    }
}
