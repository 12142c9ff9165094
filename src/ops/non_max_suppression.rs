//! `NonMaxSuppression` — the best boxes of each class that do not overlap much.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html> (opsets 10, 11)
//! Inputs: boxes float `[N, S, 4]`; scores float `[N, C, S]`; max_output_boxes_per_class int64? (default 0: none),
//! iou_threshold float? (default 0), score_threshold float?, scalars. Output: int64 `[n, 3]` (batch, class, box).
//! Attribute: center_point_box: boxes are x, y, width, height of the centre instead of two corners y1, x1, y2, x2.
//! Quantized: gives indices, so nothing.
//! Errors: shapes that do not fit; an iou_threshold outside `[0, 1]`.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, bail, ensure};
use crate::ir::Dim;
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "NonMaxSuppression",
    domain: OpDomain::Onnx,
    since: 10,
    inputs: Arity::range(2, 5),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "gives indices" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.set_tensor(0, Some(DType::I64), Some(vec![Dim::Unknown, Dim::Known(3)]));
    Ok(())
}

/// A box by its corners, smaller coordinates first.
fn corners(b: &[f32], center: bool) -> [f32; 4] {
    if center {
        let (x, y, w, h) = (b[0], b[1], b[2] / 2.0, b[3] / 2.0);
        [y - h, x - w, y + h, x + w]
    } else {
        [b[0].min(b[2]), b[1].min(b[3]), b[0].max(b[2]), b[1].max(b[3])]
    }
}

/// Whether two boxes share more than `threshold` of what they cover together.
fn overlap(a: &[f32; 4], b: &[f32; 4], threshold: f32) -> bool {
    let area = |b: &[f32; 4]| (b[2] - b[0]) * (b[3] - b[1]);
    let (h, w) = (a[2].min(b[2]) - a[0].max(b[0]), a[3].min(b[3]) - a[1].max(b[1]));
    if h <= 0.0 || w <= 0.0 || area(a) <= 0.0 || area(b) <= 0.0 {
        return false;
    }
    let both = h * w;
    both / (area(a) + area(b) - both) > threshold
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let number = |slot: usize, name: &str| -> Result<Option<f64>> {
        match call.optional(slot)? {
            None => Ok(None),
            Some(t) => Ok(Some(t.to_f64().with_context(|| format!("input {slot} ({name})"))?)),
        }
    };
    let most = number(2, "max_output_boxes_per_class")?.unwrap_or(0.0).max(0.0) as usize;
    let threshold = number(3, "iou_threshold")?.unwrap_or(0.0) as f32;
    ensure!((0.0..=1.0).contains(&threshold), "input 3 (iou_threshold) is {threshold}, expected 0 to 1");
    let least = number(4, "score_threshold")?.map(|x| x as f32);
    let center = call.flag("center_point_box", false);
    let (boxes, scores) = (call.input(0)?, call.input(1)?);
    let &[n, s, 4] = boxes.shape() else { bail!("input 0 (boxes) has shape {:?}, expected [N, S, 4]", boxes.shape()) };
    let &[sn, classes, ss] = scores.shape() else {
        bail!("input 1 (scores) has shape {:?}, expected [N, C, S]", scores.shape())
    };
    ensure!((sn, ss) == (n, s), "input 1 (scores) has shape {:?}, expected [{n}, C, {s}]", scores.shape());
    let (boxes, scores) = (boxes.slice::<f32>().context("input 0")?, scores.slice::<f32>().context("input 1")?);
    let mut out: Vec<i64> = Vec::new();
    for b in 0..if most > 0 { n } else { 0 } {
        let corners: Vec<[f32; 4]> =
            boxes[b * s * 4..(b + 1) * s * 4].chunks_exact(4).map(|x| corners(x, center)).collect();
        for c in 0..classes {
            let scores = &scores[(b * classes + c) * s..][..s];
            let mut order: Vec<usize> = (0..s).filter(|&i| least.is_none_or(|t| scores[i] > t)).collect();
            order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
            let mut kept: Vec<usize> = Vec::new();
            for i in order {
                if kept.len() >= most {
                    break;
                }
                if !kept.iter().any(|&k| overlap(&corners[i], &corners[k], threshold)) {
                    kept.push(i);
                    out.extend([b as i64, c as i64, i as i64]);
                }
            }
        }
    }
    Ok(Tensor::new(&[out.len() / 3, 3], out)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    #[test]
    fn keeps_the_best() {
        let boxes = vec![0.0f32, 0.0, 1.0, 1.0, 0.0, 0.1, 1.0, 1.1, 0.0, 10.0, 1.0, 11.0];
        let case = |most: i64| {
            Case::new("NonMaxSuppression", 11)
                .input(Tensor::of(&[1, 3, 4], boxes.clone()))
                .input(Tensor::of(&[1, 1, 3], vec![0.9f32, 0.95, 0.3]))
                .input(Tensor::scalar(most))
        };
        let rows = |v: &[i64]| [Tensor::of(&[v.len() / 3, 3], v.to_vec())];
        case(3).input(Tensor::scalar(0.5f32)).expect(&rows(&[0, 0, 1, 0, 0, 2]));
        case(1).input(Tensor::scalar(0.5f32)).expect(&rows(&[0, 0, 1]));
        case(3).input(Tensor::scalar(0.5f32)).input(Tensor::scalar(0.4f32)).expect(&rows(&[0, 0, 1]));
        case(0).expect(&rows(&[]));
        case(3).input(Tensor::scalar(2.0f32)).fails("iou_threshold");
        Case::new("NonMaxSuppression", 11)
            .input(Tensor::of(&[1, 3, 4], boxes.clone()))
            .input(Tensor::of(&[1, 1, 2], vec![0.9f32, 0.95]))
            .fails("input 1 (scores)");
    }
}
