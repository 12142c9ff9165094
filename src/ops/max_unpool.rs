//! `MaxUnpool` — puts maxima back where `MaxPool` found them.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__MaxUnpool.html> (opsets 9, 11, 22)
//! Inputs: X `[N, C, D…]` of T, I like X int64 into the flat output, output_shape? int64. Output: Y of T, 0 elsewhere.
//! The extent that the attributes give is `stride * (D - 1) + kernel - pads`; a larger output_shape adds zeros behind.
//! T: float16, bfloat16 (22), float, double.
//! Quantized: moves elements and fills with 0, which every quantization represents.
//! Errors: X and I of different shapes; an index outside; an output_shape smaller than the extent.

use super::window::{kernel_shape, sizes};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Attrs, Dim};
use crate::tensor::{Element, Tensor, count};
use crate::with_floats;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "MaxUnpool",
    domain: OpDomain::Onnx,
    since: 9,
    inputs: Arity::range(2, 3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

/// The output's shape as the attributes give it.
fn extent(attrs: &Attrs, x: &[usize]) -> Result<Vec<usize>> {
    let kernel = kernel_shape(attrs)?;
    let rank = kernel.len();
    ensure!(
        x.len() == rank + 2,
        "input 0 (X) has shape {x:?}, expected rank {} as \"kernel_shape\" asks for",
        rank + 2
    );
    let (stride, pads) = (sizes(attrs, "strides", rank, 1, 1)?, sizes(attrs, "pads", 2 * rank, 0, 0)?);
    let mut out = x[..2].to_vec();
    for d in 0..rank {
        let full = x[d + 2].saturating_sub(1) * stride[d] + kernel[d];
        let size = full.checked_sub(pads[d] + pads[rank + d]);
        out.push(size.ok_or_else(|| anyhow!("attribute \"pads\" exceeds spatial dimension {d} of {full} elements"))?);
    }
    Ok(out)
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let fixed: Option<Vec<usize>> = ctx.shape(0).and_then(|s| s.iter().map(Dim::known).collect());
    let shape = match (ctx.has(2), fixed) {
        (true, _) => ctx.values(2),
        (false, Some(x)) => Some(extent(ctx.attrs, &x)?.into_iter().map(Dim::Known).collect()),
        (false, None) => None,
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, places) = (call.input(0)?, call.input(1)?);
    ensure!(x.shape() == places.shape(), "input 1 (I) has shape {:?}, expected {:?} as X", places.shape(), x.shape());
    let inner = extent(call.attrs, x.shape())?;
    let shape = match call.optional(2)? {
        None => inner.clone(),
        Some(t) => {
            let s: Vec<usize> = t.to_i64s()?.into_iter().map(|n| usize::try_from(n).unwrap_or(0)).collect();
            let fits = s.len() == inner.len() && s.iter().zip(&inner).all(|(a, b)| a >= b);
            ensure!(fits, "input 2 (output_shape) is {s:?}, expected at least {inner:?}");
            s
        }
    };
    let places = places.slice::<i64>()?;
    with_floats!(x.data(), T, b => spread::<T>(b.as_slice(), places, &inner, &shape),
        _ => bail!("input 0 (X) has element type {}, expected a float type", x.dtype()))
}

fn spread<T: Element + Copy>(x: &[T], places: &[i64], inner: &[usize], shape: &[usize]) -> Result<Vec<Item>> {
    let n = count(inner)?;
    let mut y = vec![T::default(); n];
    for (&x, &place) in x.iter().zip(places) {
        let slot = usize::try_from(place).ok().and_then(|i| y.get_mut(i));
        *slot.ok_or_else(|| anyhow!("input 1 (I) has the index {place}, expected 0..{n}"))? = x;
    }
    if inner == shape {
        return Ok(Tensor::new(shape, y)?.into());
    }
    let mut out = vec![T::default(); count(shape)?];
    let strides = crate::tensor::broadcast::strides(shape);
    let width = inner.last().copied().unwrap_or(1).max(1);
    let mut rows = y.chunks_exact(width);
    crate::kernels::conv::for_each_index(&inner[..inner.len() - 1], |i| {
        let at: usize = i.iter().zip(&strides).map(|(i, s)| i * s).sum();
        if let Some(row) = rows.next() {
            out[at..at + width].copy_from_slice(row);
        }
    });
    Ok(Tensor::new(shape, out)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn case(index: i64) -> Case {
        Case::new("MaxUnpool", 11)
            .input(Tensor::new(&[1, 1, 2], vec![1.0f32, 2.0]).unwrap())
            .input(Tensor::new(&[1, 1, 2], vec![1i64, index]).unwrap())
            .attr("kernel_shape", vec![2i64])
            .attr("strides", vec![2i64])
    }

    #[test]
    fn puts_maxima_back() {
        case(2).expect(&[Tensor::new(&[1, 1, 4], vec![0.0f32, 1.0, 2.0, 0.0]).unwrap()]);
        let larger = Tensor::new(&[1, 1, 5], vec![0.0f32, 1.0, 2.0, 0.0, 0.0]).unwrap();
        case(2).input(Tensor::vector(vec![1i64, 1, 5])).expect(&[larger]);
        case(4).fails("index 4");
        case(2).input(Tensor::vector(vec![1i64, 1, 3])).fails("output_shape");
    }
}
