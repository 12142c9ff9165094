//! `ScatterElements`, `Scatter` — `data` with single elements replaced by, or combined with, `updates`.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ScatterElements.html> (opsets 11, 13, 16, 18),
//! <https://onnx.ai/onnx/operators/onnx__Scatter.html> (opset 9, the older name)
//! Inputs: data, any type; indices int32 or int64; updates of indices' shape and data's type. Output: data's shape.
//! Attributes: axis, default 0; reduction: none, add, mul (opset 16), max, min (opset 18).
//! Quantized: keeps float, since data and updates would need one range.
//! Errors: shapes that do not fit; an index or the axis out of range; a reduction of strings.

use half::{bf16, f16};

use super::gather_elements::element_offsets;
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::tensor::order::Ordered;
use crate::tensor::{C64, C128, DType, Element, Tensor};
use crate::with_data;

const SCATTER_ELEMENTS: OpDef = OpDef {
    name: "ScatterElements",
    domain: OpDomain::Onnx,
    since: 11,
    inputs: Arity::exactly(3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "data and updates would need one range" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "Scatter", since: 9, ..SCATTER_ELEMENTS },
    SCATTER_ELEMENTS,
    OpDef { since: 16, ..SCATTER_ELEMENTS },
    OpDef { since: 18, ..SCATTER_ELEMENTS },
];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Scatter", reverse), Reverse::of("ScatterElements", reverse)];

/// For elements that are replaced.
pub(super) fn reverse(b: &Back<'_>) -> Result<Gradients> {
    match b.attrs.str("reduction").unwrap_or("none") {
        "none" => b.moved(&[0, 2]),
        other => bail!("there is no rule for the reduction \"{other}\""),
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.same_as(0);
    Ok(())
}

/// How an update meets the element that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    /// Replaces it.
    None,
    /// Sum; integers wrap.
    Add,
    /// Product; integers wrap.
    Mul,
    /// The larger; NaN when one is.
    Max,
    /// The smaller; NaN when one is.
    Min,
}

impl Reduction {
    /// The attribute's value for elements of a type.
    ///
    /// # Errors
    /// The name is no reduction, or the type has none.
    pub(crate) fn parse(name: &str, dtype: DType) -> Result<Self> {
        let r = match name {
            "none" => return Ok(Reduction::None),
            "add" => Reduction::Add,
            "mul" => Reduction::Mul,
            "max" => Reduction::Max,
            "min" => Reduction::Min,
            r => bail!("attribute \"reduction\" is \"{r}\", expected none, add, mul, max or min"),
        };
        ensure!(dtype != DType::Str, "attribute \"reduction\" is \"{name}\", which strings do not have");
        Ok(r)
    }
}

/// An element that an update can be combined with.
pub(crate) trait Combine: Element {
    /// Combines in place.
    fn combine(&mut self, update: &Self, r: Reduction);
}

/// The larger; NaN comes last in the order of sorting, so it wins.
fn select_max<T: Ordered + Copy>(x: &mut T, update: T) {
    if update.order(x) == std::cmp::Ordering::Greater {
        *x = update;
    }
}

macro_rules! combine {
    ($($t:ty: $add:expr, $mul:expr;)*) => { $(impl Combine for $t {
        fn combine(&mut self, update: &Self, r: Reduction) {
            let f: fn($t, $t) -> $t = match r {
                Reduction::None => |_, y| y,
                Reduction::Add => $add,
                Reduction::Mul => $mul,
                Reduction::Max => return select_max(self, *update),
                Reduction::Min => return select_min(self, *update),
            };
            *self = f(*self, *update);
        }
    })* };
}

/// The smaller, or the one that is NaN: it does not order itself, and comes last in the order of sorting.
fn select_min<T: Ordered + Copy>(x: &mut T, update: T) {
    let is_nan = |v: T| v != v;
    if is_nan(*x) {
        return;
    }
    if is_nan(update) || update.order(x) == std::cmp::Ordering::Less {
        *x = update;
    }
}

combine! {
    f32: |x, y| x + y, |x, y| x * y;
    f64: |x, y| x + y, |x, y| x * y;
    f16: |x, y| x + y, |x, y| x * y;
    bf16: |x, y| x + y, |x, y| x * y;
    C64: |x, y| x + y, |x, y| x * y;
    C128: |x, y| x + y, |x, y| x * y;
    i8: i8::wrapping_add, i8::wrapping_mul;
    i16: i16::wrapping_add, i16::wrapping_mul;
    i32: i32::wrapping_add, i32::wrapping_mul;
    i64: i64::wrapping_add, i64::wrapping_mul;
    u8: u8::wrapping_add, u8::wrapping_mul;
    u16: u16::wrapping_add, u16::wrapping_mul;
    u32: u32::wrapping_add, u32::wrapping_mul;
    u64: u64::wrapping_add, u64::wrapping_mul;
    bool: |x, y| x | y, |x, y| x & y;
}

impl Combine for String {
    fn combine(&mut self, update: &Self, _: Reduction) {
        self.clone_from(update);
    }
}

/// Combines runs of `run` elements of `updates`, in order, with those of `x` at `offsets`.
///
/// # Errors
/// The element types differ.
pub(crate) fn scatter(x: &mut Tensor, updates: &Tensor, offsets: &[usize], run: usize, r: Reduction) -> Result<()> {
    ensure!(updates.dtype() == x.dtype(), "input 2 (updates) has type {}, expected {}", updates.dtype(), x.dtype());
    with_data!(x.data_mut(), T, b => {
        let (to, from) = (b.make_mut(), updates.slice::<T>()?);
        for (i, &o) in offsets.iter().enumerate() {
            let (to, from) = (&mut to[o..o + run], &from[i * run..(i + 1) * run]);
            if r == Reduction::None {
                to.clone_from_slice(from);
            } else {
                to.iter_mut().zip(from).for_each(|(x, u)| x.combine(u, r));
            }
        }
    });
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let indices = call.ints(1)?;
    let shape = call.input(1)?.shape().to_vec();
    let updates = call.take(2)?;
    ensure!(updates.shape() == shape, "input 2 (updates) has shape {:?}, expected {shape:?}", updates.shape());
    let r = Reduction::parse(call.str("reduction", "none"), updates.dtype())?;
    let offsets = element_offsets(call.input(0)?.shape(), &shape, &indices, call.int("axis", 0))?;
    let mut x = call.take(0)?;
    scatter(&mut x, &updates, &offsets, 1, r)?;
    Ok(x.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    fn case(i: &[i64], u: &[f32]) -> Case {
        Case::new("ScatterElements", 18)
            .input(Tensor::of(&[1, 3], vec![1.0f32, 2.0, 3.0]))
            .input(Tensor::of(&[1, i.len()], i.to_vec()))
            .input(Tensor::of(&[1, u.len()], u.to_vec()))
            .attr("axis", 1)
    }

    #[test]
    fn replaces_and_reduces() {
        let row = |v: &[f32]| [Tensor::of(&[1, 3], v.to_vec())];
        case(&[2, 0], &[9.0, 8.0]).expect(&row(&[8.0, 2.0, 9.0]));
        case(&[-1, -1], &[9.0, 8.0]).attr("reduction", "add").expect(&row(&[1.0, 2.0, 20.0]));
        case(&[1, 1], &[9.0, 8.0]).attr("reduction", "mul").expect(&row(&[1.0, 144.0, 3.0]));
        case(&[0, 1], &[9.0, 1.0]).attr("reduction", "max").expect(&row(&[9.0, 2.0, 3.0]));
        case(&[0, 1], &[9.0, 1.0]).attr("reduction", "min").expect(&row(&[1.0, 1.0, 3.0]));
        case(&[1], &[f32::NAN]).attr("reduction", "min").expect(&row(&[1.0, f32::NAN, 3.0]));
        Case::new("Scatter", 9)
            .input(Tensor::vector(vec![1i32, 2]))
            .input(Tensor::vector(vec![1i32]))
            .input(Tensor::vector(vec![7i32]))
            .expect(&[Tensor::vector(vec![1i32, 7])]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        case(&[3], &[9.0]).fails("index 3 is out of range");
        case(&[0, 1], &[9.0]).fails("input 2 (updates) has shape [1, 1]");
        case(&[0], &[9.0]).attr("reduction", "avg").fails("reduction");
        let strings = || Tensor::vector(vec!["a".to_owned()]);
        Case::new("ScatterElements", 18)
            .input(strings())
            .input(Tensor::vector(vec![0i64]))
            .input(strings())
            .attr("reduction", "add")
            .fails("strings do not have");
    }
}
