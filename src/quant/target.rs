//! Targets: what a runtime really runs in integers, as a table of facts, one embedded TOML file each.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::{Context, Result, bail};
use crate::ir::Node;
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
    /// ONNX's name of the activation type.
    activation: String,
    /// ONNX's name of the weight type.
    weight: String,
    /// Operators of ONNX's own domain with integer kernels.
    ops: BTreeMap<String, Row>,
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
    /// Attributes that must have one of these values.
    #[serde(default)]
    only: BTreeMap<String, Vec<String>>,
    /// What those attributes are when they are missing.
    #[serde(default)]
    defaults: BTreeMap<String, String>,
}

/// Whether a node runs in integers without a `QuantizeLinear` behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputNeed {
    /// It needs one.
    Required,
    /// It gives floats without.
    Optional,
}

const TABLES: &[&str] = &[include_str!("targets/ort-cpu.toml")];

impl Target {
    /// All targets.
    ///
    /// # Errors
    /// An embedded table is wrong, which a test rules out.
    pub fn all() -> Result<Vec<Target>> {
        TABLES.iter().map(|t| toml::from_str(t).context("embedded target table")).collect()
    }

    /// The target of this name.
    ///
    /// # Errors
    /// There is none; the error lists those that there are.
    pub fn named(name: &str) -> Result<Target> {
        let all = Self::all()?;
        match all.iter().find(|t| t.name == name) {
            Some(t) => Ok(t.clone()),
            None => {
                let names: Vec<_> = all.iter().map(|t| t.name.as_str()).collect();
                bail!("unknown target \"{name}\"; there are: {}", names.join(", "))
            }
        }
    }

    /// The type of quantized activations.
    ///
    /// # Errors
    /// The table names no type, which a test rules out.
    pub fn activation(&self) -> Result<DType> {
        DType::from_name(&self.activation).with_context(|| format!("target {}: activation type", self.name))
    }

    /// The type of quantized weights.
    ///
    /// # Errors
    /// The table names no type, which a test rules out.
    pub fn weight(&self) -> Result<DType> {
        DType::from_name(&self.weight).with_context(|| format!("target {}: weight type", self.name))
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_tables_are_sound() {
        for t in Target::all().unwrap() {
            t.activation().unwrap();
            t.weight().unwrap();
            assert!(t.row(&Node::new("Conv"), 13).is_ok());
            assert!(t.row(&Node::new("Resize").attr("mode", "linear"), 13).is_err() || t.name != "ort-cpu");
        }
        assert!(Target::named("nope").unwrap_err().to_string().contains("ort-cpu"));
    }
}
