//! What a recurrent layer computes at one step: gates, activations, weights.

use ndarray::{ArrayView2, ArrayViewMut2, NdFloat, linalg::general_mat_mul};

use super::strings;
use crate::error::{Result, bail, ensure};
use crate::ir::Attrs;
use crate::kernels::gemm::{Init, PackedB, gemm, gemv};
use crate::kernels::math;
use crate::tensor::Element;

/// Which recurrent layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `h = f(x W + h R + b)`.
    Rnn,
    /// Gates z, r, h.
    Gru,
    /// Gates i, o, f, c.
    Lstm,
}

impl Kind {
    pub(super) fn of(op_type: &str) -> Result<Self> {
        match op_type {
            "RNN" => Ok(Kind::Rnn),
            "GRU" => Ok(Kind::Gru),
            "LSTM" | "DynamicQuantizeLSTM" => Ok(Kind::Lstm),
            t => bail!("{t} is no recurrent layer"),
        }
    }

    /// Gates, of which each has a row of weights for each hidden element.
    pub(crate) fn n_gates(self) -> usize {
        match self {
            Kind::Rnn => 1,
            Kind::Gru => 3,
            Kind::Lstm => 4,
        }
    }

    fn default_activations(self) -> &'static [&'static str] {
        match self {
            Kind::Rnn => &["Tanh"],
            Kind::Gru => &["Sigmoid", "Tanh"],
            Kind::Lstm => &["Sigmoid", "Tanh", "Tanh"],
        }
    }
}

/// Floats that layers are computed in.
pub(crate) trait Real: NdFloat + Element {
    /// A matrix `[k, n]` that was prepared for products with it from the left.
    type Packed: Send + Sync + 'static;
    /// Prepares the transpose of `b`, rows `[n, k]`.
    fn pack(b: &[Self], n: usize, k: usize) -> Self::Packed;
    /// `c = init + a * b`: `init` for each row.
    fn product(threads: usize, m: usize, a: &[Self], b: &Self::Packed, init: Option<&[Self]>, c: &mut [Self]);
    /// The sigmoid of every element.
    fn sigmoid(v: &mut [Self]);
    /// The hyperbolic tangent of every element.
    fn tanh_all(v: &mut [Self]);
    /// From a 32-bit float.
    fn of(x: f32) -> Self;
}

/// Both forms of a matrix of 32-bit floats: columns in panels for many rows, row-major for one.
pub(crate) struct Packed {
    panels: PackedB,
    rows: Vec<f32>,
}

impl Real for f32 {
    type Packed = Packed;
    fn pack(b: &[f32], n: usize, k: usize) -> Packed {
        Packed { panels: PackedB::new(b, k, n, 1, k), rows: transposed(b, n, k) }
    }
    fn product(threads: usize, m: usize, a: &[f32], b: &Packed, init: Option<&[f32]>, c: &mut [f32]) {
        // A vector reads the matrix once, in its order; beyond a few the register-blocked tiles win.
        let (k, n) = (b.panels.k(), b.panels.n());
        if m > 2 || n == 0 {
            return gemm(threads, m, a, &b.panels, init.map_or(Init::Zero, Init::Columns), c);
        }
        for i in 0..m {
            let row = &mut c[i * n..(i + 1) * n];
            gemv(&a[i * k..(i + 1) * k], &b.rows, row);
            if let Some(init) = init {
                row.iter_mut().zip(init).for_each(|(y, b)| *y += b);
            }
        }
    }
    fn sigmoid(v: &mut [f32]) {
        crate::kernels::simd::run(Map(v, math::sigmoid));
    }
    fn tanh_all(v: &mut [f32]) {
        crate::kernels::simd::run(Map(v, math::tanh));
    }
    fn of(x: f32) -> f32 {
        x
    }
}

struct Map<'a, F>(&'a mut [f32], F);

impl<F: Fn(f32) -> f32> crate::kernels::simd::Kernel for Map<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for x in self.0.iter_mut() {
            *x = (self.1)(*x);
        }
    }
}

impl Real for f64 {
    type Packed = (Vec<f64>, usize, usize);
    fn pack(b: &[f64], n: usize, k: usize) -> Self::Packed {
        (transposed(b, n, k), k, n)
    }
    fn product(_: usize, m: usize, a: &[f64], b: &Self::Packed, init: Option<&[f64]>, c: &mut [f64]) {
        let (b, k, n) = (&b.0, b.1, b.2);
        match init {
            Some(init) if n > 0 => c.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(init)),
            _ => c.fill(0.0),
        }
        let views = (
            ArrayView2::from_shape((m, k), a),
            ArrayView2::from_shape((k, n), b),
            ArrayViewMut2::from_shape((m, n), c),
        );
        if let (Ok(a), Ok(b), Ok(mut c)) = views {
            general_mat_mul(1.0, &a, &b, 1.0, &mut c);
        }
    }
    fn sigmoid(v: &mut [f64]) {
        v.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
    }
    fn tanh_all(v: &mut [f64]) {
        v.iter_mut().for_each(|x| *x = x.tanh());
    }
    fn of(x: f32) -> f64 {
        x.into()
    }
}

fn transposed<T: Copy + Default>(b: &[T], n: usize, k: usize) -> Vec<T> {
    crate::tensor::strided::gather(b, 0, &[k, n], &[1, k as isize])
}

/// The weights of one direction, prepared for products from the left.
pub(crate) struct Weights<T: Real> {
    pub kind: Kind,
    pub hidden: usize,
    /// `[I, G*H]`.
    pub w: T::Packed,
    /// `[H, G*H]`; for GRU without the gate h.
    pub r: T::Packed,
    /// GRU: `[H, H]`, the gate h.
    pub r_h: Option<T::Packed>,
    /// What is added to the products with W: both biases; for GRU with linear_before_reset without that of R's gate h.
    pub bias: Option<Vec<T>>,
    /// GRU with linear_before_reset: the bias of R's gate h.
    pub bias_h: Option<Vec<T>>,
    pub linear_before_reset: bool,
}

impl<T: Real> Weights<T> {
    /// From rows as ONNX stores them: W `[G*H, I]`, R `[G*H, H]`, B `[2*G*H]`.
    pub(crate) fn new(kind: Kind, w: &[T], r: &[T], b: Option<&[T]>, input: usize, hidden: usize, lbr: bool) -> Self {
        let gates = kind.n_gates() * hidden;
        let (first, last) = if kind == Kind::Gru { r.split_at(2 * hidden * hidden) } else { (r, &r[..0]) };
        let lbr = lbr && kind == Kind::Gru;
        let (mut bias, mut bias_h) = (None, None);
        if let Some(b) = b {
            let (wb, rb) = b.split_at(gates);
            let mut sum: Vec<T> = wb.iter().zip(rb).map(|(&a, &b)| a + b).collect();
            if lbr {
                sum[2 * hidden..].copy_from_slice(&wb[2 * hidden..]);
                bias_h = Some(rb[2 * hidden..].to_vec());
            }
            bias = Some(sum);
        }
        Weights {
            kind,
            hidden,
            w: T::pack(w, gates, input),
            r: T::pack(first, first.len() / hidden.max(1), hidden),
            r_h: (kind == Kind::Gru).then(|| T::pack(last, hidden, hidden)),
            bias,
            bias_h,
            linear_before_reset: lbr,
        }
    }
}

/// An activation function.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Activation<T> {
    Sigmoid,
    Tanh,
    Relu,
    Affine(T, T),
    LeakyRelu(T),
    ThresholdedRelu(T),
    ScaledTanh(T, T),
    HardSigmoid(T, T),
    Elu(T),
    Softsign,
    Softplus,
}

impl<T: Real> Activation<T> {
    /// Parses a name; parameters are taken from the lists by the functions that have them, in order.
    fn parse(name: &str, alpha: &mut dyn Iterator<Item = f32>, beta: &mut dyn Iterator<Item = f32>) -> Result<Self> {
        let mut a = |default: f32| T::of(alpha.next().unwrap_or(default));
        let mut b = |default: f32| T::of(beta.next().unwrap_or(default));
        Ok(match name.to_ascii_lowercase().as_str() {
            "sigmoid" => Self::Sigmoid,
            "tanh" => Self::Tanh,
            "relu" => Self::Relu,
            "affine" => Self::Affine(a(1.0), b(0.0)),
            "leakyrelu" => Self::LeakyRelu(a(0.01)),
            "thresholdedrelu" => Self::ThresholdedRelu(a(1.0)),
            "scaledtanh" => Self::ScaledTanh(a(1.0), b(1.0)),
            "hardsigmoid" => Self::HardSigmoid(a(0.2), b(0.5)),
            "elu" => Self::Elu(a(1.0)),
            "softsign" => Self::Softsign,
            "softplus" => Self::Softplus,
            _ => bail!("attribute \"activations\" names \"{name}\", which the specification does not define"),
        })
    }

    /// Applies it to every element.
    pub(super) fn apply(self, v: &mut [T]) {
        let (zero, one) = (T::zero(), T::one());
        let mut map = |f: &dyn Fn(T) -> T| v.iter_mut().for_each(|x| *x = f(*x));
        match self {
            Self::Sigmoid => T::sigmoid(v),
            Self::Tanh => T::tanh_all(v),
            Self::Relu => map(&|x| x.max(zero)),
            Self::Affine(a, b) => map(&|x| a * x + b),
            Self::LeakyRelu(a) => map(&|x| if x >= zero { x } else { a * x }),
            Self::ThresholdedRelu(a) => map(&|x| if x >= a { x } else { zero }),
            Self::ScaledTanh(a, b) => map(&|x| a * (b * x).tanh()),
            Self::HardSigmoid(a, b) => map(&|x| (a * x + b).max(zero).min(one)),
            Self::Elu(a) => map(&|x| if x >= zero { x } else { a * (x.exp() - one) }),
            Self::Softsign => map(&|x| x / (one + x.abs())),
            Self::Softplus => map(&|x| x.max(zero) + (-x.abs()).exp().ln_1p()),
        }
    }
}

/// What one direction computes, but for its weights.
pub(crate) struct Direction<T> {
    pub reverse: bool,
    pub activations: Vec<Activation<T>>,
    pub clip: Option<T>,
    /// LSTM: the forget gate is one minus the input gate.
    pub input_forget: bool,
}

impl<T: Real> Direction<T> {
    /// Bounds what goes into activation `i` and applies it.
    pub(super) fn activate(&self, i: usize, v: &mut [T]) {
        if let Some(c) = self.clip {
            v.iter_mut().for_each(|x| *x = x.max(-c).min(c));
        }
        self.activations[i].apply(v);
    }
}

/// The directions that the attributes describe.
///
/// # Errors
/// An activation is not known, or there are too few.
pub(crate) fn directions<T: Real>(attrs: &Attrs, kind: Kind, n: usize) -> Result<Vec<Direction<T>>> {
    let defaults = kind.default_activations();
    let names = match strings(attrs, "activations") {
        Some(v) => v,
        None => (0..n).flat_map(|_| defaults.iter().map(ToString::to_string)).collect(),
    };
    ensure!(
        names.len() == n * defaults.len(),
        "attribute \"activations\" has {} names, expected {}",
        names.len(),
        n * defaults.len()
    );
    let mut alpha = attrs.floats("activation_alpha").unwrap_or_default().iter().copied();
    let mut beta = attrs.floats("activation_beta").unwrap_or_default().iter().copied();
    let all = names.iter().map(|name| Activation::parse(name, &mut alpha, &mut beta)).collect::<Result<Vec<_>>>()?;
    let reverse = attrs.str("direction") == Some("reverse");
    Ok(all
        .chunks_exact(defaults.len())
        .enumerate()
        .map(|(d, activations)| Direction {
            reverse: reverse || d == 1,
            activations: activations.to_vec(),
            clip: attrs.float("clip").filter(|&c| c > 0.0).map(T::of),
            input_forget: attrs.int("input_forget").unwrap_or(0) != 0,
        })
        .collect())
}
