"""ONNX Runtime's side of the models benchmark: one session on one thread, asked to run rounds over a few samples."""

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
        return {i.name: list(i.shape) for i in s.get_inputs()}
    s, feeds = state["s"], state["feeds"]
    # The time that this thread was running, which is all that a session on one thread needs.
    t = time.thread_time()
    for _ in range(a["times"]):
        for f in feeds:
            s.run(None, f)
    return (time.thread_time() - t) * 1e3 / (a["times"] * len(feeds))
