//! Changes of single operators: training outputs that went, names and defaults that changed.

use super::Conversion;
use super::edit::Edit;
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Attr, Node, ValueType};
use crate::tensor::{DType, Tensor, cast};

pub(super) const CONVERSIONS: &[Conversion] = &[
    Conversion { op: "BatchNormalization", to: 7, convert: inference_flag },
    Conversion { op: "BatchNormalization", to: 9, convert: spatial },
    Conversion { op: "BatchNormalization", to: 14, convert: training_outputs },
    Conversion { op: "Cast", to: 6, convert: cast_to },
    Conversion { op: "Concat", to: 4, convert: concat_axis },
    Conversion { op: "Dropout", to: 7, convert: inference_flag },
    Conversion { op: "Dropout", to: 10, convert: dropout_mask },
    Conversion { op: "GroupNormalization", to: 21, convert: group_normalization },
    Conversion { op: "RoiAlign", to: 16, convert: roi_align },
    Conversion { op: "Scan", to: 9, convert: scan },
    Conversion { op: "Scatter", to: 11, convert: scatter },
    Conversion { op: "Tile", to: 6, convert: tile },
];

/// Exporters left it at its default, which said training, in models for inference.
fn inference_flag(e: &mut Edit<'_>) -> Result<()> {
    e.take_int("is_test")?;
    Ok(())
}

fn spatial(e: &mut Edit<'_>) -> Result<()> {
    ensure!(e.take_int("spatial")?.unwrap_or(1) != 0, "statistics per element (spatial = 0) are gone");
    Ok(())
}

fn training_outputs(e: &mut Edit<'_>) -> Result<()> {
    let n = e.g().node_outputs(e.node).len();
    ensure!(!(1..n).any(|slot| e.is_used(slot)), "it is in training mode: its statistics are used");
    let node = e.node;
    e.g_mut().truncate_outputs(node, 1);
    Ok(())
}

fn cast_to(e: &mut Edit<'_>) -> Result<()> {
    if let Some(name) = e.take_str("to")? {
        let dtype = DType::from_name(&name.to_lowercase()).ok_or_else(|| anyhow!("\"{name}\" is no element type"))?;
        e.set("to", Attr::Int(dtype.code().into()));
    }
    Ok(())
}

fn concat_axis(e: &mut Edit<'_>) -> Result<()> {
    let axis = e.take_int("axis")?.unwrap_or(1);
    e.set("axis", Attr::Int(axis));
    Ok(())
}

/// The mask became a bool.
fn dropout_mask(e: &mut Edit<'_>) -> Result<()> {
    let Some(mask) = e.g().output(e.node, 1).filter(|_| e.is_used(1)) else { return Ok(()) };
    let dtype = e.float_type()?;
    let shape = e.g().value(mask).ty.as_ref().and_then(ValueType::as_tensor).and_then(|t| t.shape.clone());
    let ty = ValueType::Tensor(crate::ir::TensorType { dtype: Some(DType::Bool), shape });
    let flags = e.after().named_after(mask).value("bool", Some(ty));
    let node = e.node;
    e.g_mut().set_output(node, 1, Some(flags));
    e.after().node_into(Node::new("Cast").attr("to", i64::from(dtype.code())), &[Some(flags)], mask);
    Ok(())
}

/// Scale and bias per group became per channel.
fn group_normalization(e: &mut Edit<'_>) -> Result<()> {
    let node = e.node;
    let groups =
        e.g().node(node).attrs.int("num_groups").ok_or_else(|| anyhow!("attribute \"num_groups\" is missing"))?;
    let channels = e.shape(0).and_then(|s| s.get(1)?.known());
    let channels = channels.ok_or_else(|| anyhow!("the number of channels is not known"))?;
    let groups = usize::try_from(groups)?;
    ensure!(groups > 0 && channels.is_multiple_of(groups), "{channels} channels do not make {groups} groups");
    for (slot, name) in [(1, "scale"), (2, "bias")] {
        let Some(t) = e.constant(slot) else { bail!("input {slot} is no constant") };
        let t = t.get()?;
        ensure!(t.len() == groups, "input {slot} has {} elements, expected one per group", t.len());
        let values = t.to_f64s()?.into_iter().flat_map(|x| std::iter::repeat_n(x, channels / groups)).collect();
        let expanded: Tensor = cast::from_f64s(t.dtype(), &[channels], values)?;
        e.set_constant(slot, name, expanded);
    }
    Ok(())
}

/// The default became `half_pixel`.
fn roi_align(e: &mut Edit<'_>) -> Result<()> {
    e.set("coordinate_transformation_mode", "output_half_pixel");
    Ok(())
}

fn scan(_: &mut Edit<'_>) -> Result<()> {
    bail!("its batch dimension is gone")
}

fn scatter(e: &mut Edit<'_>) -> Result<()> {
    let node = e.node;
    e.g_mut().node_mut(node).op_type = "ScatterElements".to_owned();
    Ok(())
}

fn tile(_: &mut Edit<'_>) -> Result<()> {
    bail!("its inputs changed")
}
