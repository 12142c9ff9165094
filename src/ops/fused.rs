//! `FusedConv`, `FusedGemm`, `FusedMatMul` — what ONNX Runtime's optimizer makes of a layer and its activation.
//!
//! Spec: <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md> (com.microsoft 1)
//! `FusedConv`: X, W, B?, Z? -> `activation(Conv(X, W, B) + Z)`. `FusedGemm`: A, B, C? -> `activation(Gemm(A, B, C))`.
//! `FusedMatMul` (and `TransposeMatMul`): A, B -> `alpha * A' * B'`; `transA`, `transB` swap the last two dimensions,
//! `transBatchA`, `transBatchB` move the first dimension in front of the last.
//! Activations: Relu, LeakyRelu, Sigmoid, Tanh, Clip, HardSigmoid. T: float, float16, double.
//! Quantized: stays float; no backend has these operators in integers.
//! Errors: those of the layer; an activation of another name.

use super::conv::{convolve, geometry, infer_dims, output_shape};
use super::floats::{FLOATS, from_f32s, same_dtype};
use super::mat_mul::{self, Product, product};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::ir::{Attrs, Dim};
use crate::kernels::math;
use crate::tensor::Tensor;

const KEEP: QuantRule = QuantRule::Keep { why: "is made by an optimizer and has no integer form" };

const fn def(
    name: &'static str,
    inputs: Arity,
    infer: fn(&mut InferCtx<'_>) -> Result<()>,
    eval: fn(&mut Call<'_>) -> Result<Vec<Item>>,
) -> OpDef {
    OpDef {
        name,
        domain: OpDomain::Microsoft,
        since: 1,
        inputs,
        outputs: Arity::exactly(1),
        is_pure: true,
        infer,
        eval,
        quant: KEEP,
    }
}

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "FusedConv", ..def("", Arity::range(2, 4), infer_conv, conv) },
    OpDef { name: "FusedGemm", ..def("", Arity::range(2, 3), super::gemm::infer, gemm) },
    OpDef { name: "FusedMatMul", ..def("", Arity::exactly(2), infer_matmul, matmul) },
    OpDef { name: "TransposeMatMul", ..def("", Arity::exactly(2), infer_matmul, matmul) },
];

/// An activation with its parameters.
#[derive(Clone, Copy)]
enum Activation {
    None,
    Relu,
    LeakyRelu(f32),
    Sigmoid,
    Tanh,
    Clip(f32, f32),
    HardSigmoid(f32, f32),
}

impl Activation {
    fn new(attrs: &Attrs, parameter: impl Fn(usize) -> Option<f32>) -> Result<Self> {
        Ok(match attrs.str("activation").unwrap_or("") {
            "" => Activation::None,
            "Relu" => Activation::Relu,
            "LeakyRelu" => Activation::LeakyRelu(parameter(0).unwrap_or(0.01)),
            "Sigmoid" => Activation::Sigmoid,
            "Tanh" => Activation::Tanh,
            "Clip" => Activation::Clip(parameter(0).unwrap_or(f32::MIN), parameter(1).unwrap_or(f32::MAX)),
            "HardSigmoid" => Activation::HardSigmoid(parameter(0).unwrap_or(0.2), parameter(1).unwrap_or(0.5)),
            other => bail!(
                "attribute \"activation\" is \"{other}\", expected Relu, LeakyRelu, Sigmoid, Tanh, Clip or HardSigmoid"
            ),
        })
    }

    fn apply(self, y: &mut [f32]) {
        match self {
            Activation::None => {}
            Activation::Relu => y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y }),
            Activation::LeakyRelu(a) => y.iter_mut().for_each(|y| *y = if *y < 0.0 { a * *y } else { *y }),
            Activation::Sigmoid => y.iter_mut().for_each(|y| *y = math::sigmoid(*y)),
            Activation::Tanh => y.iter_mut().for_each(|y| *y = math::tanh(*y)),
            Activation::Clip(lo, hi) => y.iter_mut().for_each(|y| *y = y.max(lo).min(hi)),
            Activation::HardSigmoid(a, b) => y.iter_mut().for_each(|y| *y = (a * *y + b).clamp(0.0, 1.0)),
        }
    }

    /// The tensor with the activation applied.
    fn of(self, y: Tensor) -> Result<Tensor> {
        if matches!(self, Activation::None) {
            return Ok(y);
        }
        let (dtype, shape) = (y.dtype(), y.shape().to_vec());
        let mut v = match dtype {
            crate::tensor::DType::F32 => y.into_vec()?,
            _ => y.to_f32s()?.into_owned(),
        };
        self.apply(&mut v);
        from_f32s(dtype, &shape, v)
    }
}

fn infer_conv(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = infer_dims(ctx.attrs, ctx.shape(0), ctx.shape(1))?;
    ctx.set_tensor(0, ctx.dtype(0).or(ctx.dtype(1)), shape);
    Ok(())
}

fn conv(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, w, b, z) = (call.input(0)?, call.input(1)?, call.optional(2)?, call.optional(3)?);
    let dtype = same_dtype(&[("X", Some(x)), ("W", Some(w)), ("B", b), ("Z", z)], FLOATS)?;
    let g = geometry(call.attrs, ("input 0 (X)", x.shape()), ("input 1 (W)", w.shape()))?;
    if let Some(b) = b {
        ensure!(b.shape() == [g.filters], "input 2 (B) has shape {:?}, expected [{}]", b.shape(), g.filters);
    }
    let parameters = call.attrs.floats("activation_params").unwrap_or_default();
    let activation = Activation::new(call.attrs, |i| parameters.get(i).copied())?;
    let mut y = convolve(call, dtype, &g, x, w, b, None)?;
    if let Some(z) = z {
        let shape = output_shape(&g);
        ensure!(z.shape() == shape, "input 3 (Z) has shape {:?}, expected {shape:?} as the output", z.shape());
        let mut v = y.to_f32s()?.into_owned();
        v.iter_mut().zip(z.to_f32s()?.iter()).for_each(|(y, z)| *y += z);
        y = from_f32s(dtype, &shape, v)?;
    }
    Ok(activation.of(y)?.into())
}

fn gemm(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let names = ["activation_alpha", "activation_beta"];
    let activation = Activation::new(call.attrs, |i| names.get(i).and_then(|n| call.attrs.float(n)))?;
    let mut out = super::gemm::eval(call)?;
    match out.pop() {
        Some(y) => Ok(activation.of(y.into_tensor()?)?.into()),
        None => bail!("the product has no output"),
    }
}

/// The order of axes that the attributes of one operand ask for.
fn permutation(attrs: &Attrs, which: char, rank: usize) -> Vec<usize> {
    let mut axes: Vec<usize> = (0..rank).collect();
    let flag = |name: String| attrs.int(&name).unwrap_or(0) != 0;
    if rank >= 2 && flag(format!("transBatch{which}")) {
        let first = axes.remove(0);
        axes.insert(rank - 2, first);
    }
    if rank >= 2 && flag(format!("trans{which}")) {
        axes.swap(rank - 1, rank - 2);
    }
    axes
}

fn infer_matmul(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = |slot: usize, which: char| -> Option<Vec<Dim>> {
        let s = ctx.shape(slot)?;
        Some(permutation(ctx.attrs, which, s.len()).into_iter().map(|i| s[i].clone()).collect())
    };
    let shape = mat_mul::infer_dims(shape(0, 'A').as_deref(), shape(1, 'B').as_deref())?;
    ctx.set_tensor(0, ctx.dtype(0).or(ctx.dtype(1)), shape);
    Ok(())
}

fn matmul(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let dtype = same_dtype(&[("A", Some(a)), ("B", Some(b))], FLOATS)?;
    let turned = |t: &Tensor, which: char| -> Result<Tensor> {
        let axes = permutation(call.attrs, which, t.rank());
        if axes.is_sorted() && dtype == crate::tensor::DType::F32 {
            return Ok(t.clone());
        }
        let t = Tensor::new(t.shape(), t.to_f32s()?.into_owned())?;
        let view = t.view::<f32>()?;
        Ok(Tensor::from_array(view.permuted_axes(axes).as_standard_layout().into_owned()))
    };
    let (a, b) = (turned(a, 'A')?, turned(b, 'B')?);
    let p = Product::new(a.shape(), b.shape())?;
    let mut y = product(call.threads, &p, a.slice()?, None, || b.to_f32s())?;
    let alpha = call.float("alpha", 1.0);
    if alpha != 1.0 {
        y.iter_mut().for_each(|y| *y *= alpha);
    }
    Ok(from_f32s(dtype, &p.shape, y)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn t(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    fn ms(op: &str) -> Case {
        Case::new(op, 1).domain("com.microsoft")
    }

    #[test]
    fn convolution_adds_then_activates() {
        let case = || ms("FusedConv").input(t(&[1, 1, 3], &[1., -2., 3.])).input(t(&[1, 1, 1], &[2.]));
        case().attr("activation", "Relu").expect(&[t(&[1, 1, 3], &[2., 0., 6.])]);
        let z = t(&[1, 1, 3], &[-3., 5., 0.]);
        case().skip().input(z).attr("activation", "Relu").expect(&[t(&[1, 1, 3], &[0., 1., 6.])]);
        let clip = case().attr("activation", "Clip").attr("activation_params", vec![-1.0f32, 2.5]);
        clip.expect(&[t(&[1, 1, 3], &[2., -1., 2.5])]);
        let leaky = case().attr("activation", "LeakyRelu").attr("activation_params", vec![0.5f32]);
        leaky.expect(&[t(&[1, 1, 3], &[2., -2., 6.])]);
        case().attr("activation", "Softmax").fails("\"activation\"");
        case().skip().input(t(&[1], &[1.])).fails("input 3 (Z)");
    }

    #[test]
    fn products_with_activations_and_transposes() {
        let a = t(&[1, 2], &[1., 2.]);
        let gemm = ms("FusedGemm").input(a.clone()).input(t(&[2, 1], &[1., -1.]));
        gemm.attr("activation", "LeakyRelu").attr("activation_alpha", 0.25f32).expect(&[t(&[1, 1], &[-0.25])]);
        let x = t(&[2, 1, 2], &[1., 2., 3., 4.]);
        let case = || ms("FusedMatMul").input(x.clone()).attr("alpha", 2.0f32);
        case().input(x.clone()).attr("transB", 1i64).expect(&[t(&[2, 1, 1], &[10., 50.])]);
        case().input(x.clone()).attr("transA", 1i64).expect(&[t(&[2, 2, 2], &[2., 4., 4., 8., 18., 24., 24., 32.])]);
        let batch = case().input(t(&[2, 1], &[1., 1.])).attr("transBatchA", 1i64);
        batch.expect(&[t(&[1, 2, 1], &[6., 14.])]);
    }
}
