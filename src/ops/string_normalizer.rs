//! `StringNormalizer` — strings without stop words, in lower or upper case.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__StringNormalizer.html> (opset 10)
//! Input: X string `[C]` or `[1, C]`. Output: the strings that stay; one empty string when none does.
//! Attributes: case_change_action LOWER, UPPER, NONE (default); is_case_sensitive (default 0: stop words are compared
//! without case); stopwords; locale, which is not looked at: cases change as Unicode has it.
//! Quantized: strings are not quantized.
//! Errors: another rank or type; an unknown action.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, bail, ensure};
use crate::ir::{Attr, Dim};
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "StringNormalizer",
    domain: OpDomain::Onnx,
    since: 10,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "strings are not quantized" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match ctx.rank(0) {
        Some(1) => Some(vec![Dim::Unknown]),
        Some(2) => Some(vec![Dim::Known(1), Dim::Unknown]),
        _ => None,
    };
    ctx.set_tensor(0, Some(DType::Str), shape);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let x = call.input(0)?;
    let is_row = match x.shape() {
        [_] => false,
        [1, _] => true,
        s => bail!("input 0 has shape {s:?}, expected [C] or [1, C]"),
    };
    let action = call.str("case_change_action", "NONE");
    ensure!(
        matches!(action, "LOWER" | "UPPER" | "NONE"),
        "attribute \"case_change_action\" is \"{action}\", expected LOWER, UPPER or NONE"
    );
    let sensitive = call.flag("is_case_sensitive", false);
    let fold = |s: &str| if sensitive { s.to_owned() } else { s.to_lowercase() };
    let stop: Vec<String> = match call.attrs.get("stopwords") {
        Some(Attr::Strings(v)) => v.iter().map(|w| fold(&String::from_utf8_lossy(w))).collect(),
        _ => Vec::new(),
    };
    let mut out: Vec<String> = x
        .slice::<String>()
        .context("input 0")?
        .iter()
        .filter(|s| !stop.contains(&fold(s)))
        .map(|s| match action {
            "LOWER" => s.to_lowercase(),
            "UPPER" => s.to_uppercase(),
            _ => s.clone(),
        })
        .collect();
    if out.is_empty() {
        out.push(String::new());
    }
    let n = out.len();
    Ok(if is_row { Tensor::new(&[1, n], out)? } else { Tensor::vector(out) }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    #[test]
    fn normalizes() {
        let s = |v: &[&str]| Tensor::vector(v.iter().map(ToString::to_string).collect::<Vec<_>>());
        let case = || {
            Case::new("StringNormalizer", 10)
                .input(s(&["Monday", "tuesday"]))
                .attr("stopwords", Attr::Strings(vec!["monday".into()]))
        };
        case().expect(&[s(&["tuesday"])]);
        case().attr("case_change_action", "UPPER").expect(&[s(&["TUESDAY"])]);
        case().attr("is_case_sensitive", 1).expect(&[s(&["Monday", "tuesday"])]);
        case().attr("case_change_action", "TITLE").fails("case_change_action");
        let stop = Attr::Strings(vec!["a".into()]);
        Case::new("StringNormalizer", 10)
            .input(Tensor::of(&[1, 1], vec!["A".to_owned()]))
            .attr("stopwords", stop)
            .expect(&[Tensor::of(&[1, 1], vec![String::new()])]);
        Case::new("StringNormalizer", 10).input(Tensor::scalar("a".to_owned())).fails("expected [C] or [1, C]");
    }
}
