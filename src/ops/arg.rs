//! `ArgMax`, `ArgMin` — where the largest or smallest element along an axis is.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ArgMax.html> (opsets 1, 11; 12: `select_last_index`; 13)
//! Input: data of T. Output: int64; the axis has size 1, or is gone with `keepdims` 0. T: every number type.
//! Quantized: no; the output is an index.
//! Errors: an axis out of range; an axis without elements.

use super::elementwise::{work_type, wrong_type};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule, call};
use crate::error::{Result, bail, ensure};
use crate::ir::Dim;
use crate::tensor::cast::cast;
use crate::tensor::{DType, Data, Tensor};

const ARG: OpDef = OpDef {
    name: "",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval: |_| bail!("no evaluation"),
    quant: QuantRule::Keep { why: "gives indices" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "ArgMax", eval: |c| eval(c, true), ..ARG },
    OpDef { name: "ArgMin", eval: |c| eval(c, false), ..ARG },
];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let keep = ctx.attrs.int("keepdims").unwrap_or(1) != 0;
    let mut shape = ctx.shape(0).map(<[Dim]>::to_vec);
    if let Some(s) = &mut shape {
        let axis = call::axis(ctx.attrs.int("axis").unwrap_or(0), s.len())?;
        if keep {
            s[axis] = Dim::Known(1);
        } else {
            s.remove(axis);
        }
    }
    ctx.set_tensor(0, Some(DType::I64), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>, largest: bool) -> Result<Vec<Item>> {
    let last = call.flag("select_last_index", false);
    let x = call.input(0)?;
    let axis = call::axis(call.int("axis", 0), x.rank())?;
    let n = x.shape()[axis];
    let inner: usize = x.shape()[axis + 1..].iter().product();
    let mut shape = x.shape().to_vec();
    shape[axis] = 1;
    let count = crate::tensor::count(&shape)?;
    ensure!(n > 0 || count == 0, "input 0 has shape {:?}, whose axis {axis} has no elements", x.shape());
    let x = cast(x, work_type(x.dtype()), true)?;
    let out = match x.data() {
        Data::F32(b) => indices(b.as_slice(), n, inner, largest, last),
        Data::F64(b) => indices(b.as_slice(), n, inner, largest, last),
        Data::I64(b) => indices(b.as_slice(), n, inner, largest, last),
        Data::U64(b) => indices(b.as_slice(), n, inner, largest, last),
        _ => return wrong_type(0, x.dtype(), "a number type"),
    };
    if !call.flag("keepdims", true) {
        shape.remove(axis);
    }
    Ok(Tensor::new(&shape, if count == 0 { Vec::new() } else { out })?.into())
}

fn indices<T: Copy + PartialOrd>(x: &[T], n: usize, inner: usize, largest: bool, last: bool) -> Vec<i64> {
    if n == 0 || inner == 0 {
        return Vec::new();
    }
    let mut out = Vec::with_capacity(x.len() / n);
    for slab in x.chunks_exact(n * inner) {
        for i in 0..inner {
            let mut best = 0;
            let mut value = slab[i];
            for j in 1..n {
                let v = slab[j * inner + i];
                // A NaN, which differs from itself, is the extreme, as in numpy.
                let is_better = if largest { v > value } else { v < value } || (v != v && value == value);
                if is_better || (last && v == value) {
                    (best, value) = (j, v);
                }
            }
            out.push(best as i64);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn indices() {
        let x = Tensor::of(&[2, 2], vec![2.0f32, 2.0, 3.0, 10.0]);
        let y = |v: [i64; 2]| Tensor::of(&[2, 1], v.to_vec());
        let case = |op: &str| Case::new(op, 13).attr("axis", 1i64).input(x.clone());
        case("ArgMax").expect(&[y([0, 1])]);
        case("ArgMax").attr("select_last_index", 1i64).expect(&[y([1, 1])]);
        case("ArgMin").expect(&[y([0, 0])]);
        case("ArgMax").attr("axis", 0i64).attr("keepdims", 0i64).expect(&[Tensor::vector(vec![1i64, 1])]);
        case("ArgMax").attr("axis", 2i64).fails("axis 2 is out of range");
        let empty = Tensor::of(&[0, 2], Vec::<f32>::new());
        Case::new("ArgMax", 13).input(empty.clone()).fails("has no elements");
        Case::new("ArgMax", 13).attr("axis", 1i64).input(empty).expect(&[Tensor::of(&[0, 1], Vec::<i64>::new())]);
        Case::new("ArgMax", 13).input(Tensor::vector(vec![true])).fails("element type bool");
    }
}
