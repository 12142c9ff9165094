//! What the user chose.

use std::collections::BTreeSet;

use super::algo::Improvement;
use super::algo::moments::Limits;
use super::annotate::Excluded;
use super::overrides::Overrides;
use super::prune::Pruning;
use super::region::Region;
use super::scheme::{Choices, Scheme};
use super::target::Target;
use crate::calibrate::Method;
use crate::calibrate::cache::Cache;
use crate::error::{Context, Result, WithHelp, bail};
use crate::ir::{GraphId, Model, NodeId};
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

/// How much work goes into accuracy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Effort {
    /// Ranges alone.
    Fast,
    /// Equalization, bias correction, and GPTQ rounding of weights whose inputs' second moments are cheap.
    #[default]
    Balanced,
    /// The same from more samples and for weights of any size, with clipping of weights, AdaRound beside GPTQ, and biases
    /// refined by the means of the quantized model.
    Best,
}

impl Effort {
    /// What second moments are gathered.
    #[must_use]
    pub fn moments(self) -> Limits {
        match self {
            Effort::Fast | Effort::Balanced => Limits { samples: 8, k: 1200, bytes: 128 << 20 },
            Effort::Best => Limits::default(),
        }
    }
}

/// Choices for one run.
pub struct Config {
    /// What becomes integers.
    pub mode: Mode,
    /// The runtime that the model is for.
    pub target: Target,
    /// How tensors are quantized.
    pub scheme: Scheme,
    /// How ranges are chosen.
    pub method: Method,
    /// What was observed before, for the ranges of the model as it is prepared; samples are then not run for them.
    pub cache: Option<Cache>,
    /// Names the nodes that stay float: gets name and operator, gives the reason.
    pub exclude: Box<dyn Fn(&str, &str) -> Option<String> + Sync>,
    /// Only nodes in one of these parts are quantized; without any, all may be.
    pub regions: Vec<Region>,
    /// What the user says of single tensors.
    pub overrides: Overrides,
    /// Which weights become zero first.
    pub prune: Option<Pruning>,
    /// Whether graph inputs and outputs hold integers where they can.
    pub quantize_io: bool,
    /// Output SQNR in dB that the emitted model must reach on held-out samples, which were used for nothing else than to
    /// raise this floor; operators stay float until it does.
    pub min_sqnr_db: f64,
    /// What the metric may lose on held-out samples, as a share (see [`super::labels`]): without labels, the share of the
    /// rows of class scores in which another class may come first than in the float model.
    pub max_drop: Option<f64>,
    /// How much work goes into accuracy.
    pub effort: Effort,
    /// What is left out of it.
    pub without: BTreeSet<Improvement>,
    /// Threads.
    pub threads: usize,
}

impl Config {
    /// The defaults for a target.
    ///
    /// # Errors
    /// There is no such target.
    pub fn new(target: &str) -> Result<Self> {
        let target = Target::named(target)?;
        Ok(Config {
            mode: Mode::Static,
            scheme: Scheme::new(&target, &Choices::default())?,
            target,
            method: Method::default(),
            cache: None,
            exclude: Box::new(|_, _| None),
            regions: Vec::new(),
            overrides: Overrides::new(),
            prune: None,
            quantize_io: false,
            min_sqnr_db: 20.0,
            max_drop: None,
            effort: Effort::default(),
            without: BTreeSet::new(),
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        })
    }

    /// Whether something is done for accuracy in this run.
    #[must_use]
    pub fn applies(&self, what: Improvement) -> bool {
        let by_effort = match what {
            Improvement::Auto | Improvement::FloatFallback => true,
            Improvement::WeightClip | Improvement::AdaRound | Improvement::BiasRefine => self.effort == Effort::Best,
            _ => self.effort != Effort::Fast,
        };
        by_effort && !self.without.contains(&what)
    }

    /// The lowest opset that the result can be written in.
    #[must_use]
    pub fn opset_floor(&self) -> i64 {
        let types = self.overrides.values().filter_map(|o| o.dtype);
        let own = self.scheme.own_domain;
        types.map(|d| if d.bits() == 8 || own { 0 } else { 21 }).fold(self.scheme.opset_floor(&self.target), i64::max)
    }

    /// The nodes that the user wants float.
    ///
    /// # Errors
    /// A region names nothing in the model.
    pub fn excluded(&self, model: &Model) -> Result<Excluded> {
        let mut out = Excluded::new();
        let mut inside = BTreeSet::new();
        for r in &self.regions {
            inside.extend(r.nodes(model).context("--region")?);
        }
        let main = model.graph_ids().next();
        let is_outside = |mut id: GraphId, mut n: NodeId| {
            // A body lies where its owner lies.
            while let Some(o) = model.graph(id).owner() {
                (id, n) = (o.graph, o.node);
            }
            !self.regions.is_empty() && (Some(id) != main || !inside.contains(&n))
        };
        for id in model.graph_ids() {
            let g = model.graph(id);
            for n in g.nodes() {
                let node = g.node(n);
                if is_outside(id, n) {
                    out.insert((id, n), ("excluded", "outside --region".into()));
                }
                if let Some(why) = (self.exclude)(&node.label(), &node.op_type) {
                    out.insert((id, n), ("excluded", why));
                }
            }
        }
        Ok(out)
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
