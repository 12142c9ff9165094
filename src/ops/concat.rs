//! `Concat` — tensors one after another along `axis`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Concat.html> (opsets 4, 11, 13)
//! Inputs: any number of one type, shapes equal but along axis. Output: concat_result. Attribute: axis, required.
//! Quantized: integers can be joined when all inputs and the output share parameters, so the output's range decides.
//! Errors: types, ranks or other dimensions differ; axis out of range or missing.

use super::call::axis;
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, OutputRange, QuantRule, Slots};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::{Element, Tensor, count, strided};
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Concat",
    domain: OpDomain::Onnx,
    since: 4,
    inputs: Arity::at_least(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Combine { data: Slots::All, output: OutputRange::Observed },
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Concat", |b| b.moved(&(0..b.inputs.len()).collect::<Vec<_>>()))];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = ctx.inputs.len();
    let at = ctx.attrs.int("axis").ok_or_else(|| anyhow!("attribute \"axis\" is missing"))?;
    let dtype = (0..n).find_map(|i| ctx.dtype(i));
    let known: Vec<_> = (0..n).map(|i| ctx.shape(i)).collect();
    let shape = match known.iter().flatten().next() {
        None => None,
        Some(first) => {
            let at = axis(at, first.len())?;
            let mut out = first.to_vec();
            out[at] = Dim::Known(0);
            for (i, s) in known.iter().enumerate() {
                let Some(s) = s else {
                    out[at] = Dim::Unknown;
                    continue;
                };
                ensure!(s.len() == out.len(), "input {i} has rank {}, expected {}", s.len(), out.len());
                for (k, d) in s.iter().enumerate() {
                    if k == at {
                        out[k] = sym::add(&out[k], d);
                        continue;
                    }
                    match (out[k].known(), d.known()) {
                        (Some(a), Some(b)) => ensure!(a == b, "input {i} has size {b} in dimension {k}, expected {a}"),
                        (None, Some(_)) => out[k] = d.clone(),
                        _ if out[k] == Dim::Unknown => out[k] = d.clone(),
                        _ => {}
                    }
                }
            }
            Some(out)
        }
    };
    if let Some(v) =
        (0..n).map(|i| if ctx.rank(i) == Some(1) { value_of(ctx, i) } else { None }).collect::<Option<Vec<_>>>()
    {
        ctx.set_values(0, v.concat());
    }
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

/// The elements of a vector, all of them unknown when only their number is known: one of them does not spoil a shape.
fn value_of(ctx: &InferCtx<'_>, i: usize) -> Option<Vec<Dim>> {
    ctx.values(i).or_else(|| match ctx.shape(i) {
        Some([Dim::Known(n @ ..=8)]) if ctx.dtype(i).is_some_and(|d| d.is_integer()) => Some(vec![Dim::Unknown; *n]),
        _ => None,
    })
}

/// The tensors one after another along an axis.
///
/// # Errors
/// There are none, their types, ranks or other dimensions differ, or the axis is out of range.
pub(crate) fn concat(parts: &[&Tensor], at: i64) -> Result<Tensor> {
    let first = *parts.first().ok_or_else(|| anyhow!("there is nothing to concatenate"))?;
    let at = axis(at, first.rank())?;
    let mut shape = first.shape().to_vec();
    shape[at] = 0;
    for (i, p) in parts.iter().enumerate() {
        ensure!(p.dtype() == first.dtype(), "input {i} has type {}, expected {}", p.dtype(), first.dtype());
        let same = p.rank() == first.rank() && (0..p.rank()).all(|k| k == at || p.shape()[k] == first.shape()[k]);
        ensure!(
            same,
            "input {i} has shape {:?}, which differs from {:?} not only in dimension {at}",
            p.shape(),
            first.shape()
        );
        shape[at] = shape[at].checked_add(p.shape()[at]).ok_or_else(|| anyhow!("dimension {at} is too large"))?;
    }
    let n = count(&shape)?;
    let outer: usize = shape[..at].iter().product();
    with_data!(first.data(), T, b => {
        let _: &[T] = b.as_slice();
        strided::typed::<T>(first.dtype(), &shape, join::<T>(parts, outer, n)?)
    })
}

fn join<T: Element>(parts: &[&Tensor], outer: usize, n: usize) -> Result<Vec<T>> {
    let slices = parts.iter().map(|p| p.slice::<T>()).collect::<Result<Vec<_>>>()?;
    let mut out = Vec::with_capacity(n);
    if n == 0 {
        return Ok(out);
    }
    let runs: Vec<usize> = slices.iter().map(|s| s.len() / outer).collect();
    for o in 0..outer {
        for (s, &run) in slices.iter().zip(&runs) {
            out.extend_from_slice(&s[o * run..(o + 1) * run]);
        }
    }
    Ok(out)
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let at = call.required_int("axis")?;
    if call.n_inputs() == 1 {
        axis(at, call.input(0)?.rank())?;
        return Ok(call.take(0)?.into());
    }
    let mut parts = Vec::with_capacity(call.n_inputs());
    for i in 0..call.n_inputs() {
        match call.optional(i)? {
            Some(t) => parts.push(t),
            None => bail!("input {i} is missing"),
        }
    }
    Ok(concat(&parts, at).context("Concat")?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn joins() {
        let a = Tensor::of(&[2, 1], vec![1, 2i64]);
        let b = Tensor::of(&[2, 2], vec![3, 4, 5, 6i64]);
        let case = |axis: i64| Case::new("Concat", 13).input(a.clone()).input(b.clone()).attr("axis", axis);
        case(1).expect(&[Tensor::of(&[2, 3], vec![1, 3, 4, 2, 5, 6i64])]);
        case(-1).expect(&[Tensor::of(&[2, 3], vec![1, 3, 4, 2, 5, 6i64])]);
        case(0).fails("input 1 has shape [2, 2]");
        case(2).fails("axis 2 is out of range");
        Case::new("Concat", 13)
            .input(a.clone())
            .input(Tensor::of(&[2, 1], vec![1.0f32, 2.0]))
            .attr("axis", 0)
            .fails("type");
        Case::new("Concat", 13).input(a.clone()).input(a).fails("axis");
    }
}
