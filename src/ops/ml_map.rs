//! `CastMap`, `DictVectorizer`, `ZipMap` — maps to tensors and back.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxml_CastMap.html>, `DictVectorizer`, `ZipMap` (ai.onnx.ml 1)
//! CastMap: a map from int64 gives `[1, n]`, of all values in the keys' order (map_form DENSE) or with value k at place
//! k of max_map (SPARSE). DictVectorizer: a map gives `[1, n]`, the value of each word of the vocabulary, 0 without.
//! ZipMap: float `[N, C]` gives N maps from labels.
//! Quantized: maps are not quantized.
//! Errors: keys of another type; a key outside max_map; not one label per column.

use std::sync::Arc;

use super::post_transform::{Labels, features, strings};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Dim, ValueType};
use crate::tensor::{DType, Tensor, cast};

const ZIP_MAP: OpDef = OpDef {
    name: "ZipMap",
    domain: OpDomain::Ml,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_zip,
    eval: zip,
    quant: QuantRule::Keep { why: "maps are not quantized" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "CastMap", infer: infer_cast, eval: cast_map, ..ZIP_MAP },
    OpDef { name: "DictVectorizer", infer: infer_vectorize, eval: vectorize, ..ZIP_MAP },
    ZIP_MAP,
];

fn entries(call: &Call<'_>) -> Result<Vec<(Tensor, Tensor)>> {
    let Item::Map(m) = call.item(0)? else { bail!("input 0 is {}, expected a map", call.item(0)?.kind()) };
    m.iter().map(|(k, v)| Ok((k.clone().into_tensor()?, v.clone().into_tensor()?))).collect()
}

fn cast_to(name: &str) -> Result<DType> {
    Ok(match name {
        "TO_FLOAT" => DType::F32,
        "TO_STRING" => DType::Str,
        "TO_INT64" => DType::I64,
        c => bail!("attribute \"cast_to\" is \"{c}\", expected TO_FLOAT, TO_STRING or TO_INT64"),
    })
}

fn infer_cast(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = cast_to(ctx.attrs.str("cast_to").unwrap_or("TO_FLOAT"))?;
    ctx.set_tensor(0, Some(dtype), Some(vec![Dim::Known(1), Dim::Unknown]));
    Ok(())
}

fn cast_map(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let dtype = cast_to(call.str("cast_to", "TO_FLOAT"))?;
    let mut values = entries(call)?
        .into_iter()
        .map(|(k, v)| Ok((k.to_i64()?, cast::cast(&v, dtype, true)?.reshaped(&[1, 1])?)))
        .collect::<Result<Vec<_>>>()?;
    values.sort_by_key(|(k, _)| *k);
    let sparse = match call.str("map_form", "DENSE") {
        "DENSE" => false,
        "SPARSE" => true,
        f => bail!("attribute \"map_form\" is \"{f}\", expected DENSE or SPARSE"),
    };
    if sparse {
        let n = usize::try_from(call.int("max_map", 1)).ok().filter(|&n| n < 1 << 32);
        let n = n.ok_or_else(|| anyhow!("attribute \"max_map\" is {}", call.int("max_map", 1)))?;
        let zero = Tensor::zeros(dtype, &[1, 1])?;
        let mut all = vec![&zero; n];
        for (k, v) in &values {
            ensure!((0..n as i64).contains(k), "input 0 has the key {k}, expected 0 to below max_map = {n}");
            all[*k as usize] = v;
        }
        return joined(&all, dtype);
    }
    joined(&values.iter().map(|(_, v)| v).collect::<Vec<_>>(), dtype)
}

/// Single elements as one row.
fn joined(parts: &[&Tensor], dtype: DType) -> Result<Vec<Item>> {
    if parts.is_empty() {
        return Ok(Tensor::zeros(dtype, &[1, 0])?.into());
    }
    Ok(super::concat::concat(parts, 1)?.into())
}

fn infer_vectorize(ctx: &mut InferCtx<'_>) -> Result<()> {
    let dtype = match ctx.ty(0) {
        Some(ValueType::Map(_, v)) => v.dtype(),
        _ => None,
    };
    ctx.set_tensor(0, dtype, Some(vec![Dim::Known(1), Dim::Unknown]));
    Ok(())
}

/// Deviation: `[1, n]` as ONNX Runtime has it; the specification speaks of a vector.
fn vectorize(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let entries = entries(call)?;
    let words: Vec<Tensor> = match (strings(call.attrs, "string_vocabulary"), call.attrs.ints("int64_vocabulary")) {
        (Some(v), _) => v.into_iter().map(Tensor::scalar).collect(),
        (_, Some(v)) => v.iter().map(|&x| Tensor::scalar(x)).collect(),
        _ => bail!("neither string_vocabulary nor int64_vocabulary is given"),
    };
    let dtype = entries.first().map_or(DType::F32, |(_, v)| v.dtype());
    let zero = Tensor::zeros(dtype, &[1, 1])?;
    let found = words
        .iter()
        .map(|w| {
            let entry = entries.iter().find(|(k, _)| k.data().len() == 1 && same(k, w));
            entry.map_or(Ok(zero.clone()), |(_, v)| v.clone().reshaped(&[1, 1]))
        })
        .collect::<Result<Vec<_>>>()?;
    joined(&found.iter().collect::<Vec<_>>(), dtype)
}

/// Equal single elements, whatever their rank.
fn same(a: &Tensor, b: &Tensor) -> bool {
    a.clone().reshaped(&[]).is_ok_and(|a| a == *b)
}

fn infer_zip(ctx: &mut InferCtx<'_>) -> Result<()> {
    let labels = Labels::of(ctx.attrs, "classlabels_int64s", "classlabels_strings");
    let map = ValueType::Map(labels.dtype(), Box::new(ValueType::tensor(DType::F32, vec![])));
    ctx.set(0, ValueType::Sequence(Box::new(map)));
    Ok(())
}

fn zip(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let labels = Labels::of(call.attrs, "classlabels_int64s", "classlabels_strings");
    let (x, n, columns) = features(call)?;
    ensure!(labels.len() == columns, "{} labels are given for {columns} columns", labels.len());
    let keys: Vec<Item> = match &labels {
        Labels::Ints(v) => v.iter().map(|&k| Tensor::scalar(k).into()).collect(),
        Labels::Strings(v) => v.iter().map(|k| Tensor::scalar(k.clone()).into()).collect(),
    };
    let map = |row: &[f64]| {
        let pair = |(k, &v): (&Item, &f64)| (k.clone(), Item::Tensor(Tensor::scalar(v as f32)));
        Item::Map(Arc::new(keys.iter().zip(row).map(pair).collect()))
    };
    let maps = (0..n).map(|i| map(&x[i * columns..(i + 1) * columns])).collect();
    Ok(vec![Item::Sequence(Arc::new(maps))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    #[test]
    fn wrong_inputs_are_errors() {
        let case = |op: &str| Case::new(op, 1).domain("ai.onnx.ml").input(Tensor::of(&[1, 2], vec![1.0f32, 2.0]));
        case("ZipMap").attr("classlabels_int64s", vec![1i64]).fails("1 labels are given for 2 columns");
        case("CastMap").fails("expected a map");
        case("CastMap").attr("cast_to", "TO_BOOL").fails("cast_to");
        case("DictVectorizer").fails("expected a map");
    }
}
