//! `DepthToSpace`, `SpaceToDepth` — blocks of channels to blocks of pixels and back.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__DepthToSpace.html> (opsets 1, 11, 13, 28),
//! <https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html> (opsets 1, 13, 28)
//! Input: `[N, C, H, W]`, any type. Output: `[N, C/(b*b), H*b, W*b]`, or `[N, C*b*b, H/b, W/b]`.
//! Attributes: blocksize, required; mode: DCR (default; depth, then column, then row) or CRD, for SpaceToDepth from
//! opset 28.
//! Quantized: moves elements, so the output has the input's parameters.
//! Errors: rank not 4; blocksize below 1; a dimension that does not divide.

use super::reverse::Reverse;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Attrs, Dim, sym};
use crate::tensor::broadcast::strides;
use crate::tensor::{Tensor, count, strided};
use crate::with_data;

const DEPTH_TO_SPACE: OpDef = OpDef {
    name: "DepthToSpace",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_depth_to_space,
    eval: eval_depth_to_space,
    quant: QuantRule::Share,
};

const SPACE_TO_DEPTH: OpDef = OpDef {
    name: "SpaceToDepth",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_space_to_depth,
    eval: eval_space_to_depth,
    quant: QuantRule::Share,
};

pub(super) const OPS: &[OpDef] =
    &[DEPTH_TO_SPACE, OpDef { since: 11, ..DEPTH_TO_SPACE }, SPACE_TO_DEPTH, OpDef { since: 28, ..SPACE_TO_DEPTH }];

pub(super) const REVERSE: &[Reverse] =
    &[Reverse::of("DepthToSpace", |b| b.moved(&[0])), Reverse::of("SpaceToDepth", |b| b.moved(&[0]))];

fn block(attrs: &Attrs) -> Result<usize> {
    let b = attrs.int("blocksize").ok_or_else(|| anyhow!("attribute \"blocksize\" is missing"))?;
    usize::try_from(b).ok().filter(|&b| b > 0 && b < 1 << 16).ok_or_else(|| anyhow!("attribute \"blocksize\" is {b}"))
}

fn is_crd(attrs: &Attrs) -> Result<bool> {
    match attrs.str("mode").unwrap_or("DCR") {
        "DCR" => Ok(false),
        "CRD" => Ok(true),
        m => bail!("attribute \"mode\" is \"{m}\", expected DCR or CRD"),
    }
}

fn divided(d: &Dim, by: usize, what: &str) -> Result<Dim> {
    if let Some(n) = d.known() {
        ensure!(n.is_multiple_of(by), "{what} of size {n} does not divide into blocks of {by}");
    }
    Ok(sym::floor_div(d, &Dim::Known(by)))
}

fn infer_depth_to_space(ctx: &mut InferCtx<'_>) -> Result<()> {
    let b = block(ctx.attrs)?;
    let shape = match ctx.shape(0) {
        None => vec![Dim::Unknown; 4],
        Some([n, c, h, w]) => {
            let scale = Dim::Known(b);
            vec![n.clone(), divided(c, b * b, "depth")?, sym::mul(h, &scale), sym::mul(w, &scale)]
        }
        Some(s) => bail!("input 0 has rank {}, expected 4", s.len()),
    };
    ctx.set_tensor(0, ctx.dtype(0), Some(shape));
    Ok(())
}

fn infer_space_to_depth(ctx: &mut InferCtx<'_>) -> Result<()> {
    let b = block(ctx.attrs)?;
    let shape = match ctx.shape(0) {
        None => vec![Dim::Unknown; 4],
        Some([n, c, h, w]) => {
            vec![n.clone(), sym::mul(c, &Dim::Known(b * b)), divided(h, b, "height")?, divided(w, b, "width")?]
        }
        Some(s) => bail!("input 0 has rank {}, expected 4", s.len()),
    };
    ctx.set_tensor(0, ctx.dtype(0), Some(shape));
    Ok(())
}

/// The input taken as `dims`, with these in the order of `perm`, taken as `shape`.
fn rearranged(x: &Tensor, dims: &[usize], perm: &[usize], shape: &[usize]) -> Result<Vec<Item>> {
    count(shape)?;
    let st = strides(dims);
    let moved: Vec<usize> = perm.iter().map(|&p| dims[p]).collect();
    let steps: Vec<isize> = perm.iter().map(|&p| st[p] as isize).collect();
    let y = with_data!(x.data(), T, b => {
        strided::typed::<T>(x.dtype(), shape, strided::gather(b.as_slice(), 0, &moved, &steps))
    })?;
    Ok(y.into())
}

fn eval_depth_to_space(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (b, crd) = (block(call.attrs)?, is_crd(call.attrs)?);
    let x = call.input(0)?;
    let &[n, c, h, w] = x.shape() else { bail!("input 0 has rank {}, expected 4", x.rank()) };
    ensure!(c.is_multiple_of(b * b), "depth of size {c} does not divide into blocks of {}", b * b);
    let out = [n, c / (b * b), h * b, w * b];
    if crd {
        rearranged(x, &[n, c / (b * b), b, b, h, w], &[0, 1, 4, 2, 5, 3], &out)
    } else {
        rearranged(x, &[n, b, b, c / (b * b), h, w], &[0, 3, 4, 1, 5, 2], &out)
    }
}

fn eval_space_to_depth(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (b, crd) = (block(call.attrs)?, is_crd(call.attrs)?);
    let x = call.input(0)?;
    let &[n, c, h, w] = x.shape() else { bail!("input 0 has rank {}, expected 4", x.rank()) };
    for (what, size) in [("height", h), ("width", w)] {
        ensure!(size.is_multiple_of(b), "{what} of size {size} does not divide into blocks of {b}");
    }
    let dims = [n, c, h / b, b, w / b, b];
    let perm = if crd { [0, 1, 3, 5, 2, 4] } else { [0, 3, 5, 1, 2, 4] };
    rearranged(x, &dims, &perm, &[n, c * b * b, h / b, w / b])
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn blocks_move_and_come_back() {
        let x = Tensor::of(&[1, 8, 1, 2], (0..16).collect::<Vec<i32>>());
        let dcr = Tensor::of(&[1, 2, 2, 4], vec![0, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15]);
        let crd = Tensor::of(&[1, 2, 2, 4], vec![0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15]);
        Case::new("DepthToSpace", 13).input(x.clone()).attr("blocksize", 2).expect(&[dcr.clone()]);
        Case::new("DepthToSpace", 13).input(x.clone()).attr("blocksize", 2).attr("mode", "CRD").expect(&[crd]);
        Case::new("SpaceToDepth", 13).input(dcr).attr("blocksize", 2).expect(&[x.clone()]);
        Case::new("DepthToSpace", 13).input(x.clone()).attr("blocksize", 3).fails("does not divide");
        Case::new("SpaceToDepth", 13).input(x.clone()).attr("blocksize", 0).fails("blocksize");
        Case::new("SpaceToDepth", 13).input(x).fails("blocksize");
    }
}
