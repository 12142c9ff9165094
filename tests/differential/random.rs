//! Random shapes and tensors.

use half::f16;
use onnx_quant::tensor::{DType, Tensor};

use crate::common::rng::Rng;

pub struct Gen {
    pub rng: Rng,
    /// Sizes go up to this.
    pub max: usize,
}

pub const FLOATS: &[DType] = &[DType::F32, DType::F32, DType::F32, DType::F64, DType::F16];
pub const INTS: &[DType] =
    &[DType::I8, DType::I16, DType::I32, DType::I64, DType::U8, DType::U16, DType::U32, DType::U64];
pub const NUMBERS: &[DType] = &[
    DType::F32,
    DType::F32,
    DType::F64,
    DType::F16,
    DType::I32,
    DType::I64,
    DType::I8,
    DType::U8,
    DType::I16,
    DType::U16,
    DType::U32,
    DType::U64,
];
pub const ANY: &[DType] = &[
    DType::F32,
    DType::F64,
    DType::F16,
    DType::I32,
    DType::I64,
    DType::I8,
    DType::U8,
    DType::I16,
    DType::U16,
    DType::U32,
    DType::U64,
    DType::Bool,
];

impl Gen {
    pub fn new(seed: u64, max: usize) -> Self {
        Gen { rng: Rng::new(seed), max }
    }

    /// A size; seldom 0, sometimes 1.
    pub fn dim(&mut self) -> usize {
        match self.rng.below(20) {
            0 => 0,
            1..=4 => 1,
            _ => self.rng.below(self.max) + 1,
        }
    }

    /// A size from 1 on.
    pub fn positive(&mut self) -> usize {
        self.rng.below(self.max) + 1
    }

    pub fn shape(&mut self, rank: usize) -> Vec<usize> {
        (0..rank).map(|_| self.dim()).collect()
    }

    pub fn positive_shape(&mut self, rank: usize) -> Vec<usize> {
        (0..rank).map(|_| self.positive()).collect()
    }

    /// A shape that broadcasts with `shape`, in both directions.
    pub fn broadcastable(&mut self, shape: &[usize]) -> Vec<usize> {
        let mut s = self.broadcastable_to(shape);
        if self.rng.chance(0.2) && s.len() < 5 {
            s.insert(0, self.rng.below(2) + 1);
        }
        s.into_iter()
            .rev()
            .enumerate()
            .map(|(i, d)| match shape.len().checked_sub(i + 1).map(|j| shape[j]) {
                // Where the other side has 1 this side may have anything.
                Some(1) if self.rng.chance(0.4) => self.positive(),
                _ => d,
            })
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect()
    }

    /// A shape that broadcasts to `shape` exactly.
    pub fn broadcastable_to(&mut self, shape: &[usize]) -> Vec<usize> {
        let keep = if self.rng.chance(0.5) { shape.len() } else { self.rng.below(shape.len() + 1) };
        let tail = &shape[shape.len() - keep..];
        tail.iter().map(|&d| if self.rng.chance(0.25) { 1 } else { d }).collect()
    }

    /// Random elements that are not too large for the type.
    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let (low, high) = match dtype {
            DType::U8 | DType::U16 | DType::U32 | DType::U64 => (0.0, 100.0),
            d if d.is_integer() => (-50.0, 50.0),
            _ => (-3.0, 3.0),
        };
        self.tensor_in(dtype, shape, low, high)
    }

    /// Random elements in `[low, high)`; booleans ignore the bounds.
    pub fn tensor_in(&mut self, dtype: DType, shape: &[usize], low: f64, high: f64) -> Tensor {
        let n = shape.iter().product();
        let v: Vec<f64> = (0..n).map(|_| low + (high - low) * self.rng.unit()).collect();
        from_f64s(dtype, shape, &v, self.rng.bits())
    }

    pub fn ints(&mut self, n: usize, low: i64, high: i64) -> Vec<i64> {
        (0..n).map(|_| self.rng.between(low, high)).collect()
    }

    /// The tensor to work on: the given one if it fits, else a random one; `None` when the given one does not fit.
    pub fn x(
        &mut self,
        given: Option<&Tensor>,
        ranks: std::ops::RangeInclusive<usize>,
        dtypes: &[DType],
    ) -> Option<Tensor> {
        match given {
            Some(t) => (ranks.contains(&t.rank()) && dtypes.contains(&t.dtype())).then(|| t.clone()),
            None => {
                let rank = self.rng.between(*ranks.start() as i64, *ranks.end() as i64) as usize;
                let dtype = self.rng.pick(dtypes);
                let shape = self.shape(rank);
                Some(self.tensor(dtype, &shape))
            }
        }
    }

    /// An axis of `rank`, counted from either end.
    pub fn axis(&mut self, rank: usize) -> i64 {
        self.rng.between(-(rank as i64), rank as i64 - 1)
    }

    /// Different axes in random order, counted from either end.
    pub fn axes(&mut self, rank: usize) -> Vec<i64> {
        let n = self.rng.below(rank + 1);
        let p = self.rng.permutation(rank);
        p[..n].iter().map(|&a| if self.rng.chance(0.4) { a as i64 - rank as i64 } else { a as i64 }).collect()
    }
}

/// A tensor of these numbers, converted like `as` does; booleans from `bits`.
pub fn from_f64s(dtype: DType, shape: &[usize], v: &[f64], bits: u64) -> Tensor {
    macro_rules! cast {
        ($t:ty) => {
            Tensor::of(shape, v.iter().map(|&x| x as $t).collect::<Vec<$t>>())
        };
    }
    match dtype {
        DType::F32 => cast!(f32),
        DType::F64 => cast!(f64),
        DType::F16 => Tensor::of(shape, v.iter().map(|&x| f16::from_f64(x)).collect::<Vec<_>>()),
        DType::I8 => cast!(i8),
        DType::I16 => cast!(i16),
        DType::I32 => cast!(i32),
        DType::I64 => cast!(i64),
        DType::U8 => cast!(u8),
        DType::U16 => cast!(u16),
        DType::U32 => cast!(u32),
        DType::U64 => cast!(u64),
        DType::Bool => {
            let mut r = Rng::new(bits);
            Tensor::of(shape, v.iter().map(|_| r.chance(0.5)).collect::<Vec<bool>>())
        }
        other => panic!("no random {other}"),
    }
}
