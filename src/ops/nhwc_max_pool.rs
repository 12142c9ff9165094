//! `NhwcMaxPool` — ONNX Runtime's `MaxPool` of 8-bit images with channels last.
//!
//! Spec: <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md> (com.microsoft 1)
//! Inputs: x `[N, H, W, C]` int8 or uint8. Output: y `[N, O, P, C]`. Attributes as `MaxPool`.
//! Quantized: stays as it is.
//! Errors: rank below 3; a window that does not fit.

use super::max_pool::sizes;
use super::window::{Window, kernel_shape};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::kernels::pool::fold;
use crate::tensor::{Data, Element, Tensor};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "NhwcMaxPool",
    domain: OpDomain::Microsoft,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Share,
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let window = Window::new(ctx.attrs, kernel_shape(ctx.attrs)?)?;
    let shape = match ctx.shape(0) {
        None => None,
        Some(x) => {
            ensure!(x.len() >= 3, "input 0 (x) has rank {}, expected at least 3", x.len());
            let last = x.len() - 1;
            let mut out = vec![x[0].clone()];
            out.extend(window.dims(&x[1..last])?);
            out.push(x[last].clone());
            Some(out)
        }
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    ensure!(x.rank() >= 3, "input 0 (x) has shape {:?}, expected at least rank 3", x.shape());
    match x.data() {
        Data::U8(b) => maxima(call, x.shape(), b.as_slice(), u8::MIN),
        Data::I8(b) => maxima(call, x.shape(), b.as_slice(), i8::MIN),
        _ => bail!("input 0 (x) has element type {}, expected int8 or uint8", x.dtype()),
    }
}

fn maxima<T: Element + PartialOrd + Copy>(call: &Call<'_>, shape: &[usize], x: &[T], least: T) -> Result<Vec<Item>> {
    let last = shape.len() - 1;
    let c = shape[last];
    let channels_first = [&[shape[0], c], &shape[1..last]].concat();
    let (p, out) = sizes(call.attrs, &channels_first)?;
    let (places, pooled) = p.sizes();
    let turn = |v: &[T], rows: usize, columns: usize| -> Vec<T> {
        v.chunks_exact((rows * columns).max(1)).flat_map(|v| super::gemm::transposed(v, rows, columns)).collect()
    };
    let x = turn(x, places, c);
    let mut y = vec![least; out.iter().product()];
    fold(call.threads, &p, &x, &mut y, least, |y, x| if x > y { x } else { y });
    let shape = [&[shape[0]], p.output.as_slice(), &[c]].concat();
    Ok(Tensor::new(&shape, turn(&y, c, pooled))?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn channels_stay_last() {
        let x = Tensor::new(&[1, 2, 2, 2], vec![1u8, 80, 2, 70, 3, 60, 4, 50]).unwrap();
        let case = Case::new("NhwcMaxPool", 1).domain("com.microsoft").input(x).attr("kernel_shape", vec![2i64, 1]);
        case.expect(&[Tensor::new(&[1, 1, 2, 2], vec![3u8, 80, 4, 70]).unwrap()]);
    }
}
