//! Algorithms that make a float model easier to quantize, or its quantized weights better. One file each, with its
//! paper. None decides whether it is kept: each edits a plan (or the float model, before there is a plan) and says with
//! [`What`] what it changed and what it predicts to gain; whoever called it measures.
//!
//! | file | edits | needs |
//! |---|---|---|
//! | [`equalize`] | float model | [`channels`] of the float model |
//! | [`weight_clip`] | scales of weights | [`moments`], their diagonal |
//! | [`gptq`] | integers of weights | [`moments`] |
//! | [`ada_round`] | integers of weights | [`moments`] |
//! | [`blocks`], [`hqq`], [`awq`], [`block_gptq`] | weights alone | nothing, or [`moments`] |
//! | [`bias_correct`] | biases | [`channels`] of the float and the quantized model |
//!
//! They build on each other in this order: scales are chosen before integers, and the bias takes up what is left. What
//! was gathered from the float model holds for every plan of it, so that trying another plan costs no run of samples:
//!
//! ```text
//! needs = moments::needs(model, plan, model);  seen = moments::gather(model, needs, samples, ..)
//! takes = |node| bias_correct::takes_mean(model, plan, node)        // or |_| false without bias correction
//! weight_clip::apply(model, plan, seen, takes, free, adds_pairs)
//! gptq::apply(model, plan, seen, takes, threads)   or   ada_round::apply(model, plan, seen, takes)
//! bias_correct::correct(model, plan, means);   bias_correct::refine(model, plan, emit, samples, ..)
//! ```

pub mod ada_round;
pub mod awq;
pub mod bias_correct;
pub mod block_gptq;
pub mod blocks;
pub mod channels;
pub mod compensate;
pub mod equalize;
pub mod fold;
pub mod gptq;
pub mod hqq;
pub mod layout;
pub mod matrix;
pub mod moments;
pub mod weight_clip;

use crate::error::{Result, anyhow};
use crate::quant::plan::NodePlace;

/// What is done for accuracy besides ranges that cover everything, each of which can be left out (`--without`): the one
/// list of names, in the order in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Improvement {
    /// Ranges of activations by what their readers would lose ([`crate::calibrate`]).
    Auto,
    /// [`equalize`].
    Equalize,
    /// [`bias_correct::correct`].
    BiasCorrect,
    /// [`weight_clip`].
    WeightClip,
    /// [`gptq`].
    Gptq,
    /// [`ada_round`].
    AdaRound,
    /// [`bias_correct::refine`].
    BiasRefine,
    /// Operators stay float until the outputs are accurate enough ([`crate::quant::search`]).
    FloatFallback,
}

impl Improvement {
    /// All of them with name and summary.
    pub const ALL: [(Improvement, &'static str, &'static str); 8] = [
        (Improvement::Auto, "auto", "ranges by what their readers would lose; without it, min-max"),
        (Improvement::Equalize, "equalize", "channels of activations made equally large"),
        (Improvement::BiasCorrect, "bias-correct", "the mean error of rounded weights taken out of biases"),
        (
            Improvement::WeightClip,
            "weight-clip",
            "scales of weights by the least error (--effort best, and weight-only rtn)",
        ),
        (Improvement::Gptq, "gptq", "weights that make up for the errors of others"),
        (Improvement::AdaRound, "ada-round", "weights rounded up or down by their effect (--effort best)"),
        (Improvement::BiasRefine, "bias-refine", "biases by the means of the quantized model (--effort best)"),
        (Improvement::FloatFallback, "float-fallback", "operators that stay float for accuracy"),
    ];

    /// The improvement of a name, in which `_` and `-` are the same.
    ///
    /// # Errors
    /// There is none; the error lists all.
    pub fn named(name: &str) -> Result<Self> {
        let plain = name.trim().to_ascii_lowercase().replace('_', "-");
        let found = Self::ALL.iter().find(|(_, n, _)| *n == plain);
        found.map(|(i, ..)| *i).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(_, n, _)| *n).collect();
            anyhow!("\"{name}\" is none of {}", names.join(", "))
        })
    }
}

/// What an algorithm did to one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct What {
    /// The node.
    pub node: NodePlace,
    /// By how much the noise that rounding this weight adds to the node's output falls, in dB, as the statistics predict
    /// it.
    pub gain_db: f64,
}

impl What {
    /// `None` when nothing is gained.
    fn new(node: NodePlace, before: f64, after: f64) -> Option<Self> {
        let gain_db = 10.0 * (before / after.max(before * 1e-10)).log10();
        (before > after).then_some(What { node, gain_db })
    }
}

/// Adds a multiple of a row.
pub(super) fn add_scaled(to: &mut [f32], from: &[f32], by: f32) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += f * by);
}

#[cfg(test)]
mod tests;
