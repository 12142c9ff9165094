//! Operators: one file each (or one per family that the specification defines together).
//!
//! An [`OpDef`] keeps together what belongs together: signature, type and shape inference, evaluation and the *facts*
//! that quantization needs ([`QuantRule`]). It is data: listed, tabulated and tested in a loop. Policy (which types,
//! where, for which target) lives in `quant`, which this module never sees.
//!
//! **Add an operator:** a new file `src/ops/<name>.rs` with a `pub(super) const OPS: &[OpDef]`, and its name in the
//! `ops!` list below. Versions whose semantics differ are several `OpDef`s of the same name with different `since`.

mod attention_core;
mod call;
mod elementwise;
mod floats;
mod infer_ctx;
mod integers;
pub mod pointwise;
mod post_transform;
pub mod quant_rule;
pub mod reverse;
#[cfg(test)]
pub(crate) mod testing;
mod window;

use std::collections::BTreeMap;
use std::sync::LazyLock;

pub(crate) use call::axis as resolve_axis;
pub use call::{Bodies, Call, Fusion, Item, Shared, evaluate};
pub(crate) use conv::geometry as conv_geometry;
pub(crate) use image_decoder::rgb_of;
pub use infer_ctx::{InferBodies, InferCtx};
pub use quant_rule::{OutputRange, QuantRule, Slots, WeightAxis};
pub use reverse::{Back, Gradients, reverse_rule};
pub use rnn::is_recurrent;

use crate::error::Result;
use crate::ir::Domain;

/// The domains that we implement operators of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OpDomain {
    /// `ai.onnx`
    Onnx,
    /// `ai.onnx.ml`
    Ml,
    /// `com.microsoft`: ONNX Runtime's own.
    Microsoft,
    /// `ai.onnx.preview`: operators that the specification tries out.
    Preview,
    /// `ai.onnx.preview.training`
    Training,
}

impl OpDomain {
    /// The name; empty for ONNX's own domain.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            OpDomain::Onnx => "",
            OpDomain::Ml => "ai.onnx.ml",
            OpDomain::Microsoft => "com.microsoft",
            OpDomain::Preview => "ai.onnx.preview",
            OpDomain::Training => "ai.onnx.preview.training",
        }
    }
}

/// How many slots an operator has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arity {
    /// Slots that must be there and not empty.
    pub min: usize,
    /// Slots at most; `usize::MAX` when variadic.
    pub max: usize,
}

impl Arity {
    /// Exactly `n` slots.
    #[must_use]
    pub const fn exactly(n: usize) -> Self {
        Arity { min: n, max: n }
    }

    /// `min` to `max` slots.
    #[must_use]
    pub const fn range(min: usize, max: usize) -> Self {
        Arity { min, max }
    }

    /// At least `min` slots.
    #[must_use]
    pub const fn at_least(min: usize) -> Self {
        Arity { min, max: usize::MAX }
    }
}

/// What we know of an operator from one opset version on.
#[derive(Debug)]
pub struct OpDef {
    /// ONNX's name.
    pub name: &'static str,
    /// Its domain.
    pub domain: OpDomain,
    /// The first opset version that this definition holds for; it holds until the next definition's.
    pub since: i64,
    /// Input slots.
    pub inputs: Arity,
    /// Output slots.
    pub outputs: Arity,
    /// Whether equal inputs give equal outputs and nothing else happens, so that it may be folded or removed.
    pub is_pure: bool,
    /// Finds output types and shapes from input types, attributes and constant inputs. Sets what it can, errs only on
    /// a contradiction with the specification.
    pub infer: fn(&mut InferCtx<'_>) -> Result<()>,
    /// Computes the outputs. May return fewer than the node has only when trailing ones are optional.
    pub eval: fn(&mut Call<'_>) -> Result<Vec<Item>>,
    /// What quantization needs to know.
    pub quant: QuantRule,
}

macro_rules! ops {
    ($($name:ident)*) => {
        $(mod $name;)*
        /// Every definition, in the order of the files.
        pub const ALL: &[&[OpDef]] = &[$($name::OPS,)*];
    };
}

ops! {
    activation
    affine_grid
    arg
    attention
    average_pool
    batch_normalization
    bias_gelu
    binary
    bitwise
    cast_
    causal_conv_with_state
    center_crop_pad
    clip
    col2_im
    compare
    compress
    concat
    constant
    constant_of_shape
    conv
    conv_transpose
    cumulative
    deform_conv
    depth_to_space
    det
    dynamic_quantize_linear
    dynamic_quantize_lstm
    einsum
    embed_layer_normalization
    expand
    eye_like
    flatten
    flex_attention
    fourier
    fused
    gather
    gather_block_quantized
    gather_elements
    gather_nd
    gemm
    global_pool
    grid_sample
    identity
    if_
    image_decoder
    instance_normalization
    layer_normalization
    linear_attention
    logic
    loop_
    loss
    lp_pool
    lrn
    mat_mul
    mat_mul_integer
    mat_mul_n_bits
    max_pool
    max_roi_pool
    max_unpool
    mean_variance_normalization
    ml_encode
    ml_features
    ml_linear
    ml_map
    ml_svm
    multi_head_attention
    nhwc_max_pool
    non_max_suppression
    non_zero
    one_hot
    optimizers
    optional
    pad
    q_linear_conv
    q_linear_mat_mul
    qlinear
    quantize_linear
    random
    range
    reduce
    reshape
    resize
    reverse_sequence
    rnn
    roi_align
    rotary_embedding
    scan
    scatter_elements
    scatter_nd
    sequence
    sequence_map
    shape
    signal_window
    slice
    softmax
    split
    split_to_sequence
    squeeze
    string_normalizer
    string_ops
    swi_glu
    tensor_scatter
    tf_idf_vectorizer
    tile
    top_k
    transpose
    tree_ensemble
    trilu
    unary
    unique
    unsqueeze
    variadic
    where_
}

static TABLE: LazyLock<BTreeMap<(&'static str, &'static str), Vec<&'static OpDef>>> = LazyLock::new(|| {
    let mut table: BTreeMap<_, Vec<&'static OpDef>> = BTreeMap::new();
    for def in ALL.iter().copied().flatten() {
        table.entry((def.domain.name(), def.name)).or_default().push(def);
    }
    for defs in table.values_mut() {
        defs.sort_by_key(|d| d.since);
    }
    table
});

/// The definition that holds for an operator at an opset version; `None` for operators and versions that we do not know.
#[must_use]
pub fn lookup(domain: &Domain, name: &str, opset: i64) -> Option<&'static OpDef> {
    let defs = TABLE.get(&(domain.canonical(), name))?;
    defs.iter().rev().find(|d| d.since <= opset).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_of_an_operator_is_defined_once() {
        for ((domain, name), defs) in TABLE.iter() {
            for pair in defs.windows(2) {
                assert!(pair[0].since < pair[1].since, "{domain} {name} {} is defined twice", pair[0].since);
            }
        }
    }
}
