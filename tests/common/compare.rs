//! Compares values: floats within a tolerance, everything else exactly; and inferred types with evaluated values.

use std::fmt::Write as _;

use onnx_quant::ir::{Dim, ValueType};
use onnx_quant::ops::Item;
use onnx_quant::tensor::{DType, Tensor};

/// `|got - expected| <= absolute + relative * |expected|`, as NumPy's `assert_allclose` has it.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub relative: f64,
    pub absolute: f64,
}

/// Whether two values are the same within the tolerance for their element type; else what differs first.
pub fn items(got: &Item, expected: &Item, tolerance: &dyn Fn(DType) -> Tolerance) -> Result<(), String> {
    match (got, expected) {
        (Item::Tensor(g), Item::Tensor(e)) => tensors(g, e, tolerance(e.dtype())),
        (Item::Sequence(g), Item::Sequence(e)) => {
            if g.len() != e.len() {
                return Err(format!("a sequence of {}, expected {}", g.len(), e.len()));
            }
            let mut pairs = g.iter().zip(e.iter()).enumerate();
            pairs.try_for_each(|(i, (g, e))| items(g, e, tolerance).map_err(|m| format!("element {i}: {m}")))
        }
        (Item::Optional(None), Item::Optional(None)) => Ok(()),
        (Item::Optional(Some(g)), Item::Optional(Some(e))) => items(g, e, tolerance),
        (Item::Map(g), Item::Map(e)) => {
            if g.len() != e.len() {
                return Err(format!("a map of {}, expected {}", g.len(), e.len()));
            }
            g.iter().zip(e.iter()).try_for_each(|((gk, gv), (ek, ev))| {
                items(gk, ek, tolerance)?;
                items(gv, ev, tolerance)
            })
        }
        _ => Err(format!("is {}, expected {}", got.kind(), expected.kind())),
    }
}

/// Whether two tensors are the same within a tolerance; else what differs first.
pub fn tensors(got: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Result<(), String> {
    if (got.dtype(), got.shape()) != (expected.dtype(), expected.shape()) {
        return Err(format!("{}, expected {}", head(got), head(expected)));
    }
    if !is_compared_as_float(expected.dtype()) {
        return if got == expected { Ok(()) } else { Err(first_difference(got, expected)) };
    }
    let (g, e) = (numbers(got), numbers(expected));
    let same = |g: f64, e: f64| {
        g == e || (g.is_nan() && e.is_nan()) || (g - e).abs() <= tolerance.absolute + tolerance.relative * e.abs()
    };
    let n_wrong = g.iter().zip(&e).filter(|&(&g, &e)| !same(g, e)).count();
    let Some(i) = g.iter().zip(&e).position(|(&g, &e)| !same(g, e)) else { return Ok(()) };
    Err(format!("{n_wrong} of {} elements differ, first [{i}]: {} instead of {}", g.len(), g[i], e[i]))
}

fn is_compared_as_float(dtype: DType) -> bool {
    dtype.is_float() || matches!(dtype, DType::C64 | DType::C128)
}

/// The elements as doubles, two for a complex number. Panics for strings.
fn numbers(t: &Tensor) -> Vec<f64> {
    match t.dtype() {
        DType::C64 => {
            let v = t.slice::<onnx_quant::tensor::C64>().unwrap();
            v.iter().flat_map(|c| [f64::from(c.re), f64::from(c.im)]).collect()
        }
        DType::C128 => {
            let v = t.slice::<onnx_quant::tensor::C128>().unwrap();
            v.iter().flat_map(|c| [c.re, c.im]).collect()
        }
        _ => t.to_f64s().unwrap(),
    }
}

fn first_difference(got: &Tensor, expected: &Tensor) -> String {
    if expected.dtype() == DType::Str {
        let (g, e) = (got.slice::<String>().unwrap(), expected.slice::<String>().unwrap());
        let i = g.iter().zip(e).position(|(g, e)| g != e).unwrap_or(0);
        return format!("first difference [{i}]: {:?} instead of {:?}", g[i], e[i]);
    }
    let wide = |t: &Tensor| t.to_i64s().unwrap();
    let (g, e) = (wide(got), wide(expected));
    let n_wrong = g.iter().zip(&e).filter(|(g, e)| g != e).count();
    let i = g.iter().zip(&e).position(|(g, e)| g != e).unwrap_or(0);
    format!("{n_wrong} of {} elements differ, first [{i}]: {} instead of {}", g.len(), g[i], e[i])
}

/// Whether an inferred type agrees with a value: element type, rank and every fixed dimension.
pub fn inferred(ty: Option<&ValueType>, value: &Item) -> Result<(), String> {
    let fail = |ty: &ValueType| Err(format!("{ty}, evaluated {}", show_type(value)));
    match (ty, value) {
        // What a loop carries may start as nothing, which has no type before it runs.
        (None | Some(ValueType::Unknown), Item::Sequence(_) | Item::Optional(_)) => Ok(()),
        (None | Some(ValueType::Unknown), _) => Err(format!("unknown, evaluated {}", show_type(value))),
        (Some(ty @ ValueType::Tensor(t)), Item::Tensor(v)) => {
            let shape_agrees = t.shape.as_ref().is_none_or(|s| {
                s.len() == v.rank() && s.iter().zip(v.shape()).all(|(d, n)| !matches!(d, Dim::Known(m) if m != n))
            });
            if t.dtype == Some(v.dtype()) && shape_agrees { Ok(()) } else { fail(ty) }
        }
        (Some(ValueType::Sequence(t)), Item::Sequence(v)) => v.iter().try_for_each(|v| inferred(Some(t), v)),
        (Some(ValueType::Optional(_)), Item::Optional(None)) => Ok(()),
        (Some(ValueType::Optional(t)), Item::Optional(Some(v))) => inferred(Some(t), v),
        (Some(ValueType::Map(_, t)), Item::Map(v)) => v.iter().try_for_each(|(_, v)| inferred(Some(t), v)),
        (Some(ty), _) => fail(ty),
    }
}

fn head(t: &Tensor) -> String {
    format!("{}{:?}", t.dtype(), t.shape())
}

fn show_type(item: &Item) -> String {
    match item {
        Item::Tensor(t) => head(t),
        other => other.kind().to_owned(),
    }
}

/// A value in one line: type, shape and the first elements.
pub fn show(item: &Item) -> String {
    match item {
        Item::Tensor(t) => {
            let mut text = head(t) + " [";
            for i in 0..t.len().min(24) {
                let sep = if i > 0 { ", " } else { "" };
                match t.dtype() {
                    DType::Str => write!(text, "{sep}{:?}", t.slice::<String>().unwrap()[i]),
                    d if is_compared_as_float(d) => write!(text, "{sep}{}", numbers(t)[i]),
                    _ => write!(text, "{sep}{}", t.to_i64s().unwrap()[i]),
                }
                .unwrap();
            }
            text + if t.len() > 24 { ", …]" } else { "]" }
        }
        Item::Sequence(v) => format!("sequence[{}]", v.iter().map(show).collect::<Vec<_>>().join("; ")),
        Item::Optional(None) => "nothing".into(),
        Item::Optional(Some(v)) => format!("optional {}", show(v)),
        Item::Map(v) => {
            let pairs = v.iter().map(|(k, v)| format!("{} -> {}", show(k), show(v)));
            format!("map[{}]", pairs.collect::<Vec<_>>().join("; "))
        }
    }
}
