//! `MaxRoiPool` — the largest element of each bin of regions of interest.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html> (opsets 1, 22)
//! Inputs: X `[N, C, H, W]`, rois `[R, 5]` as (batch, x1, y1, x2, y2), of T. Output: Y `[R, C, pooled_shape…]` of T.
//! T: float16, bfloat16 (22), float, double. The specification leaves the bins open: regions are rounded to places, both
//! ends included, and a bin spans whole places, as in Fast R-CNN and ONNX Runtime.
//! Quantized: selects elements, so the output has the input's parameters.
//! Errors: other ranks; a batch index outside X.

use super::floats::{FLOATS, same_dtype};
use super::window::sizes;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, ensure};
use crate::ir::Dim;
use crate::tensor::cast;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "MaxRoiPool",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let pooled = sizes(ctx.attrs, "pooled_shape", 2, 1, 1)?;
    let dim = |slot: usize, i: usize| ctx.shape(slot).and_then(|s| s.get(i)).cloned().unwrap_or(Dim::Unknown);
    let shape = vec![dim(1, 0), dim(0, 1), Dim::Known(pooled[0]), Dim::Known(pooled[1])];
    ctx.set_tensor(0, ctx.dtype(0), Some(shape));
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, rois) = (call.input(0)?, call.input(1)?);
    let dtype = same_dtype(&[("X", Some(x)), ("rois", Some(rois))], FLOATS)?;
    let &[n, c, h, w] = x.shape() else {
        return Err(anyhow!("input 0 (X) has shape {:?}, expected rank 4", x.shape()));
    };
    let &[count, 5] = rois.shape() else {
        return Err(anyhow!("input 1 (rois) has shape {:?}, expected [regions, 5]", rois.shape()));
    };
    ensure!(call.attrs.ints("pooled_shape").is_some(), "attribute \"pooled_shape\" is missing");
    let pooled = sizes(call.attrs, "pooled_shape", 2, 1, 1)?;
    let scale = f64::from(call.float("spatial_scale", 1.0));
    let (v, rois) = (x.to_f64s()?, rois.to_f64s()?);
    let mut y = Vec::with_capacity(count * c * pooled[0] * pooled[1]);
    for roi in rois.chunks_exact(5) {
        let batch = roi[0] as usize;
        ensure!(roi[0] >= 0.0 && batch < n, "input 1 (rois) names image {}, expected 0..{n}", roi[0]);
        let place = |x: f64| (x * scale).round() as i64;
        let rows = bins(place(roi[2]), place(roi[4]), pooled[0], h);
        let columns = bins(place(roi[1]), place(roi[3]), pooled[1], w);
        for channel in v[batch * c * h * w..(batch + 1) * c * h * w].chunks_exact((h * w).max(1)) {
            for rows in &rows {
                for columns in &columns {
                    let all = rows.clone().flat_map(|r| columns.clone().map(move |c| r * w + c));
                    let max = all.map(|i| channel[i]).fold(f64::NEG_INFINITY, f64::max);
                    y.push(if rows.is_empty() || columns.is_empty() { 0.0 } else { max });
                }
            }
        }
    }
    Ok(cast::from_f64s(dtype, &[count, c, pooled[0], pooled[1]], y)?.into())
}

/// The places of each bin between two places, both included, clipped to the image.
fn bins(start: i64, end: i64, n: usize, size: usize) -> Vec<std::ops::Range<usize>> {
    let length = (end.saturating_sub(start).saturating_add(1)).max(1) as f64 / n as f64;
    let clip = |x: f64| (start as f64 + x).clamp(0.0, size as f64) as usize;
    (0..n).map(|i| clip((i as f64 * length).floor())..clip(((i + 1) as f64 * length).ceil())).collect()
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn case(roi: [f32; 5]) -> Case {
        Case::new("MaxRoiPool", 22)
            .input(Tensor::new(&[1, 1, 4, 4], (0..16).map(|i| i as f32).collect()).unwrap())
            .input(Tensor::new(&[1, 5], roi.to_vec()).unwrap())
            .attr("pooled_shape", vec![2i64, 2])
    }

    #[test]
    fn the_largest_of_each_bin() {
        let y = |v: [f32; 4]| Tensor::new(&[1, 1, 2, 2], v.to_vec()).unwrap();
        case([0.0, 0.0, 0.0, 3.0, 3.0]).expect(&[y([5.0, 7.0, 13.0, 15.0])]);
        case([0.0, 0.0, 0.0, 6.0, 6.0]).attr("spatial_scale", 0.5f32).expect(&[y([5.0, 7.0, 13.0, 15.0])]);
        case([0.0, 1.0, 1.0, 3.0, 3.0]).expect(&[y([10.0, 11.0, 14.0, 15.0])]);
        case([0.0, 9.0, 9.0, 12.0, 12.0]).expect(&[y([0.0; 4])]);
        case([1.0, 0.0, 0.0, 3.0, 3.0]).fails("names image 1");
    }
}
