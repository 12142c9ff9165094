//! Opset 13 made `Softmax`, `LogSoftmax` and `Hardmax` work along one axis; before, they flattened their input to two
//! dimensions at `axis` and worked along the second.

use super::Conversion;
use super::edit::Edit;
use crate::error::{Result, anyhow};
use crate::ir::{Attr, Dim, Node, TensorType, ValueType};
use crate::ops::resolve_axis;
use crate::tensor::{DType, Tensor};

pub(super) const CONVERSIONS: &[Conversion] = &[
    Conversion { op: "Hardmax", to: 13, convert },
    Conversion { op: "LogSoftmax", to: 13, convert },
    Conversion { op: "Softmax", to: 13, convert },
];

fn convert(e: &mut Edit<'_>) -> Result<()> {
    let axis = e.take_int("axis")?.unwrap_or(1);
    if let Some(shape) = e.shape(0) {
        // Axis = rank means an empty second part: one element each.
        let axis = if axis == shape.len() as i64 { shape.len() } else { resolve_axis(axis, shape.len())? };
        let mut long = (axis..shape.len()).filter(|&a| shape[a] != Dim::Known(1));
        match (long.next(), long.next()) {
            (None, _) if axis < shape.len() => return set_axis(e, axis),
            (Some(a), None) => return set_axis(e, a),
            _ => {}
        }
    }
    flatten(e, axis)
}

fn set_axis(e: &mut Edit<'_>, axis: usize) -> Result<()> {
    e.set("axis", Attr::Int(i64::try_from(axis)?));
    Ok(())
}

/// `Flatten`, the operator along the last axis, and `Reshape` back.
fn flatten(e: &mut Edit<'_>, axis: i64) -> Result<()> {
    let x = e.input(0)?;
    let y = e.g().output(e.node, 0).ok_or_else(|| anyhow!("output 0 is missing"))?;
    let x_ty = e.g().value(x).ty.clone();
    let flat_ty = ValueType::Tensor(TensorType {
        dtype: x_ty.as_ref().and_then(ValueType::dtype),
        shape: Some(vec![Dim::Unknown, Dim::Unknown]),
    });
    let fixed = x_ty.as_ref().and_then(ValueType::as_tensor).and_then(TensorType::fixed_shape);
    let mut before = e.before();
    let flat = before.node(Node::new("Flatten").attr("axis", axis), &[x], "flat_input", Some(flat_ty.clone()));
    let shape = match fixed {
        Some(dims) => before.constant("shape", Tensor::vector(dims.iter().map(|&n| n as i64).collect())),
        None => {
            let ty =
                x_ty.as_ref().and_then(ValueType::shape).map(|s| ValueType::tensor(DType::I64, vec![s.len().into()]));
            before.node(Node::new("Shape"), &[x], "shape", ty)
        }
    };
    let mut after = e.after();
    let flat_y = after.value("flat", Some(flat_ty));
    e.set_input(0, Some(flat));
    e.set("axis", Attr::Int(-1));
    let node = e.node;
    e.g_mut().set_output(node, 0, Some(flat_y));
    e.after().node_into(Node::new("Reshape"), &[Some(flat_y), Some(shape)], y);
    Ok(())
}
