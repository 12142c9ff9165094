"""The other side of the models benchmark, ONNX Runtime or tract: one thread, asked to run rounds over a few samples."""

import sys
import time

import numpy as np
import onnx
import onnxruntime as ort


def folder_of_light_models():
    import os
    return os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data", "light")


def feed(session, path):
    if path:
        with np.load(path) as z:
            return {k: z[k] for k in z.files}
    # No samples: a picture of noise for the one float input.
    r = np.random.default_rng(0)
    weights = {i.name for i in session.get_overridable_initializers()}
    inputs = [i for i in session.get_inputs() if i.name not in weights]
    return {i.name: r.random(i.shape, dtype=np.float32) - 0.5 for i in inputs}


TRACT_TYPES = {"float32": "f32", "float64": "f64", "int64": "i64", "int32": "i32", "uint8": "u8", "bool": "bool"}


def with_tract(model, feeds):
    """A function that runs tract on a sample: one that is made for the shapes of each."""
    import subprocess

    try:
        import tract
    except ImportError:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "tract"], check=True)
        import tract

    def made(feed):
        loaded = tract.onnx().load(model)
        names = [loaded.input_name(i) for i in range(loaded.input_count())]
        for i, name in enumerate(names):
            shape = ",".join(map(str, feed[name].shape))
            loaded.set_input_fact(i, ",".join(filter(None, [shape, TRACT_TYPES[str(feed[name].dtype)]])))
        return loaded.into_model().into_runnable(), names

    def shapes(feed):
        return tuple(sorted((k, v.shape) for k, v in feed.items()))

    by_shapes = {}
    for f in feeds:
        if shapes(f) not in by_shapes:
            by_shapes[shapes(f)] = made(f)

    def run(feed):
        runnable, names = by_shapes[shapes(feed)]
        runnable.run([feed[n] for n in names])

    return run


def main(a):
    state = sys.__dict__.setdefault("models_bench", {})
    if a["do"] == "light":
        return folder_of_light_models()
    if a["do"] == "load":
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        state["s"] = s = ort.InferenceSession(a["model"], options, providers=["CPUExecutionProvider"])
        state["feeds"] = [feed(s, p) for p in a["samples"] or [None]]
        state["run"] = lambda f: s.run(None, f)
        if a["tract"]:
            state["run"] = with_tract(a["model"], state["feeds"])
        return {i.name: list(i.shape) for i in s.get_inputs()}
    run, feeds = state["run"], state["feeds"]
    # The time that this thread was running, which is all that a session on one thread needs, and tract always.
    t = time.thread_time()
    for _ in range(a["times"]):
        for f in feeds:
            run(f)
    return (time.thread_time() - t) * 1e3 / (a["times"] * len(feeds))
