//! Every pass on small models: `testdata/passes/<pass>/<case>.txt` holds a model in ONNX's textual syntax, `====`, and
//! what the pass makes of it, with its notes behind `----`. `UPDATE=1` rewrites what is expected.
//!
//! A line `#! opset_floor 21` in front of the model sets the pass's option; `#! infer` finds types first;
//! an error is expected where the text after `====` starts with `error: `.

use std::fs;
use std::path::{Path, PathBuf};

use onnx_quant::diag::Sink;
use onnx_quant::infer::infer;
use onnx_quant::ir::Model;
use onnx_quant::ir::text::{PrintOptions, print};
use onnx_quant::ir::text_parse::parse;
use onnx_quant::ir::verify::verify;
use onnx_quant::passes::{self, Ctx, Pass, manager};

const OPTIONS: PrintOptions = PrintOptions { max_elements: 64, value_types: true };

fn cases() -> Vec<(&'static dyn Pass, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/passes");
    let mut cases = Vec::new();
    for folder in fs::read_dir(&root).unwrap() {
        let folder = folder.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap();
        let pass = passes::find(name).unwrap_or_else(|| panic!("testdata/passes/{name}: there is no such pass"));
        for case in fs::read_dir(&folder).unwrap() {
            cases.push((pass, case.unwrap().path()));
        }
    }
    cases.sort_by(|a, b| a.1.cmp(&b.1));
    cases
}

struct Outcome {
    text: String,
    problems: Vec<String>,
}

fn apply(pass: &dyn Pass, input: &str) -> Outcome {
    let mut problems = Vec::new();
    let mut model: Model = match parse(input) {
        Ok(m) => m,
        Err(e) => return Outcome { text: String::new(), problems: vec![format!("{e:#}")] },
    };
    problems.extend(verify(&model));
    let mut floor = 13;
    for option in input.lines().filter_map(|l| l.strip_prefix("#! ")) {
        match option.split_whitespace().collect::<Vec<_>>()[..] {
            ["opset_floor", n] => floor = n.parse().unwrap(),
            ["infer"] => infer(&mut model, &mut Sink::default()).unwrap(),
            _ => problems.push(format!("unknown option: {option}")),
        }
    }
    let before = print(&model, &OPTIONS);
    let mut sink = Sink::default();
    let result = manager::run_pass(&mut model, pass, &mut Ctx::new(&mut sink).opset_floor(floor));
    let mut text = match result {
        Err(e) => format!("error: {e:#}\n"),
        Ok(changed) => {
            let after = print(&model, &OPTIONS);
            if changed != (after != before) {
                problems.push(format!("the pass says that changed is {changed}"));
            }
            after
        }
    };
    for (i, d) in sink.diagnostics().iter().enumerate() {
        if i == 0 {
            text.push_str("----\n");
        }
        text.push_str(&format!("{d}\n"));
    }
    Outcome { text, problems }
}

#[test]
fn passes_do_what_the_fixtures_say() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut failures = String::new();
    for (pass, path) in cases() {
        let file = fs::read_to_string(&path).unwrap();
        let (input, expected) = file.split_once("====\n").unwrap_or((&file, ""));
        let outcome = apply(pass, input);
        let name = format!("{}/{}", pass.info().name, path.file_stem().unwrap().to_str().unwrap());
        for p in &outcome.problems {
            failures.push_str(&format!("{name}: {p}\n"));
        }
        if update {
            fs::write(&path, format!("{}\n====\n{}\n", input.trim_end(), outcome.text.trim_end())).unwrap();
        } else if outcome.text.trim_end() != expected.trim_end() {
            failures.push_str(&format!("{name}: expected\n{expected}\nfound\n{}\n", outcome.text));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn every_pass_has_fixtures_and_is_named_like_its_file() {
    let cases = cases();
    for pass in passes::ALL {
        let name = pass.info().name;
        assert!(cases.iter().any(|(p, _)| p.info().name == name), "testdata/passes/{name} holds no case");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/passes");
        assert!(file.join(format!("{name}.rs")).exists() || file.join(name).is_dir(), "{name}");
    }
}
