//! What elementwise operators share: maps and broadcasting zips, in place where the operand is no longer needed.

use super::pointwise::{Function, Trace, Traced};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::kernels::for_each_chunk;
use crate::kernels::simd::{self, Kernel};
use crate::tensor::broadcast::{broadcast, for_each_row};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Element, Tensor};

/// Elements from which on an operator uses several threads.
pub(super) const PARALLEL_FROM: usize = 1 << 17;
/// Elements per piece of work; fits the first-level cache.
const CHUNK: usize = 4096;

/// Why most elementwise operators stay float.
pub(super) const KEEP: QuantRule = QuantRule::Keep { why: "has no integer arithmetic" };

/// A definition with one input and one output of its type; families override what differs.
pub(super) const UNARY: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_same,
    eval: |_| bail!("no evaluation"),
    quant: KEEP,
};

/// Output 0 has the type and shape of input 0.
pub(super) fn infer_same(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.same_as(0);
    Ok(())
}

/// A function of one real number.
pub(super) trait Scalar: Copy + Sync {
    /// In 32 bits; `#[inline(always)]` and without branches, so that it vectorises.
    fn f32(self, x: f32) -> f32;
    /// In 64 bits.
    fn f64(self, x: f64) -> f64;
}

/// Declares structs that implement [`Scalar`]; parameters are `f32` attributes.
macro_rules! scalars {
    ($($(#[$meta:meta])* $name:ident { $($p:ident),* } |$x:ident| $f32:expr, $f64:expr;)*) => { $(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy)]
        struct $name { $($p: f32),* }
        impl $crate::ops::elementwise::Scalar for $name {
            #[inline(always)]
            fn f32(self, $x: f32) -> f32 {
                let $name { $($p),* } = self;
                $f32
            }
            #[inline]
            fn f64(self, $x: f64) -> f64 {
                let $name { $($p),* } = self;
                $(let $p = f64::from($p);)*
                $f64
            }
        }
    )* };
}
pub(super) use scalars;

struct Map<'a, F>(&'a mut [f32], F);

impl<F: Scalar> Kernel for Map<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for x in self.0 {
            *x = self.1.f32(*x);
        }
    }
}

/// `f` of every element, in place.
pub(super) fn map_f32s<F: Scalar>(v: &mut [f32], threads: usize, f: F) {
    in_chunks(v, threads, &|c| simd::run(Map(c, f)));
}

/// `f` of pieces, on several threads when they are many.
fn in_chunks(v: &mut [f32], threads: usize, f: &(dyn Fn(&mut [f32]) + Sync)) {
    let threads = if v.len() >= PARALLEL_FROM { threads } else { 1 };
    for_each_chunk(threads, v, 8 * CHUNK, &|_, c| f(c));
}

/// `f` of every element of a buffer, in place.
pub(super) fn each<T: Copy>(b: &mut crate::tensor::Buf<T>, f: impl Fn(T) -> T) {
    b.make_mut().iter_mut().for_each(|x| *x = f(*x));
}

/// `f` of every element of a tensor of floats, in place when nobody else holds it.
///
/// # Errors
/// It is no tensor of 16-, 32- or 64-bit floats.
pub(super) fn map_tensor<F: Scalar>(t: Tensor, threads: usize, f: F) -> Result<Tensor> {
    map_slices(t, threads, &|v| simd::run(Map(v, f)), &|v| v.iter_mut().for_each(|x| *x = f.f64(*x)))
}

/// [`map_tensor`] for a function of a slice. All but the loops is behind references here and in [`zip_rows`], so that
/// it is compiled once and not for each operator.
fn map_slices(
    mut t: Tensor,
    threads: usize,
    f32s: &(dyn Fn(&mut [f32]) + Sync),
    f64s: &dyn Fn(&mut [f64]),
) -> Result<Tensor> {
    match t.dtype() {
        DType::F32 => {
            if is_unique::<f32>(&t) {
                in_chunks(t.slice_mut()?, threads, f32s);
                return Ok(t);
            }
            let src = t.slice::<f32>()?;
            if threads > 1 && src.len() >= PARALLEL_FROM {
                let mut out = src.to_vec();
                in_chunks(&mut out, threads, f32s);
                return Tensor::new(t.shape(), out);
            }
            // Piece by piece, so that what was copied is still in the cache.
            let mut out = crate::tensor::buffer(src.len());
            for (out, chunk) in out.chunks_mut(CHUNK).zip(src.chunks(CHUNK)) {
                out.copy_from_slice(chunk);
                f32s(out);
            }
            Tensor::new(t.shape(), out)
        }
        DType::F64 => {
            f64s(t.slice_mut()?);
            Ok(t)
        }
        d @ (DType::F16 | DType::BF16) => {
            let wide = map_slices(cast(&t, DType::F32, true)?, threads, f32s, f64s)?;
            cast(&wide, d, true)
        }
        d => bail!("input 0 has element type {d}, expected a floating-point type"),
    }
}

/// Evaluates, or records, an operator that is a function of each float of input 0.
pub(super) fn map<F: Scalar + Send + 'static>(call: &mut Call<'_>, f: F) -> Result<Vec<Item>> {
    let x = call.take(0)?;
    map_taken(call, x, f)
}

/// [`map`] for input 0 that was taken already.
pub(super) fn map_taken<F: Scalar + Send + 'static>(call: &mut Call<'_>, x: Tensor, f: F) -> Result<Vec<Item>> {
    map_within(call, x, f, None)
}

/// [`map_taken`], with the bounds when all that `f` does is to keep its operand within them.
pub(super) fn map_within<F: Scalar + Send + 'static>(
    call: &mut Call<'_>,
    x: Tensor,
    f: F,
    bounds: Option<(f32, f32)>,
) -> Result<Vec<Item>> {
    if let (Some(trace), DType::F32) = (call.fusion.trace, x.dtype()) {
        let function = Box::new(move |x: &mut [f32], _: &[f32]| map_f32s(x, 1, f));
        return trace.record(Traced { function, operands: vec![0], rank: 0, dtype: DType::F32, bounds });
    }
    Ok(map_tensor(x, call.threads, f)?.into())
}

/// Records a function of the elements of inputs 0 and 1, of which those that stand for tensors are empty and those
/// that are constant have one element.
pub(super) fn trace_zip(
    trace: &Trace,
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(f32, f32) -> f32 + Copy + Send + Sync + 'static,
) -> Result<Vec<Item>> {
    let (function, operands, rank): (Function, _, _) = match (a.slice::<f32>()?, b.slice::<f32>()?) {
        ([], []) => (Box::new(move |x, y| simd::run(Assign { x, y, stride: 1, f })), vec![0, 1], 0),
        ([], &[c]) => (Box::new(move |x, _| simd::run(Assign { x, y: &[c], stride: 0, f })), vec![0], b.rank()),
        (&[c], []) => {
            let turned = move |x, c| f(c, x);
            (Box::new(move |x, _| simd::run(Assign { x, y: &[c], stride: 0, f: turned })), vec![1], a.rank())
        }
        _ => return Ok(Vec::new()),
    };
    trace.record(Traced { function, operands, rank, dtype: DType::F32, bounds: None })
}

/// Whether the elements can be written without a copy.
pub(super) fn is_unique<T: Element>(t: &Tensor) -> bool {
    T::peek(t.data()).is_some_and(crate::tensor::Buf::is_unique)
}

/// The element type that all given inputs have.
///
/// # Errors
/// Two differ.
pub(super) fn same_dtype(call: &Call<'_>) -> Result<DType> {
    let first = call.input(0)?.dtype();
    for i in 1..call.n_inputs() {
        let d = call.input(i)?.dtype();
        ensure!(d == first, "input {i} has element type {d}, expected {first} as input 0");
    }
    Ok(first)
}

/// The element type that all inputs with a known one have.
///
/// # Errors
/// Two differ.
pub(super) fn infer_same_dtype(ctx: &InferCtx<'_>, slots: impl IntoIterator<Item = usize>) -> Result<Option<DType>> {
    let mut found: Option<DType> = None;
    for i in slots {
        if let Some(d) = ctx.dtype(i) {
            ensure!(found.is_none_or(|f| f == d), "input {i} has element type {d}, expected {}", found.unwrap_or(d));
            found = Some(d);
        }
    }
    Ok(found)
}

/// Output 0 has the inputs' common element type and the shape that they broadcast to.
pub(super) fn infer_broadcast(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = ctx.inputs.len();
    let dtype = infer_same_dtype(ctx, 0..n)?;
    let shape = ctx.broadcast(0..n)?;
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

/// Output 0 is boolean and has the shape that the inputs broadcast to.
pub(super) fn infer_predicate(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = ctx.inputs.len();
    infer_same_dtype(ctx, 0..n)?;
    let shape = ctx.broadcast(0..n)?;
    ctx.set_tensor(0, Some(DType::Bool), shape);
    Ok(())
}

/// A row of `x = f(x, y)`: `y` advances by a stride.
struct Assign<'a, T, F> {
    x: &'a mut [T],
    y: &'a [T],
    stride: usize,
    f: F,
}

impl<T: Copy, F: Fn(T, T) -> T> Kernel for Assign<'_, T, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Assign { x, y, stride, f } = self;
        match stride {
            1 => {
                for (x, y) in x.iter_mut().zip(y) {
                    *x = f(*x, *y);
                }
            }
            0 => {
                let y = y[0];
                for x in x {
                    *x = f(*x, y);
                }
            }
            s => {
                for (i, x) in x.iter_mut().enumerate() {
                    *x = f(*x, y[i * s]);
                }
            }
        }
    }
}

/// Rows of the output, a part of its outermost dimension (number `lead`) at a time.
struct Part<'a> {
    shape: &'a [usize],
    lead: usize,
    rows: (usize, usize),
}

impl Part<'_> {
    /// The elements of an operand that belong to the part, and their shape.
    fn of<'a, T>(&self, t: &'a [T], own: &[usize]) -> (&'a [T], Vec<usize>) {
        let skip = self.shape.len() - own.len();
        if skip > self.lead || own.get(self.lead - skip).is_none_or(|&n| n == 1) {
            return (t, own.to_vec());
        }
        let size: usize = own[self.lead - skip + 1..].iter().product();
        let mut shape = own.to_vec();
        shape[self.lead - skip] = self.rows.1 - self.rows.0;
        (&t[self.rows.0 * size..self.rows.1 * size], shape)
    }

    fn shape(&self) -> Vec<usize> {
        let mut shape = self.shape.to_vec();
        if let Some(n) = shape.get_mut(self.lead) {
            *n = self.rows.1 - self.rows.0;
        }
        shape
    }
}

/// Runs `task(part, elements)` for parts of an output of `shape`, on several threads when it is large.
fn for_each_part<T: Send>(threads: usize, shape: &[usize], out: &mut [T], task: &(dyn Fn(&Part<'_>, &mut [T]) + Sync)) {
    let lead = shape.iter().position(|&d| d > 1).unwrap_or(0);
    let row: usize = shape.iter().skip(lead + 1).product();
    if out.is_empty() {
        return;
    }
    let all = out.len() / row;
    let rows = if threads > 1 && out.len() >= PARALLEL_FROM { (8 * CHUNK).div_ceil(row) } else { all };
    for_each_chunk(threads, out, rows * row, &|i, out| {
        task(&Part { shape, lead, rows: (i * rows, i * rows + out.len() / row) }, out);
    });
}

/// Calls a function with the output offset, the operands' offsets, the length and the strides of each row. Behind a
/// reference, so that the walk is compiled once and not for each operator.
fn walk(shape: &[usize], a: &[usize], b: &[usize], row: &mut dyn FnMut(usize, [usize; 2], usize, [usize; 2])) {
    for_each_row(shape, [a, b], row);
}

/// `f` of the broadcast elements of two tensors, as a new tensor of storage type `R`.
///
/// # Errors
/// The shapes do not broadcast; an operand is not stored as `T`.
pub(super) fn zip<T: Element, R: Element>(
    a: &Tensor,
    b: &Tensor,
    threads: usize,
    f: impl Fn(&T, &T) -> R + Sync + Copy,
) -> Result<Tensor> {
    zip_new_rows(a, b, threads, &|out: &mut [R], x: &[T], y: &[T], strides| match strides {
        [1, 1] => out.iter_mut().zip(x).zip(y).for_each(|((o, x), y)| *o = f(x, y)),
        [sx, sy] => out.iter_mut().enumerate().for_each(|(i, o)| *o = f(&x[i * sx], &y[i * sy])),
    })
}

/// [`zip`] for a function that writes a row from where its operands start, with their strides.
fn zip_new_rows<T: Element, R: Element>(
    a: &Tensor,
    b: &Tensor,
    threads: usize,
    row: &(dyn Fn(&mut [R], &[T], &[T], [usize; 2]) + Sync),
) -> Result<Tensor> {
    let shape = broadcast(a.shape(), b.shape())?;
    let mut out = vec![R::default(); crate::tensor::count(&shape)?];
    let (x, y) = (a.slice::<T>()?, b.slice::<T>()?);
    for_each_part(threads, &shape, &mut out, &|part, out| {
        let ((x, x_shape), (y, y_shape)) = (part.of(x, a.shape()), part.of(y, b.shape()));
        walk(&part.shape(), &x_shape, &y_shape, &mut |o, [ix, iy], n, strides| {
            row(&mut out[o..o + n], &x[ix..], &y[iy..], strides);
        });
    });
    Tensor::new(&shape, out)
}

/// Like [`zip`] when the result is stored as the operands are: in place when the first has the result's shape and
/// nobody else holds it.
///
/// # Errors
/// As [`zip`].
pub(super) fn zip_in_place<T: Element + Copy>(
    a: Tensor,
    b: Tensor,
    threads: usize,
    f: impl Fn(T, T) -> T + Sync + Copy,
) -> Result<Tensor> {
    zip_in_place_then(a, b, threads, f, &|_| {})
}

/// What is done with stretches of a result while they are in the cache.
pub(super) type Then<'a, T> = &'a (dyn Fn(&mut [T]) + Sync);

/// [`zip_in_place`], and then `then` with the result.
///
/// # Errors
/// As [`zip`].
pub(super) fn zip_in_place_then<T: Element + Copy>(
    a: Tensor,
    b: Tensor,
    threads: usize,
    f: impl Fn(T, T) -> T + Sync + Copy,
    then: Then<'_, T>,
) -> Result<Tensor> {
    let row = |x: &mut [T], y: &[T], stride: usize| {
        let row = Assign { x, y, stride, f };
        if const { is_hot::<T>() } { simd::run(row) } else { row.run() }
    };
    zip_rows(a, b, threads, &row, then)
}

/// Changes a stretch of a first operand by the second, which advances by a stride.
type Row<'a, T> = &'a (dyn Fn(&mut [T], &[T], usize) + Sync);

/// [`zip_in_place_then`] for a function of rows.
fn zip_rows<T: Element + Copy>(
    mut a: Tensor,
    b: Tensor,
    threads: usize,
    row: Row<'_, T>,
    then: Then<'_, T>,
) -> Result<Tensor> {
    let shape = broadcast(a.shape(), b.shape())?;
    let y = b.slice::<T>()?;
    let assign = |part: &Part<'_>, out: &mut [T], x: Option<&[T]>, x_shape: &[usize]| {
        let (y, y_shape) = part.of(y, b.shape());
        let (x, x_shape) = x.map_or((None, part.shape()), |x| {
            let (x, s) = part.of(x, x_shape);
            (Some(x), s)
        });
        let mut done = 0;
        walk(&part.shape(), &x_shape, &y_shape, &mut |o, [ix, iy], n, [sx, sy]| {
            // Piece by piece, so that what is copied is still in the cache when it is worked on.
            for start in (0..n).step_by(CHUNK) {
                let len = CHUNK.min(n - start);
                let end = o + start + len;
                let all = &mut *out;
                let out = &mut all[o + start..end];
                match (x, sx) {
                    (None, _) => {}
                    (Some(x), 1) => out.copy_from_slice(&x[ix + start..ix + start + len]),
                    (Some(x), 0) => out.fill(x[ix]),
                    (Some(x), s) => out.iter_mut().enumerate().for_each(|(i, o)| *o = x[ix + (start + i) * s]),
                }
                let y = &y[iy + start * sy..];
                row(out, if sy == 1 { &y[..len] } else { y }, sy);
                // Rows come in their order.
                if end - done >= CHUNK {
                    then(&mut all[done..end]);
                    done = end;
                }
            }
        });
        then(&mut out[done..]);
    };
    if a.shape() == shape.as_slice() && is_unique::<T>(&a) {
        for_each_part(threads, &shape, a.slice_mut::<T>()?, &|part, out| assign(part, out, None, &[]));
        return Ok(a);
    }
    let mut out = crate::tensor::buffer_of(crate::tensor::count(&shape)?);
    let x = a.slice::<T>()?;
    for_each_part(threads, &shape, &mut out, &|part, out| assign(part, out, Some(x), a.shape()));
    Tensor::new(&shape, out)
}

/// Like [`zip_in_place`] for an operation whose operands may change places, so that either may be written to.
///
/// # Errors
/// As [`zip`].
pub(super) fn zip_either<T: Element + Copy>(
    a: Tensor,
    b: Tensor,
    threads: usize,
    f: impl Fn(T, T) -> T + Sync + Copy,
) -> Result<Tensor> {
    zip_either_then(a, b, threads, f, &|_| {})
}

/// [`zip_either`], and then `then` with the result.
///
/// # Errors
/// As [`zip`].
pub(super) fn zip_either_then<T: Element + Copy>(
    a: Tensor,
    b: Tensor,
    threads: usize,
    f: impl Fn(T, T) -> T + Sync + Copy,
    then: Then<'_, T>,
) -> Result<Tensor> {
    let shape = broadcast(a.shape(), b.shape())?;
    let fits = |t: &Tensor| t.shape() == shape.as_slice() && is_unique::<T>(t);
    let (a, b) = if fits(&b) && !fits(&a) { (b, a) } else { (a, b) };
    zip_in_place_then(a, b, threads, f, then)
}

/// Whether a loop over `T` is compiled for wide vectors: for the one type that models compute with. The others are
/// compiled once, which keeps builds short.
const fn is_hot<T: Element>() -> bool {
    matches!(T::DTYPE, DType::F32)
}

/// The types that arithmetic is done in, so that not every operator is compiled for every type: 16-bit floats in
/// `f32` (one more rounding, which is harmless: 32 > 2 * 11 + 2 bits), integers in `i64` (what does not fit wraps when
/// it is converted back, as it would have in their own type).
pub(super) fn work_type(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        DType::U64 => DType::U64,
        d if d.is_integer() => DType::I64,
        d => d,
    }
}

/// The rounding of 16-bit float types, for operators that compute in 32 bits inside.
pub(super) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// The type error of an operand.
pub(super) fn wrong_type(slot: usize, dtype: DType, expected: &str) -> crate::error::Result<Vec<Item>> {
    Err(anyhow!("input {slot} has element type {dtype}, expected {expected}"))
}
