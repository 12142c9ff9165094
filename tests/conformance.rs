//! ONNX's backend tests, all of them: evaluation gives the stored outputs, and inference agrees with evaluation.
//!
//! `testdata/conformance.txt` counts the cases and lists those that fail, and those that are skipped with the reason; a
//! change of either sign that it does not list fails the test. `UPDATE=1` rewrites it, keeping the skips.
//! `CONFORMANCE=conv cargo test --test conformance` runs the cases whose name contains `conv` and prints what differs.

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use common::backend_data::{self, Case};
use common::compare::{self, Tolerance};
use common::sizes::{Sizes, named};
use common::{pb, testdata};
use onnx_quant::diag::Sink;
use onnx_quant::infer::infer;
use onnx_quant::interp::{CompileOptions, NoTap, Program, RunOptions};
use onnx_quant::ir::{Def, Model};
use onnx_quant::ops::Item;
use onnx_quant::tensor::DType;
use rayon::prelude::*;

/// What a case came to; the text of a failure is not recorded, since it may change with every improvement.
type Outcome = Result<(), String>;

#[test]
fn every_backend_test_of_onnx() {
    let filter = std::env::var("CONFORMANCE").ok();
    let mut cases = backend_data::cases();
    if let Some(f) = &filter {
        cases.retain(|c| c.name.contains(f.as_str()));
    }
    // The networks take longest; they go first so that both ends of the work meet.
    cases.sort_by_key(|c| c.kind != "light");
    remember_panics();
    let outcomes: BTreeMap<String, Outcome> =
        cases.par_iter().map(|c| (format!("{}/{}", c.kind, c.name), run(c))).collect();
    if filter.is_some() {
        print(&outcomes);
        return;
    }
    let listed = Listed::read();
    let found = listed.with(&outcomes);
    if let Ok(path) = std::env::var("CONFORMANCE_REPORT") {
        fs::write(path, by_operator(&cases, &outcomes)).unwrap();
    }
    if std::env::var_os("UPDATE").is_some() {
        fs::write(Listed::path(), found).unwrap();
        return;
    }
    let (old, new) = (listed.lines(), found.lines().map(str::to_owned).collect::<BTreeSet<_>>());
    let mut changes = String::new();
    for line in old.difference(&new) {
        writeln!(changes, "- {line}").unwrap();
    }
    for line in new.difference(&old) {
        writeln!(changes, "+ {line}").unwrap();
        let case = line.split(' ').nth(1).unwrap_or_default();
        if let (true, Some(Err(why))) = (line.starts_with("fail"), outcomes.get(case)) {
            writeln!(changes, "    {why}").unwrap();
        }
    }
    assert!(changes.is_empty(), "testdata/conformance.txt is out of date (UPDATE=1 rewrites it):\n{changes}");
}

/// `testdata/conformance.txt`.
struct Listed {
    text: String,
    /// Case to reason.
    skips: BTreeMap<String, String>,
}

const HEAD: &str = "\
# ONNX's backend tests: what passes, and every case that does not.
# Written by `UPDATE=1 cargo test --test conformance`; a reason after `skip` is written by hand.
";

impl Listed {
    fn path() -> std::path::PathBuf {
        testdata("conformance.txt")
    }

    fn read() -> Self {
        let text = fs::read_to_string(Self::path()).unwrap_or_default();
        let skips = text
            .lines()
            .filter_map(|l| l.strip_prefix("skip "))
            .map(|l| l.split_once(": ").unwrap_or_else(|| panic!("skip without a reason: {l}")))
            .map(|(case, reason)| (case.to_owned(), reason.to_owned()))
            .collect();
        Listed { text, skips }
    }

    fn lines(&self) -> BTreeSet<String> {
        self.text.lines().map(str::to_owned).collect()
    }

    /// The file that these outcomes make. A skipped case is run too: one that passes is no skip any more.
    fn with(&self, outcomes: &BTreeMap<String, Outcome>) -> String {
        let mut counts: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
        let mut lines = String::new();
        for (case, outcome) in outcomes {
            let kind = case.split('/').next().unwrap_or_default();
            let counts = counts.entry(kind).or_default();
            match (outcome, self.skips.get(case)) {
                (Ok(()), _) => counts[0] += 1,
                (Err(_), Some(reason)) => {
                    counts[2] += 1;
                    writeln!(lines, "skip {case}: {reason}").unwrap();
                }
                (Err(_), None) => {
                    counts[1] += 1;
                    writeln!(lines, "fail {case}").unwrap();
                }
            }
        }
        let mut text = HEAD.to_owned();
        for (kind, [pass, fail, skip]) in counts {
            writeln!(text, "{kind}: {pass} pass, {fail} fail, {skip} skip").unwrap();
        }
        text + &lines
    }
}

fn print(outcomes: &BTreeMap<String, Outcome>) {
    let mut failed = 0;
    for (case, outcome) in outcomes {
        if let Err(why) = outcome {
            println!("{case}:\n    {why}");
            failed += 1;
        }
    }
    println!("{} cases, {failed} failed", outcomes.len());
    assert!(failed == 0, "{failed} cases failed");
}

/// Failing cases by the operator that the case is about, for whoever works on operators.
fn by_operator(cases: &[Case], outcomes: &BTreeMap<String, Outcome>) -> String {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for c in cases {
        let Some(Err(why)) = outcomes.get(&format!("{}/{}", c.kind, c.name)) else { continue };
        let missing = why.split("operator ").nth(1).filter(|_| why.contains("is not supported"));
        let group = match missing.and_then(|m| m.split(' ').next()) {
            Some(op) => format!("{op}: not there"),
            None => onnx_quant::onnx::read(&c.model()).map_or("?".into(), |m| {
                let g = m.main();
                g.nodes().last().map_or_else(|| "no node".to_owned(), |n| g.node(n).op_type.clone())
            }),
        };
        groups.entry(group).or_default().push(format!("    {}/{}: {}", c.kind, c.name, first_line(why)));
    }
    let mut text = String::new();
    for (op, cases) in &groups {
        writeln!(text, "{op} ({})\n{}", cases.len(), cases.join("\n")).unwrap();
    }
    text
}

fn first_line(s: &str) -> &str {
    s.lines().next().unwrap_or_default()
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the text of a panic for the case that it belongs to, instead of printing it.
fn remember_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name().is_some_and(|n| n == "every_backend_test_of_onnx") {
            print(info);
        }
        PANIC.with(|p| *p.borrow_mut() = info.to_string());
    }));
}

fn run(case: &Case) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| check(case)))
        .unwrap_or_else(|_| Err(format!("PANIC {}", PANIC.with(|p| p.take().replace('\n', " ")))))
}

fn check(case: &Case) -> Outcome {
    let model = onnx_quant::onnx::read(&case.model()).map_err(|e| format!("read: {e:#}"))?;
    let program = Program::compile(&model, &CompileOptions::default()).map_err(|e| format!("{e:#}"))?;
    let sets = case.data_sets();
    if sets.is_empty() {
        return Err("has no data sets".into());
    }
    let inferred = inferred(&model);
    for set in sets {
        let (mut inputs, expected) = (read_inputs(&model, &set), read_outputs(&model, &set));
        // Inputs with a stored default come last, and the data sets do not give them.
        for input in program.inputs().iter().skip(inputs.len()) {
            let default = input.default.as_ref().ok_or_else(|| format!("input {} is not given", input.name))?;
            inputs.push(Item::Tensor(default.get().map_err(|e| format!("{e:#}"))?.clone()));
        }
        let got = program.run(inputs.clone(), RunOptions::default(), &mut NoTap).map_err(|e| format!("{e:#}"))?;
        let inferred = inferred.as_ref().map_err(Clone::clone)?;
        let (with_names, mut sizes) = inferred_with_names(&model, &inputs)?;
        if got.len() != expected.len() {
            return Err(format!("{} outputs, expected {}", got.len(), expected.len()));
        }
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let name = &program.outputs()[i];
            let Some(got) = got else { return Err(format!("output {i} ({name}) is not computed")) };
            if let Some(rule) = random_rule(case) {
                rule.check(i, got, &inputs, expected).map_err(|e| format!("output {i} ({name}): {e}"))?;
            } else {
                // ONNX's runner allows two units in the last place of bfloat16.
                let tolerance = |dtype| Tolerance {
                    relative: if dtype == DType::BF16 { case.rtol.max(2f64.powi(-6)) } else { case.rtol },
                    absolute: case.atol,
                };
                compare::items(got, expected, &tolerance).map_err(|e| describe(&e, i, name, &inputs, got, expected))?;
            }
            compare::inferred(inferred.main().value(inferred.main().outputs()[i]).ty.as_ref(), got)
                .map_err(|e| format!("inference of output {i} ({name}): {e}"))?;
            sizes
                .check(with_names.main().value(with_names.main().outputs()[i]).ty.as_ref(), got)
                .map_err(|e| format!("inference of output {i} ({name}) with names: {e}"))?;
        }
    }
    Ok(())
}

fn describe(error: &str, i: usize, name: &str, inputs: &[Item], got: &Item, expected: &Item) -> String {
    let mut text = format!("output {i} ({name}): {error}\n    got      {}", compare::show(got));
    write!(text, "\n    expected {}", compare::show(expected)).unwrap();
    for (i, x) in inputs.iter().enumerate() {
        write!(text, "\n    input {i}  {}", compare::show(x)).unwrap();
    }
    text
}

/// The model with the types that inference finds by itself: what the file says of anything but inputs is dropped.
fn inferred(model: &Model) -> Result<Model, String> {
    let mut model = model.clone();
    for id in model.graph_ids() {
        let graph = model.graph_mut(id);
        for v in graph.values().collect::<Vec<_>>() {
            if matches!(graph.value(v).def, Def::Node) {
                graph.set_type(v, None);
            }
        }
    }
    infer_strictly(&mut model)?;
    Ok(model)
}

/// The same where every size of the inputs has a name, and what the names stand for.
fn inferred_with_names(model: &Model, inputs: &[Item]) -> Result<(Model, Sizes), String> {
    let g = model.main();
    let fed = g.inputs().iter().filter(|&&v| !matches!(g.value(v).def, Def::Initializer(_)));
    let fed = fed.zip(inputs).filter_map(|(&v, x)| Some((g.value(v).name.clone(), x.tensor()?.clone())));
    let (mut model, sizes) = named(model, &fed.collect::<Vec<_>>());
    infer_strictly(&mut model).map_err(|e| format!("{e} (with names)"))?;
    Ok((model, sizes))
}

/// Infers, and fails on what inference warns of.
fn infer_strictly(model: &mut Model) -> Result<(), String> {
    let mut sink = Sink::default();
    infer(model, &mut sink).map_err(|e| format!("inference: {e:#}"))?;
    match sink.diagnostics().iter().find(|d| d.code == "shape-inference") {
        Some(d) => Err(format!("inference: {d}")),
        None => Ok(()),
    }
}

fn read_inputs(model: &Model, set: &Path) -> Vec<Item> {
    let g = model.main();
    let types = g.inputs().iter().filter(|&&v| !matches!(g.value(v).def, Def::Initializer(_)));
    let types = types.map(|&v| g.value(v).ty.as_ref());
    backend_data::inputs(set).iter().zip(types).map(|(path, ty)| pb::read(path, ty)).collect()
}

fn read_outputs(model: &Model, set: &Path) -> Vec<Item> {
    let g = model.main();
    let types = g.outputs().iter().map(|&v| g.value(v).ty.as_ref());
    backend_data::outputs(set).iter().zip(types).map(|(path, ty)| pb::read(path, ty)).collect()
}

/// How an output of a random operator is checked: by what the specification says of its distribution.
enum Random {
    /// Each element is 1 with the probability that input 0 gives.
    Bernoulli,
    /// Output 0 is input 0 with elements dropped and the rest scaled; output 1 tells which.
    Dropout { ratio: f64 },
}

/// The rule for cases whose stored outputs come from ONNX's own random generator.
fn random_rule(case: &Case) -> Option<Random> {
    match case.name.as_str() {
        n if n.starts_with("test_bernoulli") => Some(Random::Bernoulli),
        "test_training_dropout" | "test_training_dropout_mask" => Some(Random::Dropout { ratio: 0.75 }),
        "test_training_dropout_default" | "test_training_dropout_default_mask" => Some(Random::Dropout { ratio: 0.5 }),
        _ => None,
    }
}

impl Random {
    fn check(&self, index: usize, got: &Item, inputs: &[Item], expected: &Item) -> Outcome {
        let (Some(t), Some(e)) = (got.tensor(), expected.tensor()) else { return Err("is no tensor".into()) };
        if (t.dtype(), t.shape()) != (e.dtype(), e.shape()) {
            return Err(format!("{} {:?}, expected {} {:?}", t.dtype(), t.shape(), e.dtype(), e.shape()));
        }
        let y = t.to_f64s().map_err(|e| e.to_string())?;
        let x = inputs[0].tensor().and_then(|t| t.to_f64s().ok()).ok_or("input 0 is no tensor of numbers")?;
        // Mean and variance of the number of ones; five deviations are never reached by chance with a fixed seed.
        let (ones, mean, variance) = match self {
            Random::Bernoulli => {
                if y.iter().any(|&y| y != 0.0 && y != 1.0) {
                    return Err("an element is neither 0 nor 1".into());
                }
                if x.iter().zip(&y).any(|(&p, &y)| p == 0.0 && y != 0.0 || p == 1.0 && y != 1.0) {
                    return Err("a certain element came out wrong".into());
                }
                (y.iter().sum::<f64>(), x.iter().sum::<f64>(), x.iter().map(|p| p * (1.0 - p)).sum::<f64>())
            }
            Random::Dropout { ratio } => {
                let n = x.len() as f64;
                let kept = y.iter().filter(|&&y| y != 0.0).count() as f64;
                let scale = if index == 0 { 1.0 / (1.0 - ratio) } else { 0.0 };
                if index == 0
                    && x.iter().zip(&y).any(|(x, y)| *y != 0.0 && (y - x * scale).abs() > 1e-5 * x.abs().max(1.0))
                {
                    return Err("an element that is not dropped is not scaled".into());
                }
                (kept, n * (1.0 - ratio), n * ratio * (1.0 - ratio))
            }
        };
        if (ones - mean).abs() > 5.0 * variance.sqrt() + 1e-9 {
            return Err(format!("{ones} of {} elements are set, expected about {mean}", y.len()));
        }
        Ok(())
    }
}

/// The recorded skips have reasons and name cases that exist.
#[test]
fn skips_name_cases() {
    let names: BTreeSet<String> = backend_data::cases().iter().map(|c| format!("{}/{}", c.kind, c.name)).collect();
    for (case, reason) in Listed::read().skips {
        assert!(names.contains(&case), "there is no case {case}");
        assert!(reason.len() > 20, "{case}: \"{reason}\" is no reason");
    }
}
