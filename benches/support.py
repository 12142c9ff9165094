#!/usr/bin/env python3
"""Which mode and type runs where: makes models, runs them in each runtime, prints a Markdown table.

    python -m venv target/support && target/support/bin/pip install numpy onnx onnxruntime openvino tract
    target/support/bin/python benches/support.py --bin target/release/onnx-quant

Every model is run on its samples by `onnx-quant run` and by each runtime that is installed, with the optimizations
that the runtime has on by itself; ONNX Runtime also without any, which is the specification run operator by operator. "works" is: no value further from ours than one step of the output, which is the scale
of the DequantizeLinear that makes it, or else a 255th of the output's range. Otherwise the table says how far off in
steps and in dB (of ours to the difference), or what the runtime refuses it with; --verbose shows each model's figures.
"""

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
MODELS = ["small_cnn", "encoder"]
STATIC, WEIGHTS = ["--prefer", "size", "--calib"], ["--mode", "weight-only"]
FLOAT8 = ["--activation-type", "float8e4m3fn", "--weight-type", "float8e4m3fn"]
# What it is, and its arguments; `--calib` at the end gets the samples.
ROWS = [
    ("static u8/s8, `ort-cpu`", ["--target", "ort-cpu", *STATIC]),
    ("static u8/s8 of 7 bits, `ort-cpu-avx2`", ["--target", "ort-cpu-avx2", *STATIC]),
    ("static s8/s8, `ort-arm64`", ["--target", "ort-arm64", *STATIC]),
    # Without VNNI, whose absence saturates 8-bit products, 7 bits are what these targets' users are told to ask for.
    ("static u8/s8 of 7 bits, `openvino`", ["--target", "openvino", "--reduce-range", *STATIC]),
    ("static s8/s8 of 7 bits, `portable`", ["--target", "portable", "--reduce-range", *STATIC]),
    ("static s8/s8, `tensorrt`", ["--target", "tensorrt", *STATIC]),
    ("static u8/s8, `qnn`", ["--target", "qnn", *STATIC]),
    ("static u16/s8, `qnn`", ["--target", "qnn", "--activation-type", "uint16", *STATIC]),
    ("static s16/s8, `portable`", ["--target", "portable", "--activation-type", "int16", *STATIC]),
    ("float8 (e4m3fn), `portable`", ["--target", "portable", *FLOAT8, *STATIC]),
    ("`--format qoperator`, u8/s8", ["--format", "qoperator", *STATIC]),
    ("`--mode dynamic`", ["--mode", "dynamic"]),
    *[(f"weight-only {t}", [*WEIGHTS, "--block-size", "16", "--weight-type", t]) for t in ("int8", "int4", "uint4", "int2")],
    *[
        (f"weight-only {t}, `matmulnbits`", [*WEIGHTS, "--block-size", "16", "--format", "matmulnbits", "--weight-type", t])
        for t in ("int8", "int4", "int2")
    ],
    (
        "weight-only int4, half in 8 bits",
        [*WEIGHTS, "--block-size", "16", "--weight-type", "int4", "--mixed-bits", "50"],
    ),
]


def onnxruntime(model, samples, level="ORT_ENABLE_ALL"):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [session.run(None, s) for s in samples]


def unoptimized(model, samples):
    return onnxruntime(model, samples, "ORT_DISABLE_ALL")


def openvino(model, samples):
    import openvino as ov

    core = ov.Core()
    # bfloat16 on CPUs that have it would be another computation.
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [list(compiled(s).to_tuple()) for s in samples]


def tract(model, samples):
    import tract

    loaded = tract.onnx().load(model)
    names = [loaded.input_name(i) for i in range(loaded.input_count())]
    for i, name in enumerate(names):
        # Only float inputs are met here.
        loaded.set_input_fact(i, ",".join(map(str, samples[0][name].shape)) + ",f32")
    runnable = loaded.into_model().into_runnable()
    return [[t.to_numpy() for t in runnable.run([s[n] for n in names])] for s in samples]


# Name, what runs it, the package.
RUNTIMES = {
    "ONNX Runtime unoptimized": (unoptimized, "onnxruntime"),
    "ONNX Runtime": (onnxruntime, "onnxruntime"),
    "OpenVINO": (openvino, "openvino"),
    "tract": (tract, "tract"),
}


def child(runtime, model, data, out):
    """Runs a model in a runtime; a process of its own, since a runtime may abort."""
    import numpy as np

    arrays = dict(np.load(data))
    count = len(next(iter(arrays.values())))
    results = RUNTIMES[runtime][0](model, [{k: v[i : i + 1] for k, v in arrays.items()} for i in range(count)])
    np.savez(out, **{f"{i}.{k}": x for i, outputs in enumerate(results) for k, x in enumerate(outputs)})


def reason(done):
    """The line of a failure that says why, short enough for a table."""
    lines = [x.strip() for x in done.stderr.splitlines() if x.strip()]
    lines = [x for x in lines if not x.startswith(("Traceback", "File", "warning", "help:"))]
    if not lines:
        return f"exit code {done.returncode}"
    # The last line that looks like a reason: in a chain, what is caused comes before its cause.
    text = next((x for x in reversed(lines) if re.search(r"error|not|fail|support|unexpected", x, re.I)), lines[-1])
    text = re.sub(r"^[\w.]*(Error|Exception|Fail|NotImplemented|InvalidGraph|error):\s*|\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"\S*/\S+\.onnx\S*", "the model", re.sub(r"\S*/\S+\.(rs|cpp|hpp|cc|h)\S* ?|^\d+: ", "", text))
    text = re.sub(r"\w+ \w+::\w+\(.*?\) |Exception during initialization: ", "", text)
    return text.replace("|", "/")[:110]


def steps(model):
    """The scale of the DequantizeLinear that makes an output, by the output's number."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(model).graph
    makers = {o: n for n in graph.node for o in n.output}
    stored = {t.name: t for t in graph.initializer}
    found = {}
    for i, output in enumerate(graph.output):
        node = makers.get(output.name)
        if node is not None and node.op_type == "DequantizeLinear" and node.input[1] in stored:
            found[i] = float(numpy_helper.to_array(stored[node.input[1]]).max())
    return found


def compare(ours, theirs, scales):
    """The largest difference in steps, and the dB of ours to the difference."""
    import numpy as np

    worst, least = 0.0, float("inf")
    for k in range(len(ours[0])):
        a, b = (np.concatenate([r[k].ravel() for r in runs]).astype(np.float64) for runs in (ours, theirs))
        if a.shape != b.shape or not np.isfinite(b).all():
            return float("inf"), float("-inf")
        step = scales.get(k) or (a.max() - a.min()) / 255
        error = np.abs(a - b)
        worst = max(worst, error.max() / step)
        noise = (error**2).sum()
        least = min(least, 10 * np.log10((a**2).sum() / noise) if noise else float("inf"))
    return worst, least


def run_all(a, runtimes, model, arguments, folder):
    """What each runtime makes of a model: text, by runtime, or one text where there is no model."""
    import numpy as np

    source = os.path.join(ROOT, "testdata", "models", model)
    made, ours = os.path.join(folder, "made.onnx"), os.path.join(folder, "ours")
    arguments = arguments + [source + ".npz"] if arguments[-1] == "--calib" else arguments
    done = subprocess.run([a.bin, source + ".onnx", made, *arguments], capture_output=True, text=True)
    if done.returncode:
        return "not made: " + reason(done)
    done = subprocess.run([a.bin, "run", made, "--data", source + ".npz", "--output", ours], capture_output=True, text=True)
    if done.returncode:
        return "our interpreter: " + reason(done)
    count = len(next(iter(np.load(source + ".npz").values())))
    names = None
    expected = []
    for i in range(count):
        stored = np.load(os.path.join(ours, f"{i:04}.npz"))
        names = names or stored.files
        expected.append([stored[n] for n in names])
    scales, texts = steps(made), {}
    for runtime in runtimes:
        out = os.path.join(folder, runtime + ".npz")
        try:
            done = subprocess.run(
                [sys.executable, __file__, "--child", runtime, made, source + ".npz", out],
                capture_output=True, text=True, timeout=300, env={**os.environ, "RUST_BACKTRACE": "0"},
            )
        except subprocess.TimeoutExpired:
            texts[runtime] = "takes more than 300 s"
            continue
        if done.returncode or not os.path.exists(out):
            texts[runtime] = "refused: " + reason(done)
            continue
        stored = np.load(out)
        got = [[stored[f"{i}.{k}"] for k in range(len(names))] for i in range(count)]
        worst, db = compare(expected, got, scales)
        if a.verbose:
            print(f"{model} {' '.join(arguments)}: {runtime} {worst:.3f} steps, {db:.1f} dB", file=sys.stderr)
        # The difference is computed in float32.
        texts[runtime] = "works" if worst <= 1.001 else f"{worst:.1f} steps off, {db:.1f} dB"
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/onnx-quant")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--only", default="", help="rows whose name has this regular expression")
    a = parser.parse_args()
    runtimes = {}
    for name, (_, package) in RUNTIMES.items():
        try:
            runtimes[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not installed", file=sys.stderr)
    print("| " + " | ".join(["made", *[f"{n} {v}" for n, v in runtimes.items()]]) + " |")
    print("|---" * (1 + len(runtimes)) + "|")
    for name, arguments in ROWS:
        if not re.search(a.only, name):
            continue
        cells = {r: {} for r in runtimes}
        for model in MODELS:
            with tempfile.TemporaryDirectory() as folder:
                found = run_all(a, runtimes, model, arguments, folder)
            for r in runtimes:
                cells[r][model] = found if isinstance(found, str) else found[r]
        texts = []
        for r in runtimes:
            kinds = set(cells[r].values())
            texts.append(kinds.pop() if len(kinds) == 1 else "; ".join(f"{m}: {t}" for m, t in cells[r].items()))
        print(f"| {name} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
