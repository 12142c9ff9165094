//! ONNX Runtime's operators on quantized tensors: `QLinearAdd`, `QLinearMul`, `QLinearSigmoid`, `QLinearLeakyRelu`,
//! `QLinearSoftmax`, `QLinearConcat`, `QLinearAveragePool`, `QLinearGlobalAveragePool`, `QLinearWhere`.
//!
//! Spec: ONNX Runtime's ContribOperators.md (`com.microsoft`, version 1)
//! Each dequantizes its inputs, computes as ONNX's operator of the same name, and quantizes the result, all per tensor.
//! Types: int8, uint8. Quantized: they are. Errors: those of the operator inside; a scale that is no scalar.

use super::transpose::transpose;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule, Shared, lookup};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Attrs, Dim, Domain, TensorType, ValueType};
use crate::tensor::affine::{self, Params, Quantized};
use crate::tensor::{DType, Data, Element, Tensor};

const QLINEAR: OpDef = OpDef {
    name: "",
    domain: OpDomain::Microsoft,
    since: 1,
    // Every zero point may be left out, in front of inputs that may not.
    inputs: Arity::range(2, 8),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_binary,
    eval: |_| bail!("no evaluation"),
    quant: QuantRule::Keep { why: "is quantized already" },
};
const UNARY: OpDef = OpDef { inputs: Arity::range(2, 5), infer: infer_unary, ..QLINEAR };

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "QLinearAdd", eval: |c| binary(c, "Add"), ..QLINEAR },
    OpDef { name: "QLinearAveragePool", infer: infer_pool, eval: |c| pool(c, "AveragePool"), ..UNARY },
    OpDef { name: "QLinearConcat", inputs: Arity::at_least(5), infer: infer_concat, eval: concat, ..QLINEAR },
    OpDef { name: "QLinearGlobalAveragePool", infer: infer_pool, eval: |c| pool(c, "GlobalAveragePool"), ..UNARY },
    OpDef { name: "QLinearLeakyRelu", eval: |c| unary(c, "LeakyRelu", 16), ..UNARY },
    OpDef { name: "QLinearMul", eval: |c| binary(c, "Mul"), ..QLINEAR },
    OpDef { name: "QLinearSigmoid", eval: |c| unary(c, "Sigmoid", 13), ..UNARY },
    OpDef { name: "QLinearSoftmax", eval: softmax, ..UNARY },
    OpDef { name: "QLinearWhere", inputs: Arity::exactly(9), infer: infer_where, eval: choose, ..QLINEAR },
];

fn infer_binary(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = ctx.broadcast([0, 3])?;
    let dtype = ctx.dtype(0);
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

fn infer_unary(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.same_as(0);
    Ok(())
}

/// Infers an operator of ONNX's own domain for these inputs; `shape` gives an input's shape as that operator has it.
fn infer_inner(
    ctx: &mut InferCtx<'_>,
    op: &str,
    slots: &[usize],
    shape: impl Fn(Vec<Dim>) -> Vec<Dim>,
) -> Result<Option<Vec<Dim>>> {
    let def = lookup(&Domain::onnx(), op, 13).ok_or_else(|| anyhow!("operator {op} is not defined"))?;
    let ty = |&slot: &usize| {
        let shape = shape(ctx.shape(slot)?.to_vec());
        Some(ValueType::Tensor(TensorType { dtype: Some(DType::F32), shape: Some(shape) }))
    };
    let inputs = slots.iter().map(ty).collect();
    let mut inner = InferCtx {
        op_type: op,
        attrs: ctx.attrs,
        opset: 13,
        inputs,
        present: vec![true; slots.len()],
        constants: vec![None; slots.len()],
        values: vec![None; slots.len()],
        outputs: vec![None],
        output_values: vec![None],
        bodies: &mut *ctx.bodies,
    };
    (def.infer)(&mut inner)?;
    Ok(inner.outputs[0].as_ref().and_then(ValueType::shape).map(<[Dim]>::to_vec))
}

fn infer_pool(ctx: &mut InferCtx<'_>) -> Result<()> {
    let op = ctx.op_type.trim_start_matches("QLinear").to_owned();
    let last = ctx.attrs.int("channels_last").unwrap_or(0) != 0;
    let dtype = ctx.dtype(0);
    let shape = infer_inner(ctx, &op, &[0], |mut s| {
        if last && s.len() > 2 {
            s[1..].rotate_right(1);
        }
        s
    })?;
    let shape = shape.map(|mut s| {
        if last && s.len() > 2 {
            s[1..].rotate_left(1);
        }
        s
    });
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

fn infer_concat(ctx: &mut InferCtx<'_>) -> Result<()> {
    let slots: Vec<usize> = (2..ctx.inputs.len()).step_by(3).collect();
    let dtype = ctx.dtype(2);
    let shape = infer_inner(ctx, "Concat", &slots, |s| s)?;
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

fn infer_where(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = ctx.broadcast([0, 1, 4])?;
    let dtype = ctx.dtype(1);
    ctx.set_tensor(0, dtype, shape);
    Ok(())
}

/// The scale and zero point in two slots; the zero point may be missing.
fn params(call: &Call<'_>, scale: usize) -> Result<(f32, i32)> {
    let s = call.input(scale)?.to_f64().with_context(|| format!("input {scale}"))? as f32;
    let z = match call.optional(scale + 1)? {
        Some(t) => t.to_i64().with_context(|| format!("input {}", scale + 1))? as i32,
        None => 0,
    };
    Ok((s, z))
}

/// The real values of the tensor in a slot, whose parameters are in the slots behind it.
fn real(call: &Call<'_>, slot: usize) -> Result<Tensor> {
    let t = call.input(slot)?;
    let (scale, zero_point) = params(call, slot + 1)?;
    let p = Params { scale: &[scale], zero_point: &[zero_point], range: (0, 0) };
    let mut out = vec![0.0f32; t.len()];
    match t.data() {
        Data::I8(b) => affine::dequantize_slice(b.as_slice(), p, &mut out),
        Data::U8(b) => affine::dequantize_slice(b.as_slice(), p, &mut out),
        _ => bail!("input {slot} has element type {}, expected int8 or uint8", t.dtype()),
    }
    Tensor::new(t.shape(), out)
}

/// The values quantized with the parameters in slots `scale` and behind it.
fn quantized(call: &Call<'_>, y: &Tensor, dtype: DType, scale: usize) -> Result<Vec<Item>> {
    fn run<T: Quantized + Element>(y: &[f32], p: Params<'_>, shape: &[usize]) -> Result<Tensor> {
        let mut out = vec![T::default(); y.len()];
        affine::quantize_slice(y, p, &mut out);
        Tensor::new(shape, out)
    }
    let (scale, zero_point) = params(call, scale)?;
    let (lo, hi) = dtype.int_range().ok_or_else(|| anyhow!("{dtype} is no integer type"))?;
    let p = Params { scale: &[scale], zero_point: &[zero_point], range: (lo as i32, hi as i32) };
    let v = y.slice::<f32>()?;
    let out = match dtype {
        DType::I8 => run::<i8>(v, p, y.shape())?,
        _ => run::<u8>(v, p, y.shape())?,
    };
    Ok(out.into())
}

/// Evaluates an operator of ONNX's own domain on these inputs, with this node's attributes.
fn inner(call: &Call<'_>, op: &str, opset: i64, inputs: Vec<Tensor>, attrs: &Attrs) -> Result<Tensor> {
    let def = lookup(&Domain::onnx(), op, opset).ok_or_else(|| anyhow!("operator {op} is not defined"))?;
    let n = inputs.len();
    let mut inner = Call {
        op_type: op,
        attrs,
        opset,
        inputs: inputs.into_iter().map(|t| Some(t.into())).collect(),
        constant: &vec![false; n],
        wanted: &[true],
        threads: call.threads,
        seed: call.seed,
        bodies: call.bodies,
        shared: &Shared::new(),
        fusion: super::Fusion::default(),
    };
    let out = (def.eval)(&mut inner)?.into_iter().next().ok_or_else(|| anyhow!("{op} gave nothing"))?;
    out.into_tensor()
}

fn binary(call: &mut Call<'_>, op: &str) -> Result<Vec<Item>> {
    let dtype = call.input(0)?.dtype();
    let y = inner(call, op, 14, vec![real(call, 0)?, real(call, 3)?], call.attrs)?;
    quantized(call, &y, dtype, 6)
}

fn unary(call: &mut Call<'_>, op: &str, opset: i64) -> Result<Vec<Item>> {
    let dtype = call.input(0)?.dtype();
    let y = inner(call, op, opset, vec![real(call, 0)?], call.attrs)?;
    quantized(call, &y, dtype, 3)
}

fn softmax(call: &mut Call<'_>) -> Result<Vec<Item>> {
    // The attribute says which version of Softmax is meant.
    let opset = call.int("opset", 13);
    unary(call, "Softmax", opset)
}

fn pool(call: &mut Call<'_>, op: &str) -> Result<Vec<Item>> {
    let dtype = call.input(0)?.dtype();
    let mut x = real(call, 0)?;
    let rank = x.rank();
    ensure!(rank >= 3, "input 0 has rank {rank}, expected at least 3");
    let channels_last = call.flag("channels_last", false);
    if channels_last {
        let perm: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
        x = transpose(x, &perm)?;
    }
    let mut y = inner(call, op, 11, vec![x], call.attrs)?;
    if channels_last {
        let perm: Vec<usize> = std::iter::once(0).chain(2..rank).chain([1]).collect();
        y = transpose(y, &perm)?;
    }
    quantized(call, &y, dtype, 3)
}

fn concat(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let n = call.n_inputs();
    ensure!(n % 3 == 2, "{n} inputs, expected 2 and then 3 for each tensor");
    let dtype = call.input(2)?.dtype();
    let inputs = (2..n).step_by(3).map(|slot| real(call, slot)).collect::<Result<Vec<_>>>()?;
    let y = inner(call, "Concat", 13, inputs, call.attrs)?;
    quantized(call, &y, dtype, 0)
}

fn choose(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let dtype = call.input(1)?.dtype();
    let inputs = vec![call.input(0)?.clone(), real(call, 1)?, real(call, 4)?];
    let y = inner(call, "Where", 16, inputs, call.attrs)?;
    quantized(call, &y, dtype, 7)
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn q(v: &[u8]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    fn case(op: &str) -> Case {
        Case::new(op, 1).domain("com.microsoft")
    }

    fn with(c: Case, scale: f32, zero_point: u8) -> Case {
        c.input(Tensor::scalar(scale)).input(Tensor::scalar(zero_point))
    }

    #[test]
    fn binary_and_unary() {
        // (2 - 1) * 0.5 + (6 - 2) * 2 = 8.5, at scale 1 half to even 8, plus 3.
        let c = with(with(case("QLinearAdd").input(q(&[2])), 0.5, 1).input(q(&[6])), 2.0, 2);
        with(c, 1.0, 3).expect(&[q(&[11])]);
        let c = with(with(case("QLinearMul").input(q(&[3])), 0.5, 1).input(q(&[6])), 2.0, 2);
        with(c, 1.0, 3).expect(&[q(&[11])]);
        let c = with(case("QLinearSigmoid").input(q(&[128])), 0.1, 128);
        with(c, 1.0 / 256.0, 0).expect(&[q(&[128])]);
        let c = with(case("QLinearLeakyRelu").input(q(&[118])).attr("alpha", 0.5f32), 0.1, 128);
        with(c, 0.1, 128).expect(&[q(&[123])]);
        let c = with(case("QLinearSoftmax").input(q(&[7, 7])).attr("axis", -1i64).attr("opset", 13i64), 0.1, 128);
        with(c, 1.0 / 256.0, 0).expect(&[q(&[128, 128])]);
    }

    #[test]
    fn several_and_pools() {
        let c = with(with(case("QLinearConcat").attr("axis", 0i64), 1.0, 0).input(q(&[4])), 0.5, 0).input(q(&[4]));
        with(c, 2.0, 1).expect(&[q(&[2, 6])]);
        let x = Tensor::of(&[1, 2, 2, 1], vec![1u8, 3, 5, 7]);
        let c = with(case("QLinearGlobalAveragePool").attr("channels_last", 1i64).input(x), 1.0, 0);
        with(c, 0.5, 0).expect(&[Tensor::of(&[1, 1, 1, 1], vec![8u8])]);
        let c = case("QLinearWhere").input(Tensor::vector(vec![true, false])).input(q(&[4]));
        let c = with(with(c, 0.5, 0).input(q(&[4])), 2.0, 0);
        with(c, 1.0, 1).expect(&[q(&[3, 9])]);
        let c = with(case("QLinearSigmoid").input(Tensor::scalar(1i64)), 0.1, 128);
        with(c, 1.0, 0).fails("input 0 has element type int64");
    }
}
