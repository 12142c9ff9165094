//! `BatchNormalization` — `(X - mean) / sqrt(var + epsilon) * scale + B` for each channel.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__BatchNormalization.html> (opsets 1, 6, 7, 9, 14, 15)
//! Inputs: X `[N, C, D…]` of T, scale, B, mean, var `[C]` (`[C, D…]` when `spatial` is 0, before opset 9).
//! Outputs: Y `[N, C, D…]` of T; with `training_mode` (14) running_mean?, running_var? `[C]`.
//! T: float16, bfloat16 (14), float, double; the parameters may have another float type from opset 15 on.
//! Quantized: stays float; a pass folds it into the convolution in front of it.
//! Errors: parameters of another size.
//! Deviation: before opset 14 only inference is defined for a stored graph, so the outputs after Y are not made.

use super::floats::{FLOATS, from_f32s};
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::ir::Dim;
use crate::kernels::{self, Slots, for_each};
use crate::tensor::{DType, Tensor, buffer};

const fn def(since: i64, outputs: usize) -> OpDef {
    OpDef {
        name: "BatchNormalization",
        domain: OpDomain::Onnx,
        since,
        inputs: Arity::exactly(5),
        outputs: Arity::range(1, outputs),
        is_pure: true,
        infer,
        eval,
        quant: QuantRule::Keep { why: "its scale and shift belong into the layer in front of it" },
    }
}

pub(super) const OPS: &[OpDef] = &[def(1, 5), def(14, 3)];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("BatchNormalization", reverse)];

/// To X; the parameters of a stored model are constants.
fn reverse(b: &Back<'_>) -> Result<Gradients> {
    ensure!(b.opset < 14 || b.int("training_mode", 0) == 0, "there is no rule for training mode");
    ensure!(b.opset >= 9 || b.int("spatial", 1) != 0, "there is no rule for parameters of each element");
    let shape = b.input(0)?.shape();
    let channels = shape.get(1).copied().unwrap_or(1);
    let size: usize = shape.iter().skip(2).product();
    let (scale, var) = (b.input(1)?.to_f32s()?, b.input(4)?.to_f32s()?);
    let epsilon = b.float("epsilon", 1e-5);
    let mut dx = b.gradient()?.to_vec();
    for (i, g) in dx.chunks_exact_mut(size.max(1)).enumerate() {
        let c = i % channels;
        let factor = scale[c] / (var[c] + epsilon).sqrt();
        g.iter_mut().for_each(|g| *g *= factor);
    }
    Ok(vec![b.made(0, || Ok(dx))?])
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    if let (Some([_, Dim::Known(c), ..]), Some([Dim::Known(n)])) = (ctx.shape(0), ctx.shape(1)) {
        ensure!(c == n, "input 1 (scale) has {n} elements, expected {c} as input 0 (X) has channels");
    }
    ctx.same_as(0);
    let c = ctx.shape(0).map(|s| vec![s.get(1).cloned().unwrap_or(Dim::Known(1))]);
    for slot in 1..3 {
        ctx.set_tensor(slot, ctx.dtype(3), c.clone());
    }
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let (dtype, shape) = (x.dtype(), x.shape().to_vec());
    if !FLOATS.contains(&dtype) {
        bail!("input 0 (X) has element type {dtype}, expected a float type");
    }
    // A vector counts as one channel for each sample.
    let channels = shape.get(1).copied().unwrap_or(1);
    let per_element = call.opset < 9 && !call.flag("spatial", true);
    let size: usize = shape.iter().skip(2).product();
    let n = if per_element { channels * size } else { channels };
    let mut parameters = Vec::new();
    for (slot, name) in [(1, "scale"), (2, "B"), (3, "mean"), (4, "var")] {
        let t = call.input(slot)?;
        ensure!(
            t.len() == n,
            "input {slot} ({name}) has shape {:?}, expected {n} elements as input 0 (X) of shape {shape:?} asks for",
            t.shape()
        );
        parameters.push(t.to_f64s()?);
    }
    let epsilon = f64::from(call.float("epsilon", 1e-5));
    let run = if per_element { 1 } else { size };
    let mut outputs = Vec::new();
    if call.opset >= 14 && call.flag("training_mode", false) {
        let momentum = f64::from(call.float("momentum", 0.9));
        let (mean, var) = statistics(&call.input(0)?.to_f64s()?, channels, size);
        for (slot, fresh) in [(2, &mean), (3, &var)] {
            let old = &parameters[slot];
            let running = old.iter().zip(fresh).map(|(o, f)| o * momentum + f * (1.0 - momentum)).collect();
            let dtype = call.input(slot + 1)?.dtype();
            outputs.push(crate::tensor::cast::from_f64s(dtype, &[channels], running)?.into());
        }
        parameters[2] = mean;
        parameters[3] = var;
    }
    let affine: Vec<(f64, f64)> = (0..n)
        .map(|i| {
            let factor = parameters[0][i] / (parameters[3][i] + epsilon).sqrt();
            (factor, parameters[1][i] - parameters[2][i] * factor)
        })
        .collect();
    let threads = call.threads;
    let x = call.take(0)?;
    let y = if dtype == DType::F64 {
        let mut v = x.into_vec::<f64>()?;
        for (v, (a, b)) in v.chunks_exact_mut(run.max(1)).zip(affine.iter().cycle()) {
            v.iter_mut().for_each(|v| *v = *v * a + b);
        }
        Tensor::new(&shape, v)?
    } else {
        let affine: Vec<(f32, f32)> = affine.iter().map(|&(a, b)| (a as f32, b as f32)).collect();
        let from = x.to_f32s()?;
        let mut v = buffer(from.len());
        if run > 0 {
            let out = Slots::new(&mut v);
            for_each(threads, from.len() / run, |i| {
                let (a, b) = affine[i % affine.len()];
                kernels::pool::scale_and_shift(&from[i * run..(i + 1) * run], a, b, out.chunk(i, run));
            });
        }
        from_f32s(dtype, &shape, v)?
    };
    outputs.insert(0, y.into());
    Ok(outputs)
}

/// Mean and variance of each channel over samples and places.
fn statistics(x: &[f64], channels: usize, size: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = |c: usize| x.chunks_exact(size.max(1)).skip(c).step_by(channels.max(1)).flatten().copied();
    (0..channels)
        .map(|c| {
            let n = rows(c).count() as f64;
            let mean = rows(c).sum::<f64>() / n;
            (mean, rows(c).map(|x| (x - mean) * (x - mean)).sum::<f64>() / n)
        })
        .unzip()
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::{Tensor, cast};

    fn case(opset: i64, dtype: crate::tensor::DType) -> Case {
        let c = |t: Tensor| cast::cast(&t, dtype, true).unwrap();
        let v = |a: f32, b: f32| c(Tensor::vector(vec![a, b]));
        Case::new("BatchNormalization", opset)
            .input(c(Tensor::new(&[1, 2, 2], vec![1.0f32, 3.0, 4.0, 8.0]).unwrap()))
            .input(v(1.0, 2.0))
            .input(v(0.5, -1.0))
            .input(v(1.0, 4.0))
            .input(v(0.25, 4.0))
            .attr("epsilon", 0.0f32)
    }

    #[test]
    fn scales_and_shifts_each_channel() {
        for dtype in super::FLOATS {
            for opset in [7, 9, 15] {
                let y = Tensor::new(&[1, 2, 2], vec![0.5f32, 4.5, -1.0, 3.0]).unwrap();
                case(opset, *dtype).expect(&[cast::cast(&y, *dtype, true).unwrap()]);
            }
        }
    }

    #[test]
    fn training_uses_the_batch_and_updates_the_running_statistics() {
        let y = Tensor::new(&[1, 2, 2], vec![-0.5f32, 1.5, -3.0, 1.0]).unwrap();
        let mean = Tensor::vector(vec![1.5f32, 5.0]);
        let var = Tensor::vector(vec![0.625f32, 4.0]);
        let case = case(15, crate::tensor::DType::F32).attr("training_mode", 1i64).attr("momentum", 0.5f32).outputs(3);
        case.expect(&[y, mean, var]);
    }

    #[test]
    fn each_element_has_its_own_parameters_without_spatial() {
        let x = Tensor::new(&[2, 1, 2], vec![1.0f32, 2.0, 3.0, 4.0]).unwrap();
        let v = |a: f32, b: f32| Tensor::new(&[1, 2], vec![a, b]).unwrap();
        Case::new("BatchNormalization", 7)
            .input(x)
            .input(v(1.0, 10.0))
            .input(v(0.0, 1.0))
            .input(v(0.0, 0.0))
            .input(v(1.0, 1.0))
            .attr("spatial", 0i64)
            .attr("epsilon", 0.0f32)
            .expect(&[Tensor::new(&[2, 1, 2], vec![1.0f32, 21.0, 3.0, 41.0]).unwrap()]);
    }

    #[test]
    fn parameters_of_another_size_are_errors() {
        let x = Tensor::new(&[1, 3, 1], vec![1.0f32; 3]).unwrap();
        let v = || Tensor::vector(vec![1.0f32; 2]);
        Case::new("BatchNormalization", 9)
            .input(x)
            .input(v())
            .input(v())
            .input(v())
            .input(v())
            .fails("input 1 (scale)");
    }
}
