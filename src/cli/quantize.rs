//! The one-shot form and `quantize`: reads a model and data, quantizes, writes, and says what came of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use super::dump::{self, Dump};
use super::labels;
use super::prune;
use super::select::{self, Selection};
use super::session::{Session, Usage, print_json, usage};
use super::summary::Summary;
use super::weights;
use crate::calibrate;
use crate::calibrate::carry;
use crate::calibrate::dataset::{Dataset, ImageOptions, Resize, Samples, Split, Subset, input_specs, split};
use crate::diag::Sink;
use crate::error::{Context, Location, Result, WithHelp, anyhow, bail, ensure};
use crate::ir::Model;
use crate::onnx::{External, WriteOptions};
use crate::quant::algo::Improvement;
use crate::quant::judge::drop_of;
use crate::quant::prune::By;
use crate::quant::report::Report;
use crate::quant::scheme::{Choices, Form, Scheme};
use crate::quant::{self, Config, Effort, Mode, overrides};
use crate::tensor::DType;

/// Arguments of the one-shot form and of `quantize`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// The float model
    #[arg(value_name = "IN.onnx", required = true)]
    input: Option<PathBuf>,
    /// The quantized model [default: IN.int8.onnx]
    #[arg(value_name = "OUT.onnx")]
    output: Option<PathBuf>,
    #[command(flatten)]
    calib: CalibArgs,
    #[command(flatten)]
    scheme: SchemeArgs,
    #[command(flatten)]
    labels: labels::Args,
    #[command(flatten)]
    weights: weights::Args,
    #[command(flatten)]
    select: select::Args,
    #[command(flatten)]
    dump: dump::Args,
    /// Show the plan and write nothing
    #[arg(long, help_heading = "Debugging")]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Calibration")]
pub(super) struct CalibArgs {
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// Samples held out to measure the result, as a fraction; at least one
    #[arg(long, value_name = "FRACTION", default_value_t = 0.2, value_parser = fraction)]
    pub(super) holdout: f64,
    /// Feeds an output back as the next sample's input: the state of models that are called step by step. One * on both
    /// sides stands for the same text: past.*=present.*
    #[arg(long, value_name = "INPUT=OUTPUT")]
    carry: Vec<String>,
    /// What `calibrate` (or ONNX Runtime, TensorRT) observed before: no calibration pass; without `--calib` no data at all
    #[arg(long, value_name = "FILE")]
    calib_cache: Option<PathBuf>,
    /// Memory that the run may take, e.g. 800M or 2G: fewer samples run at a time, or an error says what is needed
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    max_memory: Option<u64>,
}

impl CalibArgs {
    /// The inputs that are fed back, each with its output.
    pub(super) fn carried(&self, model: &Model) -> Result<Vec<carry::Pair>> {
        let mut pairs = Vec::new();
        for text in &self.carry {
            pairs.extend(carry::pairs(text, model).context("--carry")?);
        }
        Ok(pairs)
    }
}

/// Samples whose inputs of these pairs hold what the float model gave for the sample before.
pub(super) fn carry(
    samples: &Arc<Samples>,
    model: &Model,
    pairs: &[carry::Pair],
    session: &Session,
) -> Result<Arc<dyn Dataset>> {
    let all: Arc<dyn Dataset> = Arc::<Samples>::clone(samples);
    if pairs.is_empty() {
        return Ok(all);
    }
    Ok(Arc::new(carry::Carried::new(all, model, &input_specs(model)?, pairs, session.threads)?))
}

/// Samples, and how ranges are chosen from them.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Calibration")]
pub(super) struct DataArgs {
    /// Calibration data: folder of .npz, .npy or images, one .npz, .npy or .safetensors, .txt list, test_data_set_N
    /// folders, or `random`; repeatable
    #[arg(short, long, value_name = "DATA")]
    pub(super) calib: Vec<PathBuf>,
    /// Most samples to use, spread evenly over the data
    #[arg(short = 'n', long, value_name = "N", default_value = "300",
          visible_aliases = ["num-samples", "num-calib-data"], alias = "subset-size")]
    pub(super) calib_samples: std::num::NonZeroUsize,
    /// How the ranges of activations are chosen [default: auto]
    #[arg(long, value_name = "METHOD", value_parser = methods(), ignore_case = true,
          visible_alias = "calibration-method")]
    pub(super) calib_method: Option<String>,
    /// Share of the values that the range holds, for `--calib-method percentile`
    #[arg(long, value_name = "P", default_value_t = 99.999, value_parser = percentile)]
    percentile: f64,
    /// Shape of an input for `random` data, where the model leaves it open
    #[arg(long, value_name = "NAME:1,3,224,224")]
    pub(super) input_shape: Vec<String>,
    #[command(flatten)]
    pub(super) image: ImageArgs,
}

/// How images become tensors.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Images as samples: (pixel * scale - mean) / std")]
pub(super) struct ImageArgs {
    /// What pixels (0 to 255) are multiplied with, e.g. 1/255
    #[arg(long, value_name = "X", value_parser = ratio)]
    scale: Option<f32>,
    /// What is subtracted then: one number, or one per channel
    #[arg(long, value_name = "R,G,B", value_delimiter = ',', allow_hyphen_values = true)]
    mean: Vec<f32>,
    /// What is divided by at last: one number, or one per channel
    #[arg(long, value_name = "R,G,B", value_delimiter = ',', value_parser = ratio)]
    std: Vec<f32>,
    /// Where the channels are [default: as in the model's shape]
    #[arg(long, value_name = "LAYOUT", ignore_case = true)]
    layout: Option<Layout>,
    /// Order of the channels
    #[arg(long, value_name = "ORDER", default_value = "rgb", ignore_case = true)]
    color: Color,
    /// Size to scale to: HxW, or N for the shorter side [default: the model's size]
    #[arg(long, value_name = "SIZE", value_parser = resize)]
    resize: Option<Resize>,
    /// Size of the middle part to cut out: HxW, or N for both
    #[arg(long, value_name = "SIZE", value_parser = crop)]
    crop: Option<(u32, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
enum Layout {
    /// Channels first
    Nchw,
    /// Channels last
    Nhwc,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, clap::ValueEnum)]
enum Color {
    /// Red first
    #[default]
    Rgb,
    /// Blue first
    Bgr,
}

impl ImageArgs {
    pub(super) fn options(&self) -> ImageOptions {
        ImageOptions {
            scale: self.scale,
            mean: self.mean.clone(),
            std: self.std.clone(),
            channels_last: self.layout.map(|l| l == Layout::Nhwc),
            is_bgr: self.color == Color::Bgr,
            resize: self.resize,
            crop: self.crop,
        }
    }
}

/// `800M`, `2G`, `1.5GB`, `512MiB` or bytes.
fn bytes(text: &str) -> std::result::Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err("expected a size such as 800M or 2G".into()),
    };
    let number: f64 = number.parse().map_err(|_| "expected a size such as 800M or 2G".to_owned())?;
    Ok((number * unit) as u64)
}

/// A number that is not zero, or a fraction.
fn ratio(text: &str) -> std::result::Result<f32, String> {
    let number = |t: &str| t.trim().parse::<f32>().ok();
    let x = match text.split_once('/') {
        Some((a, b)) => number(a).zip(number(b)).map(|(a, b)| a / b),
        None => number(text),
    };
    x.filter(|x| x.is_finite() && *x != 0.0).ok_or_else(|| "expected a number such as 0.5 or 1/255, not 0".into())
}

fn resize(text: &str) -> std::result::Result<Resize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(Resize::Short(n)),
        _ => crop(text).map(|(h, w)| Resize::Exact(h, w)),
    }
}

fn crop(text: &str) -> std::result::Result<(u32, u32), String> {
    let size = match text.split_once('x') {
        Some((h, w)) => h.parse().ok().zip(w.parse().ok()),
        None => text.parse().ok().map(|n| (n, n)),
    };
    size.filter(|&(h, w)| h > 0 && w > 0).ok_or_else(|| "expected HxW or N, such as 224x224".into())
}

impl DataArgs {
    /// The method that was asked for.
    pub(super) fn method(&self, config: &Config, without: &BTreeSet<Improvement>) -> Result<calibrate::Method> {
        let bits = config.scheme.activation.bits() as u32;
        let settings = calibrate::Settings { percentile: self.percentile, bits };
        let calibrator = match &self.calib_method {
            Some(name) => calibrate::find(name).context("unknown calibration method")?,
            None if without.contains(&Improvement::Auto) => calibrate::find("min-max").context("no min-max")?,
            None => calibrate::Method::default().calibrator,
        };
        if calibrator.name == calibrate::Method::default().calibrator.name && without.contains(&Improvement::Auto) {
            return usage("--without auto does not go with --calib-method auto");
        }
        Ok(calibrate::Method { calibrator, settings })
    }
}

#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Scheme")]
struct SchemeArgs {
    /// The runtime that the model is for
    #[arg(short, long, value_name = "TARGET", default_value = "ort-cpu", value_parser = super::targets::names())]
    target: String,
    #[command(flatten)]
    types: TypeArgs,
    /// Output SQNR that the result must reach on held-out samples, else exit code 3; operators stay float until it does
    /// (without it: until the outputs reach about 20 dB)
    #[arg(long, value_name = "DB")]
    min_sqnr: Option<f64>,
    /// What the result may lose on held-out samples, in percent, else exit code 3; operators stay float until it loses less.
    /// See --metric; without labels, rows of class scores that change their first class
    #[arg(long, value_name = "PCT", value_parser = percent)]
    max_drop: Option<f64>,
    /// Multiply-accumulate operations, in percent, that may stay float, else exit code 3
    #[arg(long, value_name = "PCT", value_parser = percent)]
    max_float_macs: Option<f64>,
    /// What counts: `speed` keeps float what would not be faster in integers, `size` quantizes whatever can be
    #[arg(long, value_name = "WHAT", default_value = "speed")]
    prefer: Prefer,
    /// Work that goes into accuracy: `fast` chooses ranges alone, `best` uses more samples than `balanced`, tries AdaRound
    /// beside GPTQ and refines biases
    #[arg(long, value_name = "EFFORT", default_value = "balanced")]
    effort: Level,
    /// What to leave out of it
    #[arg(long, value_name = "METHOD,...", value_delimiter = ',', value_parser = improvements(), ignore_case = true)]
    without: Vec<Improvement>,
    /// Where weights go: into the model file, or into a file beside it
    #[arg(long, value_name = "WHERE", default_value = "auto")]
    external_data: Where,
}

fn improvements() -> impl clap::builder::TypedValueParser<Value = Improvement> {
    let value = |(_, name, summary): (Improvement, &'static str, &'static str)| {
        clap::builder::PossibleValue::new(name).alias(name.replace('-', "_")).help(summary)
    };
    let names = clap::builder::PossibleValuesParser::new(Improvement::ALL.map(value));
    clap::builder::TypedValueParser::try_map(names, |name| Improvement::named(&name))
}

fn percent(text: &str) -> std::result::Result<f64, String> {
    match text.trim_end_matches('%').parse::<f64>() {
        Ok(x) if (0.0..=100.0).contains(&x) => Ok(x),
        _ => Err("a number from 0 to 100".into()),
    }
}

impl SchemeArgs {
    /// Whether outputs have to be compared.
    fn is_judged(&self) -> bool {
        self.min_sqnr.is_some() || self.max_drop.is_some()
    }

    /// What was asked for and the result does not keep, a sentence each.
    fn unmet(&self, report: &Report) -> Vec<String> {
        let mut out = Vec::new();
        if let Some(floor) = self.min_sqnr.filter(|_| !report.is_floor_met) {
            out.push(format!("the outputs do not reach {floor} dB SQNR (--min-sqnr)"));
        }
        match (self.max_drop, drop_of(report)) {
            (Some(most), Some(drop)) if drop * 100.0 > most => {
                let lost = format!("{:.2} %", drop * 100.0);
                out.push(match &report.judged {
                    None => format!("{lost} of the rows have another first class (--max-drop {most})"),
                    Some(j) => format!("{} is worse by {lost} on held-out samples (--max-drop {most})", j.metric),
                });
            }
            (Some(_), None) => out.push("no output looks like class scores (--max-drop)".into()),
            _ => {}
        }
        let (all, integer) = (report.macs, report.integer_macs);
        let float = if all == 0 { 0.0 } else { (all - integer.min(all)) as f64 * 100.0 / all as f64 };
        if let Some(most) = self.max_float_macs.filter(|&most| float > most) {
            out.push(format!("{float:.1} % of the multiply-accumulate operations are float (--max-float-macs {most})"));
        }
        out
    }
}

/// Types and their forms; the target says which go with it.
#[derive(Debug, clap::Args)]
#[group(skip)]
struct TypeArgs {
    /// Type of activations: uint8, int8, uint16, int16, float8e4m3fn [default: the target's]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    activation_type: Option<DType>,
    /// Type of weights: int8, uint8, int16, uint16, float8e4m3fn; for `--mode weight-only` int8 to int2 and uint8 to uint2
    /// [default: the target's, or int8]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    weight_type: Option<DType>,
    /// Zero points of activations in the middle of the type [default: the target's]
    #[arg(long, visible_alias = "activation-symmetric", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    symmetric_activations: Option<bool>,
    /// Zero points of weights in the middle of the type [default: the target's]
    #[arg(long, visible_alias = "weight-symmetric", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    symmetric_weights: Option<bool>,
    /// A scale for each output channel of a weight [default: the target's]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    per_channel: Option<bool>,
    /// Weights of 7 bits, for CPUs whose 8-bit products saturate [default: the target's]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    reduce_range: Option<bool>,
    /// Biases stay float [default: the target's]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    float_bias: Option<bool>,
    /// ONNX Runtime's own QuantizeLinear and DequantizeLinear (com.microsoft), which have 16 bits below opset 21
    #[arg(long, visible_alias = "use-qdq-contrib-ops")]
    qdq_contrib_ops: bool,
    /// Graph inputs and outputs hold integers where they can; the summary gives their scales
    #[arg(long)]
    quantize_io: bool,
    #[command(flatten)]
    prune: prune::Args,
    /// Types, ranges or scales of single tensors: a JSON file in the form of ONNX Runtime's quantizer
    #[arg(long, value_name = "FILE.json")]
    tensor_quant_overrides: Option<PathBuf>,
}

/// ONNX's name of a type, or what other tools call it.
fn dtype(text: &str) -> std::result::Result<DType, String> {
    let name = text.to_ascii_lowercase();
    let name = match name.as_str() {
        "qint8" | "s8" | "i8" => "int8",
        "quint8" | "u8" => "uint8",
        "qint16" | "s16" | "i16" => "int16",
        "quint16" | "u16" => "uint16",
        "fp8" | "float8" | "qfloat8e4m3fn" | "fp8e4m3" | "f8e4m3fn" => "float8e4m3fn",
        other => other,
    };
    DType::from_name(name).ok_or_else(|| {
        "expected a type of ONNX: int8, uint8, int16, uint16, float8e4m3fn, int4, uint4, int2, uint2".into()
    })
}

impl TypeArgs {
    /// What of them concerns static quantization.
    fn choices(&self, mode: &Mode, form: Form) -> Choices {
        Choices {
            activation: self.activation_type,
            weight: self.weight_type.filter(|_| *mode == Mode::Static),
            symmetric_activations: self.symmetric_activations,
            symmetric_weights: self.symmetric_weights,
            per_channel: self.per_channel,
            reduce_range: self.reduce_range,
            float_bias: self.float_bias,
            own_domain: self.qdq_contrib_ops,
            form,
        }
    }
}

/// How much work goes into accuracy.
#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
enum Level {
    Fast,
    Balanced,
    Best,
}

/// What a plan is chosen for.
#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
enum Prefer {
    Speed,
    Size,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Where {
    /// Beside it above 1.5 GB, or when the input's are
    Auto,
    /// Beside it
    Always,
    /// Into the model file
    Never,
}

fn methods() -> clap::builder::PossibleValuesParser {
    let value = |c: &&'static calibrate::Calibrator| {
        // With underscores and without separators, too, as other tools write them.
        let spelled = c.aliases.iter().chain([&c.name]).flat_map(|a| [a.replace('-', "_"), a.replace('-', "")]);
        let aliases: Vec<String> = c.aliases.iter().map(|a| (*a).to_owned()).chain(spelled).collect();
        clap::builder::PossibleValue::new(c.name).aliases(aliases).help(c.summary)
    };
    calibrate::ALL.iter().map(value).collect::<Vec<_>>().into()
}

fn percentile(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if p > 0.0 && p <= 100.0 => Ok(p),
        _ => Err("expected a number above 0, at most 100".into()),
    }
}

fn fraction(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(f) if (0.0..1.0).contains(&f) => Ok(f),
        _ => Err("expected a number from 0 to 1 (not included)".into()),
    }
}

pub(super) fn run(args: Args, session: &mut Session) -> Result<ExitCode> {
    let Some(input) = args.input else { return usage("no model was given") };
    let selection = Selection::new(&args.select)?;
    let mut dump = Dump::new(&args.dump)?;
    let has_floor = args.scheme.min_sqnr.is_some();
    let mode = args.weights.mode(args.scheme.types.weight_type, has_floor, &args.scheme.without)?;
    let mut base = Config::new(&args.scheme.target)?;
    if args.scheme.prefer == Prefer::Size {
        base.target.cost = None;
    }
    // Refused before anything is read: what a target does not run is known by its table.
    base.scheme = Scheme::new(&base.target, &args.scheme.types.choices(&mode, args.weights.form()))
        .map_err(|e| Usage(format!("{e:#}")))?;
    base.quantize_io = args.scheme.types.quantize_io;
    base.prune = args.scheme.types.prune.choice();
    if let Some(path) = &args.scheme.types.tensor_quant_overrides {
        let what = || format!("cannot read '{}'", path.display());
        let text = std::fs::read_to_string(path).with_context(what)?;
        base.overrides = overrides::parse(&text).with_context(what)?;
    }
    let model = session.read(&input)?;
    base.regions = selection.regions(&model)?;
    dump.see("load", &model);
    quant::refuse_unsuitable(&model).with_context(|| format!("cannot quantize '{}'", input.display()))?;
    let output = args.output.unwrap_or_else(|| default_output(&input, &weights::extension(&mode)));
    if !args.dry_run {
        check_output(&input, &output)?;
    }

    args.labels.check()?;
    let is_judged = args.scheme.is_judged() || args.labels.is_given();
    if mode != Mode::Static && args.calib.data.calib.is_empty() && is_judged {
        return usage("--min-sqnr, --max-drop or --labels needs data to measure with: --calib DATA");
    }
    if args.calib.data.calib.is_empty() && matches!(mode, Mode::WeightOnly(o) if o.algorithm.needs_data()) {
        return usage("this --algorithm needs data: give --calib DATA, or choose rtn or hqq, which need none");
    }
    if args.calib.data.calib.is_empty() && base.prune.is_some_and(|p| p.by == By::Gradient) {
        return usage("--prune-by gradient needs samples: give --calib DATA");
    }
    let pairs = args.calib.carried(&model)?;
    let cache = match &args.calib.calib_cache {
        Some(_) if mode != Mode::Static => return usage("--calib-cache is for static quantization only"),
        Some(path) => Some(super::calibrate::read_cache(path)?),
        None => None,
    };
    let is_without_data = cache.is_some() && args.calib.data.calib.is_empty();
    if is_without_data && (is_judged || base.prune.is_some()) {
        return usage("--min-sqnr, --max-drop, --labels or --sparsity needs samples: give --calib as well");
    }
    let shapes = &args.calib.data.input_shape;
    let samples = Arc::new(if is_without_data {
        session.data_for_shapes(&["random".into()], &model, shapes)?
    } else if mode != Mode::Static && args.calib.data.calib.is_empty() {
        Samples::none()
    } else {
        let paths = data_paths(args.calib.data.calib.clone(), &input, session)?;
        session.data_with(&paths, &model, shapes, args.calib.data.image.options(), &pairs)?
    });
    let all = carry(&samples, &model, &pairs, session)?;
    let split = split_samples(&all, args.calib.holdout, args.calib.data.calib_samples.get(), session)?;
    let labels = args.labels.read(&*all, &split)?;
    let without: BTreeSet<Improvement> = args.scheme.without.iter().copied().collect();
    let mut method = args.calib.data.method(&base, &without)?;
    if let (Some(cache), Some(path)) = (&cache, &args.calib.calib_cache) {
        let asked = args.calib.data.calib_method.is_some().then_some(method.calibrator);
        super::calibrate::check_cache(cache, &input, asked, (!is_without_data).then_some((&*samples, &split)))
            .with_context(|| format!("cannot use '{}'", path.display()))?;
        method = cache.method;
    }
    session.flush();

    let excluding = selection.clone();
    let config = Config {
        mode,
        method,
        cache,
        exclude: Box::new(move |label, op_type| excluding.excludes(label, op_type)),
        min_sqnr_db: args.scheme.min_sqnr.unwrap_or(base.min_sqnr_db),
        max_drop: args.scheme.max_drop.map(|percent| percent / 100.0),
        effort: match args.scheme.effort {
            Level::Fast => Effort::Fast,
            Level::Balanced => Effort::Balanced,
            Level::Best => Effort::Best,
        },
        without,
        threads: session.threads,
        ..base
    };
    let mut summary = Summary::new(&input, &output, &config);
    if args.dry_run && mode == Mode::Static {
        return plan(model, &config, &selection, &split, &mut dump, session);
    }
    check_selection(&selection, &model, &config)?;
    // Threads of a pool of their own run fewer samples at a time.
    let (pool, n) = match args.calib.max_memory {
        Some(limit) => {
            let n = samples_at_a_time(&model, &config, &*samples, limit)?;
            (Some(rayon::ThreadPoolBuilder::new().num_threads(n).build().context("cannot start threads")?), n)
        }
        None => (None, session.threads),
    };
    let config = Config { threads: n, ..config };
    let mut see = |stage: &str, m: &Model| dump.see(stage, m);
    let bar = session.progress();
    let result = match &config.cache {
        Some(cache) if is_without_data => {
            let sample = samples.sample(0)?;
            quant::quantize_without_data(model, &config, cache, &sample, &mut see, &mut session.sink)
        }
        _ => {
            let (calibration, holdout) = (&split.calibration, &split.held_out);
            let data = quant::Data { calibration, holdout, is_shared: split.is_shared, labels: labels.as_ref() };
            let sink = &mut session.sink;
            let run = || quant::quantize(model, &config, &data, &bar, &mut see, sink);
            let result = match pool {
                Some(pool) => pool.install(run),
                None => run(),
            };
            samples.report(&mut session.sink);
            result
        }
    };
    session.flush();
    let done = result.with_context(|| format!("cannot quantize '{}'", input.display()))?;

    let external = match args.scheme.external_data {
        Where::Auto => External::Auto,
        Where::Always => External::Always,
        Where::Never => External::Never,
    };
    if args.dry_run {
        super::session::print(&weights::lines(&done.report))?;
        return Ok(ExitCode::SUCCESS);
    }
    crate::onnx::write(&done.model, &output, &WriteOptions { external, inputs: vec![input.clone()] })?;
    summary.finish(&done, bar.stages(), session)?;
    // A floor that nobody asked for is an aim, not a gate.
    let unmet = args.scheme.unmet(&done.report);
    if dump.is_wanted() {
        dump.print()?;
        session.say(&summary.table());
    } else if session.json {
        print_json(&summary.json(session))?;
    } else {
        let text = match (session.verbose, mode) {
            (0, _) => String::new(),
            (_, Mode::Static) => done.plan.print(&done.prepared),
            _ => weights::lines(&done.report),
        };
        if !session.quiet {
            super::session::print(&format!("{}{text}", summary.table()))?;
        }
    }
    for what in &unmet {
        session.say(&format!("{what}; the best model that was found is written"));
    }
    if done.report.saves_nothing {
        session.say(&format!(
            "nothing was quantized: no choice of operators that keeps {} dB is predicted to be faster in integers on {}, so \
             the float model is written (`--prefer size` quantizes it all the same)",
            config.min_sqnr_db, args.scheme.target
        ));
    }
    Ok(ExitCode::from(if unmet.is_empty() && !done.report.saves_nothing { 0 } else { 3 }))
}

/// As many samples as fit into the memory.
fn samples_at_a_time(model: &Model, config: &Config, data: &dyn Dataset, limit: u64) -> Result<usize> {
    let need = quant::memory_need(model.clone(), config, &data.sample(0)?, &mut Sink::default())?;
    need.samples_within(limit, config.threads).map_or_else(
        || {
            let least = need.at(1).div_ceil(1_000_000);
            Err(anyhow!("the run needs about {least} MB, more than --max-memory allows"))
                .help(|| format!("--max-memory {least}M is the least that works"))
        },
        Ok,
    )
}

/// Prints what would be done.
fn plan(
    mut model: Model,
    config: &Config,
    selection: &Selection,
    split: &Split,
    dump: &mut Dump,
    session: &mut Session,
) -> Result<ExitCode> {
    check_selection(selection, &model, config)?;
    prepare(&mut model, config, &mut |stage, m| dump.see(stage, m), &mut session.sink)?;
    let bar = session.progress();
    let plan = quant::plan_for(&model, config, &split.calibration, &bar, &mut session.sink)?;
    drop(bar);
    session.flush();
    if dump.is_wanted() {
        dump.print()?;
    } else if session.json {
        print_json(&super::summary::plan_json(&plan, &model))?;
    } else {
        super::session::print(&plan.print(&model))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails when a pattern of the user's names nothing, neither in the file nor in what the passes make of it (which is
/// where the names of a plan come from).
fn check_selection(selection: &Selection, model: &Model, config: &Config) -> Result<()> {
    if selection.check(&[model]).is_ok() {
        return Ok(());
    }
    let mut prepared = model.clone();
    prepare(&mut prepared, config, &mut |_, _| {}, &mut Sink::default())?;
    selection.check(&[model, &prepared])
}

/// What the model goes through before it is planned.
pub(super) fn prepare(
    model: &mut Model,
    config: &Config,
    observer: &mut dyn FnMut(&str, &Model),
    sink: &mut Sink,
) -> Result<()> {
    let mut ctx = crate::passes::Ctx::new(sink).opset_floor(config.opset_floor());
    crate::passes::manager::run(model, &crate::passes::PREPARE, &mut ctx, observer)?;
    crate::infer::infer(model, sink)?;
    observer("prepare", model);
    Ok(())
}

/// `model.onnx` becomes `model.int8.onnx`, beside it.
fn default_output(input: &Path, kind: &str) -> PathBuf {
    input.with_extension(format!("{kind}.onnx"))
}

/// Fails before the work, not after it, when the output cannot be written.
pub(super) fn check_output(input: &Path, output: &Path) -> Result<()> {
    let folder = match output.parent() {
        Some(p) if p.as_os_str().is_empty() => Path::new("."),
        Some(p) => p,
        None => bail!("cannot write '{}': it is no file", output.display()),
    };
    ensure!(!output.is_dir(), "cannot write '{}': it is a folder", output.display());
    if let (Ok(i), Ok(o)) = (input.canonicalize(), output.canonicalize())
        && i == o
    {
        return Err(anyhow!("the output '{}' is the input, which is never overwritten", output.display()))
            .help(|| "give another output path".into());
    }
    ensure!(folder.is_dir(), "cannot write '{}': there is no folder '{}'", output.display(), folder.display());
    tempfile::Builder::new()
        .prefix(".onnx-quant-")
        .tempfile_in(folder)
        .with_context(|| format!("cannot write '{}'", output.display()))?;
    Ok(())
}

/// The data that was given, or test data beside the model.
pub(super) fn data_paths(given: Vec<PathBuf>, input: &Path, session: &Session) -> Result<Vec<PathBuf>> {
    if !given.is_empty() {
        return Ok(given);
    }
    let folder = input.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_set = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("test_data_set");
    let has_sets = std::fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|e| is_set(&e.file_name()) && e.path().join("input_0.pb").is_file())
    });
    if has_sets {
        session.say(&format!("calibrating with the test_data_set folders beside the model, in '{}'", folder.display()));
        return Ok(vec![folder.to_owned()]);
    }
    let e: Result<_> = usage("no calibration data was given");
    e.help(|| {
        "give samples of what the model will see: --calib DATA (`--calib random` only shows that it works); \
         --mode weight-only needs none"
            .into()
    })
}

/// Splits the samples and says so where the split is not what one would expect.
pub(super) fn split_samples(
    samples: &Arc<dyn Dataset>,
    holdout: f64,
    limit: usize,
    session: &mut Session,
) -> Result<Split> {
    if samples.is_empty() {
        let none = Subset::new(Arc::clone(samples), Vec::new());
        return Ok(Split { calibration: none.clone(), held_out: none, is_shared: false });
    }
    let split = split(samples, holdout, Some(limit))?;
    if split.is_shared {
        session.sink.warn(
            "no-held-out-samples",
            Location::default(),
            "the result is measured on the calibration samples themselves: it will look better than it is",
        );
    }
    if samples.len() > limit {
        let message = format!("{limit} of {} samples are used, spread evenly", samples.len());
        session.sink.note("calib-samples", Location::default(), message);
    }
    Ok(split)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_paths() {
        assert_eq!(default_output(Path::new("a/resnet50.onnx"), "int8"), Path::new("a/resnet50.int8.onnx"));
        assert_eq!(default_output(Path::new("v1.2.onnx"), "int8"), Path::new("v1.2.int8.onnx"));
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("a.onnx"), dir.path().join("b.onnx"));
        std::fs::write(&input, "x").unwrap();
        check_output(&input, &output).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
        let message = |o: &Path| format!("{:#}", check_output(&input, o).unwrap_err());
        assert!(message(&dir.path().join(".").join("a.onnx")).contains("is the input"));
        assert!(message(&dir.path().join("none/b.onnx")).contains("there is no folder"));
        assert!(message(dir.path()).contains("is a folder"));
    }

    #[test]
    fn sizes_and_ratios() {
        assert_eq!(bytes("800M"), Ok(800_000_000));
        assert_eq!(bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(bytes("12"), Ok(12));
        assert!(bytes("x").is_err() && bytes("5X").is_err() && bytes("").is_err());
        assert_eq!(ratio("1/255"), Ok(1.0 / 255.0));
        assert!(ratio("0").is_err() && ratio("1/0").is_err() && ratio("a").is_err());
        assert_eq!(resize("256"), Ok(Resize::Short(256)));
        assert_eq!(resize("224x320"), Ok(Resize::Exact(224, 320)));
        assert!(resize("0").is_err() && crop("2x").is_err());
    }

    #[test]
    fn fractions() {
        assert_eq!(fraction("0.25"), Ok(0.25));
        assert!(fraction("1").is_err() && fraction("-0.1").is_err() && fraction("x").is_err());
    }
}
