//! Reductions over axes: `ReduceSum`, `ReduceMean`, `ReduceMax`, `ReduceMin`, `ReduceProd`, `ReduceL1`, `ReduceL2`,
//! `ReduceSumSquare`, `ReduceLogSum`, `ReduceLogSumExp`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ReduceSum.html> and so on (opsets 1, 11: axes as attribute;
//! `ReduceSum` 13, others 18: as input, `noop_with_empty_axes`; `ReduceMax`/`Min` 20: bool)
//! Inputs: data of T; axes? int64. Output: of T; reduced dimensions are 1, or gone with `keepdims` 0.
//! T: floats and integers (in 64 bits, wrapping). No elements: 0, 1, the type's smallest or largest value.
//! Quantized: `ReduceMax`, `ReduceMin` select elements; `ReduceMean`, `ReduceSum` with an observed output range.
//! Errors: an axis out of range or given twice; a type that the operator does not take.

use super::elementwise::{KEEP, PARALLEL_FROM, is_half, map_tensor, scalars, zip_in_place};
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, OutputRange, QuantRule, Slots, call};
use crate::error::{Result, bail};
use crate::ir::Dim;
use crate::kernels::simd::{self, Kernel};
use crate::kernels::{for_each_chunk, rows};
use crate::tensor::broadcast::for_each_row;
use crate::tensor::cast::{Number, cast, from_f64s};
use crate::tensor::{DType, Element, Tensor};

const REDUCE: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::range(1, 2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval: |_| bail!("no evaluation"),
    quant: KEEP,
};

const OBSERVED: QuantRule = QuantRule::Combine { data: Slots::These(&[0]), output: OutputRange::Observed };

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "ReduceL1", eval: |c| eval(c, Op::L1), ..REDUCE },
    OpDef { name: "ReduceL2", eval: |c| eval(c, Op::L2), ..REDUCE },
    OpDef { name: "ReduceLogSum", eval: |c| eval(c, Op::LogSum), ..REDUCE },
    OpDef { name: "ReduceLogSumExp", eval: |c| eval(c, Op::LogSumExp), ..REDUCE },
    OpDef { name: "ReduceMax", eval: |c| eval(c, Op::Max), quant: QuantRule::Share, ..REDUCE },
    OpDef { name: "ReduceMean", eval: |c| eval(c, Op::Mean), quant: OBSERVED, ..REDUCE },
    OpDef { name: "ReduceMin", eval: |c| eval(c, Op::Min), quant: QuantRule::Share, ..REDUCE },
    OpDef { name: "ReduceProd", eval: |c| eval(c, Op::Prod), ..REDUCE },
    OpDef { name: "ReduceSum", eval: |c| eval(c, Op::Sum), quant: OBSERVED, ..REDUCE },
    OpDef { name: "ReduceSumSquare", eval: |c| eval(c, Op::SumSquare), ..REDUCE },
];

pub(super) const REVERSE: &[Reverse] = &[
    Reverse::of("ReduceL1", |b| reverse(b, |g, x, _, _| g * if x == 0.0 { 0.0 } else { x.signum() })),
    Reverse::of("ReduceL2", |b| reverse(b, |g, x, y, _| if y == 0.0 { 0.0 } else { g * x / y })),
    Reverse::of("ReduceLogSum", |b| reverse(b, |g, _, y, _| g * (-y).exp())),
    Reverse::of("ReduceLogSumExp", |b| reverse(b, |g, x, y, _| g * (x - y).exp())),
    Reverse::of("ReduceMax", reverse_select),
    Reverse::of("ReduceMean", |b| reverse(b, |g, _, _, n| g / n)),
    Reverse::of("ReduceMin", reverse_select),
    Reverse::of("ReduceSum", |b| reverse(b, |g, _, _, _| g)),
    Reverse::of("ReduceSumSquare", |b| reverse(b, |g, x, _, _| 2.0 * g * x)),
];

/// The output's shape with the reduced dimensions 1.
fn kept_shape(b: &Back<'_>) -> Result<Vec<usize>> {
    let shape = b.input(0)?.shape();
    let list = match (b.attrs.ints("axes"), b.optional(1)) {
        (Some(v), _) => Some(v.to_vec()),
        (None, Some(t)) => Some(t.to_i64s()?),
        _ => None,
    };
    let axes = axes_of(list, b.int("noop_with_empty_axes", 0) != 0, shape.len())?;
    Ok(shape.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect())
}

/// `slope(g, x, y, n)` of each element: with its output, the output's gradient and the number of elements in it.
fn reverse(b: &Back<'_>, slope: fn(f32, f32, f32, f32) -> f32) -> Result<Gradients> {
    let (x, y, g) = (b.input(0)?, b.output(0)?.to_f32s()?, b.gradient()?);
    let v = x.to_f32s()?;
    let n = v.len() as f32 / g.len().max(1) as f32;
    let mut dx = vec![0.0f32; v.len()];
    for_each_row(x.shape(), [&kept_shape(b)?], |o, [at], len, [step]| {
        for (i, (dx, &x)) in dx[o..o + len].iter_mut().zip(&v[o..o + len]).enumerate() {
            let from = at + i * step;
            *dx = slope(g[from], x, y[from], n);
        }
    });
    Ok(vec![b.made(0, || Ok(dx))?])
}

/// The first element that equals the extreme takes the gradient.
fn reverse_select(b: &Back<'_>) -> Result<Gradients> {
    let (x, y) = (b.input(0)?, b.output(0)?.to_f32s()?);
    let (v, mut left) = (x.to_f32s()?, b.gradient()?.to_vec());
    let mut dx = vec![0.0f32; v.len()];
    for_each_row(x.shape(), [&kept_shape(b)?], |o, [at], len, [step]| {
        for i in 0..len {
            let from = at + i * step;
            if v[o + i] == y[from] {
                dx[o + i] = std::mem::take(&mut left[from]);
            }
        }
    });
    Ok(vec![b.made(0, || Ok(dx))?])
}

/// A reduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    L1,
    L2,
    LogSum,
    LogSumExp,
    Max,
    Mean,
    Min,
    Prod,
    Sum,
    SumSquare,
}

/// The axes to reduce, given a rank; `None` when they are not known.
fn axes_of(list: Option<Vec<i64>>, is_noop: bool, rank: usize) -> Result<Vec<usize>> {
    match list {
        Some(v) if !v.is_empty() => call::axes(&v, rank),
        _ if is_noop => Ok(Vec::new()),
        _ => Ok((0..rank).collect()),
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype(0);
    let keep = ctx.attrs.int("keepdims").unwrap_or(1) != 0;
    let list = ctx.attrs.ints("axes").map(<[i64]>::to_vec);
    let Some(shape) = ctx.shape(0).map(<[Dim]>::to_vec) else {
        ctx.set_tensor(0, dtype, None);
        return Ok(());
    };
    let is_noop = ctx.attrs.int("noop_with_empty_axes").unwrap_or(0) != 0;
    let list = if list.is_none() && ctx.has(1) {
        match ctx.ints(1) {
            Some(v) => Some(v),
            // Unknown axes: with keepdims the rank is known at least.
            None => {
                let shape = keep.then(|| vec![Dim::Unknown; shape.len()]);
                ctx.set_tensor(0, dtype, shape);
                return Ok(());
            }
        }
    } else {
        list
    };
    let axes = axes_of(list, is_noop, shape.len())?;
    let out = shape.into_iter().enumerate().filter_map(|(i, d)| match (axes.contains(&i), keep) {
        (false, _) => Some(d),
        (true, true) => Some(Dim::Known(1)),
        (true, false) => None,
    });
    let out = out.collect();
    ctx.set_tensor(0, dtype, Some(out));
    Ok(())
}

fn eval(call: &mut Call<'_>, op: Op) -> Result<Vec<Item>> {
    let x = call.take(0)?;
    let list = match (call.attrs.ints("axes"), call.optional(1)?) {
        (Some(v), _) => Some(v.to_vec()),
        (None, Some(t)) => Some(t.to_i64s()?),
        _ => None,
    };
    let axes = axes_of(list, call.flag("noop_with_empty_axes", false), x.rank())?;
    let y = reduce(&x, &axes, op, call.threads)?;
    if call.flag("keepdims", true) {
        return Ok(y.into());
    }
    let shape: Vec<usize> = (0..x.rank()).filter(|i| !axes.contains(i)).map(|i| x.shape()[i]).collect();
    Ok(y.reshaped(&shape)?.into())
}

/// The tensor reduced over these axes, which have size 1 in the result.
pub(super) fn reduce(x: &Tensor, axes: &[usize], op: Op, threads: usize) -> Result<Tensor> {
    let plan = Plan::new(x.shape(), axes);
    match x.dtype() {
        DType::F32 => reduce_f32(x, &plan, op, threads),
        d if is_half(d) => cast(&reduce(&cast(x, DType::F32, true)?, axes, op, threads)?, d, true),
        DType::F64 => reduce_f64(x, &plan, op),
        DType::Bool if matches!(op, Op::Max | Op::Min) => {
            let v = cast(x, DType::U8, true)?;
            cast(&reduce(&v, axes, op, threads)?, DType::Bool, true)
        }
        DType::U64 => reduce_integers::<u64>(x, &plan, op),
        DType::I64 => reduce_integers::<i64>(x, &plan, op),
        d if d.is_integer() => {
            let bounds = if plan.n == 0 && matches!(op, Op::Max | Op::Min) { Some(bound(d, op)) } else { None };
            match bounds {
                Some(b) => from_f64s(d, &plan.shape, vec![b; plan.n_outputs()]),
                None => cast(&reduce(&cast(x, DType::I64, true)?, axes, op, threads)?, d, true),
            }
        }
        d => bail!("input 0 has element type {d}, expected a number type"),
    }
}

/// Dimensions of a reduction, adjacent ones of a kind merged, sizes of 1 dropped.
struct Plan {
    /// (size, whether it is reduced), outermost first.
    dims: Vec<(usize, bool)>,
    /// Shape of the output with the reduced dimensions 1.
    shape: Vec<usize>,
    /// Elements that one output is made of.
    n: usize,
}

impl Plan {
    fn new(shape: &[usize], axes: &[usize]) -> Self {
        let mut dims: Vec<(usize, bool)> = Vec::new();
        for (i, &d) in shape.iter().enumerate().filter(|(_, d)| **d != 1) {
            let reduced = axes.contains(&i);
            match dims.last_mut() {
                Some((n, r)) if *r == reduced => *n *= d,
                _ => dims.push((d, reduced)),
            }
        }
        let n = axes.iter().map(|&a| shape[a]).product();
        let shape = shape.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect();
        Plan { dims, shape, n }
    }

    fn n_outputs(&self) -> usize {
        self.shape.iter().product()
    }

    /// Calls `row(input_offset, output_offset)` for each innermost row, in order.
    fn for_each_row(dims: &[(usize, bool)], mut row: impl FnMut(usize, usize)) {
        let Some((&(len, _), outer)) = dims.split_last() else {
            row(0, 0);
            return;
        };
        if dims.iter().any(|d| d.0 == 0) {
            return;
        }
        let mut strides = vec![0; outer.len()];
        let mut n = if dims[dims.len() - 1].1 { 1 } else { len };
        for (s, &(size, reduced)) in strides.iter_mut().zip(outer).rev() {
            if !reduced {
                *s = n;
                n *= size;
            }
        }
        let mut index = vec![0; outer.len()];
        let (mut i, mut o) = (0, 0);
        loop {
            row(i, o);
            i += len;
            let mut d = outer.len();
            loop {
                if d == 0 {
                    return;
                }
                d -= 1;
                index[d] += 1;
                o += strides[d];
                if index[d] < outer[d].0 {
                    break;
                }
                o -= strides[d] * outer[d].0;
                index[d] = 0;
            }
        }
    }

    /// A plain fold, for the types that need not be fast.
    fn fold<T: Copy, A: Copy>(&self, x: &[T], init: A, f: impl Fn(A, T) -> A) -> Vec<A> {
        let mut out = vec![init; self.n_outputs()];
        let (len, reduced) = self.dims.last().copied().unwrap_or((1, true));
        Self::for_each_row(&self.dims, |i, o| {
            for (j, &v) in x[i..i + len].iter().enumerate() {
                let at = &mut out[if reduced { o } else { o + j }];
                *at = f(*at, v);
            }
        });
        out
    }
}

/// What is added up, or compared, in 32 bits.
struct Fold<'a> {
    x: &'a [f32],
    dims: &'a [(usize, bool)],
    op: Op,
    out: &'a mut [f64],
}

impl Kernel for Fold<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Fold { x, dims, op, out } = self;
        let (len, reduced) = dims.last().copied().unwrap_or((1, true));
        macro_rules! rows {
            ($row:expr, $combine:expr, $of:expr) => {
                Plan::for_each_row(
                    dims,
                    #[inline(always)]
                    |i, o| {
                        let v = &x[i..i + len];
                        if reduced {
                            out[o] = $combine(out[o], $row(v));
                        } else {
                            for (o, &x) in out[o..o + len].iter_mut().zip(v) {
                                *o = $combine(*o, f64::from($of(x)));
                            }
                        }
                    },
                )
            };
        }
        let add = |a: f64, b: f64| a + b;
        match op {
            Op::L1 => rows!(|v| rows::sum_of(v, f32::abs), add, f32::abs),
            Op::L2 | Op::SumSquare => rows!(|v| rows::sum_of(v, |x| x * x), add, |x: f32| x * x),
            Op::Max => rows!(|v| f64::from(rows::max(v)), nan_max, |x| x),
            Op::Min => rows!(|v| f64::from(rows::min(v)), nan_min, |x| x),
            Op::Prod => rows!(|v: &[f32]| v.iter().map(|&x| f64::from(x)).product(), |a: f64, b: f64| a * b, |x| x),
            Op::Sum | Op::Mean | Op::LogSum | Op::LogSumExp => rows!(|v| rows::sum_of(v, |x| x), add, |x| x),
        }
    }
}

#[inline(always)]
fn nan_max(a: f64, b: f64) -> f64 {
    if a > b || a.is_nan() { a } else { b }
}

#[inline(always)]
fn nan_min(a: f64, b: f64) -> f64 {
    if a < b || a.is_nan() { a } else { b }
}

fn init(op: Op) -> f64 {
    match op {
        Op::Max => f64::NEG_INFINITY,
        Op::Min => f64::INFINITY,
        Op::Prod => 1.0,
        _ => 0.0,
    }
}

fn finish(op: Op, acc: f64, n: usize) -> f64 {
    match op {
        Op::L2 => acc.sqrt(),
        Op::Mean => acc / n as f64,
        Op::LogSum | Op::LogSumExp => acc.ln(),
        _ => acc,
    }
}

scalars! {
    Exp {} |x| crate::kernels::math::exp(x), x.exp();
    /// What is subtracted must be finite.
    ZeroIfInfinite {} |x| if x.is_finite() { x } else { 0.0 }, if x.is_finite() { x } else { 0.0 };
}

/// The logarithm of the sum of exponentials, without overflow.
fn log_sum_exp(x: &Tensor, plan: &Plan, axes_max: Tensor, threads: usize) -> Result<Tensor> {
    let shift = map_tensor(axes_max, 1, ZeroIfInfinite {})?;
    let log = if x.dtype() == DType::F32 {
        let e = map_tensor(zip_in_place::<f32>(x.clone(), shift.clone(), threads, |x, m| x - m)?, threads, Exp {})?;
        reduce_f32(&e, plan, Op::LogSum, threads)?
    } else {
        let e = map_tensor(zip_in_place::<f64>(x.clone(), shift.clone(), threads, |x, m| x - m)?, threads, Exp {})?;
        reduce_f64(&e, plan, Op::LogSum)?
    };
    if x.dtype() == DType::F32 {
        zip_in_place::<f32>(log, shift, 1, |a, b| a + b)
    } else {
        zip_in_place::<f64>(log, shift, 1, |a, b| a + b)
    }
}

fn reduce_f32(x: &Tensor, plan: &Plan, op: Op, threads: usize) -> Result<Tensor> {
    if op == Op::LogSumExp {
        let m = reduce_f32(x, plan, Op::Max, threads)?;
        return log_sum_exp(x, plan, m, threads);
    }
    let v = x.slice::<f32>()?;
    let mut acc = vec![init(op); plan.n_outputs()];
    match plan.dims.split_first() {
        Some((&(size, false), rest)) if threads > 1 && v.len() >= PARALLEL_FROM && !rest.is_empty() => {
            // Over the outermost kept dimension: each output is still one chain of additions.
            let (ins, outs) = (v.len() / size, acc.len() / size);
            for_each_chunk(threads, &mut acc, outs, &|i, out| {
                simd::run(Fold { x: &v[i * ins..(i + 1) * ins], dims: rest, op, out });
            });
        }
        _ => simd::run(Fold { x: v, dims: &plan.dims, op, out: &mut acc }),
    }
    Tensor::new(&plan.shape, acc.into_iter().map(|a| finish(op, a, plan.n) as f32).collect())
}

fn reduce_f64(x: &Tensor, plan: &Plan, op: Op) -> Result<Tensor> {
    let v = x.slice::<f64>()?;
    let acc = match op {
        Op::L1 => plan.fold(v, 0.0, |a, x: f64| a + x.abs()),
        Op::L2 | Op::SumSquare => plan.fold(v, 0.0, |a, x| a + x * x),
        Op::Max => plan.fold(v, init(op), nan_max),
        Op::Min => plan.fold(v, init(op), nan_min),
        Op::Prod => plan.fold(v, 1.0, |a, x| a * x),
        Op::Sum | Op::Mean | Op::LogSum => plan.fold(v, 0.0, |a, x| a + x),
        Op::LogSumExp => {
            let m = reduce_f64(x, plan, Op::Max)?;
            return log_sum_exp(x, plan, m, 1);
        }
    };
    Tensor::new(&plan.shape, acc.into_iter().map(|a| finish(op, a, plan.n)).collect::<Vec<f64>>())
}

/// The value that no element of an integer type exceeds in `Max`, or falls below in `Min`.
fn bound(dtype: DType, op: Op) -> f64 {
    let bits = dtype.bits() as i32;
    match (op == Op::Max, dtype.is_signed_integer()) {
        (true, true) => -(2f64.powi(bits - 1)),
        (true, false) => 0.0,
        (false, true) => 2f64.powi(bits - 1) - 1.0,
        (false, false) => 2f64.powi(bits) - 1.0,
    }
}

/// Sums and products in 64 bits, wrapping; what needs a root or a logarithm in floats, truncated.
fn reduce_integers<T: Number + Element>(x: &Tensor, plan: &Plan, op: Op) -> Result<Tensor> {
    let v = x.slice::<T>()?;
    let dtype = x.dtype();
    if plan.n == 0 && matches!(op, Op::Max | Op::Min) {
        return from_f64s(dtype, &plan.shape, vec![bound(dtype, op); plan.n_outputs()]);
    }
    let select = |better: fn(T, T) -> T| {
        let acc = plan.fold(v, None, |a: Option<T>, x| Some(a.map_or(x, |a| better(a, x))));
        acc.into_iter().map(Option::unwrap_or_default).collect::<Vec<T>>()
    };
    let wrapped = |v: Vec<i64>| v.into_iter().map(T::from_i64).collect::<Vec<T>>();
    let floats = |acc: Vec<f64>| acc.into_iter().map(|a| T::from_f64(finish(op, a, plan.n))).collect::<Vec<T>>();
    let out = match op {
        Op::Max => select(|a, b| if b > a { b } else { a }),
        Op::Min => select(|a, b| if b < a { b } else { a }),
        Op::Sum => wrapped(plan.fold(v, 0i64, |a, x| a.wrapping_add(x.to_i64()))),
        Op::L1 => wrapped(plan.fold(v, 0i64, |a, x| a.wrapping_add(x.to_i64().wrapping_abs()))),
        Op::SumSquare => wrapped(plan.fold(v, 0i64, |a, x| a.wrapping_add(x.to_i64().wrapping_mul(x.to_i64())))),
        Op::Prod => wrapped(plan.fold(v, 1i64, |a, x| a.wrapping_mul(x.to_i64()))),
        Op::Mean => {
            let sums = plan.fold(v, 0i64, |a, x| a.wrapping_add(x.to_i64()));
            wrapped(sums.into_iter().map(|s| s.checked_div(plan.n as i64).unwrap_or(0)).collect())
        }
        Op::L2 => floats(plan.fold(v, 0.0, |a, x| a + x.to_f64() * x.to_f64())),
        Op::LogSum => floats(plan.fold(v, 0.0, |a, x| a + x.to_f64())),
        Op::LogSumExp => floats(plan.fold(v, 0.0, |a, x| a + x.to_f64().exp())),
    };
    Tensor::new(&plan.shape, out)?.retyped(dtype)
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn x() -> Tensor {
        Tensor::of(&[2, 3], vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])
    }

    fn v(v: &[f32]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    #[test]
    fn over_either_axis() {
        let l = |v: f32| v.ln();
        for (op, columns, rows) in [
            ("ReduceSum", [5.0, 7.0, 9.0], [6.0, 15.0]),
            ("ReduceMean", [2.5, 3.5, 4.5], [2.0, 5.0]),
            ("ReduceMax", [4.0, 5.0, 6.0], [3.0, 6.0]),
            ("ReduceMin", [1.0, 2.0, 3.0], [1.0, 4.0]),
            ("ReduceProd", [4.0, 10.0, 18.0], [6.0, 120.0]),
            ("ReduceL1", [5.0, 7.0, 9.0], [6.0, 15.0]),
            ("ReduceL2", [17f32.sqrt(), 29f32.sqrt(), 45f32.sqrt()], [14f32.sqrt(), 77f32.sqrt()]),
            ("ReduceSumSquare", [17.0, 29.0, 45.0], [14.0, 77.0]),
            ("ReduceLogSum", [l(5.0), l(7.0), l(9.0)], [l(6.0), l(15.0)]),
            ("ReduceLogSumExp", [4.048_587_3, 5.048_587_3, 6.048_587_3], [3.407_606, 6.407_606]),
        ] {
            let case = |axis: i64| Case::new(op, 11).attr("axes", vec![axis]).attr("keepdims", 0i64).input(x());
            case(0).tolerance(1e-6).expect(&[v(&columns)]);
            case(-1).tolerance(1e-6).expect(&[v(&rows)]);
            let axes = Tensor::vector(vec![0i64]);
            let y = Tensor::of(&[1, 3], columns.to_vec());
            Case::new(op, 18).input(x()).input(axes).tolerance(1e-6).expect(&[y]);
        }
    }

    #[test]
    fn all_none_and_empty() {
        Case::new("ReduceSum", 13).input(x()).expect(&[Tensor::of(&[1, 1], vec![21.0f32])]);
        Case::new("ReduceSum", 13).input(x()).attr("noop_with_empty_axes", 1i64).expect(&[x()]);
        let empty = Tensor::of(&[2, 0], Vec::<f32>::new());
        for (op, y) in [
            ("ReduceSum", 0.0),
            ("ReduceProd", 1.0),
            ("ReduceMax", f32::NEG_INFINITY),
            ("ReduceLogSumExp", f32::NEG_INFINITY),
        ] {
            let axes = Tensor::vector(vec![1i64]);
            let y = Tensor::of(&[2, 1], vec![y; 2]);
            Case::new(op, 18).input(empty.clone()).input(axes).expect(&[y]);
        }
        Case::new("ReduceSum", 11).attr("axes", vec![2i64]).input(x()).fails("axis 2 is out of range for rank 2");
        Case::new("ReduceSum", 11).attr("axes", vec![0i64, -2]).input(x()).fails("given twice");
        Case::new("ReduceSum", 13).input(Tensor::scalar(true)).fails("element type bool");
    }

    #[test]
    fn integers_and_bools() {
        let i = Tensor::of(&[2, 2], vec![i64::MAX, 1, -5, 2]);
        let axes = || Tensor::vector(vec![1i64]);
        let y = |a: i64, b: i64| Tensor::of(&[2, 1], vec![a, b]);
        Case::new("ReduceMax", 18).input(i.clone()).input(axes()).expect(&[y(i64::MAX, 2)]);
        Case::new("ReduceSum", 13).input(i.clone()).input(axes()).expect(&[y(i64::MIN, -3)]);
        Case::new("ReduceL2", 18).input(Tensor::vector(vec![3i32, 4])).expect(&[Tensor::vector(vec![5i32])]);
        let b = Tensor::vector(vec![true, false]);
        Case::new("ReduceMax", 20).input(b.clone()).expect(&[Tensor::vector(vec![true])]);
        Case::new("ReduceMin", 20).input(b).expect(&[Tensor::vector(vec![false])]);
    }

    #[test]
    fn middle_axes_and_several() {
        let x = Tensor::of(&[2, 2, 2], (1..=8).map(|i| i as f32).collect());
        let case =
            |axes: Vec<i64>| Case::new("ReduceSum", 11).attr("axes", axes).attr("keepdims", 0i64).input(x.clone());
        case(vec![1]).expect(&[Tensor::of(&[2, 2], vec![4.0f32, 6.0, 12.0, 14.0])]);
        case(vec![0, 2]).expect(&[v(&[14.0, 22.0])]);
    }
}
