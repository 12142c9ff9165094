#!/usr/bin/env python3
"""What each thing that is done for accuracy gains: every model with all of them, with none, with each alone, with each left out.

    python benches/ablation.py --bin target/release/onnx-quant --zoo DIR [MODEL ...]

DIR/models/MODEL.onnx, DIR/data/MODEL/calib/*.npz to quantize with and DIR/data/MODEL/eval/*.npz to measure on, a sample a file,
arrays named like the model's inputs. Without MODEL all that have data. The table has the SQNR in dB of the worst output over all
evaluation samples together, of the emitted model beside the float one in ONNX Runtime, one thread each; "=" where the emitted
model is the same, byte for byte, as with everything, "float" where all of it stayed float. Needs numpy and onnxruntime.
"""

import argparse
import glob
import hashlib
import math
import os
import platform
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime


def methods(program):
    """The names that --without knows: the program's own list, from what it says of one that it does not know."""
    said = subprocess.run([program, "a.onnx", "--without", "?"], capture_output=True, text=True).stderr
    found = re.search(r"possible values: ([^\]]+)", said)
    if not found:
        sys.exit(f"{program} does not list what --without takes: {said}")
    return [name.strip() for name in found[1].split(",")]


def rows(names):
    """What is left out, by the label of the row."""
    yield "all on", []
    yield "all off", names
    for name in names:
        yield f"{name} alone", [other for other in names if other != name]
    for name in names:
        yield f"without {name}", [name]


def samples(folder, count):
    files = sorted(glob.glob(os.path.join(folder, "*.npz")))
    chosen = [files[i * len(files) // count] for i in range(count)] if count < len(files) else files
    return [dict(np.load(path)) for path in chosen]


class Float:
    """A float model and its outputs on the evaluation samples."""

    def __init__(self, path, folder, count):
        self.samples = samples(folder, count)
        self.session = session(path)
        self.names = [i.name for i in self.session.get_inputs()]
        self.outputs = [self.session.run(None, self.given(s)) for s in self.samples]

    def given(self, sample):
        return {name: sample[name] for name in self.names if name in sample}

    def sqnr(self, path):
        """In dB, of the output that comes out worst."""
        other = session(path)
        signal, noise = {}, {}
        for sample, outputs in zip(self.samples, self.outputs):
            for i, (x, y) in enumerate(zip(outputs, other.run(None, self.given(sample)))):
                if not hasattr(x, "dtype") or x.dtype.kind != "f":
                    continue
                x, y = x.astype(np.float64), y.astype(np.float64)
                seen = np.isfinite(x)
                if x.shape != y.shape or not np.isfinite(y[seen]).all():
                    return -math.inf
                signal[i] = signal.get(i, 0.0) + float((x[seen] ** 2).sum())
                noise[i] = noise.get(i, 0.0) + float(((x - y)[seen] ** 2).sum())
        each = [10 * math.log10(signal[i] / noise[i]) if noise[i] > 0 else math.inf for i in signal if signal[i] > 0]
        return min(each, default=math.inf)


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def cell(args, model, reference, without, known):
    """The result of one run; `known` holds those of models that were measured before, by their digest."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out.onnx")
        command = [args.bin, os.path.join(args.zoo, "models", model + ".onnx"), out, "-q", "--effort", args.effort]
        command += ["--prefer", args.prefer, "--calib", os.path.join(args.zoo, "data", model, "calib")]
        command += ["--calib-samples", str(args.calib_samples)]
        if without:
            command += ["--without", ",".join(without)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit)
        if done.returncode not in (0, 3):
            return "failed: " + done.stderr.strip().splitlines()[0]
        with open(out, "rb") as file:
            content = file.read()
        digest = hashlib.sha256(content).hexdigest()
        if known and digest == next(iter(known)):
            return "="
        if digest not in known:
            is_float = b"DequantizeLinear" not in content
            known[digest] = "float" if is_float else f"{reference.sqnr(out):.1f}"
        return known[digest]


def cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/onnx-quant")
    parser.add_argument("--zoo", required=True)
    parser.add_argument("--effort", default="best", help="best, since some methods belong to it alone")
    parser.add_argument("--prefer", default="size", help="size, so that accuracy alone decides what stays float")
    parser.add_argument("--calib-samples", type=int, default=100)
    parser.add_argument("--eval-samples", type=int, default=64)
    parser.add_argument("--limit", type=float, default=3600, help="seconds that one run may take")
    parser.add_argument("models", nargs="*")
    args = parser.parse_args()
    args.bin = os.path.abspath(args.bin)
    names = methods(args.bin)
    models = args.models or sorted(
        os.path.basename(p)[:-5]
        for p in glob.glob(os.path.join(args.zoo, "models", "*.onnx"))
        if glob.glob(os.path.join(args.zoo, "data", os.path.basename(p)[:-5], "eval", "*.npz"))
    )
    table = {label: [] for label, _ in rows(names)}
    for model in models:
        folder = os.path.join(args.zoo, "data", model, "eval")
        reference = Float(os.path.join(args.zoo, "models", model + ".onnx"), folder, args.eval_samples)
        known = {}
        for label, without in rows(names):
            try:
                result = cell(args, model, reference, without, known)
            except subprocess.TimeoutExpired:
                result = f"over {args.limit:.0f} s"
            table[label].append(result)
            print(f"{model}: {label}: {result}", file=sys.stderr, flush=True)
    version = subprocess.run([args.bin, "--version"], capture_output=True, text=True).stdout.strip()
    print(f"{version}, --effort {args.effort} --prefer {args.prefer}, at most {args.calib_samples} samples to quantize with and")
    print(f"{args.eval_samples} to measure on; ONNX Runtime {onnxruntime.__version__}, {cpu()}.\n")
    print("| SQNR, dB | " + " | ".join(models) + " |")
    print("|---|" + "---:|" * len(models))
    for label, results in table.items():
        print(f"| {label} | " + " | ".join(results) + " |")


if __name__ == "__main__":
    main()
