//! `MatMul` — matrix product as `numpy.matmul`: the last two dimensions are matrices, the others broadcast.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__MatMul.html> (opsets 1, 9, 13)
//! Inputs: A `[…, M, K]` or `[K]`, B `[…, K, N]` or `[K]` of T. Output: Y `[…, M, N]` of T, without M or N where the
//! operand is a vector. T: float16, bfloat16, float, double, int32, int64, uint32, uint64.
//! Quantized: A per tensor; B per channel on its last axis.
//! Errors: rank 0; different K; batch dimensions that do not broadcast.

use super::floats::{from_f32s, same_dtype};
use super::gemm::{TYPES, transposed};
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule, WeightAxis};
use crate::error::{Result, ensure};
use crate::ir::Dim;
use crate::kernels::gemm::{Init, PackedB, gemm, gemv};
use crate::kernels::{Slots, for_each, plain};
use crate::ops::infer_ctx::broadcast_dims;
use crate::tensor::broadcast::{broadcast, broadcast_strides};
use crate::tensor::{DType, Data, Element, Shape, Tensor, buffer};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "MatMul",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Weighted { data: 0, weight: 1, axis: WeightAxis::Last, bias: None },
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("MatMul", reverse)];

fn reverse(b: &Back<'_>) -> Result<Gradients> {
    let (x, w, g) = (b.input(0)?, b.input(1)?, b.gradient()?);
    let p = Product::new(x.shape(), w.shape())?;
    let (am, bm, cm) = (p.m * p.k, p.k * p.n, p.m * p.n);
    let da = b.made(0, || {
        let (w, mut da) = (w.to_f32s()?, vec![0.0f32; x.len()]);
        for (g, &(i, j)) in g.chunks_exact(cm.max(1)).zip(&p.batches) {
            let packed = PackedB::new(&w[j * bm..][..bm], p.n, p.k, 1, p.n);
            gemm(b.threads, p.m, g, &packed, Init::Output, &mut da[i * am..][..am]);
        }
        Ok(da)
    })?;
    let db = b.made(1, || {
        let (x, mut db) = (x.to_f32s()?, vec![0.0f32; w.len()]);
        for (g, &(i, j)) in g.chunks_exact(cm.max(1)).zip(&p.batches) {
            let a = transposed(&x[i * am..][..am], p.m, p.k);
            gemm(b.threads, p.k, &a, &PackedB::new(g, p.m, p.n, p.n, 1), Init::Output, &mut db[j * bm..][..bm]);
        }
        Ok(db)
    })?;
    Ok(vec![da, db])
}

/// The dimensions of the product of two partly known shapes.
///
/// # Errors
/// A rank of 0; different K; batch dimensions that do not broadcast.
pub(super) fn infer_dims(a: Option<&[Dim]>, b: Option<&[Dim]>) -> Result<Option<Vec<Dim>>> {
    let (Some(a), Some(b)) = (a, b) else { return Ok(None) };
    ensure!(!a.is_empty() && !b.is_empty(), "input {} has rank 0, expected at least 1", usize::from(!a.is_empty()));
    let (a_batch, m, ka) = match a {
        [k] => (&a[..0], None, k),
        [batch @ .., m, k] => (batch, Some(m), k),
        [] => return Ok(None),
    };
    let (b_batch, kb, n) = match b {
        [k] => (&b[..0], k, None),
        [batch @ .., k, n] => (batch, k, Some(n)),
        [] => return Ok(None),
    };
    if let (Dim::Known(x), Dim::Known(y)) = (ka, kb) {
        ensure!(x == y, "input 1 (B) has {y} rows, expected {x} as input 0 (A) has columns");
    }
    let mut out = broadcast_dims(a_batch, b_batch)?;
    out.extend(m.cloned());
    out.extend(n.cloned());
    Ok(Some(out))
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = infer_dims(ctx.shape(0), ctx.shape(1))?;
    ctx.set_tensor(0, ctx.dtype(0).or(ctx.dtype(1)), shape);
    Ok(())
}

/// How operands of a product lie.
pub(super) struct Product {
    /// Rows of A, length of the sums, columns of B.
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    /// The output's shape.
    pub(super) shape: Shape,
    /// For each batch of the output, which matrix of A and which of B.
    pub(super) batches: Vec<(usize, usize)>,
}

impl Product {
    /// The product of shapes.
    ///
    /// # Errors
    /// A rank of 0; different K; batch dimensions that do not broadcast.
    pub(super) fn new(a: &[usize], b: &[usize]) -> Result<Self> {
        ensure!(!a.is_empty(), "input 0 (A) has rank 0, expected at least 1");
        ensure!(!b.is_empty(), "input 1 (B) has rank 0, expected at least 1");
        let (ra, rb) = (a.len(), b.len());
        let (a_batch, m, k) = if ra == 1 { (&a[..0], 1, a[0]) } else { (&a[..ra - 2], a[ra - 2], a[ra - 1]) };
        let (b_batch, kb, n) = if rb == 1 { (&b[..0], b[0], 1) } else { (&b[..rb - 2], b[rb - 2], b[rb - 1]) };
        ensure!(k == kb, "input 1 (B) has shape {b:?}, expected {k} rows as input 0 (A) of shape {a:?} has columns");
        let batch = broadcast(a_batch, b_batch)?;
        let (sa, sb) = (broadcast_strides(a_batch, &batch), broadcast_strides(b_batch, &batch));
        let mut batches = Vec::new();
        crate::kernels::conv::for_each_index(&batch, |i| {
            let at = |s: &Shape| i.iter().zip(s).map(|(i, s)| i * s).sum();
            batches.push((at(&sa), at(&sb)));
        });
        let mut shape = batch;
        if ra > 1 {
            shape.push(m);
        }
        if rb > 1 {
            shape.push(n);
        }
        crate::tensor::count(&shape)?;
        let mut p = Product { m, k, n, shape, batches };
        p.merge();
        Ok(p)
    }

    /// One matrix B for all batches of A: one product with more rows.
    fn merge(&mut self) {
        let in_order = self.batches.iter().enumerate().all(|(i, &(a, b))| a == i && b == 0);
        if in_order && self.batches.len() > 1 {
            self.m *= self.batches.len();
            self.batches = vec![(0, 0)];
        }
    }
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let dtype = same_dtype(&[("A", Some(a)), ("B", Some(b))], TYPES)?;
    let p = Product::new(a.shape(), b.shape())?;
    let y = match dtype {
        DType::F32 | DType::F16 | DType::BF16 => from_f32s(dtype, &p.shape, floats(call, &p, a, b)?)?,
        _ => match a.data() {
            Data::F64(_) => others::<f64>(&p, a, b)?,
            Data::I32(_) => others::<i32>(&p, a, b)?,
            Data::I64(_) => others::<i64>(&p, a, b)?,
            Data::U32(_) => others::<u32>(&p, a, b)?,
            _ => others::<u64>(&p, a, b)?,
        },
    };
    Ok(vec![y.into()])
}

fn floats(call: &Call<'_>, p: &Product, a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
    let pack = || {
        let b = b.to_f32s()?;
        Ok(b.chunks_exact((p.k * p.n).max(1)).map(|b| PackedB::new(b, p.k, p.n, p.n, 1)).collect())
    };
    let packed = if call.is_constant(1) { Some(call.shared::<Vec<PackedB>>(pack)?) } else { None };
    let a = a.to_f32s()?;
    Ok(product(call.threads, p, &a, packed.map(Vec::as_slice), || b.to_f32s())?)
}

/// The product of `a` with `packed`, or with the matrices that `b` gives.
pub(super) fn product<'b>(
    threads: usize,
    p: &Product,
    a: &[f32],
    packed: Option<&[PackedB]>,
    b: impl FnOnce() -> Result<std::borrow::Cow<'b, [f32]>>,
) -> Result<Vec<f32>> {
    let (am, bm, cm) = (p.m * p.k, p.k * p.n, p.m * p.n);
    let mut y = buffer(cm * p.batches.len());
    if y.is_empty() {
        return Ok(y);
    }
    if bm == 0 {
        y.fill(0.0);
        return Ok(y);
    }
    if let Some(packed) = packed {
        for (y, &(i, j)) in y.chunks_exact_mut(cm).zip(&p.batches) {
            gemm(threads, p.m, &a[i * am..], &packed[j], Init::Zero, y);
        }
        return Ok(y);
    }
    let b = b()?;
    // Threads share the batches when there are several.
    let inner = if p.batches.len() > 1 { 1 } else { threads };
    let out = Slots::new(&mut y);
    for_each(threads, p.batches.len(), |batch| {
        let (i, j) = p.batches[batch];
        let (a, b) = (&a[i * am..][..am], &b[j * bm..][..bm]);
        let y = out.chunk(batch, cm);
        if p.m == 1 {
            gemv(a, b, y);
        } else {
            gemm(inner, p.m, a, &PackedB::new(b, p.k, p.n, p.n, 1), Init::Zero, y);
        }
    });
    Ok(y)
}

fn others<T: Element + plain::Number + plain::Sums>(p: &Product, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (a.slice::<T>()?, b.slice::<T>()?);
    let (am, bm, cm) = (p.m * p.k, p.k * p.n, p.m * p.n);
    let mut y = vec![T::default(); cm * p.batches.len()];
    for (y, &(i, j)) in y.chunks_exact_mut(cm.max(1)).zip(&p.batches) {
        plain::matmul(p.k, p.n, &a[i * am..][..am], &b[j * bm..][..bm], y);
    }
    Tensor::new(&p.shape, y)
}

#[cfg(test)]
mod tests {
    use crate::ir::Dim;
    use crate::ops::testing::Case;
    use crate::tensor::{Tensor, cast};

    fn t(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    fn iota(shape: &[usize]) -> Tensor {
        Tensor::new(shape, (0..shape.iter().product()).map(|i: usize| i as f32).collect()).unwrap()
    }

    #[test]
    fn matrices_vectors_and_batches() {
        let cases = [
            (iota(&[2, 3]), iota(&[3, 2]), t(&[2, 2], &[10., 13., 28., 40.])),
            (iota(&[3]), iota(&[3, 2]), t(&[2], &[10., 13.])),
            (iota(&[2, 3]), iota(&[3]), t(&[2], &[5., 14.])),
            (iota(&[3]), iota(&[3]), t(&[], &[5.])),
            (iota(&[2, 1, 2]), iota(&[2, 1]), t(&[2, 1, 1], &[1., 3.])),
            (iota(&[2, 1, 1, 2]), iota(&[2, 2, 1]), t(&[2, 2, 1, 1], &[1., 3., 3., 13.])),
            (iota(&[1, 2]), iota(&[2, 2, 1]), t(&[2, 1, 1], &[1., 3.])),
            (iota(&[2, 0]), iota(&[0, 2]), t(&[2, 2], &[0.; 4])),
            (iota(&[0, 2]), iota(&[2, 2]), t(&[0, 2], &[])),
        ];
        for dtype in super::TYPES {
            let c = |t: &Tensor| cast::cast(t, *dtype, true).unwrap();
            for (a, b, y) in &cases {
                Case::new("MatMul", 13).input(c(a)).input(c(b)).expect(&[c(y)]);
            }
        }
    }

    #[test]
    fn contradictions_are_errors() {
        Case::new("MatMul", 13).input(iota(&[2, 3])).input(iota(&[2, 3])).fails("input 1 (B)");
        Case::new("MatMul", 13).input(iota(&[])).input(iota(&[2, 3])).fails("rank 0");
        Case::new("MatMul", 13).input(iota(&[2, 1, 1])).input(iota(&[3, 1, 1])).fails("do not broadcast");
        assert!(Case::new("MatMul", 13).input(iota(&[2, 3])).input(iota(&[2, 3])).infer(false).is_err());
    }

    #[test]
    fn symbols_pass_through() {
        let n = Dim::Symbol("n".into());
        let a = [n.clone(), Dim::Known(4), Dim::Known(2)];
        let b = [Dim::Known(2), n.clone()];
        assert_eq!(super::infer_dims(Some(&a), Some(&b)).unwrap().unwrap(), [n.clone(), Dim::Known(4), n]);
    }
}
