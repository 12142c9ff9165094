//! `MaxPool` — the largest element of each window.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__MaxPool.html> (opsets 1, 8, 10, 11, 12, 22)
//! Inputs: X `[N, C, D…]` of T. Outputs: Y `[N, C, O…]` of T; Indices? `[N, C, O…]` int64 into the flat X (8).
//! T: float16, bfloat16 (22), float, double, int8 and uint8 (12). `ceil_mode` and `dilations` from opset 10.
//! Quantized: selects elements, so the output has the input's parameters.
//! Errors: fewer than one spatial dimension; a window that does not fit or that lies in the padding alone.
//! Deviation: NaNs are ignored, as ONNX Runtime does.

use half::{bf16, f16};

use super::reverse::{Back, Gradients, Reverse};
use super::window::{Window, kernel_shape};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::kernels::for_each_chunk;
use crate::kernels::pool::{self, Pool, fold, places_of_maxima};
use crate::tensor::{DType, Data, Element, Tensor, buffer};

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "MaxPool",
        domain: OpDomain::Onnx,
        since: 1,
        inputs: Arity::exactly(1),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer,
        eval,
        quant: QuantRule::Share,
    },
    OpDef {
        name: "MaxPool",
        domain: OpDomain::Onnx,
        since: 8,
        inputs: Arity::exactly(1),
        outputs: Arity::range(1, 2),
        is_pure: true,
        infer,
        eval,
        quant: QuantRule::Share,
    },
];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("MaxPool", reverse)];

/// The first largest element of each window takes its gradient.
fn reverse(b: &Back<'_>) -> Result<Gradients> {
    let x = b.input(0)?;
    let (p, _) = sizes(b.attrs, x.shape())?;
    let (in_size, out_size) = p.sizes();
    let (v, g) = (x.to_f32s()?, b.gradient()?);
    let mut dx = vec![0.0f32; v.len()];
    for_each_chunk(b.threads, &mut dx, in_size, &|c, dx| {
        let places = places_of_maxima(&p, &v[c * in_size..(c + 1) * in_size]);
        for (place, g) in places.into_iter().zip(&g[c * out_size..]) {
            if let Some(place) = place {
                dx[place] += g;
            }
        }
    });
    Ok(vec![b.made(0, || Ok(dx))?])
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = infer_dims(ctx)?;
    ctx.set_tensor(0, ctx.dtype(0), shape.clone());
    ctx.set_tensor(1, Some(DType::I64), shape);
    Ok(())
}

/// The dimensions of a pool's output.
///
/// # Errors
/// The input's rank does not fit the attributes; a window does not fit.
pub(super) fn infer_dims(ctx: &InferCtx<'_>) -> Result<Option<Vec<crate::ir::Dim>>> {
    let window = Window::new(ctx.attrs, kernel_shape(ctx.attrs)?)?;
    let Some(x) = ctx.shape(0) else { return Ok(None) };
    ensure!(x.len() >= 3, "input 0 (X) has rank {}, expected at least 3", x.len());
    let mut out = x[..2].to_vec();
    out.extend(window.dims(&x[2..])?);
    Ok(Some(out))
}

/// A pool over a tensor of this shape, and the output's shape.
///
/// # Errors
/// The rank does not fit the attributes; a window does not fit.
pub(super) fn sizes(attrs: &crate::ir::Attrs, x: &[usize]) -> Result<(Pool, Vec<usize>)> {
    ensure!(x.len() >= 3, "input 0 (X) has shape {x:?}, expected at least rank 3");
    let window = Window::new(attrs, kernel_shape(attrs)?)?;
    let spans = window.spans(&x[2..])?;
    let p = Pool {
        input: x[2..].to_vec(),
        output: spans.iter().map(|s| s.output).collect(),
        begin: spans.iter().map(|s| s.begin).collect(),
        end: spans.iter().map(|s| s.end).collect(),
        kernel: window.kernel,
        stride: window.stride,
        dilation: window.dilation,
    };
    let shape = [&x[..2], p.output.as_slice()].concat();
    crate::tensor::count(&shape)?;
    Ok((p, shape))
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let (p, shape) = sizes(call.attrs, x.shape())?;
    if call.wants(1) {
        return match x.data() {
            Data::F32(b) => with_places(call, x, &p, &shape, b.as_slice(), f32::NEG_INFINITY),
            Data::F64(b) => with_places(call, x, &p, &shape, b.as_slice(), f64::NEG_INFINITY),
            Data::F16(b) => with_places(call, x, &p, &shape, b.as_slice(), f16::NEG_INFINITY),
            Data::BF16(b) => with_places(call, x, &p, &shape, b.as_slice(), bf16::NEG_INFINITY),
            Data::I8(b) => with_places(call, x, &p, &shape, b.as_slice(), i8::MIN),
            Data::U8(b) => with_places(call, x, &p, &shape, b.as_slice(), u8::MIN),
            _ => bail!("input 0 (X) has element type {}, expected a float type, int8 or uint8", x.dtype()),
        };
    }
    let y = match x.data() {
        Data::F32(b) => {
            let mut y = buffer(shape.iter().product());
            pool::max(call.threads, &p, b.as_slice(), &mut y);
            Tensor::new(&shape, y)?
        }
        Data::F64(b) => maxima(call, x, &p, &shape, b.as_slice(), f64::NEG_INFINITY)?,
        Data::F16(b) => maxima(call, x, &p, &shape, b.as_slice(), f16::NEG_INFINITY)?,
        Data::BF16(b) => maxima(call, x, &p, &shape, b.as_slice(), bf16::NEG_INFINITY)?,
        Data::I8(b) => maxima(call, x, &p, &shape, b.as_slice(), i8::MIN)?,
        Data::U8(b) => maxima(call, x, &p, &shape, b.as_slice(), u8::MIN)?,
        _ => bail!("input 0 (X) has element type {}, expected a float type, int8 or uint8", x.dtype()),
    };
    Ok(vec![y.into()])
}

fn maxima<T: Element + PartialOrd + Copy>(
    call: &Call<'_>,
    x: &Tensor,
    p: &Pool,
    shape: &[usize],
    v: &[T],
    least: T,
) -> Result<Tensor> {
    let mut y = vec![least; shape.iter().product()];
    fold(call.threads, p, v, &mut y, least, |y, x| if x > y { x } else { y });
    Tensor::from_buf(x.dtype(), shape, T::wrap(y.into()))
}

/// Maxima and where they lie: `storage_order` 0 counts row-major, 1 column-major inside a channel.
fn with_places<T: Element + PartialOrd + Copy>(
    call: &Call<'_>,
    x: &Tensor,
    p: &Pool,
    shape: &[usize],
    v: &[T],
    least: T,
) -> Result<Vec<Item>> {
    let column_major = call.flag("storage_order", false);
    let (in_size, _) = p.sizes();
    let n = shape.iter().product();
    let (mut y, mut indices) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for (c, x) in v.chunks_exact(in_size.max(1)).enumerate() {
        for place in places_of_maxima(p, x) {
            y.push(place.map_or(least, |i| x[i]));
            let place = place.unwrap_or(0);
            let place = if column_major { column_major_place(&p.input, place) } else { place };
            indices.push((c * in_size + place) as i64);
        }
    }
    Ok(vec![Tensor::from_buf(x.dtype(), shape, T::wrap(y.into()))?.into(), Tensor::new(shape, indices)?.into()])
}

/// The place in column-major order of an element at `place` in row-major order.
fn column_major_place(shape: &[usize], mut place: usize) -> usize {
    let mut out = 0;
    let mut stride: usize = shape.iter().product();
    for &n in shape.iter().rev() {
        stride /= n;
        out += place % n * stride;
        place /= n;
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{DType, Tensor, cast};

    fn x() -> Tensor {
        Tensor::new(&[1, 1, 3, 3], (1..=9).map(|i| i as f32).collect()).unwrap()
    }

    fn y(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    #[test]
    fn takes_the_largest_of_each_window() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I8, DType::U8] {
            let c = |t: Tensor| cast::cast(&t, dtype, true).unwrap();
            let case = || Case::new("MaxPool", 22).input(c(x())).attr("kernel_shape", vec![2i64, 2]);
            case().expect(&[c(y(&[1, 1, 2, 2], &[5., 6., 8., 9.]))]);
            case().attr("strides", vec![2i64, 2]).expect(&[c(y(&[1, 1, 1, 1], &[5.]))]);
            let all = c(y(&[1, 1, 2, 2], &[5., 6., 8., 9.]));
            case().attr("strides", vec![2i64, 2]).attr("ceil_mode", 1i64).expect(std::slice::from_ref(&all));
            case().attr("strides", vec![2i64, 2]).attr("auto_pad", "SAME_UPPER").expect(&[all]);
            case().attr("dilations", vec![2i64, 2]).expect(&[c(y(&[1, 1, 1, 1], &[9.]))]);
            case()
                .attr("pads", vec![1i64, 1, 0, 0])
                .expect(&[c(y(&[1, 1, 3, 3], &[1., 2., 3., 4., 5., 6., 7., 8., 9.]))]);
        }
    }

    #[test]
    fn indices_count_in_either_order() {
        let case = |order: i64| {
            Case::new("MaxPool", 12)
                .input(x())
                .attr("kernel_shape", vec![2i64, 2])
                .attr("storage_order", order)
                .outputs(2)
        };
        let values = y(&[1, 1, 2, 2], &[5., 6., 8., 9.]);
        case(0).expect(&[values.clone(), Tensor::new(&[1, 1, 2, 2], vec![4i64, 5, 7, 8]).unwrap()]);
        case(1).expect(&[values, Tensor::new(&[1, 1, 2, 2], vec![4i64, 7, 5, 8]).unwrap()]);
    }

    #[test]
    fn contradictions_are_errors() {
        Case::new("MaxPool", 12).input(x()).fails("\"kernel_shape\" is missing");
        Case::new("MaxPool", 12).input(x()).attr("kernel_shape", vec![2i64]).fails("spatial dimensions");
        Case::new("MaxPool", 12).input(x()).attr("kernel_shape", vec![4i64, 4]).fails("does not fit");
        let x = Tensor::new(&[1, 1, 2], vec![1i64, 2]).unwrap();
        Case::new("MaxPool", 12).input(x).attr("kernel_shape", vec![2i64]).fails("input 0 (X)");
    }
}
