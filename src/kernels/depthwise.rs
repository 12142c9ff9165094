//! Windows over one channel: depthwise convolution, and pools, which differ in the operation alone.
//!
//! With AVX-512 and AVX2 rows are read where they lie: masked loads give the padding, and up to seven rows of output
//! share what they load. Elsewhere, and for unusual strides and ranks, a padded copy of the channel is folded tap by tap in loops that
//! the compiler vectorises.

use super::conv::{Geometry, Then};
use super::taps::Layout;
use super::{Slots, for_each};

/// Columns that the plain loops keep in registers.
const COLUMNS: usize = 64;

/// What a window does with its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fold {
    /// Multiplies with a weight and adds.
    Weighted,
    /// Takes the largest.
    Max,
    /// Adds.
    Sum,
}

/// One channel's operands.
struct Channel<'a> {
    x: &'a [f32],
    /// A weight for each tap; empty for pools.
    w: &'a [f32],
    start: f32,
    y: &'a mut [f32],
}

/// A convolution in which every group has one channel of input.
pub(super) fn conv(
    threads: usize,
    g: &Geometry,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    then: Then<'_>,
) {
    let (in_size, out_size) = (g.input.iter().product::<usize>(), g.output.iter().product::<usize>());
    let (taps, per_group) = (g.k(), g.filters / g.groups);
    let plan = Plan::new(g, Fold::Weighted);
    let out = Slots::new(y);
    for_each(threads, g.batch * g.filters, |i| {
        let (n, m) = (i / g.filters, i % g.filters);
        let from = (n * g.channels + m / per_group) * in_size;
        plan.run(Channel {
            x: &x[from..from + in_size],
            w: &w[m * taps..(m + 1) * taps],
            start: bias.map_or(0.0, |b| b[m]),
            y: out.chunk(i, out_size),
        });
        then.apply(out.chunk(i, out_size));
    });
}

/// Folds the windows of every channel: `x` is `[channels, input…]`, `y` `[channels, output…]`. Of `g`, only the
/// spatial sizes matter.
pub(super) fn pool(threads: usize, g: &Geometry, fold: Fold, x: &[f32], y: &mut [f32]) {
    let (in_size, out_size) = (g.input.iter().product::<usize>(), g.output.iter().product::<usize>());
    if out_size == 0 {
        return;
    }
    let g = Geometry { batch: 1, channels: 1, filters: 1, groups: 1, ..g.clone() };
    let plan = Plan::new(&g, fold);
    let channels = y.len() / out_size;
    assert_eq!(x.len(), channels * in_size, "length of the input");
    let out = Slots::new(y);
    for_each(threads, channels, |c| {
        plan.run(Channel {
            x: &x[c * in_size..(c + 1) * in_size],
            w: &[],
            start: plan.neutral(),
            y: out.chunk(c, out_size),
        });
    });
}

/// How the channels of one convolution or pool are done.
struct Plan<'a> {
    g: &'a Geometry,
    fold: Fold,
    way: Way,
}

enum Way {
    /// Rows where they lie; sizes are those of [`Sizes`].
    #[cfg(target_arch = "x86_64")]
    Direct(Sizes, x86::Rows),
    /// A padded copy.
    Padded(Layout),
}

/// Sizes of two spatial dimensions; of one, the rows count 1.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for processors with masked loads"))]
struct Sizes {
    input: [usize; 2],
    output: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    begin: [usize; 2],
}

impl<'a> Plan<'a> {
    fn new(g: &'a Geometry, fold: Fold) -> Self {
        #[cfg(target_arch = "x86_64")]
        if g.input.len() <= 2 {
            let two = |v: &[usize], one: usize| if let [h, w] = *v { [h, w] } else { [one, v[0]] };
            let s = Sizes {
                input: two(&g.input, 1),
                output: two(&g.output, 1),
                kernel: two(&g.kernel, 1),
                stride: two(&g.stride, 1),
                dilation: two(&g.dilation, 1),
                begin: two(&g.begin, 0),
            };
            if let Some(rows) = x86::rows(&s, fold) {
                return Plan { g, fold, way: Way::Direct(s, rows) };
            }
        }
        let one = Geometry { channels: 1, filters: 1, groups: 1, ..g.clone() };
        Plan { g, fold, way: Way::Padded(Layout::new(&one, COLUMNS)) }
    }

    /// What leaves a fold as it is.
    fn neutral(&self) -> f32 {
        if self.fold == Fold::Max { f32::NEG_INFINITY } else { 0.0 }
    }

    fn run(&self, c: Channel<'_>) {
        match &self.way {
            #[cfg(target_arch = "x86_64")]
            Way::Direct(s, rows) => {
                assert!(c.x.len() == s.input[0] * s.input[1] && c.y.len() == s.output[0] * s.output[1]);
                assert!(self.fold != Fold::Weighted || c.w.len() == s.kernel[0] * s.kernel[1]);
                // SAFETY: the slices have the sizes that `s` says; the function was chosen for this processor.
                unsafe { rows(s, c.x.as_ptr(), c.w.as_ptr(), c.start, c.y.as_mut_ptr()) }
            }
            Way::Padded(l) => self.padded(l, c),
        }
    }

    fn padded(&self, l: &Layout, c: Channel<'_>) {
        // A single tap reads whole stretches too, and its layout has no room behind the last row.
        // The padding behind the last row lies there as well.
        let mut buffer = vec![self.neutral(); l.size + COLUMNS];
        if l.offsets.len() == 1 && self.g.begin.iter().all(|&b| b == 0) && self.g.input == self.g.output {
            buffer[..c.x.len()].copy_from_slice(c.x);
        } else {
            l.pad(self.g, c.x, self.neutral(), &mut buffer);
        }
        let (rows, width) = l.grid;
        let grid_size = l.grid_size();
        let mut grid = vec![0.0f32; grid_size];
        for (plane, y) in l.planes.iter().zip(c.y.chunks_exact_mut((rows * width).max(1))) {
            match self.fold {
                Fold::Weighted => weighted(&buffer[*plane..], &l.offsets, c.w, c.start, &mut grid),
                Fold::Max => maxima(&buffer[*plane..], &l.offsets, c.start, &mut grid),
                Fold::Sum => sums(&buffer[*plane..], &l.offsets, c.start, &mut grid),
            }
            for (i, y) in y.chunks_exact_mut(width).enumerate() {
                y.copy_from_slice(&grid[i * l.grid_pitch..][..width]);
            }
        }
    }
}

/// Folds tap after tap for a stretch of columns.
#[inline(always)]
fn stretches(x: &[f32], offsets: &[u32], start: f32, y: &mut [f32], f: impl Fn(f32, f32, usize) -> f32) {
    for (i, y) in y.chunks_mut(COLUMNS).enumerate() {
        let mut acc = [start; COLUMNS];
        for (t, &at) in offsets.iter().enumerate() {
            let x = &x[at as usize + i * COLUMNS..][..COLUMNS];
            for (a, &x) in acc.iter_mut().zip(x) {
                *a = f(*a, x, t);
            }
        }
        y.copy_from_slice(&acc[..y.len()]);
    }
}

multiversion! {
    fn weighted(x: &[f32], offsets: &[u32], w: &[f32], start: f32, y: &mut [f32]) {
        stretches(x, offsets, start, y, |a, x, t| a + x * w[t]);
    }
}

multiversion! {
    fn maxima(x: &[f32], offsets: &[u32], start: f32, y: &mut [f32]) {
        stretches(x, offsets, start, y, |a, x, _| if x > a { x } else { a });
    }
}

multiversion! {
    fn sums(x: &[f32], offsets: &[u32], start: f32, y: &mut [f32]) {
        stretches(x, offsets, start, y, |a, x, _| a + x);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Rows where they lie, with masked loads at their ends.
    use std::arch::x86_64::{__m256, __m512};

    use super::super::Isa;
    use super::super::lanes::Lanes;
    use super::{Fold, Sizes};

    /// `rows(sizes, x, weights, start, y)`.
    pub(super) type Rows = unsafe fn(&Sizes, *const f32, *const f32, f32, *mut f32);

    const WEIGHTED: u8 = 0;
    const MAX: u8 = 1;
    const SUM: u8 = 2;

    /// The function for these sizes; `None` where strides are unusual or the processor is old.
    pub(super) fn rows(s: &Sizes, fold: Fold) -> Option<Rows> {
        match fold {
            Fold::Weighted => of_stride::<WEIGHTED>(s),
            Fold::Max => of_stride::<MAX>(s),
            Fold::Sum => of_stride::<SUM>(s),
        }
    }

    fn of_stride<const FOLD: u8>(s: &Sizes) -> Option<Rows> {
        match (s.stride[1], s.output[0]) {
            (1, 1) if s.kernel[0] == 1 => of_isa::<FOLD, 1, 1, 1, 1>(),
            (2, 1) if s.kernel[0] == 1 => of_isa::<FOLD, 1, 2, 1, 1>(),
            (1 | 2, _) if s.stride[0] != s.stride[1] || s.dilation[0] != 1 => None,
            (1, _) => of_kernel::<FOLD, 1>(s),
            (2, _) => of_kernel::<FOLD, 2>(s),
            _ => None,
        }
    }

    fn of_kernel<const FOLD: u8, const S: usize>(s: &Sizes) -> Option<Rows> {
        // Rows that are done at once: what wastes fewer in the last round. Pools are bound by memory.
        let seven = FOLD == WEIGHTED && s.output[0].div_ceil(7) * 7 <= s.output[0].div_ceil(4) * 4;
        match (s.kernel[0], seven) {
            (1, _) => of_isa::<FOLD, 1, S, 4, 4>(),
            (2, _) => of_isa::<FOLD, 2, S, 4, 4>(),
            // Nine rows of input for four of output do not fit into 16 registers.
            (3, _) if S == 2 && Isa::get() == Isa::Avx2 => of_isa::<FOLD, 3, S, 4, 3>(),
            (3, true) => of_isa::<WEIGHTED, 3, S, 7, 4>(),
            (3, false) => of_isa::<FOLD, 3, S, 4, 4>(),
            (5, true) => of_isa::<WEIGHTED, 5, S, 7, 4>(),
            (5, false) => of_isa::<FOLD, 5, S, 4, 4>(),
            (7, _) if FOLD == WEIGHTED => of_isa::<WEIGHTED, 7, S, 4, 4>(),
            _ => None,
        }
    }

    /// `R16` rows at once with the 32 registers of AVX-512, `R8` with the 16 of AVX2.
    fn of_isa<const FOLD: u8, const KH: usize, const S: usize, const R16: usize, const R8: usize>() -> Option<Rows> {
        match Isa::get() {
            Isa::Avx512 => Some(avx512::<FOLD, KH, S, R16>),
            Isa::Avx2 => Some(avx2::<FOLD, KH, S, R8>),
            Isa::Base => None,
        }
    }

    /// What is read for rows that are not there.
    static ZEROS: [f32; 32] = [0.0; 32];
    static LEAST: [f32; 32] = [f32::NEG_INFINITY; 32];

    /// # Safety
    /// As [`fold_rows`], on a processor with AVX-512.
    #[target_feature(enable = "avx2,fma,avx512f")]
    unsafe fn avx512<const FOLD: u8, const KH: usize, const S: usize, const R: usize>(
        s: &Sizes,
        x: *const f32,
        w: *const f32,
        start: f32,
        y: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { fold_rows::<__m512, FOLD, KH, S, R>(s, x, w, start, y) }
    }

    /// # Safety
    /// As [`fold_rows`], on a processor with AVX2.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const FOLD: u8, const KH: usize, const S: usize, const R: usize>(
        s: &Sizes,
        x: *const f32,
        w: *const f32,
        start: f32,
        y: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { fold_rows::<__m256, FOLD, KH, S, R>(s, x, w, start, y) }
    }

    /// Folds windows of `KH` rows with stride `S`, `R` rows of output at once.
    ///
    /// # Safety
    /// On a processor with the vectors `V`. `x` holds the input's rows, `y` the output's, and `w` a weight for each tap.
    #[inline(always)]
    unsafe fn fold_rows<V: Lanes, const FOLD: u8, const KH: usize, const S: usize, const R: usize>(
        s: &Sizes,
        x: *const f32,
        w: *const f32,
        start: f32,
        y: *mut f32,
    ) {
        const { assert!((R - 1) * S + KH <= 20) };
        let ([ih, iw], [oh, ow], kw) = (s.input, s.output, s.kernel[1]);
        let absent = if FOLD == MAX { LEAST.as_ptr() } else { ZEROS.as_ptr() };
        // SAFETY: addresses are formed without reading; loads and stores are of rows that are there, in full vectors
        // where a vector fits into the row and of the lanes inside the row elsewhere; a weight for each tap.
        unsafe {
            let neutral = V::splat(*absent);
            let n_rows = (R - 1) * S + KH;
            for oy in (0..oh).step_by(R) {
                let top = (oy * S) as isize - s.begin[0] as isize;
                let all_there = top >= 0 && top as usize + n_rows <= ih;
                // The first element of each row of input that some of the R rows read, if it is there.
                let mut rows = [None; 20];
                for i in 0..n_rows {
                    let iy = top + i as isize;
                    rows[i] = (iy >= 0 && (iy as usize) < ih).then(|| x.wrapping_offset(iy * iw as isize));
                }
                for block in 0..ow.div_ceil(V::N) {
                    // The last vector of a row overlaps the one before it instead of leaving lanes unused: stores of
                    // some lanes are slow on many processors.
                    let ox = (block * V::N).min(ow.saturating_sub(V::N));
                    let left = (ox * S) as isize - s.begin[1] as isize;
                    let is_inside = left >= 0 && left as usize + (kw - 1) * s.dilation[1] + S * V::N <= iw;
                    let mut acc = [V::splat(start); R];
                    for kx in 0..kw {
                        let first = left + (kx * s.dilation[1]) as isize;
                        let mut v = [neutral; 20];
                        if is_inside && all_there {
                            let at = x.wrapping_offset(top * iw as isize + first);
                            for i in 0..(R - 1) * S + KH {
                                v[i] = V::load(at.wrapping_add(i * iw));
                                if S == 2 {
                                    v[i] = v[i].evens(V::load(at.wrapping_add(i * iw + V::N)));
                                }
                            }
                        } else {
                            let (low, high) = (V::mask(first, iw), V::mask(first + V::N as isize, iw));
                            for i in 0..(R - 1) * S + KH {
                                let at = rows[i].map_or(absent, |r| r.wrapping_offset(first));
                                v[i] = V::load_some(low, at, neutral);
                                if S == 2 {
                                    v[i] = v[i].evens(V::load_some(high, at.wrapping_add(V::N), neutral));
                                }
                            }
                        }
                        let mut weights = [neutral; KH];
                        if FOLD == WEIGHTED {
                            for ky in 0..KH {
                                weights[ky] = V::splat(*w.add(ky * kw + kx));
                            }
                        }
                        for r in 0..R {
                            for ky in 0..KH {
                                let v = v[r * S + ky];
                                acc[r] = match FOLD {
                                    WEIGHTED => v.mul_add(weights[ky], acc[r]),
                                    MAX => v.max(acc[r]),
                                    _ => v.add(acc[r]),
                                };
                            }
                        }
                    }
                    for r in 0..R {
                        if oy + r < oh {
                            let at = (oy + r) * ow + ox;
                            let acc = if S == 2 { acc[r].in_order() } else { acc[r] };
                            // What a short row's vector writes beyond its end is the start of the next row, which
                            // comes later.
                            if at + V::N <= oh * ow {
                                acc.store(y.add(at));
                            } else {
                                acc.store_some(V::mask(0, ow - ox), y.add(at));
                            }
                        }
                    }
                }
            }
        }
    }
}
