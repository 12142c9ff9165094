//! `Gemm` — `Y = alpha * A' * B' + beta * C`, where `A'` and `B'` may be transposed.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Gemm.html> (opsets 1, 6, 7, 9, 11, 13)
//! Inputs: A `[M, K]` or `[K, M]`, B `[K, N]` or `[N, K]`, C? that broadcasts to `[M, N]`, of T. Output: Y `[M, N]` of T.
//! T: float16, bfloat16, float, double, int32, int64, uint32, uint64. Opsets 1 and 6 need C.
//! Quantized: A per tensor; B per channel; C int32, scale = scale(A) * scale(B).
//! Errors: an operand that is no matrix; different K; a C that does not broadcast.

use super::floats::{from_f32s, same_dtype};
use super::reverse::{Back, Gradients, Reverse, summed};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule, WeightAxis};
use crate::error::{Result, bail, ensure};
use crate::ir::Dim;
use crate::kernels::gemm::{Init, PackedB, gemm};
use crate::kernels::plain;
use crate::tensor::broadcast::{broadcast, for_each_row};
use crate::tensor::cast::Number;
use crate::tensor::{DType, Data, Element, Tensor, buffer};

const fn def(since: i64, min_inputs: usize) -> OpDef {
    OpDef {
        name: "Gemm",
        domain: OpDomain::Onnx,
        since,
        inputs: Arity::range(min_inputs, 3),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer,
        eval,
        quant: QuantRule::Weighted { data: 0, weight: 1, axis: WeightAxis::TransB, bias: Some(2) },
    }
}

// Opset 1 says with `broadcast` whether C may broadcast; taking it always changes no valid model.
pub(super) const OPS: &[OpDef] = &[def(1, 3), def(11, 2)];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Gemm", reverse)];

fn reverse(b: &Back<'_>) -> Result<Gradients> {
    let (a, w, shape) = (b.input(0)?, b.input(1)?, b.output(0)?.shape());
    let (trans_a, trans_b) = (b.int("transA", 0) != 0, b.int("transB", 0) != 0);
    let (m, n) = (shape[0], shape[1]);
    let k = a.shape()[usize::from(!trans_a)];
    let (alpha, beta) = (b.float("alpha", 1.0), b.float("beta", 1.0));
    let g: Vec<f32> = b.gradient()?.iter().map(|g| g * alpha).collect();
    let da = b.made(0, || {
        // The transpose of B: [N, K].
        let (k_stride, n_stride) = if trans_b { (k, 1) } else { (1, n) };
        let mut da = buffer(m * k);
        let packed = PackedB::new(&w.to_f32s()?, n, k, k_stride, n_stride);
        gemm(b.threads, m, &g, &packed, Init::Zero, &mut da);
        Ok(if trans_a { transposed(&da, m, k) } else { da })
    })?;
    let db = b.made(1, || {
        let a = a.to_f32s()?;
        let a = if trans_a { a } else { transposed(&a, m, k).into() };
        let mut db = buffer(k * n);
        gemm(b.threads, k, &a, &PackedB::new(&g, m, n, n, 1), Init::Zero, &mut db);
        Ok(if trans_b { transposed(&db, k, n) } else { db })
    })?;
    let dc = b.made(2, || {
        let sums = summed(b.gradient()?, shape, b.input(2)?.shape());
        Ok(sums.into_iter().map(|x| x * beta).collect())
    })?;
    Ok(vec![da, db, dc])
}

/// The element types of matrix products.
pub(super) const TYPES: &[DType] =
    &[DType::F32, DType::F16, DType::BF16, DType::F64, DType::I32, DType::I64, DType::U32, DType::U64];

pub(super) fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let matrix = |slot: usize, name: &str, flag: &str| -> Result<(Dim, Dim)> {
        let Some(s) = ctx.shape(slot) else { return Ok((Dim::Unknown, Dim::Unknown)) };
        ensure!(s.len() == 2, "input {slot} ({name}) has rank {}, expected 2", s.len());
        let transposed = ctx.attrs.int(flag).unwrap_or(0) != 0;
        Ok(if transposed { (s[1].clone(), s[0].clone()) } else { (s[0].clone(), s[1].clone()) })
    };
    let ((m, ka), (kb, n)) = (matrix(0, "A", "transA")?, matrix(1, "B", "transB")?);
    if let (Dim::Known(a), Dim::Known(b)) = (ka, kb) {
        ensure!(a == b, "input 1 (B) has {b} rows, expected {a} as input 0 (A) has columns");
    }
    ctx.set_tensor(0, ctx.dtype(0).or(ctx.dtype(1)), Some(vec![m, n]));
    Ok(())
}

/// Sizes of a product.
struct Sizes {
    m: usize,
    k: usize,
    n: usize,
    trans_a: bool,
    trans_b: bool,
}

pub(super) fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (a, b, c) = (call.input(0)?, call.input(1)?, call.optional(2)?);
    let dtype = same_dtype(&[("A", Some(a)), ("B", Some(b)), ("C", c)], TYPES)?;
    let (trans_a, trans_b) = (call.flag("transA", false), call.flag("transB", false));
    let matrix = |t: &Tensor, name: &str, transposed: bool| match *t.shape() {
        [x, y] => Ok(if transposed { (y, x) } else { (x, y) }),
        ref s => bail!("{name} has shape {s:?}, expected rank 2"),
    };
    let ((m, k), (kb, n)) = (matrix(a, "input 0 (A)", trans_a)?, matrix(b, "input 1 (B)", trans_b)?);
    ensure!(k == kb, "input 1 (B) has {kb} rows, expected {k} as input 0 (A) has columns");
    if let Some(c) = c {
        let fits = broadcast(c.shape(), &[m, n]).is_ok_and(|s| s.as_slice() == [m, n]);
        ensure!(fits, "input 2 (C) has shape {:?}, which does not broadcast to [{m}, {n}]", c.shape());
    }
    crate::tensor::count(&[m, n])?;
    let s = Sizes { m, k, n, trans_a, trans_b };
    let y = match dtype {
        DType::F32 | DType::F16 | DType::BF16 => from_f32s(dtype, &[m, n], floats(call, &s, a, b, c)?)?,
        _ => match a.data() {
            Data::F64(_) => others::<f64>(call, &s, a, b, c, |x, f| x * f64::from(f))?,
            Data::I32(_) => others::<i32>(call, &s, a, b, c, scale_integer)?,
            Data::I64(_) => others::<i64>(call, &s, a, b, c, scale_integer)?,
            Data::U32(_) => others::<u32>(call, &s, a, b, c, scale_integer)?,
            _ => others::<u64>(call, &s, a, b, c, scale_integer)?,
        },
    };
    Ok(vec![y.into()])
}

/// An integer times an attribute, which is nearly always 1.
fn scale_integer<T: Number>(x: T, factor: f32) -> T {
    if factor == 1.0 { x } else { T::from_f64(x.to_f64() * f64::from(factor)) }
}

fn floats(call: &Call<'_>, s: &Sizes, a: &Tensor, b: &Tensor, c: Option<&Tensor>) -> Result<Vec<f32>> {
    let (alpha, beta) = (call.float("alpha", 1.0), call.float("beta", 1.0));
    let &Sizes { m, k, n, .. } = s;
    let pack = || {
        let (k_stride, n_stride) = if s.trans_b { (1, k) } else { (n, 1) };
        Ok(PackedB::new(&b.to_f32s()?, k, n, k_stride, n_stride))
    };
    let made;
    let packed = if call.is_constant(1) {
        call.shared(pack)?
    } else {
        made = pack()?;
        &made
    };
    let mut a = a.to_f32s()?;
    if s.trans_a {
        a = transposed(&a, k, m).into();
    }
    let mut y = buffer(m * n);
    let c = c.filter(|_| beta != 0.0);
    match c {
        None => gemm(call.threads, m, &a, packed, Init::Zero, &mut y),
        // The usual bias.
        Some(c) if alpha == 1.0 && beta == 1.0 && c.len() == n && c.shape().last() == Some(&n) => {
            gemm(call.threads, m, &a, packed, Init::Columns(&c.to_f32s()?), &mut y);
            return Ok(y);
        }
        Some(c) => {
            let c = (c.shape(), c.to_f32s()?);
            if alpha == 1.0 {
                spread(c.0, &c.1, m, n, &mut y, |_, c| beta * c);
                gemm(call.threads, m, &a, packed, Init::Output, &mut y);
                return Ok(y);
            }
            gemm(call.threads, m, &a, packed, Init::Zero, &mut y);
            spread(c.0, &c.1, m, n, &mut y, |y, c| alpha * y + beta * c);
            return Ok(y);
        }
    }
    if alpha != 1.0 {
        y.iter_mut().for_each(|y| *y *= alpha);
    }
    Ok(y)
}

fn others<T: Element + plain::Number + plain::Sums>(
    call: &Call<'_>,
    s: &Sizes,
    a: &Tensor,
    b: &Tensor,
    c: Option<&Tensor>,
    scale: impl Fn(T, f32) -> T,
) -> Result<Tensor> {
    let (alpha, beta) = (call.float("alpha", 1.0), call.float("beta", 1.0));
    let &Sizes { m, k, n, .. } = s;
    let mut a = std::borrow::Cow::Borrowed(a.slice::<T>()?);
    let mut b = std::borrow::Cow::Borrowed(b.slice::<T>()?);
    if s.trans_a {
        a = transposed(&a, k, m).into();
    }
    if s.trans_b {
        b = transposed(&b, n, k).into();
    }
    let mut y = vec![T::default(); m * n];
    plain::matmul(k, n, &a, &b, &mut y);
    if alpha != 1.0 {
        y.iter_mut().for_each(|y| *y = scale(*y, alpha));
    }
    if let Some(c) = c {
        spread(c.shape(), c.slice()?, m, n, &mut y, |mut y, c| {
            y += scale(c, beta);
            y
        });
    }
    Tensor::new(&[m, n], y)
}

/// The transpose of a matrix `[rows, columns]`.
pub(super) fn transposed<T: Copy>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(x.len());
    for j in 0..columns {
        out.extend((0..rows).map(|i| x[i * columns + j]));
    }
    out
}

/// `y = f(y, c)` with `c` broadcast to `[m, n]`.
fn spread<T: Copy>(shape: &[usize], c: &[T], m: usize, n: usize, y: &mut [T], f: impl Fn(T, T) -> T) {
    for_each_row(&[m, n], [shape], |at, [from], len, [step]| {
        for (i, y) in y[at..at + len].iter_mut().enumerate() {
            *y = f(*y, c[from + i * step]);
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Tensor, cast};

    fn t(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    #[test]
    fn transposes_scales_and_broadcasts() {
        let (a, at) = (t(&[2, 3], &[1., 2., 3., 4., 5., 6.]), t(&[3, 2], &[1., 4., 2., 5., 3., 6.]));
        let (b, bt) = (t(&[3, 1], &[1., 0., 2.]), t(&[1, 3], &[1., 0., 2.]));
        let product = t(&[2, 1], &[7., 16.]);
        for dtype in super::TYPES {
            let c = |t: &Tensor| cast::cast(t, *dtype, true).unwrap();
            for (ta, tb) in [(0i64, 0i64), (0, 1), (1, 0), (1, 1)] {
                Case::new("Gemm", 13)
                    .input(c(if ta == 1 { &at } else { &a }))
                    .input(c(if tb == 1 { &bt } else { &b }))
                    .attr("transA", ta)
                    .attr("transB", tb)
                    .expect(&[c(&product)]);
            }
            Case::new("Gemm", 13)
                .input(c(&a))
                .input(c(&b))
                .attr("alpha", 2.0f32)
                .expect(&[c(&t(&[2, 1], &[14., 32.]))]);
            for shape in [&[1usize][..], &[1, 1], &[], &[2, 1]] {
                let bias = t(shape, &vec![3.0; shape.iter().product()]);
                for alpha in [1.0f32, 2.0] {
                    for beta in [1.0f32, 2.0] {
                        Case::new("Gemm", 13)
                            .input(c(&a))
                            .input(c(&b))
                            .input(c(&bias))
                            .attr("alpha", alpha)
                            .attr("beta", beta)
                            .expect(&[c(&t(&[2, 1], &[7. * alpha + 3. * beta, 16. * alpha + 3. * beta]))]);
                    }
                }
            }
        }
    }

    #[test]
    fn contradictions_are_errors() {
        let a = t(&[2, 3], &[0.0; 6]);
        Case::new("Gemm", 13).input(a.clone()).input(a.clone()).fails("input 1 (B) has 2 rows, expected 3");
        Case::new("Gemm", 13).input(t(&[1], &[1.])).input(a.clone()).fails("expected rank 2");
        let case = Case::new("Gemm", 13).input(a.clone()).input(a.clone()).attr("transB", 1i64);
        case.clone().input(t(&[3], &[0.; 3])).fails("input 2 (C)");
        case.input(Tensor::vector(vec![1i64])).fails("element type int64");
        assert!(Case::new("Gemm", 13).input(a.clone()).input(a).infer(false).is_err());
    }
}
