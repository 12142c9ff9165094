//! Seeded random small graphs against ONNX Runtime: same outputs, and inference that agrees with evaluation.
//!
//! Single operators with random shapes (sizes 0 and 1 included), element types, attributes and axes, and chains of
//! them. What ONNX Runtime does not implement or refuses is counted by its error; a difference is never ignored: it is
//! shrunk and printed as a model in ONNX's textual syntax with its inputs.
//!
//! `DIFFERENTIAL_CASES`, `DIFFERENTIAL_SEED` and `DIFFERENTIAL=Conv` (one operator) set what runs.

#![allow(unreachable_pub, reason = "modules of a test binary")]

#[path = "../common/mod.rs"]
mod common;

mod graph;
mod random;
mod specs;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use common::compare;
use common::ort::ort_run_many;
use common::sizes::named;
use common::tensors::{from_array, to_array};
use graph::Case;
use onnx_quant::diag::Sink;
use onnx_quant::infer::infer;
use onnx_quant::interp::{CompileOptions, NoTap, Program, RunOptions};
use onnx_quant::ir::Domain;
use onnx_quant::onnx::to_bytes;
use onnx_quant::ops::{Item, lookup};
use onnx_quant::tensor::{DType, Tensor};
use random::Gen;
use specs::Spec;

/// Cases per round trip to the worker.
const BATCH: usize = 250;

#[test]
fn random_graphs_agree_with_onnx_runtime() {
    let env = |name: &str| std::env::var(name).ok();
    let n_cases: usize = env("DIFFERENTIAL_CASES").map_or(4000, |n| n.parse().unwrap());
    let seed: u64 = env("DIFFERENTIAL_SEED").map_or(1, |n| n.parse().unwrap());
    let only = env("DIFFERENTIAL");
    std::panic::set_hook(Box::new(|_| {}));
    let specs: Vec<Spec> =
        specs::all().into_iter().filter(|s| only.as_deref().is_none_or(|o| o.split(',').any(|o| o == s.op))).collect();
    assert!(!specs.is_empty(), "DIFFERENTIAL names no operator of the table");
    let mut report = Report::default();
    let mut g = Gen::new(seed, 5);
    let mut cases = Vec::new();
    let mut turn = 0;
    while cases.len() < n_cases {
        // Every operator in turn, then one chain.
        let spec = &specs[turn % specs.len()];
        turn += 1;
        assert!(turn < n_cases * 200 + 10_000, "the table makes too few cases");
        cases.extend(single(&mut g, spec));
        if turn % 4 == 0 {
            cases.extend(chain(&mut g, &specs));
        }
    }
    for batch in cases.chunks(BATCH) {
        for (case, verdict) in batch.iter().zip(judge(batch)) {
            report.add(case, verdict);
        }
    }
    let mut failures = String::new();
    let mut shrunk = BTreeMap::new();
    for (case, why) in &report.mismatches {
        let key = case.label();
        if shrunk.len() < 40 && !shrunk.contains_key(&key) {
            shrunk.insert(key, ());
            let (case, why) = shrink(case, why, &specs);
            writeln!(failures, "=== {}: {why}\n{}", case.label(), case.fixture()).unwrap();
        }
    }
    let _ = std::panic::take_hook();
    println!("{}", report.summary());
    assert!(
        report.mismatches.is_empty(),
        "{} of {} cases differ from ONNX Runtime:\n{failures}",
        report.mismatches.len(),
        cases.len()
    );
    assert!(report.missing.is_empty(), "operators of the table that are not there: {:?}", report.missing);
    if only.is_none() {
        assert!(report.n_same * 10 > cases.len() * 7, "too few cases were compared: {}", report.summary());
    }
}

/// What ONNX Runtime says when it lacks an operator or a type, as opposed to a malformed model.
const LIMITS: &[&str] =
    &["NOT_IMPLEMENTED", "Type Error: Type 'tensor(", "data type is not supported", "must be at least 1, got 0"];

/// Where ONNX Runtime does something else than the specification says: operator, whether a case is such a one, why.
type Deviation = (&'static str, fn(&Case, &str) -> bool, &'static str);

const DEVIATIONS: &[Deviation] = &[
    (
        "ReduceProd",
        |_, why| why.contains("instead of -2147483648") || why.contains("instead of 2147483647"),
        "a product beyond 32 bits wraps in NumPy, and with it in ONNX's reference; ONNX Runtime gives the least or the largest integer",
    ),
    (
        "MaxPool",
        |_, why| why.contains("-inf instead of -3402823"),
        "a window that lies in the padding alone: padding is minus infinity, ONNX Runtime gives the least finite number",
    ),
    ("Einsum", |_, why| why.contains("crashed"), "crashes on operands without elements"),
    (
        "ConvTranspose",
        |c, _| c.nodes.iter().any(|n| n.attrs.str("auto_pad").is_some_and(|p| p.starts_with("SAME"))),
        "SAME with a stride beyond the window: the specification says input * stride, ONNX Runtime leaves off the end",
    ),
    (
        "LSTM",
        |c, why| c.nodes.iter().any(|n| n.attrs.float("clip").is_some()) && why.contains("elements differ"),
        "the input of every activation is clipped; ONNX Runtime leaves out the cell state, which goes into the last",
    ),
    (
        "AveragePool",
        |_, why| why.contains("ShapeInferenceError"),
        "inference of old versions counts a last window in the padding, which evaluation does not",
    ),
    (
        "Resize",
        |c, why| {
            c.nodes.iter().any(|n| n.attrs.str("coordinate_transformation_mode") == Some("align_corners"))
                && why.contains("elements differ")
        },
        "align_corners with a fractional scale * size: ONNX's test data divide by that less 1, ONNX Runtime by the floor",
    ),
    (
        "MeanVarianceNormalization",
        |_, why| why.contains("instead of NaN"),
        "without variance the specification's 1e-9 keeps the quotient finite, which ONNX Runtime leaves off",
    ),
    (
        "ReduceLogSumExp",
        |c, why| c.is_of_integers() && why.contains("elements differ"),
        "of integers: where the fraction is cut off is open, and what the logarithm of nothing is",
    ),
    ("ReduceMean", |_, why| why.contains("NaN instead of"), "the mean of nothing is 0 / 0, which ONNX Runtime calls 0"),
];

fn deviates(case: &Case, why: &str) -> bool {
    DEVIATIONS.iter().any(|(op, is_such, _)| case.nodes.iter().any(|n| n.op == *op) && is_such(case, why))
}

/// One random case of an operator, with a random version of it.
fn single(g: &mut Gen, spec: &Spec) -> Option<Case> {
    let opset = g.rng.pick(spec.opsets);
    let (x, node) = (spec.make)(g, spec.op, opset, None)?;
    Some(Case::new(g, opset, x, vec![node]))
}

/// Two to four operators in a row.
fn chain(g: &mut Gen, specs: &[Spec]) -> Option<Case> {
    let links: Vec<&Spec> = specs.iter().filter(|s| s.chain).collect();
    if links.is_empty() {
        return None;
    }
    let opset = g.rng.pick(&[13, 18, 21]);
    let rank = g.rng.below(4) + 1;
    let shape = g.shape(rank);
    let x = g.tensor(DType::F32, &shape);
    let (mut nodes, mut at) = (Vec::new(), x.clone());
    for _ in 0..g.rng.below(3) + 2 {
        let spec = g.rng.pick(&links);
        // The operator's version that holds at the chain's opset must be one that the table speaks of.
        let Some(version) = spec.opsets.iter().copied().filter(|&v| v <= opset).max() else { continue };
        let Some((_, node)) = (spec.make)(g, spec.op, version.max(opset.min(version)), Some(&at)) else { continue };
        if lookup(&Domain::new(spec.domain), spec.op, version)
            .is_none_or(|d| lookup(&Domain::new(spec.domain), spec.op, opset).is_none_or(|e| !std::ptr::eq(d, e)))
        {
            continue;
        }
        let step = Case::new(g, opset, Some(at.clone()), vec![node.clone()]);
        // Our own result gives the next link its shape; if it is wrong, the comparison at the end says so.
        let Ok(Ok(mut outputs)) = catch_unwind(AssertUnwindSafe(|| run(&step))) else { continue };
        at = outputs.swap_remove(0);
        if at.len() > 3000 {
            break;
        }
        nodes.push(node);
    }
    (nodes.len() > 1).then(|| Case::new(g, opset, Some(x), nodes))
}

/// What a case came to.
enum Verdict {
    Same,
    /// Both refuse it.
    BothRefuse,
    /// ONNX Runtime refuses it or does not implement it; its words.
    OnlyOurs(String),
    Missing(String),
    /// They differ as [`DEVIATIONS`] says.
    Deviation,
    Mismatch(String),
}

#[derive(Default)]
struct Report {
    n_same: usize,
    n_both_refuse: usize,
    n_deviations: usize,
    only_ours: BTreeMap<String, (usize, String)>,
    missing: BTreeMap<String, usize>,
    mismatches: Vec<(Case, String)>,
}

impl Report {
    fn add(&mut self, case: &Case, verdict: Verdict) {
        match verdict {
            Verdict::Same => self.n_same += 1,
            Verdict::BothRefuse => self.n_both_refuse += 1,
            Verdict::OnlyOurs(why) => {
                let entry = self.only_ours.entry(case.label()).or_default();
                entry.0 += 1;
                entry.1 = why;
            }
            Verdict::Missing(what) => *self.missing.entry(what).or_default() += 1,
            Verdict::Deviation => self.n_deviations += 1,
            Verdict::Mismatch(why) => self.mismatches.push((case.clone(), why)),
        }
    }

    fn summary(&self) -> String {
        let only_ours: usize = self.only_ours.values().map(|(n, _)| n).sum();
        let mut text = format!(
            "{} same, {} refused by both, {only_ours} that ONNX Runtime does not run, {} where it deviates, {} not there, {} different\n",
            self.n_same,
            self.n_both_refuse,
            self.n_deviations,
            self.missing.values().sum::<usize>(),
            self.mismatches.len()
        );
        for (op, (n, why)) in &self.only_ours {
            let why: String = why.replace('\n', " ").chars().take(170).collect();
            writeln!(text, "  {op} {n}: {why}").unwrap();
        }
        let mut by_op: BTreeMap<String, usize> = BTreeMap::new();
        for (case, _) in &self.mismatches {
            *by_op.entry(case.label()).or_default() += 1;
        }
        writeln!(text, "different: {by_op:?}").unwrap();
        text
    }
}

fn judge(cases: &[Case]) -> Vec<Verdict> {
    let requests: Vec<_> = cases
        .iter()
        .map(|c| {
            let arrays = c.fed().map(|(name, t)| (name.to_owned(), to_array(t).expect("a NumPy type"))).collect();
            (to_bytes(&c.model()).unwrap(), arrays)
        })
        .collect();
    match ort_run_many(&requests) {
        Ok(answers) => cases.iter().zip(answers).map(|(c, a)| compare_one(c, a)).collect(),
        // Native code crashed: find the case by halves.
        Err(e) if cases.len() == 1 => vec![compare_one(&cases[0], Err(format!("ONNX Runtime crashed: {e}")))],
        Err(_) => {
            let (a, b) = cases.split_at(cases.len() / 2);
            judge(a).into_iter().chain(judge(b)).collect()
        }
    }
}

fn compare_one(case: &Case, theirs: Result<Vec<common::npz::Array>, String>) -> Verdict {
    for n in &case.nodes {
        if lookup(&Domain::new(n.domain), n.op, case.opset_of(n.domain)).is_none() {
            return Verdict::Missing(n.op.to_owned());
        }
    }
    let ours = catch_unwind(AssertUnwindSafe(|| run(case)));
    match (ours, theirs) {
        (Err(p), _) => {
            let text = p.downcast_ref::<String>().cloned().or(p.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Verdict::Mismatch(format!("PANIC {}", text.unwrap_or_default()))
        }
        (Ok(Err(_)), Err(_)) => Verdict::BothRefuse,
        (Ok(Err(e)), Ok(_)) => Verdict::Mismatch(format!("we refuse it: {e}")),
        // No kernel for the type or version, or a type that this version of the operator does not have in ONNX.
        (Ok(Ok(_)), Err(e)) if LIMITS.iter().any(|l| e.contains(l)) => Verdict::OnlyOurs(e),
        (Ok(Ok(_)), Err(e)) if deviates(case, &e) => Verdict::Deviation,
        (Ok(Ok(_)), Err(e)) => Verdict::Mismatch(format!("ONNX Runtime refuses it: {e}")),
        (Ok(Ok(ours)), Ok(theirs)) => {
            let theirs: Vec<Tensor> = theirs.iter().map(from_array).collect();
            for (i, (g, e)) in ours.iter().zip(&theirs).enumerate() {
                if let Err(why) = case.compare(g, e) {
                    if deviates(case, &why) {
                        return Verdict::Deviation;
                    }
                    return Verdict::Mismatch(format!(
                        "output {i}: {why}\n    ours   {}\n    theirs {}",
                        compare::show(&Item::Tensor(g.clone())),
                        compare::show(&Item::Tensor(e.clone()))
                    ));
                }
            }
            Verdict::Same
        }
    }
}

/// Runs a case and checks inference against the result.
fn run(case: &Case) -> Result<Vec<Tensor>, String> {
    let mut model = case.model();
    let program = Program::compile(&model, &CompileOptions::default()).map_err(|e| format!("{e:#}"))?;
    let inputs = case.fed().map(|(_, t)| Item::Tensor(t.clone())).collect();
    let items = program.run(inputs, RunOptions::default(), &mut NoTap).map_err(|e| format!("{e:#}"))?;
    let mut sink = Sink::default();
    infer(&mut model, &mut sink).map_err(|e| format!("{e:#}"))?;
    if let Some(d) = sink.diagnostics().iter().find(|d| d.code == "shape-inference") {
        return Err(format!("inference: {d}"));
    }
    let mut tensors = Vec::new();
    for (item, &v) in items.into_iter().zip(model.main().outputs()) {
        let item = item.ok_or("an output is not computed")?;
        compare::inferred(model.main().value(v).ty.as_ref(), &item).map_err(|e| format!("inference: {e}"))?;
        tensors.push(item.into_tensor().map_err(|e| e.to_string())?);
    }
    sizes_follow(case, &tensors)?;
    Ok(tensors)
}

/// Whether the sizes that inference computes with names, where the model's inputs have open sizes, come to the same.
fn sizes_follow(case: &Case, outputs: &[Tensor]) -> Result<(), String> {
    let fed: Vec<_> = case.fed().map(|(name, t)| (name, t.clone())).collect();
    // Names stand for sizes of at least 1.
    if fed.iter().any(|(_, t)| t.is_empty()) {
        return Ok(());
    }
    let (mut model, mut sizes) = named(&case.model(), &fed);
    let mut sink = Sink::default();
    infer(&mut model, &mut sink).map_err(|e| format!("{e:#}"))?;
    if let Some(d) = sink.diagnostics().iter().find(|d| d.code == "shape-inference") {
        return Err(format!("inference with names: {d}"));
    }
    let g = model.main();
    for (t, &v) in outputs.iter().zip(g.outputs()) {
        let found = sizes.check(g.value(v).ty.as_ref(), &Item::Tensor(t.clone()));
        found.map_err(|e| format!("inference with names: {e}"))?;
    }
    Ok(())
}

/// A smaller case of the same operators that differs too: fewer links, smaller shapes, simpler numbers.
fn shrink(case: &Case, why: &str, specs: &[Spec]) -> (Case, String) {
    let mut best = (case.clone(), why.to_owned());
    // A difference of values stays one: a variant that ONNX Runtime refuses is another matter.
    let is_same_kind = |w: &str| w.contains("refuse") == why.contains("refuse");
    if let [node] = case.nodes.as_slice()
        && let Some(spec) = specs.iter().find(|s| s.op == node.op && s.domain == node.domain)
    {
        for size in [1, 2, 3] {
            let mut g = Gen::new(7, size);
            let small: Vec<Case> = (0..300).filter_map(|_| single(&mut g, spec)).collect();
            let failing = small.iter().zip(judge(&small)).filter_map(|(c, v)| match v {
                Verdict::Mismatch(w) if is_same_kind(&w) => Some((c.clone(), w)),
                _ => None,
            });
            let smallest = failing.min_by_key(|(c, _)| c.weight());
            if let Some(s) = smallest.filter(|(c, _)| c.weight() < best.0.weight()) {
                best = s;
                break;
            }
        }
    }
    let mut variants = best.0.simpler();
    while !variants.is_empty() {
        let verdicts = judge(&variants);
        let found = variants.into_iter().zip(verdicts).find_map(|(c, v)| match v {
            Verdict::Mismatch(w) if is_same_kind(&w) => Some((c, w)),
            _ => None,
        });
        let Some(found) = found else { break };
        best = found;
        variants = best.0.simpler();
    }
    best
}
