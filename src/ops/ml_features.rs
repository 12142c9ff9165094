//! `ArrayFeatureExtractor`, `Binarizer`, `FeatureVectorizer`, `Imputer`, `Normalizer`, `Scaler` — preparing features.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxml_Scaler.html> and its siblings (ai.onnx.ml 1)
//! Inputs: X `[N, F]` or `[F]`, any number type (ArrayFeatureExtractor: strings too, and the indices of columns).
//! Outputs: float, or for ArrayFeatureExtractor, Binarizer and Imputer the type of X.
//! Quantized: stays float; there is no integer form of it.
//! Errors: attributes that do not fit the features; an index out of range.

use super::gather::gather;
use super::post_transform::rows;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Dim, sym};
use crate::tensor::{DType, Tensor, cast};

const SCALER: OpDef = OpDef {
    name: "Scaler",
    domain: OpDomain::Ml,
    since: 1,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_float,
    eval: scale,
    quant: QuantRule::Keep { why: "has no integer form" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "ArrayFeatureExtractor",
        inputs: Arity::exactly(2),
        infer: infer_extract,
        eval: extract,
        quant: QuantRule::Share,
        ..SCALER
    },
    OpDef { name: "Binarizer", infer: infer_same, eval: binarize, ..SCALER },
    OpDef { name: "FeatureVectorizer", inputs: Arity::at_least(1), infer: infer_vectorize, eval: vectorize, ..SCALER },
    OpDef { name: "Imputer", infer: infer_same, eval: impute, ..SCALER },
    OpDef { name: "Normalizer", eval: normalize, ..SCALER },
    SCALER,
];

fn infer_same(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.same_as(0);
    Ok(())
}

fn infer_float(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.set_tensor(0, Some(DType::F32), ctx.shape(0).map(<[Dim]>::to_vec));
    Ok(())
}

fn infer_extract(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match (ctx.shape(0), ctx.shape(1)) {
        (Some(x), Some(y)) => {
            let n = sym::product(y);
            Some(match x {
                [_] => vec![Dim::Known(1), n],
                [front @ .., _] => [front, &[n]].concat(),
                [] => bail!("input 0 (X) is a scalar"),
            })
        }
        _ => None,
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

/// The columns that the indices name; of a vector as a matrix of one row.
fn extract(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let indices = call.ints(1)?;
    let x = call.take(0)?;
    ensure!(x.rank() > 0, "input 0 (X) is a scalar");
    let x = if x.rank() == 1 {
        let n = x.len();
        x.reshaped(&[1, n])?
    } else {
        x
    };
    Ok(gather(&x, &indices, &[indices.len()], x.rank() - 1)?.into())
}

fn binarize(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let threshold = f64::from(call.float("threshold", 0.0));
    let x = call.input(0)?;
    let v = x.to_f64s().context("input 0 (X)")?.into_iter().map(|x| f64::from(u8::from(x > threshold))).collect();
    Ok(cast::from_f64s(x.dtype(), x.shape(), v)?.into())
}

fn infer_vectorize(ctx: &mut InferCtx<'_>) -> Result<()> {
    let sum = |v: &[i64]| v.iter().try_fold(0i64, |sum, &n| sum.checked_add(n));
    let columns = ctx.attrs.ints("inputdimensions").and_then(sum);
    let n = rows(ctx.shape(0));
    ctx.set_tensor(0, Some(DType::F32), Some(vec![n, columns.map_or(Dim::Unknown, |c| sym::as_size(&sym::of_int(c)))]));
    Ok(())
}

/// The inputs' columns one after another, each cut or filled up with zeros to its size.
fn vectorize(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let sizes = call.sizes("inputdimensions", Vec::new)?;
    ensure!(
        sizes.len() == call.n_inputs() || sizes.is_empty(),
        "attribute \"inputdimensions\" has {} sizes for {} inputs",
        sizes.len(),
        call.n_inputs()
    );
    let mut parts = Vec::new();
    let mut n_rows = None;
    for i in 0..call.n_inputs() {
        let x = call.input(i)?;
        let (n, f) = match x.shape() {
            [f] => (1, *f),
            [n, f] => (*n, *f),
            s => bail!("input {i} has shape {s:?}, expected [N, F]"),
        };
        ensure!(*n_rows.get_or_insert(n) == n, "input {i} has {n} rows, input 0 another number");
        parts.push((x.to_f64s()?, f, sizes.get(i).copied().unwrap_or(f)));
    }
    let n = n_rows.unwrap_or(0);
    let columns = parts.iter().try_fold(0usize, |sum, p| sum.checked_add(p.2)).filter(|&c| c < 1 << 32);
    let columns = columns.ok_or_else(|| anyhow!("attribute \"inputdimensions\" is too large"))?;
    let mut out = Vec::with_capacity(n * columns);
    for r in 0..n {
        for (v, f, size) in &parts {
            let row = &v[r * f..(r + 1) * f];
            out.extend((0..*size).map(|k| row.get(k).map_or(0.0, |&x| x as f32)));
        }
    }
    Ok(Tensor::new(&[n, columns], out)?.into())
}

fn impute(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (values, replaced): (Vec<f64>, f64) =
        match (call.attrs.floats("imputed_value_floats"), call.attrs.ints("imputed_value_int64s")) {
            (Some(v), _) if !v.is_empty() => {
                (v.iter().map(|&x| x.into()).collect(), call.float("replaced_value_float", 0.0).into())
            }
            (_, Some(v)) if !v.is_empty() => {
                (v.iter().map(|&x| x as f64).collect(), call.int("replaced_value_int64", 0) as f64)
            }
            _ => bail!("neither imputed_value_floats nor imputed_value_int64s is given"),
        };
    let x = call.input(0)?;
    let f = x.shape().last().copied().unwrap_or(1);
    ensure!(values.len() == 1 || values.len() == f, "{} imputed values for {f} features", values.len());
    let same = |x: f64| x == replaced || (x.is_nan() && replaced.is_nan());
    let mut v = x.to_f64s().context("input 0 (X)")?;
    for (i, x) in v.iter_mut().enumerate().filter(|(_, x)| same(**x)) {
        *x = values[if values.len() == 1 { 0 } else { i % f }];
    }
    Ok(cast::from_f64s(x.dtype(), x.shape(), v)?.into())
}

fn normalize(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let norm: fn(&[f64]) -> f64 = match call.str("norm", "MAX") {
        "MAX" => |v| v.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        "L1" => |v| v.iter().map(|x| x.abs()).sum(),
        "L2" => |v| v.iter().map(|x| x * x).sum::<f64>().sqrt(),
        n => bail!("attribute \"norm\" is \"{n}\", expected MAX, L1 or L2"),
    };
    let x = call.input(0)?;
    let mut v = x.to_f64s().context("input 0 (X)")?;
    let f = x.shape().last().copied().unwrap_or(1).max(1);
    for row in v.chunks_exact_mut(f) {
        let n = norm(row);
        if n != 0.0 {
            row.iter_mut().for_each(|x| *x /= n);
        }
    }
    Ok(cast::from_f64s(DType::F32, x.shape(), v)?.into())
}

fn scale(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let f = x.shape().last().copied().unwrap_or(1);
    let list = |name: &str, default: f32| -> Result<Vec<f32>> {
        let v = call.attrs.floats(name).map_or_else(|| vec![default], <[f32]>::to_vec);
        ensure!(v.len() == 1 || v.len() == f, "attribute \"{name}\" has {} entries for {f} features", v.len());
        Ok(v)
    };
    let (offset, scale) = (list("offset", 0.0)?, list("scale", 1.0)?);
    let at = |v: &[f32], i: usize| v[if v.len() == 1 { 0 } else { i % f }];
    let v = x.to_f32s().context("input 0 (X)")?;
    let y = v.iter().enumerate().map(|(i, &x)| (x - at(&offset, i)) * at(&scale, i)).collect::<Vec<f32>>();
    Ok(Tensor::new(x.shape(), y)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    #[test]
    fn prepares_features() {
        let x = || Tensor::of(&[2, 2], vec![1.0f32, -3.0, 0.0, 4.0]);
        let case = |op: &str| Case::new(op, 1).domain("ai.onnx.ml").input(x());
        let y = |v: &[f32]| [Tensor::of(&[2, 2], v.to_vec())];
        case("Scaler")
            .attr("offset", vec![1.0f32, 0.0])
            .attr("scale", vec![2.0f32])
            .expect(&y(&[0.0, -6.0, -2.0, 8.0]));
        case("Scaler").attr("offset", vec![1.0f32; 3]).fails("3 entries for 2 features");
        case("Binarizer").attr("threshold", 0.5).expect(&y(&[1.0, 0.0, 0.0, 1.0]));
        case("Normalizer").attr("norm", "L1").expect(&y(&[0.25, -0.75, 0.0, 1.0]));
        case("Normalizer").attr("norm", "L3").fails("norm");
        case("Imputer")
            .attr("imputed_value_floats", vec![7.0f32, 9.0])
            .attr("replaced_value_float", -3.0)
            .expect(&y(&[1.0, 9.0, 0.0, 4.0]));
        case("Imputer").fails("neither");
        case("FeatureVectorizer")
            .input(Tensor::of(&[2, 1], vec![5i64, 6]))
            .attr("inputdimensions", vec![1i64, 2])
            .expect(&[Tensor::of(&[2, 3], vec![1.0f32, 5.0, 0.0, 0.0, 6.0, 0.0])]);
        case("ArrayFeatureExtractor").input(Tensor::of(&[1, 2], vec![1i64, 1])).expect(&y(&[-3.0, -3.0, 4.0, 4.0]));
        case("ArrayFeatureExtractor").input(Tensor::vector(vec![2i64])).fails("index 2 is out of range");
        Case::new("ArrayFeatureExtractor", 1)
            .domain("ai.onnx.ml")
            .input(Tensor::vector(vec![1.0f32, 2.0]))
            .input(Tensor::vector(vec![1i64]))
            .expect(&[Tensor::of(&[1, 1], vec![2.0f32])]);
    }
}
