//! `RNN`, `GRU`, `LSTM` — recurrent layers of one or two directions.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__LSTM.html>, <https://onnx.ai/onnx/operators/onnx__GRU.html>,
//! <https://onnx.ai/onnx/operators/onnx__RNN.html> (opsets 7, 14, 22)
//! Inputs: X `[T, N, I]`, W `[D, G*H, I]`, R `[D, G*H, H]`, B? `[D, 2*G*H]`, sequence_lens? int32 `[N]`, initial_h?
//! `[D, N, H]`, for LSTM initial_c? `[D, N, H]` and P? `[D, 3*H]`; G is 1, 3 (z, r, h), 4 (i, o, f, c).
//! Outputs: Y `[T, D, N, H]`, Y_h `[D, N, H]`, for LSTM Y_c. With layout 1 (opset 14) N comes first everywhere.
//! T: float, double; float16 and bfloat16 are computed in float.
//! Attributes: direction, activations, activation_alpha, activation_beta, clip, hidden_size, layout; GRU:
//! linear_before_reset; LSTM: input_forget. Steps beyond a sequence's length give zeros in Y.
//! The products with W of all steps are one matrix product; only those with R are done step by step.
//! Quantized: stays float; the state is fed back, so that rounding errors would add up.
//! Errors: shapes that do not fit; unknown activations or directions; a length beyond T.

mod cell;
mod step;

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Attr, Attrs, Dim};
use crate::tensor::{DType, Tensor, cast};

use cell::{Kind, Real, Weights};

const RECURRENT: OpDef = OpDef {
    name: "RNN",
    domain: OpDomain::Onnx,
    since: 7,
    inputs: Arity::range(3, 6),
    outputs: Arity::range(0, 2),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "recurrent: rounding errors of the state would add up" },
};

pub(super) const OPS: &[OpDef] = &[
    RECURRENT,
    OpDef { since: 14, ..RECURRENT },
    OpDef { name: "GRU", ..RECURRENT },
    OpDef { name: "GRU", since: 14, ..RECURRENT },
    OpDef { name: "LSTM", inputs: Arity::range(3, 8), outputs: Arity::range(0, 3), ..RECURRENT },
    OpDef { name: "LSTM", since: 14, inputs: Arity::range(3, 8), outputs: Arity::range(0, 3), ..RECURRENT },
];

/// Whether an operator is a recurrent layer of ONNX's: its first inputs are `X [sequence, batch, input]`, `W` and `R`.
#[must_use]
pub fn is_recurrent(def: &OpDef) -> bool {
    OPS.iter().any(|d| d.name == def.name && d.domain == def.domain)
}

fn n_directions(attrs: &Attrs) -> Result<usize> {
    match attrs.str("direction").unwrap_or("forward") {
        "forward" | "reverse" => Ok(1),
        "bidirectional" => Ok(2),
        d => bail!("attribute \"direction\" is \"{d}\", expected forward, reverse or bidirectional"),
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let of_weight = ctx.shape(2).and_then(|s| s.get(2).cloned());
    infer_with(ctx, of_weight)
}

fn infer_with(ctx: &mut InferCtx<'_>, of_weight: Option<Dim>) -> Result<()> {
    let directions = Dim::Known(n_directions(ctx.attrs)?);
    let batch_first = ctx.attrs.int("layout").unwrap_or(0) != 0;
    let hidden = match ctx.attrs.int("hidden_size").and_then(|h| usize::try_from(h).ok()) {
        Some(h) => Dim::Known(h),
        None => of_weight.unwrap_or(Dim::Unknown),
    };
    let (time, batch) = match ctx.shape(0) {
        Some([a, b, _]) if batch_first => (b.clone(), a.clone()),
        Some([a, b, _]) => (a.clone(), b.clone()),
        Some(s) => bail!("input 0 (X) has rank {}, expected 3", s.len()),
        None => (Dim::Unknown, Dim::Unknown),
    };
    let dtype = ctx.dtype(0);
    let (y, state) = if batch_first {
        (vec![batch.clone(), time, directions.clone(), hidden.clone()], vec![batch, directions, hidden])
    } else {
        (vec![time, directions.clone(), batch.clone(), hidden.clone()], vec![directions, batch, hidden])
    };
    ctx.set_tensor(0, dtype, Some(y));
    ctx.set_tensor(1, dtype, Some(state.clone()));
    ctx.set_tensor(2, dtype, Some(state));
    Ok(())
}

/// Infers what the layers with transposed weights, R `[D, H, 4*H]`, give.
pub(super) fn infer_transposed(ctx: &mut InferCtx<'_>) -> Result<()> {
    let hidden = ctx.shape(2).and_then(|s| s.get(1).cloned());
    infer_with(ctx, hidden)
}

/// Evaluates an LSTM in 32-bit floats whose state is quantized before each product.
pub(super) fn run_quantized(call: &mut Call<'_>) -> Result<Vec<Item>> {
    run::<f32>(call, Kind::Lstm, Some(super::dynamic_quantize_lstm::fake_quantize))
}

/// Swaps the first two dimensions.
fn swapped(t: Tensor, perm: &[usize]) -> Result<Tensor> {
    super::transpose::transpose(t, perm)
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let kind = Kind::of(call.op_type)?;
    match call.input(0)?.dtype() {
        DType::F32 => run::<f32>(call, kind, None),
        DType::F64 => run::<f64>(call, kind, None),
        dtype @ (DType::F16 | DType::BF16) => {
            for slot in (0..call.n_inputs()).filter(|&s| s != 4) {
                if let Some(t) = call.optional(slot)?.cloned() {
                    call.inputs[slot] = Some(cast::cast(&t, DType::F32, true)?.into());
                }
            }
            let out = run::<f32>(call, kind, None)?;
            out.into_iter().map(|i| Ok(cast::cast(&i.into_tensor()?, dtype, true)?.into())).collect()
        }
        d => bail!("input 0 (X) has type {d}, expected a float type"),
    }
}

/// What the attributes and shapes say.
struct Sizes {
    time: usize,
    batch: usize,
    input: usize,
    hidden: usize,
    directions: usize,
}

fn expect(call: &Call<'_>, slot: usize, name: &str, shape: &[usize]) -> Result<()> {
    if let Some(t) = call.optional(slot)? {
        ensure!(t.shape() == shape, "input {slot} ({name}) has shape {:?}, expected {shape:?}", t.shape());
    }
    Ok(())
}

fn run<T: Real>(call: &mut Call<'_>, kind: Kind, requantize: Option<fn(&mut [T])>) -> Result<Vec<Item>> {
    let batch_first = call.flag("layout", false);
    let directions = n_directions(call.attrs)?;
    let mut x = call.take(0)?;
    ensure!(x.rank() == 3, "input 0 (X) has rank {}, expected 3", x.rank());
    if batch_first {
        x = swapped(x, &[1, 0, 2])?;
    }
    let &[_, _, hidden] = call.input(2)?.shape() else {
        bail!("input 2 (R) has rank {}, expected 3", call.input(2)?.rank());
    };
    let s = Sizes { time: x.shape()[0], batch: x.shape()[1], input: x.shape()[2], hidden, directions };
    if let Some(h) = call.attrs.int("hidden_size") {
        ensure!(h == hidden as i64, "input 2 (R) has {hidden} columns, expected hidden_size {h}");
    }
    let gates = kind.n_gates() * hidden;
    expect(call, 1, "W", &[directions, gates, s.input])?;
    expect(call, 2, "R", &[directions, gates, hidden])?;
    expect(call, 3, "B", &[directions, 2 * gates])?;
    expect(call, 4, "sequence_lens", &[s.batch])?;
    let state = if batch_first { [s.batch, directions, hidden] } else { [directions, s.batch, hidden] };
    expect(call, 5, "initial_h", &state)?;
    expect(call, 6, "initial_c", &state)?;
    expect(call, 7, "P", &[directions, 3 * hidden])?;
    let lengths = match call.optional_ints(4)? {
        None => vec![s.time; s.batch],
        Some(v) => v
            .into_iter()
            .map(|l| usize::try_from(l).ok().filter(|&l| l <= s.time))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| anyhow!("input 4 (sequence_lens) has a length that is not in 0 to {}", s.time))?,
    };
    let initial = |slot: usize| -> Result<Vec<T>> {
        match call.optional(slot)? {
            None => Ok(vec![T::zero(); directions * s.batch * hidden]),
            Some(t) if batch_first => swapped(t.clone(), &[1, 0, 2])?.into_vec(),
            Some(t) => Ok(t.slice::<T>()?.to_vec()),
        }
    };
    let (mut h, mut c) = (initial(5)?, if kind == Kind::Lstm { initial(6)? } else { Vec::new() });
    let cells = cell::directions::<T>(call.attrs, kind, directions)?;
    let n_state = s.batch * hidden;
    let made;
    let weights: &[Weights<T>] =
        if call.is_constant(1) && call.is_constant(2) && (call.is_constant(3) || call.optional(3)?.is_none()) {
            call.shared(|| pack::<T>(call, kind, &s))?
        } else {
            made = pack::<T>(call, kind, &s)?;
            &made
        };
    let peepholes = call.optional(7)?.map(|p| p.slice::<T>()).transpose()?;
    let mut y = vec![T::zero(); s.time * directions * n_state];
    let x = x.slice::<T>()?;
    for (d, (cell, w)) in cells.iter().zip(weights).enumerate() {
        let part = d * n_state..(d + 1) * n_state;
        let mut state = step::State {
            h: &mut h[part.clone()],
            c: if c.is_empty() { &mut [] } else { &mut c[part] },
            y: &mut y,
            y_offset: d * n_state,
            y_step: directions * n_state,
        };
        let peephole = peepholes.map(|p| &p[d * 3 * hidden..(d + 1) * 3 * hidden]);
        let run = step::Run {
            cell,
            weights: w,
            lengths: &lengths,
            time: s.time,
            batch: s.batch,
            threads: call.threads,
            requantize,
        };
        run.all(x, peephole, &mut state);
    }
    let mut y = Tensor::new(&[s.time, directions, s.batch, hidden], y)?;
    let mut states = vec![Tensor::new(&[directions, s.batch, hidden], h)?];
    if kind == Kind::Lstm {
        states.push(Tensor::new(&[directions, s.batch, hidden], c)?);
    }
    if batch_first {
        y = swapped(y, &[2, 0, 1, 3])?;
        states = states.into_iter().map(|t| swapped(t, &[1, 0, 2])).collect::<Result<_>>()?;
    }
    let mut out = vec![Item::Tensor(y)];
    out.extend(states.into_iter().map(Item::Tensor));
    out.truncate(call.n_outputs().max(1));
    Ok(out)
}

fn pack<T: Real>(call: &Call<'_>, kind: Kind, s: &Sizes) -> Result<Vec<Weights<T>>> {
    let gates = kind.n_gates() * s.hidden;
    let (w, r) =
        (call.input(1)?.slice::<T>().context("input 1 (W)")?, call.input(2)?.slice::<T>().context("input 2 (R)")?);
    let b = call.optional(3)?.map(|b| b.slice::<T>().context("input 3 (B)")).transpose()?;
    let lbr = call.flag("linear_before_reset", false);
    Ok((0..s.directions)
        .map(|d| {
            let w = &w[d * gates * s.input..(d + 1) * gates * s.input];
            let r = &r[d * gates * s.hidden..(d + 1) * gates * s.hidden];
            let b = b.map(|b| &b[d * 2 * gates..(d + 1) * 2 * gates]);
            Weights::new(kind, w, r, b, s.input, s.hidden, lbr)
        })
        .collect())
}

/// The strings of an attribute.
fn strings(attrs: &Attrs, name: &str) -> Option<Vec<String>> {
    match attrs.get(name) {
        Some(Attr::Strings(v)) => Some(v.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Case;

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    fn t(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::of(shape, v.to_vec())
    }

    #[test]
    fn one_step_of_each_kind_follows_its_equations() {
        let x = t(&[1, 1, 1], &[2.0]);
        let h0 = t(&[1, 1, 1], &[0.5]);
        let h = (2.0f64 * 0.3 + 0.5 * 0.7).tanh();
        Case::new("RNN", 14)
            .input(x.clone())
            .input(t(&[1, 1, 1], &[0.3]))
            .input(t(&[1, 1, 1], &[0.7]))
            .skip()
            .skip()
            .input(h0.clone())
            .outputs(2)
            .tolerance(1e-6)
            .expect(&[t(&[1, 1, 1, 1], &[h as f32]), t(&[1, 1, 1], &[h as f32])]);
        let (z, r) = (sigmoid(2.0 * 0.1 + 0.5 * 0.4), sigmoid(2.0 * 0.2 + 0.5 * 0.5));
        let n = (2.0 * 0.3 + r * 0.5 * 0.6).tanh();
        let h = (1.0 - z) * n + z * 0.5;
        Case::new("GRU", 14)
            .input(x.clone())
            .input(t(&[1, 3, 1], &[0.1, 0.2, 0.3]))
            .input(t(&[1, 3, 1], &[0.4, 0.5, 0.6]))
            .skip()
            .skip()
            .input(h0.clone())
            .tolerance(1e-6)
            .expect(&[t(&[1, 1, 1, 1], &[h as f32])]);
        let (i, o) = (sigmoid(2.0 * 0.1 + 0.5 * 0.5), sigmoid(2.0 * 0.2 + 0.5 * 0.6));
        let (f, g) = (sigmoid(2.0 * 0.3 + 0.5 * 0.7), (2.0f64 * 0.4 + 0.5 * 0.8).tanh());
        let c = f * 0.25 + i * g;
        Case::new("LSTM", 14)
            .input(x)
            .input(t(&[1, 4, 1], &[0.1, 0.2, 0.3, 0.4]))
            .input(t(&[1, 4, 1], &[0.5, 0.6, 0.7, 0.8]))
            .skip()
            .skip()
            .input(h0)
            .input(t(&[1, 1, 1], &[0.25]))
            .outputs(3)
            .tolerance(1e-6)
            .expect(&[
                t(&[1, 1, 1, 1], &[(o * c.tanh()) as f32]),
                t(&[1, 1, 1], &[(o * c.tanh()) as f32]),
                t(&[1, 1, 1], &[c as f32]),
            ]);
    }

    #[test]
    fn lengths_and_directions() {
        // The identity: with W = 1 and R = 1 and Affine(1, 0) the state is the sum of what was seen.
        let case = |direction: &str, d: usize| {
            Case::new("RNN", 14)
                .input(t(&[3, 2, 1], &[1.0, 10.0, 2.0, 20.0, 3.0, 30.0]))
                .input(t(&[d, 1, 1], &vec![1.0; d]))
                .input(t(&[d, 1, 1], &vec![1.0; d]))
                .skip()
                .input(Tensor::vector(vec![3i32, 2]))
                .attr("direction", direction)
                .attr("activations", Attr::Strings(vec!["Affine".into(); d]))
                .attr("activation_alpha", vec![1.0f32; d])
                .attr("activation_beta", vec![0.0f32; d])
                .outputs(2)
        };
        case("forward", 1).expect(&[t(&[3, 1, 2, 1], &[1.0, 10.0, 3.0, 30.0, 6.0, 0.0]), t(&[1, 2, 1], &[6.0, 30.0])]);
        case("reverse", 1).expect(&[t(&[3, 1, 2, 1], &[6.0, 30.0, 5.0, 20.0, 3.0, 0.0]), t(&[1, 2, 1], &[6.0, 30.0])]);
        case("bidirectional", 2).expect(&[
            t(&[3, 2, 2, 1], &[1.0, 10.0, 6.0, 30.0, 3.0, 30.0, 5.0, 20.0, 6.0, 0.0, 3.0, 0.0]),
            t(&[2, 2, 1], &[6.0, 30.0, 6.0, 30.0]),
        ]);
        case("sideways", 1).fails("direction");
        case("forward", 2).fails("input 1 (W)");
    }
}
