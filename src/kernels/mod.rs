//! Inner loops: everything that is written for speed, and the only place with `unsafe` code.
//!
//! Everything that multiplies and sums 32-bit floats goes through one register-blocked tile ([`micro`]): a panel of
//! rows of `A`, interleaved, times a block of columns of `B` that are read at given offsets. A matrix product reads
//! packed columns, a convolution reads its padded input or overlapping runs of it (virtual im2col), so neither copies
//! its data into the shape of the other. The tile exists for AVX-512, AVX2 with FMA and, autovectorised, for any other processor;
//! [`micro::Tile::best`] chooses when the program runs.
//!
//! Work is split over outputs, or over a sum in parts that do not depend on the number of threads: every output element
//! is the same chain of additions, so results have the same bits.
#![allow(
    unsafe_code,
    reason = "vector instructions and disjoint writes from several threads; each use says why it is sound"
)]

use std::sync::LazyLock;

/// Defines a function that is compiled for AVX-512, for AVX2 with FMA and for any processor, and calls the best one
/// that runs here. For loops that the compiler vectorises.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident$(<$T:ident: $bound:path>)?($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name$(<$T: $bound>)?($($arg: $ty),*) {
            #[inline(always)]
            fn body$(<$T: $bound>)?($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,bmi2,avx512f,avx512bw,avx512dq,avx512vl")]
                fn v4$(<$T: $bound>)?($($arg: $ty),*) {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,bmi2")]
                fn v3$(<$T: $bound>)?($($arg: $ty),*) {
                    body($($arg),*)
                }
                match $crate::kernels::Isa::get() {
                    // SAFETY: the processor has these features.
                    $crate::kernels::Isa::Avx512 => return unsafe { v4($($arg),*) },
                    // SAFETY: the processor has these features.
                    $crate::kernels::Isa::Avx2 => return unsafe { v3($($arg),*) },
                    $crate::kernels::Isa::Base => {}
                }
            }
            body($($arg),*)
        }
    };
}

pub mod cholesky;
pub mod conv;
pub mod conv_transpose;
mod depthwise;
pub mod gemm;
pub mod integer;
#[cfg(target_arch = "x86_64")]
mod lanes;
pub mod math;
pub mod micro;
pub mod plain;
pub mod pool;
pub mod reverse;
pub mod rows;
pub mod simd;
mod split;
mod taps;
#[cfg(target_arch = "x86_64")]
mod winograd;

/// Sets of instructions that loops are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What every processor of the target has.
    Base,
}

impl Isa {
    /// The best of this processor.
    pub(crate) fn get() -> Isa {
        static ISA: LazyLock<Isa> = LazyLock::new(|| {
            #[cfg(target_arch = "x86_64")]
            {
                use std::is_x86_feature_detected as has;
                if has!("avx2") && has!("fma") && has!("bmi2") {
                    if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                        return Isa::Avx512;
                    }
                    return Isa::Avx2;
                }
            }
            Isa::Base
        });
        *ISA
    }
}

pub use split::{Slots, for_each, for_each_chunk, map, map_into, try_in_order, try_map};
