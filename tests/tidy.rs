//! The invariants of the source that a compiler does not check. Each test lists every violation with file and line.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// A source file of the crate.
struct Source {
    /// Relative to the package, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The lines with their numbers, without comments and without the tests at the end of the file.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.text.find("#[cfg(test)]\nmod ").unwrap_or(self.text.len());
        self.text[..tests].lines().enumerate().filter_map(|(i, line)| {
            let line = line.split_once("//").map_or(line, |(code, _)| code);
            (!line.trim().is_empty()).then_some((i + 1, line))
        })
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|p| self.path.starts_with(p))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every `.rs` file under a folder of the package, sorted.
fn sources(folder: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    assert!(!paths.is_empty(), "no sources under {folder}");
    paths
        .into_iter()
        .map(|p| Source {
            path: p.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/"),
            text: fs::read_to_string(&p).unwrap(),
        })
        .collect()
}

fn report(rule: &str, violations: &[String]) {
    let mut text = String::new();
    for v in violations {
        writeln!(text, "  {v}").unwrap();
    }
    assert!(violations.is_empty(), "{rule}:\n{text}");
}

/// Fails when `pattern` occurs in code outside `allowed` files or folders.
fn only_in(pattern: &str, allowed: &[&str], rule: &str) {
    let pattern = Regex::new(pattern).unwrap();
    let mut violations = Vec::new();
    for source in sources("src").iter().filter(|s| !s.is_in(allowed)) {
        for (n, line) in source.code().filter(|(_, line)| pattern.is_match(line)) {
            violations.push(format!("{}:{n}: {}", source.path, line.trim()));
        }
    }
    report(rule, &violations);
}

#[test]
fn protobuf_types_stay_in_the_front_end() {
    only_in(r"\bonnx::proto\b|\bproto::|\bprost\b", &["src/onnx/"], "only src/onnx names protobuf types");
}

#[test]
fn petgraph_stays_in_the_graph() {
    only_in(
        r"\bpetgraph\b",
        &["src/ir/graph.rs", "src/ir/order.rs", "src/quant/cut.rs"],
        "only ir/graph.rs, ir/order.rs and quant/cut.rs import petgraph",
    );
}

#[test]
fn input_and_output_stay_where_files_are_read_and_written() {
    let io = r"\bstd::fs\b|\bfs::|\bFile::(open|create)|\bmemmap2\b|\btempfile\b";
    let places = [
        "src/onnx/read.rs",
        "src/onnx/write.rs",
        "src/onnx/external.rs",
        "src/calibrate/dataset",
        "src/cli",
        "src/main.rs",
    ];
    only_in(io, &places, "only onnx/{read,write,external}, calibrate/dataset and cli touch files");
}

#[test]
fn only_the_command_line_prints_exits_and_reads_the_environment() {
    only_in(
        r"\be?print(ln)?!|\bdbg!|\bprocess::exit\b|\bstd::env\b|\benv::(var|args)|\bstd::io::(stdout|stderr)\b",
        &["src/cli", "src/main.rs"],
        "only cli prints, exits and reads the environment",
    );
}

#[test]
fn nothing_depends_on_the_time_of_day() {
    only_in(r"\bSystemTime\b", &[], "the same input gives the same bytes: no clock");
    only_in(r"\bInstant\b", &["src/cli", "src/passes/manager.rs"], "only cli and the pass manager measure time");
}

#[test]
fn unsafe_code_stays_in_the_kernels() {
    // Mapping a file into memory is unsafe by nature, because others may write to the file.
    only_in(r"\bunsafe\b", &["src/kernels/", "src/onnx/read.rs"], "unsafe code only in src/kernels and to map a file");
}

#[test]
fn every_module_says_what_it_is() {
    let mut violations = Vec::new();
    for folder in ["src", "tests"] {
        let undocumented = |s: &&Source| !s.text.starts_with("//! ") && !s.text.starts_with("// @generated");
        violations.extend(sources(folder).iter().filter(undocumented).map(|s| s.path.clone()));
    }
    report("every module starts with a `//! ` doc", &violations);
}

#[test]
fn files_stay_short_enough_to_know() {
    let mut violations = Vec::new();
    for folder in ["src", "tests"] {
        for source in sources(folder) {
            let n = source.text.lines().count();
            if n > 800 {
                violations.push(format!("{}: {n} lines", source.path));
            }
        }
    }
    report("a file has at most 800 lines", &violations);
}

#[test]
fn nothing_is_left_open() {
    let open = Regex::new(r"\b(todo|unimplemented)!|#\[ignore|\bFIXME\b|\bXXX\b").unwrap();
    let mut violations = Vec::new();
    for source in sources("src") {
        for (i, line) in source.text.lines().enumerate().filter(|(_, l)| open.is_match(l)) {
            violations.push(format!("{}:{}: {}", source.path, i + 1, line.trim()));
        }
    }
    report("no stubs, no ignored tests", &violations);
}

/// Operator names as the table defines them, with the file of each definition.
fn operators() -> BTreeMap<String, Vec<String>> {
    let name = Regex::new(r#"\bname: "(\w+)""#).unwrap();
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources("src/ops") {
        for (_, line) in source.code() {
            for found in name.captures_iter(line) {
                let of = files.entry(found[1].to_string()).or_default();
                if !of.contains(&source.path) {
                    of.push(source.path.clone());
                }
            }
        }
    }
    files
}

#[test]
fn an_operator_is_defined_in_one_file() {
    let violations: Vec<_> = operators()
        .into_iter()
        .filter(|(_, files)| files.len() > 1)
        .map(|(op, files)| format!("\"{op}\": {}", files.join(", ")))
        .collect();
    report("searching for an operator's name finds the one file that defines it", &violations);
}

#[test]
fn operator_names_stay_with_operators_and_passes() {
    let operators = operators();
    assert!(!operators.is_empty(), "no operator found under src/ops");
    let quoted = Regex::new(r#""(\w+)""#).unwrap();
    let mut violations = Vec::new();
    // These rewrite graphs or make nodes, as passes do, tell a quantized model by its operators, or print names.
    let allowed = [
        "src/ops/",
        "src/passes/",
        "src/quant/algo/",
        "src/quant/realize/",
        "src/quant/config.rs",
        "src/quant/traps.rs",
        "src/ir/builder.rs",
        "src/cli",
    ];
    for source in sources("src").iter().filter(|s| !s.is_in(&allowed)) {
        for (n, line) in source.code() {
            for name in quoted.captures_iter(line).filter(|c| operators.contains_key(&c[1])) {
                violations.push(format!("{}:{n}: {}", source.path, &name[0]));
            }
        }
    }
    report("policy asks an operator's rule, not its name", &violations);
}

#[test]
fn lists_are_in_alphabetical_order() {
    let list = Regex::new(r"(?m)^(ops|passes|calibrators)! \{([^}]*)\}").unwrap();
    let mut violations = Vec::new();
    for source in sources("src") {
        for found in list.captures_iter(&source.text) {
            let names: Vec<&str> = found[2].split_whitespace().map(|n| n.trim_end_matches(',')).collect();
            for pair in names.windows(2).filter(|p| p[0] >= p[1]) {
                violations.push(format!("{}: {}! has {} before {}", source.path, &found[1], pair[0], pair[1]));
            }
        }
    }
    report("operators, passes and calibrators are listed in alphabetical order", &violations);
}
