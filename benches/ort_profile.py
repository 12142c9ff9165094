"""What the nodes of real models cost in ONNX Runtime, float and quantized: the second source of the [cost] table of
src/quant/targets/ort-cpu.toml, beside ort_costs.py, which times single operators in chains.

    for m in models/*.onnx; do onnx-quant $m quantized/$(basename $m) --calib data/$(basename $m .onnx) --prefer size; done
    python benches/ort_profile.py --zoo DIR --quantized quantized/

DIR/models/NAME.onnx and DIR/data/NAME/eval/*.npz are run, and quantized/NAME.onnx where there is one. For each kind of
node a line is fitted (non-negative least squares on weighted errors): microseconds a call, a million multiply-accumulate
operations, a thousand gathered runs of channels (positions of the output times taps of the window), a thousand output
elements. Needs onnx, onnxruntime, numpy and scipy.
"""

import argparse
import collections
import glob
import json
import math
import os
import tempfile
import time

import numpy as np
import onnx
import onnxruntime as ort
from scipy.optimize import nnls

SECONDS = 3
# As CHANNEL_BLOCK of src/quant/cost.rs.
CHANNEL_BLOCK = 16


def session(path, **options):
    so = ort.SessionOptions()
    so.intra_op_num_threads = so.inter_op_num_threads = 1
    so.log_severity_level = 4
    for name, value in options.items():
        setattr(so, name, value)
    return ort.InferenceSession(path, so, providers=["CPUExecutionProvider"])


def weights(path):
    """Weight shapes and groups of the integer convolutions that the runtime makes of a model, by name of the node."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = os.path.join(folder, "optimized.onnx")
        session(path, optimized_model_filepath=optimized)
        graph = onnx.load(optimized).graph
    stored = {i.name: list(i.dims) for i in graph.initializer}
    group = lambda n: next((a.i for a in n.attribute if a.name == "group"), 1)
    return {n.name: (stored[n.input[3]], group(n)) for n in graph.node if n.op_type == "QLinearConv" and n.input[3] in stored}


def profile(path, feed):
    """A row for each node: name, operator, input and output types and shapes, microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        s = session(path, enable_profiling=True, profile_file_prefix=os.path.join(folder, "p"))
        start, n = time.time(), 0
        while n < 8 or (time.time() - start < SECONDS and n < 400):
            s.run(None, feed)
            n += 1
        with open(s.end_profiling()) as f:
            events = json.load(f)
    times = collections.defaultdict(list)
    for e in events:
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"):
            a = e["args"]
            shapes = json.dumps([a.get("input_type_shape"), a.get("output_type_shape")])
            times[e["name"].removesuffix("_kernel_time"), a["op_name"], shapes].append(e["dur"])
    return [(name, op, *json.loads(shapes), float(np.percentile(t, 20))) for (name, op, shapes), t in times.items()]


def shape(of):
    return next(iter(of.values()))


def features(name, op, inputs, outputs, integer_weights):
    """The kind of a node and its features, or None where they are not known."""
    out = math.prod(shape(outputs[0]))
    if op not in ("Conv", "FusedConv", "QLinearConv"):
        is_integer = not next(iter(outputs[0])).startswith("float")
        return op + (" of integers" if is_integer else ""), [1, 0, 0, out / 1e3]
    if op == "QLinearConv":
        weight, group = integer_weights.get(name, (None, 1))
    else:
        weight = shape(inputs[1])
        group = max(shape(inputs[0])[1] // weight[1], 1)
    if not weight or len(weight) < 3:
        return None
    channels, taps = weight[0], math.prod(weight[2:])
    positions = out // channels
    is_depthwise = group > 1 and weight[1] == 1
    block = 1 if is_depthwise else 8 if channels < 8 and op != "QLinearConv" else CHANNEL_BLOCK
    computed = -(-channels // block) * block
    macs = positions * computed * weight[1] * taps
    gathered = positions * taps if taps > 1 else 0
    kind = ("QLinearConv" if op == "QLinearConv" else "Conv") + ("/depthwise" if is_depthwise else "")
    return kind, [1, macs / 1e6, gathered / 1e3, out / 1e3]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--zoo", required=True)
    arguments.add_argument("--quantized", required=True)
    arguments.add_argument("names", nargs="*")
    a = arguments.parse_args()
    rows = collections.defaultdict(list)
    for quantized in sorted(glob.glob(os.path.join(a.quantized, "*.onnx"))):
        name = os.path.basename(quantized).removesuffix(".onnx")
        if a.names and name not in a.names:
            continue
        samples = sorted(glob.glob(os.path.join(a.zoo, "data", name, "eval", "*.npz")))
        with np.load(samples[0]) as z:
            feed = dict(z)
        for path in (os.path.join(a.zoo, "models", name + ".onnx"), quantized):
            known = weights(path)
            for node, op, inputs, outputs, us in profile(path, feed):
                found = outputs and features(node, op, inputs, outputs, known)
                if found:
                    rows[found[0]].append((found[1], us))
        print(name, flush=True)
    print(f"{'kind':32} nodes  line                                   median error")
    for kind, found in sorted(rows.items()):
        if len(found) < 8:
            continue
        x, us = np.array([f for f, _ in found]), np.array([t for _, t in found])
        weight = 1 / np.maximum(us, 3) ** 0.75
        line, _ = nnls(x * weight[:, None], us * weight)
        error = np.median(np.abs(x @ line - us) / np.maximum(us, 3))
        print(f"{kind:32} {len(us):5}  {np.round(line, 3).tolist()!s:40} {error:.0%}")


if __name__ == "__main__":
    main()
