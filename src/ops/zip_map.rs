//! `ZipMap`, `CastMap`, `DictVectorizer` — maps from and to tensors.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxml_ZipMap.html> (`ai.onnx.ml` 1)
//! `ZipMap`: X `[N, K]` or `[K]` of float becomes a sequence of N maps from K labels. `CastMap` and `DictVectorizer`
//! make a tensor `[1, K]` of a map, by the order of the keys or of a vocabulary.
//! Errors: a number of labels other than K; a map with keys of another type.

use std::sync::Arc;

use super::ml::{Labels, ML, ints, rows, strings};
use super::{Call, InferCtx, Item, OpDef};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Dim, TensorType, ValueType};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor, count};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "CastMap", infer: infer_cast, eval: cast_map, ..ML },
    OpDef { name: "DictVectorizer", infer: infer_dict, eval: dict_vectorizer, ..ML },
    OpDef { name: "ZipMap", infer: infer_zip, eval: zip_map, ..ML },
];

fn infer_zip(ctx: &mut InferCtx<'_>) -> Result<()> {
    let key = if strings(ctx.attrs, "classlabels_strings")?.is_some_and(|v| !v.is_empty()) { DType::Str } else { DType::I64 };
    let value = ValueType::Tensor(TensorType::fixed(DType::F32, &[]));
    ctx.set(0, ValueType::Sequence(Box::new(ValueType::Map(key, Box::new(value)))));
    Ok(())
}

fn zip_map(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (n, c, x) = rows(call.input(0)?)?;
    let labels = Labels::of(call.attrs, "classlabels_int64s", c)?;
    ensure!(labels.len() == c, "{} labels are given for {c} columns", labels.len());
    let keys: Vec<Item> = match &labels {
        Labels::Ints(v) => v.iter().map(|&k| Tensor::scalar(k).into()).collect(),
        Labels::Strings(v) => v.iter().map(|k| Tensor::scalar(k.clone()).into()).collect(),
    };
    let row = |i: usize| {
        let values = x[i * c..(i + 1) * c].iter().map(|&v| Item::Tensor(Tensor::scalar(v as f32)));
        Item::Map(Arc::new(keys.iter().cloned().zip(values).collect()))
    };
    Ok(vec![Item::Sequence(Arc::new((0..n).map(row).collect()))])
}

/// The entries of a map.
fn entries<'a>(call: &'a Call<'_>) -> Result<Vec<(&'a Tensor, &'a Tensor)>> {
    let Item::Map(entries) = call.item(0)? else { bail!("input 0 is {}, expected a map", call.item(0)?.kind()) };
    let pair = |(k, v): &'a (Item, Item)| Some((k.tensor()?, v.tensor()?));
    entries.iter().map(|e| pair(e).ok_or_else(|| anyhow!("input 0 has an entry that is no tensor"))).collect()
}

fn cast_type(name: &str) -> Result<DType> {
    Ok(match name {
        "TO_FLOAT" => DType::F32,
        "TO_INT64" => DType::I64,
        "TO_STRING" => DType::Str,
        other => bail!("attribute \"cast_to\" is \"{other}\", expected TO_FLOAT, TO_INT64 or TO_STRING"),
    })
}

fn infer_cast(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = cast_type(ctx.attrs.str("cast_to").unwrap_or("TO_FLOAT"))?;
    ctx.set_tensor(0, Some(dtype), Some(vec![Dim::Known(1), Dim::Unknown]));
    Ok(())
}

fn cast_map(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let dtype = cast_type(call.str("cast_to", "TO_FLOAT"))?;
    let mut entries = entries(call)?
        .into_iter()
        .map(|(k, v)| Ok((k.to_i64()?, cast(v, dtype, true)?)))
        .collect::<Result<Vec<_>>>()?;
    entries.sort_by_key(|(k, _)| *k);
    let is_sparse = match call.str("map_form", "DENSE") {
        "DENSE" => false,
        "SPARSE" => true,
        other => bail!("attribute \"map_form\" is \"{other}\", expected DENSE or SPARSE"),
    };
    if !is_sparse {
        return Ok(row(dtype, entries.iter().map(|(_, v)| Some(v)))?.into());
    }
    let max = call.int("max_map", 1);
    ensure!((0..=i64::from(u32::MAX)).contains(&max), "attribute \"max_map\" is {max}");
    ensure!(entries.iter().all(|(k, _)| (0..max).contains(k)), "a key of input 0 is not below max_map, {max}");
    let find = |k: i64| entries.iter().find(|(e, _)| *e == k).map(|(_, v)| v);
    count(&[1, max as usize])?;
    Ok(row(dtype, (0..max).map(find))?.into())
}

/// A tensor `[1, K]` of scalars; zero or the empty string where there is none.
fn row<'a>(dtype: DType, values: impl Iterator<Item = Option<&'a Tensor>>) -> Result<Tensor> {
    let values: Vec<_> = values.collect();
    let shape = [1, values.len()];
    if dtype == DType::Str {
        let text = |v: &Option<&Tensor>| v.map_or(Ok(String::new()), |t| Ok(t.slice::<String>()?.join("")));
        return Tensor::new(&shape, values.iter().map(text).collect::<Result<Vec<_>>>()?);
    }
    if dtype == DType::I64 {
        let int = |v: &Option<&Tensor>| v.map_or(Ok(0), Tensor::to_i64);
        return Tensor::new(&shape, values.iter().map(int).collect::<Result<Vec<_>>>()?);
    }
    let float = |v: &Option<&Tensor>| v.map_or(Ok(0.0), Tensor::to_f64);
    cast(&Tensor::new(&shape, values.iter().map(float).collect::<Result<Vec<_>>>()?)?, dtype, true)
}

fn infer_dict(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = match strings(ctx.attrs, "string_vocabulary")? {
        Some(v) if !v.is_empty() => v.len(),
        _ => ints(ctx.attrs, "int64_vocabulary").len(),
    };
    let dtype = match ctx.ty(0) {
        Some(ValueType::Map(_, v)) => v.dtype(),
        _ => None,
    };
    ctx.set_tensor(0, dtype, Some(vec![Dim::Known(1), Dim::Known(n)]));
    Ok(())
}

fn dict_vectorizer(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let entries = entries(call)?;
    let dtype = entries.first().map_or(DType::F32, |(_, v)| v.dtype());
    let words = strings(call.attrs, "string_vocabulary")?.unwrap_or_default();
    if words.is_empty() {
        let numbers = ints(call.attrs, "int64_vocabulary");
        let find = |n: &i64| entries.iter().find(|(k, _)| k.to_i64().is_ok_and(|k| k == *n)).map(|(_, v)| *v);
        return Ok(row(dtype, numbers.iter().map(find))?.into());
    }
    let is = |k: &Tensor, w: &String| k.slice::<String>().is_ok_and(|k| k.first() == Some(w));
    let find = |w: &String| entries.iter().find(|(k, _)| is(k, w)).map(|(_, v)| *v);
    Ok(row(dtype, words.iter().map(find))?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn labels_must_fit_the_columns() {
        Case::new("ZipMap", 1)
            .domain("ai.onnx.ml")
            .input(Tensor::of(&[1, 3], vec![0.0f32; 3]))
            .attr("classlabels_int64s", vec![1i64, 2])
            .fails("2 labels are given for 3 columns");
        Case::new("CastMap", 1).domain("ai.onnx.ml").input(Tensor::scalar(1i64)).fails("expected a map");
    }
}
