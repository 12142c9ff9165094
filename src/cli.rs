//! The command line: the only module that prints, exits and reads the environment.
//!
//! `onnx-quant in.onnx out.onnx --calib data/` is the whole job; verbs do the rest, one file each. Results go to
//! standard output (a table, or JSON with `--json`), everything else to standard error.
//!
//! Exit codes: 0 done; 1 failed; 2 bad usage; 3 done, but a threshold was not met.
//!
//! **Add a verb:** a new file `src/cli/<verb>.rs` with `Args` and `run`, and a line in [`Command`].

mod calibrate;
mod check;
mod compare;
mod completions;
mod convert;
mod demo;
mod dump;
mod extract;
mod inspect;
mod labels;
mod man;
mod progress;
mod prune;
mod quantize;
mod run;
mod select;
mod sensitivity;
mod session;
mod strip;
mod summary;
mod targets;
mod weights;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Result, find, help_of};
use session::{Session, Usage};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "onnx-quant",
    version,
    about = "Quantizes trained ONNX models: float in, int8 (QDQ) out, measured on your data",
    after_help = "Example: onnx-quant model.onnx model.int8.onnx --calib data/\n\
                  Exit codes: 0 done, 1 failed, 2 bad usage, 3 done but a threshold was not met",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(flatten)]
    quantize: quantize::Args,
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What every verb understands.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Output")]
pub(crate) struct Common {
    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Say more: every decision and every note
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Print errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Threads [default: all cores]
    #[arg(short = 'j', long, global = true, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Quantize a model (the same as without a verb)
    #[command(arg_required_else_help = true)]
    Quantize(Box<quantize::Args>),
    /// Observe a model on samples and write a calibration cache, or join such caches
    Calibrate(Box<calibrate::Args>),
    /// Show what is in a model, what would be quantized, and why not
    Inspect(inspect::Args),
    /// Run a model on data with the built-in interpreter
    Run(run::Args),
    /// Say what is wrong with a quantized model, by the specification and for a target
    Check(check::Args),
    /// Write a quantized model in the other form: QDQ or QOperator
    Convert(convert::Args),
    /// Make a quantized model a float one
    Strip(strip::Args),
    /// Cut a part out of a model, with the inputs that it gets in use
    Extract(extract::Args),
    /// List the runtimes that models can be made for, or show what one of them runs in integers
    Targets(targets::Args),
    /// Rank the operators by the accuracy that they cost in integers
    Sensitivity(Box<sensitivity::Args>),
    /// Run two models on the same inputs and show where they differ
    Compare(compare::Args),
    /// Quantize a built-in network that reads digits, with built-in samples, and show what it does
    Demo(demo::Args),
    /// Print shell completions
    Completions(completions::Args),
    /// Write manual pages
    Man(man::Args),
}

/// Runs the command line of this process and gives its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(std::env::args_os().map(kebab)) {
        Ok(cli) => cli,
        // Help and version are "errors" of code 0 that go to standard output.
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let mut session = Session::new(cli.common);
    let result = session.pool().and_then(|pool| pool.install(|| dispatch(cli.command, cli.quantize, &mut session)));
    session.flush();
    match result {
        Ok(code) => code,
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            let mut text = format!("error: {e:#}");
            if let Some(help) = help_of(&e) {
                text.push_str("\nhelp: ");
                text.push_str(help);
            }
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::from(if find::<Usage>(&e).is_some() { 2 } else { 1 })
        }
    }
}

fn dispatch(command: Option<Command>, quantize: quantize::Args, session: &mut Session) -> Result<ExitCode> {
    match command {
        None => quantize::run(quantize, session),
        Some(Command::Quantize(args)) => quantize::run(*args, session),
        Some(Command::Calibrate(args)) => calibrate::run(*args, session),
        Some(Command::Inspect(args)) => inspect::run(&args, session),
        Some(Command::Run(args)) => run::run(&args, session),
        Some(Command::Check(args)) => check::run(&args, session),
        Some(Command::Convert(args)) => convert::run(&args, session),
        Some(Command::Strip(args)) => strip::run(&args, session),
        Some(Command::Extract(args)) => extract::run(&args, session),
        Some(Command::Targets(args)) => targets::run(&args, session),
        Some(Command::Sensitivity(args)) => sensitivity::run(*args, session),
        Some(Command::Compare(args)) => compare::run(&args, session),
        Some(Command::Demo(args)) => demo::run(&args, session),
        Some(Command::Completions(args)) => completions::run(&args),
        Some(Command::Man(args)) => man::run(&args),
    }
}

/// Whether the reader of our output went away, as `head` does; that is no failure of ours.
fn is_broken_pipe(e: &anyhow::Error) -> bool {
    find::<std::io::Error>(e).is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// `--nodes_to_exclude` as `--nodes-to-exclude`: other tools spell their options with underscores.
fn kebab(arg: OsString) -> OsString {
    match arg.to_str().and_then(|a| a.strip_prefix("--")) {
        Some(text) if !text.is_empty() => {
            let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            format!("--{}{value}", name.replace('_', "-")).into()
        }
        _ => arg,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn underscores_become_hyphens_in_names_only() {
        let of = |s: &str| kebab(s.into()).into_string().unwrap();
        assert_eq!(of("--nodes_to_exclude=a_b"), "--nodes-to-exclude=a_b");
        assert_eq!(of("a_b"), "a_b");
        assert_eq!(of("-c"), "-c");
        assert_eq!(of("--"), "--");
    }

    #[test]
    fn with_and_without_verb() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ').map(|a| kebab(a.into())));
        let cli = parse("onnx-quant a.onnx b.onnx --calib d -c e --nodes_to_exclude x,y -v").unwrap();
        assert!(cli.command.is_none() && cli.common.verbose == 1);
        let cli = parse("onnx-quant quantize a.onnx --calib d --json").unwrap();
        assert!(matches!(cli.command, Some(Command::Quantize(_))) && cli.common.json);
        assert!(matches!(parse("onnx-quant inspect a.onnx -j 1").unwrap().command, Some(Command::Inspect(_))));
        let cli = parse("onnx-quant ./inspect").unwrap();
        assert!(cli.command.is_none());
        let e = parse("onnx-quant a.onnx --cailb d").unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("'--calib'"), "{e}");
        assert!(parse("onnx-quant a.onnx -v -q").is_err());
    }
}
