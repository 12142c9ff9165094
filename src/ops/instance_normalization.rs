//! Normalisation of channels over their spatial dimensions: `InstanceNormalization`, `GroupNormalization`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html> (opsets 1, 6, 22),
//! `onnx__GroupNormalization.html` (18: scale and bias per group; 21: per channel)
//! Inputs: X `[N, C, D…]`, scale, bias. Output: as X. Types: f16, bf16, f32, f64 (computed in 32 bits).
//! Quantized: no; a mean and a square root have no integer arithmetic.
//! Errors: rank below 3 (2 for `GroupNormalization`); C that `num_groups` does not divide; wrong lengths.

use super::elementwise::{infer_same_dtype, is_half};
use super::reverse::{Back, Gradients, Reverse, normalized};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::kernels::rows::{self, Norm};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor};

const NORM: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval: |_| bail!("no evaluation"),
    quant: QuantRule::Keep { why: "normalises: a mean and a square root have no integer arithmetic" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "GroupNormalization", since: 18, eval: |c| eval_groups(c, true), ..NORM },
    OpDef { name: "GroupNormalization", since: 21, eval: |c| eval_groups(c, false), ..NORM },
    OpDef { name: "InstanceNormalization", eval: eval_instances, ..NORM },
];

pub(super) const REVERSE: &[Reverse] =
    &[Reverse::of("GroupNormalization", reverse), Reverse::of("InstanceNormalization", reverse)];

/// To X; scale and bias of a stored model are constants.
fn reverse(b: &Back<'_>) -> Result<Gradients> {
    let x = b.input(0)?;
    let channels = x.shape()[1];
    let groups = b.attrs.int("num_groups").map_or(channels, |g| g as usize);
    let plane: usize = x.shape()[2..].iter().product();
    let scale = b.input(1)?.to_f32s()?;
    let mut dx = b.gradient()?.to_vec();
    for (i, g) in dx.chunks_exact_mut(plane.max(1)).enumerate() {
        let s = scale[i % channels / (channels / scale.len())];
        g.iter_mut().for_each(|g| *g *= s);
    }
    let mut v = x.to_f32s()?.into_owned();
    normalized(&mut v, &mut dx, channels / groups * plane, b.float("epsilon", 1e-5), true);
    Ok(vec![b.made(0, || Ok(dx))?])
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    infer_same_dtype(ctx, 0..3)?;
    ctx.same_as(0);
    Ok(())
}

fn eval_instances(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.take(0)?;
    ensure!(x.rank() >= 3, "input 0 has rank {}, expected at least 3", x.rank());
    let channels = x.shape()[1];
    normalize(call, x, channels, channels)
}

fn eval_groups(call: &mut Call<'_>, per_group: bool) -> Result<Vec<Item>> {
    let x = call.take(0)?;
    ensure!(x.rank() >= 2, "input 0 has rank {}, expected at least 2", x.rank());
    let groups = call.required_int("num_groups")?;
    let channels = x.shape()[1];
    let groups = usize::try_from(groups).ok().filter(|g| *g > 0 && channels % g == 0);
    let Some(groups) = groups else {
        bail!("attribute \"num_groups\" is {}, which does not divide {channels} channels", call.int("num_groups", 0))
    };
    normalize(call, x, groups, if per_group { groups } else { channels })
}

/// Normalises over each of `groups` groups of channels; scale and bias have `n_affine` elements.
fn normalize(call: &Call<'_>, x: Tensor, groups: usize, n_affine: usize) -> Result<Vec<Item>> {
    let dtype = x.dtype();
    ensure!(
        is_half(dtype) || matches!(dtype, DType::F32 | DType::F64),
        "input 0 has element type {dtype}, expected a floating-point type"
    );
    for slot in [1, 2] {
        let t = call.input(slot)?;
        ensure!(t.shape() == [n_affine], "input {slot} has shape {:?}, expected [{n_affine}]", t.shape());
    }
    let channels = x.shape()[1];
    let plane: usize = x.shape()[2..].iter().product();
    if dtype == DType::F64 {
        let (scale, bias) = (call.input(1)?.to_f64s()?, call.input(2)?.to_f64s()?);
        let norm = Norm { epsilon: call.float("epsilon", 1e-5), centered: true };
        let mut x = x;
        if !x.is_empty() {
            let data = x.slice_mut::<f64>()?;
            rows::normalize_f64(data, channels / groups * plane, norm, &mut |_, _| {});
            for (i, plane) in data.chunks_exact_mut(plane).enumerate() {
                let at = i % channels / (channels / n_affine);
                plane.iter_mut().for_each(|x| *x = *x * scale[at] + bias[at]);
            }
        }
        return Ok(x.into());
    }
    let (scale, bias) = (call.input(1)?.to_f32s()?, call.input(2)?.to_f32s()?);
    let mut y = cast(&x, DType::F32, true)?;
    drop(x);
    let norm = Norm { epsilon: call.float("epsilon", 1e-5), centered: true };
    if !y.is_empty() {
        let data = y.slice_mut::<f32>()?;
        rows::normalize(data, channels / groups * plane, norm, (None, None), &mut |_, _| {});
        for (i, plane) in data.chunks_exact_mut(plane).enumerate() {
            let at = i % channels / (channels / n_affine);
            let (s, b) = (scale[at], bias[at]);
            plane.iter_mut().for_each(|x| *x = *x * s + b);
        }
    }
    Ok(cast(&y, dtype, true)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn v(v: &[f32]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    #[test]
    fn per_instance() {
        let x = Tensor::of(&[1, 2, 2], vec![1.0f32, 3.0, 10.0, 20.0]);
        let y = Tensor::of(&[1, 2, 2], vec![-1.0f32, 1.0, -1.5, 2.5]);
        let case = |s: Tensor| Case::new("InstanceNormalization", 6).attr("epsilon", 0.0f32).input(x.clone()).input(s);
        case(v(&[1.0, 2.0])).input(v(&[0.0, 0.5])).tolerance(1e-6).expect(&[y]);
        case(v(&[1.0])).input(v(&[0.0, 0.5])).fails("input 1 has shape [1], expected [2]");
    }

    #[test]
    fn per_group() {
        let x = Tensor::of(&[1, 4, 1], vec![1.0f32, 3.0, 10.0, 20.0]);
        let case = |opset| {
            Case::new("GroupNormalization", opset).attr("epsilon", 0.0f32).attr("num_groups", 2i64).input(x.clone())
        };
        let y = |v: [f32; 4]| Tensor::of(&[1, 4, 1], v.to_vec());
        case(18).input(v(&[1.0, 2.0])).input(v(&[0.0, 0.0])).tolerance(1e-6).expect(&[y([-1.0, 1.0, -2.0, 2.0])]);
        let zeros = v(&[0.0; 4]);
        case(21).input(v(&[1.0, 2.0, 3.0, 4.0])).input(zeros).tolerance(1e-6).expect(&[y([-1.0, 2.0, -3.0, 4.0])]);
        case(18).attr("num_groups", 3i64).input(v(&[1.0])).input(v(&[1.0])).fails("does not divide 4 channels");
    }
}
