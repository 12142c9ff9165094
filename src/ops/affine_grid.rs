//! `AffineGrid` — the grid of points that an affine transformation makes of a regular one, for `GridSample`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__AffineGrid.html> (opset 20)
//! Inputs: theta `[N, 2, 3]` or `[N, 3, 4]`, a float type; size int64 `[4]` (N, C, H, W) or `[5]` (N, C, D, H, W).
//! Output: grid `[N, H, W, 2]` or `[N, D, H, W, 3]`. Attribute: align_corners.
//! Quantized: stays float; coordinates need more precision than 8 bits.
//! Errors: shapes that do not fit.

use super::constant_of_shape::to_shape;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::{cast, count};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "AffineGrid",
    domain: OpDomain::Onnx,
    since: 20,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "coordinates need more precision than integers have" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match (ctx.values(1), ctx.shape(1)) {
        (Some(v), _) if v.len() == 4 || v.len() == 5 => {
            let mut out = vec![sym::as_size(&v[0])];
            out.extend(v[2..].iter().map(sym::as_size));
            out.push(Dim::Known(v.len() - 2));
            Some(out)
        }
        (_, Some([Dim::Known(n @ (4 | 5))])) => {
            let mut out = vec![Dim::Unknown; n - 1];
            out.push(Dim::Known(n - 2));
            Some(out)
        }
        _ => None,
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let size = to_shape(&call.ints(1)?, 1)?;
    let align = call.flag("align_corners", false);
    let theta = call.input(0)?;
    ensure!(size.len() == 4 || size.len() == 5, "input 1 (size) has {} entries, expected 4 or 5", size.len());
    let d = size.len() - 2;
    ensure!(
        theta.shape() == [size[0], d, d + 1],
        "input 0 (theta) has shape {:?}, expected {:?}",
        theta.shape(),
        [size[0], d, d + 1]
    );
    let spatial = &size[2..];
    let points = count(spatial)?;
    let shape = [&size[..1], spatial, &[d]].concat();
    let mut out = Vec::with_capacity(count(&shape)?);
    let theta_values = theta.to_f64s().context("input 0 (theta)")?;
    let coordinate = |i: usize, n: usize| match (align, n) {
        // A single point stands in the middle when the corners are centres of elements.
        (true, 1) => -1.0,
        (true, n) => -1.0 + 2.0 * i as f64 / (n as f64 - 1.0),
        (false, n) => -1.0 + (2.0 * i as f64 + 1.0) / n as f64,
    };
    for t in theta_values.chunks_exact(d * (d + 1)) {
        for p in 0..points {
            let mut rest = p;
            // The last dimension comes first in a point.
            let mut at = [0.0f64; 3];
            for (k, &n) in spatial.iter().rev().enumerate() {
                at[k] = coordinate(rest % n, n);
                rest /= n;
            }
            for row in t.chunks_exact(d + 1) {
                out.push(row[..d].iter().zip(at).map(|(a, b)| a * b).sum::<f64>() + row[d]);
            }
        }
    }
    Ok(cast::from_f64s(theta.dtype(), &shape, out)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn the_identity_gives_the_regular_grid() {
        let case = |size: &[i64]| {
            Case::new("AffineGrid", 20)
                .input(Tensor::of(&[1, 2, 3], vec![1.0f32, 0.0, 0.0, 0.0, 1.0, 0.0]))
                .input(Tensor::vector(size.to_vec()))
        };
        case(&[1, 1, 1, 2]).expect(&[Tensor::of(&[1, 1, 2, 2], vec![-0.5f32, 0.0, 0.5, 0.0])]);
        case(&[1, 1, 2, 2])
            .attr("align_corners", 1)
            .expect(&[Tensor::of(&[1, 2, 2, 2], vec![-1.0f32, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0])]);
        case(&[2, 1, 1, 2]).fails("input 0 (theta)");
        case(&[1, 1, 2]).fails("expected 4 or 5");
    }
}
