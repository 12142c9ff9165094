//! `CumSum`, `CumProd` — running sums and products along an axis.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__CumSum.html> (opsets 11, 14), `onnx__CumProd.html` (26)
//! Inputs: x of T, axis int32 or int64 scalar. Output: as x. T: floats, integers of 32 and 64 bits.
//! Quantized: no. Errors: an axis out of range or no scalar; another type.

use super::elementwise::{KEEP, work_type};
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, call};
use crate::error::{Context, Result, bail};
use crate::tensor::cast::{Number, cast};
use crate::tensor::{Data, Element};

const CUMULATIVE: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 11,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval: |_| bail!("no evaluation"),
    quant: KEEP,
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "CumProd", since: 26, eval: |c| eval(c, true), ..CUMULATIVE },
    OpDef { name: "CumSum", eval: |c| eval(c, false), ..CUMULATIVE },
];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("CumSum", reverse)];

/// A sum from the other end.
fn reverse(b: &Back<'_>) -> Result<Gradients> {
    let mut attrs = b.attrs.clone();
    attrs.set("reverse", (1 - b.int("reverse", 0)).into());
    let g = b.gradients.first().cloned().flatten();
    let mut sums = call::evaluate(b.def, &attrs, b.opset, vec![g, b.inputs.get(1).cloned().flatten()], 1)?;
    Ok(vec![sums.pop().filter(|_| b.wants(0))])
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    if let (Some(rank), Some([axis])) = (ctx.rank(0), ctx.ints(1).as_deref()) {
        call::axis(*axis, rank)?;
    }
    ctx.same_as(0);
    Ok(())
}

fn eval(call: &mut Call<'_>, product: bool) -> Result<Vec<Item>> {
    let axis = call.input(1)?.to_i64().context("input 1 (axis)")?;
    let x = call.take(0)?;
    let axis = call::axis(axis, x.rank())?;
    let (exclusive, reverse) = (call.flag("exclusive", false), call.flag("reverse", false));
    let (n, inner) = (x.shape()[axis], x.shape()[axis + 1..].iter().product());
    let dtype = x.dtype();
    let mut y = cast(&x, work_type(dtype), true)?;
    drop(x);
    let how = (exclusive, reverse, product);
    match y.data_mut() {
        Data::F32(b) => run(b.make_mut(), n, inner, how),
        Data::F64(b) => run(b.make_mut(), n, inner, how),
        Data::I64(b) => run(b.make_mut(), n, inner, how),
        Data::U64(b) => run(b.make_mut(), n, inner, how),
        _ => bail!("input 0 has element type {dtype}, expected a number type"),
    }
    Ok(cast(&y, dtype, true)?.into())
}

fn run<T: Number + Element>(v: &mut [T], n: usize, inner: usize, (exclusive, reverse, product): (bool, bool, bool)) {
    if n * inner == 0 {
        return;
    }
    // Floats add up in 64 bits, integers wrap in 64.
    for slab in v.chunks_exact_mut(n * inner) {
        for i in 0..inner {
            let (mut float, mut int) = if product { (1.0, 1i64) } else { (0.0, 0) };
            for step in 0..n {
                let at = if reverse { n - 1 - step } else { step } * inner + i;
                let x = slab[at];
                let before = if T::IS_FLOAT { T::from_f64(float) } else { T::from_i64(int) };
                if T::IS_FLOAT {
                    float = if product { float * x.to_f64() } else { float + x.to_f64() };
                } else {
                    int = if product { int.wrapping_mul(x.to_i64()) } else { int.wrapping_add(x.to_i64()) };
                }
                let after = if T::IS_FLOAT { T::from_f64(float) } else { T::from_i64(int) };
                slab[at] = if exclusive { before } else { after };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn sums_and_products() {
        let x = Tensor::of(&[2, 3], vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let y = |v: [f32; 6]| Tensor::of(&[2, 3], v.to_vec());
        let case = |op: &str, axis: i64| Case::new(op, 26).input(x.clone()).input(Tensor::scalar(axis));
        case("CumSum", 1).expect(&[y([1.0, 3.0, 6.0, 4.0, 9.0, 15.0])]);
        case("CumSum", -2).expect(&[y([1.0, 2.0, 3.0, 5.0, 7.0, 9.0])]);
        case("CumSum", 1).attr("reverse", 1i64).expect(&[y([6.0, 5.0, 3.0, 15.0, 11.0, 6.0])]);
        case("CumSum", 1).attr("exclusive", 1i64).expect(&[y([0.0, 1.0, 3.0, 0.0, 4.0, 9.0])]);
        case("CumProd", 1).expect(&[y([1.0, 2.0, 6.0, 4.0, 20.0, 120.0])]);
        case("CumProd", 1).attr("exclusive", 1i64).expect(&[y([1.0, 1.0, 2.0, 1.0, 4.0, 20.0])]);
        case("CumSum", 2).fails("axis 2 is out of range");
        let i = Tensor::vector(vec![1i64, i64::MAX]);
        Case::new("CumSum", 14).input(i).input(Tensor::scalar(0i32)).expect(&[Tensor::vector(vec![1, i64::MIN])]);
        Case::new("CumSum", 14).input(x).input(Tensor::vector(vec![0i64, 1])).fails("input 1 (axis)");
    }
}
