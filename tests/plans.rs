//! What the planner decides, as text: `testdata/plans/<case>.txt` holds a model in ONNX's textual syntax, `====`, and its
//! plan with the reason for every node. `UPDATE=1` rewrites what is expected.
//!
//! A line `#! prefer size` in front of the model leaves costs out, `#! exclude NAME` keeps a node float,
//! `#! target NAME` plans for another runtime. Inputs are filled with a fixed pattern: only their shapes matter here.

mod common;

use std::fs;

use common::testdata;
use onnx_quant::diag::Sink;
use onnx_quant::infer::infer;
use onnx_quant::ir::Dim;
use onnx_quant::ir::text_parse::parse;
use onnx_quant::passes::{self, Ctx, manager};
use onnx_quant::quant::{Config, plan_only};
use onnx_quant::tensor::{DType, Tensor};

fn plan(text: &str) -> Result<String, String> {
    let say = |e: anyhow::Error| format!("{e:#}");
    let mut model = parse(text).map_err(say)?;
    let option = |name: &str| {
        let lines = text.lines().filter_map(|l| l.strip_prefix("#! "));
        lines.filter_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned()).collect::<Vec<_>>()
    };
    let mut config = Config::new(option("target").first().map_or("ort-cpu", String::as_str)).map_err(say)?;
    if option("prefer").iter().any(|p| p == "size") {
        config.target.cost = None;
    }
    let excluded = option("exclude");
    config.exclude =
        Box::new(move |name, _| excluded.iter().any(|e| e == name).then(|| "named by --nodes-to-exclude".to_owned()));
    let mut sink = Sink::default();
    let mut ctx = Ctx::new(&mut sink).opset_floor(config.target.opset);
    manager::run(&mut model, &passes::PREPARE, &mut ctx, &mut |_, _| {}).map_err(say)?;
    infer(&mut model, &mut sink).map_err(say)?;
    let g = model.main();
    let mut inputs = Vec::new();
    for &v in g.inputs() {
        let value = g.value(v);
        let ty = value.ty.as_ref().ok_or("an input has no type")?;
        let shape: Vec<usize> =
            ty.shape().unwrap_or_default().iter().map(|d| if let Dim::Known(n) = d { *n } else { 2 }).collect();
        let n: usize = shape.iter().product();
        let tensor = match ty.dtype() {
            Some(DType::F32) => Tensor::new(&shape, (0..n).map(|i| (i % 7) as f32 - 3.0).collect()),
            Some(DType::I64) => Tensor::new(&shape, (0..n).map(|i| (i % 2) as i64).collect()),
            Some(DType::Bool) => Tensor::new(&shape, (0..n).map(|i| i % 3 > 0).collect()),
            other => return Err(format!("inputs of type {other:?} are not made here")),
        };
        inputs.push((value.name.clone(), tensor.map_err(say)?));
    }
    Ok(plan_only(&model, &config, &inputs).map_err(say)?.print(&model))
}

#[test]
fn plans_are_what_the_fixtures_say() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut failures = String::new();
    let mut paths: Vec<_> = fs::read_dir(testdata("plans")).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "only {} cases", paths.len());
    for path in paths {
        let file = fs::read_to_string(&path).unwrap();
        let (input, expected) = file.split_once("====\n").unwrap_or((&file, ""));
        let found = plan(input).unwrap_or_else(|e| format!("error: {e}\n"));
        if update {
            fs::write(&path, format!("{}\n====\n{found}", input.trim_end())).unwrap();
        } else if found != expected {
            failures.push_str(&format!("{}: expected\n{expected}\nfound\n{found}\n", path.display()));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}
