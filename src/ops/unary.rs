//! Functions of each element: `Abs`, `Neg`, `Exp`, `Sqrt`, `Floor`, the trigonometric ones …
//!
//! Spec: <https://onnx.ai/onnx/operators/> (all opsets; later ones only add types)
//! Input: X of T, any shape. Output: Y, as X.
//! T: f16, bf16, f32, f64; integers too for `Abs`, `Neg`, `Sign`.
//! Quantized: no.
//! Errors: another element type.

use super::elementwise::{UNARY, each, map, map_taken, scalars, wrong_type};
use super::reverse::{Back, Gradients, Reverse};
use super::{Call, Item, OpDef};
use crate::error::Result;
use crate::kernels::math;
use crate::tensor::Data;

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "Abs", eval: abs, ..UNARY },
    OpDef { name: "Acos", since: 7, eval: |c| map(c, Acos {}), ..UNARY },
    OpDef { name: "Acosh", since: 9, eval: |c| map(c, Acosh {}), ..UNARY },
    OpDef { name: "Asin", since: 7, eval: |c| map(c, Asin {}), ..UNARY },
    OpDef { name: "Asinh", since: 9, eval: |c| map(c, Asinh {}), ..UNARY },
    OpDef { name: "Atan", since: 7, eval: |c| map(c, Atan {}), ..UNARY },
    OpDef { name: "Atanh", since: 9, eval: |c| map(c, Atanh {}), ..UNARY },
    OpDef { name: "Ceil", eval: |c| map(c, Ceil {}), ..UNARY },
    OpDef { name: "Cos", since: 7, eval: |c| map(c, Cos {}), ..UNARY },
    OpDef { name: "Cosh", since: 9, eval: |c| map(c, Cosh {}), ..UNARY },
    OpDef { name: "Erf", since: 9, eval: |c| map(c, Erf {}), ..UNARY },
    OpDef { name: "Exp", eval: |c| map(c, Exp {}), ..UNARY },
    OpDef { name: "Floor", eval: |c| map(c, Floor {}), ..UNARY },
    OpDef { name: "Log", eval: |c| map(c, Log {}), ..UNARY },
    OpDef { name: "Neg", eval: neg, ..UNARY },
    OpDef { name: "Reciprocal", eval: |c| map(c, Reciprocal {}), ..UNARY },
    OpDef { name: "Round", since: 11, eval: |c| map(c, Round {}), ..UNARY },
    OpDef { name: "Sign", since: 9, eval: sign, ..UNARY },
    OpDef { name: "Sin", since: 7, eval: |c| map(c, Sin {}), ..UNARY },
    OpDef { name: "Sinh", since: 9, eval: |c| map(c, Sinh {}), ..UNARY },
    OpDef { name: "Sqrt", eval: |c| map(c, Sqrt {}), ..UNARY },
    OpDef { name: "Tan", since: 7, eval: |c| map(c, Tan {}), ..UNARY },
];

pub(super) const REVERSE: &[Reverse] = &[
    Reverse::of("Abs", |b| {
        b.each(|x, _| {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                0.0
            }
        })
    }),
    Reverse::of("Acos", |b| b.each(|x, _| -1.0 / (1.0 - x * x).sqrt())),
    Reverse::of("Acosh", |b| b.each(|x, _| 1.0 / (x * x - 1.0).sqrt())),
    Reverse::of("Asin", |b| b.each(|x, _| 1.0 / (1.0 - x * x).sqrt())),
    Reverse::of("Asinh", |b| b.each(|x, _| 1.0 / (x * x + 1.0).sqrt())),
    Reverse::of("Atan", |b| b.each(|x, _| 1.0 / (1.0 + x * x))),
    Reverse::of("Atanh", |b| b.each(|x, _| 1.0 / (1.0 - x * x))),
    Reverse::of("Ceil", flat),
    Reverse::of("Cos", |b| b.each(|x, _| -x.sin())),
    Reverse::of("Cosh", |b| b.each(|x, _| x.sinh())),
    Reverse::of("Erf", |b| b.each(|x, _| std::f32::consts::FRAC_2_SQRT_PI * (-x * x).exp())),
    Reverse::of("Exp", |b| b.each(|_, y| y)),
    Reverse::of("Floor", flat),
    Reverse::of("Log", |b| b.each(|x, _| 1.0 / x)),
    Reverse::of("Neg", |b| b.each(|_, _| -1.0)),
    Reverse::of("Reciprocal", |b| b.each(|_, y| -y * y)),
    Reverse::of("Round", flat),
    Reverse::of("Sign", flat),
    Reverse::of("Sin", |b| b.each(|x, _| x.cos())),
    Reverse::of("Sinh", |b| b.each(|x, _| x.cosh())),
    Reverse::of("Sqrt", |b| b.each(|_, y| 0.5 / y)),
    Reverse::of("Tan", |b| b.each(|_, y| 1.0 + y * y)),
];

/// Steps are flat between their jumps.
fn flat(_: &Back<'_>) -> Result<Gradients> {
    Ok(Vec::new())
}

scalars! {
    Abs {} |x| x.abs(), x.abs();
    Acos {} |x| x.acos(), x.acos();
    Acosh {} |x| x.acosh(), x.acosh();
    Asin {} |x| x.asin(), x.asin();
    Asinh {} |x| x.asinh(), x.asinh();
    Atan {} |x| x.atan(), x.atan();
    Atanh {} |x| x.atanh(), x.atanh();
    Ceil {} |x| x.ceil(), x.ceil();
    Cos {} |x| x.cos(), x.cos();
    Cosh {} |x| x.cosh(), x.cosh();
    Erf {} |x| math::erf(x), libm::erf(x);
    Exp {} |x| math::exp(x), x.exp();
    Floor {} |x| x.floor(), x.floor();
    Log {} |x| math::log(x), x.ln();
    Neg {} |x| -x, -x;
    Reciprocal {} |x| 1.0 / x, 1.0 / x;
    /// Half to even.
    Round {} |x| x.round_ties_even(), x.round_ties_even();
    /// Zero and NaN stay as they are.
    Sign {} |x| if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { x }, if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { x };
    Sin {} |x| x.sin(), x.sin();
    Sinh {} |x| x.sinh(), x.sinh();
    Sqrt {} |x| x.sqrt(), x.sqrt();
    Tan {} |x| x.tan(), x.tan();
}

/// Applies a function to signed integers (and one to unsigned ones) in place, and a [`Scalar`] to floats.
macro_rules! with_integers {
    ($call:ident, $scalar:expr, $signed:expr, $unsigned:expr) => {{
        let mut t = $call.take(0)?;
        match t.data_mut() {
            Data::I8(b) => each(b, $signed),
            Data::I16(b) => each(b, $signed),
            Data::I32(b) => each(b, $signed),
            Data::I64(b) => each(b, $signed),
            Data::U8(b) => each(b, $unsigned),
            Data::U16(b) => each(b, $unsigned),
            Data::U32(b) => each(b, $unsigned),
            Data::U64(b) => each(b, $unsigned),
            Data::Bool(_) | Data::Str(_) | Data::C64(_) | Data::C128(_) => {
                return wrong_type(0, t.dtype(), "a number type");
            }
            _ => return map_taken($call, t, $scalar),
        }
        Ok(t.into())
    }};
}

fn abs(call: &mut Call<'_>) -> Result<Vec<Item>> {
    with_integers!(call, Abs {}, |x| x.wrapping_abs(), |x| x)
}

fn neg(call: &mut Call<'_>) -> Result<Vec<Item>> {
    with_integers!(call, Neg {}, |x| x.wrapping_neg(), |x| x.wrapping_neg())
}

fn sign(call: &mut Call<'_>) -> Result<Vec<Item>> {
    with_integers!(call, Sign {}, |x| x.signum(), |x| x.min(1))
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn functions_of_each_element() {
        let v = |v: Vec<f32>| Tensor::vector(v);
        for (op, x, y) in [
            ("Abs", vec![-1.0, 2.0], vec![1.0, 2.0]),
            ("Neg", vec![-1.0, 2.0], vec![1.0, -2.0]),
            ("Ceil", vec![-1.5, 1.2], vec![-1.0, 2.0]),
            ("Floor", vec![-1.5, 1.2], vec![-2.0, 1.0]),
            ("Round", vec![0.5, 1.5, -2.5], vec![0.0, 2.0, -2.0]),
            ("Sign", vec![-3.0, 0.0, 9.0], vec![-1.0, 0.0, 1.0]),
            ("Sqrt", vec![4.0, 0.25], vec![2.0, 0.5]),
            ("Reciprocal", vec![4.0, -0.5], vec![0.25, -2.0]),
            ("Exp", vec![0.0, 1.0], vec![1.0, std::f32::consts::E]),
            ("Log", vec![1.0, std::f32::consts::E], vec![0.0, 1.0]),
            ("Erf", vec![0.0, 0.5], vec![0.0, 0.520_499_9]),
            ("Cos", vec![0.0], vec![1.0]),
            ("Atanh", vec![0.5], vec![0.549_306_15]),
        ] {
            Case::new(op, 13).input(v(x)).tolerance(1e-6).expect(&[v(y)]);
        }
        let h = |x: f32| half::f16::from_f32(x);
        Case::new("Exp", 13)
            .input(Tensor::vector(vec![h(1.0)]))
            .expect(&[Tensor::vector(vec![h(std::f32::consts::E)])]);
        Case::new("Exp", 13).input(Tensor::scalar(1.0f64)).expect(&[Tensor::scalar(1.0f64.exp())]);
    }

    #[test]
    fn integers() {
        Case::new("Abs", 13).input(Tensor::vector(vec![-3i8, i8::MIN])).expect(&[Tensor::vector(vec![3i8, i8::MIN])]);
        Case::new("Neg", 13).input(Tensor::vector(vec![-3i64])).expect(&[Tensor::vector(vec![3i64])]);
        Case::new("Sign", 13).input(Tensor::vector(vec![7u8, 0])).expect(&[Tensor::vector(vec![1u8, 0])]);
        Case::new("Sqrt", 13).input(Tensor::vector(vec![4i64])).fails("input 0 has element type int64");
        Case::new("Abs", 13).input(Tensor::vector(vec![true])).fails("expected a number type");
    }

    #[test]
    fn empty_tensors_stay_empty() {
        let empty = Tensor::vector(Vec::<f32>::new());
        Case::new("Exp", 13).input(empty.clone()).expect(&[empty]);
    }
}
