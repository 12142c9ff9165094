//! `Resize`, `Upsample` — resampling, dimension by dimension.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Resize.html> (opsets 10, 11, 13, 18, 19),
//! <https://onnx.ai/onnx/operators/onnx__Upsample.html> (opsets 7, 9, 10)
//! Inputs: X, any type (nearest) or any number type; from opset 11 roi?, scales float `[n]`?, sizes int64 `[n]`?, of
//! which scales or sizes must be there; in opset 10 scales only; for Upsample scales, an attribute in opset 7.
//! Output: of X's type, `floor(dim * scale)` or sizes.
//! Attributes: mode nearest, linear, cubic; coordinate_transformation_mode; nearest_mode; cubic_coeff_a;
//! exclude_outside; extrapolation_value; antialias, axes, keep_aspect_ratio_policy (opset 18).
//! Quantized: nearest selects elements and the others average them, so the output has the input's parameters.
//! Errors: neither or both of scales and sizes; not one per axis; a scale that is not positive; unknown modes.

mod sample;

use super::call::axes;
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Attrs, Dim, sym};
use crate::tensor::{Tensor, cast, count, strided};
use crate::with_data;

use sample::{Axis, Coordinates, Filter, Nearest};

const RESIZE: OpDef = OpDef {
    name: "Resize",
    domain: OpDomain::Onnx,
    since: 10,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
};

pub(super) const OPS: &[OpDef] = &[
    RESIZE,
    OpDef { since: 11, inputs: Arity::range(1, 4), ..RESIZE },
    OpDef { since: 18, inputs: Arity::range(1, 4), ..RESIZE },
    OpDef { name: "Upsample", since: 7, inputs: Arity::exactly(1), ..RESIZE },
    OpDef { name: "Upsample", since: 9, inputs: Arity::exactly(2), ..RESIZE },
];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Resize", reverse), Reverse::of("Upsample", reverse)];

/// Where scales come from: an input slot, or an attribute.
fn scales_slot(op_type: &str, opset: i64) -> Option<usize> {
    match (op_type, opset) {
        ("Resize", 11..) => Some(2),
        ("Resize", _) | ("Upsample", 9..) => Some(1),
        _ => None,
    }
}

/// Whether `scales` and `sizes` say how dimensions change; `axes` tells which.
fn wanted_axes(attrs: &Attrs, rank: usize) -> Result<Vec<usize>> {
    match attrs.ints("axes") {
        Some(l) => axes(l, rank).context("attribute \"axes\""),
        None => Ok((0..rank).collect()),
    }
}

fn scaled(n: usize, scale: f32) -> Result<usize> {
    ensure!(scale > 0.0 && scale.is_finite(), "a scale is {scale}, expected a positive number");
    // In 32-bit floats, as scales are stored: 1/3 of 3 is 1.
    let out = (n as f32 * scale).floor();
    ensure!(out < (1u64 << 32) as f32, "a dimension of size {n} times {scale} is too large");
    Ok(out as usize)
}

/// Scale and output size of each axis for `sizes` under a policy.
fn fit(input: &[usize], list: &[usize], sizes: &[i64], policy: &str) -> Result<Vec<(f64, usize)>> {
    ensure!(sizes.len() == list.len(), "input 3 (sizes) has {} entries for {} axes", sizes.len(), list.len());
    let mut out: Vec<(f64, usize)> = input.iter().map(|&n| (1.0, n)).collect();
    for (&a, &s) in list.iter().zip(sizes) {
        let size = usize::try_from(s).map_err(|_| anyhow!("input 3 (sizes) has the size {s}"))?;
        ensure!(input[a] > 0 || size == 0, "an empty dimension cannot become {size}");
        out[a] = (size as f64 / input[a].max(1) as f64, size);
    }
    let scales = list.iter().map(|&a| out[a].0);
    let scale = match policy {
        "stretch" => return Ok(out),
        "not_larger" => scales.fold(f64::INFINITY, f64::min),
        "not_smaller" => scales.fold(0.0, f64::max),
        p => bail!("attribute \"keep_aspect_ratio_policy\" is \"{p}\", expected stretch, not_larger or not_smaller"),
    };
    for &a in list {
        out[a] = (scale, (scale * input[a] as f64 + 0.5).floor() as usize);
    }
    Ok(out)
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let Some(s) = ctx.shape(0).map(<[Dim]>::to_vec) else {
        ctx.set_tensor(0, ctx.dtype(0), None);
        return Ok(());
    };
    let list = wanted_axes(ctx.attrs, s.len())?;
    let mut out = s.clone();
    let policy = ctx.attrs.str("keep_aspect_ratio_policy").unwrap_or("stretch");
    let scales: Option<Vec<f32>> = match scales_slot(ctx.op_type, ctx.opset) {
        Some(slot) => ctx.constant(slot).and_then(|t| Some(t.to_f32s().ok()?.into_owned())),
        None => ctx.attrs.floats("scales").map(<[f32]>::to_vec),
    };
    let sizes = if ctx.has(3) { ctx.values(3) } else { None };
    let fixed: Option<Vec<usize>> = s.iter().map(Dim::known).collect();
    match (scales.filter(|v| !v.is_empty()), sizes.filter(|v| !v.is_empty())) {
        (Some(v), _) if v.len() == list.len() => {
            for (&a, &scale) in list.iter().zip(&v) {
                out[a] = match s[a].known() {
                    Some(n) => Dim::Known(scaled(n, scale)?),
                    None if scale >= 1.0 && scale.fract() == 0.0 => sym::mul(&s[a], &Dim::Known(scale as usize)),
                    None if scale > 0.0 && (1.0 / scale).fract() == 0.0 => {
                        sym::floor_div(&s[a], &Dim::Known((1.0 / scale) as usize))
                    }
                    None => Dim::Unknown,
                };
            }
        }
        (None, Some(v)) if v.len() == list.len() => {
            let known: Option<Vec<i64>> = v.iter().map(sym::constant).collect();
            match (known, fixed) {
                (Some(known), Some(fixed)) => {
                    out = fit(&fixed, &list, &known, policy)?.into_iter().map(|(_, n)| Dim::Known(n)).collect();
                }
                _ if policy == "stretch" => list.iter().zip(&v).for_each(|(&a, d)| out[a] = sym::as_size(d)),
                _ => list.iter().for_each(|&a| out[a] = Dim::Unknown),
            }
        }
        _ => list.iter().for_each(|&a| out[a] = Dim::Unknown),
    }
    ctx.set_tensor(0, ctx.dtype(0), Some(out));
    Ok(())
}

/// Scale and output size of every dimension.
fn targets(call: &Call<'_>, shape: &[usize], list: &[usize]) -> Result<Vec<(f64, usize)>> {
    let scales = match scales_slot(call.op_type, call.opset) {
        Some(slot) => call.optional(slot)?.map(|t| t.to_f32s().map(std::borrow::Cow::into_owned)).transpose()?,
        None => call.attrs.floats("scales").map(<[f32]>::to_vec),
    };
    let sizes = if call.n_inputs() > 3 { call.optional_ints(3)? } else { None };
    match (scales.filter(|v| !v.is_empty()), sizes.filter(|v| !v.is_empty())) {
        (Some(v), None) => {
            ensure!(v.len() == list.len(), "scales has {} entries for {} axes", v.len(), list.len());
            let mut out: Vec<(f64, usize)> = shape.iter().map(|&n| (1.0, n)).collect();
            for (&a, &scale) in list.iter().zip(&v) {
                out[a] = (scale.into(), scaled(shape[a], scale)?);
            }
            Ok(out)
        }
        (None, Some(v)) => fit(shape, list, &v, call.str("keep_aspect_ratio_policy", "stretch")),
        (None, None) => bail!("neither scales nor sizes are given"),
        (Some(_), Some(_)) => bail!("both scales and sizes are given"),
    }
}

/// How every dimension changes, and what the output's shape is.
fn plan(call: &Call<'_>) -> Result<(Vec<Axis>, Vec<usize>)> {
    let x = call.input(0)?;
    let list = wanted_axes(call.attrs, x.rank())?;
    let targets = targets(call, x.shape(), &list)?;
    let shape: Vec<usize> = targets.iter().map(|t| t.1).collect();
    ensure!(count(&shape)? <= 1 << 36, "shape {shape:?} has too many elements");
    let coordinates = if is_old(call) {
        Coordinates::Asymmetric
    } else {
        Coordinates::parse(call.str("coordinate_transformation_mode", "half_pixel"))?
    };
    let roi = match call.optional(1)? {
        Some(t) if coordinates == Coordinates::TfCropAndResize => {
            ensure!(t.len() == 2 * list.len(), "input 1 (roi) has {} entries for {} axes", t.len(), list.len());
            Some(t.to_f64s()?)
        }
        None if coordinates == Coordinates::TfCropAndResize => bail!("input 1 (roi) is missing"),
        _ => None,
    };
    let mut plan = Vec::with_capacity(x.rank());
    for (a, &(scale, size)) in targets.iter().enumerate() {
        let region = match (&roi, list.iter().position(|&l| l == a)) {
            (Some(r), Some(i)) => (r[i], r[i + list.len()]),
            _ => (0.0, 1.0),
        };
        plan.push(Axis { n: x.shape()[a], size, scale, region, coordinates });
    }
    Ok((plan, shape))
}

/// Before opset 11 there is one kind of coordinates, and one nearest element.
fn is_old(call: &Call<'_>) -> bool {
    call.opset < 11 || call.op_type == "Upsample"
}

/// The kernel of the averages of modes linear and cubic.
fn filter(call: &Call<'_>) -> Result<Filter> {
    Ok(Filter {
        cubic: match call.str("mode", "nearest") {
            "linear" | "bilinear" => None,
            "cubic" if !is_old(call) => Some(f64::from(call.float("cubic_coeff_a", -0.75))),
            m => bail!("attribute \"mode\" is \"{m}\", expected nearest, linear or cubic"),
        },
        antialias: call.flag("antialias", false),
        exclude_outside: call.flag("exclude_outside", false),
        extrapolation: f64::from(call.float("extrapolation_value", 0.0)),
    })
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (plan, shape) = plan(call)?;
    if plan.iter().all(Axis::is_identity) {
        return Ok(call.take(0)?.into());
    }
    let x = call.input(0)?;
    if x.is_empty() || shape.contains(&0) {
        return Ok(Tensor::zeros(x.dtype(), &shape)?.into());
    }
    if call.str("mode", "nearest") == "nearest" {
        ensure!(!call.flag("antialias", false), "attribute \"antialias\" is set, which mode nearest does not have");
        let nearest = if is_old(call) {
            Nearest::Simple
        } else {
            Nearest::parse(call.str("nearest_mode", "round_prefer_floor"))?
        };
        let maps: Vec<_> = plan.iter().map(|p| p.nearest(nearest)).collect();
        let extrapolation = f64::from(call.float("extrapolation_value", 0.0));
        let fill = cast::from_f64s(x.dtype(), &[], vec![extrapolation]).or_else(|_| Tensor::zeros(x.dtype(), &[]))?;
        let y = with_data!(x.data(), T, b => {
            let v = sample::select(b.as_slice(), x.shape(), &maps, &fill.slice::<T>()?[0]);
            strided::typed::<T>(x.dtype(), &shape, v)
        })?;
        return Ok(y.into());
    }
    Ok(filtered(call.threads, x, &plan, &shape, &filter(call)?)?.into())
}

/// Elements are selected, or each average's gradient is spread with the average's weights.
fn reverse(b: &Back<'_>) -> Result<Gradients> {
    if b.attrs.str("mode").unwrap_or("nearest") == "nearest" {
        let mut attrs = b.attrs.clone();
        attrs.remove("extrapolation_value");
        return b.moved_with(&[0], &attrs, &[]);
    }
    let (plan, filter) = b.again(|call| Ok((plan(call)?.0, filter(call)?)))?;
    Ok(vec![b.made(0, || Ok(sample::spread(b.gradient()?.to_vec(), &plan, &filter)))?])
}

/// Weighted averages: in 32-bit floats for float and 16-bit floats, in 64-bit floats for everything else. Integers
/// are rounded half to even and saturated.
fn filtered(threads: usize, x: &Tensor, plan: &[Axis], shape: &[usize], filter: &Filter) -> Result<Tensor> {
    use crate::tensor::DType;
    match x.dtype() {
        DType::F32 => Tensor::new(shape, sample::average(threads, x.slice::<f32>()?, plan, filter)),
        DType::F16 | DType::BF16 => {
            let v = sample::average(threads, &x.to_f32s()?, plan, filter);
            cast::cast(&Tensor::new(shape, v)?, x.dtype(), true)
        }
        dtype => {
            let mut v = sample::average(threads, &x.to_f64s()?, plan, filter);
            if dtype.is_integer() {
                let (lo, hi) = dtype.int_range().unwrap_or((i64::MIN, i64::MAX));
                v.iter_mut().for_each(|x| *x = x.round_ties_even().clamp(lo as f64, hi as f64));
            }
            cast::from_f64s(dtype, shape, v)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    fn x() -> Tensor {
        Tensor::of(&[1, 1, 2, 2], vec![1.0f32, 2.0, 3.0, 4.0])
    }

    fn case(scales: &[f32]) -> Case {
        Case::new("Resize", 19).input(x()).skip().input(Tensor::vector(scales.to_vec()))
    }

    #[test]
    fn repeats_nearest_elements() {
        let doubled: Vec<f32> =
            [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 4.0, 4.0], [3.0, 3.0, 4.0, 4.0]].concat();
        let y = Tensor::of(&[1, 1, 4, 4], doubled);
        case(&[1.0, 1.0, 2.0, 2.0]).expect(&[y.clone()]);
        case(&[2.0, 2.0]).attr("axes", vec![2i64, 3]).expect(&[y.clone()]);
        let scales = vec![1.0f32, 1.0, 2.0, 2.0];
        Case::new("Upsample", 7).input(x()).attr("scales", scales.clone()).expect(&[y.clone()]);
        Case::new("Upsample", 9).input(x()).input(Tensor::vector(scales.clone())).expect(&[y.clone()]);
        Case::new("Resize", 10).input(x()).input(Tensor::vector(scales)).expect(&[y]);
    }

    #[test]
    fn interpolates() {
        let row = [1.0f32, 1.25, 1.75, 2.0];
        let y: Vec<f32> = [0.0f32, 0.5, 1.5, 2.0].iter().flat_map(|d| row.map(|r| r + d)).collect();
        case(&[1.0, 1.0, 2.0, 2.0]).attr("mode", "linear").tolerance(1e-6).expect(&[Tensor::of(&[1, 1, 4, 4], y)]);
        case(&[1.0, 1.0, 1.0, 2.0])
            .attr("mode", "linear")
            .attr("coordinate_transformation_mode", "align_corners")
            .tolerance(1e-6)
            .expect(&[Tensor::of(
                &[1, 1, 2, 4],
                vec![1.0f32, 4.0 / 3.0, 5.0 / 3.0, 2.0, 3.0, 10.0 / 3.0, 11.0 / 3.0, 4.0],
            )]);
        case(&[1.0, 1.0, 0.5, 0.5])
            .attr("mode", "linear")
            .attr("antialias", 1)
            .tolerance(1e-6)
            .expect(&[Tensor::of(&[1, 1, 1, 1], vec![2.5f32])]);
    }

    #[test]
    fn what_contradicts_is_an_error() {
        Case::new("Resize", 19).input(x()).fails("neither scales nor sizes");
        case(&[1.0, 1.0, 2.0, 2.0]).input(Tensor::vector(vec![1i64, 1, 4, 4])).fails("both scales and sizes");
        case(&[2.0]).fails("1 entries for 4 axes");
        case(&[1.0, 1.0, 0.0, 2.0]).fails("a scale is 0");
        case(&[1.0, 1.0, f32::MAX, 2.0]).fails("too large");
        case(&[1.0, 1.0, 2.0, 2.0]).attr("mode", "spline").fails("mode");
        case(&[1.0, 1.0, 2.0, 2.0]).attr("coordinate_transformation_mode", "tf_crop_and_resize").fails("roi");
    }
}
