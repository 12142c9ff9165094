//! `Scan` — a body over the slices of its inputs, with values carried from one slice to the next.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Scan.html> (opsets 8, 9, 11, 16, 19, 21, 23, 24, 25)
//! Inputs: initial values of what is carried, then num_scan_inputs tensors that are sliced. In opset 8 the first input
//! is sequence_lens? and everything has a batch dimension in front.
//! Outputs: the carried values at the end, then the body's further outputs of all slices, stacked along scan_output_axes.
//! Attributes: body, num_scan_inputs; scan_input_axes, scan_output_axes (default 0), scan_input_directions and
//! scan_output_directions (1 is backwards); in opset 8 directions.
//! Quantized: its body is quantized by itself.
//! Errors: inputs of different lengths; lists of the wrong length; what is stacked differs in type or shape.

use super::call::axis;
use super::concat::concat;
use super::gather::gather;
use super::if_::body;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Attrs, Dim, TensorType, ValueType};
use crate::tensor::Tensor;

const SCAN: OpDef = OpDef {
    name: "Scan",
    domain: OpDomain::Onnx,
    since: 9,
    inputs: Arity::at_least(1),
    outputs: Arity::at_least(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "control flow: its body is quantized by itself" },
};

pub(super) const OPS: &[OpDef] =
    &[OpDef { since: 8, inputs: Arity::at_least(0), infer: infer_8, eval: eval_8, ..SCAN }, SCAN];

fn n_scans(attrs: &Attrs, n_inputs: usize) -> Result<usize> {
    let n = attrs.int("num_scan_inputs").ok_or_else(|| anyhow!("attribute \"num_scan_inputs\" is missing"))?;
    usize::try_from(n)
        .ok()
        .filter(|&n| n >= 1 && n <= n_inputs)
        .ok_or_else(|| anyhow!("attribute \"num_scan_inputs\" is {n}, expected 1 to {n_inputs}"))
}

/// A list with one entry for each of `n` tensors; zeros when it is left out.
fn list(attrs: &Attrs, name: &str, n: usize) -> Result<Vec<i64>> {
    match attrs.ints(name) {
        None => Ok(vec![0; n]),
        Some(v) if v.len() == n => Ok(v.to_vec()),
        Some(v) => bail!("attribute \"{name}\" has {} entries, expected {n}", v.len()),
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let graph = body(ctx.attrs, "body")?;
    let n = n_scans(ctx.attrs, ctx.inputs.len())?;
    let n_carried = ctx.inputs.len() - n;
    let input_axes = list(ctx.attrs, "scan_input_axes", n)?;
    // The shapes of what is carried stay the same by the specification.
    let mut inputs: Vec<Option<ValueType>> = (0..n_carried).map(|i| ctx.ty(i).cloned()).collect();
    let mut length = Dim::Unknown;
    for (i, &at) in input_axes.iter().enumerate() {
        let ty = match ctx.ty(n_carried + i) {
            Some(ValueType::Tensor(t)) => {
                let mut t = t.clone();
                if let Some(s) = &mut t.shape {
                    let d = s.remove(axis(at, s.len())?);
                    if length.known().is_none() && d != Dim::Unknown {
                        length = d;
                    }
                }
                Some(ValueType::Tensor(t))
            }
            t => t.cloned(),
        };
        inputs.push(ty);
    }
    let outputs = ctx.bodies.infer(graph, &inputs)?;
    let output_axes = list(ctx.attrs, "scan_output_axes", outputs.len().saturating_sub(n_carried))?;
    for (i, ty) in outputs.into_iter().enumerate() {
        if i < n_carried {
            if let Some(t) = ty.or_else(|| ctx.ty(i).cloned()) {
                ctx.set(i, t);
            }
        } else if let Some(ValueType::Tensor(TensorType { dtype, shape })) = ty {
            let shape = match shape {
                Some(mut s) => {
                    s.insert(axis(output_axes[i - n_carried], s.len() + 1)?, length.clone());
                    Some(s)
                }
                None => None,
            };
            ctx.set_tensor(i, dtype, shape);
        }
    }
    Ok(())
}

/// What is done with each input and output.
struct Lists {
    input_axes: Vec<usize>,
    input_backwards: Vec<bool>,
    output_axes: Vec<i64>,
    output_backwards: Vec<bool>,
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let n = n_scans(call.attrs, call.n_inputs())?;
    let n_carried = call.n_inputs() - n;
    let n_stacked = call.n_outputs().saturating_sub(n_carried);
    let carried = (0..n_carried).map(|i| call.take_item(i)).collect::<Result<Vec<_>>>()?;
    let scanned = (n_carried..n_carried + n).map(|i| call.take(i)).collect::<Result<Vec<_>>>()?;
    let axes = list(call.attrs, "scan_input_axes", n)?;
    let backwards = |name: &str, n: usize| -> Result<Vec<bool>> {
        Ok(list(call.attrs, name, n)?.into_iter().map(|d| d != 0).collect())
    };
    let lists = Lists {
        input_axes: axes.iter().zip(&scanned).map(|(&a, t)| axis(a, t.rank())).collect::<Result<_>>()?,
        input_backwards: backwards("scan_input_directions", n)?,
        output_axes: list(call.attrs, "scan_output_axes", n_stacked)?,
        output_backwards: backwards("scan_output_directions", n_stacked)?,
    };
    let length = scanned[0].shape()[lists.input_axes[0]];
    scan(call, carried, &scanned, &lists, length)
}

fn scan(call: &Call<'_>, mut carried: Vec<Item>, scanned: &[Tensor], l: &Lists, length: usize) -> Result<Vec<Item>> {
    let graph = body(call.attrs, "body")?;
    let n_carried = carried.len();
    for (i, (t, &a)) in scanned.iter().zip(&l.input_axes).enumerate() {
        let n = t.shape()[a];
        ensure!(n >= length, "scanned input {i} has {n} slices, expected {length}");
    }
    let mut stacks: Vec<Vec<Tensor>> = vec![Vec::new(); l.output_axes.len()];
    for k in 0..length {
        let mut inputs = std::mem::take(&mut carried);
        for (i, t) in scanned.iter().enumerate() {
            let at = if l.input_backwards[i] { length - 1 - k } else { k };
            inputs.push(gather(t, &[at as i64], &[], l.input_axes[i])?.into());
        }
        let mut outputs = call.bodies.run(graph, inputs).with_context(|| format!("slice {k}"))?.into_iter();
        carried.extend(outputs.by_ref().take(n_carried));
        for (i, s) in stacks.iter_mut().enumerate() {
            let t =
                outputs.next().with_context(|| format!("the body has no output {}", n_carried + i))?.into_tensor()?;
            let mut shape = t.shape().to_vec();
            shape.insert(axis(l.output_axes[i], t.rank() + 1)?, 1);
            s.push(t.reshaped(&shape)?);
        }
    }
    for (i, mut s) in stacks.into_iter().enumerate() {
        ensure!(!s.is_empty(), "there are no slices to scan");
        if l.output_backwards[i] {
            s.reverse();
        }
        let joined = concat(&s.iter().collect::<Vec<_>>(), l.output_axes[i])
            .with_context(|| format!("output {}", n_carried + i))?;
        carried.push(joined.into());
    }
    Ok(carried)
}

fn infer_8(ctx: &mut InferCtx<'_>) -> Result<()> {
    let graph = body(ctx.attrs, "body")?;
    let n = n_scans(ctx.attrs, ctx.inputs.len().saturating_sub(1))?;
    let n_carried = ctx.inputs.len() - 1 - n;
    let (mut batch, mut length) = (Dim::Unknown, Dim::Unknown);
    let mut inputs = Vec::new();
    for i in 0..n_carried + n {
        let mut ty = ctx.ty(i + 1).cloned();
        if let Some(ValueType::Tensor(TensorType { shape: Some(s), .. })) = &mut ty {
            ensure!(s.len() > usize::from(i >= n_carried), "input {} has rank {}", i + 1, s.len());
            batch = s.remove(0);
            if i >= n_carried {
                length = s.remove(0);
            }
        }
        inputs.push(ty);
    }
    for (i, ty) in ctx.bodies.infer(graph, &inputs)?.into_iter().enumerate() {
        if let Some(ValueType::Tensor(TensorType { dtype, shape })) = ty {
            let front = if i < n_carried { vec![batch.clone()] } else { vec![batch.clone(), length.clone()] };
            ctx.set_tensor(i, dtype, shape.map(|s| [front, s].concat()));
        }
    }
    Ok(())
}

/// Opset 8: the newer operator for each element of the batch. Shorter sequences are filled up with zeros.
fn eval_8(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let n = n_scans(call.attrs, call.n_inputs().saturating_sub(1))?;
    let n_carried = call.n_inputs() - 1 - n;
    let n_stacked = call.n_outputs().saturating_sub(n_carried);
    let lengths = call.optional_ints(0)?;
    let inputs = (1..call.n_inputs()).map(|i| call.take(i)).collect::<Result<Vec<_>>>()?;
    for (i, t) in inputs.iter().enumerate() {
        ensure!(t.rank() > usize::from(i >= n_carried), "input {} has rank {}", i + 1, t.rank());
        ensure!(t.shape()[0] == inputs[0].shape()[0], "input {} has another batch size than input 1", i + 1);
    }
    let (batch, longest) = (inputs[0].shape()[0], inputs[n_carried].shape()[1]);
    ensure!(batch > 0, "the batch is empty");
    let lists = Lists {
        input_axes: vec![0; n],
        input_backwards: list(call.attrs, "directions", n)?.into_iter().map(|d| d != 0).collect(),
        output_axes: vec![0; n_stacked],
        output_backwards: vec![false; n_stacked],
    };
    let mut parts: Vec<Vec<Tensor>> = vec![Vec::new(); n_carried + n_stacked];
    for b in 0..batch {
        let pick = |t: &Tensor| gather(t, &[b as i64], &[], 0);
        let carried = inputs[..n_carried].iter().map(|t| pick(t).map(Item::Tensor)).collect::<Result<Vec<_>>>()?;
        let scanned = inputs[n_carried..].iter().map(pick).collect::<Result<Vec<_>>>()?;
        let length = match &lengths {
            None => longest,
            Some(v) => {
                v.get(b).and_then(|&l| usize::try_from(l).ok()).filter(|&l| l <= longest).ok_or_else(|| {
                    anyhow!("input 0 (sequence_lens) is {v:?}, expected {batch} lengths up to {longest}")
                })?
            }
        };
        for (i, item) in scan(call, carried, &scanned, &lists, length)?.into_iter().enumerate() {
            let mut t = item.into_tensor()?;
            if i >= n_carried && length < longest {
                let mut pads = vec![(0, 0); t.rank()];
                pads[0].1 = (longest - length) as i64;
                let zero = Tensor::zeros(t.dtype(), &[])?;
                t = super::pad::pad(&t, &pads, super::pad::Mode::Constant, &zero)?;
            }
            let shape = [&[1], t.shape()].concat();
            parts[i].push(t.reshaped(&shape)?);
        }
    }
    parts.iter().map(|p| Ok(concat(&p.iter().collect::<Vec<_>>(), 0)?.into())).collect()
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn bad_attributes_are_errors() {
        let case = |n: i64| Case::new("Scan", 11).input(Tensor::vector(vec![1.0f32])).attr("num_scan_inputs", n);
        case(2).fails("num_scan_inputs");
        case(1).fails("attribute \"body\"");
        case(1).attr("scan_input_axes", vec![0i64, 0]).fails("2 entries, expected 1");
        case(1).attr("scan_input_axes", vec![1i64]).fails("axis 1");
    }
}
