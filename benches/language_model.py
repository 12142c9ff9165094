#!/usr/bin/env python3
"""A small language model, weight-only: perplexity, size, processor time and memory beside the standard tool.

    python -m venv target/lm/venv && target/lm/venv/bin/pip install jax numpy onnx onnxruntime onnx-ir
    target/lm/venv/bin/python testdata/scripts/train_lm.py train target/lm
    target/lm/venv/bin/python benches/language_model.py --bin target/release/onnx-quant --lm target/lm

The standard tool is onnxruntime.quantization.matmul_nbits_quantizer, run by --python (its HQQ needs torch). Each run
is a process of its own; of --runs the median counts. Perplexity is per byte of held-out text, in ONNX Runtime, the
key-value cache carried on. Types are int8 and int4 without, uint4 with zero points.

Which weights share a block is chance, and so is part of what a rounding costs. --models N counts on N models that compute
the same: the residual stream and the hidden units in another order each. Perplexity is then their mean, with the least and
the largest; --only names the algorithms that are wanted.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile

from whole_command import measure

HERE = os.path.dirname(os.path.abspath(__file__))
TRAIN = os.path.join(HERE, "..", "testdata", "scripts", "train_lm.py")

# Type, algorithm of ours, algorithm of the standard tool.
PAIRS = [
    ("int8", "rtn", "default"),
    ("int4", "rtn", "default"),
    ("int4", "hqq", None),
    ("int4", "awq", None),
    ("int4", "gptq", "gptq"),
    ("uint4", "rtn", "default"),
    ("uint4", "rtn", "rtn"),
    ("uint4", "rtn", "k_quant"),
    ("uint4", "hqq", "hqq"),
    ("uint4", "gptq", "gptq"),
]


def standard(model, calib, dtype, algorithm, block, out):
    """What the child process runs."""
    import glob

    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization import matmul_nbits_quantizer as q

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.files = iter(sorted(glob.glob(os.path.join(calib, "*.npz"))))

        def get_next(self):
            path = next(self.files, None)
            return None if path is None else dict(np.load(path))

    symmetric, bits = not dtype.startswith("u"), int(dtype[-1])
    config = {
        "default": lambda: q.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, bits=bits),
        "rtn": q.RTNWeightOnlyQuantConfig,
        "k_quant": q.KQuantWeightOnlyQuantConfig,
        "hqq": lambda: q.HQQWeightOnlyQuantConfig(block_size=block, bits=bits),
        "gptq": lambda: q.GPTQWeightOnlyQuantConfig(Reader()),
    }[algorithm]()
    tool = q.MatMulNBitsQuantizer(model, bits=bits, block_size=block, is_symmetric=symmetric, algo_config=config)
    tool.process()
    tool.model.save_model_to_file(out)


def shuffled(path, seed, out):
    """The same function with the width and the hidden units of each layer in another order."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    stored = {t.name: t for t in model.graph.initializer}
    rng = np.random.default_rng(seed)
    width = rng.permutation(stored["norm.weight"].dims[0])
    hidden = {}

    def order(name):
        """By which axes hold what."""
        layer, part = name.split(".")[0], name.removesuffix(".weight").split(".", 1)[-1]
        if name in ("embedding.weight", "position.weight"):
            return [None, width]
        if name == "head.weight" or part in ("query", "key", "value"):
            return [width, None]
        if "norm" in name or name.endswith("down.b"):
            return [width]
        if part in ("up", "up.b", "down"):
            units = hidden.setdefault(layer, rng.permutation(stored[f"{layer}.up.b"].dims[0]))
            return {"up": [width, units], "up.b": [units], "down": [units, width]}[part]
        return [None, width] if part == "out" else []

    for name, tensor in stored.items():
        x = numpy_helper.to_array(tensor)
        for axis, by in enumerate(order(name)):
            x = x if by is None else x.take(by, axis)
        tensor.CopyFrom(numpy_helper.from_array(x, name))
    onnx.save(model, out)


def quality(lm, path):
    """Perplexity and MB, or why there are none. In a process of its own: the peak memory of a process that this one
    starts is at least what this one holds."""
    done = subprocess.run([sys.executable, TRAIN, "perplexity", lm, path], capture_output=True, text=True)
    found = re.search(r"([\d.]+) MB +perplexity ([\d.]+)", done.stdout)
    if not found:
        return None, (done.stderr.strip().splitlines() or ["no message"])[-1][:90]
    return float(found[2]), found[1]


def cells(command, out, runs, lm):
    """Perplexity, MB, processor seconds and peak MB of a tool's run as text; what it says when it fails."""
    figures = []
    for _ in range(runs):
        figure = measure(command, 900)
        if figure is None:
            said = subprocess.run(command, capture_output=True, text=True).stderr.strip().splitlines()
            return None, ["fails: " + (said[-1][:90] if said else "no message"), "", "", ""]
        figures.append(figure)
    _, seconds, memory = (statistics.median(c) for c in zip(*figures))
    found, size = quality(lm, out)
    if found is None:
        return None, [f"does not load: {size}", "", "", ""]
    return found, [f"{found:.4f}", size, f"{seconds:.2f}", f"{memory:.0f}"]


def mean(rows):
    """One row of those of equal models."""
    failed = next((r for r in rows if r[0] is None), None)
    if failed or len(rows) == 1:
        return failed or rows[0]
    found = [r[0] for r in rows]
    text = f"{statistics.mean(found):.4f} ({min(found):.4f} to {max(found):.4f})"
    figures = [f"{statistics.median(float(r[1][i]) for r in rows):.{n}f}" for i, n in ((1, 2), (2, 2), (3, 0))]
    return statistics.mean(found), [text, *figures]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/onnx-quant")
    parser.add_argument("--lm", default="target/lm", help="the folder that train_lm.py made")
    parser.add_argument("--python", default=sys.executable, help="runs the standard tool")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--blocks", default="32,128")
    parser.add_argument("--models", type=int, default=1, help="models that compute the same")
    parser.add_argument("--only", help="algorithms, as in rtn,hqq,default")
    a = parser.parse_args()
    model, calib = os.path.join(a.lm, "model.onnx"), os.path.join(a.lm, "calib")
    whole, size = quality(a.lm, model)
    if whole is None:
        sys.exit(f"{model}: {size}")
    version = importlib.metadata.version("onnxruntime")
    print(f"{platform.machine()}, {os.cpu_count()} cores, ONNX Runtime {version}, runs: {a.runs}")
    print(f"float: perplexity {whole:.4f}, {size} MB\n")
    print("| type | block | tool, algorithm | perplexity | over float | MB | CPU s | peak MB |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        models = [model]
        for seed in range(1, a.models):
            models.append(os.path.join(folder, f"model{seed}.onnx"))
            # In a process of its own, as what measures quality.
            subprocess.run([sys.executable, __file__, "--shuffled", model, str(seed), models[-1]], check=True)
            same = quality(a.lm, models[-1])[0]
            assert abs(same - whole) < 2e-4, f"{models[-1]} computes something else: {same}"
        for block in a.blocks.split(","):
            done = set()
            for dtype, ours, theirs in PAIRS:
                lines = []
                forms = ["qdq"]
                if (dtype, ours) == ("int4", "gptq"):
                    forms.append("matmulnbits")
                if (dtype, ours) in (("uint4", "rtn"), ("uint4", "hqq")):
                    forms.append("float zero points")
                for form in forms:
                    out = os.path.join(folder, f"{dtype}.{ours}.{block}.{form}.onnx")
                    command = [a.bin, model, out, "--mode", "weight-only", "--weight-type", dtype, "--block-size", block]
                    command += ["--algorithm", ours, "-q"]
                    if form != "qdq":
                        command += ["--format", "matmulnbits"]
                    if form == "float zero points":
                        command += ["--float-zero-points"]
                    # What needs no data gets none: the standard tool measures nothing either.
                    command += ["--calib", calib, "--holdout", "0"] if ours in ("gptq", "awq") else []
                    said = {"qdq": "", "matmulnbits": " as MatMulNBits"}.get(form, f" as MatMulNBits, {form}")
                    name = f"onnx-quant {ours}{said}"
                    lines.append((name, command, out))
                if theirs:
                    out = os.path.join(folder, f"{dtype}.{theirs}.{block}.standard.onnx")
                    command = [a.python, __file__, "--child", model, calib, dtype, theirs, block, out]
                    lines.append((f"standard tool {theirs}", command, out))
                for name, command, out in lines:
                    if (dtype, name) in done or a.only and not set(name.split()) & set(a.only.split(",")):
                        continue
                    done.add((dtype, name))
                    of = [[m if word == model else word for word in command] for m in models]
                    found, text = mean([cells(command, out, a.runs, a.lm) for command in of])
                    over = "" if found is None else f"{(found / whole - 1) * 100:+.2f} %"
                    print(f"| {dtype} | {block} | {name} | {text[0]} | {over} | {' | '.join(text[1:])} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, model, calib, dtype, algorithm, block, out = sys.argv
        standard(model, calib, dtype, algorithm, int(block), out)
    elif sys.argv[1:2] == ["--shuffled"]:
        shuffled(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
