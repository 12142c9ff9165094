//! The command line as text: `testdata/cli/CASE.txt` holds commands with exit code, stdout, stderr and files left.
//!
//! ```text
//! # What the case shows.
//! > copy models/small_cnn.onnx in.onnx        prepare the empty folder that the case runs in
//! $ onnx-quant in.onnx out.onnx               run
//! exit 2
//! --- stderr
//! error: ...
//! --- files
//! in.onnx
//! ```
//!
//! `UPDATE=1 cargo test --test cli` rewrites what follows each command; read the diff. A section that is empty is
//! left out. Paths, times and measured sizes are replaced by `[DIR]`, `[TIME]` and so on (see [`filtered`]).
//! Preparations: `copy FROM TO` (from testdata), `dir NAME`, `text NAME WORDS`, `bytes NAME HEX`, `cut NAME BYTES`,
//! `npz NAME ARRAY:DTYPE:2x3=VALUE ...` where VALUE is `random`, `nan` or a number.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::npz::{self, Array};
use common::testdata;
use regex::Regex;

/// Does what one `>` line says, in the case's folder, and returns what it made.
fn prepare(dir: &Path, line: &str) -> PathBuf {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["copy", from, to] => {
            let to = dir.join(to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(testdata(from), to).unwrap_or_else(|e| panic!("{from}: {e}"));
        }
        ["dir", name] => fs::create_dir_all(dir.join(name)).unwrap(),
        ["text", name, text @ ..] => fs::write(dir.join(name), text.join(" ")).unwrap(),
        ["bytes", name, hex] => {
            let byte = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
            fs::write(dir.join(name), (0..hex.len()).step_by(2).map(byte).collect::<Vec<_>>()).unwrap();
        }
        ["cut", name, bytes] => {
            let content = fs::read(dir.join(name)).unwrap();
            fs::write(dir.join(name), &content[..bytes.parse().unwrap()]).unwrap();
        }
        ["npz", name, arrays @ ..] => {
            let arrays: Vec<_> = arrays.iter().map(|a| array(a)).collect();
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            npz::write(&path, &arrays.iter().map(|(n, a)| (n.as_str(), a)).collect::<Vec<_>>());
        }
        _ => panic!("unknown preparation: {line}"),
    }
    dir.join(if words[0] == "copy" { words[2] } else { words[1] })
}

/// `image:f32:4x3x8x8=random`
fn array(text: &str) -> (String, Array) {
    let (declared, value) = text.split_once('=').expect("ARRAY:DTYPE:SHAPE=VALUE");
    let [name, dtype, shape] = declared.split(':').collect::<Vec<_>>()[..] else { panic!("{text}") };
    let shape: Vec<usize> = shape.split('x').filter(|d| !d.is_empty()).map(|d| d.parse().unwrap()).collect();
    let n = shape.iter().product();
    let array = match (dtype, value) {
        ("f32", "random") => Array::random(&shape, -1.0, 1.0, 1),
        ("f32", "nan") => {
            let mut values = Array::random(&shape, -1.0, 1.0, 1).to_vec::<f32>();
            values[n / 2] = f32::NAN;
            Array::new(&shape, &values)
        }
        ("f32", v) => Array::new(&shape, &vec![v.parse::<f32>().unwrap(); n]),
        ("f64", v) => Array::new(&shape, &vec![v.parse::<f64>().unwrap(); n]),
        ("i64", v) => Array::new(&shape, &vec![v.parse::<i64>().unwrap(); n]),
        ("u8", v) => Array::new(&shape, &vec![v.parse::<u8>().unwrap(); n]),
        _ => panic!("unknown values: {text}"),
    };
    (name.to_string(), array)
}

/// Output without what differs from run to run or from machine to machine.
fn filtered(output: &[u8], dir: &Path) -> String {
    let mut text = String::from_utf8_lossy(output).replace(dir.to_str().unwrap(), "[DIR]").replace('\\', "/");
    for (pattern, with) in [
        // Times and memory, in the summary's last row and elsewhere.
        (r"\b\d+(\.\d+)? (ms|s|min)\b", "[TIME]"),
        (r"(\[TIME\] / )\d+(\.\d+)? [KMG]B", "${1}[MEMORY]"),
        // Measured errors: the last digits depend on the machine's vector units.
        (r"-?\b\d+(\.\d+)? dB", "[DB]"),
        (r"\b\d+(\.\d+)? -> \[DB\]", "[DB] -> [DB]"),
        (r"cosine \d\.\d+", "cosine [COSINE]"),
        (r"max abs [-+.0-9e]+", "max abs [MAX]"),
        (r"-(alpha|beta|rc)\.\d+\b", ""),
        (r"\bonnx-quant \d+\.\d+\.\d+\b", "onnx-quant [VERSION]"),
    ] {
        text = Regex::new(pattern).unwrap().replace_all(&text, with).into_owned();
    }
    text
}

/// Every file under `dir`, relative, sorted.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path.strip_prefix(dir).unwrap().to_path_buf()) }
        }
    }
    found.sort();
    found
}

/// Runs one command line and returns what the case file should say after it.
fn run(dir: &Path, command: &str) -> String {
    let mut words = command.split_whitespace();
    assert_eq!(words.next(), Some("onnx-quant"), "{command}");
    let out = Command::new(env!("CARGO_BIN_EXE_onnx-quant"))
        .args(words)
        .current_dir(dir)
        .env("COLUMNS", "100")
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR_FORCE")
        .output()
        .unwrap();
    let code = out.status.code().unwrap_or_else(|| panic!("{command}: {}", out.status));
    let mut text = format!("exit {code}\n");
    let left: String = files(dir).iter().map(|f| format!("{}\n", f.display())).collect();
    for (name, content) in
        [("stdout", filtered(&out.stdout, dir)), ("stderr", filtered(&out.stderr, dir)), ("files", left)]
    {
        if !content.is_empty() {
            writeln!(text, "--- {name}\n{}", content.trim_end()).unwrap();
        }
    }
    // Lines keep no trailing blanks, so that editors do not change the case.
    text.lines().map(|l| format!("{}\n", l.trim_end())).collect()
}

/// Runs a whole case and returns its file as it should be.
fn play(case: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let mut now = String::new();
    let mut given: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let mut in_expectation = false;
    for line in case.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            writeln!(now, "{line}\n{}", run(&dir, command).trim_end()).unwrap();
            in_expectation = true;
            for (file, content) in &given {
                assert!(fs::read(file).is_ok_and(|c| c == *content), "{command} changed {}", file.display());
            }
            continue;
        }
        if let Some(preparation) = line.strip_prefix("> ") {
            in_expectation = false;
            let made = prepare(&dir, preparation);
            if made.is_file() {
                given.insert(made.clone(), fs::read(made).unwrap());
            }
        }
        if !in_expectation {
            writeln!(now, "{line}").unwrap();
        }
    }
    now
}

#[test]
fn commands_print_what_the_cases_say() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut cases: Vec<PathBuf> = fs::read_dir(testdata("cli")).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    let mut failures = String::new();
    for path in cases {
        let wanted = fs::read_to_string(&path).unwrap();
        let now = play(&wanted);
        if update {
            fs::write(&path, &now).unwrap();
        } else if now != wanted {
            writeln!(failures, "=== {}\n{}", path.display(), difference(&wanted, &now)).unwrap();
        }
    }
    assert!(failures.is_empty(), "UPDATE=1 rewrites the cases\n{failures}");
}

/// The lines from the first difference on, wanted and found.
fn difference(wanted: &str, now: &str) -> String {
    let same = wanted.lines().zip(now.lines()).take_while(|(a, b)| a == b).count();
    let part = |text: &str, mark: &str| -> String {
        text.lines().skip(same).take(30).fold(String::new(), |s, l| s + mark + l + "\n")
    };
    format!("after line {same}:\n{}{}", part(wanted, "-"), part(now, "+"))
}
