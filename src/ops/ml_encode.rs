//! `CategoryMapper`, `LabelEncoder`, `OneHotEncoder` — values looked up in a list.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxml_LabelEncoder.html> (ai.onnx.ml 1, 2, 4), `CategoryMapper`,
//! `OneHotEncoder` (ai.onnx.ml 1)
//! Input: X, strings or numbers. Output: values of X's shape; for OneHotEncoder float `X.shape + [n]`.
//! NaN equals NaN as a key; of equal keys the last one counts.
//! Quantized: gives labels, so nothing.
//! Errors: lists of different lengths; X of another type than the keys; a category that is not listed (zeros = 0).

use std::collections::BTreeMap;

use super::gather::gather;
use super::post_transform::strings;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Attrs, Dim};
use crate::tensor::{DType, Tensor, cast};

use super::concat::concat;

const LABEL_ENCODER: OpDef = OpDef {
    name: "LabelEncoder",
    domain: OpDomain::Ml,
    since: 2,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_encode,
    eval: encode,
    quant: QuantRule::Keep { why: "gives labels" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "CategoryMapper", since: 1, infer: infer_flip, eval: map_category, ..LABEL_ENCODER },
    OpDef { since: 1, infer: infer_flip, eval: encode_1, ..LABEL_ENCODER },
    LABEL_ENCODER,
    OpDef { since: 4, ..LABEL_ENCODER },
    OpDef { name: "OneHotEncoder", since: 1, infer: infer_one_hot, eval: one_hot, ..LABEL_ENCODER },
];

/// A value that can be looked up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Text(String),
    Int(i64),
    /// The bits of a float, one pattern for every zero and one for every NaN.
    Float(u64),
}

fn keys(t: &Tensor) -> Result<Vec<Key>> {
    if t.dtype() == DType::Str {
        return Ok(t.slice::<String>()?.iter().cloned().map(Key::Text).collect());
    }
    if t.dtype().is_integer() {
        return Ok(t.to_i64s()?.into_iter().map(Key::Int).collect());
    }
    let bits = |x: f64| if x.is_nan() { f64::NAN.to_bits() } else { (x + 0.0).to_bits() };
    Ok(t.to_f64s()?.into_iter().map(|x| Key::Float(bits(x))).collect())
}

/// The values that `x` maps to: those at the places of equal keys, else the default.
fn look_up(x: &Tensor, from: &Tensor, to: &Tensor, default: &Tensor) -> Result<Tensor> {
    ensure!(from.len() == to.len(), "{} keys have {} values", from.len(), to.len());
    ensure!(x.dtype() == from.dtype(), "input 0 (X) has type {}, but the keys have type {}", x.dtype(), from.dtype());
    let places: BTreeMap<Key, i64> = keys(from)?.into_iter().zip(0..).collect();
    let n = to.len() as i64;
    let indices: Vec<i64> = keys(x)?.iter().map(|k| places.get(k).copied().unwrap_or(n)).collect();
    let all = concat(&[&to.clone().reshaped(&[to.len()])?, &default.clone().reshaped(&[1])?], 0)?;
    gather(&all, &indices, x.shape(), 0)
}

/// A list under one of the names `<prefix>_strings`, `_int64s`, `_floats`, `_tensor`.
fn list(attrs: &Attrs, prefix: &str) -> Result<Tensor> {
    if let Some(v) = strings(attrs, &format!("{prefix}_strings")) {
        return Ok(Tensor::vector(v));
    }
    if let Some(v) = attrs.ints(&format!("{prefix}_int64s")) {
        return Ok(Tensor::vector(v.to_vec()));
    }
    if let Some(v) = attrs.floats(&format!("{prefix}_floats")) {
        return Ok(Tensor::vector(v.to_vec()));
    }
    match attrs.tensor(&format!("{prefix}_tensor")) {
        Some(t) => Ok(t.get()?.clone()),
        None => bail!("none of the attributes {prefix}_strings, _int64s, _floats and _tensor is there"),
    }
}

fn infer_encode(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = list(ctx.attrs, "values").ok().map(|t| t.dtype());
    ctx.set_tensor(0, dtype, ctx.shape(0).map(<[Dim]>::to_vec));
    Ok(())
}

fn encode(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (from, to) = (list(call.attrs, "keys")?, list(call.attrs, "values")?);
    let default = match (call.attrs.tensor("default_tensor"), to.dtype()) {
        (Some(t), _) => t.get()?.clone(),
        (None, DType::Str) => Tensor::scalar(call.str("default_string", "_Unused").to_owned()),
        (None, d) if d.is_integer() => cast::cast(&Tensor::scalar(call.int("default_int64", -1)), d, true)?,
        (None, d) => cast::cast(&Tensor::scalar(call.float("default_float", -0.0)), d, true)?,
    };
    ensure!(default.len() == 1, "attribute \"default_tensor\" has shape {:?}, expected one element", default.shape());
    Ok(look_up(call.input(0)?, &from, &to, &default)?.into())
}

/// Strings become integers and integers strings.
fn infer_flip(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = ctx.dtype(0).map(|d| if d == DType::Str { DType::I64 } else { DType::Str });
    ctx.set_tensor(0, dtype, ctx.shape(0).map(<[Dim]>::to_vec));
    Ok(())
}

fn flip(call: &Call<'_>, texts: Vec<String>, ints: Vec<i64>, default: &'static str) -> Result<Vec<Item>> {
    let (texts, ints) = (Tensor::vector(texts), Tensor::vector(ints));
    let x = call.input(0)?;
    let y = if x.dtype() == DType::Str {
        look_up(x, &texts, &ints, &Tensor::scalar(call.int("default_int64", -1)))?
    } else {
        look_up(x, &ints, &texts, &Tensor::scalar(call.str("default_string", default).to_owned()))?
    };
    Ok(y.into())
}

fn encode_1(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let texts =
        strings(call.attrs, "classes_strings").ok_or_else(|| anyhow!("attribute \"classes_strings\" is missing"))?;
    let ints = (0..texts.len() as i64).collect();
    flip(call, texts, ints, "_Unused")
}

fn map_category(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let texts = strings(call.attrs, "cats_strings").ok_or_else(|| anyhow!("attribute \"cats_strings\" is missing"))?;
    let ints = call.attrs.ints("cats_int64s").ok_or_else(|| anyhow!("attribute \"cats_int64s\" is missing"))?.to_vec();
    flip(call, texts, ints, "_Unused")
}

fn categories(attrs: &Attrs) -> Result<Tensor> {
    match (strings(attrs, "cats_strings"), attrs.ints("cats_int64s")) {
        (Some(v), _) if !v.is_empty() => Ok(Tensor::vector(v)),
        (_, Some(v)) => Ok(Tensor::vector(v.to_vec())),
        _ => bail!("neither cats_strings nor cats_int64s is given"),
    }
}

fn infer_one_hot(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = Dim::Known(categories(ctx.attrs)?.len());
    ctx.set_tensor(0, Some(DType::F32), ctx.shape(0).map(|s| [s, &[n]].concat()));
    Ok(())
}

fn one_hot(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let cats = categories(call.attrs)?;
    let x = call.input(0)?;
    let x = match (x.dtype(), cats.dtype()) {
        (a, b) if a == b => x.clone(),
        (DType::Str, _) | (_, DType::Str) => {
            bail!("input 0 (X) has type {}, but the categories {}", x.dtype(), cats.dtype())
        }
        (_, b) => cast::cast(x, b, true).context("input 0 (X)")?,
    };
    let places: BTreeMap<Key, usize> = keys(&cats)?.into_iter().zip(0..).collect();
    let n = cats.len();
    let mut out = vec![0.0f32; x.len() * n];
    for (i, k) in keys(&x)?.iter().enumerate() {
        match places.get(k) {
            Some(&j) => out[i * n + j] = 1.0,
            None => ensure!(call.flag("zeros", true), "input 0 (X) has a category that is not listed: {k:?}"),
        }
    }
    Ok(Tensor::new(&[x.shape(), &[n]].concat(), out)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attr;
    use crate::ops::testing::Case;

    #[test]
    fn looks_up() {
        let s = |v: &[&str]| Tensor::vector(v.iter().map(ToString::to_string).collect::<Vec<_>>());
        let names = || Attr::Strings(vec!["a".into(), "b".into()]);
        let case = |op: &str, opset| Case::new(op, opset).domain("ai.onnx.ml");
        case("LabelEncoder", 2)
            .input(s(&["b", "x"]))
            .attr("keys_strings", names())
            .attr("values_int64s", vec![5i64, 6])
            .expect(&[Tensor::vector(vec![6i64, -1])]);
        case("LabelEncoder", 2)
            .input(Tensor::vector(vec![f32::NAN, 1.0]))
            .attr("keys_floats", vec![f32::NAN])
            .attr("values_strings", Attr::Strings(vec!["n".into()]))
            .expect(&[s(&["n", "_Unused"])]);
        case("LabelEncoder", 1).input(s(&["b"])).attr("classes_strings", names()).expect(&[Tensor::vector(vec![1i64])]);
        case("CategoryMapper", 1)
            .input(Tensor::vector(vec![9i64, 3]))
            .attr("cats_strings", names())
            .attr("cats_int64s", vec![3i64, 4])
            .attr("default_string", "?")
            .expect(&[s(&["?", "a"])]);
        let hot = || case("OneHotEncoder", 1).input(s(&["b", "x"])).attr("cats_strings", names());
        hot().expect(&[Tensor::of(&[2, 2], vec![0.0f32, 1.0, 0.0, 0.0])]);
        hot().attr("zeros", 0).fails("not listed");
        case("LabelEncoder", 2).input(s(&["b"])).attr("keys_strings", names()).fails("values_strings");
        case("LabelEncoder", 2)
            .input(Tensor::scalar(1i64))
            .attr("keys_strings", names())
            .attr("values_int64s", vec![5i64, 6])
            .fails("the keys have type string");
    }
}
