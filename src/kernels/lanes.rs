//! Vectors of 32-bit floats by instruction set, for kernels that are written once for several of them.
//!
//! A kernel is a function over [`Lanes`] that is always inlined into one small function per instruction set, which
//! enables it: only there do these operations become single instructions.

use std::arch::x86_64::*;

/// A vector of 32-bit floats.
///
/// # Safety
/// All functions need a processor with the vector's instruction set; loads and stores need memory as they say.
pub(super) trait Lanes: Copy {
    /// Floats of a vector.
    const N: usize;
    /// Some of the lanes.
    type Mask: Copy;

    /// The same value in all lanes.
    unsafe fn splat(x: f32) -> Self;
    /// `N` floats at `p`.
    unsafe fn load(p: *const f32) -> Self;
    /// The lanes `j` with `0 <= first + j < n`.
    unsafe fn mask(first: isize, n: usize) -> Self::Mask;
    /// The floats at `p` in lanes of the mask, `or` in the others, which are not read.
    unsafe fn load_some(mask: Self::Mask, p: *const f32, or: Self) -> Self;
    /// Writes `N` floats to `p`.
    unsafe fn store(self, p: *mut f32);
    /// Writes the lanes of the mask to `p`.
    unsafe fn store_some(self, mask: Self::Mask, p: *mut f32);
    /// `self * b + c`, rounded once.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// The sums.
    unsafe fn add(self, b: Self) -> Self;
    /// The differences.
    unsafe fn sub(self, b: Self) -> Self;
    /// The larger ones; where one is a NaN, `b`.
    unsafe fn max(self, b: Self) -> Self;
    /// Every second lane of `self` and of `b`, in an order that [`Lanes::in_order`] makes good.
    unsafe fn evens(self, b: Self) -> Self;
    /// See [`Lanes::evens`].
    unsafe fn in_order(self) -> Self;
}

impl Lanes for __m512 {
    const N: usize = 16;
    type Mask = __mmask16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller's promise: the processor has the instruction. So for all functions below.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see `splat`; the caller says that the memory is there.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn mask(first: isize, n: usize) -> Self::Mask {
        let lo = (-first).clamp(0, 16) as u32;
        let hi = (n as isize - first).clamp(0, 16) as u32;
        (((1u32 << hi) - 1) & !((1u32 << lo) - 1)) as __mmask16
    }

    #[inline(always)]
    unsafe fn load_some(mask: Self::Mask, p: *const f32, or: Self) -> Self {
        // SAFETY: see `splat`; lanes outside the mask are not read.
        unsafe { _mm512_mask_loadu_ps(or, mask, p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see `splat`; the caller says that the memory is there.
        unsafe { _mm512_storeu_ps(p, self) }
    }

    #[inline(always)]
    unsafe fn store_some(self, mask: Self::Mask, p: *mut f32) {
        // SAFETY: see `splat`; lanes outside the mask are not written.
        unsafe { _mm512_mask_storeu_ps(p, mask, self) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { _mm512_fmadd_ps(self, b, c) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { _mm512_add_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { _mm512_sub_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { _mm512_max_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn evens(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe {
            let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
            _mm512_permutex2var_ps(self, even, b)
        }
    }

    #[inline(always)]
    unsafe fn in_order(self) -> Self {
        self
    }
}

impl Lanes for __m256 {
    const N: usize = 8;
    type Mask = __m256i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller's promise: the processor has the instruction. So for all functions below.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see `splat`; the caller says that the memory is there.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn mask(first: isize, n: usize) -> Self::Mask {
        let lo = (-first).clamp(0, 8) as i32;
        let hi = (n as isize - first).clamp(0, 8) as i32;
        // SAFETY: see `splat`.
        unsafe {
            let lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
            let below = _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), lane);
            _mm256_and_si256(below, _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(lo - 1)))
        }
    }

    #[inline(always)]
    unsafe fn load_some(mask: Self::Mask, p: *const f32, or: Self) -> Self {
        // SAFETY: see `splat`; lanes outside the mask are not read.
        unsafe { _mm256_blendv_ps(or, _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask)) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see `splat`; the caller says that the memory is there.
        unsafe { _mm256_storeu_ps(p, self) }
    }

    #[inline(always)]
    unsafe fn store_some(self, mask: Self::Mask, p: *mut f32) {
        // SAFETY: see `splat`; lanes outside the mask are not written.
        unsafe { _mm256_maskstore_ps(p, mask, self) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { _mm256_fmadd_ps(self, b, c) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { _mm256_add_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { _mm256_sub_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { _mm256_max_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn evens(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        // a0 a2 b0 b2 | a4 a6 b4 b6
        unsafe { _mm256_shuffle_ps::<0b10_00_10_00>(self, b) }
    }

    #[inline(always)]
    unsafe fn in_order(self) -> Self {
        // SAFETY: see `splat`. The pairs in the middle change places.
        unsafe { _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(self))) }
    }
}
