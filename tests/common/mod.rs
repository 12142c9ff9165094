//! What the integration tests share: ONNX Runtime and the `onnx` package behind a Python worker,
//! ONNX's backend test data, and arrays that travel between Rust and Python.
//!
//! Nothing needs to be installed by hand except Python 3 with its `venv` module: the virtual
//! environment is made under `target/` on first use. Set `ONNX_QUANT_VENV` to a ready one to skip that.

// Every test binary compiles this module and uses its own part of it.
#![allow(dead_code, unreachable_pub, reason = "shared by test binaries")]

pub mod backend_data;
pub mod compare;
pub mod made;
pub mod models;
pub mod npz;
pub mod optimized;
pub mod ort;
pub mod pb;
pub mod python;
pub mod rng;
pub mod sizes;
pub mod tensors;

use std::path::{Path, PathBuf};

/// The build's `target` folder.
pub fn target_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("cargo's tmp folder lies in target").to_path_buf()
}

/// A file or folder of the repository's `testdata`.
pub fn testdata(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(relative)
}

/// Whether this machine multiplies 8-bit integers without saturating: x86-64 before VNNI does not.
pub fn has_exact_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        true
    }
}

/// The folder of real models with samples (`models/NAME.onnx`, `data/NAME/{calib,eval}/*.npz`) that
/// `ONNX_QUANT_ZOO` or `ZOO_DIR` names; tests over real models run only where one is set.
pub fn zoo() -> Option<PathBuf> {
    std::env::var_os("ONNX_QUANT_ZOO").or_else(|| std::env::var_os("ZOO_DIR")).map(PathBuf::from)
}
