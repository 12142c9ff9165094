//! `StringConcat`, `StringSplit`, `RegexFullMatch` — strings.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__StringConcat.html>, `StringSplit`, `RegexFullMatch` (opset 20)
//! StringConcat: X, Y with broadcasting. StringSplit: X; Y `X.shape + [most parts]`, filled up with "", and Z int64, the
//! number of parts. RegexFullMatch: X; bool, whether pattern matches the whole string.
//! Attributes: delimiter (default white space) and maxsplit of StringSplit; pattern.
//! Quantized: strings are not quantized.
//! Errors: inputs of other types; a pattern that is no regular expression.

use regex::Regex;

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow};
use crate::ir::Dim;
use crate::tensor::broadcast::{broadcast, for_each_row};
use crate::tensor::{DType, Tensor, count};

const STRING: OpDef = OpDef {
    name: "StringConcat",
    domain: OpDomain::Onnx,
    since: 20,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_concat,
    eval: concat,
    quant: QuantRule::Keep { why: "strings are not quantized" },
};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "RegexFullMatch", inputs: Arity::exactly(1), infer: infer_match, eval: full_match, ..STRING },
    STRING,
    OpDef {
        name: "StringSplit",
        inputs: Arity::exactly(1),
        outputs: Arity::range(1, 2),
        infer: infer_split,
        eval: split,
        ..STRING
    },
];

fn infer_concat(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = ctx.broadcast([0, 1])?;
    ctx.set_tensor(0, Some(DType::Str), shape);
    Ok(())
}

fn concat(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, y) = (call.input(0)?, call.input(1)?);
    let (a, b) = (x.slice::<String>().context("input 0")?, y.slice::<String>().context("input 1")?);
    let shape = broadcast(x.shape(), y.shape())?;
    let mut out = Vec::with_capacity(count(&shape)?);
    for_each_row(&shape, [x.shape(), y.shape()], |_, [i, j], n, [si, sj]| {
        out.extend((0..n).map(|k| [a[i + k * si].as_str(), b[j + k * sj].as_str()].concat()));
    });
    Ok(Tensor::new(&shape, out)?.into())
}

fn infer_match(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.set_tensor(0, Some(DType::Bool), ctx.shape(0).map(<[Dim]>::to_vec));
    Ok(())
}

fn full_match(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let pattern = call.attrs.str("pattern").ok_or_else(|| anyhow!("attribute \"pattern\" is missing"))?;
    let regex = Regex::new(&format!("^(?:{pattern})$")).map_err(|e| anyhow!("attribute \"pattern\": {e}"))?;
    let x = call.input(0)?;
    let v = x.slice::<String>().context("input 0")?;
    Ok(Tensor::new(x.shape(), v.iter().map(|s| regex.is_match(s)).collect::<Vec<bool>>())?.into())
}

fn infer_split(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = ctx.shape(0).map(<[Dim]>::to_vec);
    ctx.set_tensor(0, Some(DType::Str), shape.clone().map(|s| [s.as_slice(), &[Dim::Unknown]].concat()));
    ctx.set_tensor(1, Some(DType::I64), shape);
    Ok(())
}

/// The parts of a string; at most `limit` splits.
fn parts<'a>(s: &'a str, delimiter: &str, limit: usize) -> Vec<&'a str> {
    if delimiter.is_empty() {
        let mut out = Vec::new();
        let mut rest = s.trim_start();
        while !rest.is_empty() {
            match rest.find(char::is_whitespace).filter(|_| out.len() < limit) {
                Some(i) => {
                    out.push(&rest[..i]);
                    rest = rest[i..].trim_start();
                }
                None => {
                    // What remains keeps its inner white space; at the end there is none to keep.
                    out.push(rest.trim_end());
                    break;
                }
            }
        }
        return out;
    }
    if s.is_empty() { Vec::new() } else { s.splitn(limit.saturating_add(1), delimiter).collect() }
}

fn split(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let delimiter = call.attrs.str("delimiter").unwrap_or_default();
    let limit = call.attrs.int("maxsplit").and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX - 1);
    let x = call.input(0)?;
    let split: Vec<Vec<&str>> =
        x.slice::<String>().context("input 0")?.iter().map(|s| parts(s, delimiter, limit)).collect();
    let most = split.iter().map(Vec::len).max().unwrap_or(0);
    let counts: Vec<i64> = split.iter().map(|p| p.len() as i64).collect();
    let shape = [x.shape(), &[most]].concat();
    count(&shape)?;
    let filled =
        split.iter().flat_map(|p| (0..most).map(|i| p.get(i).copied().unwrap_or_default().to_owned())).collect();
    let mut out: Vec<Item> =
        vec![Tensor::new::<String>(&shape, filled)?.into(), Tensor::new(x.shape(), counts)?.into()];
    out.truncate(call.n_outputs().max(1));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    fn s(v: &[&str]) -> Tensor {
        Tensor::vector(v.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn concatenates() {
        let case = |b: Tensor| Case::new("StringConcat", 20).input(s(&["a", "b"])).input(b);
        case(s(&["x"])).expect(&[s(&["ax", "bx"])]);
        case(s(&["x", "y", "z"])).fails("do not broadcast");
        case(Tensor::scalar(1i64)).fails("input 1");
    }

    #[test]
    fn splits() {
        let case = |v: &[&str]| Case::new("StringSplit", 20).input(s(v)).outputs(2);
        case(&["a b  c", ""]).expect(&[
            Tensor::of(&[2, 3], ["a", "b", "c", "", "", ""].map(String::from).to_vec()),
            Tensor::vector(vec![3i64, 0]),
        ]);
        case(&["a,b,,c"])
            .attr("delimiter", ",")
            .attr("maxsplit", 2)
            .expect(&[Tensor::of(&[1, 3], ["a", "b", ",c"].map(String::from).to_vec()), Tensor::vector(vec![3i64])]);
        assert_eq!(parts(" a b c ", "", 1), ["a", "b c"]);
    }

    #[test]
    fn matches_whole_strings() {
        let case = |p: &str| Case::new("RegexFullMatch", 20).input(s(&["abc", "abcd"])).attr("pattern", p);
        case("ab.|x").expect(&[Tensor::vector(vec![true, false])]);
        case("(").fails("attribute \"pattern\"");
    }
}
