//! Scaled dot-product attention over heads, which several operators share: in 32 bits, or 64 for doubles.

use super::transpose::transpose;
use crate::error::{Result, bail, ensure};
use crate::kernels::gemm::{Init, PackedB, gemm};
use crate::kernels::{self, Slots, math, plain, rows};
use crate::tensor::broadcast::broadcast_strides;
use crate::tensor::cast::cast;
use crate::tensor::{DType, Data, Element, Tensor};

/// A type that attention is computed in.
pub(super) trait Real: Element + Copy + PartialOrd + std::ops::AddAssign + std::ops::MulAssign {
    /// The first matrix of a group's products, prepared once for all its heads.
    type Packed;
    /// Masks a key.
    const NEVER: Self;
    /// From an attribute.
    fn of(x: f32) -> Self;
    /// `1 / sqrt(size)`.
    fn inverse_root(size: usize) -> Self;
    /// Packs a matrix as [`PackedB::new`] does.
    fn pack(b: &[Self], k: usize, n: usize, k_stride: usize, n_stride: usize) -> Self::Packed;
    /// `C = A * B` with `m` rows.
    fn product(m: usize, a: &[Self], b: &Self::Packed, c: &mut [Self]);
    /// `cap * tanh(self / cap)`.
    fn capped(self, cap: f32) -> Self;
    /// The softmax of each row of `n`; a sink is one more score, whose share no key gets.
    fn softmax(rows: &mut [Self], n: usize, sink: Option<f32>);
}

impl Real for f32 {
    type Packed = PackedB;
    const NEVER: Self = f32::NEG_INFINITY;

    fn of(x: f32) -> Self {
        x
    }

    fn inverse_root(size: usize) -> Self {
        1.0 / (size as f32).sqrt()
    }

    fn pack(b: &[f32], k: usize, n: usize, k_stride: usize, n_stride: usize) -> PackedB {
        PackedB::new(b, k, n, k_stride, n_stride)
    }

    fn product(m: usize, a: &[f32], b: &PackedB, c: &mut [f32]) {
        gemm(1, m, a, b, Init::Zero, c);
    }

    fn capped(self, cap: f32) -> Self {
        cap * math::tanh(self / cap)
    }

    fn softmax(data: &mut [f32], n: usize, sink: Option<f32>) {
        let Some(sink) = sink else { return rows::softmax(data, n, false) };
        for row in data.chunks_exact_mut(n) {
            let most = rows::max(row).max(sink);
            row.iter_mut().for_each(|x| *x = math::exp(*x - most));
            let sum = (rows::sum_of(row, |x| x) + f64::from(math::exp(sink - most))) as f32;
            row.iter_mut().for_each(|x| *x /= sum);
        }
    }
}

impl Real for f64 {
    /// The matrix row by row, and its columns.
    type Packed = (Vec<f64>, usize, usize);
    const NEVER: Self = f64::NEG_INFINITY;

    fn of(x: f32) -> Self {
        x.into()
    }

    fn inverse_root(size: usize) -> Self {
        1.0 / (size as f64).sqrt()
    }

    fn pack(b: &[f64], k: usize, n: usize, k_stride: usize, n_stride: usize) -> Self::Packed {
        let rows = (0..k).flat_map(|i| (0..n).map(move |j| b[i * k_stride + j * n_stride]));
        (rows.collect(), k, n)
    }

    fn product(m: usize, a: &[f64], (b, k, n): &Self::Packed, c: &mut [f64]) {
        c[..m * n].fill(0.0);
        plain::matmul(*k, *n, &a[..m * k], b, &mut c[..m * n]);
    }

    fn capped(self, cap: f32) -> Self {
        let cap = f64::from(cap);
        cap * libm::tanh(self / cap)
    }

    fn softmax(data: &mut [f64], n: usize, sink: Option<f32>) {
        let sink = sink.map_or(f64::NEG_INFINITY, f64::from);
        for row in data.chunks_exact_mut(n) {
            let most = row.iter().fold(sink, |m, &x| if x > m { x } else { m });
            row.iter_mut().for_each(|x| *x = libm::exp(*x - most));
            let sum = row.iter().sum::<f64>() + libm::exp(sink - most);
            row.iter_mut().for_each(|x| *x /= sum);
        }
    }
}

/// Rows by head: `[batch, heads, length, size]` of a [`Real`].
#[derive(Debug, Clone)]
pub(super) struct Heads {
    pub(super) data: Tensor,
}

impl Heads {
    /// From `[batch, heads, length, size]`, or `[batch, length, heads * size]` when the number of heads is given.
    ///
    /// # Errors
    /// Another rank; a width that the heads do not divide.
    pub(super) fn new(x: &Tensor, n_heads: Option<usize>, what: &str) -> Result<Self> {
        Heads::of(DType::F32, x, n_heads, what)
    }

    /// As [`Heads::new`], with elements of a type.
    ///
    /// # Errors
    /// As there.
    pub(super) fn of(dtype: DType, x: &Tensor, n_heads: Option<usize>, what: &str) -> Result<Self> {
        let x = cast(x, dtype, true)?;
        match (x.rank(), n_heads) {
            (4, _) => Ok(Heads { data: x }),
            (3, Some(n)) => {
                let &[b, s, width] = x.shape() else { bail!("{what} has rank {}, expected 3", x.rank()) };
                ensure!(n > 0 && width.is_multiple_of(n), "{what} has width {width}, which {n} heads do not divide");
                let split = x.reshaped(&[b, s, n, width / n])?;
                Ok(Heads { data: transpose(split, &[0, 2, 1, 3])? })
            }
            (rank, _) => bail!("{what} has rank {rank}, expected 4, or 3 with a number of heads"),
        }
    }

    pub(super) fn batch(&self) -> usize {
        self.data.shape()[0]
    }

    pub(super) fn heads(&self) -> usize {
        self.data.shape()[1]
    }

    pub(super) fn len(&self) -> usize {
        self.data.shape()[2]
    }

    pub(super) fn size(&self) -> usize {
        self.data.shape()[3]
    }

    /// These rows behind those of `past`, `[batch, heads, length, size]`.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub(super) fn behind(self, past: &Tensor, what: &str) -> Result<Self> {
        let past = cast(past, self.data.dtype(), true)?;
        let own = self.data.shape();
        let fits = past.rank() == 4 && [0, 1, 3].into_iter().all(|i| past.shape()[i] == own[i]);
        ensure!(fits, "{what} has shape {:?}, expected {own:?} but for the length", past.shape());
        let data = match self.data.dtype() {
            DType::F64 => self.joined::<f64>(&past)?,
            _ => self.joined::<f32>(&past)?,
        };
        Ok(Heads { data })
    }

    fn joined<T: Real>(&self, past: &Tensor) -> Result<Tensor> {
        let (old, new) = (past.shape()[2], self.len());
        let (a, b) = (past.slice::<T>()?, self.data.slice::<T>()?);
        let size = self.size();
        let mut out = Vec::with_capacity(a.len() + b.len());
        for i in 0..self.batch() * self.heads() {
            out.extend_from_slice(&a[i * old * size..(i + 1) * old * size]);
            out.extend_from_slice(&b[i * new * size..(i + 1) * new * size]);
        }
        Tensor::new(&[self.batch(), self.heads(), old + new, size], out)
    }

    fn rows<T: Real>(&self, batch: usize, head: usize) -> Result<&[T]> {
        let n = self.len() * self.size();
        let i = batch * self.heads() + head;
        Ok(&self.data.slice::<T>()?[i * n..(i + 1) * n])
    }

    /// `[batch, length, heads * size]`.
    ///
    /// # Errors
    /// Never, for what the constructor accepted.
    pub(super) fn merged(self) -> Result<Tensor> {
        let shape = [self.batch(), self.len(), self.heads() * self.size()];
        transpose(self.data, &[0, 2, 1, 3])?.reshaped(&shape)
    }
}

/// Values added to the scores, broadcast to `[batch, heads, queries, keys]`; what lies behind its last key is masked.
pub(super) struct Bias<T> {
    data: Vec<T>,
    strides: Vec<usize>,
    keys: usize,
}

impl<T: Real> Bias<T> {
    /// From a tensor of floats, or of booleans, where false masks with `filter`.
    ///
    /// # Errors
    /// The shape does not broadcast.
    pub(super) fn new(mask: &Tensor, scores: [usize; 4], filter: f32, what: &str) -> Result<Self> {
        let data: Vec<T> = match mask.data() {
            Data::Bool(b) => b.as_slice().iter().map(|&b| T::of(if b { 0.0 } else { filter })).collect(),
            _ => cast(mask, T::DTYPE, true)?.slice::<T>()?.to_vec(),
        };
        let s = mask.shape().to_vec();
        let keys = s.last().copied().unwrap_or(1);
        let mut target = scores;
        if keys != 1 {
            target[3] = keys;
        }
        let lead = target.len().checked_sub(s.len());
        let fits =
            keys <= scores[3] && lead.is_some_and(|l| s.iter().zip(&target[l..]).all(|(a, b)| a == b || *a == 1));
        ensure!(fits, "{what} has shape {s:?}, which does not broadcast to {scores:?}");
        let strides = broadcast_strides(&s, &target).to_vec();
        Ok(Bias { data, strides, keys: if keys == 1 { scores[3] } else { keys } })
    }

    fn add(&self, at: [usize; 3], row: &mut [T]) {
        let start: usize = at.iter().zip(&self.strides).map(|(i, s)| i * s).sum();
        let n = self.keys.min(row.len());
        for (j, x) in row[..n].iter_mut().enumerate() {
            *x += self.data[start + j * self.strides[3]];
        }
        row[n..].fill(T::NEVER);
    }
}

/// What is kept of the scores for an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The products, scaled.
    Raw,
    /// After the soft cap.
    Capped,
    /// With the mask.
    Masked,
    /// The probabilities.
    Softmax,
}

/// How queries attend keys.
pub(super) struct Attend<'a, T> {
    pub(super) scale: T,
    /// `cap * tanh(score / cap)`, unless 0.
    pub(super) softcap: f32,
    pub(super) biases: &'a [Bias<T>],
    /// For each head of queries a score that takes its share of the probability and attends nothing.
    pub(super) sinks: Option<&'a [f32]>,
    /// The keys that a query may see: `(batch, query)` to a range.
    pub(super) visible: &'a (dyn Fn(usize, usize) -> std::ops::Range<usize> + Sync),
    pub(super) keep: Option<Stage>,
    pub(super) threads: usize,
}

impl<T: Real> Attend<'_, T> {
    /// The attended values `[batch, heads, queries, size]` and the kept scores. Heads of keys and values are shared by
    /// groups of heads of queries.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub(super) fn run(&self, q: &Heads, k: &Heads, v: &Heads) -> Result<(Heads, Option<Tensor>)> {
        let (batch, heads, groups) = (q.batch(), q.heads(), k.heads());
        ensure!(
            k.batch() == batch
                && v.batch() == batch
                && v.heads() == groups
                && v.len() == k.len()
                && k.size() == q.size(),
            "queries {:?}, keys {:?} and values {:?} do not fit together",
            q.data.shape(),
            k.data.shape(),
            v.data.shape()
        );
        ensure!(groups > 0 && heads.is_multiple_of(groups), "{heads} heads of queries for {groups} heads of keys");
        if let Some(s) = self.sinks {
            ensure!(s.len() == heads, "{} sinks for {heads} heads of queries", s.len());
        }
        let share = heads / groups;
        let (n_q, n_k, size) = (q.len(), k.len(), v.size());
        let mut out = vec![T::default(); batch * heads * n_q * size];
        let mut kept = vec![T::default(); if self.keep.is_some() { batch * heads * n_q * n_k } else { 0 }];
        if !out.is_empty() {
            let (o, s) = (share * n_q * size, kept.len() / (batch * groups));
            let (outs, keeps) = (Slots::new(&mut out), Slots::new(&mut kept));
            let one = |i| self.group(q, k, v, (i / groups, i % groups), outs.chunk(i, o), keeps.chunk(i, s));
            if self.threads > 1 && batch * heads * n_q * n_k >= 1 << 14 {
                kernels::try_map(batch * groups, one)?;
            } else {
                (0..batch * groups).try_for_each(one)?;
            }
        }
        let kept = self.keep.map(|_| Tensor::new(&[batch, heads, n_q, n_k], kept)).transpose()?;
        Ok((Heads { data: Tensor::new(&[batch, heads, n_q, size], out)? }, kept))
    }

    /// The heads of queries that share one head of keys.
    fn group(
        &self,
        q: &Heads,
        k: &Heads,
        v: &Heads,
        (batch, group): (usize, usize),
        out: &mut [T],
        kept: &mut [T],
    ) -> Result<()> {
        let (n_q, n_k, size) = (q.len(), k.len(), v.size());
        let share = q.heads() / k.heads();
        let keys = T::pack(k.rows(batch, group)?, k.size(), n_k, 1, k.size());
        let values = T::pack(v.rows(batch, group)?, n_k, size, size, 1);
        let mut scores = vec![T::default(); n_q * n_k];
        let mut bias = vec![T::default(); n_k];
        for (i, out) in out.chunks_exact_mut(n_q * size).enumerate() {
            let head = group * share + i;
            let kept = kept.get_mut(i * n_q * n_k..(i + 1) * n_q * n_k).unwrap_or_default();
            if n_k == 0 {
                continue;
            }
            T::product(n_q, q.rows(batch, head)?, &keys, &mut scores);
            scores.iter_mut().for_each(|x| *x *= self.scale);
            let mut keep = |stage: Stage, scores: &[T]| {
                if self.keep == Some(stage) {
                    kept.copy_from_slice(scores);
                }
            };
            keep(Stage::Raw, &scores);
            if self.softcap > 0.0 {
                scores.iter_mut().for_each(|x| *x = x.capped(self.softcap));
            }
            keep(Stage::Capped, &scores);
            let mut blind = Vec::new();
            for (query, row) in scores.chunks_exact_mut(n_k).enumerate() {
                bias.fill(T::default());
                for b in self.biases {
                    b.add([batch, head, query], &mut bias);
                }
                let seen = (self.visible)(batch, query);
                let (from, to) = (seen.start.min(n_k), seen.end.min(n_k).max(seen.start.min(n_k)));
                bias[..from].fill(T::NEVER);
                bias[to..].fill(T::NEVER);
                if bias.iter().all(|b| *b == T::NEVER) {
                    blind.push(query);
                }
                row.iter_mut().zip(&bias).for_each(|(x, b)| *x += *b);
            }
            keep(Stage::Masked, &scores);
            T::softmax(&mut scores, n_k, self.sinks.map(|s| s[head]));
            // A query that sees no key gets zeros, not 0 / 0.
            for query in blind {
                scores[query * n_k..(query + 1) * n_k].fill(T::default());
            }
            keep(Stage::Softmax, &scores);
            T::product(n_q, &scores, &values, out);
        }
        Ok(())
    }
}
