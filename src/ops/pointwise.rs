//! Chains of elementwise operators as one pass over memory.
//!
//! An operator whose output elements depend on the elements of its operands at the same place can be *traced*: it is
//! evaluated once, when a model is compiled, with empty tensors in place of its operands, and [records](Trace::record)
//! the function that it would have applied instead of applying it. Several such functions make a [`Pointwise`] program,
//! which runs over a tensor piece by piece while the piece is in the first-level cache; an operator that makes a tensor
//! may run it over what it has just computed ([`Call::epilogue`](super::Call::epilogue)).
//!
//! Traced are operations in 32-bit floats. The integers between a quantization and its inverse are floats here too,
//! which hold them exactly.

use std::cell::RefCell;

use super::Item;
use crate::error::Result;
use crate::kernels::for_each_chunk;
use crate::tensor::{DType, Tensor, buffer};

/// Elements that pass through the whole program at once: a few such pieces fit into the first-level cache.
const PIECE: usize = 1024;
/// Elements from which on several threads are worth it, and elements for each.
const PARALLEL_FROM: usize = 1 << 17;
const SHARE: usize = 1 << 15;

/// Changes the elements of its first operand, and may read the second, which is empty for functions of one operand.
pub type Function = Box<dyn Fn(&mut [f32], &[f32]) + Send + Sync>;

/// What an operator does to each element.
pub struct Traced {
    /// The function.
    pub function: Function,
    /// The input slots that its operands come from: one or two.
    pub operands: Vec<usize>,
    /// Least rank of a tensor whose shape the operator keeps.
    pub rank: usize,
    /// The element type that the operator would have given.
    pub dtype: DType,
    /// Least and largest value, when bounding its only operand is all that it does.
    pub bounds: Option<(f32, f32)>,
}

/// Where an operator records what it would do.
#[derive(Default)]
pub struct Trace(RefCell<Option<Traced>>);

impl Trace {
    /// Records a function instead of applying it; the returned list of outputs is empty.
    ///
    /// # Errors
    /// None; a result, so that operators can return it.
    pub fn record(&self, traced: Traced) -> Result<Vec<Item>> {
        *self.0.borrow_mut() = Some(traced);
        Ok(Vec::new())
    }

    /// What was recorded.
    #[must_use]
    pub fn take(&self) -> Option<Traced> {
        self.0.borrow_mut().take()
    }
}

struct Instruction {
    function: Function,
    /// The buffer that the first operand is copied from, when it must not be changed.
    copy_from: Option<usize>,
    /// The buffer that is changed.
    target: usize,
    second: Option<usize>,
}

/// A program of functions of each element. Buffer 0 is the tensor itself.
pub struct Pointwise {
    instructions: Vec<Instruction>,
    n_buffers: usize,
    rank: usize,
    result: usize,
    bounds: Option<(f32, f32)>,
}

impl Pointwise {
    /// A program of functions, each with the values that it reads: 0 is the input, `i + 1` what function `i` gives. The
    /// result is the last value.
    #[must_use]
    pub fn new(functions: Vec<(Traced, Vec<usize>)>) -> Self {
        let n = functions.len();
        let bounds = if let [(traced, _)] = functions.as_slice() { traced.bounds } else { None };
        // The last function that reads each value.
        let mut last = vec![0; n + 1];
        for (i, (_, values)) in functions.iter().enumerate() {
            values.iter().for_each(|&v| last[v] = i);
        }
        last[n] = n;
        let mut place = vec![0; n + 1];
        let mut owner: Vec<Option<usize>> = vec![Some(0)];
        let (mut instructions, mut rank) = (Vec::with_capacity(n), 0);
        for (i, (traced, values)) in functions.into_iter().enumerate() {
            rank = rank.max(traced.rank);
            let (first, second) = (values[0], values.get(1).copied());
            let in_place = last[first] == i && second != Some(first);
            let target = if in_place {
                place[first]
            } else {
                match owner.iter().position(Option::is_none) {
                    Some(free) => free,
                    None => {
                        owner.push(None);
                        owner.len() - 1
                    }
                }
            };
            owner[target] = Some(i + 1);
            place[i + 1] = target;
            instructions.push(Instruction {
                function: traced.function,
                copy_from: (!in_place).then_some(place[first]),
                target,
                second: second.map(|v| place[v]),
            });
            for slot in &mut owner {
                if slot.is_some_and(|v| v != i + 1 && last[v] <= i) {
                    *slot = None;
                }
            }
        }
        Pointwise { instructions, n_buffers: owner.len(), rank, result: place[n], bounds }
    }

    /// Least and largest value, when bounding its input is all that it does.
    #[must_use]
    pub fn bounds(&self) -> Option<(f32, f32)> {
        self.bounds
    }

    /// Whether it keeps the shape of a tensor of this rank.
    #[must_use]
    pub fn fits(&self, rank: usize) -> bool {
        rank >= self.rank
    }

    /// Runs it over some elements.
    pub fn apply(&self, v: &mut [f32]) {
        if self.n_buffers == 1 {
            for piece in v.chunks_mut(PIECE) {
                self.instructions.iter().for_each(|i| (i.function)(piece, &[]));
            }
            return;
        }
        let size = PIECE.min(v.len());
        let mut buffers = vec![vec![0.0f32; size]; self.n_buffers];
        for piece in v.chunks_mut(PIECE) {
            let n = piece.len();
            buffers[0][..n].copy_from_slice(piece);
            for i in &self.instructions {
                let mut target = std::mem::take(&mut buffers[i.target]);
                if let Some(from) = i.copy_from {
                    target[..n].copy_from_slice(&buffers[from][..n]);
                }
                (i.function)(&mut target[..n], i.second.map_or(&[], |s| &buffers[s][..n]));
                buffers[i.target] = target;
            }
            piece.copy_from_slice(&buffers[self.result][..n]);
        }
    }

    /// Runs it over a tensor of 32-bit floats, in place when nobody else holds it.
    ///
    /// # Errors
    /// It has other elements.
    pub fn map(&self, mut t: Tensor, threads: usize) -> Result<Tensor> {
        let threads = if t.len() >= PARALLEL_FROM { threads } else { 1 };
        if super::elementwise::is_unique::<f32>(&t) {
            for_each_chunk(threads, t.slice_mut()?, SHARE, &|_, piece| self.apply(piece));
            return Ok(t);
        }
        let x = t.slice::<f32>()?;
        let mut y = buffer(x.len());
        for_each_chunk(threads, &mut y, SHARE, &|i, y| {
            for (y, x) in y.chunks_mut(PIECE).zip(x[i * SHARE..].chunks(PIECE)) {
                y.copy_from_slice(&x[..y.len()]);
                self.apply(y);
            }
        });
        Tensor::new(t.shape(), y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traced(function: impl Fn(&mut [f32], &[f32]) + Send + Sync + 'static) -> Traced {
        Traced { function: Box::new(function), operands: vec![0], rank: 0, dtype: DType::F32, bounds: None }
    }

    fn plus(n: f32) -> Traced {
        traced(move |x, _| x.iter_mut().for_each(|x| *x += n))
    }

    fn times() -> Traced {
        traced(|x, y| x.iter_mut().zip(y).for_each(|(x, y)| *x *= y))
    }

    #[test]
    fn values_that_are_read_later_are_kept() {
        type Program = (Vec<(Traced, Vec<usize>)>, fn(f32) -> f32);
        let programs: Vec<Program> = vec![
            (vec![(plus(1.0), vec![0]), (plus(2.0), vec![1])], |x| x + 3.0),
            (vec![(plus(1.0), vec![0]), (times(), vec![0, 1])], |x| x * (x + 1.0)),
            (vec![(times(), vec![0, 0]), (plus(3.0), vec![0]), (times(), vec![2, 1])], |x| (x + 3.0) * x * x),
            (vec![(plus(1.0), vec![0]), (plus(2.0), vec![0]), (times(), vec![1, 2]), (times(), vec![3, 0])], |x| {
                (x + 1.0) * (x + 2.0) * x
            }),
            (vec![(plus(1.0), vec![0]), (times(), vec![1, 1]), (times(), vec![2, 2])], |x| (x + 1.0).powi(4)),
        ];
        for (i, (functions, expected)) in programs.into_iter().enumerate() {
            let program = Pointwise::new(functions);
            for n in [0, 1, 5, 3000] {
                let x: Vec<f32> = (0..n).map(|i| (i % 7) as f32).collect();
                let want: Vec<f32> = x.iter().map(|&x| expected(x)).collect();
                let shared = Tensor::vector(x.clone());
                let y = program.map(shared.clone(), 2).unwrap();
                assert_eq!(y.slice::<f32>().unwrap(), want, "program {i}, {n} elements");
                assert_eq!(shared.slice::<f32>().unwrap(), x, "a tensor that others hold stays");
                let y = program.map(shared, 1).unwrap();
                assert_eq!(y.slice::<f32>().unwrap(), want, "program {i}, {n} elements, in place");
            }
        }
    }
}
