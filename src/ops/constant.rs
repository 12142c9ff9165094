//! `Constant` — a stored tensor.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Constant.html> (opsets 1, 9, 11, 12, 13, 19, 21, 23, 24, 25)
//! No inputs. Output: any type. One attribute: value, value_float(s), value_int(s), value_string(s).
//! Quantized: a constant is quantized like an initializer, so passes turn it into one.
//! Errors: none of the attributes is there. A sparse_value is not supported.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail};
use crate::ir::{Attr, Attrs, Dim, TensorType, ValueType};
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Constant",
    domain: OpDomain::Onnx,
    since: 1,
    inputs: Arity::exactly(0),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "a constant is stored, not computed" },
}];

/// The tensor that a `Constant` node's attributes store.
///
/// # Errors
/// None of the attributes is there or the stored tensor cannot be decoded.
pub(crate) fn value(attrs: &Attrs) -> Result<Tensor> {
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).map_err(|_| anyhow!("a string is not UTF-8"));
    for a in attrs.iter() {
        return Ok(match (a.name.as_str(), &a.value) {
            ("value", Attr::Tensor(t)) => t.get()?.clone(),
            ("value_float", Attr::Float(x)) => Tensor::scalar(*x),
            ("value_floats", Attr::Floats(v)) => Tensor::vector(v.clone()),
            ("value_int", Attr::Int(x)) => Tensor::scalar(*x),
            ("value_ints", Attr::Ints(v)) => Tensor::vector(v.clone()),
            ("value_string", Attr::String(s)) => Tensor::scalar(text(s)?),
            ("value_strings", Attr::Strings(v)) => {
                Tensor::vector(v.iter().map(|s| text(s)).collect::<Result<Vec<String>>>()?)
            }
            ("sparse_value", _) => bail!("attribute \"sparse_value\" is not supported"),
            _ => continue,
        });
    }
    bail!("none of the attributes value, value_float(s), value_int(s), value_string(s) is there")
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    if let Some(t) = ctx.attrs.tensor("value") {
        // Without decoding: a large weight may lie in another file.
        ctx.set(0, ValueType::Tensor(TensorType::fixed(t.dtype(), t.shape())));
        if t.shape().len() > 1 || t.len() > 1024 || !t.dtype().is_integer() {
            return Ok(());
        }
    }
    if let Ok(t) = value(ctx.attrs) {
        ctx.set(0, ValueType::Tensor(TensorType::fixed(t.dtype(), t.shape())));
        if t.rank() <= 1
            && t.len() <= 1024
            && matches!(t.dtype(), DType::I64 | DType::I32)
            && let Ok(v) = t.to_i64s()
        {
            ctx.set_values(0, v.into_iter().map(crate::ir::sym::of_int).collect::<Vec<Dim>>());
        }
    }
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    Ok(value(call.attrs)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ir::{Attr, TensorRef};
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn each_attribute_gives_its_tensor() {
        let case = |name: &str, a: Attr| Case::new("Constant", 13).attr(name, a);
        let t = Tensor::of(&[1, 2], vec![1.0f64, 2.0]);
        case("value", TensorRef::from(t.clone()).into()).expect(&[t]);
        case("value_float", 2.5f32.into()).expect(&[Tensor::scalar(2.5f32)]);
        case("value_ints", vec![1i64, 2].into()).expect(&[Tensor::vector(vec![1i64, 2])]);
        case("value_string", "a".into()).expect(&[Tensor::scalar("a".to_owned())]);
        Case::new("Constant", 13).fails("none of the attributes");
    }
}
