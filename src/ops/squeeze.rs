//! `Squeeze` — without dimensions of size 1.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Squeeze.html> (opsets 1, 11, 13, 21, 23, 24, 25)
//! Inputs: data, any type; axes int64 `[n]`? (an attribute before opset 13): all dimensions of size 1 when left out.
//! Output: squeezed. No copy.
//! Quantized: moves elements, so the output has the input's parameters.
//! Errors: a dimension that is not 1; an axis out of range or given twice.

use super::call::axes;
use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail};

const SQUEEZE: OpDef = OpDef {
    name: "Squeeze",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
};

pub(super) const OPS: &[OpDef] = &[SQUEEZE, OpDef { since: 13, inputs: Arity::range(1, 2), ..SQUEEZE }];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Squeeze", |b| b.reshaped())];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let given = if ctx.has(1) { ctx.ints(1) } else { ctx.attrs.ints("axes").map(<[i64]>::to_vec) };
    let all = !ctx.has(1) && given.is_none();
    let shape = match (ctx.shape(0), given) {
        (Some(s), Some(list)) => {
            let list = axes(&list, s.len())?;
            for &a in &list {
                check(a, s[a].known())?;
            }
            Some(without(s, &list))
        }
        (Some(s), None) if all && s.iter().all(|d| d.known().is_some()) => {
            Some(s.iter().filter(|d| d.known() != Some(1)).cloned().collect())
        }
        _ => None,
    };
    if let Some(v) = ctx.values(0) {
        ctx.set_values(0, v);
    }
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn check(axis: usize, size: Option<usize>) -> Result<()> {
    match size {
        Some(n) if n != 1 => bail!("dimension {axis} has size {n}, expected 1"),
        _ => Ok(()),
    }
}

fn without<T: Clone>(shape: &[T], axes: &[usize]) -> Vec<T> {
    shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d): (usize, &T)| d.clone()).collect()
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let given = match call.optional_ints(1)? {
        Some(list) => Some(list),
        None => call.attrs.ints("axes").map(<[i64]>::to_vec),
    };
    let x = call.take(0)?;
    let shape = match given {
        Some(list) => {
            let list = axes(&list, x.rank())?;
            for &a in &list {
                check(a, Some(x.shape()[a]))?;
            }
            without(x.shape(), &list)
        }
        None => x.shape().iter().copied().filter(|&n| n != 1).collect(),
    };
    Ok(x.reshaped(&shape)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Dim;
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn x(shape: &[usize]) -> Tensor {
        Tensor::of(shape, vec![1u8; shape.iter().product()])
    }

    #[test]
    fn drops_dimensions_of_one() {
        Case::new("Squeeze", 11).input(x(&[1, 3, 1])).attr("axes", vec![-1i64]).expect(&[x(&[1, 3])]);
        Case::new("Squeeze", 13).input(x(&[1, 3, 1])).expect(&[x(&[3])]);
        Case::new("Squeeze", 13).input(x(&[1, 3, 1])).input(Tensor::vector(vec![0i64, 2])).expect(&[x(&[3])]);
        Case::new("Squeeze", 13).input(x(&[1, 3])).input(Tensor::vector(vec![1i64])).fails("dimension 1 has size 3");
        Case::new("Squeeze", 13).input(x(&[1, 3])).input(Tensor::vector(vec![2i64])).fails("out of range");
        assert_eq!(without(&[Dim::Known(1), Dim::Unknown], &[0]), [Dim::Unknown]);
    }
}
