//! `man`: writes manual pages, one for the program and one for each verb.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::error::{Context, Result};

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Folder to write the pages to; it is made if need be
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let what = || format!("cannot write manual pages to '{}'", args.folder.display());
    std::fs::create_dir_all(&args.folder).with_context(what)?;
    clap_mangen::generate_to(super::Cli::command(), &args.folder).with_context(what)?;
    Ok(ExitCode::SUCCESS)
}
