//! A model as ONNX Runtime's optimizer rewrites it, in our interpreter.

use std::path::Path;

use onnx_quant::interp::{CompileOptions, NoTap, Program, RunOptions};
use onnx_quant::ir::{Graph, ValueId};
use onnx_quant::ops::Item;

use super::npz::Array;
use super::ort::{Level, ort_optimize, ort_run_at};
use super::tensors::from_array;

/// The distance of two neighbouring values of an output: the scale that it is dequantized with, looked for behind
/// operators that move elements; `None` for an output that is computed in floats.
fn step(graph: &Graph, mut value: ValueId) -> Option<f64> {
    loop {
        let (id, _) = graph.producer(value)?;
        let node = graph.node(id);
        match node.op_type.as_str() {
            "DequantizeLinear" => {
                let scale = graph.constant(graph.input(id, 1)?)?.get().ok()?.to_f64s().ok()?;
                return scale.into_iter().reduce(f64::max);
            }
            "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten" | "Identity" => value = graph.input(id, 0)?,
            _ => return None,
        }
    }
}

/// Lets ONNX Runtime write its optimized graph of `model` and runs that in our interpreter: what differs from ONNX
/// Runtime's result by more than a step of the output. Outputs in floats may differ by a 1/200 of their largest value,
/// since an activation before them may lie a step off. ONNX Runtime runs the graph as it is in the file: on processors
/// without VNNI its integer kernels add products in pairs of 16 bits, which saturate.
///
/// # Errors
/// The difference, or what does not load or run.
pub fn agrees(model: &Path, inputs: &[(&str, &Array)]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("optimized.onnx");
    ort_optimize(model, Level::Extended, &path)?;
    let theirs = ort_run_at(model, inputs, Level::Disabled)?;
    let optimized = onnx_quant::onnx::read(&path).map_err(|e| format!("{e:#}"))?;
    let program = Program::compile(&optimized, &CompileOptions::default()).map_err(|e| format!("{e:#}"))?;
    let named: Vec<_> = inputs.iter().map(|(name, a)| ((*name).to_owned(), from_array(a))).collect();
    let ours = program.run_named(&named, RunOptions::default(), &mut NoTap).map_err(|e| format!("{e:#}"))?;
    let graph = optimized.main();
    for ((item, (name, theirs)), &output) in ours.into_iter().zip(&theirs).zip(graph.outputs()) {
        let ours = item.and_then(|i| i.into_tensor().ok()).ok_or_else(|| format!("output {name} is no tensor"))?;
        let theirs = from_array(theirs);
        if (ours.dtype(), ours.shape()) != (theirs.dtype(), theirs.shape()) {
            let show = |t| super::compare::show(&Item::Tensor(t));
            return Err(format!("output {name}: {} instead of {}", show(ours), show(theirs)));
        }
        let (a, b) = (ours.to_f64s().unwrap(), theirs.to_f64s().unwrap());
        let largest = b.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let allowed = step(graph, output).map_or(largest / 200.0, |s| s * 1.001);
        if let Some(i) = a.iter().zip(&b).position(|(a, b)| !((a - b).abs() <= allowed)) {
            return Err(format!("output {name}[{i}]: {} instead of {}, {allowed} apart at most", a[i], b[i]));
        }
    }
    Ok(())
}
