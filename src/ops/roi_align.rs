//! `RoiAlign` — regions of interest pooled to one size, sampled between elements.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__RoiAlign.html> (opsets 10, 16, 22)
//! Inputs: X `[N, C, H, W]`, a float type; rois `[R, 4]` (x1, y1, x2, y2); batch_indices int64 `[R]`.
//! Output: `[R, C, output_height, output_width]`. Attributes: output_height, output_width (default 1), sampling_ratio
//! (0: as many samples as elements), spatial_scale, mode avg or max, coordinate_transformation_mode half_pixel (default
//! from opset 16) or output_half_pixel.
//! Quantized: stays float; regions need more precision than 8 bits.
//! Errors: shapes that do not fit; a batch index out of range; unknown modes.

use super::gather::checked;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Attrs, Dim};
use crate::tensor::{cast, count};

const ROI_ALIGN: OpDef = OpDef {
    name: "RoiAlign",
    domain: OpDomain::Onnx,
    since: 10,
    inputs: Arity::exactly(3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "regions need more precision than integers have" },
};

pub(super) const OPS: &[OpDef] = &[ROI_ALIGN, OpDef { since: 16, ..ROI_ALIGN }];

fn output_size(attrs: &Attrs) -> Result<[usize; 2]> {
    let size = |name: &str| {
        let n = attrs.int(name).unwrap_or(1);
        usize::try_from(n).ok().filter(|&n| n > 0 && n < 1 << 20).ok_or_else(|| anyhow!("attribute \"{name}\" is {n}"))
    };
    Ok([size("output_height")?, size("output_width")?])
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let [h, w] = output_size(ctx.attrs)?;
    let channels = ctx.shape(0).and_then(|s| s.get(1).cloned()).unwrap_or(Dim::Unknown);
    let n = ctx.shape(1).or(ctx.shape(2)).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown);
    ctx.set_tensor(0, ctx.dtype(0), Some(vec![n, channels, Dim::Known(h), Dim::Known(w)]));
    Ok(())
}

/// The four neighbours of a point with their weights; nothing outside the plane.
fn neighbours(y: f64, x: f64, h: usize, w: usize) -> Option<[(usize, f64); 4]> {
    if y < -1.0 || y > h as f64 || x < -1.0 || x > w as f64 || y.is_nan() || x.is_nan() {
        return None;
    }
    let split = |v: f64, n: usize| {
        let v = v.max(0.0);
        let low = v as usize;
        if low >= n - 1 { (n - 1, n - 1, 0.0) } else { (low, low + 1, v - low as f64) }
    };
    let ((y0, y1, ly), (x0, x1, lx)) = (split(y, h), split(x, w));
    Some([
        (y0 * w + x0, (1.0 - ly) * (1.0 - lx)),
        (y0 * w + x1, (1.0 - ly) * lx),
        (y1 * w + x0, ly * (1.0 - lx)),
        (y1 * w + x1, ly * lx),
    ])
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let [oh, ow] = output_size(call.attrs)?;
    let half_pixel = match call
        .str("coordinate_transformation_mode", if call.opset < 16 { "output_half_pixel" } else { "half_pixel" })
    {
        "half_pixel" => true,
        "output_half_pixel" => false,
        m => bail!("attribute \"coordinate_transformation_mode\" is \"{m}\", expected half_pixel or output_half_pixel"),
    };
    let is_max = match call.str("mode", "avg") {
        "avg" => false,
        "max" => true,
        m => bail!("attribute \"mode\" is \"{m}\", expected avg or max"),
    };
    let ratio = usize::try_from(call.int("sampling_ratio", 0)).ok().filter(|&r| r < 1 << 12);
    let ratio = ratio.ok_or_else(|| anyhow!("attribute \"sampling_ratio\" is {}", call.int("sampling_ratio", 0)))?;
    let scale = f64::from(call.float("spatial_scale", 1.0));
    let batch = call.ints(2)?;
    let (x, rois) = (call.input(0)?, call.input(1)?);
    let &[n, c, h, w] = x.shape() else { bail!("input 0 (X) has rank {}, expected 4", x.rank()) };
    let r = batch.len();
    ensure!(rois.shape() == [r, 4], "input 1 (rois) has shape {:?}, expected [{r}, 4]", rois.shape());
    let shape = [r, c, oh, ow];
    let mut out = Vec::with_capacity(count(&shape)?);
    let (source, regions) = (x.to_f64s().context("input 0 (X)")?, rois.to_f64s().context("input 1 (rois)")?);
    ensure!(r == 0 || h * w > 0, "input 0 (X) has no elements to sample");
    for (roi, &b) in regions.chunks_exact(4).zip(&batch) {
        let b = checked(b, n).context("input 2 (batch_indices)")?;
        let shift = if half_pixel { 0.5 } else { 0.0 };
        let [x1, y1, x2, y2]: [f64; 4] = std::array::from_fn(|k| roi[k] * scale - shift);
        let least = if half_pixel { f64::NEG_INFINITY } else { 1.0 };
        let (rw, rh) = ((x2 - x1).max(least), (y2 - y1).max(least));
        let (bin_h, bin_w) = (rh / oh as f64, rw / ow as f64);
        let samples = |size: f64| if ratio > 0 { ratio } else { (size.ceil().max(0.0) as usize).min(1 << 12) };
        let (gh, gw) = (samples(bin_h), samples(bin_w));
        // The same points for every channel.
        let mut points = Vec::with_capacity(oh * ow * gh * gw);
        for i in 0..oh * ow {
            let (ph, pw) = (i / ow, i % ow);
            for k in 0..gh * gw {
                let y = y1 + ph as f64 * bin_h + ((k / gw) as f64 + 0.5) * bin_h / gh as f64;
                let x = x1 + pw as f64 * bin_w + ((k % gw) as f64 + 0.5) * bin_w / gw as f64;
                points.push(neighbours(y, x, h, w));
            }
        }
        for channel in 0..c {
            let plane = &source[(b * c + channel) * h * w..][..h * w];
            for bin in 0..oh * ow {
                let part = &points[bin * gh * gw..(bin + 1) * gh * gw];
                out.push(if is_max {
                    // As ONNX Runtime and the specification's tests have it: the largest weighted neighbour.
                    let largest = |p: &Option<[(usize, f64); 4]>| match p {
                        Some(q) => q.iter().map(|&(o, v)| plane[o] * v).fold(f64::NEG_INFINITY, f64::max),
                        None => 0.0,
                    };
                    part.iter().map(largest).reduce(f64::max).unwrap_or(0.0)
                } else {
                    let sum: f64 = part.iter().flatten().flatten().map(|&(o, v)| plane[o] * v).sum();
                    sum / part.len().max(1) as f64
                });
            }
        }
    }
    Ok(cast::from_f64s(x.dtype(), &shape, out)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn case(roi: [f32; 4], batch: i64) -> Case {
        Case::new("RoiAlign", 16)
            .input(Tensor::of(&[1, 1, 2, 2], vec![1.0f32, 2.0, 3.0, 4.0]))
            .input(Tensor::of(&[1, 4], roi.to_vec()))
            .input(Tensor::vector(vec![batch]))
    }

    #[test]
    fn pools_regions() {
        let y = |v: f32| [Tensor::of(&[1, 1, 1, 1], vec![v])];
        case([0.0, 0.0, 2.0, 2.0], 0).attr("sampling_ratio", 1).expect(&y(2.5));
        case([0.0, 0.0, 1.0, 1.0], 0).attr("sampling_ratio", 2).attr("mode", "max").expect(&y(1.0));
        case([0.0, 0.0, 2.0, 2.0], 0)
            .attr("coordinate_transformation_mode", "output_half_pixel")
            .attr("sampling_ratio", 1)
            .expect(&y(4.0));
        case([0.0; 4], 1).fails("input 2 (batch_indices)");
        case([0.0; 4], 0).attr("mode", "min").fails("mode");
        case([0.0; 4], 0).attr("output_width", 0).fails("output_width");
    }
}
