//! `GridSample` — the input sampled at the points of a grid.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__GridSample.html> (opsets 16, 20, 22)
//! Inputs: X `[N, C, D…]`, any number type; grid `[N, O…, d]` float, coordinates in `[-1, 1]`, the last dimension first.
//! Output: `[N, C, O…]`. One, two, three or more spatial dimensions.
//! Attributes: mode linear, nearest, cubic (bilinear, nearest, bicubic in opset 16); padding_mode zeros, border,
//! reflection; align_corners.
//! Quantized: stays float; the grid needs more precision than 8 bits.
//! Errors: shapes that do not fit; unknown modes.

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, bail, ensure};
use crate::ir::Dim;
use crate::tensor::broadcast::strides;
use crate::tensor::{DType, cast, count};

const GRID_SAMPLE: OpDef = OpDef {
    name: "GridSample",
    domain: OpDomain::Onnx,
    since: 16,
    inputs: Arity::exactly(2),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "sampling positions need more precision than integers have" },
};

pub(super) const OPS: &[OpDef] = &[GRID_SAMPLE, OpDef { since: 20, ..GRID_SAMPLE }];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let shape = match (ctx.shape(0), ctx.shape(1)) {
        (Some(x), Some(g)) => {
            ensure!(x.len() >= 3 && g.len() == x.len(), "inputs have ranks {} and {}", x.len(), g.len());
            let n = if x[0].known().is_some() { x[0].clone() } else { g[0].clone() };
            Some([&[n, x[1].clone()], &g[1..g.len() - 1]].concat())
        }
        (Some(x), None) => Some([&x[..2.min(x.len())], &vec![Dim::Unknown; x.len().saturating_sub(2)]].concat()),
        _ => None,
    };
    ctx.set_tensor(0, ctx.dtype(0), shape);
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

struct Sampler {
    mode: Mode,
    padding: Padding,
    align_corners: bool,
}

/// Mirrors a coordinate at both ends until it lies between them.
fn reflected(x: f64, lo: f64, hi: f64) -> f64 {
    let range = hi - lo;
    if range <= 0.0 {
        return lo;
    }
    let fold = |d: f64| {
        let n = (d / range).floor();
        (d - n * range, n % 2.0 == 0.0)
    };
    if x < lo {
        let (r, even) = fold(lo - x);
        if even { lo + r } else { hi - r }
    } else if x > hi {
        let (r, even) = fold(x - hi);
        if even { hi - r } else { lo + r }
    } else {
        x
    }
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    let x = x.abs();
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}

impl Sampler {
    /// Which elements of a dimension of size `n` make up the value at normalized coordinate `g`, with their weights.
    fn taps(&self, g: f64, n: usize, out: &mut Vec<(usize, f64)>) {
        let size = n as f64;
        // In 32-bit floats, as ONNX Runtime has coordinates: which element is the nearest depends on the rounding.
        let x = if self.align_corners { (g + 1.0) / 2.0 * (size - 1.0) } else { ((g + 1.0) * size - 1.0) / 2.0 };
        let mut x = f64::from(x as f32);
        if self.mode == Mode::Nearest {
            x = x.round_ties_even();
        }
        let (lo, hi) = if self.align_corners { (0.0, size - 1.0) } else { (-0.5, size - 0.5) };
        if x < lo || x > hi {
            match self.padding {
                Padding::Zeros => {}
                // The window of a cubic keeps its place; only what it reads is moved to the border, as in PyTorch.
                Padding::Border if self.mode == Mode::Cubic => {}
                Padding::Border => x = x.clamp(0.0, size - 1.0),
                Padding::Reflection => x = reflected(x, lo, hi),
            }
        }
        out.clear();
        let base = x.floor();
        let (first, last) = match self.mode {
            Mode::Nearest => (0, 0),
            Mode::Linear => (0, 1),
            Mode::Cubic => (-1, 2),
        };
        for k in first..=last {
            let i = base + f64::from(k);
            let weight = match self.mode {
                Mode::Nearest => 1.0,
                Mode::Linear => 1.0 - (x - i).abs(),
                Mode::Cubic => cubic(x - i),
            };
            let i = match self.padding {
                Padding::Zeros => i,
                Padding::Border => i.clamp(0.0, size - 1.0),
                Padding::Reflection => reflected(i, lo, hi).trunc(),
            };
            // Also false for NaN.
            if i >= 0.0 && i < size {
                out.push((i as usize, weight));
            }
        }
    }
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let sampler = Sampler {
        mode: match call.str("mode", if call.opset < 20 { "bilinear" } else { "linear" }) {
            "nearest" => Mode::Nearest,
            "linear" | "bilinear" => Mode::Linear,
            "cubic" | "bicubic" => Mode::Cubic,
            m => bail!("attribute \"mode\" is \"{m}\", expected linear, nearest or cubic"),
        },
        padding: match call.str("padding_mode", "zeros") {
            "zeros" => Padding::Zeros,
            "border" => Padding::Border,
            "reflection" => Padding::Reflection,
            m => bail!("attribute \"padding_mode\" is \"{m}\", expected zeros, border or reflection"),
        },
        align_corners: call.flag("align_corners", false),
    };
    let (x, grid) = (call.input(0)?, call.input(1)?);
    ensure!(x.rank() >= 3, "input 0 (X) has shape {:?}, expected at least 3 dimensions", x.shape());
    let d = x.rank() - 2;
    let (xs, gs) = (x.shape(), grid.shape());
    ensure!(
        gs.len() == d + 2 && gs[0] == xs[0] && gs[d + 1] == d,
        "input 1 (grid) has shape {gs:?}, expected [{}, {d} sizes, {d}]",
        xs[0]
    );
    let shape = [&xs[..2], &gs[1..=d]].concat();
    let total = count(&shape)?;
    let (channels, plane) = (xs[1], xs[2..].iter().product::<usize>());
    let points: usize = gs[1..=d].iter().product();
    ensure!(total == 0 || plane > 0, "input 0 (X) has no elements to sample");
    let single = matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16);
    let source = x.to_f64s().context("input 0 (X)")?;
    let coordinates = grid.to_f64s().context("input 1 (grid)")?;
    let steps = strides(&xs[2..]);
    let mut out = vec![0.0f64; total];
    let mut taps = Vec::new();
    for n in 0..if total > 0 { xs[0] } else { 0 } {
        for p in 0..points {
            let g = &coordinates[(n * points + p) * d..][..d];
            let mut sum: Vec<(usize, f64)> = vec![(0, 1.0)];
            for (axis, &step) in steps.iter().enumerate() {
                sampler.taps(g[d - 1 - axis], xs[2 + axis], &mut taps);
                sum = sum.iter().flat_map(|&(o, w)| taps.iter().map(move |&(i, v)| (o + i * step, w * v))).collect();
            }
            for c in 0..channels {
                let from = &source[(n * channels + c) * plane..][..plane];
                out[(n * channels + c) * points + p] = sum.iter().map(|&(o, w)| from[o] * w).sum();
            }
        }
    }
    if single {
        out.iter_mut().for_each(|v| *v = f64::from(*v as f32));
    }
    Ok(cast::from_f64s(x.dtype(), &shape, out)?.into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn samples_between_and_outside() {
        let case = |g: &[f32]| {
            Case::new("GridSample", 20)
                .input(Tensor::of(&[1, 1, 2, 2], vec![1.0f32, 2.0, 3.0, 4.0]))
                .input(Tensor::of(&[1, 1, g.len() / 2, 2], g.to_vec()))
        };
        let row = |v: &[f32]| [Tensor::of(&[1, 1, 1, v.len()], v.to_vec())];
        case(&[0.0, 0.0, -0.5, -0.5, 1.0, 1.0]).expect(&row(&[2.5, 1.0, 1.0]));
        case(&[1.0, 1.0, -1.0, 1.0]).attr("align_corners", 1).expect(&row(&[4.0, 3.0]));
        case(&[0.6, -0.6, 5.0, 0.0]).attr("mode", "nearest").expect(&row(&[2.0, 0.0]));
        case(&[5.0, 5.0]).attr("padding_mode", "border").expect(&row(&[4.0]));
        case(&[1.5, 0.5]).attr("padding_mode", "reflection").expect(&row(&[4.0]));
        case(&[f32::NAN, 0.0]).expect(&row(&[0.0]));
        case(&[0.0, 0.0]).attr("mode", "cubic").attr("padding_mode", "border").tolerance(1e-6).expect(&row(&[2.5]));
        case(&[0.0, 0.0]).attr("mode", "area").fails("mode");
        let grid3 = Tensor::of(&[1, 1, 1, 3], vec![0.0f32; 3]);
        Case::new("GridSample", 20)
            .input(Tensor::of(&[1, 1, 2, 2], vec![1.0f32; 4]))
            .input(grid3)
            .fails("input 1 (grid) has shape [1, 1, 1, 3]");
    }
}
