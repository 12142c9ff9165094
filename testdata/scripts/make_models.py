# requirements: numpy==2.4.6 onnx==1.23.2
"""Writes the small models of testdata/models/: one function per model, same bytes on every run.

    python3 -m venv /tmp/make && /tmp/make/bin/pip install numpy==2.4.6 onnx==1.23.2
    /tmp/make/bin/python testdata/scripts/make_models.py

Weights are random; the networks are not trained. A function returns a `Made`; its docstring says what the model is
there for. `samples` become NAME.npz beside the model: arrays named by input, the first axis counts samples.
"""

import dataclasses
import io
import pathlib
import zipfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OUT = pathlib.Path(__file__).resolve().parent.parent / "models"
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
MODELS = []


def model(function):
    """Registers a function as the maker of the model of the same name."""
    MODELS.append(function)
    return function


@dataclasses.dataclass
class Made:
    proto: onnx.ModelProto
    samples: dict | None = None
    # False for models that the checker refuses, which is what they are there for.
    valid: bool = True


class Net:
    """Collects nodes and weights. Values are named after the node that makes them."""

    def __init__(self, name):
        self.name = name
        # Names, not order, decide the numbers, so that a new model leaves the others as they are.
        self.rng = np.random.default_rng(list(name.encode()))
        self.nodes, self.weights, self.inputs, self.outputs = [], [], [], []

    def input(self, name, shape, dtype=FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name, shape, dtype=FLOAT):
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def constant(self, name, value):
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name, shape, fan_in):
        """Normal, scaled by He's rule: signals neither die nor explode."""
        value = self.rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        return self.constant(name, value)

    def bias(self, name, n):
        return self.constant(name, self.rng.normal(0, 0.1, n).astype(np.float32))

    def op(self, op_type, inputs, name, domain=None, **attributes):
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def conv(self, x, name, c_in, c_out, kernel=3, group=1, **attributes):
        w = self.weight(f"{name}.weight", (c_out, c_in // group, kernel, kernel), c_in // group * kernel**2)
        b = self.bias(f"{name}.bias", c_out)
        p = kernel // 2
        return self.op(
            "Conv", [x, w, b], name, kernel_shape=[kernel] * 2, pads=[p] * 4, group=group, **attributes
        )

    def conv1d(self, x, name, c_in, c_out):
        w, b = self.weight(f"{name}.weight", (c_out, c_in, 3), 3 * c_in), self.bias(f"{name}.bias", c_out)
        return self.op("Conv", [x, w, b], name, kernel_shape=[3], pads=[1, 1])

    def change_weight(self, name, change):
        """Replaces a weight by what `change` makes of it."""
        for w in self.weights:
            if w.name == name:
                value = np.asarray(change(numpy_helper.to_array(w).copy()), np.float32)
                w.CopyFrom(numpy_helper.from_array(value, name))

    def gemm(self, x, name, n_in, n_out):
        w, b = self.weight(f"{name}.weight", (n_out, n_in), n_in), self.bias(f"{name}.bias", n_out)
        return self.op("Gemm", [x, w, b], name, transB=1)

    def done(self, opset=17, ir_version=8, domains=(), listed=False):
        """`listed`: initializers are also graph inputs, as IR version 3 wants it."""
        inputs = list(self.inputs)
        if listed:
            inputs += [helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in self.weights]
        graph = helper.make_graph(self.nodes, self.name, inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", opset)] + [helper.make_opsetid(d, 1) for d in domains]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="make_models.py")

    def random(self, n, shape):
        return self.rng.normal(0, 1, (n, *shape)).astype(np.float32)


@model
def dense10():
    """The plainest network: 10 fully connected layers from 3x4x5 numbers to 1x2x3, fixed shapes, no batch axis."""
    net = Net("dense10")
    x = net.op("Flatten", [net.input("x", [3, 4, 5])], "flatten", axis=0)
    widths = [60, 32, 24, 24, 16, 16, 16, 16, 16, 16, 6]
    for i, (n_in, n_out) in enumerate(zip(widths, widths[1:]), 1):
        x = net.gemm(x, f"dense{i}", n_in, n_out)
        if i < len(widths) - 1:
            x = net.op("Relu", [x], f"relu{i}")
    shape = net.constant("output_shape", np.array([1, 2, 3], np.int64))
    net.output(net.op("Reshape", [x, shape], "y"), [1, 2, 3])
    return Made(net.done(), {"x": net.random(16, (3, 4, 5))})


@model
def small_cnn():
    """A small classifier with what image networks are made of: a dynamic batch, a depthwise Conv, a ReLU6 as Clip,
    a residual Add, BatchNormalization, global pooling and a Gemm head."""
    net = Net("small_cnn")
    x = net.input("image", ["N", 3, 8, 8])
    x = net.op("Relu", [net.conv(x, "stem", 3, 8)], "stem_relu")
    skip = x
    x = net.conv(x, "depthwise", 8, 8, group=8)
    limits = [net.constant(n, np.float32(v)) for n, v in [("zero", 0), ("six", 6)]]
    x = net.op("Clip", [x, *limits], "relu6")
    x = net.conv(x, "pointwise", 8, 8, kernel=1)
    x = net.op("Relu", [net.op("Add", [x, skip], "residual")], "residual_relu")
    x = net.op("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = net.conv(x, "conv", 8, 16)
    norm = [
        net.constant(f"norm.{part}", (base + 0.1 * net.rng.random(16)).astype(np.float32))
        for part, base in [("scale", 1), ("shift", 0), ("mean", 0), ("var", 1)]
    ]
    x = net.op("Relu", [net.op("BatchNormalization", [x, *norm], "norm")], "conv_relu")
    x = net.op("Flatten", [net.op("GlobalAveragePool", [x], "average")], "flatten")
    net.output(net.gemm(x, "logits", 16, 10), ["N", 10])
    return Made(net.done(), {"image": net.random(16, (3, 8, 8))})


@model
def two_inputs():
    """Two inputs, one of them of whole numbers: an embedding looked up by `ids` joins `features`."""
    net = Net("two_inputs")
    ids, features = net.input("ids", ["N", 4], INT64), net.input("features", ["N", 4, 6])
    table = net.weight("table", (20, 6), 2)
    x = net.op("Concat", [net.op("Gather", [table, ids], "embedding"), features], "joined", axis=2)
    x = net.op("MatMul", [x, net.weight("w", (12, 5), 12)], "matmul")
    net.output(net.op("Add", [x, net.bias("b", 5)], "y"), ["N", 4, 5])
    samples = {"ids": net.rng.integers(0, 20, (16, 4)), "features": net.random(16, (4, 6))}
    return Made(net.done(), samples)


@model
def old_opset():
    """As exporters wrote in 2018: opset 8, IR version 3, initializers listed as inputs, Reshape to flatten, Dropout."""
    net = Net("old_opset")
    x = net.input("image", [1, 1, 8, 8])
    x = net.op("Relu", [net.conv(x, "conv", 1, 4)], "relu")
    x = net.op("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Dropout", [x], "dropout", ratio=0.5)
    x = net.op("Reshape", [x, net.constant("flat", np.array([1, 64], np.int64))], "reshape")
    net.output(net.op("Softmax", [net.gemm(x, "fc", 64, 10)], "probability", axis=1), [1, 10])
    return Made(net.done(opset=8, ir_version=3, listed=True), {"image": net.random(16, (1, 8, 8))})


@model
def tied_weight():
    """One initializer in three roles: weight of two Gemms, once transposed, and plain data of an Add."""
    net = Net("tied_weight")
    x = net.input("x", ["N", 8])
    w = net.weight("w", (8, 8), 8)
    x = net.op("Relu", [net.op("Gemm", [x, w], "first")], "relu")
    x = net.op("Gemm", [x, w], "second", transB=1)
    net.output(x, ["N", 8])
    net.output(net.op("Add", [w, w], "twice"), [8, 8])
    return Made(net.done(), {"x": net.random(16, (8,))})


@model
def encoder():
    """One transformer encoder layer over a dynamic sequence: two heads, a mask of large negative numbers before
    Softmax, GELU spelled out with Erf, LayerNormalization, weights as MatMul + Add."""
    net = Net("encoder")
    width, heads, inner = 16, 2, 32
    x, mask = net.input("x", ["N", "T", width]), net.input("mask", ["N", "T"])

    def linear(x, name, n_in, n_out):
        product = net.op("MatMul", [x, net.weight(f"{name}.weight", (n_in, n_out), 2 * n_in)], f"{name}.matmul")
        return net.op("Add", [product, net.bias(f"{name}.bias", n_out)], name)

    def norm(x, name):
        scale = net.constant(f"{name}.scale", (1 + 0.1 * net.rng.normal(size=width)).astype(np.float32))
        return net.op("LayerNormalization", [x, scale, net.bias(f"{name}.bias", width)], name)

    split = net.constant("split", np.array([0, 0, heads, width // heads], np.int64))
    joined = net.constant("joined", np.array([0, 0, width], np.int64))
    q, k, v = (
        net.op(
            "Transpose",
            [net.op("Reshape", [linear(x, n, width, width), split], f"{n}.heads")],
            f"{n}.transposed",
            perm=[0, 2, 3, 1] if n == "key" else [0, 2, 1, 3],
        )
        for n in ("query", "key", "value")
    )
    scores = net.op("Mul", [net.op("MatMul", [q, k], "scores"), net.constant("eighth", np.float32(8**-0.5))], "scaled")
    away = net.op("Sub", [net.constant("one", np.float32(1)), mask], "masked_out")
    away = net.op("Mul", [away, net.constant("far", np.float32(-1e9))], "penalty")
    away = net.op("Unsqueeze", [away, net.constant("axes", np.array([1, 2], np.int64))], "penalty_rows")
    weights = net.op("Softmax", [net.op("Add", [scores, away], "scores_masked")], "attention", axis=-1)
    mixed = net.op("Transpose", [net.op("MatMul", [weights, v], "context")], "context_rows", perm=[0, 2, 1, 3])
    mixed = linear(net.op("Reshape", [mixed, joined], "context_joined"), "project", width, width)
    x = norm(net.op("Add", [x, mixed], "residual1"), "norm1")
    h = linear(x, "up", width, inner)
    erf = net.op("Erf", [net.op("Mul", [h, net.constant("half_root", np.float32(0.5**0.5))], "gelu.in")], "gelu.erf")
    cdf = net.op("Mul", [net.op("Add", [erf, "one"], "gelu.plus"), net.constant("half", np.float32(0.5))], "gelu.cdf")
    h = linear(net.op("Mul", [h, cdf], "gelu"), "down", inner, width)
    net.output(norm(net.op("Add", [x, h], "residual2"), "y"), ["N", "T", width])
    real = np.ones((16, 6), np.float32)
    real[::3, 4:] = 0
    return Made(net.done(), {"x": net.random(16, (6, width)), "mask": real})


@model
def concat_ranges():
    """Two branches whose ranges differ a hundred times meet in a Concat, as boxes and scores do in detectors."""
    net = Net("concat_ranges")
    x = net.input("x", ["N", 4, 6, 6])
    boxes = net.op("Relu", [net.conv(x, "boxes", 4, 4)], "boxes_relu")
    boxes = net.op("Mul", [boxes, net.constant("stride", np.float32(64))], "pixels")
    scores = net.op("Sigmoid", [net.conv(x, "scores", 4, 4)], "probability")
    net.output(net.op("Concat", [boxes, scores], "y", axis=1), ["N", 8, 6, 6])
    return Made(net.done(), {"x": net.random(16, (4, 6, 6))})


@model
def hard_weights():
    """A Conv with a dead output channel, a depthwise Conv with channels decades apart, a Conv bias that overflows
    32 bits at the product scale."""
    net = Net("hard_weights")
    x = net.input("x", ["N", 4, 6, 6])
    x = net.op("Relu", [net.conv(x, "dead", 4, 4)], "dead_relu")
    net.change_weight("dead.weight", lambda w: w * np.array([1, 0, 1, 1])[:, None, None, None])
    x = net.conv(x, "decades", 4, 4, group=4)
    net.change_weight("decades.weight", lambda w: w * np.array([1e-3, 1e-1, 1, 1e2])[:, None, None, None])
    x = net.conv(x, "overflow", 4, 4, kernel=1)
    net.change_weight("overflow.weight", lambda w: w * np.array([1, 1, 1e-9, 1])[:, None, None, None])
    net.output(x, ["N", 4, 6, 6])
    return Made(net.done(), {"x": net.random(16, (4, 6, 6))})


@model
def branches():
    """An If whose branches use a value from outside and hold weights of their own; the condition is data."""
    net = Net("branches")
    x = net.op("Relu", [net.gemm(net.input("x", ["N", 6]), "before", 6, 6)], "relu")
    total = net.op("ReduceSum", [x], "total", keepdims=0)
    condition = net.op("Greater", [total, net.constant("limit", np.float32(5))], "condition")
    bodies = {}
    for name in ("then_branch", "else_branch"):
        body = Net(f"branches.{name}")
        out = body.gemm(x, f"{name}.gemm", 6, 4)
        bodies[name] = helper.make_graph(
            body.nodes, name, [], [helper.make_tensor_value_info(out, FLOAT, ["N", 4])], body.weights
        )
    net.output(net.op("If", [condition], "y", **bodies), ["N", 4])
    return Made(net.done(), {"x": net.random(16, (6,))})


@model
def loop_body():
    """A Loop whose body has Gemms of its own: the state passes through them at each of four steps."""
    net = Net("loop_body")
    x = net.op("Tanh", [net.gemm(net.input("x", ["N", 6]), "before", 6, 8)], "tanh")
    body = Net("loop_body.body")
    h = body.op("Relu", [body.gemm("state_in", "step", 8, 8)], "step_relu")
    h = body.gemm(h, "mix", 8, 8)
    body.op("Identity", ["go_in"], "go_out")
    body.op("Tanh", [h], "state_out")
    graph = helper.make_graph(
        body.nodes,
        "body",
        [
            helper.make_tensor_value_info("iteration", INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_in", FLOAT, ["N", 8]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", FLOAT, ["N", 8]),
        ],
        body.weights,
    )
    trips, go = net.constant("trips", np.array(4, np.int64)), net.constant("go", np.array(True))
    x = net.op("Loop", [trips, go, x], "looped", body=graph)
    net.output(net.gemm(x, "y", 8, 4), ["N", 4])
    return Made(net.done(), {"x": net.random(16, (6,))})


@model
def scan_body():
    """A Scan over time whose body is a plain recurrent cell made of Gemms; it reads a value from outside, too."""
    net = Net("scan_body")
    x = net.op("Transpose", [net.input("x", ["N", 5, 6])], "steps", perm=[1, 0, 2])
    start = net.op("ReduceMean", [x], "start", axes=[0], keepdims=0)
    outer = net.op("Relu", [net.gemm(start, "first", 6, 8)], "outer")
    body = Net("scan_body.body")
    a, b = body.gemm("h_in", "recurrence", 8, 8), body.gemm("x_in", "input", 6, 8)
    h = body.op("Tanh", [body.op("Add", [a, b], "sum")], "h_out")
    h = body.op("Relu", [body.op("Add", [h, outer], "with_outer")], "seen")
    body.gemm(h, "y_out", 8, 4)
    graph = helper.make_graph(
        body.nodes,
        "body",
        [
            helper.make_tensor_value_info("h_in", FLOAT, ["N", 8]),
            helper.make_tensor_value_info("x_in", FLOAT, ["N", 6]),
        ],
        [
            helper.make_tensor_value_info("h_out", FLOAT, ["N", 8]),
            helper.make_tensor_value_info("y_out", FLOAT, ["N", 4]),
        ],
        body.weights,
    )
    net.nodes.append(
        helper.make_node("Scan", [outer, x], ["last", "each"], name="scan", body=graph, num_scan_inputs=1)
    )
    net.output("last", ["N", 8])
    net.output("each", [5, "N", 4])
    return Made(net.done(), {"x": net.random(16, (5, 6))})


@model
def shared_outputs():
    """A Conv output that is also a graph output, a Relu before a fork, an initializer as graph output, and a weight
    that callers may override because it is a graph input too."""
    net = Net("shared_outputs")
    x = net.input("x", ["N", 3, 6, 6])
    seen = net.conv(x, "seen", 3, 4)
    net.output(seen, ["N", 4, 6, 6])
    fork = net.op("Relu", [seen], "fork")
    left, right = net.conv(fork, "left", 4, 4), net.op("AveragePool", [fork], "right", kernel_shape=[3, 3], pads=[1] * 4)
    net.output(net.op("Add", [left, right], "joined"), ["N", 4, 6, 6])
    w = net.weight("w", (4, 4, 1, 1), 4)
    net.inputs.append(helper.make_tensor_value_info(w, FLOAT, [4, 4, 1, 1]))
    net.output(net.op("Conv", [fork, w], "overridable", kernel_shape=[1, 1]), ["N", 4, 6, 6])
    net.output(net.constant("version", np.array([3], np.int64)), [1], INT64)
    return Made(net.done(), {"x": net.random(16, (3, 6, 6))})


@model
def recurrent():
    """A small LSTM between two Gemms, as in voice activity models: recurrent nodes stay float on the CPU."""
    net = Net("recurrent")
    n, hidden = 6, 8
    x = net.op("Tanh", [net.conv1d(net.input("x", ["N", 4, 10]), "front", 4, n)], "tanh")
    x = net.op("Transpose", [x], "steps", perm=[2, 0, 1])
    w, r = net.weight("w", (1, 4 * hidden, n), 2 * n), net.weight("r", (1, 4 * hidden, hidden), 2 * hidden)
    b = net.constant("b", net.rng.normal(0, 0.1, (1, 8 * hidden)).astype(np.float32))
    net.nodes.append(helper.make_node("LSTM", [x, w, r, b], ["", "last"], name="lstm", hidden_size=hidden))
    x = net.op("Squeeze", ["last", net.constant("axes", np.array([0], np.int64))], "state")
    net.output(net.gemm(x, "y", hidden, 3), ["N", 3])
    return Made(net.done(), {"x": net.random(16, (4, 10))})


@model
def half_precision():
    """A network in float16 throughout, inputs and outputs included."""
    net = Net("half_precision")
    half = TensorProto.FLOAT16
    x = net.input("x", ["N", 3, 6, 6], half)
    x = net.op("Relu", [net.conv(x, "conv", 3, 8)], "relu")
    x = net.op("Flatten", [net.op("GlobalAveragePool", [x], "average")], "flatten")
    net.output(net.gemm(x, "y", 8, 4), ["N", 4], half)
    for w in net.weights:
        w.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(w).astype(np.float16), w.name))
    return Made(net.done(), {"x": net.random(16, (3, 6, 6)).astype(np.float16)})


@model
def already_quantized():
    """A model that went through a quantizer before: QuantizeLinear and DequantizeLinear around a Gemm."""
    net = Net("already_quantized")
    x = net.input("x", ["N", 6])
    scale, zero = net.constant("x_scale", np.float32(0.03)), net.constant("x_zero_point", np.uint8(128))
    x = net.op("QuantizeLinear", [x, scale, zero], "x_QuantizeLinear_Output")
    x = net.op("DequantizeLinear", [x, scale, zero], "x_DequantizeLinear_Output")
    w = net.constant("w_quantized", net.rng.integers(-127, 128, (6, 4)).astype(np.int8))
    w = net.op("DequantizeLinear", [w, net.constant("w_scale", np.float32(0.01))], "w_DequantizeLinear_Output")
    net.output(net.op("Gemm", [x, w], "y"), ["N", 4])
    return Made(net.done(), {"x": net.random(16, (6,))})


@model
def unknown_operator():
    """An operator that nobody but its author knows stands between two Gemms."""
    net = Net("unknown_operator")
    x = net.gemm(net.input("x", ["N", 6]), "before", 6, 6)
    x = net.op("Mystery", [x], "mystery", domain="com.example")
    net.output(net.gemm(x, "y", 6, 4), ["N", 4])
    return Made(net.done(domains=["com.example"]), {"x": net.random(16, (6,))})


@model
def no_nodes():
    """A model that does nothing: its graph has no nodes."""
    net = Net("no_nodes")
    net.output(net.input("x", ["N", 2]), ["N", 2])
    return Made(net.done())


def main():
    OUT.mkdir(exist_ok=True)
    for make in MODELS:
        made = make()
        if made.valid:
            onnx.checker.check_model(made.proto, full_check=True)
        path = OUT / f"{make.__name__}.onnx"
        path.write_bytes(made.proto.SerializeToString())
        if made.samples:
            # Not np.savez: it stores the time of day.
            with zipfile.ZipFile(path.with_suffix(".npz"), "w", zipfile.ZIP_DEFLATED) as z:
                for name, value in made.samples.items():
                    buffer = io.BytesIO()
                    np.save(buffer, value)
                    z.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
