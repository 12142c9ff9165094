//! Runs the command line and exits with its code.

mod cli;

use std::process::ExitCode;

// So that the command line names the library's modules as the library itself does.
use onnx_quant::{calibrate, diag, error, infer, interp, ir, onnx, ops, passes, quant, tensor};

fn main() -> ExitCode {
    cli::main(std::env::args_os())
}
