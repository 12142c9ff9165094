//! `Scaler`, `Normalizer`, `Binarizer`, `Imputer`, `FeatureVectorizer`, `ArrayFeatureExtractor` — preparation of features.
//!
//! Spec: <https://onnx.ai/onnx/operators/> (`ai.onnx.ml` 1)
//! Inputs: samples `[N, C]` or `[C]` of float, double, int32 or int64; `ArrayFeatureExtractor` takes any rank.
//! Outputs: floats of the same shape, except for `Binarizer`, `Imputer` and `ArrayFeatureExtractor`, which keep the type.
//! Errors: a list of neither one element nor one a column; an index out of range.

use super::call::Call;
use super::gather::checked;
use super::ml::{self, ML, ints, map_rows};
use super::{Arity, InferCtx, Item, OpDef};
use crate::error::{Result, bail, ensure};
use crate::ir::Dim;
use crate::tensor::{DType, Tensor, count};
use crate::{with_data, with_numbers};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "ArrayFeatureExtractor", inputs: Arity::exactly(2), infer: infer_extract, eval: extract, ..ML },
    OpDef { name: "Binarizer", infer: same, eval: binarize, ..ML },
    OpDef {
        name: "FeatureVectorizer",
        inputs: Arity::at_least(1),
        infer: infer_vectorize,
        eval: vectorize,
        ..ML
    },
    OpDef { name: "Imputer", infer: same, eval: impute, ..ML },
    OpDef { name: "Normalizer", infer: floats, eval: normalize, ..ML },
    OpDef { name: "Scaler", infer: floats, eval: scale, ..ML },
];

fn same(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.same_as(0);
    Ok(())
}

fn floats(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = ctx.shape(0).map(<[Dim]>::to_vec);
    ctx.set_tensor(0, Some(DType::F32), shape);
    Ok(())
}

fn infer_extract(ctx: &mut InferCtx<'_>) -> Result<()> {
    let picked = ctx.shape(1).and_then(|s| s.iter().map(Dim::known).product::<Option<usize>>());
    let shape = ctx.shape(0).filter(|s| !s.is_empty()).map(|s| {
        let mut shape = s.to_vec();
        shape.pop();
        if shape.is_empty() {
            shape.push(Dim::Known(1));
        }
        shape.push(picked.map_or(Dim::Unknown, Dim::Known));
        shape
    });
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

/// Elements of the last axis, picked by index.
fn extract(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, y) = (call.input(0)?, call.input(1)?.to_i64s()?);
    let Some((&c, outer)) = x.shape().split_last() else { bail!("input 0 has rank 0, expected at least 1") };
    let picks = y.iter().map(|&i| checked(i, c)).collect::<Result<Vec<_>>>()?;
    ensure!(y.iter().all(|&i| i >= 0), "input 1 has a negative index");
    let mut shape = outer.to_vec();
    if shape.is_empty() {
        shape.push(1);
    }
    shape.push(picks.len());
    let n = count(&shape)?;
    let rows = if picks.is_empty() { 0 } else { n / picks.len() };
    let t = with_data!(x.data(), T, b => {
        let b = b.as_slice();
        Tensor::of::<T>(&shape, (0..rows).flat_map(|r| picks.iter().map(move |&p| b[r * c + p].clone())).collect())
    });
    Ok(t.retyped(x.dtype())?.into())
}

fn binarize(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let threshold = f64::from(call.float("threshold", 0.0));
    let v: Vec<bool> = x.to_f64s()?.into_iter().map(|x| x > threshold).collect();
    let t = Tensor::new(x.shape(), v)?;
    Ok(crate::tensor::cast::cast(&t, x.dtype(), true)?.into())
}

fn infer_vectorize(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.set_tensor(0, Some(DType::F32), Some(vec![Dim::Unknown, Dim::Unknown]));
    Ok(())
}

/// The inputs side by side; each as wide as `inputdimensions` says, padded with zeros or cut.
fn vectorize(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let widths = call.sizes("inputdimensions", Vec::new)?;
    let mut parts = Vec::new();
    for i in 0..call.n_inputs() {
        let x = call.input(i)?;
        let (n, c, v) = ml::rows(x)?;
        parts.push((n, c, v, widths.get(i).copied().unwrap_or(c)));
    }
    let n = parts.first().map_or(0, |p| p.0);
    ensure!(parts.iter().all(|p| p.0 == n), "inputs have different numbers of samples");
    let width = parts.iter().try_fold(0usize, |w, p| w.checked_add(p.3)).unwrap_or(usize::MAX);
    let mut out = Vec::with_capacity(count(&[n, width])?);
    for row in 0..n {
        for (_, c, v, width) in &parts {
            out.extend((0..*width).map(|j| if j < *c { v[row * c + j] as f32 } else { 0.0 }));
        }
    }
    Ok(Tensor::new(&[n, width], out)?.into())
}

/// Replaces one value by what a list says for its column.
fn impute(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let columns = x.shape().last().copied().unwrap_or(1);
    let (values, replaced): (Vec<f64>, f64) = if x.dtype().is_float() {
        (ml::floats(call.attrs, "imputed_value_floats")?, call.float("replaced_value_float", 0.0).into())
    } else {
        let values = ints(call.attrs, "imputed_value_int64s").iter().map(|&v| v as f64).collect();
        (values, call.int("replaced_value_int64", 0) as f64)
    };
    ensure!(
        values.len() == 1 || values.len() == columns && columns > 0,
        "{} values are given to impute, expected 1 or {columns}",
        values.len()
    );
    let value = |i: usize| if values.len() == 1 { values[0] } else { values[i % columns] };
    let v: Vec<f64> = x
        .to_f64s()?
        .into_iter()
        .enumerate()
        .map(|(i, x)| if x == replaced || (x.is_nan() && replaced.is_nan()) { value(i) } else { x })
        .collect();
    // Integers of 64 bits that are not replaced stay as they are.
    let filled = crate::tensor::cast::cast(&Tensor::new(x.shape(), v)?, x.dtype(), true)?;
    let is_replaced: Vec<bool> = x.to_f64s()?.into_iter().map(|x| x == replaced || (x.is_nan() && replaced.is_nan())).collect();
    let mut out = x.clone();
    with_numbers!(filled.data(), T, from => {
        let from = from.as_slice();
        for (i, o) in out.slice_mut::<T>()?.iter_mut().enumerate() {
            if is_replaced[i] {
                *o = from[i];
            }
        }
    }, _ => bail!("input 0 has element type {}, expected a number", x.dtype()));
    Ok(out.into())
}

fn normalize(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let norm: fn(&[f64]) -> f64 = match call.str("norm", "MAX") {
        "MAX" => |v| v.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        "L1" => |v| v.iter().map(|x| x.abs()).sum(),
        "L2" => |v| v.iter().map(|x| x * x).sum::<f64>().sqrt(),
        other => bail!("attribute \"norm\" is \"{other}\", expected MAX, L1 or L2"),
    };
    map_rows(call, |row| {
        let n = norm(row);
        if n != 0.0 {
            row.iter_mut().for_each(|x| *x /= n);
        }
    })
}

fn scale(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (offset, scale) = (ml::floats(call.attrs, "offset")?, ml::floats(call.attrs, "scale")?);
    let x = call.input(0)?;
    let c = x.shape().last().copied().unwrap_or(1);
    for (name, list) in [("offset", &offset), ("scale", &scale)] {
        ensure!(
            list.len() == 1 || list.len() == c,
            "attribute \"{name}\" has {} elements, expected 1 or {c}",
            list.len()
        );
    }
    let at = |list: &[f64], j: usize| if list.len() == 1 { list[0] } else { list[j] };
    let v = x.to_f64s()?;
    let scaled = v.iter().enumerate().map(|(i, x)| ((x - at(&offset, i % c)) * at(&scale, i % c)) as f32);
    Ok(Tensor::new(x.shape(), scaled.collect())?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn ml(name: &str) -> Case {
        Case::new(name, 1).domain("ai.onnx.ml")
    }

    #[test]
    fn columns_are_scaled_and_rows_normalized() {
        let x = Tensor::of(&[2, 2], vec![1.0f32, 2.0, 3.0, 4.0]);
        ml("Scaler")
            .input(x.clone())
            .attr("offset", vec![1.0f32])
            .attr("scale", vec![1.0f32, 10.0])
            .expect(&[Tensor::of(&[2, 2], vec![0.0f32, 10.0, 2.0, 30.0])]);
        ml("Normalizer").input(x).attr("norm", "MAX").expect(&[Tensor::of(&[2, 2], vec![0.5f32, 1.0, 0.75, 1.0])]);
    }

    #[test]
    fn features_are_imputed_joined_and_extracted() {
        let x = Tensor::of(&[1, 3], vec![0i64, 5, 0]);
        ml("Imputer")
            .input(x.clone())
            .attr("imputed_value_int64s", vec![7i64, 8, 9])
            .expect(&[Tensor::of(&[1, 3], vec![7i64, 5, 9])]);
        ml("FeatureVectorizer")
            .input(x.clone())
            .input(Tensor::of(&[1, 1], vec![2.5f32]))
            .attr("inputdimensions", vec![2i64, 2])
            .expect(&[Tensor::of(&[1, 4], vec![0.0f32, 5.0, 2.5, 0.0])]);
        ml("ArrayFeatureExtractor")
            .input(x.clone())
            .input(Tensor::vector(vec![1i64]))
            .expect(&[Tensor::of(&[1, 1], vec![5i64])]);
        ml("ArrayFeatureExtractor").input(x).input(Tensor::vector(vec![3i64])).fails("out of range");
        ml("Binarizer")
            .input(Tensor::vector(vec![0.5f32, 1.5]))
            .attr("threshold", 1.0f32)
            .expect(&[Tensor::vector(vec![0.0f32, 1.0])]);
    }
}
