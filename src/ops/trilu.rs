//! `Trilu` — the upper or lower triangle of matrices.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Trilu.html> (opset 14)
//! Inputs: X `[…, N, M]` of any type, k? int64 scalar: the diagonal to begin at. Output: as X, zeros elsewhere.
//! Quantized: moves elements, and 0 has a quantized value. Errors: rank below 2; k of more than one element.

use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, ensure};
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Trilu",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::range(1, 2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Trilu", |b| b.moved(&[0]))];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    if let Some(rank) = ctx.rank(0) {
        ensure!(rank >= 2, "input 0 has rank {rank}, expected at least 2");
    }
    ctx.same_as(0);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let k = match call.optional(1)? {
        Some(t) => t.to_i64().context("input 1 (k)")?,
        None => 0,
    };
    let upper = call.flag("upper", true);
    let mut x = call.take(0)?;
    let &[.., rows, columns] = x.shape() else {
        crate::error::bail!("input 0 has rank {}, expected at least 2", x.rank())
    };
    with_data!(x.data_mut(), T, b => {
        let v = b.make_mut();
        if rows * columns > 0 {
            for matrix in v.chunks_exact_mut(rows * columns) {
                for (i, row) in matrix.chunks_exact_mut(columns).enumerate() {
                    // The first column of the upper part, or the first behind the lower part.
                    let from = (i as i64).saturating_add(k).saturating_add(i64::from(!upper)).clamp(0, columns as i64) as usize;
                    row[if upper { 0..from } else { from..columns }].fill(T::default());
                }
            }
        }
    });
    Ok(x.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn triangles() {
        let x = Tensor::of(&[2, 3], vec![1i64, 2, 3, 4, 5, 6]);
        let y = |v: [i64; 6]| Tensor::of(&[2, 3], v.to_vec());
        let case = || Case::new("Trilu", 14).input(x.clone());
        case().expect(&[y([1, 2, 3, 0, 5, 6])]);
        case().attr("upper", 0i64).expect(&[y([1, 0, 0, 4, 5, 0])]);
        case().input(Tensor::scalar(1i64)).expect(&[y([0, 2, 3, 0, 0, 6])]);
        case().input(Tensor::scalar(-1i64)).attr("upper", 0i64).expect(&[y([0, 0, 0, 4, 0, 0])]);
        case().input(Tensor::scalar(i64::MAX)).expect(&[y([0; 6])]);
        case().input(Tensor::vector(vec![1i64, 2])).fails("input 1 (k)");
        Case::new("Trilu", 14).input(Tensor::scalar(1i64)).fails("input 0 has rank 0");
    }
}
