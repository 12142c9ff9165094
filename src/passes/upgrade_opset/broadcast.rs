//! Opset 7 replaced the attributes `broadcast` and `axis` by broadcasting as numpy does it.

use super::Conversion;
use super::edit::Edit;
use crate::error::{Result, anyhow, ensure};
use crate::ir::{Attr, Dim, Node, TensorType, ValueType};
use crate::tensor::Tensor;

pub(super) const CONVERSIONS: &[Conversion] = &[
    Conversion { op: "Add", to: 7, convert: binary },
    Conversion { op: "And", to: 7, convert: binary },
    Conversion { op: "Div", to: 7, convert: binary },
    Conversion { op: "Equal", to: 7, convert: binary },
    Conversion { op: "Gemm", to: 7, convert: gemm },
    Conversion { op: "Greater", to: 7, convert: binary },
    Conversion { op: "Less", to: 7, convert: binary },
    Conversion { op: "Mul", to: 7, convert: binary },
    Conversion { op: "Or", to: 7, convert: binary },
    Conversion { op: "PRelu", to: 7, convert: p_relu },
    Conversion { op: "Pow", to: 7, convert: binary },
    Conversion { op: "Sub", to: 7, convert: binary },
    Conversion { op: "Xor", to: 7, convert: binary },
];

/// `axis` says where in the first operand's shape the second one's begins; by default they end together.
fn binary(e: &mut Edit<'_>) -> Result<()> {
    let is_on = e.take_int("broadcast")?.unwrap_or(0) != 0;
    let Some(axis) = e.take_int("axis")?.filter(|_| is_on) else { return Ok(()) };
    let (a, b) = (e.rank(0)?, e.rank(1)?);
    let start = crate::ops::resolve_axis(axis, a)?;
    ensure!(start + b <= a, "axis {axis} leaves no room for rank {b} in rank {a}");
    append_ones(e, a - start - b)
}

fn gemm(e: &mut Edit<'_>) -> Result<()> {
    e.take_int("broadcast")?;
    Ok(())
}

/// A slope per channel used to be a vector.
fn p_relu(e: &mut Edit<'_>) -> Result<()> {
    let slope = e.shape(1).ok_or_else(|| anyhow!("the shape of the slope is not known"))?;
    if slope.len() != 1 || slope[0] == Dim::Known(1) {
        return Ok(());
    }
    let rank = e.rank(0)?;
    append_ones(e, rank.saturating_sub(2))
}

/// Gives input 1 more dimensions of size 1 at its end.
fn append_ones(e: &mut Edit<'_>, n: usize) -> Result<()> {
    if n == 0 {
        return Ok(());
    }
    let b = e.input(1)?;
    if let Some(t) = e.constant(1) {
        let mut shape = t.shape().to_vec();
        shape.extend(vec![1; n]);
        let reshaped: Tensor = t.get()?.clone().reshaped(&shape)?;
        let v = e.before().named_after(b).constant("broadcast", reshaped);
        e.set_input(1, Some(v));
        return Ok(());
    }
    let rank = e.rank(1)?;
    let axes = (rank..rank + n).map(|a| a as i64).collect();
    let ty = e.g().value(b).ty.as_ref().and_then(ValueType::as_tensor).map(|t| {
        let shape = t.shape.iter().flatten().cloned().chain(vec![Dim::Known(1); n]).collect();
        ValueType::Tensor(TensorType { dtype: t.dtype, shape: Some(shape) })
    });
    // In the form of opset 7: the conversion to 13 comes by later.
    let node = Node::new("Unsqueeze").attr("axes", Attr::Ints(axes));
    let v = e.before().named_after(b).node(node, &[b], "broadcast", ty);
    e.set_input(1, Some(v));
    Ok(())
}
