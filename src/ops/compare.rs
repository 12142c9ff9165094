//! Comparisons of two broadcast tensors: `Equal`, `Less`, `LessOrEqual`, `Greater`, `GreaterOrEqual`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Equal.html> and so on (opsets 7, 9, 11, 13, 16, 19; later ones only add
//! types). Inputs: A, B of T, broadcast. Output: bool, the broadcast shape. T: numbers; for `Equal` bool and string too.
//! Quantized: no; the output is boolean.

use super::elementwise::{infer_predicate, same_dtype, work_type, wrong_type, zip};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail};
use crate::ir::{Dim, sym};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Data};

const COMPARE: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_predicate,
    eval: |_| bail!("no evaluation"),
    quant: QuantRule::Keep { why: "gives booleans" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "Equal", infer: infer_equal, eval: equal, ..COMPARE },
    OpDef { name: "Greater", eval: |c| ordered!(c, >), ..COMPARE },
    OpDef { name: "GreaterOrEqual", since: 12, eval: |c| ordered!(c, >=), ..COMPARE },
    OpDef { name: "Less", eval: |c| ordered!(c, <), ..COMPARE },
    OpDef { name: "LessOrEqual", since: 12, eval: |c| ordered!(c, <=), ..COMPARE },
];

/// Elements of shapes are compared too, as 1 and 0: an exported `expand` chooses by them.
fn infer_equal(ctx: &mut InferCtx<'_>) -> Result<()> {
    infer_predicate(ctx)?;
    let (Some(a), Some(b)) = (ctx.values(0), ctx.values(1)) else { return Ok(()) };
    let n = a.len().max(b.len());
    if n > 0 && [a.len(), b.len()].iter().all(|&len| len == 1 || len == n) {
        let at = |v: &[Dim], i: usize| v[if v.len() == 1 { 0 } else { i }].clone();
        ctx.set_values(0, (0..n).map(|i| equal_dims(&at(&a, i), &at(&b, i))).collect());
    }
    Ok(())
}

fn equal_dims(a: &Dim, b: &Dim) -> Dim {
    // Names stand for sizes, so an expression may be known to be larger than a number, as a size is than -1.
    let is_above = |d: &Dim, n: i64| sym::lower_bound(d).is_some_and(|low| low > n);
    match (sym::constant(a), sym::constant(b)) {
        (Some(x), Some(y)) => Dim::Known(usize::from(x == y)),
        (Some(n), None) if is_above(b, n) => Dim::Known(0),
        (None, Some(n)) if is_above(a, n) => Dim::Known(0),
        _ if sym::is_same(a, b) => Dim::Known(1),
        _ => Dim::Unknown,
    }
}

macro_rules! ordered {
    ($call:expr, $op:tt) => {{
        let dtype = same_dtype($call)?;
        let work = work_type(dtype);
        let (a, b, threads) = (cast($call.input(0)?, work, true)?, cast($call.input(1)?, work, true)?, $call.threads);
        let c = match work {
            DType::F32 => zip::<f32, bool>(&a, &b, threads, |x, y| x $op y)?,
            DType::F64 => zip::<f64, bool>(&a, &b, threads, |x, y| x $op y)?,
            DType::I64 => zip::<i64, bool>(&a, &b, threads, |x, y| x $op y)?,
            DType::U64 => zip::<u64, bool>(&a, &b, threads, |x, y| x $op y)?,
            d => return wrong_type(0, d, "a number type"),
        };
        Ok(c.into())
    }};
}
use ordered;

fn equal(call: &mut Call<'_>) -> Result<Vec<Item>> {
    same_dtype(call)?;
    let (a, b) = (call.input(0)?, call.input(1)?);
    match a.data() {
        Data::Bool(_) => Ok(zip::<bool, bool>(a, b, call.threads, |x, y| x == y)?.into()),
        Data::Str(_) => Ok(zip::<String, bool>(a, b, call.threads, |x, y| x == y)?.into()),
        _ => ordered!(call, ==),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn elements_of_shapes_are_compared() {
        let s = |t: &str| Dim::Symbol(t.into());
        assert_eq!(equal_dims(&s("N"), &sym::of_int(-1)), Dim::Known(0));
        assert_eq!(equal_dims(&sym::of_int(-1), &sym::of_int(-1)), Dim::Known(1));
        assert_eq!(equal_dims(&s("N - 1"), &sym::of_int(-1)), Dim::Unknown);
        assert_eq!(equal_dims(&s("N"), &s("N")), Dim::Known(1));
    }

    #[test]
    fn comparisons() {
        let (a, b) = (Tensor::vector(vec![1i64, 2, 3]), Tensor::vector(vec![2i64]));
        for (op, y) in [
            ("Equal", vec![false, true, false]),
            ("Less", vec![true, false, false]),
            ("LessOrEqual", vec![true, true, false]),
            ("Greater", vec![false, false, true]),
            ("GreaterOrEqual", vec![false, true, true]),
        ] {
            Case::new(op, 16).input(a.clone()).input(b.clone()).expect(&[Tensor::vector(y)]);
        }
        let nan = Tensor::scalar(f32::NAN);
        Case::new("Equal", 16).input(nan.clone()).input(nan.clone()).expect(&[Tensor::scalar(false)]);
        let s = |s: &str| Tensor::scalar(s.to_owned());
        Case::new("Equal", 19).input(s("a")).input(s("a")).expect(&[Tensor::scalar(true)]);
        Case::new("Less", 19).input(s("a")).input(s("a")).fails("input 0 has element type string");
        Case::new("Less", 19).input(a).input(nan).fails("input 1 has element type float, expected int64");
    }
}
