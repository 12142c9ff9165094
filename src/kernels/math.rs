//! Elementary functions in `f32` that the compiler can vectorise: no branches, no tables, no library calls.
//!
//! Polynomials are minimax fits made for this crate. Errors are a few units in the last place (about 2e-7 relative);
//! infinities and NaNs come out as IEEE 754 arithmetic gives them.

/// Adding and subtracting it rounds to an integer, which then stands in the low bits of the sum.
const MAGIC: f32 = 12_582_912.0;
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;

/// `a * b + c`, rounded once where code is compiled for machines that have the instruction (see `simd`), which is
/// wherever speed matters. Builds with debug assertions round twice instead of calling a function.
#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(debug_assertions) { a * b + c } else { a.mul_add(b, c) }
}

#[inline(always)]
fn poly<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut r = c[N - 1];
    for i in (0..N - 1).rev() {
        r = fma(r, x, c[i]);
    }
    r
}

/// `2^n` for `-126 <= n <= 127`, 0 for -127.
#[inline(always)]
fn exp2i(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23).cast_unsigned())
}

/// `e^x`; 0 where that is below 1.7e-38.
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    // Bounds beyond which the result is infinite or 0. Written so that a NaN stays.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -87.68 { -87.68 } else { x };
    let t = fma(x, std::f32::consts::LOG2_E, MAGIC);
    let n = t - MAGIC;
    let i = t.to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed();
    let r = fma(n, -LN2_LO, fma(n, -LN2_HI, x));
    let p = poly(r, [0.5, 0.166_666_66, 0.041_666_295, 0.008_333_497, 0.001_394_465_9, 0.000_197_903_41]);
    // Twice e^r times half of 2^n, since 2^128 is no number but the result may be one.
    let r2 = r + r;
    (fma(r * r2, p, r2) + 2.0) * exp2i(i.wrapping_sub(1))
}

/// `e^x - 1`; infinite from 88 on.
#[inline(always)]
#[must_use]
pub fn exp_m1(x: f32) -> f32 {
    let is_large = x > 88.0;
    let x = if is_large { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let t = fma(x, std::f32::consts::LOG2_E, MAGIC);
    let n = t - MAGIC;
    let i = t.to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed();
    let r = fma(n, -LN2_LO, fma(n, -LN2_HI, x));
    let p = poly(r, [0.5, 0.166_666_66, 0.041_666_295, 0.008_333_497, 0.001_394_465_9, 0.000_197_903_41]);
    // 2^n (e^r - 1) + (2^n - 1): nothing cancels, and for small x the second term is 0.
    let power = exp2i(i);
    let y = fma(power, fma(r * r, p, r), power - 1.0);
    if is_large { f32::INFINITY } else { y }
}

/// The natural logarithm.
#[inline(always)]
#[must_use]
pub fn log(x: f32) -> f32 {
    const SQRT_HALF: i32 = 0x3f35_04f3;
    let is_tiny = x < f32::MIN_POSITIVE;
    let y = if is_tiny { x * 8_388_608.0 } else { x };
    let b = y.to_bits().cast_signed().wrapping_sub(SQRT_HALF);
    let e = (b >> 23) as f32 - if is_tiny { 23.0 } else { 0.0 };
    let f = f32::from_bits(((b & 0x7f_ffff) + SQRT_HALF).cast_unsigned()) - 1.0;
    let p = poly(
        f,
        [
            0.333_333_13,
            -0.250_000_1,
            0.200_021_19,
            -0.166_679_96,
            0.142_195_52,
            -0.124_055_89,
            0.118_881_62,
            -0.116_756_52,
            0.067_466_4,
        ],
    );
    let z = f * f;
    let r = fma(e, LN2_HI, fma(e, LN2_LO, fma(f * z, p, -0.5 * z)) + f);
    let r = if x == f32::INFINITY { x } else { r };
    let r = if x == 0.0 { f32::NEG_INFINITY } else { r };
    if x < 0.0 || x.is_nan() { f32::NAN } else { r }
}

/// `log(1 + x)`, for `0 <= x <= 1`.
#[inline(always)]
#[must_use]
pub fn log1p_unit(x: f32) -> f32 {
    x * poly(
        x,
        [
            1.0,
            -0.499_999_02,
            0.333_299_64,
            -0.249_541_34,
            0.196_759_39,
            -0.153_055_92,
            0.106_036_54,
            -0.056_959_525,
            0.019_851_457,
            -0.003_244_024_2,
        ],
    )
}

/// `tanh(x)`.
#[inline(always)]
#[must_use]
pub fn tanh(x: f32) -> f32 {
    // From 10 on it is 1 in 32 bits. A NaN stays.
    let a = if x.abs() > 10.0 { 10.0 } else { x.abs() };
    let e = exp_m1(a + a);
    (e / (e + 2.0)).copysign(x)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
#[must_use]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function.
#[inline(always)]
#[must_use]
pub fn erf(x: f32) -> f32 {
    let a = x.abs();
    let s = x * x;
    let small = x * poly(
        s,
        [1.128_379_1, -0.376_126_26, 0.112_835_854, -0.026_853_813, 0.005_188_329, -0.000_801_020_36, 7.853_892e-5],
    );
    // From 4 on it is 1 in 32 bits.
    let b = if a > 4.0 { 4.0 } else { a };
    let log_erfc = poly(
        b,
        [
            0.000_188_028_38,
            -1.129_578_4,
            -0.633_22,
            -0.108_418_465,
            0.025_208_186,
            -0.004_204_536_3,
            0.000_441_331_2,
            -2.168_641_5e-5,
        ],
    );
    let large = 1.0 - exp(log_erfc);
    (if a < 1.0 { small } else { large }).copysign(x)
}

/// `log(1 + e^x)`.
#[inline(always)]
#[must_use]
pub fn softplus(x: f32) -> f32 {
    let r = if x > 0.0 { x } else { 0.0 } + log1p_unit(exp(-x.abs()));
    if x.is_nan() { x } else { r }
}

/// `x * tanh(softplus(x))`.
#[inline(always)]
#[must_use]
pub fn mish(x: f32) -> f32 {
    // With e = e^x: tanh(log(1 + e)) = (e^2 + 2e) / (e^2 + 2e + 2).
    let e = exp(if x > 20.0 { 20.0 } else { x });
    let n = e * (e + 2.0);
    x * (n / (n + 2.0))
}

/// The exact GELU, `x / 2 * (1 + erf(x / sqrt 2))`.
#[inline(always)]
#[must_use]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The GELU with tanh, `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
#[inline(always)]
#[must_use]
pub fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(0.797_884_6 * (x + 0.044_715 * x * x * x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest relative error over the interval, in f32.
    fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64, lo: f32, hi: f32) -> f64 {
        (0..=100_000)
            .map(|i| lo + (hi - lo) * (i as f32 / 100_000.0))
            .map(|x| {
                let e = exact(x.into());
                (f64::from(f(x)) - e).abs() / e.abs().max(1e-37)
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn within_a_few_units_in_the_last_place() {
        for (name, f, exact, lo, hi, limit) in [
            ("exp", exp as fn(f32) -> f32, f64::exp as fn(f64) -> f64, -86.9, 88.7, 2e-7),
            ("exp_m1", exp_m1, f64::exp_m1, -10.0, 10.0, 4e-7),
            ("log", log, f64::ln, 1e-30, 3.0, 3e-7),
            ("log", log, f64::ln, 3.0, 1e30, 2e-7),
            ("tanh", tanh, f64::tanh, -10.0, 10.0, 3e-7),
            ("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 30.0, 4e-7),
            ("erf", erf, libm::erf, -5.0, 5.0, 3e-7),
            ("softplus", softplus, |x| x.exp().ln_1p(), -80.0, 80.0, 4e-7),
            ("mish", mish, |x| x * x.exp().ln_1p().tanh(), -80.0, 50.0, 6e-7),
        ] {
            let w = worst(f, exact, lo, hi);
            assert!(w <= limit, "{name} on [{lo}, {hi}]: {w}");
        }
    }

    #[test]
    fn special_values() {
        let inf = f32::INFINITY;
        assert_eq!((exp(inf), exp(-inf), exp(100.0), exp(-200.0), exp(0.0)), (inf, 0.0, inf, 0.0, 1.0));
        assert_eq!((log(0.0), log(inf), log(1.0)), (-inf, inf, 0.0));
        assert!((f64::from(log(1e-40)) - 1e-40f64.ln()).abs() < 1e-4);
        assert_eq!((tanh(inf), tanh(-inf), tanh(-0.0).to_bits()), (1.0, -1.0, (-0.0f32).to_bits()));
        assert_eq!((sigmoid(inf), sigmoid(-inf), erf(inf), erf(-inf)), (1.0, 0.0, 1.0, -1.0));
        assert_eq!((softplus(inf), softplus(-inf), mish(inf)), (inf, 0.0, inf));
        for f in [exp, log, tanh, sigmoid, erf, softplus, mish, gelu, gelu_tanh] {
            assert!(f(f32::NAN).is_nan());
        }
        assert!(log(-1.0).is_nan());
    }
}
