"""Answers requests of the Rust tests, one JSON object per line on stdin, one per line on stdout.

Starting Python and importing ONNX Runtime costs half a second, so one process serves a whole test binary.
A request names its `op`; a reply is {"ok": ...} or {"error": "..."}.
"""

import json
import os
import sys
import tempfile
import traceback
import zipfile

import numpy as np
import onnx
import onnxruntime as ort

ort.set_default_logger_severity(4)

LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def options(level):
    o = ort.SessionOptions()
    # One thread: results do not depend on the machine and test binaries do not fight for cores.
    o.intra_op_num_threads = 1
    o.inter_op_num_threads = 1
    o.log_severity_level = 4
    o.graph_optimization_level = LEVELS[level]
    return o


def session(model, level):
    return ort.InferenceSession(model, options(level), providers=["CPUExecutionProvider"])


def op_run(model, inputs, outputs, level="all", names=None):
    """Runs `model` on the arrays of the npz `inputs` and writes every output to the npz `outputs`."""
    s = session(model, level)
    with np.load(inputs) as z:
        feed = {k: z[k] for k in z.files}
    names = names or [o.name for o in s.get_outputs()]
    arrays = {}
    for name, value in zip(names, s.run(names, feed)):
        if not isinstance(value, np.ndarray):
            raise TypeError(f"output '{name}' is a {type(value).__name__}, not a tensor")
        arrays[name] = value
    # np.savez takes the names as keyword arguments, which clash with its own: write the members ourselves.
    with zipfile.ZipFile(outputs, "w") as z:
        for name, value in arrays.items():
            with z.open(name + ".npy", "w", force_zip64=True) as f:
                np.lib.format.write_array(f, value, allow_pickle=False)
    return list(arrays)


def op_run_many(models, inputs, outputs, level="disabled"):
    """Runs many small models. The inputs of model 3 are `3/NAME` in the npz `inputs`, its outputs become `3/0`, `3/1`, ...
    in `outputs`. For each model the reply has null, or the error."""
    replies = []
    with np.load(inputs) as given, zipfile.ZipFile(outputs, "w") as z:
        feeds = [{} for _ in models]
        for key in given.files:
            index, name = key.split("/", 1)
            feeds[int(index)][name] = given[key]
        for i, (model, feed) in enumerate(zip(models, feeds)):
            try:
                values = session(model, level).run(None, feed)
            except Exception as e:  # the test decides what an error means
                replies.append(str(e))
                continue
            replies.append(None)
            for j, value in enumerate(values):
                with z.open(f"{i}/{j}.npy", "w", force_zip64=True) as f:
                    np.lib.format.write_array(f, np.asarray(value), allow_pickle=False)
    return replies


def op_openvino(model, inputs, outputs):
    """Runs `model` in OpenVINO on the CPU as `run` does in ONNX Runtime. The reply has, for every layer that OpenVINO made of
    it, the original names and the precision that it ran in."""
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    with np.load(inputs) as z:
        feed = {k: z[k] for k in z.files}
    results = compiled(feed)
    with zipfile.ZipFile(outputs, "w") as z:
        for port in compiled.outputs:
            with z.open(port.get_any_name() + ".npy", "w", force_zip64=True) as f:
                np.lib.format.write_array(f, np.asarray(results[port]), allow_pickle=False)
    layers = []
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        text = lambda k: str(info[k].astype(str)) if k in info else ""
        layers.append([text("layerType"), text("runtimePrecision")])
    return layers


def nodes_of(graph):
    for node in graph.node:
        yield node
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(a.g)
            elif a.type == onnx.AttributeProto.GRAPHS:
                for g in a.graphs:
                    yield from nodes_of(g)


def op_optimized_ops(model, level):
    """Every node of the graph as ONNX Runtime would run it: [name, op_type, domain]."""
    with tempfile.TemporaryDirectory() as d:
        o = options(level)
        o.optimized_model_filepath = os.path.join(d, "optimized.onnx")
        ort.InferenceSession(model, o, providers=["CPUExecutionProvider"])
        m = onnx.load(o.optimized_model_filepath, load_external_data=False)
    return [[n.name, n.op_type, n.domain] for n in nodes_of(m.graph)]


def op_optimize(model, level, to):
    """Writes the graph as ONNX Runtime would run it."""
    o = options(level)
    o.optimized_model_filepath = to
    ort.InferenceSession(model, o, providers=["CPUExecutionProvider"])
    return None


def op_check(model):
    """The checker's full check, and shape inference in its strictest form."""
    onnx.checker.check_model(model, full_check=True)
    size = os.path.getsize(model)
    if size < 2**31 - 2**20:
        m = onnx.load(model, load_external_data=False)
        onnx.shape_inference.infer_shapes(m, check_type=True, strict_mode=True, data_prop=True)
    return None


def op_call(script, argument):
    """Runs the Python source `script` and calls its `main(argument)`."""
    scope = {"__name__": "script"}
    exec(compile(script, "<script>", "exec"), scope)
    return scope["main"](argument)


def main():
    # Replies go to the real stdout; whatever a library prints goes to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"ok": globals()["op_" + request.pop("op")](**request)}
        except Exception as e:  # the test decides what an error means
            reply = {"error": f"{type(e).__name__}: {e}", "traceback": traceback.format_exc()}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
