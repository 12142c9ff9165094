//! `ConvTranspose` — transposed convolution: each input element adds a scaled kernel to the output.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ConvTranspose.html> (opsets 1, 11, 22)
//! Inputs: X `[N, C, D…]`, W `[C, M/group, K…]`, B? `[M]` of T. Output: Y `[N, M, O…]` of T.
//! T: float16, bfloat16 (22), float, double.
//! `O = stride * (D - 1) + output_padding + (K - 1) * dilation + 1 - pads`, or what `output_shape` says.
//! Quantized: X per tensor; W per channel, axis 1; B int32, scale = scale(X) * scale(W).
//! Errors: fewer than one spatial dimension; C is not W's first dimension or no multiple of `group`; a negative extent.

use super::conv::group;
use super::floats::{FLOATS, from_f32s, same_dtype};
use super::reverse::{Back, Gradients, Reverse};
use super::window::sizes;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule, WeightAxis};
use crate::error::{Result, bail, ensure};
use crate::ir::{Attrs, Dim, sym};
use crate::kernels::conv::{Filters, Geometry, conv};
use crate::kernels::conv_transpose::{Scatter, scatter};
use crate::kernels::{plain, reverse};
use crate::tensor::{DType, Element, Tensor, buffer};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "ConvTranspose",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::range(2, 3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Weighted { data: 0, weight: 1, axis: WeightAxis::Fixed(1), bias: Some(2) },
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("ConvTranspose", reverse)];

/// The operator is the transpose of a convolution from its output to its input, so that convolution gives the
/// gradient of X, and its weights' gradient is that of W.
fn reverse(b: &Back<'_>) -> Result<Gradients> {
    let (x, w, g) = (b.input(0)?, b.input(1)?, b.gradient()?);
    let (xs, ys) = (x.shape(), b.output(0)?.shape());
    let axes = Axes::new(b.attrs, w.shape()[2..].to_vec())?;
    let begin = (0..xs.len() - 2).map(|d| axes.span(d, xs[d + 2]).map(|s| s.1)).collect::<Result<Vec<_>>>()?;
    let sizes = Geometry {
        batch: xs[0],
        channels: ys[1],
        filters: xs[1],
        groups: group(b.attrs)?,
        input: ys[2..].to_vec(),
        output: xs[2..].to_vec(),
        kernel: axes.kernel,
        stride: axes.stride,
        dilation: axes.dilation,
        begin,
    };
    let dx = b.made(0, || {
        let mut dx = buffer(x.len());
        conv(b.threads, &sizes, g, &Filters::new(&w.to_f32s()?, &sizes), None, &mut dx);
        Ok(dx)
    })?;
    let dw = b.made(1, || Ok(reverse::conv_weights(b.threads, &sizes, g, &x.to_f32s()?)))?;
    Ok(vec![dx, dw, super::conv::reverse_bias(b)?])
}

/// What the attributes say of one dimension.
struct Axes {
    kernel: Vec<usize>,
    stride: Vec<usize>,
    dilation: Vec<usize>,
    padding: Vec<usize>,
    output_padding: Vec<usize>,
    output_shape: Option<Vec<usize>>,
    auto_pad: AutoPad,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AutoPad {
    Explicit,
    SameUpper,
    SameLower,
    Valid,
}

impl Axes {
    fn new(attrs: &Attrs, kernel: Vec<usize>) -> Result<Self> {
        let rank = kernel.len();
        let auto_pad = match attrs.str("auto_pad").unwrap_or("NOTSET") {
            "NOTSET" | "" => AutoPad::Explicit,
            "SAME_UPPER" => AutoPad::SameUpper,
            "SAME_LOWER" => AutoPad::SameLower,
            "VALID" => AutoPad::Valid,
            other => bail!("attribute \"auto_pad\" is \"{other}\", expected NOTSET, SAME_UPPER, SAME_LOWER or VALID"),
        };
        let output_shape = match attrs.ints("output_shape") {
            None | Some([]) => None,
            // Some exporters write the whole shape.
            Some(v) if v.len() == rank + 2 => Some(sizes(attrs, "output_shape", rank + 2, 0, 0)?.split_off(2)),
            Some(_) => Some(sizes(attrs, "output_shape", rank, 0, 0)?),
        };
        Ok(Axes {
            stride: sizes(attrs, "strides", rank, 1, 1)?,
            dilation: sizes(attrs, "dilations", rank, 1, 1)?,
            padding: sizes(attrs, "pads", 2 * rank, 0, 0)?,
            output_padding: sizes(attrs, "output_padding", rank, 0, 0)?,
            kernel,
            output_shape,
            auto_pad,
        })
    }

    /// The extent of dimension `d` of the output and the padding cut off in front of it.
    fn span(&self, d: usize, input: usize) -> Result<(usize, usize)> {
        let rank = self.kernel.len();
        let stride = self.stride[d];
        let reach = (self.kernel[d] - 1).saturating_mul(self.dilation[d]).saturating_add(1);
        let full = input.saturating_sub(1).saturating_mul(stride) + reach + self.output_padding[d];
        let wanted = match (&self.output_shape, self.auto_pad) {
            (Some(shape), _) => Some(shape[d]),
            (None, AutoPad::SameUpper | AutoPad::SameLower) => Some(input * stride),
            _ => None,
        };
        if let Some(output) = wanted {
            let total = full.saturating_sub(output);
            // The odd element: in front for SAME_UPPER only, as ONNX Runtime and the specification's later text say.
            let begin = if self.auto_pad == AutoPad::SameUpper { total / 2 } else { total - total / 2 };
            return Ok((output, begin));
        }
        if self.auto_pad == AutoPad::Valid {
            return Ok((full, 0));
        }
        let (begin, end) = (self.padding[d], self.padding[rank + d]);
        ensure!(
            full >= begin + end,
            "spatial dimension {d} of {full} elements is smaller than the padding {begin} and {end}"
        );
        Ok((full - begin - end, begin))
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let (x, w) = (ctx.shape(0), ctx.shape(1));
    let mut shape = None;
    if let Some(rank) = x.or(w).map(<[Dim]>::len) {
        ensure!(rank >= 3, "input 0 (X) has rank {rank}, expected at least 3");
        ensure!(w.is_none_or(|w| w.len() == rank), "input 1 (W) does not have rank {rank} as input 0 (X) has");
        let dim = |s: Option<&[Dim]>, i: usize| s.and_then(|s| s.get(i)).cloned().unwrap_or(Dim::Unknown);
        if let (Dim::Known(c), Dim::Known(wc)) = (dim(x, 1), dim(w, 0)) {
            ensure!(c == wc, "input 1 (W) has {wc} channels in dimension 0, expected {c} as input 0 (X) has");
        }
        let groups = group(ctx.attrs)?;
        let filters = dim(w, 1).known().map_or(Dim::Unknown, |m| Dim::Known(m * groups));
        let mut out = vec![dim(x, 0), filters];
        let kernel = match ctx.attrs.ints("kernel_shape") {
            Some(_) => Some(sizes(ctx.attrs, "kernel_shape", rank - 2, 1, 1)?),
            None => w.and_then(|w| w[2..].iter().map(Dim::known).collect()),
        };
        match kernel.filter(|k| !k.contains(&0)) {
            Some(kernel) => {
                let axes = Axes::new(ctx.attrs, kernel)?;
                for d in 0..rank - 2 {
                    out.push(match (dim(x, d + 2), &axes.output_shape) {
                        (_, Some(shape)) => Dim::Known(shape[d]),
                        (Dim::Known(n), None) => Dim::Known(axes.span(d, n)?.0),
                        (Dim::Unknown, None) => Dim::Unknown,
                        (named, None) => {
                            // Sizes grow in proportion; two of them tell how.
                            const N: usize = 1 << 20;
                            let (a, b) = (axes.span(d, N)?.0, axes.span(d, N + 1)?.0);
                            let slope = b - a;
                            sym::add(&sym::mul(&named, &Dim::Known(slope)), &sym::of_int(a as i64 - (N * slope) as i64))
                        }
                    });
                }
            }
            None => out.resize(rank, Dim::Unknown),
        }
        shape = Some(out);
    }
    ctx.set_tensor(0, ctx.dtype(0).or(ctx.dtype(1)), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, w, b) = (call.input(0)?, call.input(1)?, call.optional(2)?);
    let dtype = same_dtype(&[("X", Some(x)), ("W", Some(w)), ("B", b)], FLOATS)?;
    let (xs, ws) = (x.shape(), w.shape());
    ensure!(xs.len() >= 3, "input 0 (X) has shape {xs:?}, expected at least rank 3");
    ensure!(ws.len() == xs.len(), "input 1 (W) has shape {ws:?}, expected rank {} as X has", xs.len());
    ensure!(ws[0] == xs[1], "input 1 (W) has {} channels in dimension 0, expected {} as input 0 (X) has", ws[0], xs[1]);
    let groups = group(call.attrs)?;
    ensure!(xs[1].is_multiple_of(groups), "input 0 (X) has {} channels, expected a multiple of {groups} groups", xs[1]);
    if call.attrs.ints("kernel_shape").is_some() {
        let kernel = sizes(call.attrs, "kernel_shape", xs.len() - 2, 1, 1)?;
        ensure!(kernel == ws[2..], "input 1 (W) has shape {ws:?}, expected a kernel of {kernel:?}");
    }
    ensure!(!ws[2..].contains(&0), "input 1 (W) has shape {ws:?}, expected no empty dimension");
    let axes = Axes::new(call.attrs, ws[2..].to_vec())?;
    let spans = (0..xs.len() - 2).map(|d| axes.span(d, xs[d + 2])).collect::<Result<Vec<_>>>()?;
    let s = Scatter {
        input: xs[2..].to_vec(),
        output: spans.iter().map(|s| s.0).collect(),
        begin: spans.iter().map(|s| s.1).collect(),
        kernel: axes.kernel,
        stride: axes.stride,
        dilation: axes.dilation,
    };
    let filters = ws[1] * groups;
    if let Some(b) = b {
        ensure!(b.shape() == [filters], "input 2 (B) has shape {:?}, expected [{filters}]", b.shape());
    }
    let shape = [&[xs[0], filters], s.output.as_slice()].concat();
    let n = crate::tensor::count(&shape)?;
    let (taps, places): (usize, usize) = (s.kernel.iter().product(), s.input.iter().product());
    // As a convolution of size 1 that makes `taps` values of each filter at each place, which then are spread.
    let g = Geometry {
        batch: xs[0],
        channels: xs[1],
        filters: filters * taps,
        groups,
        input: vec![places],
        output: vec![places],
        kernel: vec![1],
        stride: vec![1],
        dilation: vec![1],
        begin: vec![0],
    };
    let columns = crate::tensor::count(&[g.batch, g.filters, places])?;
    if dtype == DType::F64 {
        let mut spread = vec![0.0f64; columns];
        plain::conv(&g, x.slice()?, &transposed(w.slice::<f64>()?, groups, xs[1] / groups), &mut spread);
        let mut y = vec![0.0f64; n];
        fill(&mut y, b.map(|b| b.slice::<f64>()).transpose()?, s.output.iter().product());
        scatter(call.threads, &s, &spread, &mut y);
        return Ok(Tensor::new(&shape, y)?.into());
    }
    let pack = || {
        let w = transposed(&w.to_f32s()?, groups, xs[1] / groups);
        Ok(Filters::of_matrix(&w, groups, filters / groups * taps, xs[1] / groups))
    };
    let made;
    let packed = if call.is_constant(1) {
        call.shared(pack)?
    } else {
        made = pack()?;
        &made
    };
    let mut spread = buffer(columns);
    conv(call.threads, &g, &x.to_f32s()?, packed, None, &mut spread);
    let mut y = buffer(n);
    let b = b.map(Tensor::to_f32s).transpose()?;
    fill(&mut y, b.as_deref(), s.output.iter().product());
    scatter(call.threads, &s, &spread, &mut y);
    Ok(from_f32s(dtype, &shape, y)?.into())
}

/// Each group's matrix `[channels, filters * taps]` transposed.
fn transposed<T: Element + Copy>(w: &[T], groups: usize, channels: usize) -> Vec<T> {
    let per_group = w.len() / groups;
    let one = |w: &[T]| super::gemm::transposed(w, channels, per_group / channels.max(1));
    w.chunks_exact(per_group.max(1)).flat_map(one).collect()
}

/// Starts every channel with its bias, or with 0.
fn fill<T: Copy + Default>(y: &mut [T], bias: Option<&[T]>, size: usize) {
    match bias {
        Some(bias) => y.chunks_exact_mut(size.max(1)).zip(bias.iter().cycle()).for_each(|(y, &b)| y.fill(b)),
        None => y.fill(T::default()),
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Tensor, cast};

    fn t(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    fn ones(shape: &[usize]) -> Tensor {
        t(shape, &vec![1.0; shape.iter().product()])
    }

    #[test]
    fn adds_a_kernel_for_each_element() {
        for dtype in super::FLOATS {
            let c = |t: Tensor| cast::cast(&t, *dtype, true).unwrap();
            let case = || Case::new("ConvTranspose", 22).input(c(t(&[1, 1, 3], &[1., 2., 3.])));
            case().input(c(ones(&[1, 1, 3]))).expect(&[c(t(&[1, 1, 5], &[1., 3., 6., 5., 3.]))]);
            case()
                .input(c(ones(&[1, 1, 2])))
                .attr("strides", vec![3i64])
                .expect(&[c(t(&[1, 1, 8], &[1., 1., 0., 2., 2., 0., 3., 3.]))]);
            let two = t(&[1, 2, 1], &[1., 10.]);
            case()
                .input(c(two))
                .input(c(t(&[2], &[0.5, 1.])))
                .expect(&[c(t(&[1, 2, 3], &[1.5, 2.5, 3.5, 11., 21., 31.]))]);
        }
    }

    #[test]
    fn padding_and_extents() {
        let case = || Case::new("ConvTranspose", 11).input(t(&[1, 1, 3], &[1., 2., 3.])).input(ones(&[1, 1, 3]));
        case().attr("pads", vec![1i64, 1]).expect(&[t(&[1, 1, 3], &[3., 6., 5.])]);
        let strided = || case().attr("strides", vec![2i64]);
        strided().expect(&[t(&[1, 1, 7], &[1., 1., 3., 2., 5., 3., 3.])]);
        strided().attr("output_padding", vec![1i64]).expect(&[t(&[1, 1, 8], &[1., 1., 3., 2., 5., 3., 3., 0.])]);
        strided().attr("auto_pad", "SAME_UPPER").expect(&[t(&[1, 1, 6], &[1., 1., 3., 2., 5., 3.])]);
        strided().attr("auto_pad", "SAME_LOWER").expect(&[t(&[1, 1, 6], &[1., 3., 2., 5., 3., 3.])]);
        strided().attr("output_shape", vec![8i64]).expect(&[t(&[1, 1, 8], &[1., 1., 3., 2., 5., 3., 3., 0.])]);
        case().attr("dilations", vec![2i64]).expect(&[t(&[1, 1, 7], &[1., 2., 4., 2., 4., 2., 3.])]);
    }

    #[test]
    fn groups_and_planes() {
        let x = t(&[1, 2, 1, 2], &[1., 2., 3., 4.]);
        let w = t(&[2, 1, 2, 1], &[1., 10., 100., 1000.]);
        let y = t(&[1, 2, 2, 2], &[1., 2., 10., 20., 300., 400., 3000., 4000.]);
        Case::new("ConvTranspose", 11).input(x).input(w).attr("group", 2i64).expect(&[y]);
    }

    #[test]
    fn contradictions_are_errors() {
        let case = || Case::new("ConvTranspose", 11).input(ones(&[1, 2, 3]));
        case().input(ones(&[3, 1, 3])).fails("input 1 (W)");
        case().input(ones(&[2, 1, 3])).attr("group", 3i64).fails("groups");
        case().input(ones(&[2, 1, 3])).attr("pads", vec![9i64, 9]).fails("padding");
        case().input(ones(&[2, 1, 3])).input(ones(&[3])).fails("input 2 (B)");
    }
}
