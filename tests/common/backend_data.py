"""Writes ONNX's backend tests, as they come with the onnx wheel, into a folder.

    OUT/KIND/NAME/model.onnx
    OUT/KIND/NAME/case.json                     {"rtol": ..., "atol": ...}
    OUT/KIND/NAME/test_data_set_N/input_M.pb    a TensorProto, or SequenceProto, OptionalProto, MapProto
    OUT/KIND/NAME/test_data_set_N/output_M.pb

KIND is node, simple, pytorch-converted, pytorch-operator or light.
"""

import json
import pathlib
import shutil
import sys
import warnings

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test import loader

warnings.filterwarnings("ignore")


def encode(value, info):
    """`value` as the message that ONNX's own test data holds for a graph input or output `info`."""
    if isinstance(value, onnx.TensorProto):
        return value
    kind = info.type.WhichOneof("value")
    convert = {
        "map_type": numpy_helper.from_dict,
        "sequence_type": numpy_helper.from_list,
        "optional_type": numpy_helper.from_optional,
    }.get(kind, numpy_helper.from_array)
    return convert(value, info.name)


def write_case(folder, model, rtol, atol):
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model)
    (folder / "case.json").write_text(json.dumps({"rtol": rtol, "atol": atol}))


def write_set(folder, index, values, infos, stem):
    d = folder / f"test_data_set_{index}"
    d.mkdir(exist_ok=True)
    for j, (value, info) in enumerate(zip(values, infos, strict=False)):
        (d / f"{stem}_{j}.pb").write_bytes(encode(value, info).SerializeToString())


def node_cases(out):
    for case in loader.load_node_model_tests():
        folder = out / "node" / case.name
        write_case(folder, case.model.SerializeToString(), case.rtol, case.atol)
        for i, (inputs, outputs) in enumerate(case.data_sets):
            write_set(folder, i, inputs, case.model.graph.input, "input")
            write_set(folder, i, outputs, case.model.graph.output, "output")


def stored_cases(out, data, kind):
    for case in loader.load_model_tests(str(data), kind):
        folder = out / kind / case.name
        source = pathlib.Path(case.model_dir)
        write_case(folder, (source / "model.onnx").read_bytes(), case.rtol, case.atol)
        for d in sorted(source.glob("test_data_set_*")):
            shutil.copytree(d, folder / d.name)


def light_cases(out, data):
    """Whole networks whose weights are computed in the graph; the input is 0, 1/n, 2/n, ... as ONNX's runner has it."""
    for path in sorted((data / "light").glob("*.onnx")):
        folder = out / "light" / path.stem
        content = path.read_bytes()
        write_case(folder, content, 1e-3, 1e-7)
        graph = onnx.load_from_string(content).graph
        constants = {i.name for i in graph.initializer}
        infos = [i for i in graph.input if i.name not in constants]
        values = []
        for info in infos:
            shape = [d.dim_value or 1 for d in info.type.tensor_type.shape.dim]
            n = int(np.prod(shape))
            values.append((np.arange(n).reshape(shape) / n).astype(np.float32))
        write_set(folder, 0, values, infos, "input")
        for j in range(len(graph.output)):
            expected = path.with_name(f"{path.stem}_output_{j}.pb")
            if expected.exists():
                shutil.copy(expected, folder / "test_data_set_0" / f"output_{j}.pb")


def main(out):
    data = pathlib.Path(loader.DATA_DIR)
    node_cases(out)
    for kind in ("simple", "pytorch-converted", "pytorch-operator"):
        stored_cases(out, data, kind)
    light_cases(out, data)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
