//! The rules of `check`, each on a model that breaks it: `testdata/check/<code>.txt` holds the model in ONNX's textual
//! syntax, `====`, and every finding. A line `#! target NAME` in front of the model sets the target. `UPDATE=1` rewrites
//! what is expected; read the diff. `sound.txt` breaks no rule.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use onnx_quant::ir::text_parse::parse;
use onnx_quant::quant::check::{check, rules};
use onnx_quant::quant::target::Target;

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/check");
    let mut cases: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    cases
}

fn stem(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

#[test]
fn every_rule_finds_what_breaks_it() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut failures = String::new();
    for path in cases() {
        let file = fs::read_to_string(&path).unwrap();
        let (input, expected) = file.split_once("====\n").unwrap_or((&file, ""));
        let target = input.lines().find_map(|l| l.strip_prefix("#! target "));
        let target = target.map(|t| Target::named(t.trim()).unwrap());
        let model = match parse(input) {
            Ok(m) => m,
            Err(e) => {
                failures.push_str(&format!("{}: {e:#}\n", stem(&path)));
                continue;
            }
        };
        let found = check(&model, target.as_ref());
        let code = stem(&path);
        if code != "sound" && !found.iter().any(|f| f.code == code) {
            failures.push_str(&format!("{code} is not found\n"));
        }
        let text: String = found.iter().map(|f| format!("{f}\n")).collect();
        if update {
            fs::write(&path, format!("{input}====\n{text}")).unwrap();
        } else if text != expected {
            failures.push_str(&format!("{code}: expected\n{expected}\nfound\n{text}\n"));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn every_rule_has_a_case() {
    let cases = cases();
    let have: BTreeSet<&str> = cases.iter().map(|p| stem(p)).collect();
    let mut want: BTreeSet<&str> = rules().map(|r| r.code).collect();
    want.insert("sound");
    assert_eq!(have, want);
}
