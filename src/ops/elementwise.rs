//! What elementwise operators share: maps and broadcasting zips, in place where the operand is no longer needed.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::kernels::simd::{self, Kernel};
use crate::kernels::split;
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
    if threads > 1 && v.len() >= PARALLEL_FROM {
        split::for_each_chunk(threads, v, 8 * CHUNK, |_, c| simd::run(Map(c, f)));
    } else {
        simd::run(Map(v, f));
    }
}

/// `f` of every element of a buffer, in place.
pub(super) fn each<T: Copy>(b: &mut crate::tensor::Buf<T>, f: impl Fn(T) -> T) {
    b.make_mut().iter_mut().for_each(|x| *x = f(*x));
}

/// `f` of every element of a tensor of floats, in place when nobody else holds it.
///
/// # Errors
/// It is no tensor of 16-, 32- or 64-bit floats.
pub(super) fn map_tensor<F: Scalar>(mut t: Tensor, threads: usize, f: F) -> Result<Tensor> {
    match t.dtype() {
        DType::F32 => {
            if is_unique::<f32>(&t) {
                map_f32s(t.slice_mut()?, threads, f);
                return Ok(t);
            }
            let src = t.slice::<f32>()?;
            if threads > 1 && src.len() >= PARALLEL_FROM {
                let mut out = src.to_vec();
                map_f32s(&mut out, threads, f);
                return Tensor::new(t.shape(), out);
            }
            // Piece by piece, so that what was copied is still in the cache.
            let mut out = Vec::with_capacity(src.len());
            for chunk in src.chunks(CHUNK) {
                let start = out.len();
                out.extend_from_slice(chunk);
                map_f32s(&mut out[start..], 1, f);
            }
            Tensor::new(t.shape(), out)
        }
        DType::F64 => {
            t.slice_mut::<f64>()?.iter_mut().for_each(|x| *x = f.f64(*x));
            Ok(t)
        }
        d @ (DType::F16 | DType::BF16) => {
            let wide = map_tensor(cast(&t, DType::F32, true)?, threads, f)?;
            cast(&wide, d, true)
        }
        d => bail!("input 0 has element type {d}, expected a floating-point type"),
    }
}

/// Evaluates an operator that is a function of each float of input 0.
pub(super) fn map<F: Scalar>(call: &mut Call<'_>, f: F) -> Result<Vec<Item>> {
    let x = call.take(0)?;
    Ok(map_tensor(x, call.threads, f)?.into())
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

/// Rows of `f(a, b)` over two operands that broadcast to `shape`.
struct Zip<'a, T, R, F> {
    shape: &'a [usize],
    a: (&'a [T], &'a [usize]),
    b: (&'a [T], &'a [usize]),
    out: &'a mut [R],
    f: F,
}

impl<T: Clone, R, F: Fn(&T, &T) -> R> Kernel for Zip<'_, T, R, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Zip { shape, a: (a, a_shape), b: (b, b_shape), out, f } = self;
        for_each_row(
            shape,
            [a_shape, b_shape],
            #[inline(always)]
            |o, [ia, ib], n, inner| {
                let out = &mut out[o..o + n];
                match inner {
                    [1, 1] => {
                        for ((o, x), y) in out.iter_mut().zip(&a[ia..ia + n]).zip(&b[ib..ib + n]) {
                            *o = f(x, y);
                        }
                    }
                    [1, 0] => {
                        let y = b[ib].clone();
                        for (o, x) in out.iter_mut().zip(&a[ia..ia + n]) {
                            *o = f(x, &y);
                        }
                    }
                    [0, 1] => {
                        let x = a[ia].clone();
                        for (o, y) in out.iter_mut().zip(&b[ib..ib + n]) {
                            *o = f(&x, y);
                        }
                    }
                    [sa, sb] => {
                        for (i, o) in out.iter_mut().enumerate() {
                            *o = f(&a[ia + i * sa], &b[ib + i * sb]);
                        }
                    }
                }
            },
        );
    }
}

/// Rows of `a = f(a, b)`, where `b` broadcasts to `a`'s shape.
struct ZipAssign<'a, T, F> {
    shape: &'a [usize],
    a: &'a mut [T],
    b: (&'a [T], &'a [usize]),
    f: F,
}

impl<T: Copy, F: Fn(T, T) -> T> Kernel for ZipAssign<'_, T, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let ZipAssign { shape, a, b: (b, b_shape), f } = self;
        for_each_row(
            shape,
            [b_shape],
            #[inline(always)]
            |o, [ib], n, [inner]| {
                let a = &mut a[o..o + n];
                match inner {
                    1 => {
                        for (x, y) in a.iter_mut().zip(&b[ib..ib + n]) {
                            *x = f(*x, *y);
                        }
                    }
                    0 => {
                        let y = b[ib];
                        for x in a {
                            *x = f(*x, y);
                        }
                    }
                    s => {
                        for (i, x) in a.iter_mut().enumerate() {
                            *x = f(*x, b[ib + i * s]);
                        }
                    }
                }
            },
        );
    }
}

/// Whether a loop over `T` is compiled for wide vectors and in place: for the one type that models compute with. The
/// others are compiled once, which keeps builds short.
const fn is_hot<T: Element>() -> bool {
    matches!(T::DTYPE, DType::F32)
}

fn zip_rows<T: Element, R: Element, F: Fn(&T, &T) -> R>(zip: Zip<'_, T, R, F>) {
    if const { is_hot::<T>() } { simd::run(zip) } else { zip.run() }
}

/// A part of an operand that belongs to rows `from..to` of the output's outermost dimension (at `lead`).
fn part<'a, T>(
    v: &'a [T],
    shape: &[usize],
    output: &[usize],
    lead: usize,
    rows: (usize, usize),
) -> (&'a [T], Vec<usize>) {
    let skip = output.len() - shape.len();
    if skip > lead || shape[lead - skip] == 1 {
        return (v, shape.to_vec());
    }
    let size: usize = shape[lead - skip + 1..].iter().product();
    let mut own = shape.to_vec();
    own[lead - skip] = rows.1 - rows.0;
    (&v[rows.0 * size..rows.1 * size], own)
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
    let shape = broadcast(a.shape(), b.shape())?;
    let mut out = vec![R::default(); crate::tensor::count(&shape)?];
    let (x, y) = (a.slice::<T>()?, b.slice::<T>()?);
    let lead = shape.iter().position(|&d| d > 1);
    match lead {
        Some(lead) if threads > 1 && out.len() >= PARALLEL_FROM => {
            let row: usize = shape[lead + 1..].iter().product();
            let rows = (8 * CHUNK).div_ceil(row);
            split::for_each_chunk(threads, &mut out, rows * row, |i, out| {
                let range = (i * rows, i * rows + out.len() / row);
                let (x, x_shape) = part(x, a.shape(), &shape, lead, range);
                let (y, y_shape) = part(y, b.shape(), &shape, lead, range);
                let mut own = shape.clone();
                own[lead] = range.1 - range.0;
                zip_rows(Zip { shape: &own, a: (x, &x_shape), b: (y, &y_shape), out, f });
            });
        }
        _ => zip_rows(Zip { shape: &shape, a: (x, a.shape()), b: (y, b.shape()), out: &mut out, f }),
    }
    Tensor::new(&shape, out)
}

/// Like [`zip`] when the result is stored as the operands are: in place when one of them has the result's shape and
/// nobody else holds it.
///
/// # Errors
/// As [`zip`].
pub(super) fn zip_in_place<T: Element + Copy>(
    mut a: Tensor,
    mut b: Tensor,
    threads: usize,
    f: impl Fn(T, T) -> T + Sync + Copy,
) -> Result<Tensor> {
    let shape = broadcast(a.shape(), b.shape())?;
    if const { !is_hot::<T>() } {
        return zip::<T, T>(&a, &b, threads, |x, y| f(*x, *y));
    }
    let parallel = threads > 1 && crate::tensor::count(&shape)? >= PARALLEL_FROM;
    if !parallel && a.shape() == shape.as_slice() && is_unique::<T>(&a) {
        simd::run(ZipAssign { shape: &shape, a: a.slice_mut()?, b: (b.slice()?, b.shape()), f });
        return Ok(a);
    }
    if !parallel && b.shape() == shape.as_slice() && is_unique::<T>(&b) {
        let swapped = |y: T, x: T| f(x, y);
        simd::run(ZipAssign { shape: &shape, a: b.slice_mut()?, b: (a.slice()?, a.shape()), f: swapped });
        return Ok(b);
    }
    zip::<T, T>(&a, &b, threads, |x, y| f(*x, *y))
}

/// Floats of 16 bits by way of 32: exact operands, one more rounding, which is harmless (32 > 2 * 11 + 2 bits).
pub(super) fn via_f32(a: &Tensor, b: &Tensor, f: impl FnOnce(Tensor, Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let dtype = a.dtype();
    cast(&f(cast(a, DType::F32, true)?, cast(b, DType::F32, true)?)?, dtype, true)
}

/// The rounding of 16-bit float types, for operators that compute in 32 bits inside.
pub(super) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// The type error of an operand.
pub(super) fn wrong_type(slot: usize, dtype: DType, expected: &str) -> crate::error::Result<Vec<Item>> {
    Err(anyhow!("input {slot} has element type {dtype}, expected {expected}"))
}
