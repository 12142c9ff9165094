//! `calibrate`: observes a model on samples and writes what it saw to a cache, or joins caches of parts of the data.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::quantize::{DataArgs, data_paths};
use super::session::{Session, human_bytes, print, print_json, usage};
use crate::calibrate::cache::{Cache, Entry, hex};
use crate::calibrate::dataset::{Dataset, Samples, Split};
use crate::calibrate::{Calibrator, Tracker};
use crate::error::{Context, Result};
use crate::kernels;
use crate::quant::{self, Config};

/// Arguments of `calibrate`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// The float model
    #[arg(value_name = "MODEL.onnx", required_unless_present = "merge", conflicts_with = "merge")]
    model: Option<PathBuf>,
    /// The cache to write
    #[arg(short, long, value_name = "CACHE.json")]
    output: PathBuf,
    /// Join these caches of the same model and of different samples, in the order of the samples
    #[arg(long, value_name = "CACHE.json", num_args = 1.., conflicts_with = "calib")]
    merge: Vec<PathBuf>,
    /// The runtime that the model is for
    #[arg(short, long, value_name = "TARGET", default_value = "ort-cpu")]
    target: String,
    #[command(flatten)]
    data: DataArgs,
}

pub(super) fn run(args: Args, session: &mut Session) -> Result<ExitCode> {
    let cache = match &args.model {
        Some(model) => observe(model, &args, session)?,
        None => merge(&args.merge)?,
    };
    let text = cache.to_json();
    std::fs::write(&args.output, &text).with_context(|| format!("cannot write '{}'", args.output.display()))?;
    let (n_tensors, n_samples, method) = (cache.tensors.len(), cache.samples.len(), cache.method.calibrator.name);
    if session.json {
        print_json(&json!({ "schema": 1, "cache": args.output.display().to_string(), "method": method,
            "model": cache.model, "samples": n_samples, "tensors": n_tensors, "bytes": text.len() }))?;
    } else if !session.quiet {
        let size = human_bytes(text.len() as u64);
        let path = args.output.display();
        print(&format!("{path}: {method}, {n_tensors} tensors, {n_samples} samples, {size}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn observe(path: &Path, args: &Args, session: &mut Session) -> Result<Cache> {
    let model = session.read(path)?;
    let paths = data_paths(args.data.calib.clone(), path, session)?;
    let samples =
        Arc::new(session.data_with(&paths, &model, &args.data.input_shape, args.data.image.options(), &[])?);
    let all: Arc<dyn Dataset> = Arc::<Samples>::clone(&samples);
    let split = crate::calibrate::dataset::split(&all, 0.0, Some(args.data.calib_samples.get()))?;
    session.flush();
    let base = Config::new(&args.target)?;
    let config = Config { method: args.data.method(&base, &BTreeSet::new())?, threads: session.threads, ..base };
    let bar = session.progress();
    let trackers = quant::calibrate(model, &config, &split.calibration, &bar, &mut session.sink);
    drop(bar);
    samples.report(&mut session.sink);
    session.flush();
    let trackers = trackers.with_context(|| format!("cannot calibrate '{}'", path.display()))?;
    let entry = |(name, tracker): (String, Tracker)| (name, Entry { tracker, edited: None });
    Ok(Cache {
        method: config.method,
        model: file_digest(path)?,
        samples: samples.digests().values().map(|d| hex(d)).collect(),
        tensors: trackers.into_iter().map(entry).collect(),
    })
}

fn merge(paths: &[PathBuf]) -> Result<Cache> {
    let Some((first, rest)) = paths.split_first() else { return usage("no caches were given") };
    let mut cache = read_cache(first)?;
    for path in rest {
        cache.merge(&read_cache(path)?).with_context(|| format!("cannot join '{}'", path.display()))?;
    }
    Ok(cache)
}

/// Reads a cache of ours or of another tool.
pub(super) fn read_cache(path: &Path) -> Result<Cache> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read '{}'", path.display()))?;
    Cache::from_text(&text).with_context(|| format!("'{}'", path.display()))
}

/// Fails unless the cache was made for this model, with this method and of these samples, as far as they are given. What
/// is calibrated with must be in the cache; what is held out may be.
pub(super) fn check_cache(
    cache: &Cache,
    model: &Path,
    method: Option<&'static Calibrator>,
    data: Option<(&Samples, &Split)>,
) -> Result<()> {
    let digests = match data {
        Some((samples, split)) if !cache.is_foreign() => {
            let chosen = split.calibration.indices();
            kernels::try_map(chosen.len(), |i| samples.sample(chosen[i]).map(drop))?;
            let all = samples.digests();
            Some(chosen.iter().filter_map(|i| all.get(i)).map(|d| hex(d)).collect::<Vec<_>>())
        }
        _ => None,
    };
    cache.check(&file_digest(model)?, method, digests.as_deref())
}

fn file_digest(path: &Path) -> Result<String> {
    let what = || format!("cannot read '{}'", path.display());
    let mut file = std::fs::File::open(path).with_context(what)?;
    let (mut hash, mut part) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let n = file.read(&mut part).with_context(what)?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&part[..n]);
    }
}
