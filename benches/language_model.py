#!/usr/bin/env python3
"""A small language model, weight-only: perplexity, size, processor time and memory beside the standard tool.

    python -m venv target/lm/venv && target/lm/venv/bin/pip install jax numpy onnx onnxruntime onnx-ir
    target/lm/venv/bin/python testdata/scripts/train_lm.py train target/lm
    target/lm/venv/bin/python benches/language_model.py --bin target/release/onnx-quant --lm target/lm

The standard tool is onnxruntime.quantization.matmul_nbits_quantizer, run by --python (its HQQ needs torch). Each run
is a process of its own; of --runs the median counts. Perplexity is per byte of held-out text, in ONNX Runtime, the
key-value cache carried on. Types are int8 and int4 without, uint4 with zero points.
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/onnx-quant")
    parser.add_argument("--lm", default="target/lm", help="the folder that train_lm.py made")
    parser.add_argument("--python", default=sys.executable, help="runs the standard tool")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--blocks", default="32,128")
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
        for block in a.blocks.split(","):
            done = set()
            for dtype, ours, theirs in PAIRS:
                lines = []
                for form in ["qdq", "matmulnbits"] if (dtype, ours) == ("int4", "gptq") else ["qdq"]:
                    out = os.path.join(folder, f"{dtype}.{ours}.{block}.{form}.onnx")
                    command = [a.bin, model, out, "--mode", "weight-only", "--weight-type", dtype, "--block-size", block]
                    command += ["--algorithm", ours, "--format", form, "-q"]
                    # What needs no data gets none: the standard tool measures nothing either.
                    command += ["--calib", calib, "--holdout", "0"] if ours in ("gptq", "awq") else []
                    name = f"onnx-quant {ours}" + (" as MatMulNBits" if form == "matmulnbits" else "")
                    lines.append((name, command, out))
                if theirs:
                    out = os.path.join(folder, f"{dtype}.{theirs}.{block}.standard.onnx")
                    command = [a.python, __file__, "--child", model, calib, dtype, theirs, block, out]
                    lines.append((f"standard tool {theirs}", command, out))
                for name, command, out in lines:
                    if (dtype, name) in done:
                        continue
                    done.add((dtype, name))
                    found, text = cells(command, out, a.runs, a.lm)
                    over = "" if found is None else f"{(found / whole - 1) * 100:+.2f} %"
                    print(f"| {dtype} | {block} | {name} | {text[0]} | {over} | {' | '.join(text[1:])} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, model, calib, dtype, algorithm, block, out = sys.argv
        standard(model, calib, dtype, algorithm, int(block), out)
    else:
        main()
