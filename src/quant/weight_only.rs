//! Weight-only quantization: stored integers in blocks, activations stay float. For models whose time goes into reading
//! weights, such as language models.
//!
//! Needs data only for GPTQ and AWQ. Other weights are made when they are written (see [`super::lazy`]), so a model of any size takes the memory
//! of its largest weight.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::algo::awq;
use super::algo::block_gptq::{gptq, importance};
use super::algo::blocks::{Blocked, Method, Scheme, Weight, quantize};
use super::algo::compensate::{DAMPING, Factor, Order};
use super::algo::moments::{self, Gathered, Limits, Moments};
use super::config::Config;
use super::lazy::{Form, Job, Origin};
use super::measure::{Reference, worst_sqnr};
use super::mixed::{self, Candidate};
use super::plan::{NodePlace, Place, QuantPlan};
use super::prune;
use super::realize::weight_only::{Item, Matrix, Use, gathers_rows, gemm_obstacle, matrix, realize};
use super::report::{Kept, Report, StoredWeight};
use super::self_check::SelfCheck;
use super::{Data, Progress, Quantized, solve};
use crate::diag::Sink;
use crate::error::{Location, Result, bail, ensure};
use crate::ir::{GraphId, Model, NodeId, TensorRef};
use crate::ops::{QuantRule, WeightAxis, lookup};
use crate::passes;
use crate::tensor::DType;

/// Where the integers of a product stand in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Blocked `DequantizeLinear`, ONNX's own operators only.
    Qdq,
    /// `MatMulNBits` and `GatherBlockQuantized` of ONNX Runtime.
    NBits,
}

/// How scales and integers are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Round to nearest, with the scale of the least squared error.
    Rtn,
    /// Half-quadratic ([`super::algo::hqq`]).
    Hqq,
    /// Error compensation ([`super::algo::block_gptq`]); needs data.
    Gptq,
    /// Activation-aware scaling ([`super::algo::awq`]); needs data.
    Awq,
}

impl Algorithm {
    /// Whether it looks at what flows through the model.
    #[must_use]
    pub fn needs_data(self) -> bool {
        matches!(self, Algorithm::Gptq | Algorithm::Awq)
    }
}

/// How weights are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// int8, uint8, int4, uint4, int2 or uint2.
    pub dtype: DType,
    /// A power of two from 16 to 256.
    pub block: usize,
    /// How scales and integers are chosen.
    pub algorithm: Algorithm,
    /// The form that is written.
    pub output: Output,
    /// Percent of the products' elements that may take 8 bits, where fewer hurt most ([`super::mixed`]).
    pub wide_percent: u8,
    /// Whether only as many of them take 8 bits as the floor of the configuration needs on held-out samples.
    pub is_least_wide: bool,
    /// Whether the zero points of products of uint4 and uint2 are floats, which `MatMulNBits` alone has.
    pub float_zeros: bool,
    /// Whether [`Algorithm::Rtn`] clips a block where that lowers the squared error; else scales cover it.
    pub clips: bool,
}

impl Options {
    /// Options for a type, with its usual block size.
    #[must_use]
    pub fn new(dtype: DType) -> Self {
        let block = if dtype.bits() == 8 { 128 } else { 32 };
        Options {
            dtype,
            block,
            algorithm: Algorithm::Rtn,
            output: Output::Qdq,
            wide_percent: 0,
            is_least_wide: false,
            float_zeros: false,
            clips: true,
        }
    }

    /// How what the algorithm leaves is rounded.
    fn method(&self) -> Method {
        match self.algorithm {
            Algorithm::Hqq => Method::Hqq,
            Algorithm::Rtn if !self.clips => Method::Covering,
            _ => Method::Rtn,
        }
    }

    fn check(&self) -> Result<()> {
        use DType::{I2, I4, I8, U2, U4, U8};
        ensure!(
            matches!(self.dtype, I8 | U8 | I4 | U4 | I2 | U2),
            "weights cannot be stored as {}; int8, uint8, int4, uint4, int2 and uint2 can",
            self.dtype
        );
        ensure!(
            self.block.is_power_of_two() && (16..=256).contains(&self.block),
            "block size {} is not a power of two from 16 to 256, which runtimes have kernels for",
            self.block
        );
        ensure!(self.wide_percent <= 100, "{} percent of the weights cannot take 8 bits", self.wide_percent);
        ensure!(
            self.wide_percent == 0 || self.dtype.bits() < 8,
            "weights of {} have 8 bits already, so none can take more",
            self.dtype
        );
        ensure!(
            !self.float_zeros || self.output == Output::NBits && matches!(self.dtype, U4 | U2),
            "zero points can be floats in MatMulNBits with weights of uint4 or uint2 only"
        );
        Ok(())
    }

    /// How the weights of products with so many outputs are stored, most of them.
    fn narrow(&self, n: usize) -> Scheme {
        // ONNX Runtime (1.32) turns a matrix of 2 bits to fuse it, and takes every column for a whole number of bytes.
        let dtype = match self.dtype {
            DType::I2 if self.output == Output::Qdq && !n.is_multiple_of(4) => DType::I4,
            DType::U2 if self.output == Output::Qdq && !n.is_multiple_of(4) => DType::U4,
            other => other,
        };
        Scheme { float_zeros: self.float_zeros, ..Scheme::new(dtype, self.block) }
    }

    /// How the weights are stored that lose too much otherwise.
    fn wide(&self) -> Scheme {
        let is_signed = matches!(self.dtype, DType::I8 | DType::I4 | DType::I2);
        // With 8 bits ONNX Runtime (1.32) refuses zero points that are floats.
        Scheme::new(if is_signed { DType::I8 } else { DType::U8 }, self.block)
    }

    /// The opset that the form needs.
    fn opset(&self) -> i64 {
        match (self.output, self.dtype.bits()) {
            (Output::NBits, _) => 0,
            (Output::Qdq, 2) => 25,
            (Output::Qdq, _) => 21,
        }
    }

    /// How a product's weight is stored.
    fn product(&self) -> Form {
        if self.output == Output::NBits { Form::Packed } else { Form::Columns }
    }

    /// How a table is stored: 2 bits are too few for what is looked up, and no operator of ONNX gathers 4.
    fn table(&self, width: usize) -> (Scheme, Form) {
        if self.output == Output::Qdq {
            return (Scheme::new(DType::I8, width.max(1)), Form::Rows);
        }
        let dtype = match (self.dtype, width % 2) {
            (DType::I8 | DType::U8, _) => self.dtype,
            (_, 1) => DType::I8,
            (DType::U4 | DType::U2, _) => DType::U4,
            _ => DType::I4,
        };
        (Scheme::new(dtype, self.block), Form::Table)
    }
}

/// Samples that statistics are gathered from.
const MAX_SAMPLES: usize = 128;

/// What is done with a node.
pub(super) enum Choice {
    /// A product with a stored matrix; whether that is `[K, N]`.
    Product(Matrix, bool),
    /// Rows of a stored table.
    Lookup(Matrix),
    /// Stays as it is, without a word where it has no weight.
    Float(Option<(&'static str, String)>),
}

/// Quantizes the weights of a model. Data, if there is any, serves to measure the result.
///
/// # Errors
/// The options are not possible, a conversion of the model fails, or it does not run on the samples.
pub fn run(
    mut model: Model,
    options: Options,
    config: &Config,
    data: &Data<'_>,
    progress: &dyn Progress,
    observer: &mut dyn FnMut(&str, &Model),
    sink: &mut Sink,
) -> Result<Quantized> {
    options.check()?;
    let mut report = Report { before: super::report::Side::of(&model), is_floor_met: true, ..Report::default() };
    let self_check = SelfCheck::of(&model);
    super::close_inputs(&mut model, sink);
    let floor = config.target.opset.max(options.opset());
    let mut ctx = passes::Ctx::new(sink).opset_floor(floor).keep_transposed(true);
    passes::manager::run(&mut model, &passes::PREPARE, &mut ctx, observer)?;
    crate::infer::infer(&mut model, sink)?;
    observer("prepare", &model);

    // What pruning costs is part of the error.
    let float = model.clone();
    if let Some(how) = config.prune {
        prune::apply(&mut model, how, data.calibration, config.threads, &mut report)?;
    }
    let chosen = choices(&model, config, options)?;
    ensure!(
        !data.calibration.is_empty() || !options.algorithm.needs_data(),
        "this algorithm needs data: give samples (--calib DATA), or choose rtn or hqq, which need none"
    );
    let second = if options.algorithm.needs_data() || options.wide_percent > 0 && !data.calibration.is_empty() {
        progress.begin("gathering statistics", 1);
        let found = Second::gather(&model, &chosen, data, config.threads)?;
        progress.end();
        Some(found)
    } else {
        None
    };
    let work = Work::new((&float, &model), &chosen, options, second.as_ref())?;
    let mut jobs = Jobs::new();
    let wide = work.wide(config, data, &mut jobs, &mut report)?;
    let items = work.plan(&wide, &mut jobs, &mut report, sink)?;
    let emitted = work.emit(&items, sink)?;
    self_check.verify(&emitted, config, sink)?;
    measure(&float, &emitted, config, data, progress, &mut report)?;
    report.after = super::report::Side::of(&emitted);
    observer("quantize", &emitted);
    Ok(Quantized { model: emitted, prepared: model, plan: QuantPlan::default(), report })
}

/// The error of the outputs on held-out samples, if there are any.
pub(super) fn measure(
    model: &Model,
    emitted: &Model,
    config: &Config,
    data: &Data<'_>,
    progress: &dyn Progress,
    report: &mut Report,
) -> Result<()> {
    if data.holdout.is_empty() {
        return Ok(());
    }
    progress.begin("measuring the result", 2);
    let (float, quantized) = (solve::compile(model)?, solve::compile(emitted)?);
    let reference = Reference::new(&float, data.holdout, super::MAX_HOLDOUT, config.threads)?;
    progress.advance(1);
    report.outputs = reference.compare(&quantized, usize::MAX, config.threads)?;
    progress.end();
    if let Some(o) = report.outputs.iter().find(|o| o.is_broken) {
        bail!("the quantized model's output \"{}\" is not finite or has another rank", o.name);
    }
    let judging = super::labels::Judging::of(&float, data, config.threads)?;
    report.judged = judging.map(|j| j.finish(&quantized, config.threads)).transpose()?;
    report.is_floor_met = worst_sqnr(&report.outputs) >= config.min_sqnr_db;
    report.n_calibration = data.calibration.len();
    report.n_holdout = reference.len();
    report.holdout_is_calibration = data.is_shared;
    Ok(())
}

/// What can be done with each node.
fn choices(model: &Model, config: &Config, options: Options) -> Result<Vec<(NodePlace, Choice)>> {
    let excluded = config.excluded(model)?;
    let mut chosen = Vec::new();
    for id in model.graph_ids() {
        for n in model.graph(id).order()? {
            let choice = match excluded.get(&(id, n)) {
                Some((code, why)) => Choice::Float(Some((code, why.clone()))),
                None => choose(model, id, n, 8 * options.block),
            };
            chosen.push(((id, n), choice));
        }
    }
    Ok(chosen)
}

/// What data says of the inputs of products.
struct Second {
    gathered: Gathered,
    threads: usize,
}

impl Second {
    fn gather(model: &Model, chosen: &[(NodePlace, Choice)], data: &Data<'_>, threads: usize) -> Result<Self> {
        let products = chosen.iter().filter(|(_, c)| matches!(c, Choice::Product(..))).map(|(p, _)| *p);
        let needs = moments::needs_of(model, products, model);
        let limits = Limits { samples: MAX_SAMPLES, ..Limits::default() };
        let gathered = moments::gather(model, &needs, data.calibration, limits, threads)?;
        Ok(Second { gathered, threads })
    }

    fn of(&self, place: NodePlace, k: usize) -> Option<&Moments> {
        self.gathered.of(place).and_then(<[_]>::first).filter(|m| m.k == k)
    }

    /// The integers of one weight.
    fn gptq(
        &self,
        place: NodePlace,
        stored: &TensorRef,
        w: (usize, usize, bool),
        scheme: Scheme,
    ) -> Result<Option<Blocked>> {
        let (n, k, is_kn) = w;
        let Some(m) = self.of(place, k) else { return Ok(None) };
        let tensor = stored.read()?;
        let weight = Weight { data: tensor.slice()?, n, k, is_kn };
        let factor = m.is_full().then(|| Factor::new(self.threads, &m.h, k, Order::Energy, DAMPING)).transpose()?;
        gptq(&weight, scheme, m, factor.as_ref(), self.threads).map(Some)
    }

    /// The factors of the input channels, for each input that products read.
    fn awq(&self, chosen: &[(NodePlace, Choice)], options: Options) -> Result<BTreeMap<usize, Arc<Vec<f32>>>> {
        let mut groups: BTreeMap<usize, Vec<(NodePlace, &Matrix, bool)>> = BTreeMap::new();
        for (place, c) in chosen {
            if let (Choice::Product(m, is_kn), Some(source)) = (c, self.gathered.source(*place)) {
                groups.entry(source).or_default().push((*place, m, *is_kn));
            }
        }
        let mut found = BTreeMap::new();
        for (source, members) in groups {
            let tensors = members.iter().map(|(_, m, _)| m.tensor.read()).collect::<Result<Vec<_>>>()?;
            let mut weights = Vec::new();
            for (t, (_, m, is_kn)) in tensors.iter().zip(&members) {
                let (n, k) = sides(m, *is_kn);
                weights.push(Weight { data: t.slice()?, n, k, is_kn: *is_kn });
            }
            let Some(m) = members.first().zip(weights.first()).and_then(|(f, w)| self.of(f.0, w.k)) else { continue };
            // For the narrow type, also where some of them take 8 bits: readers of one tensor share its factors.
            let scheme = Scheme { float_zeros: options.float_zeros, ..Scheme::new(options.dtype, options.block) };
            if let Some(f) = awq::factors(&weights, scheme, m, self.threads)? {
                found.insert(source, Arc::new(f));
            }
        }
        Ok(found)
    }
}

/// Output and input channels.
fn sides(m: &Matrix, is_kn: bool) -> (usize, usize) {
    let (rows, columns) = (m.tensor.shape()[0], m.tensor.shape()[1]);
    if is_kn { (columns, rows) } else { (rows, columns) }
}

/// A product's weight with its layout.
type Stored = (Place, bool);

/// Where the weights of some nodes come from, with everything that is chosen once.
struct Work<'a> {
    /// Before it was pruned.
    float: &'a Model,
    model: &'a Model,
    chosen: &'a [(NodePlace, Choice)],
    options: Options,
    second: Option<&'a Second>,
    tied: Vec<Place>,
    /// AWQ's factors, by input.
    scaled: BTreeMap<usize, Arc<Vec<f32>>>,
}

/// The jobs of weights, with their number of bits: a weight that is planned again is not quantized again.
type Jobs = BTreeMap<(Place, bool, Kind, Option<usize>, usize), Arc<Job>>;

impl<'a> Work<'a> {
    fn new(
        (float, model): (&'a Model, &'a Model),
        chosen: &'a [(NodePlace, Choice)],
        options: Options,
        second: Option<&'a Second>,
    ) -> Result<Self> {
        let scaled = match second.filter(|_| options.algorithm == Algorithm::Awq) {
            Some(s) => s.awq(chosen, options)?,
            None => BTreeMap::new(),
        };
        Ok(Work { float, model, chosen, options, second, tied: tied(chosen, options), scaled })
    }

    /// What the data says, where the algorithm looks at it.
    fn data(&self) -> Option<&'a Second> {
        self.second.filter(|_| self.options.algorithm.needs_data())
    }

    /// The weights of products, and what each loses with few bits.
    fn candidates(&self) -> Result<Vec<(Stored, Candidate)>> {
        let mut found: Vec<(Stored, Candidate)> = Vec::new();
        for (place, choice) in self.chosen {
            let Choice::Product(m, is_kn) = choice else { continue };
            let key = (m.root, *is_kn);
            let (n, k) = sides(m, *is_kn);
            let moments = self.second.and_then(|s| s.of(*place, k));
            let known = found.iter().position(|(other, _)| *other == key);
            if known.is_some() && moments.is_none() {
                continue;
            }
            let tensor = m.tensor.read()?;
            let weight = Weight { data: tensor.slice()?, n, k, is_kn: *is_kn };
            let energy = moments.filter(|_| self.options.algorithm.needs_data()).map(importance);
            let b = quantize(&weight, self.options.narrow(n), self.options.method(), energy.as_deref())?;
            let loss = mixed::loss(&weight, &b, moments, self.second.map_or(1, |s| s.threads));
            match known {
                // A weight that several products read hurts each of them.
                Some(i) => found[i].1.loss += loss,
                None => found.push((key, Candidate { len: n * k, loss })),
            }
        }
        Ok(found)
    }

    /// The weights that take 8 bits: all that may, those that few bits hurt most, or only as many of these as the floor
    /// needs on held-out samples.
    fn wide(&self, config: &Config, data: &Data<'_>, jobs: &mut Jobs, report: &mut Report) -> Result<BTreeSet<Stored>> {
        if self.options.wide_percent == 0 {
            return Ok(BTreeSet::new());
        }
        let found = self.candidates()?;
        let candidates: Vec<Candidate> = found.iter().map(|(_, c)| *c).collect();
        let mut picked = mixed::choose(&candidates, self.options.wide_percent);
        let first = |n: usize, picked: &[usize]| picked[..n].iter().map(|&i| found[i].0).collect::<BTreeSet<Stored>>();
        let is_least = self.options.is_least_wide && !data.holdout.is_empty();
        if is_least {
            let float = solve::compile(self.float)?;
            let reference = Reference::new(&float, data.holdout, super::MAX_HOLDOUT, config.threads)?;
            let mut holds = |n: usize| -> Result<bool> {
                let items = self.plan(&first(n, &picked), jobs, &mut Report::default(), &mut Sink::default())?;
                let emitted = self.emit(&items, &mut Sink::default())?;
                let errors = reference.compare(&solve::compile(&emitted)?, usize::MAX, config.threads)?;
                Ok(worst_sqnr(&errors) >= config.min_sqnr_db)
            };
            picked.truncate(mixed::fewest(picked.len(), &mut holds)?);
        }
        let len = |c: &[Candidate]| c.iter().map(|c| c.len).sum::<usize>();
        let share = picked.iter().map(|&i| candidates[i].len).sum::<usize>() as f64 / len(&candidates).max(1) as f64;
        let name = |i: &usize| self.model.graph(found[*i].0.0.0).value(found[*i].0.0.1).name.as_str();
        let mut names: Vec<&str> = picked.iter().take(4).map(name).collect();
        if picked.len() > names.len() {
            names.push("...");
        }
        report.notes.push(format!(
            "mixed bits: {} of {} weights take 8 bits, {:.1} % of their elements{}{}",
            picked.len(),
            found.len(),
            100.0 * share,
            if names.is_empty() { "" } else { ": " },
            names.join(", ")
        ));
        Ok(first(picked.len(), &picked))
    }

    /// The model in which these are stored.
    fn emit(&self, items: &[Item], sink: &mut Sink) -> Result<Model> {
        let mut emitted = self.model.clone();
        realize(&mut emitted, items)?;
        passes::manager::run(&mut emitted, &passes::CLEANUP, &mut passes::Ctx::new(sink), &mut |_, _| {})?;
        Ok(emitted)
    }

    /// Chooses what is stored how, and says what stays float.
    fn plan(
        &self,
        wide: &BTreeSet<Stored>,
        jobs: &mut Jobs,
        report: &mut Report,
        sink: &mut Sink,
    ) -> Result<Vec<Item>> {
        let options = self.options;
        let mut seen = BTreeSet::new();
        let mut items = Vec::new();
        for (place, choice) in self.chosen {
            let place = *place;
            let node = self.model.graph(place.0).node(place.1);
            let (m, is_kn, usage) = match choice {
                Choice::Product(m, is_kn) => (m, *is_kn, Use::Product),
                Choice::Lookup(m) => (m, false, Use::Lookup),
                Choice::Float(why) => {
                    keep(report, node, why.clone());
                    continue;
                }
            };
            let (n, k) = sides(m, is_kn);
            let is_tied = self.tied.contains(&m.root) && !is_kn;
            let (scheme, form) = match usage {
                Use::Lookup if !is_tied => options.table(k),
                _ if wide.contains(&(m.root, is_kn)) => (options.wide(), options.product()),
                _ => (options.narrow(n), options.product()),
            };
            // What depends on the data differs from node to node even where the weight is the same; a tied table's cannot.
            let data = self.data().filter(|_| usage == Use::Product && !is_tied);
            let source = data.and_then(|s| s.gathered.source(place));
            let kind = if usage == Use::Product || is_tied { Kind::Product } else { Kind::Table };
            let factors = source.and_then(|s| self.scaled.get(&s)).cloned();
            let key = (m.root, is_kn, kind, source, scheme.bits());
            let is_new = seen.insert(key);
            let job = match jobs.get(&key) {
                Some(job) => Arc::clone(job),
                None => {
                    let origin = self.origin(place, (m, is_kn), scheme, factors.as_deref(), source.is_some())?;
                    let name = self.model.graph(m.root.0).value(m.root.1).name.clone();
                    let job = Job::new(name, n, k, scheme, form, origin);
                    jobs.insert(key, Arc::clone(&job));
                    job
                }
            };
            report.weights.push(StoredWeight::of(node, &job, m.tensor.len(), !is_new && form != Form::Columns));
            let factors = factors.map(|f| Arc::new(f.iter().map(|x| 1.0 / x).collect()));
            items.push(Item { place, usage, job, factors });
        }
        notes(self.model, &items, options, sink);
        if options.algorithm == Algorithm::Awq {
            let n = items.iter().filter(|i| i.factors.is_some()).count();
            report.notes.push(format!("AWQ: the data of {n} products is scaled first"));
        }
        Ok(items)
    }

    /// How a weight becomes integers.
    fn origin(
        &self,
        place: NodePlace,
        (m, is_kn): (&Matrix, bool),
        scheme: Scheme,
        factors: Option<&Vec<f32>>,
        has_data: bool,
    ) -> Result<Origin> {
        let (n, k) = sides(m, is_kn);
        let data = self.data();
        if let Some(s) = data.filter(|_| self.options.algorithm == Algorithm::Gptq && has_data)
            && let Some(done) = s.gptq(place, &m.tensor, (n, k, is_kn), scheme)?
        {
            return Ok(Origin::Done(done));
        }
        Ok(Origin::Compute {
            weight: m.tensor.clone(),
            is_kn,
            method: self.options.method(),
            importance: factors.zip(data).and_then(|(f, s)| {
                let energy = importance(s.of(place, k)?);
                Some(energy.iter().zip(f).map(|(e, f)| e / (f * f)).collect())
            }),
            factors: factors.cloned(),
        })
    }
}

/// What a job is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Product,
    Table,
}

/// Tables that are matrices of products as well, and that one form serves both.
fn tied(chosen: &[(NodePlace, Choice)], options: Options) -> Vec<Place> {
    let fits = |m: &Matrix| {
        let k = m.tensor.shape()[1];
        options.output == Output::NBits
            && k.is_multiple_of(options.block)
            && options.dtype.bits() >= 4
            && !options.float_zeros
    };
    let lookups = chosen.iter().filter_map(|(_, c)| if let Choice::Lookup(m) = c { Some(m) } else { None });
    let is_product =
        |place: Place| chosen.iter().any(|(_, c)| matches!(c, Choice::Product(m, is_kn) if m.root == place && !is_kn));
    lookups.filter(|m| fits(m) && is_product(m.root)).map(|m| m.root).collect()
}

/// What the user should know of tables, and of widths that are not what was asked for.
fn notes(model: &Model, items: &[Item], options: Options, sink: &mut Sink) {
    for item in items.iter().filter(|i| i.usage == Use::Product && options.dtype.bits() < i.job.scheme.bits()) {
        if item.job.scheme.bits() == 4 {
            let node = model.graph(item.place.0).node(item.place.1);
            let message = format!(
                "weight \"{}\" has 4 bits: ONNX Runtime misreads columns of 2 bits whose number, {}, is no multiple of 4 \
                 (--format matmulnbits has them)",
                item.job.name, item.job.n
            );
            sink.note("product-bits", node.location(), message);
        }
    }
    for item in items.iter().filter(|i| i.usage == Use::Lookup) {
        let node = model.graph(item.place.0).node(item.place.1);
        let twin = items.iter().find(|o| o.usage == Use::Product && o.job.name == item.job.name);
        if twin.is_some_and(|o| !Arc::ptr_eq(&o.job, &item.job)) {
            let why = match (options.output, options.float_zeros) {
                (Output::Qdq, _) => " (--format matmulnbits stores it once)",
                (Output::NBits, true) => " (with whole zero points it is stored once)",
                (Output::NBits, false) => "",
            };
            let message =
                format!("table \"{}\" is a product's weight as well and is stored for each{why}", item.job.name);
            sink.note("untied-table", node.location(), message);
        }
        if item.job.scheme.bits() != options.dtype.bits() {
            let message = format!(
                "table \"{}\" has {} bits: {}",
                item.job.name,
                item.job.scheme.bits(),
                if options.output == Output::Qdq {
                    "no operator of ONNX gathers fewer (--format matmulnbits has 4)"
                } else {
                    "there is no lookup of what was asked for"
                }
            );
            sink.note("table-bits", Location::value(&item.job.name), message);
        }
    }
}

/// Notes a node that stays float.
pub(super) fn keep(report: &mut Report, node: &crate::ir::Node, why: Option<(&'static str, String)>) {
    if let Some((code, why)) = why {
        let (node, op_type) = (node.label(), node.op_type.clone());
        report.kept.push(Kept { node, op_type, code, why, macs: 0 });
    }
}

/// What can be done with a node whose weight has at least so many elements.
pub(super) fn choose(model: &Model, id: GraphId, n: NodeId, least: usize) -> Choice {
    let g = model.graph(id);
    let node = g.node(n);
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    let float = |code, why: &str| Choice::Float(Some((code, why.to_owned())));
    let Some(def) = lookup(&node.domain, &node.op_type, opset) else {
        return Choice::Float(Some(("unknown-operator", format!("operator {} is not known", node.op_type))));
    };
    if gathers_rows(node) {
        let table = g.input(n, 0).and_then(|v| matrix(model, id, v));
        return match table.filter(|t| t.tensor.shape().len() == 2 && t.tensor.dtype() == DType::F32) {
            Some(t) if t.is_transposed => float("no-weight-only-form", "its table is transposed first"),
            Some(t) if pays(&t, least) => Choice::Lookup(t),
            Some(_) => float("too-small", "its table is too small to gain from it"),
            None => Choice::Float(None),
        };
    }
    let QuantRule::Weighted { weight, axis, .. } = def.quant else { return Choice::Float(None) };
    let Some(m) = g.input(n, weight).and_then(|v| matrix(model, id, v)) else {
        return float("no-constant-weight", "both of its inputs are computed");
    };
    if axis == WeightAxis::Last && g.input(n, 0).is_some_and(|v| matrix(model, id, v).is_some()) {
        return float("no-weight-only-form", "both of its inputs are stored");
    }
    let turned = match axis {
        WeightAxis::Fixed(_) => {
            return float("no-weight-only-form", "no runtime has it with stored integers: each run would widen them");
        }
        WeightAxis::TransB => node.attrs.int("transB").unwrap_or(0) != 0,
        WeightAxis::Last => false,
    };
    if m.tensor.shape().len() != 2 {
        return float("no-weight-only-form", "its weight is no matrix");
    }
    if m.tensor.dtype() != DType::F32 {
        return Choice::Float(Some(("not-float32", format!("its weight is {}", m.tensor.dtype()))));
    }
    if let Some(why) = gemm_obstacle(node) {
        return float("no-weight-only-form", why);
    }
    if !pays(&m, least) {
        return float("too-small", "its weight is too small to gain from it");
    }
    let is_kn = turned == m.is_transposed;
    Choice::Product(m, is_kn)
}

/// Whether a weight becomes smaller: of a few elements, scales and nodes take as much as they save.
fn pays(m: &Matrix, least: usize) -> bool {
    let [rows, columns] = m.tensor.shape() else { return false };
    rows.min(columns) >= &1 && m.tensor.len() >= least
}
