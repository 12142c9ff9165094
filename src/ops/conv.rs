//! `Conv` — n-dimensional convolution, channels first.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Conv.html> (opsets 1, 11, 22)
//! Inputs: X `[N, C, D…]`, W `[M, C/group, K…]`, B? `[M]` of T. Output: Y `[N, M, O…]` of T.
//! T: float16, bfloat16 (22), float, double.
//! Quantized: X per tensor; W per channel, axis 0; B int32, scale = scale(X) * scale(W).
//! Errors: fewer than one spatial dimension; C is not W's second dimension times `group`; M is no multiple of `group`;
//! a window that does not fit.

use super::floats::{FLOATS, from_f32s, same_dtype};
use super::pointwise::Pointwise;
use super::reverse::{Back, Gradients, Reverse, summed};
use super::window::{Window, sizes};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule, WeightAxis};
use crate::error::{Result, bail, ensure};
use crate::ir::{Attrs, Dim};
use crate::kernels::conv::{Filters, Geometry, Then, conv_then};
use crate::kernels::{plain, reverse};
use crate::tensor::{DType, Tensor, buffer};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Conv",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::range(2, 3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Weighted { data: 0, weight: 1, axis: WeightAxis::Fixed(0), bias: Some(2) },
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Conv", reverse)];

fn reverse(b: &Back<'_>) -> Result<Gradients> {
    let (x, w, g) = (b.input(0)?, b.input(1)?, b.gradient()?);
    let sizes = geometry(b.attrs, ("input 0 (X)", x.shape()), ("input 1 (W)", w.shape()))?;
    let dx = b.made(0, || Ok(reverse::conv_data(b.threads, &sizes, &w.to_f32s()?, g)))?;
    let dw = b.made(1, || Ok(reverse::conv_weights(b.threads, &sizes, &x.to_f32s()?, g)))?;
    Ok(vec![dx, dw, reverse_bias(b)?])
}

/// The gradient of a bias per channel (axis 1), input 2.
pub(super) fn reverse_bias(b: &Back<'_>) -> Result<Option<Tensor>> {
    let shape = b.output(0)?.shape();
    let mut channels = vec![1; shape.len() - 1];
    channels[0] = shape[1];
    b.made(2, || Ok(summed(b.gradient()?, shape, &channels)))
}

/// The attribute `group`.
pub(super) fn group(attrs: &Attrs) -> Result<usize> {
    match attrs.int("group").unwrap_or(1) {
        n @ 1.. => Ok(n as usize),
        n => bail!("attribute \"group\" is {n}, expected at least 1"),
    }
}

/// The sizes of a convolution of `x` with `w`, which are named so in messages.
///
/// # Errors
/// The shapes and attributes contradict each other.
pub(crate) fn geometry(attrs: &Attrs, x: (&str, &[usize]), w: (&str, &[usize])) -> Result<Geometry> {
    let ((x_name, x), (w_name, w)) = (x, w);
    ensure!(x.len() >= 3, "{x_name} has shape {x:?}, expected at least rank 3");
    ensure!(w.len() == x.len(), "{w_name} has shape {w:?}, expected rank {} as {x_name} has", x.len());
    let groups = group(attrs)?;
    ensure!(
        w[1].checked_mul(groups) == Some(x[1]),
        "{w_name} has shape {w:?}, expected {} channels in dimension 1: {x_name} has {} channels in {groups} groups",
        x[1] / groups,
        x[1]
    );
    ensure!(w[0].is_multiple_of(groups), "{w_name} has {} filters, expected a multiple of the {groups} groups", w[0]);
    let kernel = kernel(attrs, w_name, &w[2..])?;
    let window = Window::new(attrs, kernel)?;
    let spans = window.spans(&x[2..])?;
    Ok(Geometry {
        batch: x[0],
        channels: x[1],
        filters: w[0],
        groups,
        input: x[2..].to_vec(),
        output: spans.iter().map(|s| s.output).collect(),
        begin: spans.iter().map(|s| s.begin).collect(),
        kernel: window.kernel,
        stride: window.stride,
        dilation: window.dilation,
    })
}

/// The kernel's shape, which the attribute may repeat.
fn kernel(attrs: &Attrs, w_name: &str, w: &[usize]) -> Result<Vec<usize>> {
    let kernel = match attrs.ints("kernel_shape") {
        Some(_) => sizes(attrs, "kernel_shape", w.len(), 1, 1)?,
        None => w.to_vec(),
    };
    ensure!(kernel == w, "{w_name} has a kernel of shape {w:?}, expected {kernel:?} as \"kernel_shape\" says");
    ensure!(!kernel.contains(&0), "{w_name} has a kernel of shape {w:?}, expected no empty dimension");
    Ok(kernel)
}

/// The output's dimensions from those of the inputs `x` and `w`.
///
/// # Errors
/// What is known is a contradiction.
pub(super) fn infer_dims(attrs: &Attrs, x: Option<&[Dim]>, w: Option<&[Dim]>) -> Result<Option<Vec<Dim>>> {
    let rank = match (x, w) {
        (Some(x), Some(w)) => {
            ensure!(x.len() == w.len(), "input W has rank {}, expected {} as X has", w.len(), x.len());
            x.len()
        }
        (Some(s), None) | (None, Some(s)) => s.len(),
        (None, None) => return Ok(None),
    };
    ensure!(rank >= 3, "input X has rank {rank}, expected at least 3");
    let dim = |s: Option<&[Dim]>, i: usize| s.map_or(Dim::Unknown, |s| s[i].clone());
    if let (Dim::Known(c), Dim::Known(wc)) = (dim(x, 1), dim(w, 1)) {
        let groups = group(attrs)?;
        ensure!(
            wc.checked_mul(groups) == Some(c),
            "input W has {wc} channels in dimension 1, expected {}: X has {c} channels in {groups} groups",
            c / groups
        );
    }
    let fixed: Option<Vec<usize>> = w.and_then(|w| w[2..].iter().map(Dim::known).collect());
    let kernel = match (attrs.ints("kernel_shape"), fixed) {
        (_, Some(fixed)) => Some(kernel(attrs, "input W", &fixed)?),
        (Some(_), None) => Some(sizes(attrs, "kernel_shape", rank - 2, 1, 1)?),
        (None, None) => None,
    };
    let mut out = vec![dim(x, 0), dim(w, 0)];
    match (kernel, x) {
        (Some(kernel), Some(x)) => out.extend(Window::new(attrs, kernel)?.dims(&x[2..])?),
        _ => out.resize(rank, Dim::Unknown),
    }
    Ok(Some(out))
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = infer_dims(ctx.attrs, ctx.shape(0), ctx.shape(1))?;
    ctx.set_tensor(0, ctx.dtype(0).or(ctx.dtype(1)), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, w, b) = (call.input(0)?, call.input(1)?, call.optional(2)?);
    let dtype = same_dtype(&[("X", Some(x)), ("W", Some(w)), ("B", b)], FLOATS)?;
    let g = geometry(call.attrs, ("input 0 (X)", x.shape()), ("input 1 (W)", w.shape()))?;
    if let Some(b) = b {
        ensure!(b.shape() == [g.filters], "input 2 (B) has shape {:?}, expected [{}]", b.shape(), g.filters);
    }
    let epilogue = if dtype == DType::F32 { call.epilogue(x.rank()) } else { None };
    Ok(vec![convolve(call, dtype, &g, x, w, b, epilogue)?.into()])
}

/// The output's shape.
pub(super) fn output_shape(g: &Geometry) -> Vec<usize> {
    [&[g.batch, g.filters], g.output.as_slice()].concat()
}

/// The convolution of `x` with `w`, plus `b`, all of `dtype`, and of 32-bit floats what the epilogue makes of it. Packs
/// the weight once when it is a constant input 1.
///
/// # Errors
/// The output does not fit into memory.
pub(super) fn convolve(
    call: &Call<'_>,
    dtype: DType,
    g: &Geometry,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    epilogue: Option<&Pointwise>,
) -> Result<Tensor> {
    let shape = output_shape(g);
    let n = crate::tensor::count(&shape)?;
    if dtype == DType::F64 {
        let mut y = vec![0.0f64; n];
        let size: usize = g.output.iter().product::<usize>().max(1);
        if let Some(b) = b {
            for (y, &b) in y.chunks_exact_mut(size).zip(b.slice::<f64>()?.iter().cycle()) {
                y.fill(b);
            }
        }
        plain::conv(g, x.slice()?, w.slice()?, &mut y);
        return Tensor::new(&shape, y);
    }
    let pack = || Ok(Filters::new(&w.to_f32s()?, g).in_any_order());
    let made;
    let filters = if call.is_constant(1) {
        call.shared(pack)?
    } else {
        made = pack()?;
        &made
    };
    let b = b.map(Tensor::to_f32s).transpose()?;
    let mut y = buffer(n);
    let each = |v: &mut [f32]| epilogue.into_iter().for_each(|e| e.apply(v));
    let then = match epilogue.map(Pointwise::bounds) {
        None => Then::Nothing,
        Some(Some((lo, hi))) => Then::Clamp(lo, hi),
        Some(None) => Then::Each(&each),
    };
    conv_then(call.threads, g, &x.to_f32s()?, filters, b.as_deref(), &mut y, then);
    from_f32s(dtype, &shape, y)
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Tensor, cast};

    fn iota(shape: &[usize]) -> Tensor {
        Tensor::new(shape, (0..shape.iter().product()).map(|i: usize| i as f32).collect()).unwrap()
    }

    fn ones(shape: &[usize]) -> Tensor {
        Tensor::new(shape, vec![1.0f32; shape.iter().product()]).unwrap()
    }

    fn case() -> Case {
        Case::new("Conv", 11)
    }

    #[test]
    fn sums_windows_with_and_without_padding() {
        let y = Tensor::new(&[1, 1, 2, 2], vec![36.0f32, 45.0, 72.0, 81.0]).unwrap();
        case().input(iota(&[1, 1, 4, 4])).input(ones(&[1, 1, 3, 3])).expect(&[Tensor::new(
            &[1, 1, 2, 2],
            vec![45.0f32, 54.0, 81.0, 90.0],
        )
        .unwrap()]);
        case()
            .input(iota(&[1, 1, 4, 4]))
            .input(ones(&[1, 1, 3, 3]))
            .input(Tensor::vector(vec![-9.0f32]))
            .attr("kernel_shape", vec![3i64, 3])
            .expect(std::slice::from_ref(&y));
        let same = Tensor::new(&[1, 1, 2, 2], vec![45.0f32, 39.0, 66.0, 50.0]).unwrap();
        case()
            .input(iota(&[1, 1, 4, 4]))
            .input(ones(&[1, 1, 3, 3]))
            .attr("auto_pad", "SAME_UPPER")
            .attr("strides", vec![2i64, 2])
            .expect(&[same]);
    }

    #[test]
    fn groups_see_their_own_channels() {
        let w = Tensor::new(&[2, 1, 1], vec![1.0f32, 10.0]).unwrap();
        let y = Tensor::new(&[1, 2, 2], vec![0.0f32, 1.0, 20.0, 30.0]).unwrap();
        case().input(iota(&[1, 2, 2])).input(w).attr("group", 2i64).expect(&[y]);
    }

    #[test]
    fn other_float_types_and_ranks() {
        for dtype in super::FLOATS {
            let c = |t: Tensor| cast::cast(&t, *dtype, true).unwrap();
            let y = Tensor::new(&[1, 1, 1, 1, 2], vec![1.0f32, 5.0]).unwrap();
            Case::new("Conv", 22)
                .input(c(iota(&[1, 1, 1, 1, 4])))
                .input(c(ones(&[1, 1, 1, 1, 2])))
                .attr("strides", vec![1i64, 1, 2])
                .expect(&[c(y)]);
        }
    }

    #[test]
    fn contradictions_are_errors() {
        case().input(iota(&[1, 3, 4, 4])).input(ones(&[1, 2, 3, 3])).fails("input 1 (W)");
        case().input(iota(&[1, 3, 4, 4])).input(ones(&[1, 3, 3])).fails("expected rank 4");
        case().input(iota(&[1, 1, 2, 2])).input(ones(&[1, 1, 3, 3])).fails("does not fit");
        case().input(iota(&[1, 1, 4])).input(ones(&[1, 1, 3])).attr("strides", vec![0i64]).fails("\"strides\"");
        case().input(iota(&[1, 1, 4])).input(ones(&[1, 1, 3])).attr("kernel_shape", vec![2i64]).fails("kernel");
        let b = Tensor::vector(vec![1.0f32, 2.0]);
        case().input(iota(&[1, 1, 4])).input(ones(&[1, 1, 3])).input(b).fails("input 2 (B)");
        let x = Tensor::new(&[1, 1, 4], vec![1i64; 4]).unwrap();
        case().input(x).input(ones(&[1, 1, 3])).fails("input 0 (X) has element type int64");
        assert!(case().input(iota(&[1, 3, 4])).input(ones(&[1, 2, 3])).infer(false).is_err());
    }
}
