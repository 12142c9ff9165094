//! `OneHot` — `on_value` where the new dimension's index equals the index, else `off_value`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__OneHot.html> (opsets 9, 11, 28)
//! Inputs: indices, any number type; depth, one number; values `[off_value, on_value]`, any type.
//! Output: indices' shape with a dimension of size depth at axis (default -1), of values' type. An index outside
//! `[-depth, depth)` gives off_value only.
//! Quantized: gives two fixed values, so nothing.
//! Errors: depth negative or not one element; values not two elements; axis out of range.

use super::call::axis;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::{Tensor, count, strided};
use crate::with_data;

const ONE_HOT: OpDef = OpDef {
    name: "OneHot",
    domain: OpDomain::Onnx,
    since: 9,
    inputs: Arity::exactly(3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "gives two fixed values" },
};

pub(super) const OPS: &[OpDef] = &[ONE_HOT, OpDef { since: 11, ..ONE_HOT }];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match ctx.shape(0) {
        None => None,
        Some(s) => {
            let at = axis(ctx.attrs.int("axis").unwrap_or(-1), s.len() + 1)?;
            let fixed = ctx.constant(1).and_then(|t| t.to_f64().ok()).map(|x| sym::of_int(x as i64));
            let depth = fixed.or_else(|| ctx.values(1)?.first().cloned());
            let mut out = s.to_vec();
            out.insert(at, depth.as_ref().map_or(Dim::Unknown, sym::as_size));
            Some(out)
        }
    };
    ctx.set_tensor(0, ctx.dtype(2), shape);
    Ok(())
}

/// Integers from any number type.
fn integers(t: &Tensor) -> Result<Vec<i64>> {
    if t.dtype().is_integer() { t.to_i64s() } else { Ok(t.to_f64s()?.into_iter().map(|x| x as i64).collect()) }
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (indices, depth, values) = (call.input(0)?, call.input(1)?, call.input(2)?);
    ensure!(depth.len() == 1, "input 1 (depth) has shape {:?}, expected one element", depth.shape());
    let depth = integers(depth).context("input 1 (depth)")?[0];
    let depth = usize::try_from(depth).map_err(|_| anyhow!("input 1 (depth) is {depth}"))?;
    ensure!(values.len() == 2, "input 2 (values) has shape {:?}, expected two elements", values.shape());
    let at = axis(call.int("axis", -1), indices.rank() + 1)?;
    let mut shape = indices.shape().to_vec();
    shape.insert(at, depth);
    let n = count(&shape)?;
    ensure!(n <= 1 << 36, "shape {shape:?} has too many elements");
    let inner: usize = indices.shape()[at..].iter().product();
    let list = integers(indices).context("input 0 (indices)")?;
    let y = with_data!(values.data(), T, b => {
        let mut out: Vec<T> = vec![b.as_slice()[0].clone(); n];
        for (i, &index) in list.iter().enumerate() {
            let k = if index < 0 { index.wrapping_add(depth as i64) } else { index };
            if (0..depth as i64).contains(&k) {
                let at = (i / inner) * depth * inner + k as usize * inner + i % inner;
                out[at] = b.as_slice()[1].clone();
            }
        }
        strided::typed::<T>(values.dtype(), &shape, out)
    })?;
    Ok(y.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn marks_indices() {
        let case = |depth: Tensor| {
            Case::new("OneHot", 11)
                .input(Tensor::vector(vec![0i64, -1, 9]))
                .input(depth)
                .input(Tensor::vector(vec![0.0f32, 5.0]))
        };
        let rows = Tensor::of(&[3, 2], vec![5.0f32, 0.0, 0.0, 5.0, 0.0, 0.0]);
        case(Tensor::scalar(2i32)).expect(&[rows.clone()]);
        case(Tensor::vector(vec![2.0f32])).attr("axis", 1).expect(&[rows]);
        case(Tensor::scalar(2u8)).attr("axis", 0).expect(&[Tensor::of(&[2, 3], vec![5.0f32, 0.0, 0.0, 0.0, 5.0, 0.0])]);
        case(Tensor::scalar(-1i32)).fails("input 1 (depth) is -1");
        case(Tensor::vector(vec![1i32, 2])).fails("expected one element");
        case(Tensor::scalar(i64::MAX)).fails("too many");
        case(Tensor::scalar(2i32)).attr("axis", 2).fails("axis 2");
    }
}
