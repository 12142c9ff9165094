//! Graph inputs and outputs as integers: the `QuantizeLinear` behind an input and the `DequantizeLinear` in front of
//! an output are left to the caller, who says and is told scale and zero point.

use crate::error::Result;
use crate::ir::{Def, Model, Names, TensorType, ValueId, ValueType};
use crate::ops::quant_rule::{DEQUANTIZE, QUANTIZE};
use crate::passes;
use crate::tensor::DType;

/// An input or output that holds integers now.
#[derive(Debug, Clone, PartialEq)]
pub struct Edge {
    /// Its name.
    pub name: String,
    /// Type of the integers.
    pub dtype: DType,
    /// The step.
    pub scale: f64,
    /// The integer that stands for 0.
    pub zero_point: i64,
}

/// Makes every float input that is only read quantized, and every output that is dequantized from integers, hold those
/// integers under the same name.
///
/// # Errors
/// A stored tensor cannot be read.
pub fn quantize_io(model: &mut Model) -> Result<Vec<Edge>> {
    let mut out = Vec::new();
    let mut names = Names::of(model);
    for v in model.main().inputs().to_vec() {
        out.extend(input(model, v)?);
    }
    for i in 0..model.main().outputs().len() {
        out.extend(output(model, i, &mut names)?);
    }
    let mut sink = crate::diag::Sink::default();
    passes::manager::run(model, &passes::CLEANUP, &mut passes::Ctx::new(&mut sink), &mut |_, _| {})?;
    Ok(out)
}

fn params(model: &Model, n: crate::ir::NodeId) -> Result<Option<(f64, i64)>> {
    let g = model.main();
    let stored = |slot: usize| g.input(n, slot).and_then(|v| g.constant(v));
    let (Some(scale), Some(zero)) = (stored(1), stored(2)) else { return Ok(None) };
    if scale.len() != 1 {
        return Ok(None);
    }
    Ok(Some((scale.get()?.to_f64()?, zero.get()?.to_f64()? as i64)))
}

fn retype(model: &mut Model, v: ValueId, dtype: DType) {
    let g = model.main_mut();
    let shape = g.value(v).ty.as_ref().and_then(|t| t.as_tensor()).and_then(|t| t.shape.clone());
    g.set_type(v, Some(ValueType::Tensor(TensorType { dtype: Some(dtype), shape })));
}

fn input(model: &mut Model, v: ValueId) -> Result<Option<Edge>> {
    let g = model.main();
    let readers = g.consumers(v);
    let [(q, 0)] = readers[..] else { return Ok(None) };
    let is_alone = g.n_uses(v) == 1 && g.node(q).op_type == QUANTIZE && matches!(g.value(v).def, Def::Input);
    let (Some(y), Some((scale, zero_point)), true) = (g.output(q, 0), params(model, q)?, is_alone) else {
        return Ok(None);
    };
    let Some(dtype) = g.input(q, 2).and_then(|z| g.constant(z)).map(|t| t.dtype()) else { return Ok(None) };
    let name = g.value(v).name.clone();
    if g.is_output(y) {
        return Ok(None);
    }
    model.main_mut().replace_uses(y, v);
    retype(model, v, dtype);
    // What quantized it reads nothing that is left.
    model.main_mut().set_input(q, 0, None);
    Ok(Some(Edge { name, dtype, scale, zero_point }))
}

fn output(model: &mut Model, i: usize, names: &mut Names) -> Result<Option<Edge>> {
    let g = model.main();
    let v = g.outputs()[i];
    let Some((dq, _)) = g.producer(v).filter(|(n, _)| g.node(*n).op_type == DEQUANTIZE) else { return Ok(None) };
    let (Some(q), Some((scale, zero_point))) = (g.input(dq, 0), params(model, dq)?) else { return Ok(None) };
    let Some(dtype) = g.input(dq, 2).and_then(|z| g.constant(z)).map(|t| t.dtype()) else { return Ok(None) };
    // Made by a node, and no output or input under a name of its own.
    if !matches!(g.value(q).def, Def::Node) || g.is_output(q) || g.is_captured(v) {
        return Ok(None);
    }
    let name = g.value(v).name.clone();
    let shape = g.value(v).ty.as_ref().and_then(|t| t.as_tensor()).and_then(|t| t.shape.clone());
    let mut outputs = g.outputs().to_vec();
    outputs[i] = q;
    let g = model.main_mut();
    g.set_outputs(outputs);
    g.rename(v, names.fresh(&format!("{name}_DequantizeLinear_Output")));
    g.rename(q, name.clone());
    g.set_type(q, Some(ValueType::Tensor(TensorType { dtype: Some(dtype), shape })));
    Ok(Some(Edge { name, dtype, scale, zero_point }))
}
