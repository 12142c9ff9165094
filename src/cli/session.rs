//! What lives as long as a run of the command line: verbosity, diagnostics, threads, the clock.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Common;
use super::progress::Bar;
use crate::calibrate::carry::Pair;
use crate::calibrate::dataset::{ImageOptions, Request, Samples, input_specs, open};
use crate::diag::{Severity, Sink};
use crate::error::{Context, Result};
use crate::ir::Model;

/// An error in how the program was called: exit code 2.
#[derive(Debug)]
pub(super) struct Usage(pub(super) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Fails with exit code 2.
pub(super) fn usage<T>(message: impl Into<String>) -> Result<T> {
    Err(Usage(message.into()).into())
}

/// One run of the command line.
pub(super) struct Session {
    /// Whether the result is JSON.
    pub(super) json: bool,
    /// How much more to say.
    pub(super) verbose: u8,
    /// Whether to print errors only.
    pub(super) quiet: bool,
    /// Threads.
    pub(super) threads: usize,
    /// Gathers what is neither result nor error; [`Session::flush`] prints it.
    pub(super) sink: Sink,
    n_printed: usize,
    start: Instant,
}

impl Session {
    pub(super) fn new(common: Common) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Session {
            json: common.json,
            verbose: common.verbose,
            quiet: common.quiet,
            threads: common.threads.map_or_else(cores, std::num::NonZero::get),
            sink: Sink::default(),
            n_printed: 0,
            start: Instant::now(),
        }
    }

    /// The threads that everything runs on.
    pub(super) fn pool(&self) -> Result<rayon::ThreadPool> {
        rayon::ThreadPoolBuilder::new().num_threads(self.threads).build().context("cannot start threads")
    }

    /// A progress bar, on terminals only.
    pub(super) fn progress(&self) -> Bar {
        // A log file of a build server has no use for a line that is drawn over and over.
        Bar::new(!self.quiet && std::io::stderr().is_terminal() && std::env::var_os("CI").is_none())
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Says something on standard error, unless quiet.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Prints the diagnostics since the last call: warnings always, notes with `-v`, nothing when quiet.
    pub(super) fn flush(&mut self) {
        for d in &self.sink.diagnostics()[self.n_printed..] {
            if d.severity >= Severity::Warning || self.verbose > 0 {
                self.say(&d.to_string());
            }
        }
        self.n_printed = self.sink.diagnostics().len();
    }

    /// Reads a model and takes over what reading had to say.
    pub(super) fn read(&mut self, path: &Path) -> Result<Model> {
        let model = crate::onnx::read(path)?;
        for d in crate::onnx::diagnostics(&model) {
            match d.severity {
                Severity::Note => self.sink.note(d.code, d.location.clone(), d.message.clone()),
                Severity::Warning => self.sink.warn(d.code, d.location.clone(), d.message.clone()),
            }
        }
        Ok(model)
    }

    /// Opens data for a model.
    pub(super) fn data(&mut self, paths: &[PathBuf], model: &Model, shapes: &[String]) -> Result<Samples> {
        self.data_with(paths, model, shapes, ImageOptions::default(), &[])
    }

    /// Opens data for a model some of whose inputs are fed back, which samples need not hold.
    pub(super) fn data_with(
        &mut self,
        paths: &[PathBuf],
        model: &Model,
        shapes: &[String],
        image: ImageOptions,
        carried: &[Pair],
    ) -> Result<Samples> {
        let shapes = shapes.iter().map(|s| input_shape(s)).collect::<Result<_>>()?;
        let mut specs = input_specs(model)?;
        for spec in &mut specs {
            spec.is_required &= !carried.iter().any(|(input, _)| *input == spec.name);
        }
        open(paths, &Request { specs, shapes, image, seed: 0 }, &mut self.sink)
    }

    /// Opens data that no ranges are taken from: that it is random or short does not matter.
    pub(super) fn data_for_shapes(&mut self, paths: &[PathBuf], model: &Model, shapes: &[String]) -> Result<Samples> {
        let kept = std::mem::take(&mut self.sink);
        let samples = self.data(paths, model, shapes);
        self.sink = kept;
        samples
    }
}

/// Writes a result to standard output.
pub(super) fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Prints a result as JSON.
pub(super) fn print_json(value: &serde_json::Value) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// `NAME:1,3,224,224` or `NAME:1x3x224x224`. The name may hold colons.
fn input_shape(text: &str) -> Result<(String, Vec<usize>)> {
    let parsed = text.rsplit_once(':').and_then(|(name, dims)| {
        let dims = dims.split([',', 'x']).map(|d| d.trim().parse().ok()).collect::<Option<Vec<usize>>>()?;
        (!name.is_empty()).then(|| (name.to_owned(), dims))
    });
    parsed.map_or_else(|| usage(format!("bad input shape \"{text}\"; expected NAME:1,3,224,224")), Ok)
}

/// Bytes for people.
pub(super) fn human_bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// A large count for people.
pub(super) fn human_count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// The most memory that the process has had resident, in bytes, where the system tells.
pub(super) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_in_both_spellings() {
        assert_eq!(input_shape("x:1,3,224").unwrap(), ("x".into(), vec![1, 3, 224]));
        assert_eq!(input_shape("in:0:1x3").unwrap(), ("in:0".into(), vec![1, 3]));
        for bad in ["x", "x:", ":1,2", "x:a", "x:-1"] {
            assert!(input_shape(bad).unwrap_err().is::<Usage>(), "{bad}");
        }
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(human_bytes(999), "999 B");
        assert_eq!(human_bytes(97_512_345), "97.5 MB");
        assert_eq!(human_count(12_345_678), "12.3 M");
    }
}
