"""Measures what ONNX Runtime's CPU kernels cost in float and in integers, and fits the [cost] table of
src/quant/targets/ort-cpu.toml.

    python benches/ort_costs.py [--fit FILE.json] [--save FILE.json]

Each operator is timed inside a chain of its kind (a layout change at the border of a region would otherwise count as
the operator's own), by ONNX Runtime's profiler, one thread, smallest of many runs. The features of a node are 1, its
multiply-accumulate operations, the elements of its input and those of its output; the fit is non-negative least squares on
relative errors. Needs onnx, onnxruntime, numpy and scipy.
"""

import argparse
import glob
import json
import os
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)
RUNS = 40


class Net:
    """A chain of nodes, in float or with Q/DQ after every node."""

    def __init__(self, shape, quantized):
        self.nodes, self.inits, self.quantized, self.n = [], [], quantized, 0
        self.inits += [numpy_helper.from_array(np.float32(0.05), "s"), numpy_helper.from_array(np.uint8(128), "z")]
        self.at = self.through("x") if quantized else "x"
        self.shape = shape

    def name(self, stem):
        self.n += 1
        return f"{stem}{self.n}"

    def through(self, x):
        q, d = self.name("q"), self.name("d")
        self.nodes.append(helper.make_node("QuantizeLinear", [x, "s", "z"], [q], q))
        self.nodes.append(helper.make_node("DequantizeLinear", [q, "s", "z"], [d], d))
        return d

    def constant(self, a):
        name = self.name("c")
        self.inits.append(numpy_helper.from_array(a, name))
        return name

    def weight(self, shape, axis):
        if not self.quantized:
            return self.constant(RNG.standard_normal(shape).astype(np.float32) * 0.05)
        w = self.constant(RNG.integers(-127, 128, shape).astype(np.int8))
        s = self.constant(np.full(shape[axis], 0.001, np.float32))
        z = self.constant(np.zeros(shape[axis], np.int8))
        d = self.name("dw")
        self.nodes.append(helper.make_node("DequantizeLinear", [w, s, z], [d], d, axis=axis))
        return d

    def bias(self, n):
        if not self.quantized:
            return self.constant(np.zeros(n, np.float32))
        b, s = self.constant(np.zeros(n, np.int32)), self.constant(np.full(n, np.float32(0.05) * np.float32(0.001)))
        d = self.name("db")
        self.nodes.append(helper.make_node("DequantizeLinear", [b, s], [d], d, axis=0))
        return d

    def op(self, kind, extra=(), name=None, before=False, **attrs):
        y = self.name("y")
        inputs = [*extra, self.at] if before else [self.at, *extra]
        self.nodes.append(helper.make_node(kind, inputs, [y], name or y, **attrs))
        self.at = self.through(y) if self.quantized else y
        return y

    def conv(self, cin, cout, k, stride=1, group=1, name=None, relu=True):
        rank = len(self.shape) - 2
        w = self.weight([cout, cin // group] + [k] * rank, 0)
        pads = [(k - 1) // 2] * rank + [k // 2] * rank
        y = self.name("y")
        self.nodes.append(helper.make_node("Conv", [self.at, w, self.bias(cout)], [y], name or y, pads=pads, strides=[stride] * rank, group=group))
        if relu and not self.quantized:
            r = self.name("r")
            self.nodes.append(helper.make_node("Relu", [y], [r], r))
            y = r
        self.at = self.through(y) if self.quantized else y

    def save(self, path):
        g = helper.make_graph(self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
                              [helper.make_tensor_value_info(self.at, TensorProto.FLOAT, None)], self.inits)
        m = helper.make_model(g, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=8)
        onnx.save(m, path)


def profile(net, feed_shape):
    """[(op type, node name, microseconds)] of each node: the smallest of many runs."""
    with tempfile.TemporaryDirectory() as d:
        net.save(f"{d}/m.onnx")
        so = ort.SessionOptions()
        so.intra_op_num_threads = so.inter_op_num_threads = 1
        so.enable_profiling, so.profile_file_prefix, so.log_severity_level = True, f"{d}/p", 4
        s = ort.InferenceSession(f"{d}/m.onnx", so, providers=["CPUExecutionProvider"])
        x = RNG.standard_normal(feed_shape).astype(np.float32)
        for _ in range(RUNS):
            s.run(None, {"x": x})
        s.end_profiling()
        events = json.load(open(glob.glob(f"{d}/p*.json")[0]))
    best = {}
    for e in events:
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"):
            key = (e["args"]["op_name"], e["name"][: -len("_kernel_time")])
            best[key] = min(best.get(key, 1e9), e["dur"])
    return [(op, name, us) for (op, name), us in best.items()]


def pick(rows, *ops):
    return [us for op, _, us in rows if op in ops]


def conv_cases():
    for c, hw, k in [(16, 80, 3), (32, 56, 3), (64, 28, 3), (128, 14, 3), (256, 14, 3), (256, 7, 3), (64, 28, 5), (24, 56, 1), (32, 112, 1), (64, 56, 1),
                     (96, 28, 1), (128, 28, 1), (256, 14, 1), (512, 7, 1), (16, 24, 1), (32, 24, 3), (64, 8, 1), (128, 4, 1), (8, 48, 3), (480, 10, 1), (16, 12, 1), (120, 6, 1)]:
        yield "Conv", [1, c, hw, hw], dict(cin=c, cout=c, k=k)
    for c, t, k in [(64, 400, 3), (128, 200, 3), (32, 1000, 5), (256, 100, 3), (128, 50, 1), (64, 96, 9)]:
        yield "Conv", [1, c, t], dict(cin=c, cout=c, k=k)
    for c, hw, k in [(32, 112, 3), (96, 56, 3), (144, 56, 3), (144, 28, 5), (240, 28, 3), (480, 14, 3), (672, 14, 5), (960, 7, 3), (48, 24, 3), (96, 12, 5), (16, 48, 3), (240, 4, 5), (120, 6, 3)]:
        yield "Depthwise", [1, c, hw, hw], dict(cin=c, cout=c, k=k, group=c)


def measure():
    rows = []

    def add(kind, integer, us, macs=0, ins=0, outs=0, what=""):
        if not np.isfinite(us):
            print(f"{kind} {what}: ran as another operator, left out")
            return
        rows.append(dict(kind=kind, integer=integer, us=us, macs=macs, ins=ins, outs=outs, what=what))
        print(f"{kind:18} {'int' if integer else 'flt'} {us:9.1f} us  macs {macs:>11} in {ins:>8} out {outs:>8} {what}", flush=True)

    for kind, shape, a in conv_cases():
        for integer in (False, True):
            n = Net(shape, integer)
            for _ in range(5):
                n.conv(**a)
            r = pick(profile(n, shape), "Conv", "FusedConv", "NhwcFusedConv", "QLinearConv")
            size = int(np.prod(shape))
            add(kind, integer, float(np.median(r[1:-1] or r)), size * a["cin"] // a.get("group", 1) * a["k"] ** (len(shape) - 2), size, size, f"{shape} {a}")
    # What a region of integers costs at its borders: conversion, and the change of layout for convolutions.
    for shape in [(1, 32, 56, 56), (1, 64, 28, 28), (1, 16, 112, 112), (1, 128, 14, 14), (1, 96, 7, 7)]:
        c = shape[1]
        n = Net(list(shape), False)
        for i in range(5):
            n.conv(c, c, 1)
            n.quantized = True
            n.at = n.through(n.at)
            n.conv(c, c, 1)
            n.quantized = False
        rows_ = profile(n, shape)
        size = int(np.prod(shape))
        add("QuantizeLinear", True, float(np.median(pick(rows_, "QuantizeLinear"))), 0, size, size, str(shape))
        add("DequantizeLinear", True, float(np.median(pick(rows_, "DequantizeLinear"))), 0, size, size, str(shape))
        layout = sum(pick(rows_, "Transpose", "ReorderInput", "ReorderOutput")) / 10
        add("Layout", True, layout, 0, size, size, str(shape))
    for m, k, nn in [(1, 512, 512), (1, 1024, 256), (16, 128, 128), (16, 384, 384), (64, 384, 384), (64, 384, 1536), (64, 1536, 384), (128, 256, 256), (197, 192, 768), (32, 512, 64), (256, 64, 64), (8, 64, 128), (64, 120, 480)]:
        for kind in ("MatMul", "Gemm"):
            for integer in (False, True):
                net = Net([m, k], integer)
                for a, b in [(k, nn), (nn, k)] * 2:
                    w = net.weight([a, b], 1)
                    net.op(kind, [w] + ([net.bias(b)] if kind == "Gemm" else []))
                r = pick(profile(net, [m, k]), kind, "FusedMatMul", "FusedGemm", "QLinearMatMul", "QGemm")
                add(kind, integer, float(np.mean(sorted(r)[1:-1])), m * k * nn, m * (k + nn) // 2, m * (k + nn) // 2, f"{m}x{k}x{nn}")
    # Products of two activations.
    for b, m, k in [(4, 16, 32), (12, 32, 32), (12, 64, 32), (12, 64, 64), (12, 128, 64), (8, 40, 15)]:
        for integer in (False, True):
            net = Net([b, m, m], integer)
            for _ in range(4):
                net.nodes.append(helper.make_node("MatMul", [net.at, net.at], [net.name("y")], net.name("n")))
                net.at = net.nodes[-1].output[0]
                net.at = net.through(net.at) if integer else net.at
            r = pick(profile(net, [b, m, m]), "MatMul", "QLinearMatMul")
            add("MatMulDynamic", integer, float(np.median(r)), b * m ** 3, b * m * m, b * m * m, f"{b}x{m}")
    elementwise(add)
    return rows


def elementwise(add):
    shapes = [[1, 32, 56, 56], [1, 64, 28, 28], [1, 128, 14, 14], [1, 96, 7, 7], [1, 16, 100, 100]]
    ones = {"Sigmoid": {}, "LeakyRelu": {"alpha": 0.1}, "Softmax": dict(axis=-1), "Transpose": dict(perm=[0, 1, 3, 2])}
    pools = {"AveragePool": dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1]), "MaxPool": dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])}
    for shape in shapes:
        size = int(np.prod(shape))
        for integer in (False, True):
            for op, attrs in ones.items():
                net = Net(shape, integer)
                for _ in range(4):
                    net.op(op, **attrs)
                r = [us for o, _, us in profile(net, shape) if o in (op, "QLinear" + op)]
                if r:
                    add(op, integer, float(np.median(r)), 0, size, size, str(shape))
            # Pools lie between convolutions, which bring the data in the layout of their kernels.
            for op, attrs in pools.items():
                net = Net(shape, integer)
                for _ in range(4):
                    net.conv(shape[1], shape[1], 1)
                    net.op(op, **attrs)
                net.conv(shape[1], shape[1], 1)
                r = pick(profile(net, shape), op, "QLinear" + op, "NhwcMaxPool")
                add(op, integer, float(np.median(r)), 9 * size, size, size, str(shape))
            for op in ("Add", "Mul"):
                net = Net(shape, integer)
                first = net.at
                for _ in range(4):
                    net.op(op, [first])
                r = pick(profile(net, shape), op, "QLinear" + op)
                add(op, integer, float(np.median(r)), 0, 2 * size, size, str(shape))
            net = Net(shape, integer)
            first = net.at
            for _ in range(3):
                net.at = first
                net.op("Concat", [first], axis=1)
            r = pick(profile(net, shape), "Concat", "QLinearConcat")
            add("Concat", integer, float(np.median(r)), 0, 2 * size, 2 * size, str(shape))
            net = Net(shape, integer)
            first = net.at
            for _ in range(3):
                net.at = first
                net.op("GlobalAveragePool")
            r = pick(profile(net, shape), "GlobalAveragePool", "QLinearGlobalAveragePool")
            add("GlobalAveragePool", integer, float(np.median(r)), 0, size, shape[1], str(shape))
            net = Net(shape, integer)
            net.at = first = net.at
            r = net.constant(np.array([1, 1, 2, 2], np.float32))
            for _ in range(3):
                net.at = first
                net.op("Resize", ["", r], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
            r = pick(profile(net, shape), "Resize")
            add("Resize", integer, float(np.median(r)), 0, size, 4 * size, str(shape))
        for op in ("Relu", "HardSigmoid", "HardSwish", "Div", "Sub"):
            net = Net(shape, False)
            for _ in range(4):
                net.op(op, ["x"] if op in ("Div", "Sub") else [])
            r = pick(profile(net, shape), op)
            add(op, False, float(np.median(r)), 0, size, size, str(shape))


def fit(rows):
    """{kind: {float/int: [us, ns per kMAC, ns per input element, ns per output element]}} and the error of each fit."""
    from scipy.optimize import nnls

    table = {}
    for key in sorted({(r["kind"], r["integer"]) for r in rows}):
        some = [r for r in rows if (r["kind"], r["integer"]) == key]
        # Relative errors count; a microsecond is the profiler's resolution.
        w = np.array([1 / max(r["us"], 2.0) for r in some])
        a = np.array([[1, r["macs"] / 1e6, r["ins"] / 1e3, r["outs"] / 1e3] for r in some])
        if all(r["ins"] == r["outs"] or r["ins"] == 2 * r["outs"] for r in some):
            a[:, 2] = 0
        x, _ = nnls(a * w[:, None], np.array([r["us"] for r in some]) * w)
        err = np.abs(a @ x - [r["us"] for r in some]) * w
        table.setdefault(key[0], {})["integer" if key[1] else "float"] = [round(float(v), 3) for v in x]
        print(f"{key[0]:18} {'integer' if key[1] else 'float':8} {x.round(3)}  median error {np.median(err):.0%}, worst {err.max():.0%}")
    return table


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--save")
    p.add_argument("--fit")
    a = p.parse_args()
    rows = json.load(open(a.fit)) if a.fit else measure()
    if a.save:
        json.dump(rows, open(a.save, "w"))
    fit(rows)
