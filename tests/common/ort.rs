//! ONNX Runtime and ONNX's checker, asked through the Python worker.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use super::npz::{self, Array};
use super::python::request;

/// How far ONNX Runtime rewrites a graph before it runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As in the file.
    Disabled,
    /// Rewrites that keep to ONNX's operators.
    Basic,
    /// Fusions for the CPU, quantized ones included.
    Extended,
    /// Extended, and memory layouts of this machine.
    All,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Disabled => "disabled",
            Level::Basic => "basic",
            Level::Extended => "extended",
            Level::All => "all",
        }
    }
}

/// One node of a graph as ONNX Runtime runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunNode {
    pub name: String,
    pub op_type: String,
    pub domain: String,
}

/// Runs a model on the CPU, one thread, all optimizations, and returns its outputs in graph order.
///
/// # Errors
/// What ONNX Runtime says when it does not load or run the model.
pub fn ort_run(model: &Path, inputs: &[(&str, &Array)]) -> Result<Vec<(String, Array)>, String> {
    ort_run_at(model, inputs, Level::All)
}

/// [`ort_run`] with another optimization level.
///
/// # Errors
/// As [`ort_run`].
pub fn ort_run_at(model: &Path, inputs: &[(&str, &Array)], level: Level) -> Result<Vec<(String, Array)>, String> {
    let dir = TempDir::new().unwrap();
    let given = dir.path().join("inputs.npz");
    npz::write(&given, inputs);
    ort_run_npz(model, &given, level)
}

/// [`ort_run`] on the arrays of an `.npz` file.
///
/// # Errors
/// As [`ort_run`].
pub fn ort_run_npz(model: &Path, inputs: &Path, level: Level) -> Result<Vec<(String, Array)>, String> {
    let dir = TempDir::new().unwrap();
    let outputs = dir.path().join("outputs.npz");
    let level = level.as_str();
    request("run", json!({ "model": model, "inputs": inputs, "outputs": outputs, "level": level }))?;
    Ok(npz::read(&outputs))
}

/// Runs many small models in one round trip, as they are in the file. Gives each one's outputs, or what ONNX Runtime says.
///
/// # Errors
/// The worker died, which a model can bring about in native code.
pub fn ort_run_many(models: &[(Vec<u8>, Vec<(String, Array)>)]) -> Result<Vec<Result<Vec<Array>, String>>, String> {
    let dir = TempDir::new().unwrap();
    let (given, made) = (dir.path().join("inputs.npz"), dir.path().join("outputs.npz"));
    let mut paths = Vec::new();
    let mut inputs = Vec::new();
    for (i, (model, arrays)) in models.iter().enumerate() {
        let path = dir.path().join(format!("{i}.onnx"));
        std::fs::write(&path, model).unwrap();
        paths.push(path);
        inputs.extend(arrays.iter().map(|(name, a)| (format!("{i}/{name}"), a)));
    }
    npz::write(&given, &inputs.iter().map(|(n, a)| (n.as_str(), *a)).collect::<Vec<_>>());
    let replies = request("run_many", json!({ "models": paths, "inputs": given, "outputs": made }))?;
    let replies: Vec<Option<String>> = serde_json::from_value(replies).map_err(|e| e.to_string())?;
    let mut results: Vec<Result<Vec<Array>, String>> =
        replies.into_iter().map(|r| r.map_or_else(|| Ok(Vec::new()), Err)).collect();
    for (name, array) in npz::read(&made) {
        let index: usize = name.split('/').next().unwrap().parse().unwrap();
        results[index].as_mut().unwrap().push(array);
    }
    Ok(results)
}

/// The nodes that ONNX Runtime would run after its optimizations, subgraphs included.
///
/// # Errors
/// What ONNX Runtime says when it does not load the model.
pub fn ort_optimized(model: &Path, level: Level) -> Result<Vec<RunNode>, String> {
    let nodes = request("optimized_ops", json!({ "model": model, "level": level.as_str() }))?;
    let nodes: Vec<[String; 3]> = serde_json::from_value(nodes).map_err(|e| e.to_string())?;
    Ok(nodes.into_iter().map(|[name, op_type, domain]| RunNode { name, op_type, domain }).collect())
}

/// Type and precision of a layer as OpenVINO runs it.
pub type Layer = (String, String);

/// Runs a model in OpenVINO on the CPU and returns its outputs and the layers.
///
/// # Errors
/// What OpenVINO says when it does not load or run the model.
pub fn openvino_run(model: &Path, inputs: &[(&str, &Array)]) -> Result<(Vec<(String, Array)>, Vec<Layer>), String> {
    let dir = TempDir::new().unwrap();
    let (given, made) = (dir.path().join("inputs.npz"), dir.path().join("outputs.npz"));
    npz::write(&given, inputs);
    let layers = request("openvino", json!({ "model": model, "inputs": given, "outputs": made }))?;
    let layers: Vec<[String; 2]> = serde_json::from_value(layers).map_err(|e| e.to_string())?;
    Ok((npz::read(&made), layers.into_iter().map(|[a, b]| (a, b)).collect()))
}

/// Writes the graph that ONNX Runtime would run after its optimizations.
///
/// # Errors
/// What ONNX Runtime says when it does not load the model.
pub fn ort_optimize(model: &Path, level: Level, to: &Path) -> Result<(), String> {
    request("optimize", json!({ "model": model, "level": level.as_str(), "to": to })).map(drop)
}

/// Operator type and domain of every node in [`ort_optimized`].
///
/// # Errors
/// As [`ort_optimized`].
pub fn ort_optimized_ops(model: &Path, level: Level) -> Result<Vec<(String, String)>, String> {
    Ok(ort_optimized(model, level)?.into_iter().map(|n| (n.op_type, n.domain)).collect())
}

/// ONNX's checker (full check) and strict shape inference with data propagation.
///
/// # Errors
/// What they say about the model.
pub fn onnx_check(model: &Path) -> Result<(), String> {
    request("check", json!({ "model": model })).map(drop)
}
