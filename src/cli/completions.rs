//! `completions`: prints what a shell needs to complete our options.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::error::Result;

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "onnx-quant", &mut text);
    super::session::print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}
