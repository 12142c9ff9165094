//! Runs the command line and exits with its code.

use std::process::ExitCode;

fn main() -> ExitCode {
    onnx_quant::cli::main()
}
