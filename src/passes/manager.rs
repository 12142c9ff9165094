//! Runs passes in order, checks the model after each, repeats groups until nothing changes, takes the time.

use std::time::{Duration, Instant};

use super::{Ctx, Pass, Pipeline, Step};
use crate::error::{Context, Result, bail};
use crate::ir::verify::verify;
use crate::ir::{Model, ValueType};

/// A group of passes that still changes something after this many rounds is stopped: each round is sound by itself.
const MAX_ROUNDS: usize = 10;

/// Called with a pass's name and the model after each run that changed something.
pub type Observer<'a> = &'a mut dyn FnMut(&str, &Model);

/// What one pass did in a pipeline, all its runs together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// The pass.
    pub pass: &'static str,
    /// How often it ran.
    pub runs: usize,
    /// How often it changed something.
    pub changes: usize,
    /// Time in the pass itself.
    pub time: Duration,
}

/// Runs a pipeline and gives what each of its passes did, in the order of their first runs.
///
/// # Errors
/// A pass fails, or leaves a model that is not sound: the error names the pass and what is wrong.
pub fn run(model: &mut Model, pipeline: &Pipeline, ctx: &mut Ctx<'_>, observer: Observer<'_>) -> Result<Vec<Timing>> {
    let mut timings = Vec::new();
    for step in pipeline.steps {
        match step {
            Step::Once(pass) => drop(run_one(model, *pass, ctx, observer, &mut timings)?),
            Step::Fixpoint(passes) => {
                for _ in 0..MAX_ROUNDS {
                    let mut changed = false;
                    for pass in *passes {
                        changed |= run_one(model, *pass, ctx, observer, &mut timings)?;
                    }
                    if !changed {
                        break;
                    }
                }
            }
        }
    }
    Ok(timings)
}

/// Runs one pass and checks the model after it.
///
/// # Errors
/// As [`run`].
pub fn run_pass(model: &mut Model, pass: &dyn Pass, ctx: &mut Ctx<'_>) -> Result<bool> {
    run_one(model, pass, ctx, &mut |_, _| {}, &mut Vec::new())
}

fn run_one(
    model: &mut Model,
    pass: &dyn Pass,
    ctx: &mut Ctx<'_>,
    observer: Observer<'_>,
    timings: &mut Vec<Timing>,
) -> Result<bool> {
    let name = pass.info().name;
    let before = interface(model);
    let start = Instant::now();
    let changed = pass.run(model, ctx).with_context(|| name.to_owned())?;
    let time = start.elapsed();
    let mut violations = verify(model);
    if interface(model) != before {
        violations.push("the graph's inputs or outputs changed".to_owned());
    }
    if !violations.is_empty() {
        bail!("pass {name} left a model that is not sound: {}", violations.join("; "));
    }
    match timings.iter_mut().find(|t| t.pass == name) {
        Some(t) => {
            t.runs += 1;
            t.changes += usize::from(changed);
            t.time += time;
        }
        None => timings.push(Timing { pass: name, runs: 1, changes: changed.into(), time }),
    }
    if changed {
        observer(name, model);
    }
    Ok(changed)
}

/// Name and type of the main graph's outputs, and of its inputs that are no constants (which only IR version 3 lists).
fn interface(model: &Model) -> Vec<(String, Option<ValueType>)> {
    let g = model.main();
    let inputs = g.inputs().iter().filter(|&&v| g.constant(v).is_none());
    inputs.chain(g.outputs()).map(|&v| (g.value(v).name.clone(), g.value(v).ty.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Sink;
    use crate::ir::Def;
    use crate::ir::text_parse::parse;
    use crate::passes::Info;

    struct Renames(&'static str);

    impl Pass for Renames {
        fn info(&self) -> Info {
            Info { name: "renames", summary: "renames a value" }
        }
        fn run(&self, model: &mut Model, _: &mut Ctx<'_>) -> Result<bool> {
            let v = model.main().find_value(self.0).unwrap();
            model.main_mut().rename(v, "z");
            Ok(true)
        }
    }

    struct Orphans;

    impl Pass for Orphans {
        fn info(&self) -> Info {
            Info { name: "orphans", summary: "undefines a value" }
        }
        fn run(&self, model: &mut Model, _: &mut Ctx<'_>) -> Result<bool> {
            let v = model.main().find_value("a").unwrap();
            let (n, slot) = model.main().producer(v).unwrap();
            model.main_mut().set_output(n, slot, None);
            model.main_mut().set_def(v, Def::Node);
            Ok(true)
        }
    }

    #[test]
    fn a_pass_that_breaks_the_model_is_named() {
        let text = "<ir_version: 8, opset_import: [\"\": 17]> g (float x) => (float y) { a = Neg(x) y = Neg(a) }";
        let cases: [(&dyn Pass, &str); 3] = [
            (&Renames("y"), "pass renames left a model that is not sound: the graph's inputs or outputs changed"),
            (&Orphans, "pass orphans left a model that is not sound: graph \"g\": value \"a\" has no producer"),
            (&Renames("a"), ""),
        ];
        for (pass, expected) in cases {
            let mut sink = Sink::default();
            let result = run_pass(&mut parse(text).unwrap(), pass, &mut Ctx::new(&mut sink));
            assert_eq!(result.err().map_or(String::new(), |e| format!("{e:#}")), expected);
        }
    }

    #[test]
    fn a_group_that_never_settles_is_stopped() {
        struct Never;
        impl Pass for Never {
            fn info(&self) -> Info {
                Info { name: "never", summary: "says that it changed something" }
            }
            fn run(&self, _: &mut Model, _: &mut Ctx<'_>) -> Result<bool> {
                Ok(true)
            }
        }
        const PIPELINE: Pipeline = Pipeline { name: "test", steps: &[Step::Fixpoint(&[&Never])] };
        let mut sink = Sink::default();
        let mut seen = 0;
        let model = &mut Model::new(8, 17);
        let timings = run(model, &PIPELINE, &mut Ctx::new(&mut sink), &mut |_, _| seen += 1).unwrap();
        assert_eq!((timings[0].runs, timings[0].changes, seen), (MAX_ROUNDS, MAX_ROUNDS, MAX_ROUNDS));
    }
}
