//! Runs a loop compiled for the widest vectors of this machine, found at run time.
//!
//! A loop is a [`Kernel`] whose `run` is `#[inline(always)]`: it is compiled once per instruction set and vectorised by
//! the compiler. Nothing contracts `a * b + c` by itself: where a kernel wants one rounding it says `mul_add`, so that
//! the same input gives the same bits on every machine.

/// A computation that [`run`] compiles for several instruction sets.
pub trait Kernel {
    /// What it computes.
    type Output;
    /// The computation. Must be `#[inline(always)]`, and so must what it calls in its inner loops.
    fn run(self) -> Self::Output;
}

/// Runs the kernel with the widest vectors that the machine has. Builds with debug assertions, in which the compiler
/// does not vectorise anyway, have the plain loops only: a third of the code to generate.
#[inline]
pub fn run<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(all(target_arch = "x86_64", not(debug_assertions)))]
    match super::Isa::get() {
        // SAFETY: the features that the function needs were detected.
        super::Isa::Avx512 => return unsafe { run_avx512(kernel) },
        // SAFETY: the features that the function needs were detected.
        super::Isa::Avx2 => return unsafe { run_avx2(kernel) },
        super::Isa::Base => {}
    }
    // Every aarch64 machine has NEON, which the compiler uses by default.
    kernel.run()
}

#[cfg(all(target_arch = "x86_64", not(debug_assertions)))]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(all(target_arch = "x86_64", not(debug_assertions)))]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sum<'a>(&'a [f32]);

    impl Kernel for Sum<'_> {
        type Output = f32;
        #[inline(always)]
        fn run(self) -> f32 {
            self.0.iter().sum()
        }
    }

    #[test]
    fn gives_what_the_plain_loop_gives() {
        let v: Vec<f32> = (0..100).map(|i| i as f32 * 0.1).collect();
        assert_eq!(run(Sum(&v)).to_bits(), Sum(&v).run().to_bits());
    }
}
