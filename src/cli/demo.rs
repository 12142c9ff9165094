//! `demo`: quantizes a small network that is built into the program, with samples that are too, and counts how many
//! digits it reads right before and after.
//!
//! It writes what it works on, runs the same command that it prints, and exits with 3 when the accuracy drops by more
//! than a point, so that it also tells whether a build works. Network and samples: `testdata/demo/README.txt`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

use super::quantize;
use super::session::{Session, human_bytes, print, print_json};
use crate::calibrate::dataset::npy;
use crate::error::{Context, Result, WithHelp, anyhow};
use crate::interp::{CompileOptions, Program, RunOptions};
use crate::tensor::Tensor;

const MODEL: &[u8] = include_bytes!("../../testdata/demo/digits.onnx");
const CALIB_IMAGES: &[u8] = include_bytes!("../../testdata/demo/calib_images.npy");
const TEST_IMAGES: &[u8] = include_bytes!("../../testdata/demo/test_images.npy");
const TEST_LABELS: &[u8] = include_bytes!("../../testdata/demo/test_labels.npy");

/// The largest drop in accuracy, as a share of the images, that counts as working.
const MAX_DROP: f64 = 0.01;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Folder for the models and samples; it is made if need be
    #[arg(value_name = "DIR", default_value = "demo")]
    dir: PathBuf,
}

/// A command line of `quantize` alone.
#[derive(Debug, Parser)]
#[group(skip)]
struct Line {
    #[command(flatten)]
    args: quantize::Args,
}

pub(super) fn run(args: &Args, session: &mut Session) -> Result<ExitCode> {
    let dir = &args.dir;
    fs::create_dir_all(dir).with_context(|| format!("cannot make folder '{}'", dir.display()))?;
    let files = ["digits.onnx", "digits.int8.onnx", "calib.npz", "test.npz"].map(|name| dir.join(name));
    let [float, int8, calib, test] = &files;
    let images = pixels(TEST_IMAGES)?;
    let labels = npy::read(&mut &*TEST_LABELS, TEST_LABELS.len() as u64)?;
    store(float, MODEL.to_vec())?;
    store(calib, npz(&[("image", &pixels(CALIB_IMAGES)?)])?)?;
    store(test, npz(&[("image", &images), ("label", &labels)])?)?;

    // So small a network would not be faster in integers, and be left alone: here it is made smaller.
    let size = ["--prefer".into(), "size".into()];
    let command =
        [vec!["onnx-quant".into(), shown(float), shown(int8), "--calib".into(), shown(calib)], size.into()].concat();
    let (json, quiet) = (session.json, session.quiet);
    if !json && !quiet {
        let what = format!(
            "A trained network that reads handwritten digits ({}), {} images to calibrate with, {} to test with\n$ {}\n",
            human_bytes(MODEL.len() as u64),
            pixels(CALIB_IMAGES)?.shape()[0],
            labels.len(),
            command.join(" ")
        );
        print(&what)?;
    }
    // One result as JSON, not two.
    (session.json, session.quiet) = (false, json || quiet);
    let code = quantize::run(Line::try_parse_from(&command)?.args, session);
    (session.json, session.quiet) = (json, quiet);
    let code = code?;

    let before = n_right(float, &images, labels.slice()?, session)?;
    let after = n_right(int8, &images, labels.slice()?, session)?;
    let n = labels.len();
    let share = |right: usize| right as f64 / n as f64;
    let is_kept = share(before) - share(after) <= MAX_DROP;
    if json {
        let files = files.each_ref().map(|f| shown(f));
        print_json(&json!({
            "schema": 1, "command": command, "files": files, "images": n,
            "right": { "float": before, "int8": after }, "accuracy_kept": is_kept,
        }))?;
    } else if !quiet {
        print(&format!(
            " read right           {:<12} {:<12} of {n} handwritten digits that took no part in training\n\n\
             Written: {}\n\
             By hand: {}\n\
             Yours:   onnx-quant model.onnx model.int8.onnx --calib samples/\n",
            format!("{:.2} %", 100.0 * share(before)),
            format!("{:.2} %", 100.0 * share(after)),
            files.each_ref().map(|f| shown(f)).join(", "),
            command.join(" ")
        ))?;
    }
    if !is_kept {
        session.say(&format!("the int8 network reads {} digits right, the float network {before}", after));
        return Ok(ExitCode::from(3));
    }
    Ok(code)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Images of bytes 0 to 16 as the network wants them: float, 0 to 1.
fn pixels(npy: &[u8]) -> Result<Tensor> {
    let bytes = npy::read(&mut &*npy, npy.len() as u64)?;
    Tensor::new(bytes.shape(), bytes.slice::<u8>()?.iter().map(|&p| f32::from(p) / 16.0).collect())
}

fn npz(arrays: &[(&str, &Tensor)]) -> Result<Vec<u8>> {
    let mut file = std::io::Cursor::new(Vec::new());
    npy::write_npz(arrays.iter().copied(), &mut file)?;
    Ok(file.into_inner())
}

/// Writes a file, but not over one that holds something else.
fn store(path: &Path, content: Vec<u8>) -> Result<()> {
    if path.exists() && fs::read(path).is_ok_and(|old| old != content) {
        return Err(anyhow!("'{}' is there and is not the demo's", path.display()))
            .help(|| "give another folder: onnx-quant demo DIR".into());
    }
    fs::write(path, content).with_context(|| format!("cannot write '{}'", path.display()))
}

/// How many images get their label as the largest output.
fn n_right(model: &Path, images: &Tensor, labels: &[u8], session: &mut Session) -> Result<usize> {
    let program = Program::compile(&session.read(model)?, &CompileOptions::default())?;
    let options = RunOptions { threads: session.threads, ..RunOptions::default() };
    let outputs = program.run_tensors(std::slice::from_ref(images), options)?;
    let logits = outputs.first().context("the network has no output")?;
    let n_classes = logits.len() / labels.len().max(1);
    // Of equal outputs the first counts; max_by gives the last.
    let best = |row: &[f32]| (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let rows = logits.slice::<f32>()?.chunks(n_classes.max(1));
    Ok(rows.zip(labels).filter(|(row, label)| best(row) == Some(usize::from(**label))).count())
}
