//! `LabelEncoder`, `CategoryMapper`, `OneHotEncoder` — strings and numbers by a table.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxml_LabelEncoder.html> (`ai.onnx.ml` 1, 2, 4)
//! Input: X of any shape. Output: of the same shape, or with one axis of the categories' number added.
//! Version 1 of `LabelEncoder` maps strings to their place in `classes_strings`, and back.
//! Errors: keys and values of different number; a category that is not in the list where `zeros` is 0.

use std::collections::HashMap;

use super::ml::{ML, ints, strings};
use super::{Call, InferCtx, Item, OpDef};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Attrs, Dim};
use crate::tensor::{DType, Tensor, count};
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "CategoryMapper", infer: infer_category, eval: category, ..ML },
    OpDef { name: "LabelEncoder", infer: infer_category_1, eval: category_1, ..ML },
    OpDef { name: "LabelEncoder", since: 2, infer, eval, ..ML },
    OpDef { name: "OneHotEncoder", infer: infer_one_hot, eval: one_hot, ..ML },
];

/// A key that can be looked up; floats by their bits, all NaNs the same and both zeros too.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Int(i64),
    Bits(u64),
    Str(String),
}

fn keys(t: &Tensor) -> Result<Vec<Key>> {
    Ok(match t.dtype() {
        DType::Str => t.slice::<String>()?.iter().map(|s| Key::Str(s.clone())).collect(),
        d if d.is_float() => {
            let bits = |x: f64| if x.is_nan() { f64::NAN.to_bits() } else { (x + 0.0).to_bits() };
            t.to_f64s()?.into_iter().map(|x| Key::Bits(bits(x))).collect()
        }
        _ => t.to_i64s()?.into_iter().map(Key::Int).collect(),
    })
}

/// Maps each element of `x` to the value at its key's place, or to `default`.
fn map(x: &Tensor, from: &Tensor, to: &Tensor, default: &Tensor) -> Result<Tensor> {
    ensure!(from.len() == to.len(), "{} keys are given and {} values", from.len(), to.len());
    ensure!(
        from.dtype() == x.dtype() || (from.dtype() != DType::Str) == (x.dtype() != DType::Str),
        "input 0 is {}, the keys are {}",
        x.dtype(),
        from.dtype()
    );
    ensure!(default.len() == 1 && default.dtype() == to.dtype(), "the default is {} {:?}, expected one {}", default.dtype(), default.shape(), to.dtype());
    // Of a key that is given twice the last one counts.
    let from = if from.dtype() == x.dtype() || x.dtype() == DType::Str { from.clone() } else { crate::tensor::cast::cast(from, x.dtype(), true)? };
    let table: HashMap<Key, usize> = keys(&from)?.into_iter().enumerate().map(|(i, k)| (k, i)).collect();
    let places: Vec<Option<usize>> = keys(x)?.iter().map(|k| table.get(k).copied()).collect();
    let t = with_data!(to.data(), T, b => {
        let (b, d) = (b.as_slice(), default.slice::<T>()?[0].clone());
        Tensor::new(x.shape(), places.iter().map(|p| p.map_or_else(|| d.clone(), |i| b[i].clone())).collect::<Vec<T>>())?
    });
    t.retyped(to.dtype())
}

/// The table of one side: `NAME_tensor`, `NAME_strings`, `NAME_int64s` or `NAME_floats`.
fn side(attrs: &Attrs, name: &str) -> Result<Tensor> {
    if let Some(t) = attrs.tensor(&format!("{name}_tensor")) {
        return Ok(t.get()?.clone());
    }
    if let Some(v) = strings(attrs, &format!("{name}_strings"))? {
        return Ok(Tensor::vector(v));
    }
    if let Some(v) = attrs.ints(&format!("{name}_int64s")) {
        return Ok(Tensor::vector(v.to_vec()));
    }
    let floats = attrs.floats(&format!("{name}_floats"));
    floats.map(|v| Tensor::vector(v.to_vec())).ok_or_else(|| anyhow!("attribute \"{name}_tensor\" is missing, and so are its forms as lists"))
}

fn default(attrs: &Attrs, dtype: DType) -> Result<Tensor> {
    if let Some(t) = attrs.tensor("default_tensor") {
        return Ok(t.get()?.clone());
    }
    Ok(match dtype {
        DType::Str => Tensor::scalar(attrs.str("default_string").unwrap_or("_Unused").to_owned()),
        DType::I64 => Tensor::scalar(attrs.int("default_int64").unwrap_or(-1)),
        DType::F32 => Tensor::scalar(attrs.float("default_float").unwrap_or(-0.0)),
        other => {
            // What the specification's defaults are in the other types.
            let value = if other.is_float() { Tensor::scalar(-0.0f32) } else { Tensor::scalar(-1i64) };
            crate::tensor::cast::cast(&value, other, true)?
        }
    })
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = ctx.shape(0).map(<[Dim]>::to_vec);
    let dtype = side(ctx.attrs, "values").ok().map(|t| t.dtype());
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (from, to) = (side(call.attrs, "keys")?, side(call.attrs, "values")?);
    let default = default(call.attrs, to.dtype())?;
    Ok(map(call.input(0)?, &from, &to, &default)?.into())
}

fn other_type(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = ctx.shape(0).map(<[Dim]>::to_vec);
    let dtype = ctx.dtype(0).map(|d| if d == DType::Str { DType::I64 } else { DType::Str });
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

fn infer_category(ctx: &mut InferCtx<'_>) -> Result<()> {
    other_type(ctx)
}

fn infer_category_1(ctx: &mut InferCtx<'_>) -> Result<()> {
    other_type(ctx)
}

fn mapped(call: &Call<'_>, names: Tensor, numbers: Tensor) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let t = match x.dtype() {
        DType::Str => map(x, &names, &numbers, &Tensor::scalar(call.int("default_int64", -1)))?,
        DType::I64 => {
            map(x, &numbers, &names, &Tensor::scalar(call.str("default_string", "_Unused").to_owned()))?
        }
        other => bail!("input 0 is {other}, expected string or int64"),
    };
    Ok(t.into())
}

fn category(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let names = strings(call.attrs, "cats_strings")?.unwrap_or_default();
    let numbers = ints(call.attrs, "cats_int64s").to_vec();
    mapped(call, Tensor::vector(names), Tensor::vector(numbers))
}

fn category_1(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let names = strings(call.attrs, "classes_strings")?.unwrap_or_default();
    let numbers = (0..names.len() as i64).collect();
    mapped(call, Tensor::vector(names), Tensor::vector(numbers))
}

fn n_categories(attrs: &Attrs) -> Result<usize> {
    Ok(match strings(attrs, "cats_strings")? {
        Some(v) if !v.is_empty() => v.len(),
        _ => ints(attrs, "cats_int64s").len(),
    })
}

fn infer_one_hot(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = n_categories(ctx.attrs)?;
    let shape = ctx.shape(0).map(|s| [s, &[Dim::Known(n)]].concat());
    ctx.set_tensor(0, Some(DType::F32), shape);
    Ok(())
}

fn one_hot(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let categories = match strings(call.attrs, "cats_strings")? {
        Some(v) if !v.is_empty() => Tensor::vector(v),
        _ => Tensor::vector(ints(call.attrs, "cats_int64s").to_vec()),
    };
    ensure!((categories.dtype() == DType::Str) == (x.dtype() == DType::Str), "input 0 is {}, the categories are {}", x.dtype(), categories.dtype());
    let x_ints = if x.dtype().is_float() { crate::tensor::cast::cast(x, DType::I64, true)? } else { x.clone() };
    let table: HashMap<Key, usize> = keys(&categories)?.into_iter().enumerate().map(|(i, k)| (k, i)).collect();
    let shape = [x.shape(), &[categories.len()]].concat();
    let mut out = vec![0f32; count(&shape)?];
    for (i, key) in keys(&x_ints)?.iter().enumerate() {
        match table.get(key) {
            Some(&j) => out[i * categories.len() + j] = 1.0,
            None => ensure!(call.flag("zeros", true), "element {i} of input 0 is in no category"),
        }
    }
    Ok(Tensor::new(&shape, out)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ir::{Attr, TensorRef};
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn keys_become_values_and_the_rest_the_default() {
        let words = |v: &[&str]| Tensor::vector(v.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        Case::new("LabelEncoder", 2)
            .domain("ai.onnx.ml")
            .input(words(&["Dori", "Amy", "Sally"]))
            .attr("keys_tensor", Attr::Tensor(TensorRef::new(words(&["Amy", "Sally"]))))
            .attr("values_int64s", vec![5i64, 6])
            .expect(&[Tensor::vector(vec![-1i64, 5, 6])]);
        Case::new("OneHotEncoder", 1)
            .domain("ai.onnx.ml")
            .input(Tensor::vector(vec![4i64, 9]))
            .attr("cats_int64s", vec![9i64, 4])
            .expect(&[Tensor::of(&[2, 2], vec![0.0f32, 1.0, 1.0, 0.0])]);
        Case::new("OneHotEncoder", 1)
            .domain("ai.onnx.ml")
            .input(Tensor::vector(vec![1i64]))
            .attr("cats_int64s", vec![9i64, 4])
            .attr("zeros", 0i64)
            .fails("in no category");
    }

    #[test]
    fn a_float_key_of_nan_matches_any_nan() {
        Case::new("LabelEncoder", 4)
            .domain("ai.onnx.ml")
            .input(Tensor::vector(vec![f32::NAN, 1.0, 2.0]))
            .attr("keys_floats", vec![f32::NAN, 1.0])
            .attr("values_floats", vec![8.0f32, 9.0])
            .expect(&[Tensor::vector(vec![8.0f32, 9.0, 0.0])]);
    }
}
