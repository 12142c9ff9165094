"""Trains a small decoder language model with a key-value cache on real text and exports it to ONNX.

    python -m venv target/lm/venv && target/lm/venv/bin/pip install jax numpy onnx onnxruntime
    nice target/lm/venv/bin/python testdata/scripts/train_lm.py train target/lm     # about 12 minutes of one core
    target/lm/venv/bin/python testdata/scripts/train_lm.py perplexity target/lm target/lm/model.onnx OTHER.onnx ...

The text is what Python's own `help()` shows (`pydoc_data.topics`, the language reference; PSF licence), byte by byte;
the last tenth is never trained on. What is made stays in the folder that is named and is not part of the repository:
`model.onnx` (2.5 million parameters, dynamic shapes, `past`/`present` inputs and outputs), `calib/*.npz` (windows of
the training text) and `eval.npy` (the held-out text).
"""

import os
import sys
import time

import numpy as np

VOCAB, WIDTH, LAYERS, HEADS, CONTEXT = 256, 256, 3, 4, 128
HEAD = WIDTH // HEADS
BATCH, WINDOW, STEPS, RATE = 16, 128, 700, 2e-3


def text():
    from pydoc_data import topics

    data = np.frombuffer("\n\n".join(topics.topics.values()).encode(), np.uint8)
    cut = len(data) * 9 // 10
    return data[:cut], data[cut:]


def initial(rng):
    def normal(*shape, scale=0.02):
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    p = {"embedding": normal(VOCAB, WIDTH), "position": normal(CONTEXT, WIDTH), "head": normal(WIDTH, VOCAB)}
    for norm in [f"{i}.{n}" for i in range(LAYERS) for n in ("norm1", "norm2")] + ["norm"]:
        p[f"{norm}.weight"], p[f"{norm}.bias"] = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    for i in range(LAYERS):
        for n in ("query", "key", "value"):
            p[f"{i}.{n}"] = normal(WIDTH, WIDTH)
        p[f"{i}.out"] = normal(WIDTH, WIDTH, scale=0.02 / (2 * LAYERS) ** 0.5)
        p[f"{i}.up"], p[f"{i}.up.bias"] = normal(WIDTH, 4 * WIDTH), np.zeros(4 * WIDTH, np.float32)
        p[f"{i}.down"] = normal(4 * WIDTH, WIDTH, scale=0.02 / (2 * LAYERS) ** 0.5)
        p[f"{i}.down.bias"] = np.zeros(WIDTH, np.float32)
    return p


def train(folder):
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    import jax
    import jax.numpy as jnp

    def norm(p, name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * p[name + ".weight"] + p[name + ".bias"]

    mask = jnp.tril(jnp.ones((WINDOW, WINDOW), bool))

    def loss(p, ids):
        x = p["embedding"][ids[:, :-1]] + p["position"][:WINDOW]
        for i in range(LAYERS):
            h = norm(p, f"{i}.norm1", x)
            q, k, v = (
                (h @ p[f"{i}.{n}"]).reshape(BATCH, WINDOW, HEADS, HEAD).transpose(0, 2, 1, 3)
                for n in ("query", "key", "value")
            )
            a = jnp.where(mask, q @ k.transpose(0, 1, 3, 2) / HEAD**0.5, -1e9)
            h = (jax.nn.softmax(a) @ v).transpose(0, 2, 1, 3).reshape(BATCH, WINDOW, WIDTH)
            x = x + h @ p[f"{i}.out"]
            h = jax.nn.relu(norm(p, f"{i}.norm2", x) @ p[f"{i}.up"] + p[f"{i}.up.bias"])
            x = x + h @ p[f"{i}.down"] + p[f"{i}.down.bias"]
        logits = norm(p, "norm", x) @ p["head"]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None].astype(jnp.int32), -1)
        return -picked.mean()

    @jax.jit
    def update(p, m, v, t, ids):
        value, g = jax.value_and_grad(loss)(p, ids)
        rate = RATE * jnp.minimum(t / 50, 0.5 * (1 + jnp.cos(jnp.pi * t / STEPS)) + 0.02)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.98 * v + 0.02 * g * g, v, g)

        def move(p, m, v):
            step = (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.98**t)) + 1e-8)
            return p - rate * (step + (0.05 * p if p.ndim == 2 else 0))

        return jax.tree.map(move, p, m, v), m, v, value

    rng = np.random.default_rng(0)
    data, _ = text()
    p = initial(rng)
    m = v = jax.tree.map(np.zeros_like, p)
    for t in range(1, STEPS + 1):
        starts = rng.integers(0, len(data) - WINDOW - 1, BATCH)
        ids = np.stack([data[s : s + WINDOW + 1] for s in starts])
        p, m, v, value = update(p, m, v, np.float32(t), ids)
        if t % 50 == 0 or t == 1:
            print(f"step {t}: loss {float(value):.3f}, {time.process_time():.0f} s of processor time", flush=True)
    os.makedirs(folder, exist_ok=True)
    np.savez(os.path.join(folder, "weights.npz"), **{k: np.asarray(x) for k, x in p.items()})


def export(folder):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    p = dict(np.load(os.path.join(folder, "weights.npz")))
    nodes, stored = [], []

    def const(name, value):
        stored.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(kind, inputs, name, **attrs):
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attrs))
        return name

    def norm(x, name):
        inputs = [x, const(name + ".weight", p[name + ".weight"]), const(name + ".bias", p[name + ".bias"])]
        return op("LayerNormalization", inputs, name, axis=-1, epsilon=1e-5)

    def product(x, name):
        return op("MatMul", [x, const(name + ".weight", p[name])], name)

    one, zero = const("one", np.array(1, np.int64)), const("zero", np.array(0, np.int64))
    last = const("last", np.array([-1], np.int64))
    length = op("Squeeze", [op("Shape", ["input_ids"], "ids_shape", start=1, end=2)], "length")
    before = op("Squeeze", [op("Shape", ["past.0.key"], "past_shape", start=2, end=3)], "past_length")
    total = op("Add", [before, length], "total_length")
    at = op("Range", [before, total, one], "positions")
    x = op("Gather", [const("embedding.weight", p["embedding"]), "input_ids"], "embedding")
    x = op("Add", [x, op("Gather", [const("position.weight", p["position"]), at], "position")], "embedded")
    # A position sees itself and what came before.
    seen = op("LessOrEqual", [op("Range", [zero, total, one], "keys"), op("Unsqueeze", [at, last], "queries")], "seen")
    mask = op("Where", [seen, const("nothing", np.float32(0)), const("hidden", np.float32(-1e9))], "mask")
    heads = const("heads", np.array([0, 0, HEADS, HEAD], np.int64))
    merged = const("merged", np.array([0, 0, WIDTH], np.int64))
    scale = const("attention_scale", np.float32(HEAD**-0.5))
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", VOCAB])]
    for i in range(LAYERS):
        h = norm(x, f"{i}.norm1")

        def split(n):
            r = op("Reshape", [product(h, f"{i}.{n}"), heads], f"{i}.{n}.heads")
            return op("Transpose", [r], f"{i}.{n}.turned", perm=[0, 2, 1, 3])

        q, kv = split("query"), {}
        for n in ("key", "value"):
            past, present = f"past.{i}.{n}", f"present.{i}.{n}"
            kv[n] = op("Concat", [past, split(n)], present, axis=2)
            inputs.append(helper.make_tensor_value_info(past, TensorProto.FLOAT, ["batch", HEADS, "past", HEAD]))
            outputs.append(helper.make_tensor_value_info(present, TensorProto.FLOAT, ["batch", HEADS, "total", HEAD]))
        a = op("MatMul", [q, op("Transpose", [kv["key"]], f"{i}.keys", perm=[0, 1, 3, 2])], f"{i}.scores")
        a = op("Add", [op("Mul", [a, scale], f"{i}.scaled"), mask], f"{i}.masked")
        a = op("MatMul", [op("Softmax", [a], f"{i}.attention", axis=-1), kv["value"]], f"{i}.mixed")
        a = op("Reshape", [op("Transpose", [a], f"{i}.back", perm=[0, 2, 1, 3]), merged], f"{i}.merged")
        x = op("Add", [x, product(a, f"{i}.out")], f"{i}.attended")
        h = op("Add", [product(norm(x, f"{i}.norm2"), f"{i}.up"), const(f"{i}.up.b", p[f"{i}.up.bias"])], f"{i}.up.sum")
        h = op("Relu", [h], f"{i}.up.relu")
        h = op("Add", [product(h, f"{i}.down"), const(f"{i}.down.b", p[f"{i}.down.bias"])], f"{i}.down.sum")
        x = op("Add", [x, h], f"{i}.layer")
    op("MatMul", [norm(x, "norm"), const("head.weight", p["head"])], "logits")
    graph = helper.make_graph(nodes, "lm", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, os.path.join(folder, "model.onnx"))

    data, held_out = text()
    np.save(os.path.join(folder, "eval.npy"), held_out)
    os.makedirs(os.path.join(folder, "calib"), exist_ok=True)
    empty = {f"past.{i}.{n}": np.zeros((1, HEADS, 0, HEAD), np.float32) for i in range(LAYERS) for n in ("key", "value")}
    for i, s in enumerate(np.random.default_rng(1).integers(0, len(data) - WINDOW, 128)):
        ids = data[s : s + WINDOW][None].astype(np.int64)
        np.savez(os.path.join(folder, "calib", f"{i:03}.npz"), input_ids=ids, **empty)


def perplexity(folder, path):
    """Per byte, over windows of the held-out text that are fed in four steps with the cache carried on."""
    import onnxruntime as ort

    data = np.load(os.path.join(folder, "eval.npy"))
    rows = np.stack([data[s : s + WINDOW + 1] for s in range(0, len(data) - WINDOW, WINDOW)][:480])
    o = ort.SessionOptions()
    o.intra_op_num_threads, o.log_severity_level = 1, 3
    session = ort.InferenceSession(path, o, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_outputs()]
    total, count = 0.0, 0
    for first in range(0, len(rows), 16):
        ids = rows[first : first + 16].astype(np.int64)
        state = {
            f"past.{i}.{n}": np.zeros((len(ids), HEADS, 0, HEAD), np.float32)
            for i in range(LAYERS)
            for n in ("key", "value")
        }
        for at in range(0, WINDOW, WINDOW // 4):
            step = ids[:, at : at + WINDOW // 4]
            out = dict(zip(names, session.run(None, {"input_ids": step, **state})))
            state = {k.replace("present", "past"): v for k, v in out.items() if k != "logits"}
            z = out["logits"].astype(np.float64)
            z -= z.max(-1, keepdims=True)
            z -= np.log(np.exp(z).sum(-1, keepdims=True))
            wanted = ids[:, at + 1 : at + 1 + WINDOW // 4]
            total -= np.take_along_axis(z, wanted[..., None], -1).sum()
            count += wanted.size
    return float(np.exp(total / count))


def size(path):
    """With the weights beside it."""
    return sum(os.path.getsize(p) for p in (path, path + ".data") if os.path.exists(p))


def main():
    command, folder = sys.argv[1:3]
    if command == "train":
        if not os.path.exists(os.path.join(folder, "weights.npz")):
            train(folder)
        export(folder)
    elif command == "perplexity":
        for path in sys.argv[3:]:
            print(f"{os.path.basename(path):40} {size(path) / 1e6:7.2f} MB   perplexity {perplexity(folder, path):.4f}", flush=True)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
