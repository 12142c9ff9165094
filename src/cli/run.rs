//! `run`: runs a model on data with the built-in interpreter, shows or stores its outputs, compares them with others.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::session::{Session, print, print_json};
use crate::calibrate::dataset::{Dataset, npy};
use crate::error::{Context, Result, anyhow, ensure};
use crate::interp::{CompileOptions, NoTap, Program, RunOptions};
use crate::kernels;
use crate::ops::Item;
use crate::quant::Progress;
use crate::quant::measure::sqnr;
use crate::tensor::Tensor;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// The model
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Data: folder of .npz or .npy, one .npz or .npy, test_data_set_N folders, or `random`; repeatable
    #[arg(short, long, value_name = "DATA", required = true, visible_alias = "calib")]
    data: Vec<PathBuf>,
    /// Most samples to run, the first ones
    #[arg(short = 'n', long, value_name = "N")]
    samples: Option<usize>,
    /// Folder for the outputs of each sample; it is made if need be
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// How --output stores a sample: NNNN.npz, or a folder test_data_set_N with output_M.pb
    #[arg(long, value_enum, default_value_t = Format::Npz)]
    format: Format,
    /// Compare with outputs stored in this folder, by --output or as output_M.pb of test_data_set_N folders; without
    /// a folder, with those beside the data
    #[arg(long, value_name = "DIR")]
    compare: Option<Option<PathBuf>>,
    /// Largest difference, relative to the larger of the expected value and the output's mean magnitude, that passes
    #[arg(long, value_name = "R", default_value_t = 1e-3)]
    tolerance: f64,
    /// Shape of an input for `random` data, where the model leaves it open
    #[arg(long, value_name = "NAME:1,3,224,224")]
    input_shape: Vec<String>,
}

/// How outputs are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// An archive of NumPy arrays for each sample.
    Npz,
    /// A folder of ONNX's test data for each sample.
    Pb,
}

type Outputs = Vec<Option<Item>>;

pub(super) fn run(args: &Args, session: &mut Session) -> Result<ExitCode> {
    let model = session.read(&args.model)?;
    // Nothing is calibrated: few samples, or random ones, are as good as any.
    let samples = session.data_for_shapes(&args.data, &model, &args.input_shape)?;
    let program = Program::compile(&model, &CompileOptions::default())
        .with_context(|| format!("cannot run '{}'", args.model.display()))?;
    let n = args.samples.map_or(samples.len(), |n| n.min(samples.len()));
    if let Some(folder) = &args.output {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make folder '{}'", folder.display()))?;
    }
    let references = match &args.compare {
        Some(folder) => Some(references(args, folder.as_deref(), n, program.outputs())?),
        None => None,
    };
    let bar = session.progress();
    bar.begin("running", n as u64);
    let threads = if n >= session.threads { 1 } else { session.threads };
    let one = |i: usize| -> Result<Vec<Line>> {
        let sample = samples.sample(i)?;
        let options = RunOptions { threads, ..RunOptions::default() };
        let outputs: Outputs = program
            .run_named(&sample.inputs, options, &mut NoTap)
            .with_context(|| format!("running on {}", sample.origin))?;
        bar.advance(1);
        match (&args.output, args.format) {
            (None, _) => {}
            (Some(folder), Format::Npz) => store(&folder.join(format!("{i:04}.npz")), program.outputs(), &outputs)?,
            (Some(folder), Format::Pb) => {
                store_pb(&folder.join(format!("test_data_set_{i}")), program.outputs(), &outputs)?;
            }
        }
        let mut lines = Vec::new();
        for (k, (name, output)) in program.outputs().iter().zip(&outputs).enumerate() {
            let is_tensor = output.as_ref().is_none_or(|o| o.tensor().is_some());
            let reference = references.as_ref().filter(|_| is_tensor).map(|r| load(&r[i], k, name)).transpose()?;
            lines.push(Line::new(i, name, output.as_ref(), reference.as_ref(), args.tolerance)?);
        }
        Ok(lines)
    };
    let lines: Vec<Line> = kernels::try_map(n, one)?.into_iter().flatten().collect();
    drop(bar);
    samples.report_reading(&mut session.sink);
    session.flush();
    let n_bad = lines.iter().filter(|l| l.is_close == Some(false)).count();
    if session.json {
        print_json(&json!({ "schema": 1, "outputs": lines.iter().map(Line::json).collect::<Vec<_>>() }))?;
    } else if !session.quiet {
        print(&lines.iter().map(Line::text).collect::<String>())?;
        if references.is_some() {
            let n_close = lines.iter().filter(|l| l.is_close == Some(true)).count();
            print(&format!("{n_close} of {} outputs within {}\n", n_close + n_bad, args.tolerance))?;
        }
    }
    Ok(ExitCode::from(if n_bad == 0 { 0 } else { 3 }))
}

/// What there is to say about one output of one sample.
struct Line {
    sample: usize,
    name: String,
    /// Type, shape, smallest, largest and mean value.
    found: Option<(String, f64, f64, f64)>,
    /// Largest absolute difference and SQNR against the reference.
    difference: Option<(f64, f64)>,
    is_close: Option<bool>,
}

impl Line {
    fn new(sample: usize, name: &str, got: Option<&Item>, want: Option<&Tensor>, tolerance: f64) -> Result<Self> {
        let mut line = Line { sample, name: name.to_owned(), found: None, difference: None, is_close: None };
        let Some(got) = got else {
            line.is_close = want.map(|_| false);
            return Ok(line);
        };
        let Some(got) = got.tensor() else {
            line.found = Some((got.kind().to_owned(), f64::NAN, f64::NAN, f64::NAN));
            return Ok(line);
        };
        let ty = format!("{}{:?}", got.dtype(), got.shape());
        let Ok(values) = got.to_f64s() else {
            line.found = Some((ty, f64::NAN, f64::NAN, f64::NAN));
            line.is_close = want.map(|w| w == got);
            return Ok(line);
        };
        let (mut min, mut max, mut sum) = (f64::INFINITY, f64::NEG_INFINITY, 0.0);
        for &v in &values {
            (min, max, sum) = (min.min(v), max.max(v), sum + v);
        }
        line.found = Some((ty, min, max, sum / values.len().max(1) as f64));
        if let Some(want) = want {
            if want.shape() != got.shape() {
                line.is_close = Some(false);
                return Ok(line);
            }
            let want = want.to_f64s().context("the reference is no tensor of numbers")?;
            let magnitude =
                want.iter().filter(|w| w.is_finite()).map(|w| w.abs()).sum::<f64>() / want.len().max(1) as f64;
            let (mut worst, mut signal, mut noise, mut is_close) = (0.0f64, 0.0, 0.0, true);
            for (&g, &w) in values.iter().zip(&want) {
                if g == w || g.is_nan() && w.is_nan() {
                    signal += if w.is_finite() { w * w } else { 0.0 };
                    continue;
                }
                let d = (g - w).abs();
                is_close &= d <= tolerance * w.abs().max(magnitude);
                worst = if d.is_nan() { f64::INFINITY } else { worst.max(d) };
                signal += w * w;
                noise += d * d;
            }
            line.difference = Some((worst, sqnr(signal, noise)));
            line.is_close = Some(is_close);
        }
        Ok(line)
    }

    fn text(&self) -> String {
        let found = match &self.found {
            None => "not computed: it depends on an operator that is not known".into(),
            Some((ty, min, ..)) if min.is_nan() => ty.clone(),
            Some((ty, min, max, mean)) => format!("{ty}  min {min:.6}  max {max:.6}  mean {mean:.6}"),
        };
        let compared = match (self.difference, self.is_close) {
            (Some((worst, db)), Some(close)) => {
                format!("  max difference {worst:.3e}  SQNR {db:.1} dB{}", if close { "" } else { "  DIFFERS" })
            }
            (None, Some(false)) => "  DIFFERS".into(),
            _ => String::new(),
        };
        format!("sample {} \"{}\": {found}{compared}\n", self.sample, self.name)
    }

    fn json(&self) -> serde_json::Value {
        let (ty, min, max, mean) = match &self.found {
            Some((t, min, max, mean)) => (Some(t), Some(min), Some(max), Some(mean)),
            None => (None, None, None, None),
        };
        json!({
            "sample": self.sample, "name": self.name, "type": ty, "min": min, "max": max, "mean": mean,
            "max_difference": self.difference.map(|d| d.0), "sqnr_db": self.difference.map(|d| d.1),
            "is_close": self.is_close,
        })
    }
}

/// Writes the outputs of a sample, named as the model names them.
fn store(path: &Path, names: &[String], outputs: &[Option<Item>]) -> Result<()> {
    let what = || format!("cannot write '{}'", path.display());
    let arrays = names.iter().zip(outputs).filter_map(|(n, o)| o.as_ref()?.tensor().map(|t| (n.as_str(), t)));
    npy::write_npz(arrays, BufWriter::new(File::create(path).with_context(what)?)).with_context(what)
}

/// Writes the outputs of a sample as `output_M.pb`, as ONNX's own test data has them.
fn store_pb(folder: &Path, names: &[String], outputs: &[Option<Item>]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make folder '{}'", folder.display()))?;
    for (k, (name, output)) in names.iter().zip(outputs).enumerate() {
        if let Some(t) = output.as_ref().and_then(Item::tensor) {
            crate::onnx::write_tensor_pb(&folder.join(format!("output_{k}.pb")), name, t)?;
        }
    }
    Ok(())
}

/// Where the expected outputs of a sample are.
enum Reference {
    Npz(PathBuf),
    TestDataSet(PathBuf),
}

/// The references of the first `n` samples: `NNNN.npz` files, or `test_data_set_N` folders in natural order.
fn references(args: &Args, folder: Option<&Path>, n: usize, outputs: &[String]) -> Result<Vec<Reference>> {
    ensure!(folder.is_some() || args.data.len() == 1, "--compare needs a folder when there are several --data");
    let folder = folder.unwrap_or(&args.data[0]);
    ensure!(!outputs.is_empty(), "the model has no outputs to compare");
    let npz = |i: usize| folder.join(format!("{i:04}.npz"));
    if npz(0).is_file() {
        return Ok((0..n).map(|i| Reference::Npz(npz(i))).collect());
    }
    let sets = crate::calibrate::dataset::stored_outputs(folder)?;
    ensure!(
        sets.len() >= n,
        "'{}' holds no outputs for {n} samples: neither 0000.npz nor test_data_set_N with output_M.pb",
        folder.display()
    );
    Ok(sets.into_iter().take(n).map(Reference::TestDataSet).collect())
}

/// The expected output number `k`.
fn load(reference: &Reference, k: usize, name: &str) -> Result<Tensor> {
    match reference {
        Reference::TestDataSet(folder) => Ok(crate::onnx::read_tensor_pb(&folder.join(format!("output_{k}.pb")))?.1),
        Reference::Npz(path) => {
            let what = || format!("cannot read '{}'", path.display());
            let arrays = npy::read_npz(path).with_context(what)?;
            let found = arrays.into_iter().find(|(n, _)| n == name);
            found.map(|(_, t)| t).ok_or_else(|| anyhow!("'{}' has no array \"{name}\"", path.display()))
        }
    }
}
