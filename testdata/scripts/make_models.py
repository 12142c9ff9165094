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
