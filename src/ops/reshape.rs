//! `Reshape` — the same elements in another shape.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Reshape.html> (opsets 5, 13, 14, 19, 21, 23, 24, 25)
//! Inputs: data, any type; shape int64 `[n]`: 0 copies the input's dimension (unless `allowzero`, opset 14), one -1
//! takes what remains. Output: reshaped, the type of data. No copy.
//! Quantized: moves elements, so the output has the input's parameters.
//! Errors: the numbers of elements differ; two -1; -1 beside 0 with `allowzero`; a 0 beyond the input's rank.

use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::count;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Reshape",
    domain: OpDomain::Onnx,
    since: 5,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Reshape", |b| b.reshaped())];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match (ctx.values(1), ctx.shape(1)) {
        (Some(target), _) => {
            let allow_zero = ctx.attrs.int("allowzero").unwrap_or(0) != 0;
            Some(infer_shape(ctx.shape(0), &target, allow_zero)?)
        }
        (None, Some([Dim::Known(rank)])) => Some(vec![Dim::Unknown; *rank]),
        _ => None,
    };
    if let (Some(v), Some(1)) = (ctx.values(0), shape.as_ref().map(Vec::len)) {
        ctx.set_values(0, v);
    }
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn infer_shape(input: Option<&[Dim]>, target: &[Dim], allow_zero: bool) -> Result<Vec<Dim>> {
    let mut out = Vec::with_capacity(target.len());
    // Dimensions copied by a 0 cancel, even when nothing is known of them.
    let mut rest: Option<Vec<Dim>> = input.map(<[Dim]>::to_vec);
    let mut others = Dim::Known(1);
    let mut inferred = None;
    for (i, d) in target.iter().enumerate() {
        match sym::constant(d) {
            Some(0) if !allow_zero => {
                if let Some(s) = input {
                    ensure!(i < s.len(), "input 1 (shape) copies dimension {i} of an input of rank {}", s.len());
                }
                out.push(input.map_or(Dim::Unknown, |s| s[i].clone()));
                if let Some(r) = &mut rest {
                    r[i] = Dim::Known(1);
                }
            }
            Some(-1) => {
                ensure!(inferred.replace(i).is_none(), "input 1 (shape) has two dimensions of -1");
                out.push(Dim::Unknown);
            }
            Some(n) => {
                ensure!(n >= 0, "input 1 (shape) has the dimension {n}");
                out.push(d.clone());
                others = sym::mul(&others, d);
            }
            None => {
                // A dimension that the input has too cancels here; sym does the same for expressions.
                out.push(d.clone());
                others = sym::mul(&others, d);
            }
        }
    }
    if let (Some(i), Some(rest)) = (inferred, rest) {
        let total = sym::product(&rest);
        if let (Some(t), Some(o)) = (total.known(), others.known()) {
            ensure!(o != 0 && t % o == 0, "{t} elements do not divide into dimensions of {o}");
        }
        out[i] = sym::as_size(&sym::floor_div(&total, &others));
    }
    Ok(out)
}

/// The shape that `target` makes of `input`.
fn resolve(input: &[usize], target: &[i64], allow_zero: bool) -> Result<Vec<usize>> {
    let mut out = Vec::with_capacity(target.len());
    let mut inferred = None;
    for (i, &d) in target.iter().enumerate() {
        out.push(match d {
            0 if !allow_zero => *input
                .get(i)
                .ok_or_else(|| anyhow!("input 1 (shape) copies dimension {i} of an input of shape {input:?}"))?,
            -1 => {
                ensure!(inferred.replace(i).is_none(), "input 1 (shape) has two dimensions of -1");
                1
            }
            _ => usize::try_from(d).map_err(|_| anyhow!("input 1 (shape) has the dimension {d}"))?,
        });
    }
    if let Some(i) = inferred {
        ensure!(!(allow_zero && target.contains(&0)), "input 1 (shape) has -1 beside 0 with allowzero");
        let (total, others) = (count(input)?, count(&out)?);
        if others == 0 || total % others != 0 {
            bail!("input 1 (shape) is {target:?}, which does not hold the elements of shape {input:?}");
        }
        out[i] = total / others;
    }
    Ok(out)
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let target = call.ints(1)?;
    ensure!(call.input(1)?.rank() <= 1, "input 1 (shape) has rank {}, expected 1", call.input(1)?.rank());
    let shape = resolve(call.input(0)?.shape(), &target, call.flag("allowzero", false))?;
    Ok(call.take(0)?.reshaped(&shape)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn case(shape: &[usize], target: &[i64]) -> Case {
        let n = shape.iter().product();
        Case::new("Reshape", 13).input(Tensor::of(shape, vec![1.0f32; n])).input(Tensor::vector(target.to_vec()))
    }

    #[test]
    fn copies_and_infers_dimensions() {
        case(&[2, 3, 4], &[4, 6]).expect(&[Tensor::of(&[4, 6], vec![1.0f32; 24])]);
        case(&[2, 3, 4], &[0, -1]).expect(&[Tensor::of(&[2, 12], vec![1.0f32; 24])]);
        case(&[1], &[]).expect(&[Tensor::scalar(1.0f32)]);
        case(&[0, 3], &[3, 0]).attr("allowzero", 1).expect(&[Tensor::of(&[3, 0], Vec::<f32>::new())]);
    }

    #[test]
    fn wrong_shapes_are_errors() {
        case(&[2, 3], &[4]).fails("cannot become");
        case(&[2, 3], &[-1, -1]).fails("two dimensions of -1");
        case(&[2, 3], &[-1, 4]).fails("does not hold");
        case(&[2, 3], &[1, 2, 0]).fails("copies dimension 2");
        case(&[2, 3], &[-2, 3]).fails("has the dimension -2");
    }

    #[test]
    fn symbols_cancel() {
        let s = |t: &str| Dim::Symbol(t.into());
        let input = [s("N"), Dim::Known(8), s("T"), Dim::Known(4)];
        let out = infer_shape(Some(&input), &[sym::mul(&s("N"), &Dim::Known(2)), sym::of_int(-1)], false).unwrap();
        assert_eq!(out, [s("2*N"), s("16*T")]);
        let input = [Dim::Unknown, Dim::Known(8), Dim::Known(4)];
        assert_eq!(
            infer_shape(Some(&input), &[Dim::Known(0), sym::of_int(-1)], false).unwrap(),
            [Dim::Unknown, Dim::Known(32)]
        );
    }
}
