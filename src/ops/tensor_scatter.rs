//! `TensorScatter` — a cache with an update written into it at each sequence's position.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__TensorScatter.html> (opset 24)
//! Inputs: past_cache `[B, …, S, …]`, any type; update, the same but for a shorter S; write_indices int64 `[B]`?
//! (default 0). Output: present_cache. Attributes: axis (default -2, not 0); mode linear or circular.
//! Quantized: keeps float, since cache and update would need one range.
//! Errors: shapes that do not fit; an update that goes beyond the cache in mode linear.

use super::call::axis;
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, bail, ensure};
use crate::with_data;

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "TensorScatter",
    domain: OpDomain::Onnx,
    since: 24,
    inputs: Arity::range(2, 3),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "cache and update would need one range" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    ctx.same_as(0);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let circular = match call.str("mode", "linear") {
        "linear" => false,
        "circular" => true,
        m => bail!("attribute \"mode\" is \"{m}\", expected linear or circular"),
    };
    let starts = call.optional_ints(2)?;
    let at = axis(call.int("axis", -2), call.input(0)?.rank())?;
    ensure!(at > 0, "attribute \"axis\" is the batch dimension");
    let update = call.take(1)?;
    let mut x = call.take(0)?;
    let (n, length) = (x.shape()[at], update.shape().get(at).copied().unwrap_or(0));
    let fits = update.rank() == x.rank() && (0..x.rank()).all(|i| i == at || x.shape()[i] == update.shape()[i]);
    ensure!(
        fits && length <= n && update.dtype() == x.dtype(),
        "input 1 (update) is {}{:?}, which does not fit a cache {}{:?}",
        update.dtype(),
        update.shape(),
        x.dtype(),
        x.shape()
    );
    let batch = x.shape()[0];
    let starts = starts.unwrap_or_else(|| vec![0; batch]);
    ensure!(starts.len() == batch, "input 2 (write_indices) has {} entries, expected {batch}", starts.len());
    for &s in &starts {
        ensure!(
            s >= 0 && (circular || s as usize + length <= n),
            "input 2 (write_indices) has {s}, but {length} elements must fit into {n}"
        );
    }
    let outer: usize = x.shape()[..at].iter().product();
    let inner: usize = x.shape()[at + 1..].iter().product();
    let per_batch = outer.checked_div(batch).unwrap_or(1).max(1);
    with_data!(x.data_mut(), T, b => {
        let (to, from) = (b.make_mut(), update.slice::<T>()?);
        for o in 0..outer {
            for k in 0..length {
                let row = o * n + (starts[o / per_batch] as usize + k) % n;
                to[row * inner..(row + 1) * inner].clone_from_slice(&from[(o * length + k) * inner..][..inner]);
            }
        }
    });
    Ok(x.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn writes_at_each_position() {
        let case = |starts: &[i64]| {
            Case::new("TensorScatter", 24)
                .input(Tensor::of(&[2, 3, 1], vec![0i32; 6]))
                .input(Tensor::of(&[2, 2, 1], vec![1, 2, 3, 4]))
                .input(Tensor::vector(starts.to_vec()))
        };
        case(&[0, 1]).expect(&[Tensor::of(&[2, 3, 1], vec![1, 2, 0, 0, 3, 4])]);
        case(&[2, 1]).attr("mode", "circular").expect(&[Tensor::of(&[2, 3, 1], vec![2, 0, 1, 0, 3, 4])]);
        case(&[2, 1]).fails("must fit into 3");
        case(&[0]).fails("1 entries, expected 2");
        case(&[0, 0]).attr("axis", 0).fails("batch dimension");
    }
}
