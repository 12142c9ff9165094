//! `EyeLike` — ones on a diagonal, in the shape of the input.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__EyeLike.html> (opsets 9, 22)
//! Input: of any type, `[N, M]`. Output: `[N, M]` of `dtype`, or the input's type.
//! Quantized: no; a constant. Errors: rank other than 2.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::tensor::cast::from_f64s;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "EyeLike",
    domain: OpDomain::Onnx,
    since: 9,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "gives a constant" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    if let Some(rank) = ctx.rank(0) {
        ensure!(rank == 2, "input 0 has rank {rank}, expected 2");
    }
    let dtype = ctx.dtype_attr("dtype")?.or(ctx.dtype(0));
    let shape = ctx.shape(0).map(<[_]>::to_vec);
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let &[n, m] = x.shape() else { bail!("input 0 has rank {}, expected 2", x.rank()) };
    let k = call.int("k", 0);
    let dtype = call.dtype("dtype", x.dtype())?;
    let mut v = vec![0.0; n * m];
    for i in 0..n {
        if let Some(j) = (i as i64).checked_add(k).and_then(|j| usize::try_from(j).ok()).filter(|j| *j < m) {
            v[i * m + j] = 1.0;
        }
    }
    Ok(from_f64s(dtype, &[n, m], v)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{DType, Tensor};

    #[test]
    fn diagonals() {
        let x = Tensor::of(&[2, 3], vec![7i32; 6]);
        Case::new("EyeLike", 9).input(x.clone()).expect(&[Tensor::of(&[2, 3], vec![1i32, 0, 0, 0, 1, 0])]);
        Case::new("EyeLike", 9)
            .attr("k", 1i64)
            .attr("dtype", i64::from(DType::F64.code()))
            .input(x)
            .expect(&[Tensor::of(&[2, 3], vec![0.0f64, 1.0, 0.0, 0.0, 0.0, 1.0])]);
        Case::new("EyeLike", 9).input(Tensor::scalar(1i64)).fails("input 0 has rank 0, expected 2");
    }
}
