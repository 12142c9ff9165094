//! `Det` — the determinant of matrices.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Det.html> (opsets 11, 22)
//! Input: X `[…, M, M]` of floats. Output: `[…]`. Computed in 64 bits by elimination with row pivots.
//! Quantized: no. Errors: rank below 2; matrices that are not square.

use super::elementwise::UNARY;
use super::{Call, InferCtx, Item, OpDef};
use crate::error::{Result, bail, ensure};
use crate::ir::Dim;
use crate::tensor::cast::from_f64s;

pub(super) const OPS: &[OpDef] = &[OpDef { name: "Det", since: 11, infer, eval, ..UNARY }];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let mut shape = ctx.shape(0).map(<[Dim]>::to_vec);
    if let Some(s) = &mut shape {
        let (Some(n), Some(m)) = (s.pop(), s.pop()) else { bail!("input 0 has rank below 2") };
        if let (Dim::Known(n), Dim::Known(m)) = (&n, &m) {
            ensure!(n == m, "input 0 has matrices of {m} x {n}, expected square ones");
        }
    }
    let dtype = ctx.dtype(0);
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let &[ref batch @ .., m, n] = x.shape() else { bail!("input 0 has rank {}, expected at least 2", x.rank()) };
    ensure!(m == n, "input 0 has matrices of {m} x {n}, expected square ones");
    ensure!(x.dtype().is_float(), "input 0 has element type {}, expected a floating-point type", x.dtype());
    let mut v = x.to_f64s()?;
    let count: usize = batch.iter().product();
    // A matrix without elements has the determinant 1.
    let out = if n == 0 { vec![1.0; count] } else { v.chunks_exact_mut(n * n).map(|a| determinant(a, n)).collect() };
    Ok(from_f64s(x.dtype(), batch, out)?.into())
}

fn determinant(a: &mut [f64], n: usize) -> f64 {
    let mut det = 1.0;
    for c in 0..n {
        let mut pivot = c;
        for r in c + 1..n {
            if a[r * n + c].abs() > a[pivot * n + c].abs() {
                pivot = r;
            }
        }
        let p = a[pivot * n + c];
        if p == 0.0 {
            return 0.0;
        }
        if pivot != c {
            (0..n).for_each(|k| a.swap(pivot * n + k, c * n + k));
            det = -det;
        }
        det *= p;
        for r in c + 1..n {
            let f = a[r * n + c] / p;
            for k in c..n {
                a[r * n + k] -= f * a[c * n + k];
            }
        }
    }
    det
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn determinants() {
        let x = Tensor::of(&[2, 2, 2], vec![1.0f32, 2.0, 3.0, 4.0, 0.0, 1.0, 1.0, 0.0]);
        Case::new("Det", 22).input(x).tolerance(1e-6).expect(&[Tensor::vector(vec![-2.0f32, -1.0])]);
        Case::new("Det", 22).input(Tensor::of(&[1, 2], vec![1.0f32; 2])).fails("matrices of 1 x 2");
        Case::new("Det", 22).input(Tensor::scalar(1.0f32)).fails("rank 0");
    }
}
