//! Inner loops: everything that is written for speed, and the only place with `unsafe` code.

#![allow(unsafe_code, reason = "vector instructions need it; each use says why it is sound")]

pub mod math;
pub mod simd;
