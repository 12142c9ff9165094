//! The register-blocked tile that all products of 32-bit floats are made of.
//!
//! `C[m][n] (+)= sum over k of A[m][k] * B[k][n]` for up to [`Tile::rows`] rows and [`Tile::columns`] columns, kept in
//! registers over the whole sum. `B`'s rows are read at `b + offset(k)`, contiguous in `n`: that is a packed panel, or
//! a convolution's padded input shifted by one tap of the kernel.

use std::sync::LazyLock;

/// Where the rows of `B` start, in elements from the tile's address.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// At multiples of this.
    Every(usize),
    /// At these places, one for each `k`.
    At(&'a [u32]),
}

/// What a tile's sums start from.
#[derive(Clone, Copy)]
pub enum Start {
    /// 0.
    Zero,
    /// One value a row, at this address.
    PerRow(*const f32),
    /// One value a column, at this address.
    PerColumn(*const f32),
    /// What `C` holds.
    Output,
}

/// One tile's operands.
pub struct Operands<'a> {
    /// Length of the sum.
    pub k: usize,
    /// Interleaved rows: `A[m][k]` at `a + k * m_rows + m`; or, when `a_stride` is not 0, at `a + m * a_stride + k`.
    pub a: *const f32,
    /// See `a`.
    pub a_stride: usize,
    /// `B[k][n]` at `b + rows(k) + n`.
    pub b: *const f32,
    /// See `b`.
    pub rows: Rows<'a>,
    /// `C[m][n]` at `c + m * c_stride + n`.
    pub c: *mut f32,
    /// See `c`.
    pub c_stride: usize,
    /// What the sums start from.
    pub start: Start,
    /// Bounds of what is written, in place of an activation behind the product. A NaN stays.
    pub clamp: Option<(f32, f32)>,
}

type Kernel = unsafe fn(&Operands<'_>);

/// The tile of a processor.
pub struct Tile {
    /// Rows at most.
    pub rows: usize,
    /// Columns of a full tile.
    pub columns: usize,
    /// Name of the instruction set.
    pub name: &'static str,
    /// By rows - 1; full width.
    full: &'static [[Kernel; 2]],
    /// By rows - 1; half width.
    half: &'static [[Kernel; 2]],
}

impl Tile {
    /// The best tile that this processor can run.
    #[must_use]
    pub fn best() -> &'static Tile {
        static BEST: LazyLock<&'static Tile> = LazyLock::new(|| {
            #[cfg(target_arch = "x86_64")]
            {
                if std::is_x86_feature_detected!("avx512f") {
                    return &x86::AVX512;
                }
                if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                    return &x86::AVX2;
                }
            }
            &portable::TILE
        });
        *BEST
    }

    /// Computes `m` rows and `columns` (or, when `half`, half of them).
    ///
    /// # Safety
    /// `1 <= m <= rows`. `a`, `b` and what `start` names are readable, `c` is readable and writable, for all indices
    /// that [`Operands`] describes, with `n` over the tile's width; `rows` has `k` offsets.
    pub unsafe fn run(&self, m: usize, half: bool, o: &Operands<'_>) {
        let table = if half { self.half } else { self.full };
        let kernel = table[m - 1][usize::from(o.a_stride != 0)];
        // SAFETY: the caller's promise; the tile was chosen for this processor.
        unsafe { kernel(o) }
    }

    /// Splits `m` rows into panels of nearly equal height, each at most [`Tile::rows`]: start and height.
    #[must_use]
    pub fn panels(&self, m: usize) -> Vec<(usize, usize)> {
        let n = m.div_ceil(self.rows);
        (0..n).map(|i| (m * i / n, m * (i + 1) / n - m * i / n)).collect()
    }
}

/// The body of a tile for one vector type: `$w` vectors of `$lanes` floats a row.
macro_rules! tile_body {
    ($o:ident, $mr:ident, $nv:ident, $strided:ident, $lanes:expr, $zero:expr, $set1:path, $load:path, $store:path, $fma:path, $clamp:path) => {{
        let mut acc = [[$zero; $nv]; $mr];
        match $o.start {
            Start::Zero => {}
            Start::PerRow(p) => {
                for m in 0..$mr {
                    for v in 0..$nv {
                        acc[m][v] = $set1(*p.add(m));
                    }
                }
            }
            Start::PerColumn(p) => {
                for m in 0..$mr {
                    for v in 0..$nv {
                        acc[m][v] = $load(p.add(v * $lanes));
                    }
                }
            }
            Start::Output => {
                for m in 0..$mr {
                    for v in 0..$nv {
                        acc[m][v] = $load($o.c.add(m * $o.c_stride + v * $lanes));
                    }
                }
            }
        }
        macro_rules! step {
            ($k:expr, $b:expr) => {{
                let b = $b;
                let mut row = [$zero; $nv];
                for v in 0..$nv {
                    row[v] = $load(b.add(v * $lanes));
                }
                for m in 0..$mr {
                    let a = $set1(*if $strided { $o.a.add(m * $o.a_stride + $k) } else { $o.a.add($k * $mr + m) });
                    for v in 0..$nv {
                        acc[m][v] = $fma(a, row[v], acc[m][v]);
                    }
                }
            }};
        }
        match $o.rows {
            Rows::Every(stride) => {
                for k in 0..$o.k {
                    step!(k, $o.b.add(k * stride));
                }
            }
            Rows::At(offsets) => {
                for (k, &at) in offsets[..$o.k].iter().enumerate() {
                    step!(k, $o.b.add(at as usize));
                }
            }
        }
        if let Some((lo, hi)) = $o.clamp {
            let (lo, hi) = ($set1(lo), $set1(hi));
            for m in 0..$mr {
                for v in 0..$nv {
                    acc[m][v] = $clamp(lo, hi, acc[m][v]);
                }
            }
        }
        for m in 0..$mr {
            for v in 0..$nv {
                $store($o.c.add(m * $o.c_stride + v * $lanes), acc[m][v]);
            }
        }
    }};
}

/// A table of kernels by rows, each for interleaved and for strided `A`.
macro_rules! table {
    ($kernel:ident, $nv:literal, $($m:literal)*) => { &[$([$kernel::<$m, $nv, false>, $kernel::<$m, $nv, true>],)*] };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! AVX-512 and AVX2.
    use std::arch::x86_64::*;

    use super::{Operands, Rows, Start, Tile};

    pub(super) static AVX512: Tile = Tile {
        rows: 12,
        columns: 32,
        name: "avx512",
        full: table!(avx512, 2, 1 2 3 4 5 6 7 8 9 10 11 12),
        half: table!(avx512, 1, 1 2 3 4 5 6 7 8 9 10 11 12),
    };

    pub(super) static AVX2: Tile = Tile {
        rows: 6,
        columns: 16,
        name: "avx2",
        full: table!(avx2, 2, 1 2 3 4 5 6),
        half: table!(avx2, 1, 1 2 3 4 5 6),
    };

    /// Between bounds. Where one operand is a NaN or both are zeros these instructions give the second one.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn clamp512(lo: __m512, hi: __m512, x: __m512) -> __m512 {
        _mm512_min_ps(hi, _mm512_max_ps(lo, x))
    }

    /// As [`clamp512`].
    #[target_feature(enable = "avx2")]
    #[inline]
    fn clamp256(lo: __m256, hi: __m256, x: __m256) -> __m256 {
        _mm256_min_ps(hi, _mm256_max_ps(lo, x))
    }

    /// # Safety
    /// As [`Tile::run`], on a processor with AVX-512F.
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const MR: usize, const NV: usize, const STRIDED: bool>(o: &Operands<'_>) {
        // SAFETY: all addresses are those that the caller vouches for.
        unsafe {
            tile_body!(
                o,
                MR,
                NV,
                STRIDED,
                16,
                _mm512_setzero_ps(),
                _mm512_set1_ps,
                _mm512_loadu_ps,
                _mm512_storeu_ps,
                _mm512_fmadd_ps,
                clamp512
            );
        }
    }

    /// # Safety
    /// As [`Tile::run`], on a processor with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const MR: usize, const NV: usize, const STRIDED: bool>(o: &Operands<'_>) {
        // SAFETY: all addresses are those that the caller vouches for.
        unsafe {
            tile_body!(
                o,
                MR,
                NV,
                STRIDED,
                8,
                _mm256_setzero_ps(),
                _mm256_set1_ps,
                _mm256_loadu_ps,
                _mm256_storeu_ps,
                _mm256_fmadd_ps,
                clamp256
            );
        }
    }
}

mod portable {
    //! Plain Rust that compilers vectorise: NEON on 64-bit ARM, SSE2 on old x86 processors.
    use super::{Operands, Rows, Start, Tile};

    pub(super) static TILE: Tile = Tile {
        rows: 6,
        columns: 16,
        name: "portable",
        full: table!(plain, 4, 1 2 3 4 5 6),
        half: table!(plain, 2, 1 2 3 4 5 6),
    };

    type V = [f32; 4];

    #[inline(always)]
    fn set1(x: f32) -> V {
        [x; 4]
    }

    /// # Safety
    /// Four floats at `p` are readable.
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        // SAFETY: the caller's promise; an array of floats needs no more alignment than a float.
        unsafe { *p.cast::<V>() }
    }

    /// # Safety
    /// Four floats at `p` are writable.
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        // SAFETY: the caller's promise.
        unsafe { *p.cast::<V>() = v }
    }

    #[inline(always)]
    fn fma(a: V, b: V, c: V) -> V {
        // A call of the C library where the processor has no such instruction: only where it surely has one.
        std::array::from_fn(
            |i| if cfg!(target_arch = "aarch64") { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] },
        )
    }

    #[inline(always)]
    fn clamp(lo: V, hi: V, x: V) -> V {
        std::array::from_fn(|i| {
            let x = if x[i] < lo[i] { lo[i] } else { x[i] };
            if x > hi[i] { hi[i] } else { x }
        })
    }

    /// # Safety
    /// As [`Tile::run`].
    unsafe fn plain<const MR: usize, const NV: usize, const STRIDED: bool>(o: &Operands<'_>) {
        // SAFETY: all addresses are those that the caller vouches for.
        unsafe {
            tile_body!(o, MR, NV, STRIDED, 4, [0.0; 4], set1, load, store, fma, clamp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every tile that this processor runs computes every number of rows right, with each form of operand.
    #[test]
    fn tiles_agree_with_sums() {
        let mut tiles = vec![&portable::TILE];
        if !std::ptr::eq(Tile::best(), &portable::TILE) {
            tiles.push(Tile::best());
        }
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            tiles.push(&x86::AVX2);
        }
        for tile in tiles {
            for m in 1..=tile.rows {
                for half in [false, true] {
                    check(tile, m, half);
                }
            }
        }
    }

    fn check(tile: &Tile, m: usize, half: bool) {
        let k = 7;
        let n = if half { tile.columns / 2 } else { tile.columns };
        let a: Vec<f32> = (0..m * k).map(|i| (i % 5) as f32 - 2.0).collect();
        let interleaved: Vec<f32> = (0..m * k).map(|i| a[i % m * k + i / m]).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i % 7) as f32 - 3.0).collect();
        let offsets: Vec<u32> = (0..k).map(|i| (i * n) as u32).collect();
        let bias: Vec<f32> = (0..n.max(m)).map(|i| i as f32).collect();
        for (strided, table, start) in [(false, false, 0), (false, true, 1), (true, false, 2), (true, true, 3)] {
            let mut c = vec![1.0f32; m * n];
            let clamp = strided.then_some((-4.0, 6.0));
            let o = Operands {
                k,
                a: if strided { a.as_ptr() } else { interleaved.as_ptr() },
                a_stride: if strided { k } else { 0 },
                b: b.as_ptr(),
                rows: if table { Rows::At(&offsets) } else { Rows::Every(n) },
                c: c.as_mut_ptr(),
                c_stride: n,
                start: match start {
                    0 => Start::Zero,
                    1 => Start::PerRow(bias.as_ptr()),
                    2 => Start::PerColumn(bias.as_ptr()),
                    _ => Start::Output,
                },
                clamp,
            };
            // SAFETY: the vectors have the sizes that the operands say.
            unsafe { tile.run(m, half, &o) };
            for i in 0..m {
                for j in 0..n {
                    let first = [0.0, bias[i], bias[j], 1.0][start];
                    let sum: f32 = (0..k).map(|x| a[i * k + x] * b[x * n + j]).sum();
                    let expected = clamp.map_or(first + sum, |(lo, hi)| (first + sum).clamp(lo, hi));
                    assert_eq!(c[i * n + j], expected, "{} {m} {half} {start} [{i}, {j}]", tile.name);
                }
            }
        }
    }
}
