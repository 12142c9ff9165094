//! `TfIdfVectorizer` — counts of n-grams, weighted.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__TfIdfVectorizer.html> (opset 9)
//! Input: X string, int32 or int64, `[C]` or `[N, C]`. Output: float `[D]` or `[N, D]`, D = largest ngram_indexes + 1.
//! Attributes: mode TF, IDF, TFIDF; min_gram_length, max_gram_length, max_skip_count; ngram_counts, ngram_indexes,
//! pool_strings or pool_int64s, weights.
//! Quantized: gives counts, so nothing.
//! Errors: attributes that do not fit each other; another rank.

use std::collections::BTreeMap;

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Attr, Attrs, Dim};
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "TfIdfVectorizer",
    domain: OpDomain::Onnx,
    since: 9,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "gives counts of words" },
}];

fn width(attrs: &Attrs) -> Result<usize> {
    let indexes = attrs.ints("ngram_indexes").ok_or_else(|| anyhow!("attribute \"ngram_indexes\" is missing"))?;
    let last = indexes.iter().copied().max().unwrap_or(-1);
    ensure!(
        (-1..1 << 31).contains(&last) && indexes.iter().all(|&i| i >= 0),
        "attribute \"ngram_indexes\" has an entry that is no index"
    );
    Ok((last + 1) as usize)
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let d = Dim::Known(width(ctx.attrs)?);
    let shape = match ctx.shape(0) {
        Some([_]) => Some(vec![d]),
        Some([n, _]) => Some(vec![n.clone(), d]),
        _ => None,
    };
    ctx.set_tensor(0, Some(DType::F32), shape);
    Ok(())
}

/// The place in ngram_indexes of each n-gram of the pool, by its elements.
fn grams<'a, T: Ord>(pool: &'a [T], counts: &[i64]) -> Result<(BTreeMap<&'a [T], usize>, usize)> {
    let mut out = BTreeMap::new();
    let mut n = 0;
    for (k, &start) in counts.iter().enumerate() {
        let end = counts.get(k + 1).copied().unwrap_or(pool.len() as i64);
        let part = usize::try_from(start).ok().zip(usize::try_from(end).ok()).and_then(|(a, b)| pool.get(a..b));
        let part =
            part.with_context(|| format!("attribute \"ngram_counts\" has {start} to {end}, which is not in the pool"))?;
        for gram in part.chunks_exact(k + 1) {
            out.entry(gram).or_insert(n);
            n += 1;
        }
    }
    Ok((out, n))
}

/// How often each n-gram occurs in one row.
fn count<T: Ord + Clone>(row: &[T], grams: &BTreeMap<&[T], usize>, lengths: [usize; 2], skips: usize, out: &mut [f32]) {
    let mut gram: Vec<T> = Vec::new();
    for length in lengths[0]..=lengths[1] {
        // Skipping makes no difference to single words.
        for stride in 1..=if length == 1 { 1 } else { skips + 1 } {
            let span = (length - 1).saturating_mul(stride);
            for start in 0..row.len().saturating_sub(span) {
                gram.clear();
                gram.extend((0..length).map(|i| row[start + i * stride].clone()));
                if let Some(&i) = grams.get(gram.as_slice()) {
                    out[i] += 1.0;
                }
            }
        }
    }
}

fn rows<T: Ord + Clone>(v: &[T], columns: usize, pool: &[T], call: &Call<'_>) -> Result<Vec<f32>> {
    let attr = |name: &str| -> Result<usize> {
        let n = call.required_int(name)?;
        usize::try_from(n).map_err(|_| anyhow!("attribute \"{name}\" is {n}"))
    };
    let lengths = [attr("min_gram_length")?, attr("max_gram_length")?];
    ensure!(
        lengths[0] >= 1 && lengths[1] >= lengths[0],
        "min_gram_length is {} and max_gram_length {}",
        lengths[0],
        lengths[1]
    );
    let skips = attr("max_skip_count")?;
    ensure!(lengths[1] < 1 << 20 && skips < 1 << 20, "max_gram_length or max_skip_count is too large");
    let counts = call.attrs.ints("ngram_counts").ok_or_else(|| anyhow!("attribute \"ngram_counts\" is missing"))?;
    let indexes = call.attrs.ints("ngram_indexes").unwrap_or_default();
    let (grams, n_grams) = grams(pool, counts)?;
    ensure!(n_grams <= indexes.len(), "{n_grams} n-grams have {} ngram_indexes", indexes.len());
    let weights = call.attrs.floats("weights");
    if let Some(w) = weights {
        ensure!(w.len() >= n_grams, "{n_grams} n-grams have {} weights", w.len());
    }
    let mode = call.attrs.str("mode").ok_or_else(|| anyhow!("attribute \"mode\" is missing"))?;
    ensure!(matches!(mode, "TF" | "IDF" | "TFIDF"), "attribute \"mode\" is \"{mode}\", expected TF, IDF or TFIDF");
    let d = width(call.attrs)?;
    let n_rows = if columns == 0 { 1 } else { v.len() / columns };
    let mut out = vec![0.0f32; n_rows * d];
    for (r, y) in out.chunks_exact_mut(d.max(1)).enumerate() {
        let mut found = vec![0.0f32; n_grams];
        count(&v[r * columns..(r + 1) * columns], &grams, lengths, skips, &mut found);
        for (i, &n) in found.iter().enumerate() {
            let w = weights.map_or(1.0, |w| w[i]);
            y[indexes[i] as usize] = match mode {
                "TF" => n,
                "IDF" => {
                    if n > 0.0 {
                        w
                    } else {
                        0.0
                    }
                }
                _ => n * w,
            };
        }
    }
    Ok(out)
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let columns = match x.shape() {
        [c] | [_, c] => *c,
        s => bail!("input 0 has shape {s:?}, expected [C] or [N, C]"),
    };
    let out = match (x.dtype(), call.attrs.get("pool_strings"), call.attrs.ints("pool_int64s")) {
        (DType::Str, Some(Attr::Strings(p)), _) => {
            let pool: Vec<String> = p.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect();
            rows(x.slice::<String>()?, columns, &pool, call)?
        }
        (DType::I32 | DType::I64, _, Some(pool)) => rows(&x.to_i64s()?, columns, pool, call)?,
        (t, ..) => bail!("input 0 has type {t}, for which there is no pool"),
    };
    let d = width(call.attrs)?;
    Ok(match x.shape() {
        [n, _] => Tensor::new(&[*n, d], out)?,
        _ => Tensor::new(&[d], out)?,
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    #[test]
    fn counts_with_skips() {
        let case = |skips: i64| {
            Case::new("TfIdfVectorizer", 9)
                .input(Tensor::of(&[1, 6], vec![1i32, 1, 3, 3, 3, 7]))
                .attr("mode", "TF")
                .attr("min_gram_length", 2)
                .attr("max_gram_length", 2)
                .attr("max_skip_count", skips)
                .attr("ngram_counts", vec![0i64, 4])
                .attr("ngram_indexes", vec![0i64, 1, 2, 3, 4, 5, 6])
                .attr("pool_int64s", vec![2i64, 3, 5, 4, 5, 6, 7, 8, 6, 7])
        };
        case(0).expect(&[Tensor::of(&[1, 7], vec![0.0f32; 7])]);
        case(0)
            .attr("pool_int64s", vec![2i64, 3, 5, 4, 1, 3, 3, 3, 3, 7])
            .expect(&[Tensor::of(&[1, 7], vec![0.0f32, 0.0, 0.0, 0.0, 1.0, 2.0, 1.0])]);
        case(1)
            .attr("pool_int64s", vec![2i64, 3, 5, 4, 1, 3, 3, 3, 3, 7])
            .expect(&[Tensor::of(&[1, 7], vec![0.0f32, 0.0, 0.0, 0.0, 3.0, 3.0, 2.0])]);
        case(0).attr("ngram_counts", vec![0i64, 40]).fails("not in the pool");
        case(0).attr("ngram_indexes", vec![0i64]).fails("7 n-grams have 1 ngram_indexes");
        case(0).attr("mode", "TX").fails("mode");
    }
}
