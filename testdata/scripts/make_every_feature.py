# requirements: numpy==2.4.6 onnx==1.23.2
"""Writes testdata/read/every_feature.onnx: a small model in which each message of ONNX occurs, and each kind of tensor,
attribute and type, and fields that no schema knows, for the tests of reading and writing. It need not run anywhere.

    python3 -m venv /tmp/make && /tmp/make/bin/pip install numpy==2.4.6 onnx==1.23.2
    /tmp/make/bin/python testdata/scripts/make_every_feature.py
"""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OUT = pathlib.Path(__file__).resolve().parent.parent / "read" / "every_feature.onnx"
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def pairs(field, entries):
    for key, value in entries.items():
        field.add(key=key, value=value)


def tensors():
    """One tensor of each element type as raw data, and one in the typed list."""
    made = []
    for name, code in TensorProto.DataType.items():
        if code in (TensorProto.UNDEFINED, TensorProto.STRING):
            continue
        dtype = helper.tensor_dtype_to_np_dtype(code)
        values = np.arange(5).astype(np.float32).astype(dtype)
        made.append(numpy_helper.from_array(values, f"raw_{name.lower()}"))
        if code not in (TensorProto.FLOAT6E2M3, TensorProto.FLOAT6E3M2):
            made.append(helper.make_tensor(f"list_{name.lower()}", code, [5], values))
    for name, code in (("float6e2m3", TensorProto.FLOAT6E2M3), ("float6e3m2", TensorProto.FLOAT6E3M2)):
        made.append(TensorProto(name=f"list_{name}", data_type=code, dims=[3], int32_data=[0, 8, 63]))
    made.append(helper.make_tensor("strings", TensorProto.STRING, [2], [b"a", "\u00e4".encode()]))
    made.append(helper.make_tensor("empty", FLOAT, [0, 3], []))
    made[0].doc_string = "a tensor"
    pairs(made[0].metadata_props, {"from": "here"})
    return made


def sparse(name):
    values = helper.make_tensor(name, FLOAT, [2], [1.5, -2.5])
    return helper.make_sparse_tensor(values, helper.make_tensor(f"{name}_at", INT64, [2, 2], [0, 1, 2, 0]), [3, 2])


def branch(name, output, nodes):
    return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=output)])


def from_the_future(*messages):
    """Adds field 2047, which no ONNX message has."""
    for message in messages:
        message.MergeFromString(b"\xfa\x7f\x06future")


def graph():
    value = helper.make_tensor_value_info
    inner_then = helper.make_node("Add", ["relu", "inner_c"], ["inner_y"])
    inner = branch("inner", "inner_y", [helper.make_node("Constant", [], ["inner_c"], value_float=1.0), inner_then])
    outer_then = branch(
        "then",
        "then_y",
        [helper.make_node("If", ["cond"], ["then_y"], then_branch=inner, else_branch=branch("pass", "relu", []))],
    )
    outer_else = branch("else", "else_y", [helper.make_node("Neg", ["relu"], ["else_y"], name="neg")])
    strange = helper.make_node("Strange", ["", "relu", ""], ["s0", "", "s2"], name="strange", domain="com.example")
    strange.overload = "v2"
    strange.doc_string = "a node of every attribute kind"
    pairs(strange.metadata_props, {"pkg": "x"})
    strange.attribute.extend(
        [
            helper.make_attribute("f", 0.0),
            helper.make_attribute("i", 0),
            helper.make_attribute("s", b"\xff\x00"),
            helper.make_attribute("t", tensors()[0], doc_string="attribute"),
            helper.make_attribute("g", branch("body", "body_y", [helper.make_node("Abs", ["x"], ["body_y"])])),
            helper.make_attribute("sp", sparse("sp")),
            helper.make_attribute("tp", helper.make_tensor_type_proto(FLOAT, ["N", None, 3])),
            helper.make_attribute("fs", [1.0, 2.0]),
            helper.make_attribute("is", [-1, 2]),
            helper.make_attribute("ss", [b"a", b""]),
            helper.make_attribute("ts", tensors()[:2]),
            helper.make_attribute("gs", [branch("b0", "relu", []), branch("b1", "x", [])]),
            helper.make_attribute("sps", [sparse("a"), sparse("b")]),
            helper.make_attribute("tps", [helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, []))]),
            onnx.AttributeProto(name="old", ints=[4]),
            onnx.AttributeProto(name="nothing", type=onnx.AttributeProto.INTS),
        ]
    )
    devices = strange.device_configurations.add(configuration_id="two", pipeline_stage=1)
    spec = devices.sharding_spec.add(tensor_name="relu", device=[-1, 1])
    spec.index_to_device_group_map.add(key=-1, value=[0, 1])
    dim = spec.sharded_dim.add(axis=0)
    dim.simple_sharding.add(dim_value=4, num_shards=2)
    dim.simple_sharding.add(dim_param="N", num_shards=2)
    nodes = [
        helper.make_node("Relu", ["x"], ["relu"], name="relu"),
        helper.make_node("Half", ["relu"], ["half"], domain="local", factor=3.0),
        helper.make_node("If", ["cond"], ["y"], then_branch=outer_then, else_branch=outer_else),
        strange,
        helper.make_node("Nothing", ["nowhere"], []),
    ]
    optional = helper.make_optional_type_proto(helper.make_sequence_type_proto(helper.make_tensor_type_proto(INT64, None)))
    map_type = helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, [1]))
    opaque = onnx.TypeProto(opaque_type=onnx.TypeProto.Opaque(domain="d", name="o"))
    x = value("x", FLOAT, ["N", 3, None, 2], shape_denotation=["DATA_BATCH", "", "", ""])
    x.type.denotation = "TENSOR"
    pairs(x.metadata_props, {"layout": "NCHW"})
    g = helper.make_graph(
        nodes,
        "main",
        [
            x,
            value("cond", TensorProto.BOOL, []),
            helper.make_value_info("optional", optional),
            helper.make_value_info("map", map_type),
            helper.make_value_info("opaque", opaque),
            helper.make_value_info("sparse", helper.make_sparse_tensor_type_proto(FLOAT, [3, 2])),
            value("raw_float", FLOAT, [5]),
        ],
        [value("y", FLOAT, None), value("half", FLOAT, ["N", 3, None, 2])],
        tensors(),
        doc_string="",
        value_info=[value("relu", FLOAT, ["N", 3, None, 2]), value("not_there", FLOAT, [])],
        sparse_initializer=[sparse("sparse_w")],
    )
    note = g.quantization_annotation.add(tensor_name="relu")
    pairs(note.quant_parameter_tensor_names, {"SCALE_TENSOR": "raw_float", "ZERO_POINT_TENSOR": "raw_uint8"})
    pairs(g.metadata_props, {"graph": "main"})
    inner_node = g.node[2].attribute[0].g.node[0]
    from_the_future(g, g.node[1], inner_node, strange_t(g), g.initializer[3], g.value_info[0], g.input[0].type)
    return g


def strange_t(g):
    return next(a.t for n in g.node for a in n.attribute if a.name == "t")


def main():
    half = helper.make_function(
        "local",
        "Half",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["f"]),
            helper.make_node("Div", ["a", "f"], ["b"], name="div"),
        ],
        [helper.make_opsetid("", 25)],
        attributes=["required"],
        attribute_protos=[helper.make_attribute("factor", 2.0)],
        doc_string="a function",
        overload="",
        value_info=[helper.make_tensor_value_info("f", FLOAT, [])],
    )
    half.node[0].attribute.add(name="value_float", type=onnx.AttributeProto.FLOAT, ref_attr_name="factor")
    pairs(half.metadata_props, {"function": "half"})
    model = helper.make_model(
        graph(),
        functions=[half],
        ir_version=14,
        producer_name="make_every_feature",
        producer_version="1",
        opset_imports=[
            helper.make_opsetid("", 25),
            helper.make_opsetid("local", 1),
            onnx.OperatorSetIdProto(domain="com.example"),
        ],
    )
    from_the_future(model, model.functions[0], model.functions[0].node[1], model.opset_import[0])
    model.domain = "org.example"
    model.model_version = 0
    pairs(model.metadata_props, {"key": "value", "empty": ""})
    model.configuration.add(name="two", num_devices=2, device=["cpu0", "cpu1"])
    training = model.training_info.add()
    training.initialization.CopyFrom(branch("init", "w0", [helper.make_node("Constant", [], ["w0"], value_float=0.0)]))
    training.algorithm.CopyFrom(branch("step", "w1", [helper.make_node("Neg", ["raw_float"], ["w1"])]))
    pairs(training.initialization_binding, {"raw_float": "w0"})
    pairs(training.update_binding, {"raw_float": "w1"})
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(model.SerializeToString(deterministic=True))


main()
