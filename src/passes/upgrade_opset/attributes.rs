//! Attributes that became inputs.

use super::Conversion;
use super::edit::Edit;
use crate::error::{Result, anyhow, ensure};
use crate::ir::Attr;
use crate::tensor::Tensor;

macro_rules! conversions {
    ($($op:literal $to:literal $convert:expr;)*) => {
        pub(super) const CONVERSIONS: &[Conversion] = &[$(Conversion { op: $op, to: $to, convert: $convert },)*];
    };
}

conversions! {
    "Clip" 11 clip;
    "DFT" 20 dft;
    "Dropout" 12 dropout_ratio;
    "Pad" 2 pad_names;
    "Pad" 11 pad;
    "ReduceL1" 18 axes;
    "ReduceL2" 18 axes;
    "ReduceLogSum" 18 axes;
    "ReduceLogSumExp" 18 axes;
    "ReduceMax" 18 axes;
    "ReduceMean" 18 axes;
    "ReduceMin" 18 axes;
    "ReduceProd" 18 axes;
    "ReduceSum" 13 axes;
    "ReduceSumSquare" 18 axes;
    "Reshape" 5 reshape;
    "Slice" 10 slice;
    "Split" 13 split;
    "Split" 18 split_count;
    "Squeeze" 13 axes;
    "TopK" 10 top_k;
    "Unsqueeze" 13 axes;
}

/// No axes and an empty list both meant all axes (of size 1 for `Squeeze`), as a missing input does now.
fn axes(e: &mut Edit<'_>) -> Result<()> {
    if let Some(axes) = e.take_ints("axes")?.filter(|a| !a.is_empty()) {
        e.set_constant(1, "axes", Tensor::vector(axes));
    }
    Ok(())
}

fn clip(e: &mut Edit<'_>) -> Result<()> {
    for (slot, name) in [(1, "min"), (2, "max")] {
        if let Some(bound) = e.take_float(name)? {
            let bound = e.scalar(bound)?;
            e.set_constant(slot, name, bound);
        }
    }
    Ok(())
}

fn dft(e: &mut Edit<'_>) -> Result<()> {
    let axis = e.take_int("axis")?.unwrap_or(1);
    e.set_constant(2, "axis", Tensor::scalar(axis));
    Ok(())
}

/// The ratio means nothing in inference; it is kept for whoever trains on.
fn dropout_ratio(e: &mut Edit<'_>) -> Result<()> {
    if let Some(ratio) = e.take_float("ratio")? {
        e.set_constant(1, "ratio", Tensor::scalar(ratio));
    }
    Ok(())
}

fn pad_names(e: &mut Edit<'_>) -> Result<()> {
    if let Some(pads) = e.take("paddings")? {
        e.set("pads", pads);
    }
    Ok(())
}

fn pad(e: &mut Edit<'_>) -> Result<()> {
    let pads = e.take_ints("pads")?.ok_or_else(|| anyhow!("attribute \"pads\" is missing"))?;
    e.set_constant(1, "pads", Tensor::vector(pads));
    if let Some(value) = e.take_float("value")?.filter(|&v| v != 0.0) {
        let value = e.scalar(value)?;
        e.set_constant(2, "value", value);
    }
    Ok(())
}

fn reshape(e: &mut Edit<'_>) -> Result<()> {
    let shape = e.take_ints("shape")?.ok_or_else(|| anyhow!("attribute \"shape\" is missing"))?;
    e.set_constant(1, "shape", Tensor::vector(shape));
    Ok(())
}

fn slice(e: &mut Edit<'_>) -> Result<()> {
    for (slot, name) in [(1, "starts"), (2, "ends")] {
        let v = e.take_ints(name)?.ok_or_else(|| anyhow!("attribute \"{name}\" is missing"))?;
        e.set_constant(slot, name, Tensor::vector(v));
    }
    if let Some(axes) = e.take_ints("axes")? {
        e.set_constant(3, "axes", Tensor::vector(axes));
    }
    Ok(())
}

fn split(e: &mut Edit<'_>) -> Result<()> {
    if let Some(sizes) = e.take_ints("split")?.filter(|s| !s.is_empty()) {
        e.set_constant(1, "split", Tensor::vector(sizes));
    }
    Ok(())
}

/// Without sizes the number of outputs has to be said.
fn split_count(e: &mut Edit<'_>) -> Result<()> {
    if e.g().input(e.node, 1).is_none() {
        let n = e.g().node_outputs(e.node).len();
        ensure!(n > 0, "it has no outputs");
        e.set("num_outputs", Attr::Int(i64::try_from(n)?));
    }
    Ok(())
}

fn top_k(e: &mut Edit<'_>) -> Result<()> {
    let k = e.take_int("k")?.ok_or_else(|| anyhow!("attribute \"k\" is missing"))?;
    e.set_constant(1, "K", Tensor::vector(vec![k]));
    Ok(())
}
