//! What the user chose.

use super::annotate::Excluded;
use super::target::Target;
use crate::calibrate::Method;
use crate::error::{Result, WithHelp, bail};
use crate::ir::Model;
use crate::ops::quant_rule::{CAST, QUANTIZED};

/// What becomes integers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Weights and activations, with ranges from calibration.
    #[default]
    Static,
    /// Weights only.
    WeightOnly(super::weight_only::Options),
    /// Weights, and activations with the range that they have at each run.
    Dynamic(super::dynamic::Options),
}

/// Choices for one run.
pub struct Config {
    /// What becomes integers.
    pub mode: Mode,
    /// The runtime that the model is for.
    pub target: Target,
    /// How ranges are chosen.
    pub method: Method,
    /// Names the nodes that stay float: gets name and operator, gives the reason.
    pub exclude: Box<dyn Fn(&str, &str) -> Option<String> + Sync>,
    /// Output SQNR in dB that the emitted model must reach on samples that were not used to choose anything; operators
    /// stay float until it does.
    pub min_sqnr_db: f64,
    /// Threads.
    pub threads: usize,
}

impl Config {
    /// The defaults for a target.
    ///
    /// # Errors
    /// There is no such target.
    pub fn new(target: &str) -> Result<Self> {
        Ok(Config {
            mode: Mode::Static,
            target: Target::named(target)?,
            method: Method::default(),
            exclude: Box::new(|_, _| None),
            min_sqnr_db: 20.0,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        })
    }

    /// The nodes that the user wants float.
    #[must_use]
    pub fn excluded(&self, model: &Model) -> Excluded {
        let mut out = Excluded::new();
        for id in model.graph_ids() {
            let g = model.graph(id);
            for n in g.nodes() {
                let node = g.node(n);
                if let Some(why) = (self.exclude)(&node.label(), &node.op_type) {
                    out.insert((id, n), ("excluded", why));
                }
            }
        }
        out
    }
}

/// Refuses a model without nodes, and one that was quantized before: its scales belong to other arithmetic than ours.
///
/// # Errors
/// The model has no nodes, quantized operators, or 8-bit weights that are cast to float; the error names some of them.
pub fn refuse_unsuitable(model: &Model) -> Result<()> {
    if model.graph_ids().all(|id| model.graph(id).nodes().next().is_none()) {
        bail!("the model has no nodes: there is nothing to quantize");
    }
    let mut found = Vec::new();
    for id in model.graph_ids() {
        let g = model.graph(id);
        for n in g.order().unwrap_or_default() {
            let node = g.node(n);
            let stored = g.input(n, 0).and_then(|v| super::annotate::constant(model, id, v));
            // A large 8-bit constant that is cast to float is a compressed weight.
            let is_weight = node.op_type == CAST
                && stored.is_some_and(|t| t.dtype().bits() <= 8 && t.dtype().is_integer() && t.shape().len() >= 2);
            if is_weight || QUANTIZED.contains(&node.op_type.as_str()) {
                found.push(format!("\"{}\" ({})", node.label(), node.op_type));
            }
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    let (shown, more) = (found.len().min(3), found.len().saturating_sub(3));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let e: Result<()> = (|| bail!("the model is quantized already: {}{more}", found[..shown].join(", ")))();
    e.help(|| "start from the float model that it was made of".into())
}
