//! `QuantizeLinear` and `DequantizeLinear`, per tensor, per axis and in blocks.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html> (opsets 10; 13: axis; 19: float8; 21: blocks, 4 and
//! 16 bits, `output_dtype`; 23: `precision`, float4; 25: 2 bits; 28: float6), and `com.microsoft`
//! Inputs: x any shape; scale of rank 0 (or one element), 1 (an axis) or x's rank (blocks); zero point as the scale.
//! Quantized: they are quantization.
//! Errors: a scale whose shape fits no granularity; a zero point of another type or shape.

use super::elementwise::is_half;
use super::pointwise::Traced;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule, call};
use crate::error::{Result, bail, ensure};
use crate::tensor::affine::{self, Params, Quantized};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Data, Element, Tensor, buffer, minifloat};

const QUANTIZE: OpDef = OpDef {
    name: "QuantizeLinear",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::range(2, 3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_quantize,
    eval: quantize,
    quant: QuantRule::Keep { why: "is quantization itself" },
};
const DEQUANTIZE: OpDef = OpDef { name: "DequantizeLinear", infer: infer_dequantize, eval: dequantize, ..QUANTIZE };

pub(super) const OPS: &[OpDef] = &[
    OpDef { domain: OpDomain::Microsoft, ..QUANTIZE },
    OpDef { domain: OpDomain::Microsoft, ..DEQUANTIZE },
    QUANTIZE,
    DEQUANTIZE,
];

fn infer_quantize(ctx: &mut InferCtx<'_>) -> Result<()> {
    let asked = ctx.dtype_attr_unless_zero("output_dtype")?;
    let dtype = if ctx.has(2) { ctx.dtype(2) } else { Some(asked.unwrap_or(DType::U8)) };
    if let (Some(a), Some(d), true) = (asked, dtype, ctx.has(2)) {
        ensure!(a == d, "attribute \"output_dtype\" is {a}, but input 2 has element type {d}");
    }
    let shape = ctx.shape(0).map(<[_]>::to_vec);
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

fn infer_dequantize(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype_attr_unless_zero("output_dtype")?.or(ctx.dtype(1));
    let shape = ctx.shape(0).map(<[_]>::to_vec);
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

/// How parameters are laid out over a tensor.
#[derive(Debug, Clone, Copy)]
enum Granularity {
    Tensor,
    /// Elements behind the axis, size of the axis.
    Axis {
        inner: usize,
        size: usize,
    },
    /// Elements behind the axis, size of the axis, size of a block.
    Blocks {
        inner: usize,
        size: usize,
        block: usize,
    },
}

fn granularity(call: &Call<'_>, x: &[usize], scale: &[usize]) -> Result<Granularity> {
    let block = call.int("block_size", 0);
    let n: usize = scale.iter().product();
    if scale.is_empty() || (n == 1 && (block == 0 || scale.len() != x.len())) {
        return Ok(Granularity::Tensor);
    }
    let axis = call::axis(call.int("axis", 1), x.len())?;
    let (size, inner) = (x[axis], x[axis + 1..].iter().product());
    if block == 0 {
        ensure!(scale == [size], "input 1 has shape {scale:?}, expected [{size}] for axis {axis} of {x:?}");
        return Ok(Granularity::Axis { inner, size });
    }
    let Some(block) = usize::try_from(block).ok().filter(|b| *b > 0) else {
        bail!("attribute \"block_size\" is {block}, expected a positive number")
    };
    let mut expected = x.to_vec();
    expected[axis] = size.div_ceil(block);
    ensure!(
        scale == expected,
        "input 1 has shape {scale:?}, expected {expected:?} for blocks of {block} on axis {axis}"
    );
    Ok(Granularity::Blocks { inner, size, block })
}

impl Granularity {
    /// Calls `run(start, length, parameter, parameters)` for runs of elements that share one parameter, or have
    /// consecutive ones.
    fn for_each_run(self, len: usize, mut run: impl FnMut(usize, usize, usize, usize)) {
        if len == 0 {
            return;
        }
        match self {
            Granularity::Tensor => run(0, len, 0, 1),
            Granularity::Axis { inner: 1, size } => (0..len / size).for_each(|o| run(o * size, size, 0, size)),
            Granularity::Axis { inner, size } => (0..len / inner).for_each(|i| run(i * inner, inner, i % size, 1)),
            Granularity::Blocks { inner, size, block } => {
                let blocks = size.div_ceil(block);
                for o in 0..len / (size * inner) {
                    if inner == 1 {
                        for b in 0..blocks {
                            run(o * size + b * block, block.min(size - b * block), o * blocks + b, 1);
                        }
                        continue;
                    }
                    for a in 0..size {
                        run((o * size + a) * inner, inner, (o * blocks + a / block) * inner, inner);
                    }
                }
            }
        }
    }
}

/// The scales as 32-bit floats, checked.
fn scales(call: &Call<'_>) -> Result<Vec<f32>> {
    let t = call.input(1)?;
    ensure!(
        t.dtype().is_float() || t.dtype() == DType::I32,
        "input 1 has element type {}, expected a float",
        t.dtype()
    );
    Ok(t.to_f32s()?.into_owned())
}

/// The zero points of an integer type, one for each scale.
fn zero_points(call: &Call<'_>, n: usize) -> Result<Vec<i32>> {
    let Some(t) = call.optional(2)? else { return Ok(vec![0; n]) };
    ensure!(t.len() == n, "input 2 has shape {:?}, expected {:?} as input 1", t.shape(), call.input(1)?.shape());
    Ok(t.to_i64s()?.into_iter().map(|z| z as i32).collect())
}

fn quantize(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let asked = if call.int("output_dtype", 0) == 0 { None } else { Some(call.dtype("output_dtype", DType::U8)?) };
    let zero = call.optional(2)?.map(Tensor::dtype);
    if let (Some(a), Some(z)) = (asked, zero) {
        ensure!(a == z, "attribute \"output_dtype\" is {a}, but input 2 has element type {z}");
    }
    let to = zero.or(asked).unwrap_or(DType::U8);
    let x = call.input(0)?;
    ensure!(
        matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16 | DType::F64 | DType::I32),
        "input 0 has element type {}, expected a float type or int32",
        x.dtype()
    );
    let scale = scales(call)?;
    let over = granularity(call, x.shape(), call.input(1)?.shape())?;
    let precision = match call.int("precision", 0) {
        0 => call.input(1)?.dtype(),
        _ => call.dtype("precision", DType::F32)?,
    };
    if let (Some(trace), DType::F32, [scale], Granularity::Tensor) = (call.fusion.trace, x.dtype(), &scale[..], over)
        && !is_half(precision)
        && let Some((lo, hi)) = to.int_range().filter(|_| to.bits() <= 16)
    {
        let (scale, zero_point, range) = (*scale, zero_points(call, 1)?[0], (lo as i32, hi as i32));
        let function = move |x: &mut [f32], _: &[f32]| affine::round_slice(x, scale, zero_point, range);
        return trace.record(of_each(function, to));
    }
    let mut x32 = cast(x, DType::F32, true)?;
    let mut scale = scale;
    if is_half(precision) {
        // The quotient is rounded to 16 bits before it is rounded to an integer.
        let v = x32.slice_mut::<f32>()?;
        over.for_each_run(v.len(), |start, n, p, n_params| {
            for (i, x) in v[start..start + n].iter_mut().enumerate() {
                *x /= scale[p + if n_params == 1 { 0 } else { i }];
            }
        });
        x32 = cast(&cast(&x32, precision, true)?, DType::F32, true)?;
        scale.fill(1.0);
    }
    let x32 = x32.slice::<f32>()?;
    let shape = x.shape();
    let y = if let Some((lo, hi)) = to.int_range().filter(|_| to.bits() <= 16) {
        let zero_point = zero_points(call, scale.len())?;
        let range = (lo as i32, hi as i32);
        match to {
            DType::I8 | DType::I4 | DType::I2 => integers::<i8>(x32, over, &scale, &zero_point, range),
            DType::I16 => integers::<i16>(x32, over, &scale, &zero_point, range),
            DType::U16 => integers::<u16>(x32, over, &scale, &zero_point, range),
            _ => integers::<u8>(x32, over, &scale, &zero_point, range),
        }
    } else if to.is_float() && to.bits() <= 8 {
        let saturate = call.flag("saturate", true);
        let zero = match call.optional(2)? {
            Some(t) => t.to_f32s()?.into_owned(),
            None => vec![0.0; scale.len()],
        };
        ensure!(zero.len() == scale.len(), "input 2 has {} elements, expected {} as input 1", zero.len(), scale.len());
        let mut out = vec![0u8; x32.len()];
        over.for_each_run(x32.len(), |start, n, p, n_params| {
            for i in 0..n {
                let p = p + if n_params == 1 { 0 } else { i };
                out[start + i] = minifloat::encode(to, x32[start + i] / scale[p] + zero[p], saturate);
            }
        });
        u8::wrap(out.into())
    } else {
        bail!("the quantized type is {to}, expected an integer type of up to 16 bits or a float of up to 8")
    };
    Ok(Tensor::from_buf(to, shape, y)?.into())
}

fn integers<T: Quantized + Element>(
    x: &[f32],
    over: Granularity,
    scale: &[f32],
    zero_point: &[i32],
    range: (i32, i32),
) -> Data {
    let mut out = vec![T::default(); x.len()];
    over.for_each_run(x.len(), |start, n, p, n_params| {
        let params = Params { scale: &scale[p..p + n_params], zero_point: &zero_point[p..p + n_params], range };
        affine::quantize_slice(&x[start..start + n], params, &mut out[start..start + n]);
    });
    T::wrap(out.into())
}

/// A function of each element of the first input, for the trace.
fn of_each(function: impl Fn(&mut [f32], &[f32]) + Send + Sync + 'static, dtype: DType) -> Traced {
    Traced { function: Box::new(function), operands: vec![0], rank: 0, dtype, bounds: None }
}

fn dequantize(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let scale_type = call.input(1)?.dtype();
    let to = if call.int("output_dtype", 0) == 0 { scale_type } else { call.dtype("output_dtype", scale_type)? };
    if let Some(z) = call.optional(2)? {
        ensure!(z.dtype() == x.dtype(), "input 2 has element type {}, expected {} as input 0", z.dtype(), x.dtype());
    }
    let scale = scales(call)?;
    let over = granularity(call, x.shape(), call.input(1)?.shape())?;
    if let (Some(trace), DType::F32, [scale], Granularity::Tensor) = (call.fusion.trace, to, &scale[..], over)
        && x.dtype().is_integer()
        && x.dtype().bits() <= 16
    {
        let (scale, zero_point) = (*scale, zero_points(call, 1)?[0]);
        let function = move |x: &mut [f32], _: &[f32]| affine::scale_slice(x, scale, zero_point);
        return trace.record(of_each(function, to));
    }
    let mut out = buffer(x.len());
    if x.dtype().is_float() {
        ensure!(x.dtype().bits() <= 8, "input 0 has element type {}, expected a quantized type", x.dtype());
        // A zero point of a small float is 0 by definition.
        let v = x.to_f32s()?;
        over.for_each_run(v.len(), |start, n, p, n_params| {
            for i in 0..n {
                out[start + i] = v[start + i] * scale[p + if n_params == 1 { 0 } else { i }];
            }
        });
    } else {
        let zero_point = zero_points(call, scale.len())?;
        let out = &mut out;
        match x.data() {
            Data::I8(b) => real(b.as_slice(), over, &scale, &zero_point, out),
            Data::U8(b) => real(b.as_slice(), over, &scale, &zero_point, out),
            Data::I16(b) => real(b.as_slice(), over, &scale, &zero_point, out),
            Data::U16(b) => real(b.as_slice(), over, &scale, &zero_point, out),
            Data::I32(b) => real(b.as_slice(), over, &scale, &zero_point, out),
            _ => bail!("input 0 has element type {}, expected a quantized type", x.dtype()),
        }
    }
    Ok(cast(&Tensor::new(x.shape(), out)?, to, true)?.into())
}

fn real<T: Quantized>(q: &[T], over: Granularity, scale: &[f32], zero_point: &[i32], out: &mut [f32]) {
    over.for_each_run(q.len(), |start, n, p, n_params| {
        let params = Params { scale: &scale[p..p + n_params], zero_point: &zero_point[p..p + n_params], range: (0, 0) };
        affine::dequantize_slice(&q[start..start + n], params, &mut out[start..start + n]);
    });
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{DType, Tensor};

    fn v(v: &[f32]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    #[test]
    fn per_tensor() {
        let x = v(&[0.0, 2.0, 3.0, 1000.0, -254.0, -1000.0]);
        let q = Tensor::vector(vec![128u8, 129, 130, 255, 1, 0]);
        let case = || Case::new("QuantizeLinear", 10).input(x.clone()).input(Tensor::scalar(2.0f32));
        case().input(Tensor::scalar(128u8)).expect(&[q.clone()]);
        case().expect(&[Tensor::vector(vec![0u8, 1, 2, 255, 0, 0])]);
        let y = v(&[0.0, 2.0, 4.0, 254.0, -254.0, -256.0]);
        Case::new("DequantizeLinear", 10)
            .input(q)
            .input(Tensor::scalar(2.0f32))
            .input(Tensor::scalar(128u8))
            .expect(&[y]);
        case().input(Tensor::vector(vec![1u8, 2])).fails("input 2 has shape [2]");
    }

    #[test]
    fn per_axis_and_in_blocks() {
        let x = Tensor::of(&[2, 4], vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let zero = |n: usize| Tensor::vector(vec![0i8; n]);
        let q = |v: [i8; 8]| Tensor::of(&[2, 4], v.to_vec());
        Case::new("QuantizeLinear", 13)
            .attr("axis", 0i64)
            .input(x.clone())
            .input(v(&[1.0, 2.0]))
            .input(zero(2))
            .expect(&[q([1, 2, 3, 4, 2, 3, 4, 4])]);
        Case::new("QuantizeLinear", 13)
            .input(x.clone())
            .input(v(&[1.0, 2.0, 3.0, 4.0]))
            .input(zero(4))
            .expect(&[q([1, 1, 1, 1, 5, 3, 2, 2])]);
        let scale = Tensor::of(&[2, 2], vec![1.0f32, 2.0, 5.0, 1.0]);
        let zeros = Tensor::of(&[2, 2], vec![0i8; 4]);
        let blocks = q([1, 2, 3, 2, 1, 1, 1, 8]);
        Case::new("QuantizeLinear", 21)
            .attr("block_size", 3i64)
            .input(x.clone())
            .input(scale.clone())
            .input(zeros.clone())
            .expect(&[blocks.clone()]);
        let y = Tensor::of(&[2, 4], vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 8.0]);
        Case::new("DequantizeLinear", 21).attr("block_size", 3i64).input(blocks).input(scale).input(zeros).expect(&[y]);
        let scale = Tensor::of(&[1, 4], vec![1.0f32, 2.0, 3.0, 4.0]);
        Case::new("DequantizeLinear", 21)
            .attr("block_size", 2i64)
            .attr("axis", 0i64)
            .input(q([1; 8]))
            .input(scale)
            .expect(&[Tensor::of(&[2, 4], vec![1.0f32, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0])]);
        Case::new("QuantizeLinear", 13).input(x).input(v(&[1.0, 2.0])).fails("input 1 has shape [2], expected [4]");
    }

    #[test]
    fn narrow_types() {
        let to = |d: DType| i64::from(d.code());
        let x = v(&[-3.0, 0.4, 9.0]);
        let case = |d: DType| {
            Case::new("QuantizeLinear", 25).attr("output_dtype", to(d)).input(x.clone()).input(Tensor::scalar(1.0f32))
        };
        let stored = |v: Vec<i8>, d: DType| Tensor::vector(v).retyped(d).unwrap();
        case(DType::I4).expect(&[stored(vec![-3, 0, 7], DType::I4)]);
        case(DType::I2).expect(&[stored(vec![-2, 0, 1], DType::I2)]);
        case(DType::F8E4M3FN).expect(&[Tensor::vector(vec![0xc4u8, 0x2d, 0x51]).retyped(DType::F8E4M3FN).unwrap()]);
        case(DType::F32).fails("the quantized type is float");
    }
}
