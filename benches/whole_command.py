#!/usr/bin/env python3
"""The whole command beside the standard tool (onnxruntime.quantization.quantize_static): wall time, CPU time, peak memory.

    python benches/whole_command.py --bin target/release/onnx-quant MODEL.onnx SAMPLES_FOLDER [MODEL SAMPLES ...]

SAMPLES_FOLDER holds .npz files, one sample each, arrays named like the model's inputs. Both tools run in processes of
their own, taking turns; the table has medians of the runs. The standard tool gets what its documentation recommends:
QDQ, uint8 activations, int8 weights per channel, its pre-processing first (which counts, as ours does the same inside).
Ours does its whole work: where nothing pays it writes the float model (exit code 3), and that is timed too.
Needs onnx and onnxruntime in the Python that runs it.
"""

import argparse
import glob
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

METHODS = {"min-max": "MinMax", "percentile": "Percentile"}


def standard(model, samples, count, method, out):
    """What the child process runs."""
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.files = iter(chosen(samples, count))

        def get_next(self):
            path = next(self.files, None)
            return None if path is None else dict(np.load(path))

    loaded = onnx.load(model)
    if next(o.version for o in loaded.opset_import if o.domain in ("", "ai.onnx")) < 13:
        # Scales per channel came with opset 13.
        model = out + ".converted.onnx"
        onnx.save(onnx.version_converter.convert_version(loaded, 17), model)
    del loaded
    prepared = out + ".prepared.onnx"
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
    )


def chosen(folder, count):
    files = sorted(glob.glob(os.path.join(folder, "*.npz")))
    return [files[i * len(files) // count] for i in range(count)] if count < len(files) else files


def measure(command, limit, succeeds=(0,)):
    """Wall seconds, CPU seconds and peak MB of a process; None when it fails or takes more than the limit."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - start > limit:
                process.kill()
            time.sleep(0.002)
    finally:
        process.stderr.close()
    if os.waitstatus_to_exitcode(status) not in succeeds:
        return None
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def median(runs):
    good = [r for r in runs if r]
    return [statistics.median(c) for c in zip(*good)] if good else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/onnx-quant")
    parser.add_argument("--samples", default="32,128", help="numbers of samples")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a run counts as failed")
    parser.add_argument("--args", default="", help="more arguments for onnx-quant")
    parser.add_argument("pairs", nargs="+", metavar="MODEL SAMPLES")
    a = parser.parse_args()
    if len(a.pairs) % 2:
        parser.error("models and sample folders come in pairs")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| model | method | samples | wall s, ours | theirs | ratio | CPU s, ours | theirs | ratio | MB, ours | theirs | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for model, samples in zip(a.pairs[::2], a.pairs[1::2]):
        for ours, theirs in METHODS.items():
            for count in map(int, a.samples.split(",")):
                row(a, model, samples, ours, theirs, count)


def row(a, model, samples, ours, theirs, count):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out.onnx")
        mine = [a.bin, model, out, "--calib", samples, "-n", str(count), "--calib-method", ours, "-q", *a.args.split()]
        other = [sys.executable, __file__, "--child", model, samples, str(count), theirs, out + ".ort.onnx"]
        pairs = [(measure(mine, a.limit, (0, 3)), measure(other, a.limit)) for _ in range(a.runs)]
    m, o = median([p[0] for p in pairs]), median([p[1] for p in pairs])
    cells = []
    for i in range(3):
        show = lambda v: "fails" if v is None else f"{v[i]:.3g}"
        cells += [show(m), show(o), f"{o[i] / m[i]:.1f}" if m and o else "-"]
    used = len(chosen(samples, count))
    print(f"| {os.path.basename(model)} | {ours} | {used} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, model, samples, count, method, out = sys.argv
        standard(model, samples, int(count), method, out)
    else:
        main()
