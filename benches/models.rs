//! Whole float models against ONNX Runtime, one thread each, in the same run: milliseconds per sample and the ratio
//! ONNX Runtime / ours (above 1 we are faster), as a Markdown table.
//!
//! ```text
//! cargo bench --bench models -- [--zoo DIR] [--seconds S] [--tract] [--profile] [--against DIR] [NAME...]
//! ```
//!
//! `DIR` (or the environment variable `ZOO_DIR`) holds `models/NAME.onnx` and samples `data/NAME/eval/*.npz`. Without it
//! the light models of the `onnx` Python package run, which are ResNet-50, DenseNet, VGG and so on with weights that are
//! made up. Rounds of both sides alternate, and the median of the rounds' ratios counts. Time is what each thread was running, so
//! that other work on the machine matters little. `--tract` takes tract in place of ONNX Runtime (the Python package, which is
//! installed beside it). `--profile` prints where our time goes instead. `--against DIR` compares our own times for the models
//! there, such as quantized ones, with those of the float models of the same names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Instant;

use onnx_quant::calibrate::dataset::npy::read_npz;
use onnx_quant::diag::Sink;
use onnx_quant::error::{Context, Result, anyhow};
use onnx_quant::interp::{CompileOptions, NoTap, Program, RunOptions, Tap};
use onnx_quant::ir::{GraphId, ValueId};
use onnx_quant::ops::Item;
use onnx_quant::passes;
use onnx_quant::tensor::Tensor;
use serde_json::json;

#[allow(dead_code, unreachable_pub, reason = "shared with the tests")]
#[path = "../tests/common/python.rs"]
mod python;

const SCRIPT: &str = include_str!("models.py");

/// Samples of each model.
const SAMPLES: usize = 4;

fn target_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("cargo's tmp folder lies in target").to_path_buf()
}

struct Args {
    zoo: Option<PathBuf>,
    seconds: f64,
    profile: bool,
    tract: bool,
    against: Option<PathBuf>,
    names: Vec<String>,
}

fn args() -> Args {
    let mut args = Args {
        zoo: std::env::var_os("ZOO_DIR").map(PathBuf::from),
        seconds: 3.0,
        profile: false,
        tract: false,
        against: None,
        names: Vec::new(),
    };
    let mut given = std::env::args().skip(1);
    let value = |name: &str, given: &mut dyn Iterator<Item = String>| {
        given.next().unwrap_or_else(|| panic!("{name} needs a value"))
    };
    while let Some(a) = given.next() {
        match a.as_str() {
            "--bench" => {}
            "--zoo" => args.zoo = Some(value("--zoo", &mut given).into()),
            "--against" => args.against = Some(value("--against", &mut given).into()),
            "--seconds" => args.seconds = value("--seconds", &mut given).parse().expect("--seconds is a number"),
            "--profile" => args.profile = true,
            "--tract" => args.tract = true,
            _ => args.names.push(a),
        }
    }
    args
}

/// A model and its samples; none for one that runs on noise.
struct Case {
    name: String,
    model: PathBuf,
    samples: Vec<PathBuf>,
}

fn sorted(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).map(|d| d.flatten().map(|e| e.path()).collect::<Vec<_>>());
    let mut paths = entries.unwrap_or_default();
    paths.retain(|p| p.extension().is_some_and(|e| e == extension));
    paths.sort();
    paths
}

fn cases(args: &Args) -> Vec<Case> {
    let mut models = args.zoo.as_ref().map(|z| sorted(&z.join("models"), "onnx")).unwrap_or_default();
    let light = python::call(SCRIPT, json!({"do": "light"})).expect("the onnx package has light models");
    models.extend(sorted(Path::new(light.as_str().expect("a path")), "onnx"));
    let mut cases = Vec::new();
    for model in models {
        let name = model.file_stem().expect("a file").to_string_lossy().into_owned();
        let data = args.zoo.as_ref().map(|z| sorted(&z.join("data").join(&name).join("eval"), "npz"));
        let mut samples = data.unwrap_or_default();
        // Spread over the folder: samples of a model with dynamic shapes differ in size.
        let step = samples.len().div_ceil(SAMPLES).max(1);
        samples = samples.into_iter().step_by(step).collect();
        if args.names.is_empty() || args.names.iter().any(|n| name.contains(n.as_str())) {
            cases.push(Case { name, model, samples });
        }
    }
    cases
}

/// A compiled model with its inputs.
struct Ours {
    program: Program,
    inputs: Vec<Vec<(String, Tensor)>>,
}

impl Ours {
    fn new(model: &Path, samples: &[PathBuf]) -> Result<Self> {
        let mut model = onnx_quant::onnx::read(model)?;
        // As calibration runs it: batch normalization is folded, as ONNX Runtime does too. Quantized models stay.
        let mut sink = Sink::default();
        passes::manager::run(&mut model, &passes::PREPARE, &mut passes::Ctx::new(&mut sink), &mut |_, _| {})?;
        let program = Program::compile(&model, &CompileOptions::default())?;
        let mut inputs = samples.iter().map(|s| read_npz(s)).collect::<Result<Vec<_>>>()?;
        if inputs.is_empty() {
            inputs.push(noise(&program)?);
        }
        Ok(Ours { program, inputs })
    }

    /// Milliseconds per sample.
    fn run(&self, times: usize) -> Result<f64> {
        let t = thread_time();
        for _ in 0..times {
            for inputs in &self.inputs {
                self.program.run_named(inputs, RunOptions::default(), &mut NoTap)?;
            }
        }
        Ok((thread_time() - t) * 1e3 / (times * self.inputs.len()) as f64)
    }
}

/// Seconds that this thread was running; where the system does not tell, seconds since the first call.
fn thread_time() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = stat.and_then(|s| s.split_whitespace().next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(|| START.elapsed().as_secs_f64(), |n| n * 1e-9)
}

fn noise(program: &Program) -> Result<Vec<(String, Tensor)>> {
    let mut inputs = Vec::new();
    for input in program.inputs().iter().filter(|i| i.default.is_none()) {
        let shape: Option<Vec<usize>> = (|| {
            let shape = input.ty.as_ref()?.as_tensor()?.shape.clone()?;
            shape.iter().map(onnx_quant::ir::Dim::known).collect()
        })();
        let shape = shape.ok_or_else(|| anyhow!("input \"{}\" has no fixed shape", input.name))?;
        let n = shape.iter().product();
        let values = (0..n).map(|i: usize| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
        inputs.push((input.name.clone(), Tensor::new(&shape, values)?));
    }
    Ok(inputs)
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    if v.is_empty() { f64::NAN } else { v[v.len() / 2] }
}

/// Times two sides in turns: the median time of each, and of the ratio second / first.
fn pairs(
    seconds: f64,
    first: &mut dyn FnMut(usize) -> Result<f64>,
    second: &mut dyn FnMut(usize) -> Result<f64>,
) -> Result<[f64; 3]> {
    first(1)?;
    second(1)?;
    let t = Instant::now();
    first(1)?;
    second(1)?;
    // Rounds long enough that the clock and the pipe to Python do not matter.
    let times = ((seconds / 12.0 / t.elapsed().as_secs_f64()) as usize).clamp(1, 2000);
    let (mut a, mut b, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let start = Instant::now();
    while a.len() < 3 || start.elapsed().as_secs_f64() < seconds {
        a.push(first(times)?);
        b.push(second(times)?);
        ratios.push(b[b.len() - 1] / a[a.len() - 1]);
    }
    Ok([median(a), median(b), median(ratios)])
}

/// ONNX Runtime, or tract.
fn against_another(case: &Case, tract: bool, seconds: f64) -> Result<[f64; 3]> {
    let name = other(tract);
    let ours = Ours::new(&case.model, &case.samples)?;
    let load = json!({"do": "load", "model": case.model, "samples": case.samples, "tract": tract});
    python::call(SCRIPT, load).map_err(|e| anyhow!("{name}: {}", e.lines().next().unwrap_or_default()))?;
    let mut theirs = |times: usize| {
        let ms = python::call(SCRIPT, json!({"do": "run", "times": times})).map_err(|e| anyhow!("{name}: {e}"))?;
        ms.as_f64().context("a number")
    };
    pairs(seconds, &mut |n| ours.run(n), &mut theirs)
}

fn other(tract: bool) -> &'static str {
    if tract { "tract" } else { "ONNX Runtime" }
}

fn against_float(case: &Case, folder: &Path, seconds: f64) -> Result<[f64; 3]> {
    let float = Ours::new(&case.model, &case.samples)?;
    let other = Ours::new(&folder.join(format!("{}.onnx", case.name)), &case.samples)?;
    pairs(seconds, &mut |n| other.run(n), &mut |n| float.run(n))
}

/// Sums up the time of each step.
#[derive(Default)]
struct Profile {
    last: f64,
    by_step: BTreeMap<(String, String), (f64, usize)>,
}

impl Tap for Profile {
    fn see(&mut self, _: GraphId, _: ValueId, _: &Item) -> Result<()> {
        Ok(())
    }

    fn done(&mut self, label: &str, op_type: &str) {
        let now = thread_time();
        let entry = self.by_step.entry((op_type.to_owned(), label.to_owned())).or_default();
        entry.0 += now - self.last;
        entry.1 += 1;
        self.last = thread_time();
    }
}

fn profile(case: &Case, seconds: f64) -> Result<()> {
    let ours = Ours::new(&case.model, &case.samples)?;
    ours.run(1)?;
    let mut tap = Profile::default();
    let start = Instant::now();
    let mut runs = 0;
    while start.elapsed().as_secs_f64() < seconds {
        for inputs in &ours.inputs {
            tap.last = thread_time();
            ours.program.run_named(inputs, RunOptions::default(), &mut tap)?;
            runs += 1;
        }
    }
    let ms = |d: f64| d * 1e3 / f64::from(runs);
    let mut by_type: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for ((op_type, _), (d, n)) in &tap.by_step {
        let entry = by_type.entry(op_type).or_default();
        entry.0 += *d;
        entry.1 += n;
    }
    let total: f64 = by_type.values().map(|t| t.0).sum();
    println!("{}: {:.3} ms per sample", case.name, ms(total));
    let mut types: Vec<_> = by_type.into_iter().collect();
    types.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    for (op_type, (d, n)) in types.iter().take(12) {
        println!("{:10.3} ms {:5.1} %  {op_type} x {}", ms(*d), 100.0 * ms(*d) / ms(total), n / runs as usize);
    }
    let mut steps: Vec<_> = tap.by_step.iter().collect();
    steps.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    for ((op_type, label), (d, _)) in steps.iter().take(20) {
        println!("{:10.3} ms  {op_type} {label}", ms(*d));
    }
    Ok(())
}

fn main() {
    let args = args();
    let cases = cases(&args);
    if args.profile {
        for case in &cases {
            profile(case, args.seconds).unwrap_or_else(|e| println!("{}: {e:#}", case.name));
        }
        return;
    }
    let other = if args.against.is_some() { "float" } else { other(args.tract) };
    println!("| model | ours, ms | {other}, ms | ratio |\n|---|---:|---:|---:|");
    let mut ratios = Vec::new();
    for case in &cases {
        let found = match &args.against {
            Some(folder) if !folder.join(format!("{}.onnx", case.name)).exists() => continue,
            Some(folder) => against_float(case, folder, args.seconds),
            None => against_another(case, args.tract, args.seconds),
        };
        match found {
            Ok([ours, theirs, ratio]) => {
                println!("| {} | {ours:.2} | {theirs:.2} | {ratio:.2} |", case.name);
                ratios.push(ratio);
            }
            Err(e) => println!("| {} | {e:#} | | |", case.name),
        }
    }
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    println!("| **median of {}** (least {least:.2}) | | | **{:.2}** |", ratios.len(), median(ratios.clone()));
}
