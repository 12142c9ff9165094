# requirements: jax==0.10.2 numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 scikit-learn==1.9.1
"""Trains the network of `onnx-quant demo` and writes it with its samples to testdata/demo/.

    python3 -m venv /tmp/train && /tmp/train/bin/pip install jax==0.10.2 numpy==2.4.6 onnx==1.23.2 \
        onnxruntime==1.32.0 scikit-learn==1.9.1
    /tmp/train/bin/python testdata/scripts/train_digits.py

Data: 1797 handwritten digits, 8x8 pixels of 0..16, from scikit-learn (see testdata/demo/README.txt). 200 of them
are held out for the demo's accuracy and take no part in training; the calibration samples are training samples.
The network is an ordinary small CNN: three times Conv + BatchNormalization + Relu, two MaxPool, two Gemm.
Takes a minute on one CPU and gives the same files again on the same machine.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

OUT = pathlib.Path(__file__).resolve().parent.parent / "demo"
SEED = 7
HELD_OUT = 400
CALIBRATION = 100
EPOCHS = 60
BATCH = 64
CHANNELS = [(1, 16), (16, 32), (32, 32)]
HIDDEN = 64
EPSILON = 1e-5


def split():
    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]  # [1797, 1, 8, 8]
    labels = digits.target.astype(np.uint8)
    order = np.random.default_rng(SEED).permutation(len(images))
    test, train = order[:HELD_OUT], order[HELD_OUT:]
    return (images[train], labels[train]), (images[test], labels[test])


def initial(key):
    """Weights by He's rule; BatchNormalization starts as the identity."""
    convs = []
    for c_in, c_out in CHANNELS:
        key, k = jax.random.split(key)
        w = jax.random.normal(k, (c_out, c_in, 3, 3)) * np.sqrt(2 / (9 * c_in))
        convs.append({"w": w, "scale": jnp.ones(c_out), "shift": jnp.zeros(c_out)})
    gemms = []
    for n_in, n_out in [(4 * CHANNELS[-1][1], HIDDEN), (HIDDEN, 10)]:
        key, k = jax.random.split(key)
        gemms.append({"w": jax.random.normal(k, (n_out, n_in)) * np.sqrt(2 / n_in), "b": jnp.zeros(n_out)})
    return {"convs": convs, "gemms": gemms}


def pool(x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))


def forward(params, x, statistics=None):
    """Logits, and mean and variance per BatchNormalization: the batch's own ones unless `statistics` are given."""
    seen = []
    for i, p in enumerate(params["convs"]):
        x = jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        mean, var = statistics[i] if statistics else (x.mean((0, 2, 3)), x.var((0, 2, 3)))
        seen.append((mean, var))
        factor = p["scale"] / jnp.sqrt(var + EPSILON)
        x = jax.nn.relu(x * factor[:, None, None] + (p["shift"] - mean * factor)[:, None, None])
        if i > 0:
            x = pool(x)
    x = x.reshape(x.shape[0], -1)
    first, second = params["gemms"]
    x = jax.nn.relu(x @ first["w"].T + first["b"])
    return x @ second["w"].T + second["b"], seen


def loss(params, x, y):
    logits, seen = forward(params, x)
    # Smoothed labels keep the logits small, as in networks that people train today.
    target = jax.nn.one_hot(y, 10) * 0.95 + 0.005
    return -(target * jax.nn.log_softmax(logits)).sum(1).mean(), seen


@jax.jit
def step(params, moments, x, y, rate, t):
    """One step of AdamW."""
    (value, seen), grads = jax.value_and_grad(loss, has_aux=True)(params, x, y)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], grads)
    second = jax.tree.map(lambda m, g: 0.999 * m + 0.001 * g * g, moments[1], grads)
    params = jax.tree.map(
        lambda p, m, v: p - rate * (m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.01 * p),
        params, first, second,
    )  # fmt: skip
    return params, (first, second), value, seen


def shifted(rng, x):
    """Each image moved by at most one pixel in each direction, the border filled with 0."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    moves = rng.integers(0, 3, (len(x), 2))
    return np.stack([p[:, i : i + 8, j : j + 8] for p, (i, j) in zip(padded, moves)])


def train(images, labels):
    rng = np.random.default_rng(SEED)
    x = images.astype(np.float32) / 16
    params = initial(jax.random.key(SEED))
    moments = (jax.tree.map(jnp.zeros_like, params),) * 2
    statistics = None
    t, total = 0, EPOCHS * (len(x) // BATCH)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(x))[: len(x) // BATCH * BATCH]
        for batch in order.reshape(-1, BATCH):
            t += 1
            rate = 2e-3 * 0.5 * (1 + np.cos(np.pi * t / total))
            params, moments, value, seen = step(params, moments, shifted(rng, x[batch]), labels[batch], rate, t)
            keep = 0.9 if statistics else 0.0
            statistics = jax.tree.map(lambda s, b: keep * s + (1 - keep) * b, statistics or seen, seen)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {value:.4f}")
    return params, statistics


def export(params, statistics):
    nodes, weights = [], []

    def constant(name, value):
        weights.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def add(op, inputs, name, **attributes):
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    x = "image"
    for i, (p, (mean, var)) in enumerate(zip(params["convs"], statistics), 1):
        c, b = f"conv{i}", f"norm{i}"
        x = add("Conv", [x, constant(f"{c}.weight", p["w"])], c, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        norm = [("scale", p["scale"]), ("shift", p["shift"]), ("mean", mean), ("var", var)]
        x = add("BatchNormalization", [x] + [constant(f"{b}.{n}", v) for n, v in norm], b, epsilon=EPSILON)
        x = add("Relu", [x], f"relu{i}")
        if i > 1:
            x = add("MaxPool", [x], f"pool{i}", kernel_shape=[2, 2], strides=[2, 2])
    x = add("Flatten", [x], "flatten")
    for i, p in enumerate(params["gemms"], 1):
        last = i == len(params["gemms"])
        inputs = [x, constant(f"fc{i}.weight", p["w"]), constant(f"fc{i}.bias", p["b"])]
        nodes.append(helper.make_node("Gemm", inputs, ["logits" if last else f"fc{i}"], name=f"fc{i}", transB=1))
        x = "logits" if last else add("Relu", [f"fc{i}"], f"relu_fc{i}")
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="train_digits.py"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main():
    (train_images, train_labels), (test_images, test_labels) = split()
    params, statistics = train(train_images, train_labels)
    model = export(params, statistics)
    OUT.mkdir(exist_ok=True)
    path = OUT / "digits.onnx"
    path.write_bytes(model.SerializeToString())
    # Samples keep their 0..16 as bytes; the network takes value / 16 as float32.
    arrays = {
        "calib_images": train_images[:CALIBRATION],
        "test_images": test_images,
        "test_labels": test_labels,
    }
    for name, value in arrays.items():
        np.save(OUT / f"{name}.npy", value)
    session = onnxruntime.InferenceSession(path)
    for name, x, y in [("train", train_images, train_labels), ("held out", test_images, test_labels)]:
        logits = session.run(None, {"image": x.astype(np.float32) / 16})[0]
        right = int((logits.argmax(1) == y).sum())
        print(f"{name}: {right} of {len(y)} right, {100 * right / len(y):.2f} %")
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
