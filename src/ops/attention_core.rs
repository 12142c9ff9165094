//! Scaled dot-product attention over heads, which several operators share.

use rayon::prelude::*;

use super::transpose::transpose;
use crate::error::{Result, bail, ensure};
use crate::kernels::gemm::{Init, PackedB, gemm};
use crate::kernels::{math, rows};
use crate::tensor::broadcast::broadcast_strides;
use crate::tensor::cast::cast;
use crate::tensor::{DType, Data, Tensor};

/// Rows by head: `[batch, heads, length, size]` of `f32`.
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
        let x = cast(x, DType::F32, true)?;
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
        let past = cast(past, DType::F32, true)?;
        let own = self.data.shape();
        let fits = past.rank() == 4 && [0, 1, 3].into_iter().all(|i| past.shape()[i] == own[i]);
        ensure!(fits, "{what} has shape {:?}, expected {own:?} but for the length", past.shape());
        let (old, new) = (past.shape()[2], self.len());
        let (a, b) = (past.slice::<f32>()?, self.data.slice::<f32>()?);
        let size = self.size();
        let mut out = Vec::with_capacity(a.len() + b.len());
        for i in 0..self.batch() * self.heads() {
            out.extend_from_slice(&a[i * old * size..(i + 1) * old * size]);
            out.extend_from_slice(&b[i * new * size..(i + 1) * new * size]);
        }
        let shape = [self.batch(), self.heads(), old + new, size];
        Ok(Heads { data: Tensor::new(&shape, out)? })
    }

    fn rows(&self, batch: usize, head: usize) -> Result<&[f32]> {
        let n = self.len() * self.size();
        let i = batch * self.heads() + head;
        Ok(&self.data.slice::<f32>()?[i * n..(i + 1) * n])
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
pub(super) struct Bias {
    data: Tensor,
    strides: Vec<usize>,
    keys: usize,
}

impl Bias {
    /// From a tensor of floats, or of booleans, where false masks with `filter`.
    ///
    /// # Errors
    /// The shape does not broadcast.
    pub(super) fn new(mask: &Tensor, scores: [usize; 4], filter: f32, what: &str) -> Result<Self> {
        let data = match mask.data() {
            Data::Bool(b) => {
                Tensor::new(mask.shape(), b.as_slice().iter().map(|&b| if b { 0.0 } else { filter }).collect())?
            }
            _ => cast(mask, DType::F32, true)?,
        };
        let s = data.shape().to_vec();
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

    fn add(&self, at: [usize; 3], row: &mut [f32]) -> Result<()> {
        let v = self.data.slice::<f32>()?;
        let start: usize = at.iter().zip(&self.strides).map(|(i, s)| i * s).sum();
        let n = self.keys.min(row.len());
        for (j, x) in row[..n].iter_mut().enumerate() {
            *x += v[start + j * self.strides[3]];
        }
        row[n..].fill(f32::NEG_INFINITY);
        Ok(())
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
pub(super) struct Attend<'a> {
    pub(super) scale: f32,
    /// `cap * tanh(score / cap)`, unless 0.
    pub(super) softcap: f32,
    pub(super) biases: &'a [Bias],
    /// The keys that a query may see: `(batch, query)` to a range.
    pub(super) visible: &'a (dyn Fn(usize, usize) -> std::ops::Range<usize> + Sync),
    pub(super) keep: Option<Stage>,
    pub(super) threads: usize,
}

impl Attend<'_> {
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
        let share = heads / groups;
        let (n_q, n_k, size) = (q.len(), k.len(), v.size());
        let mut out = vec![0.0f32; batch * heads * n_q * size];
        let mut kept = vec![0.0f32; if self.keep.is_some() { batch * heads * n_q * n_k } else { 0 }];
        let (o, s) = (share * n_q * size, share * n_q * n_k);
        let one =
            |i: usize, out: &mut [f32], kept: &mut [f32]| self.group(q, k, v, (i / groups, i % groups), out, kept);
        if o > 0 {
            let is_parallel = self.threads > 1 && batch * heads * n_q * n_k >= 1 << 14 && batch * groups > 1;
            let mut none = vec![[0.0f32; 0]; batch * groups];
            let kept: Vec<&mut [f32]> = if kept.is_empty() {
                none.iter_mut().map(|e| e.as_mut_slice()).collect()
            } else {
                kept.chunks_mut(s).collect()
            };
            if is_parallel {
                out.par_chunks_mut(o).zip(kept).enumerate().try_for_each(|(i, (o, s))| one(i, o, s))?;
            } else {
                out.chunks_mut(o).zip(kept).enumerate().try_for_each(|(i, (o, s))| one(i, o, s))?;
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
        out: &mut [f32],
        kept: &mut [f32],
    ) -> Result<()> {
        let (n_q, n_k, size) = (q.len(), k.len(), v.size());
        let share = q.heads() / k.heads();
        let keys = PackedB::new(k.rows(batch, group)?, k.size(), n_k, 1, k.size());
        let values = PackedB::new(v.rows(batch, group)?, n_k, size, size, 1);
        let mut scores = vec![0.0f32; n_q * n_k];
        let mut bias = vec![0.0f32; n_k];
        for (i, out) in out.chunks_exact_mut(n_q * size).enumerate() {
            let head = group * share + i;
            let kept = kept.get_mut(i * n_q * n_k..(i + 1) * n_q * n_k).unwrap_or_default();
            if n_k == 0 {
                continue;
            }
            gemm(1, n_q, q.rows(batch, head)?, &keys, Init::Zero, &mut scores);
            scores.iter_mut().for_each(|x| *x *= self.scale);
            let mut keep = |stage: Stage, scores: &[f32]| {
                if self.keep == Some(stage) {
                    kept.copy_from_slice(scores);
                }
            };
            keep(Stage::Raw, &scores);
            if self.softcap > 0.0 {
                scores.iter_mut().for_each(|x| *x = self.softcap * math::tanh(*x / self.softcap));
            }
            keep(Stage::Capped, &scores);
            let mut blind = Vec::new();
            for (query, row) in scores.chunks_exact_mut(n_k).enumerate() {
                bias.fill(0.0);
                for b in self.biases {
                    b.add([batch, head, query], &mut bias)?;
                }
                let seen = (self.visible)(batch, query);
                let (from, to) = (seen.start.min(n_k), seen.end.min(n_k).max(seen.start.min(n_k)));
                bias[..from].fill(f32::NEG_INFINITY);
                bias[to..].fill(f32::NEG_INFINITY);
                if bias.iter().all(|b| *b == f32::NEG_INFINITY) {
                    blind.push(query);
                }
                row.iter_mut().zip(&bias).for_each(|(x, b)| *x += b);
            }
            keep(Stage::Masked, &scores);
            rows::softmax(&mut scores, n_k, false);
            // A query that sees no key gets zeros, not 0 / 0.
            for query in blind {
                scores[query * n_k..(query + 1) * n_k].fill(0.0);
            }
            keep(Stage::Softmax, &scores);
            gemm(1, n_q, &scores, &values, Init::Zero, out);
        }
        Ok(())
    }
}
