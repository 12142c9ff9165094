//! Activation functions: `Relu`, `LeakyRelu`, `Elu`, `Gelu`, `HardSwish`, `Sigmoid`, `Tanh` …
//!
//! Spec: <https://onnx.ai/onnx/operators/> (all opsets; later ones only add types)
//! Input: X of T, any shape. Output: Y, as X. T: f16, bf16, f32, f64; for `Relu` signed integers too.
//! Quantized: `Relu` bounds its input; `Sigmoid` and `Tanh` have fixed output ranges; `LeakyRelu` an observed one.
//! Errors: another element type; an unknown `approximate`.

use super::elementwise::{UNARY, each, map, map_taken, map_within, scalars, wrong_type};
use super::reverse::{Back, Gradients, Reverse};
use super::{Call, Item, OpDef, OpDomain, OutputRange, QuantRule, Slots};
use crate::error::{Result, bail};
use crate::kernels::math;
use crate::tensor::Data;

const fn combine(output: OutputRange) -> QuantRule {
    QuantRule::Combine { data: Slots::All, output }
}

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "Celu", since: 12, eval: |c| map(c, Celu { alpha: c.float("alpha", 1.0) }), ..UNARY },
    OpDef { name: "Elu", eval: |c| map(c, Elu { alpha: c.float("alpha", 1.0) }), ..UNARY },
    OpDef { name: "Gelu", since: 20, eval: gelu, ..UNARY },
    OpDef { name: "Gelu", domain: OpDomain::Microsoft, eval: |c| map(c, ExactGelu {}), ..UNARY },
    OpDef { name: "HardSigmoid", eval: hard_sigmoid, ..UNARY },
    OpDef { name: "HardSwish", since: 14, eval: |c| map(c, HardSwish {}), ..UNARY },
    OpDef { name: "LeakyRelu", eval: leaky_relu, quant: combine(OutputRange::Observed), ..UNARY },
    OpDef { name: "Mish", since: 18, eval: |c| map(c, Mish {}), ..UNARY },
    OpDef { name: "QuickGelu", domain: OpDomain::Microsoft, eval: quick_gelu, ..UNARY },
    OpDef { name: "Relu", eval: relu, quant: QuantRule::Bound, ..UNARY },
    OpDef { name: "Selu", eval: selu, ..UNARY },
    OpDef { name: "Shrink", since: 9, eval: shrink, ..UNARY },
    OpDef { name: "Sigmoid", eval: |c| map(c, Sigmoid {}), quant: combine(OutputRange::Fixed(0.0, 1.0)), ..UNARY },
    OpDef { name: "Softplus", eval: |c| map(c, Softplus {}), ..UNARY },
    OpDef { name: "Softsign", eval: |c| map(c, Softsign {}), ..UNARY },
    OpDef { name: "Swish", since: 24, eval: |c| map(c, Swish { alpha: c.float("alpha", 1.0) }), ..UNARY },
    OpDef { name: "Tanh", eval: |c| map(c, Tanh {}), quant: combine(OutputRange::Fixed(-1.0, 1.0)), ..UNARY },
    OpDef { name: "ThresholdedRelu", since: 10, eval: thresholded_relu, ..UNARY },
];

pub(super) const REVERSE: &[Reverse] = &[
    Reverse::of("Celu", |b| b.each(|x, _| if x > 0.0 { 1.0 } else { (x / b.float("alpha", 1.0)).exp() })),
    Reverse::of("Elu", |b| b.each(|x, y| if x > 0.0 { 1.0 } else { y + b.float("alpha", 1.0) })),
    Reverse::of("Gelu", reverse_gelu),
    Reverse::microsoft("Gelu", |b| b.each(|x, _| gelu_slope(x))),
    Reverse::of("HardSigmoid", reverse_hard_sigmoid),
    Reverse::of("HardSwish", |b| {
        b.each(|x, _| {
            if x <= -3.0 {
                0.0
            } else if x >= 3.0 {
                1.0
            } else {
                x / 3.0 + 0.5
            }
        })
    }),
    Reverse::of("LeakyRelu", |b| b.each(|x, _| if x < 0.0 { b.float("alpha", 0.01) } else { 1.0 })),
    Reverse::of("Mish", |b| b.each(|x, _| mish_slope(x))),
    Reverse::microsoft("QuickGelu", |b| b.each(|x, _| swish_slope(x, b.float("alpha", 1.702)))),
    Reverse::of("Relu", |b| b.each(|x, _| if x > 0.0 { 1.0 } else { 0.0 })),
    Reverse::of("Selu", reverse_selu),
    Reverse::of("Shrink", |b| b.each(|x, _| if x.abs() > b.float("lambd", 0.5) { 1.0 } else { 0.0 })),
    Reverse::of("Sigmoid", |b| b.each(|_, y| y * (1.0 - y))),
    Reverse::of("Softplus", |b| b.each(|x, _| math::sigmoid(x))),
    Reverse::of("Softsign", |b| b.each(|x, _| (1.0 + x.abs()).powi(-2))),
    Reverse::of("Swish", |b| b.each(|x, _| swish_slope(x, b.float("alpha", 1.0)))),
    Reverse::of("Tanh", |b| b.each(|_, y| 1.0 - y * y)),
    Reverse::of("ThresholdedRelu", |b| b.each(|x, _| if x > b.float("alpha", 1.0) { 1.0 } else { 0.0 })),
];

fn gelu_slope(x: f32) -> f32 {
    let density = math::exp(-0.5 * x * x) * 0.398_942_3;
    0.5 * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density
}

fn gelu_tanh_slope(x: f32) -> f32 {
    let c = (2.0 / std::f32::consts::PI).sqrt();
    let t = math::tanh(c * (x + 0.044_715 * x * x * x));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 0.134_145 * x * x)
}

fn mish_slope(x: f32) -> f32 {
    let t = math::tanh(math::softplus(x));
    t + x * math::sigmoid(x) * (1.0 - t * t)
}

fn swish_slope(x: f32, alpha: f32) -> f32 {
    let s = math::sigmoid(alpha * x);
    s + alpha * x * s * (1.0 - s)
}

fn reverse_gelu(b: &Back<'_>) -> Result<Gradients> {
    if b.attrs.str("approximate") == Some("tanh") {
        b.each(|x, _| gelu_tanh_slope(x))
    } else {
        b.each(|x, _| gelu_slope(x))
    }
}

fn reverse_hard_sigmoid(b: &Back<'_>) -> Result<Gradients> {
    let alpha = b.float("alpha", 0.2);
    b.each(|_, y| if y > 0.0 && y < 1.0 { alpha } else { 0.0 })
}

fn reverse_selu(b: &Back<'_>) -> Result<Gradients> {
    let (alpha, gamma) = (b.float("alpha", 1.673_263_2), b.float("gamma", 1.050_701));
    b.each(|x, y| if x > 0.0 { gamma } else { y + gamma * alpha })
}

scalars! {
    Celu { alpha } |x|
        if x > 0.0 { x } else { alpha * math::exp_m1(x / alpha) },
        if x > 0.0 { x } else { alpha * (x / alpha).exp_m1() };
    Elu { alpha } |x|
        if x > 0.0 { x } else { alpha * math::exp_m1(x) },
        if x > 0.0 { x } else { alpha * x.exp_m1() };
    ExactGelu {} |x| math::gelu(x), 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
    TanhGelu {} |x| math::gelu_tanh(x),
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh());
    HardSigmoid { alpha, beta } |x| clamp01(alpha * x + beta), (alpha * x + beta).max(0.0).min(1.0);
    HardSwish {} |x| x * clamp01(x * (1.0 / 6.0) + 0.5), x * (x / 6.0 + 0.5).max(0.0).min(1.0);
    LeakyRelu { alpha } |x| if x < 0.0 { alpha * x } else { x }, if x < 0.0 { alpha * x } else { x };
    Mish {} |x| math::mish(x), x * x.exp().ln_1p().tanh();
    /// A NaN stays.
    Relu {} |x| if x < 0.0 { 0.0 } else { x }, if x < 0.0 { 0.0 } else { x };
    Selu { alpha, gamma } |x|
        gamma * if x > 0.0 { x } else { alpha * math::exp_m1(x) },
        gamma * if x > 0.0 { x } else { alpha * x.exp_m1() };
    Shrink { lambd, bias } |x|
        if x < -lambd { x + bias } else if x > lambd { x - bias } else { 0.0 },
        if x < -lambd { x + bias } else if x > lambd { x - bias } else { 0.0 };
    Sigmoid {} |x| math::sigmoid(x), 1.0 / (1.0 + (-x).exp());
    Softplus {} |x| math::softplus(x), x.max(0.0) + (-x.abs()).exp().ln_1p();
    Softsign {} |x| x / (1.0 + x.abs()), x / (1.0 + x.abs());
    Swish { alpha } |x| x * math::sigmoid(alpha * x), x / (1.0 + (-alpha * x).exp());
    Tanh {} |x| math::tanh(x), x.tanh();
    ThresholdedRelu { alpha } |x| if x > alpha { x } else { 0.0 }, if x > alpha { x } else { 0.0 };
}

/// Clamped to `[0, 1]`; a NaN stays.
#[inline(always)]
fn clamp01(x: f32) -> f32 {
    let x = if x > 1.0 { 1.0 } else { x };
    if x < 0.0 { 0.0 } else { x }
}

fn gelu(call: &mut Call<'_>) -> Result<Vec<Item>> {
    match call.str("approximate", "none") {
        "none" => map(call, ExactGelu {}),
        "tanh" => map(call, TanhGelu {}),
        other => bail!("attribute \"approximate\" is \"{other}\", expected \"none\" or \"tanh\""),
    }
}

fn hard_sigmoid(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (alpha, beta) = (call.float("alpha", 0.2), call.float("beta", 0.5));
    map(call, HardSigmoid { alpha, beta })
}

fn leaky_relu(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let alpha = call.float("alpha", 0.01);
    map(call, LeakyRelu { alpha })
}

fn quick_gelu(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let alpha = call.float("alpha", 1.702);
    map(call, Swish { alpha })
}

fn relu(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let mut t = call.take(0)?;
    match t.data_mut() {
        Data::I8(b) => each(b, |x| x.max(0)),
        Data::I16(b) => each(b, |x| x.max(0)),
        Data::I32(b) => each(b, |x| x.max(0)),
        Data::I64(b) => each(b, |x| x.max(0)),
        Data::F16(_) | Data::BF16(_) | Data::F32(_) | Data::F64(_) => {
            return map_within(call, t, Relu {}, Some((0.0, f32::INFINITY)));
        }
        _ => return wrong_type(0, t.dtype(), "a float or signed integer type"),
    }
    Ok(t.into())
}

fn selu(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let alpha = call.float("alpha", 1.673_263_2);
    let gamma = call.float("gamma", 1.050_701);
    map(call, Selu { alpha, gamma })
}

fn shrink(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (bias, lambd) = (call.float("bias", 0.0), call.float("lambd", 0.5));
    let t = call.take(0)?;
    if t.dtype().is_integer() {
        // Exact for what fits 53 bits; the parameters are floats anyway.
        let v = t.to_f64s()?;
        let f = Shrink { lambd, bias };
        let v = v.into_iter().map(|x| super::elementwise::Scalar::f64(f, x)).collect();
        return Ok(crate::tensor::cast::from_f64s(t.dtype(), t.shape(), v)?.into());
    }
    map_taken(call, t, Shrink { lambd, bias })
}

fn thresholded_relu(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let alpha = call.float("alpha", 1.0);
    map(call, ThresholdedRelu { alpha })
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn v(v: &[f32]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    #[test]
    fn defaults() {
        let x = [-2.0, 0.0, 3.0];
        for (op, opset, y) in [
            ("Relu", 14, [0.0, 0.0, 3.0]),
            ("LeakyRelu", 16, [-0.02, 0.0, 3.0]),
            ("Elu", 6, [-0.864_664_7, 0.0, 3.0]),
            ("Celu", 12, [-0.864_664_7, 0.0, 3.0]),
            ("Selu", 6, [-1.520_166_5, 0.0, 3.152_103]),
            ("Gelu", 20, [-0.045_500_264, 0.0, 2.995_950_2]),
            ("HardSigmoid", 6, [0.1, 0.5, 1.0]),
            ("HardSwish", 14, [-1.0 / 3.0, 0.0, 3.0]),
            ("Mish", 18, [-0.252_501_5, 0.0, 2.986_535]),
            ("Shrink", 9, [-2.0, 0.0, 3.0]),
            ("Sigmoid", 13, [0.119_202_92, 0.5, 0.952_574_13]),
            ("Softplus", 1, [0.126_928_01, std::f32::consts::LN_2, 3.048_587_3]),
            ("Softsign", 1, [-2.0 / 3.0, 0.0, 0.75]),
            ("Swish", 24, [-0.238_405_84, 0.0, 2.857_722_3]),
            ("Tanh", 13, [-0.964_027_6, 0.0, 0.995_054_8]),
            ("ThresholdedRelu", 10, [0.0, 0.0, 3.0]),
        ] {
            Case::new(op, opset).input(v(&x)).tolerance(1e-6).expect(&[v(&y)]);
            let wide = Tensor::vector(x.map(f64::from).to_vec());
            let expected = Tensor::vector(y.map(f64::from).to_vec());
            Case::new(op, opset).input(wide).tolerance(1e-6).expect(&[expected]);
        }
    }

    #[test]
    fn parameters_and_types() {
        Case::new("LeakyRelu", 16).attr("alpha", 0.5f32).input(v(&[-2.0])).expect(&[v(&[-1.0])]);
        Case::new("Gelu", 20).attr("approximate", "tanh").input(v(&[1.0])).tolerance(1e-6).expect(&[v(&[0.841_192])]);
        Case::new("Gelu", 20).attr("approximate", "sin").input(v(&[1.0])).fails("\"approximate\" is \"sin\"");
        let ints = Tensor::vector(vec![-3i32, 4]);
        Case::new("Relu", 14).input(ints.clone()).expect(&[Tensor::vector(vec![0i32, 4])]);
        Case::new("Relu", 14).input(Tensor::vector(vec![3u8])).fails("element type uint8");
        Case::new("Shrink", 9).attr("bias", 1.0f32).input(ints).expect(&[Tensor::vector(vec![-2i32, 3])]);
        Case::new("QuickGelu", 1).domain("com.microsoft").input(v(&[1.0])).tolerance(1e-6).expect(&[v(&[0.845_795_8])]);
    }
}
