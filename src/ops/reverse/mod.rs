//! Reverse rules: from the gradients of an operator's outputs to the gradients of its inputs (vector-Jacobian
//! products), so that one pass back through a model tells how each value moves the outputs.
//!
//! A rule stands beside the operator's evaluation, in the operator's file: `pub(super) const REVERSE: &[Reverse]`, and
//! is listed below. An operator without a rule is no error: the gradient stops there, which the pass reports.
//!
//! Gradients are 32-bit floats, whatever the type of the value, and have its shape. Rules differentiate what the
//! operator computes on the given input: at a kink (`Relu` at 0) they take one of the two slopes. `tests.rs` checks
//! every rule against finite differences of the operator's own evaluation in 64 bits.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::call::{Fusion, NoBodies, evaluate};
use super::{Call, Item, OpDef, OpDomain, Shared};
use crate::error::{Result, anyhow};
use crate::ir::Attrs;
use crate::tensor::broadcast::for_each_row;
use crate::tensor::{DType, Tensor};

/// The gradient of each input, in the order of the slots; `None` where it is 0, not wanted, or undefined (integers).
/// Slots at the end may be left out.
pub type Gradients = Vec<Option<Tensor>>;

/// The rule of an operator, for all its versions.
#[derive(Debug)]
pub struct Reverse {
    /// ONNX's name.
    pub name: &'static str,
    /// Its domain.
    pub domain: OpDomain,
    /// Computes the gradients of the inputs. An error means that the rule does not cover this form of the operator.
    pub rule: fn(&Back<'_>) -> Result<Gradients>,
}

impl Reverse {
    /// The rule of an operator of ONNX's own domain.
    pub(super) const fn of(name: &'static str, rule: fn(&Back<'_>) -> Result<Gradients>) -> Self {
        Reverse { name, domain: OpDomain::Onnx, rule }
    }

    /// The rule of an operator of ONNX Runtime's domain.
    pub(super) const fn microsoft(name: &'static str, rule: fn(&Back<'_>) -> Result<Gradients>) -> Self {
        Reverse { name, domain: OpDomain::Microsoft, rule }
    }
}

/// Every file with rules.
const ALL: &[&[Reverse]] = &[
    super::activation::REVERSE,
    super::average_pool::REVERSE,
    super::batch_normalization::REVERSE,
    super::binary::REVERSE,
    super::cast_::REVERSE,
    super::center_crop_pad::REVERSE,
    super::clip::REVERSE,
    super::compress::REVERSE,
    super::concat::REVERSE,
    super::conv::REVERSE,
    super::conv_transpose::REVERSE,
    super::cumulative::REVERSE,
    super::depth_to_space::REVERSE,
    super::einsum::REVERSE,
    super::expand::REVERSE,
    super::flatten::REVERSE,
    super::gather::REVERSE,
    super::gather_elements::REVERSE,
    super::gather_nd::REVERSE,
    super::gemm::REVERSE,
    super::global_pool::REVERSE,
    super::identity::REVERSE,
    super::instance_normalization::REVERSE,
    super::layer_normalization::REVERSE,
    super::mat_mul::REVERSE,
    super::max_pool::REVERSE,
    super::pad::REVERSE,
    super::random::REVERSE,
    super::reduce::REVERSE,
    super::reshape::REVERSE,
    super::resize::REVERSE,
    super::reverse_sequence::REVERSE,
    super::scatter_elements::REVERSE,
    super::scatter_nd::REVERSE,
    super::slice::REVERSE,
    super::softmax::REVERSE,
    super::split::REVERSE,
    super::squeeze::REVERSE,
    super::tile::REVERSE,
    super::top_k::REVERSE,
    super::transpose::REVERSE,
    super::trilu::REVERSE,
    super::unary::REVERSE,
    super::unsqueeze::REVERSE,
    super::variadic::REVERSE,
    super::where_::REVERSE,
];

static TABLE: LazyLock<BTreeMap<(&'static str, &'static str), &'static Reverse>> =
    LazyLock::new(|| ALL.iter().copied().flatten().map(|r| ((r.domain.name(), r.name), r)).collect());

/// The rule of an operator; `None` for operators that gradients do not pass.
#[must_use]
pub fn reverse_rule(def: &OpDef) -> Option<&'static Reverse> {
    TABLE.get(&(def.domain.name(), def.name)).copied()
}

/// What a rule sees of one evaluation.
pub struct Back<'a> {
    /// The operator's definition.
    pub def: &'static OpDef,
    /// Attributes.
    pub attrs: &'a Attrs,
    /// Version of the operator's domain.
    pub opset: i64,
    /// Inputs as they were; `None` for an empty slot.
    pub inputs: &'a [Option<Tensor>],
    /// Outputs as they were; `None` for those that nobody wanted.
    pub outputs: &'a [Option<Tensor>],
    /// The gradient of each output, float of its shape; `None` where nothing depends on it.
    pub gradients: &'a [Option<Tensor>],
    /// For each input, whether its gradient is wanted.
    pub wanted: &'a [bool],
    /// Threads that the rule may use.
    pub threads: usize,
}

impl Back<'_> {
    /// An input.
    ///
    /// # Errors
    /// The slot is empty.
    pub fn input(&self, slot: usize) -> Result<&Tensor> {
        self.optional(slot).ok_or_else(|| anyhow!("input {slot} is missing"))
    }

    /// An input that may be missing.
    #[must_use]
    pub fn optional(&self, slot: usize) -> Option<&Tensor> {
        self.inputs.get(slot).and_then(Option::as_ref)
    }

    /// An output.
    ///
    /// # Errors
    /// It was not made.
    pub fn output(&self, slot: usize) -> Result<&Tensor> {
        self.outputs.get(slot).and_then(Option::as_ref).ok_or_else(|| anyhow!("output {slot} was not kept"))
    }

    /// The gradient of output 0.
    ///
    /// # Errors
    /// There is none.
    pub fn gradient(&self) -> Result<&[f32]> {
        match self.gradients.first() {
            Some(Some(g)) => g.slice(),
            _ => Err(anyhow!("only a later output has a gradient")),
        }
    }

    /// Whether the gradient of an input is wanted.
    #[must_use]
    pub fn wants(&self, slot: usize) -> bool {
        self.wanted.get(slot).copied().unwrap_or(false)
    }

    /// An integer attribute, or its default.
    #[must_use]
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attrs.int(name).unwrap_or(default)
    }

    /// A float attribute, or its default.
    #[must_use]
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.attrs.float(name).unwrap_or(default)
    }

    /// The gradient of an input from its elements, where it is wanted.
    ///
    /// # Errors
    /// Their number is not the input's.
    pub fn made(&self, slot: usize, v: impl FnOnce() -> Result<Vec<f32>>) -> Result<Option<Tensor>> {
        if self.wants(slot) { Tensor::new(self.input(slot)?.shape(), v()?).map(Some) } else { Ok(None) }
    }

    /// Shows the evaluation again, for rules that need what it works out.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn again<R>(&self, f: impl FnOnce(&Call<'_>) -> Result<R>) -> Result<R> {
        f(&Call {
            op_type: self.def.name,
            attrs: self.attrs,
            opset: self.opset,
            inputs: self.inputs.iter().map(|t| t.clone().map(Item::Tensor)).collect(),
            constant: &vec![false; self.inputs.len()],
            wanted: &vec![true; self.outputs.len()],
            threads: self.threads,
            seed: 0,
            bodies: &NoBodies,
            shared: &Shared::new(),
            fusion: Fusion::default(),
        })
    }

    // ---- rules that many operators share ----

    /// The rule of a function of each element: `slope(x, y)` is its derivative.
    ///
    /// # Errors
    /// Input or output is no tensor of floats.
    pub fn each(&self, slope: impl Fn(f32, f32) -> f32) -> Result<Gradients> {
        self.each_slice(&|g, x, y| g.iter_mut().zip(x.iter().zip(y)).for_each(|(g, (&x, &y))| *g *= slope(x, y)))
    }

    /// [`Back::each`], behind a reference, so that it is compiled once: `multiply` turns the gradient of the output
    /// into the input's.
    fn each_slice(&self, multiply: &dyn Fn(&mut [f32], &[f32], &[f32])) -> Result<Gradients> {
        let (x, y, g) = (self.input(0)?.to_f32s()?, self.output(0)?.to_f32s()?, self.gradient()?);
        let dx = || {
            let mut dx = g.to_vec();
            multiply(&mut dx, &x, &y);
            Ok(dx)
        };
        Ok(vec![self.made(0, dx)?])
    }

    /// The rule of an operator that keeps the elements and their order: `Reshape`, `Identity`.
    ///
    /// # Errors
    /// The number of elements changed.
    pub fn reshaped(&self) -> Result<Gradients> {
        Ok(vec![self.made(0, || Ok(self.gradient()?.to_vec()))?])
    }

    /// The rule of an operator whose output elements are input elements, repeated, reordered or left out, or 0: the
    /// operator itself says where each comes from, evaluated on the elements' places (from 1 on) instead of their
    /// values. `slots` are the inputs that elements come from.
    ///
    /// # Errors
    /// The evaluation fails.
    pub fn moved(&self, slots: &[usize]) -> Result<Gradients> {
        self.moved_with(slots, self.attrs, &[])
    }

    /// As [`Back::moved`], with other attributes and without some inputs, so that what is no element of an input is 0.
    ///
    /// # Errors
    /// The evaluation fails.
    pub fn moved_with(&self, slots: &[usize], attrs: &Attrs, without: &[usize]) -> Result<Gradients> {
        if !slots.iter().any(|&s| self.wants(s)) {
            return Ok(Vec::new());
        }
        let mut inputs = self.inputs.to_vec();
        for &slot in without {
            if let Some(input) = inputs.get_mut(slot) {
                *input = None;
            }
        }
        let (mut starts, mut total) = (Vec::new(), 0usize);
        for &slot in slots {
            let x = self.input(slot)?;
            let places = (total..total + x.len()).map(|i| i32::try_from(i + 1)).collect::<Result<Vec<i32>, _>>()?;
            starts.push(total);
            total += x.len();
            inputs[slot] = Some(Tensor::new(x.shape(), places)?);
        }
        let from = evaluate(self.def, attrs, self.opset, inputs, self.outputs.len())?;
        let mut sums = vec![0.0f32; total];
        for (from, gradient) in from.iter().zip(self.gradients) {
            let Some(gradient) = gradient else { continue };
            for (&place, g) in from.slice::<i32>()?.iter().zip(gradient.slice::<f32>()?) {
                if place > 0 {
                    sums[place as usize - 1] += g;
                }
            }
        }
        let mut out: Gradients = vec![None; self.inputs.len()];
        for (&slot, &start) in slots.iter().zip(&starts) {
            let n = self.input(slot)?.len();
            out[slot] = self.made(slot, || Ok(sums[start..start + n].to_vec()))?;
        }
        Ok(out)
    }

    /// The gradient of a broadcast input: `term(g, x, y)` for each element of the output, with the gradient and the
    /// elements of inputs 0 and 1, summed over where the input was repeated.
    ///
    /// # Errors
    /// An input is no tensor of numbers.
    pub fn broadcast(&self, slot: usize, term: impl Fn(f32, f32, f32) -> f32) -> Result<Option<Tensor>> {
        if !self.wants(slot) {
            return Ok(None);
        }
        let (a, b) = (self.input(0)?, self.input(1)?);
        let (x, y, g) = (number(a)?, number(b)?, self.gradient()?);
        let shape = self.output(0)?.shape();
        let mut terms = vec![0.0f32; g.len()];
        for_each_row(shape, [a.shape(), b.shape()], |o, [ix, iy], n, [sx, sy]| {
            let out = terms[o..o + n].iter_mut().zip(&g[o..o + n]);
            match (sx, sy) {
                (1, 1) => {
                    out.zip(&x[ix..ix + n]).zip(&y[iy..iy + n]).for_each(|(((t, &g), &x), &y)| *t = term(g, x, y))
                }
                (1, 0) => out.zip(&x[ix..ix + n]).for_each(|((t, &g), &x)| *t = term(g, x, y[iy])),
                (0, 1) => out.zip(&y[iy..iy + n]).for_each(|((t, &g), &y)| *t = term(g, x[ix], y)),
                _ => {
                    out.enumerate().for_each(|(i, (t, &g))| *t = term(g, x[ix + i * sx], y[iy + i * sy]));
                }
            }
        });
        let to = self.input(slot)?.shape();
        self.made(slot, || Ok(if to == shape { terms } else { summed(&terms, shape, to) }))
    }
}

/// Elements as 32-bit floats; integers too (an exponent).
fn number(t: &Tensor) -> Result<Cow<'_, [f32]>> {
    if matches!(t.dtype(), DType::F32) {
        return Ok(Cow::Borrowed(t.slice()?));
    }
    Ok(Cow::Owned(t.to_f64s()?.into_iter().map(|x| x as f32).collect()))
}

/// The elements of a tensor of shape `from`, summed over the dimensions in which `to` was repeated to give it.
pub(super) fn summed(v: &[f32], from: &[usize], to: &[usize]) -> Vec<f32> {
    let n = to.iter().product();
    if n == v.len() {
        return v.to_vec();
    }
    let mut sums = vec![0.0f64; n];
    for_each_row(from, [to], |o, [at], n, [step]| {
        let row = &v[o..o + n];
        if step == 0 {
            sums[at] += row.iter().map(|&x| f64::from(x)).sum::<f64>();
        } else {
            row.iter().enumerate().for_each(|(i, &x)| sums[at + i * step] += f64::from(x));
        }
    });
    sums.into_iter().map(|x| x as f32).collect()
}

/// Slopes of `f(x) = (x - mean) / sqrt(var + epsilon)` over rows of `n` elements (without the mean where it is not
/// `centered`): from the gradient of the normalised values to that of `x`, in place; `x` becomes the normalised values.
pub(super) fn normalized(x: &mut [f32], g: &mut [f32], n: usize, epsilon: f32, centered: bool) {
    for (x, g) in x.chunks_exact_mut(n.max(1)).zip(g.chunks_exact_mut(n.max(1))) {
        let mean_of = |v: &mut dyn Iterator<Item = f64>| v.sum::<f64>() / n as f64;
        let mean = if centered { mean_of(&mut x.iter().map(|&x| f64::from(x))) } else { 0.0 };
        let var = mean_of(&mut x.iter().map(|&x| (f64::from(x) - mean).powi(2)));
        let inv = 1.0 / (var + f64::from(epsilon)).sqrt();
        x.iter_mut().for_each(|x| *x = ((f64::from(*x) - mean) * inv) as f32);
        let along = mean_of(&mut x.iter().zip(&*g).map(|(&x, &g)| f64::from(x) * f64::from(g)));
        let shift = if centered { mean_of(&mut g.iter().map(|&g| f64::from(g))) } else { 0.0 };
        for (g, &x) in g.iter_mut().zip(&*x) {
            *g = (inv * (f64::from(*g) - shift - f64::from(x) * along)) as f32;
        }
    }
}
