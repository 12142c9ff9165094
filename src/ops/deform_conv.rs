//! `DeformConv` — convolution whose taps are moved by offsets, with linear interpolation.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__DeformConv.html> (opsets 19, 22)
//! Inputs: X `[N, C, D…]`, W `[M, C/group, K…]`, offset `[N, offset_group * taps * n, O…]`, B? `[M]`, mask?
//! `[N, offset_group * taps, O…]`, of T. Output: Y `[N, M, O…]` of T. T: float16, bfloat16, float, double.
//! Places outside the input count 0, and so do the corners of a cell that lie outside.
//! Quantized: stays float; no backend has it in integers.
//! Errors: those of a convolution; offsets or a mask of another shape; C is no multiple of `offset_group`.

use super::conv::{geometry, infer_dims, output_shape};
use super::floats::{FLOATS, from_f32s, same_dtype};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::kernels::conv::{Filters, Geometry, conv, for_each_index};
use crate::kernels::plain;
use crate::tensor::{DType, Tensor, buffer, count};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "DeformConv",
    domain: OpDomain::Onnx,
    since: 19,
    inputs: Arity::range(3, 5),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "reads between its input's elements" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = infer_dims(ctx.attrs, ctx.shape(0), ctx.shape(1))?;
    ctx.set_tensor(0, ctx.dtype(0).or(ctx.dtype(1)), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, w, offset) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (b, mask) = (call.optional(3)?, call.optional(4)?);
    let named = [("X", Some(x)), ("W", Some(w)), ("offset", Some(offset)), ("B", b), ("mask", mask)];
    let dtype = same_dtype(&named, FLOATS)?;
    let g = geometry(call.attrs, ("input 0 (X)", x.shape()), ("input 1 (W)", w.shape()))?;
    let groups = match call.int("offset_group", 1) {
        n @ 1.. if g.channels.is_multiple_of(n as usize) => n as usize,
        n => bail!("attribute \"offset_group\" is {n}, expected a divisor of {} channels", g.channels),
    };
    let (taps, rank) = (g.kernel.iter().product::<usize>(), g.kernel.len());
    for (slot, name, t, per_group) in [(2, "offset", Some(offset), taps * rank), (4, "mask", mask, taps)] {
        let expected = [&[g.batch, groups * per_group], g.output.as_slice()].concat();
        let Some(t) = t else { continue };
        ensure!(t.shape() == expected, "input {slot} ({name}) has shape {:?}, expected {expected:?}", t.shape());
    }
    if let Some(b) = b {
        ensure!(b.shape() == [g.filters], "input 3 (B) has shape {:?}, expected [{}]", b.shape(), g.filters);
    }
    let places = count(&g.output)?;
    count(&[g.batch, g.channels, taps, places])?;
    let mask = mask.map(Tensor::to_f64s).transpose()?;
    let columns = columns(&g, groups, &x.to_f64s()?, &offset.to_f64s()?, mask.as_deref());
    // What was sampled is the input of a convolution of size 1.
    let sampled = Geometry {
        channels: g.channels * taps,
        input: vec![places],
        output: vec![places],
        kernel: vec![1],
        stride: vec![1],
        dilation: vec![1],
        begin: vec![0],
        ..g.clone()
    };
    let shape = output_shape(&g);
    let n = count(&shape)?;
    if dtype == DType::F64 {
        let mut y = vec![0.0f64; n];
        if let Some(b) = b {
            let b = b.slice::<f64>()?;
            y.chunks_exact_mut(places.max(1)).zip(b.iter().cycle()).for_each(|(y, &b)| y.fill(b));
        }
        plain::conv(&sampled, &columns, w.slice()?, &mut y);
        return Ok(Tensor::new(&shape, y)?.into());
    }
    let columns: Vec<f32> = columns.into_iter().map(|x| x as f32).collect();
    let filters = Filters::new(&w.to_f32s()?, &sampled);
    let b = b.map(Tensor::to_f32s).transpose()?;
    let mut y = buffer(n);
    conv(call.threads, &sampled, &columns, &filters, b.as_deref(), &mut y);
    Ok(from_f32s(dtype, &shape, y)?.into())
}

/// The input at each tap's place: `[N, C, taps, O…]`.
fn columns(g: &Geometry, groups: usize, x: &[f64], offset: &[f64], mask: Option<&[f64]>) -> Vec<f64> {
    let (taps, rank) = (g.kernel.iter().product::<usize>(), g.kernel.len());
    let (size, places) = (g.input.iter().product::<usize>(), g.output.iter().product::<usize>());
    let per_group = g.channels / groups;
    let mut out = vec![0.0; g.batch * g.channels * taps * places];
    for n in 0..g.batch {
        for group in 0..groups {
            let mut tap = 0;
            for_each_index(&g.kernel, |k| {
                let first = (n * groups + group) * taps + tap;
                let mut place = 0;
                for_each_index(&g.output, |o| {
                    let at: Vec<f64> = (0..rank)
                        .map(|d| {
                            let start = (o[d] * g.stride[d] + k[d] * g.dilation[d]) as f64 - g.begin[d] as f64;
                            start + offset[(first * rank + d) * places + place]
                        })
                        .collect();
                    let factor = mask.map_or(1.0, |m| m[first * places + place]);
                    let corners = corners(&g.input, &at);
                    for c in group * per_group..(group + 1) * per_group {
                        let x = &x[(n * g.channels + c) * size..][..size];
                        let value: f64 = corners.iter().map(|&(i, weight)| x[i] * weight).sum();
                        out[((n * g.channels + c) * taps + tap) * places + place] = value * factor;
                    }
                    place += 1;
                });
                tap += 1;
            });
        }
    }
    out
}

/// The corners of the cell around a place that lie inside, with their weights.
fn corners(shape: &[usize], at: &[f64]) -> Vec<(usize, f64)> {
    let mut list = vec![(0usize, 1.0f64)];
    for (&n, &x) in shape.iter().zip(at) {
        let low = x.floor();
        let sides = [(low, 1.0 - (x - low)), (low + 1.0, x - low)];
        list = list
            .into_iter()
            .flat_map(|(i, weight)| {
                let inside = sides.iter().filter(|(p, s)| *s > 0.0 && *p >= 0.0 && *p < n as f64);
                inside.map(move |&(p, s)| (i * n + p as usize, weight * s)).collect::<Vec<_>>()
            })
            .collect();
    }
    list
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Tensor, cast};

    fn t(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    #[test]
    fn offsets_move_taps_and_a_mask_scales_them() {
        for dtype in super::FLOATS {
            let c = |t: Tensor| cast::cast(&t, *dtype, true).unwrap();
            let case = |offset: &[f32]| {
                Case::new("DeformConv", 22)
                    .input(c(t(&[1, 1, 2, 2], &[1., 2., 3., 4.])))
                    .input(c(t(&[1, 1, 1, 1], &[2.])))
                    .input(c(t(&[1, 2, 2, 2], offset)))
            };
            case(&[0.; 8]).expect(&[c(t(&[1, 1, 2, 2], &[2., 4., 6., 8.]))]);
            let half = case(&[0.5, 0.5, 0.5, 0.5, 0., 0., 0., 0.]);
            half.expect(&[c(t(&[1, 1, 2, 2], &[4., 6., 3., 4.]))]);
            let mask = case(&[0.; 8]).input(c(t(&[1], &[1.]))).input(c(t(&[1, 1, 2, 2], &[1., 0.5, 0., 2.])));
            mask.expect(&[c(t(&[1, 1, 2, 2], &[3., 3., 1., 17.]))]);
        }
    }

    #[test]
    fn contradictions_are_errors() {
        let case = || Case::new("DeformConv", 19).input(t(&[1, 1, 2, 2], &[0.; 4])).input(t(&[1, 1, 1, 1], &[2.]));
        case().input(t(&[1, 1, 2, 2], &[0.; 4])).fails("input 2 (offset)");
        case().input(t(&[1, 2, 2, 2], &[0.; 8])).attr("offset_group", 2i64).fails("\"offset_group\"");
    }
}
