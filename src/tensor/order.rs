//! The order of elements that sorting operators use: numbers by value with NaN last, strings by code point, false
//! before true, complex numbers by real, then imaginary part.

use std::cmp::Ordering;

use half::{bf16, f16};

use super::{C64, C128, Element};

/// An element that can be sorted.
pub trait Ordered: Element {
    /// A total order in which every NaN equals every other and follows all numbers.
    fn order(&self, other: &Self) -> Ordering;
}

macro_rules! by_ord {
    ($($t:ty)*) => { $(impl Ordered for $t {
        fn order(&self, other: &Self) -> Ordering { self.cmp(other) }
    })* };
}

macro_rules! by_value {
    ($($t:ty)*) => { $(impl Ordered for $t {
        fn order(&self, other: &Self) -> Ordering {
            self.partial_cmp(other).unwrap_or_else(|| self.is_nan().cmp(&other.is_nan()))
        }
    })* };
}

by_ord!(i8 i16 i32 i64 u8 u16 u32 u64 bool String);
by_value!(f32 f64 f16 bf16);

impl Ordered for C64 {
    fn order(&self, other: &Self) -> Ordering {
        self.re.order(&other.re).then_with(|| self.im.order(&other.im))
    }
}

impl Ordered for C128 {
    fn order(&self, other: &Self) -> Ordering {
        self.re.order(&other.re).then_with(|| self.im.order(&other.im))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_is_last() {
        let mut v = [f32::NAN, 1.0, f32::INFINITY, -0.0];
        v.sort_by(Ordered::order);
        assert_eq!(v[..3], [-0.0, 1.0, f32::INFINITY]);
        assert!(v[3].is_nan());
    }
}
