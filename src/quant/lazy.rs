//! Quantized weights that are made when they are needed, one at a time, so that memory does not grow with the model.
//!
//! A [`Job`] quantizes one weight; its integers, scales and zero points are the [`Part`]s that the model stores. The
//! first part that is asked for makes all of them; each is handed out once and then forgotten. A writer that asks for
//! the parts of one weight after the other therefore computes every weight once and holds one at a time.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::algo::blocks::{Blocked, Method, Scheme, Weight, quantize};
use crate::error::{Context, Result, anyhow, ensure};
use crate::ir::TensorRef;
use crate::ir::value::TensorSource;
use crate::tensor::{DType, Tensor};

/// How the parts lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For `DequantizeLinear` with blocks on axis 0: integers `[K, N]`, scales and zero points `[blocks, N]`.
    Columns,
    /// For `MatMulNBits`: bytes `[N, blocks, bytes of a block]`, scales `[N, blocks]`, zero points packed by row, or floats
    /// `[N, blocks]`.
    Packed,
    /// For `GatherBlockQuantized`: bytes `[N, bytes of K elements]`, scales `[N, blocks]`, zero points packed by row.
    Table,
    /// For `Gather`: integers `[N, K]`, scales `[N, 1]`.
    Rows,
    /// For `MatMulInteger`, with one block of int8: codes `[K, N]` as uint8 around 128, scales `[N]`.
    Channels,
    /// For `DynamicQuantizeLSTM`, with one block of int8: codes `[directions, K, N / directions]` as uint8 around 128,
    /// scales `[directions, N / directions]`.
    Gates {
        /// Directions of the layer.
        directions: usize,
    },
}

/// Where a quantized weight comes from.
#[derive(Debug)]
pub enum Origin {
    /// It is computed from the float weight.
    Compute {
        /// The float weight: `[K, N]` or `[N, K]`.
        weight: TensorRef,
        /// Whether it is `[K, N]`.
        is_kn: bool,
        /// How parameters are chosen.
        method: Method,
        /// What each input channel's errors weigh.
        importance: Option<Vec<f32>>,
        /// What each input channel is multiplied with before.
        factors: Option<Vec<f32>>,
    },
    /// An algorithm that needed data has made it.
    Done(Blocked),
}

/// Quantizes one weight.
pub struct Job {
    /// The float weight's name, for messages.
    pub name: String,
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Type and block size.
    pub scheme: Scheme,
    /// How the parts lie in memory.
    pub form: Form,
    origin: Origin,
    parts: Mutex<[Option<Tensor>; 3]>,
    error: OnceLock<(f64, f64)>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({:?}, [{}, {}], {:?})", self.name, self.n, self.k, self.scheme)
    }
}

impl Job {
    /// A job for a weight of `n` output and `k` input channels.
    #[must_use]
    pub fn new(name: String, n: usize, k: usize, scheme: Scheme, form: Form, origin: Origin) -> Arc<Self> {
        let error = match &origin {
            Origin::Done(b) => OnceLock::from((b.signal, b.noise)),
            Origin::Compute { .. } => OnceLock::new(),
        };
        Arc::new(Job { name, n, k, scheme, form, origin, parts: Mutex::default(), error })
    }

    /// The ratio of the weight to its error in dB, once it has been computed.
    #[must_use]
    pub fn sqnr_db(&self) -> Option<f64> {
        self.error.get().map(|&(signal, noise)| super::measure::sqnr(signal, noise))
    }

    /// The bytes that all parts take in a file.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        let parts = [Which::Integers, Which::Scales, Which::Zeros];
        let bits = |w| self.header(w).map_or(0, |(d, s)| (d.bits() * s.iter().product::<usize>()) as u64);
        parts.map(bits).iter().sum::<u64>() / 8
    }

    /// The part, to be stored in a model; `None` for zero points of a symmetric type.
    #[must_use]
    pub fn part(self: &Arc<Self>, which: Which) -> Option<TensorRef> {
        let (dtype, shape) = self.header(which)?;
        Some(TensorRef::new(Part { job: Arc::clone(self), which, dtype, shape }))
    }

    fn header(&self, which: Which) -> Option<(DType, Vec<usize>)> {
        let (n, k, bits) = (self.n, self.k, self.scheme.bits());
        let blocks = self.scheme.n_blocks(k);
        let packed = |n: usize| (n * bits).div_ceil(8);
        Some(match (which, self.form) {
            (Which::Integers, Form::Columns) => (self.scheme.dtype, vec![k, n]),
            (Which::Integers, Form::Channels) => (DType::U8, vec![k, n]),
            (Which::Integers, Form::Gates { directions: d }) => (DType::U8, vec![d, k, n / d]),
            (Which::Integers, Form::Rows) => (self.scheme.dtype, vec![n, k]),
            (Which::Integers, Form::Packed) => (DType::U8, vec![n, blocks, packed(self.scheme.block)]),
            (Which::Integers, Form::Table) => (DType::U8, vec![n, packed(k)]),
            (Which::Scales, Form::Columns) => (DType::F32, vec![blocks, n]),
            (Which::Scales, Form::Channels) => (DType::F32, vec![n]),
            (Which::Scales, Form::Gates { directions: d }) => (DType::F32, vec![d, n / d]),
            (Which::Scales, _) => (DType::F32, vec![n, blocks]),
            (Which::Zeros, _) if self.scheme.is_symmetric() => return None,
            (Which::Zeros, Form::Packed) if self.scheme.float_zeros => (DType::F32, vec![n, blocks]),
            (Which::Zeros, Form::Columns) => (self.scheme.dtype, vec![blocks, n]),
            (Which::Zeros, Form::Rows | Form::Channels | Form::Gates { .. }) => (self.scheme.dtype, vec![n, blocks]),
            (Which::Zeros, Form::Packed | Form::Table) => (DType::U8, vec![n, packed(blocks)]),
        })
    }

    fn blocked(&self) -> Result<std::borrow::Cow<'_, Blocked>> {
        let (weight, is_kn, method, importance, factors) = match &self.origin {
            Origin::Done(b) => return Ok(std::borrow::Cow::Borrowed(b)),
            Origin::Compute { weight, is_kn, method, importance, factors } => {
                (weight, *is_kn, *method, importance, factors)
            }
        };
        let stored = weight.read()?;
        ensure!(stored.len() == self.n * self.k, "the weight has another size");
        let mut scaled;
        let data = match factors {
            None => stored.slice::<f32>()?,
            Some(f) => {
                scaled = stored.slice::<f32>()?.to_vec();
                let (n, k) = (self.n, self.k);
                scaled.iter_mut().enumerate().for_each(|(i, x)| *x *= f[if is_kn { i / n } else { i % k }]);
                scaled.as_slice()
            }
        };
        let w = Weight { data, n: self.n, k: self.k, is_kn };
        Ok(std::borrow::Cow::Owned(quantize(&w, self.scheme, method, importance.as_deref())?))
    }

    fn take(&self, which: Which) -> Result<Tensor> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(t) = parts[which as usize].take() {
            return Ok(t);
        }
        let b = self.blocked()?;
        let _ = self.error.set((b.signal, b.noise));
        let made = self.lay_out(&b)?;
        // What is computed anyway is kept for the next part; what an algorithm has made costs nothing to lay out again.
        *parts = made;
        let wanted = parts[which as usize].take();
        if matches!(self.origin, Origin::Done(_)) {
            *parts = Default::default();
        }
        wanted.ok_or_else(|| anyhow!("a symmetric weight has no zero points"))
    }

    fn lay_out(&self, b: &Blocked) -> Result<[Option<Tensor>; 3]> {
        let (bits, blocks) = (self.scheme.bits(), self.scheme.n_blocks(self.k));
        let shape = |w| self.header(w).map(|(_, s)| s).unwrap_or_default();
        let (integers, scales) = (shape(Which::Integers), shape(Which::Scales));
        let zeros: Vec<u8> = b.zeros.iter().map(|&z| z as u8).collect();
        let (q, s, z) = match self.form {
            Form::Gates { directions } => {
                let rows = b.n / directions.max(1);
                let gates = b.codes.chunks((rows * b.k).max(1)).flat_map(|w| turned(w, rows, b.k));
                let zeros = Tensor::new(&scales, zeros)?;
                (Tensor::new(&integers, gates.collect())?, Tensor::new(&scales, b.scales.clone())?, zeros)
            }
            Form::Channels => {
                let zeros = Tensor::new(&scales, zeros)?;
                (Tensor::new(&integers, turned(&b.codes, b.n, b.k))?, Tensor::new(&scales, b.scales.clone())?, zeros)
            }
            Form::Columns => (
                typed(&turned(&b.codes, b.n, b.k), &integers, self.scheme)?,
                Tensor::new(&scales, turned(&b.scales, b.n, blocks))?,
                typed(&turned(&zeros, b.n, blocks), &scales, self.scheme)?,
            ),
            Form::Rows => (
                typed(&b.codes, &integers, self.scheme)?,
                Tensor::new(&scales, b.scales.clone())?,
                typed(&zeros, &scales, self.scheme)?,
            ),
            Form::Packed | Form::Table => {
                // A block that the row cuts off is filled up.
                let width = if self.form == Form::Packed { blocks * self.scheme.block } else { self.k };
                let zeros = if self.scheme.float_zeros {
                    Tensor::new(&scales, b.zeros.clone())?
                } else {
                    Tensor::new(&[self.n, (blocks * bits).div_ceil(8)], packed(&zeros, blocks, blocks, bits, 0))?
                };
                (
                    Tensor::new(&integers, packed(&b.codes, self.k, width, bits, self.scheme.middle()))?,
                    Tensor::new(&scales, b.scales.clone())?,
                    zeros,
                )
            }
        };
        Ok([Some(q), Some(s), (!self.scheme.is_symmetric()).then_some(z)])
    }
}

/// `[rows, columns]` to `[columns, rows]`.
fn turned<T: Copy + Default>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    let mut out = vec![T::default(); x.len()];
    // In tiles, so that both sides stay in the cache.
    for from in (0..rows).step_by(64) {
        for (c, line) in out.chunks_exact_mut(rows.max(1)).enumerate() {
            for (r, to) in line.iter_mut().enumerate().take(rows.min(from + 64)).skip(from) {
                *to = x[r * columns + c];
            }
        }
    }
    out
}

/// Codes as a tensor of their type.
fn typed(codes: &[u8], shape: &[usize], scheme: Scheme) -> Result<Tensor> {
    if scheme.is_symmetric() {
        let middle = i16::from(scheme.middle());
        let q: Vec<i8> = codes.iter().map(|&c| (i16::from(c) - middle) as i8).collect();
        return Tensor::new(shape, q)?.retyped(scheme.dtype);
    }
    Tensor::new(shape, codes.to_vec())?.retyped(scheme.dtype)
}

/// Rows of codes as bytes, from the low bits up; each row is filled up to `width` elements and to whole bytes.
fn packed(codes: &[u8], row: usize, width: usize, bits: usize, fill: u8) -> Vec<u8> {
    let per_byte = 8 / bits;
    let mut out = Vec::with_capacity(codes.len() / row.max(1) * width.div_ceil(per_byte));
    for row in codes.chunks_exact(row.max(1)) {
        for start in (0..width).step_by(per_byte) {
            let mut byte = 0;
            for i in 0..per_byte.min(width - start) {
                byte |= row.get(start + i).copied().unwrap_or(fill) << (i * bits);
            }
            out.push(byte);
        }
    }
    out
}

/// A part of a quantized weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Its integers.
    Integers = 0,
    /// Their scales.
    Scales = 1,
    /// Their zero points.
    Zeros = 2,
}

struct Part {
    job: Arc<Job>,
    which: Which,
    dtype: DType,
    shape: Vec<usize>,
}

/// Whether a tensor is one of a weight that is quantized while it is written.
#[must_use]
pub fn is_made_later(t: &TensorRef) -> bool {
    t.source().as_any().is::<Part>()
}

impl TensorSource for Part {
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn load(&self) -> Result<Tensor> {
        self.job.take(self.which).with_context(|| format!("weight \"{}\"", self.job.name))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(form: Form, dtype: DType) -> Arc<Job> {
        // Blocks of two fill no byte with 2 bits where each begins at one.
        let block = if form == Form::Packed && dtype.bits() == 2 { 4 } else { 2 };
        let w: Vec<f32> = (0..6).map(|i| i as f32 - 2.0).collect();
        let origin = Origin::Compute {
            weight: Tensor::new(&[3, 2], w).unwrap().into(),
            is_kn: true,
            method: Method::Rtn,
            importance: None,
            factors: None,
        };
        Job::new("w".into(), 2, 3, Scheme::new(dtype, block), form, origin)
    }

    #[test]
    fn parts_fit_together_in_every_form() {
        for dtype in [DType::I8, DType::U8, DType::I4, DType::U4, DType::I2, DType::U2] {
            for form in [Form::Columns, Form::Packed, Form::Table, Form::Rows] {
                let j = job(form, dtype);
                for which in [Which::Scales, Which::Integers, Which::Zeros, Which::Integers] {
                    let Some(part) = j.part(which) else {
                        assert!(which == Which::Zeros && j.scheme.is_symmetric());
                        continue;
                    };
                    let t = part.read().unwrap();
                    assert_eq!((t.dtype(), t.shape()), (part.dtype(), part.shape()), "{form:?} {which:?}");
                }
                assert!(j.sqnr_db().is_some());
            }
        }
    }

    #[test]
    fn codes_lie_where_the_operators_expect_them() {
        // W = [[-2, -1], [0, 1], [2, 3]]: rows by output channel are (-2, 0), (2) and (-1, 1), (3).
        let j = job(Form::Columns, DType::I4);
        let (q, s) = (j.part(Which::Integers).unwrap().read().unwrap(), j.part(Which::Scales).unwrap().read().unwrap());
        let (q, s) = (q.slice::<i8>().unwrap().to_vec(), s.slice::<f32>().unwrap().to_vec());
        for (i, want) in (0..6).map(|i| (i, i as f32 - 2.0)) {
            let got = f32::from(q[i]) * s[i / 2 / 2 * 2 + i % 2];
            assert!((got - want).abs() < 0.05, "{i}: {got} instead of {want}");
        }
        let b = job(Form::Packed, DType::I4).part(Which::Integers).unwrap().read().unwrap();
        let bytes = b.slice::<u8>().unwrap();
        assert_eq!(b.shape(), &[2, 2, 1]);
        // Low half first; the missing element of the second block stands for zero.
        assert_eq!((bytes[0] >> 4, bytes[1] >> 4), (8, 8));
        assert!(bytes[0] & 15 < 8 && bytes[1] & 15 > 8);
    }
}
