//! `Shape`, `Size` — an input's dimensions, and the number of its elements.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Shape.html> (opsets 1, 13, 15, 19, 21, 23, 24, 25),
//! <https://onnx.ai/onnx/operators/onnx__Size.html> (opsets 1, 13, 19, 21, 23, 24, 25)
//! Input: data, any type. Output: int64, `[n]` for Shape, a scalar for Size.
//! Attributes of Shape from opset 15: start (default 0), end (default rank), clamped to the rank.
//! Quantized: gives integers, so nothing.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::Result;
use crate::ir::{Attrs, Dim, sym};
use crate::tensor::{DType, Tensor};

const SHAPE: OpDef = OpDef {
    name: "Shape",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_shape,
    eval: eval_shape,
    quant: QuantRule::Keep { why: "gives the shape of its input, not its values" },
};

pub(super) const OPS: &[OpDef] = &[
    SHAPE,
    OpDef { since: 15, ..SHAPE },
    OpDef {
        name: "Size",
        domain: OpDomain::Onnx,
        since: 1,
        inputs: Arity::exactly(1),
        outputs: Arity::exactly(1),
        is_pure: true,
        infer: infer_size,
        eval: eval_size,
        quant: QuantRule::Keep { why: "gives the size of its input, not its values" },
    },
];

/// The dimensions that are wanted: `start..end`.
fn range(attrs: &Attrs, rank: usize) -> std::ops::Range<usize> {
    let r = rank as i64;
    let clamp = |i: i64| (if i < 0 { i.saturating_add(r) } else { i }).clamp(0, r) as usize;
    let start = clamp(attrs.int("start").unwrap_or(0));
    let end = clamp(attrs.int("end").unwrap_or(r));
    start..end.max(start)
}

fn infer_shape(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = match ctx.shape(0) {
        None => Dim::Unknown,
        Some(s) => {
            let part = s[range(ctx.attrs, s.len())].to_vec();
            let n = part.len();
            ctx.set_values(0, part);
            Dim::Known(n)
        }
    };
    ctx.set_tensor(0, Some(DType::I64), Some(vec![n]));
    Ok(())
}

fn eval_shape(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let shape = call.input(0)?.shape();
    let part = &shape[range(call.attrs, shape.len())];
    Ok(Tensor::vector(part.iter().map(|&n| n as i64).collect()).into())
}

fn infer_size(ctx: &mut InferCtx<'_>) -> Result<()> {
    if let Some(s) = ctx.shape(0) {
        let n = sym::product(s);
        ctx.set_values(0, vec![n]);
    }
    ctx.set_tensor(0, Some(DType::I64), Some(vec![]));
    Ok(())
}

fn eval_size(call: &mut Call<'_>) -> Result<Vec<Item>> {
    Ok(Tensor::scalar(call.input(0)?.len() as i64).into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn gives_dimensions() {
        let case = |op| Case::new(op, 15).input(Tensor::of(&[2, 3, 4], vec![0.0f32; 24]));
        case("Shape").expect(&[Tensor::vector(vec![2i64, 3, 4])]);
        case("Shape").attr("start", -2).expect(&[Tensor::vector(vec![3i64, 4])]);
        case("Shape").attr("start", 1).attr("end", -1).expect(&[Tensor::vector(vec![3i64])]);
        case("Shape").attr("start", 10).expect(&[Tensor::vector(Vec::<i64>::new())]);
        case("Shape").attr("start", 2).attr("end", 1).expect(&[Tensor::vector(Vec::<i64>::new())]);
        case("Size").expect(&[Tensor::scalar(24i64)]);
    }
}
