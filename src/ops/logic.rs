//! Logic: `And`, `Or`, `Xor`, `Not` on booleans, and the tests `IsNaN` and `IsInf`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__And.html> and so on (opsets 1, 7, 9, 10, 13, 20; later ones add types)
//! Inputs: bool, broadcast; floats for `IsNaN` and `IsInf`. Output: bool.
//! Quantized: no; the output is boolean.

use super::elementwise::{infer_predicate, same_dtype, wrong_type, zip_in_place};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail};
use crate::tensor::{DType, Data, Tensor};

const LOGIC: OpDef = OpDef {
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
const TEST: OpDef = OpDef { inputs: Arity::exactly(1), infer: infer_test, ..LOGIC };

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "And", eval: |c| logic(c, |a, b| a & b), ..LOGIC },
    OpDef { name: "IsInf", since: 10, eval: is_inf, ..TEST },
    OpDef { name: "IsNaN", since: 9, eval: |c| test(c, f64::is_nan), ..TEST },
    OpDef { name: "Not", eval: not, ..TEST },
    OpDef { name: "Or", eval: |c| logic(c, |a, b| a | b), ..LOGIC },
    OpDef { name: "Xor", eval: |c| logic(c, |a, b| a ^ b), ..LOGIC },
];

fn infer_test(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = ctx.shape(0).map(<[_]>::to_vec);
    ctx.set_tensor(0, Some(DType::Bool), shape);
    Ok(())
}

fn logic(call: &mut Call<'_>, f: fn(bool, bool) -> bool) -> Result<Vec<Item>> {
    let dtype = same_dtype(call)?;
    if dtype != DType::Bool {
        return wrong_type(0, dtype, "bool");
    }
    let (a, b) = (call.take(0)?, call.take(1)?);
    Ok(zip_in_place::<bool>(a, b, call.threads, f)?.into())
}

fn not(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let mut t = call.take(0)?;
    t.slice_mut::<bool>()?.iter_mut().for_each(|x| *x = !*x);
    Ok(t.into())
}

fn is_inf(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (positive, negative) = (call.flag("detect_positive", true), call.flag("detect_negative", true));
    test(call, |x| (positive && x == f64::INFINITY) || (negative && x == f64::NEG_INFINITY))
}

fn test(call: &mut Call<'_>, f: impl Fn(f64) -> bool) -> Result<Vec<Item>> {
    let t = call.input(0)?;
    if !t.dtype().is_float() {
        return wrong_type(0, t.dtype(), "a floating-point type");
    }
    let v: Vec<bool> = match t.data() {
        Data::F32(b) => b.as_slice().iter().map(|&x| f(x.into())).collect(),
        _ => t.to_f64s()?.into_iter().map(f).collect(),
    };
    Ok(Tensor::new(t.shape(), v)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn truth_tables() {
        let b = |v: &[bool]| Tensor::vector(v.to_vec());
        let (x, y) = (b(&[false, false, true, true]), b(&[false, true, false, true]));
        for (op, z) in [
            ("And", [false, false, false, true]),
            ("Or", [false, true, true, true]),
            ("Xor", [false, true, true, false]),
        ] {
            Case::new(op, 7).input(x.clone()).input(y.clone()).expect(&[b(&z)]);
        }
        Case::new("Not", 1).input(x).expect(&[b(&[true, true, false, false])]);
        Case::new("Not", 1).input(Tensor::scalar(1i64)).fails("element type is int64, expected bool");
        Case::new("Or", 7).input(Tensor::scalar(1i64)).input(Tensor::scalar(1i64)).fails("expected bool");
    }

    #[test]
    fn infinities_and_nans() {
        let x = Tensor::vector(vec![f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0]);
        let b = |v: [bool; 4]| Tensor::vector(v.to_vec());
        Case::new("IsNaN", 13).input(x.clone()).expect(&[b([false, false, true, false])]);
        Case::new("IsInf", 10).input(x.clone()).expect(&[b([true, true, false, false])]);
        Case::new("IsInf", 10).attr("detect_negative", 0i64).input(x).expect(&[b([true, false, false, false])]);
        Case::new("IsNaN", 13).input(Tensor::scalar(1i64)).fails("expected a floating-point type");
    }
}
