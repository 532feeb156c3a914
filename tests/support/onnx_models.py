"""Small real ONNX models for tests, and their places in a repository.

Every maker returns the serialised model; `put` writes one as a version of a model in a repository.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str]

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}
"""By V2 name."""


def identity(datatype: str = "FP32", dims: Dims = ("batch", 4)) -> bytes:
    """OUTPUT = INPUT."""
    kind = ONNX_TYPES[datatype]
    return _model(
        [helper.make_node("Identity", ["INPUT"], ["OUTPUT"])],
        [helper.make_tensor_value_info("INPUT", kind, dims)],
        [helper.make_tensor_value_info("OUTPUT", kind, dims)],
    )


def add_sub(datatype: str = "FP32", dims: Dims = ("batch", 4)) -> bytes:
    """OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1; batchable with the default dims."""
    kind = ONNX_TYPES[datatype]
    names = ["INPUT0", "INPUT1"]
    return _model(
        [helper.make_node("Add", names, ["OUTPUT0"]), helper.make_node("Sub", names, ["OUTPUT1"])],
        [helper.make_tensor_value_info(name, kind, dims) for name in names],
        [helper.make_tensor_value_info(name, kind, dims) for name in ("OUTPUT0", "OUTPUT1")],
    )


def scale(factor: float, dims: Dims = ("batch", 4)) -> bytes:
    """OUTPUT = INPUT * factor: tells versions of one model apart."""
    return _model(
        [helper.make_node("Mul", ["INPUT", "FACTOR"], ["OUTPUT"])],
        [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("OUTPUT", TensorProto.FLOAT, dims)],
        [numpy_helper.from_array(np.array([factor], np.float32), "FACTOR")],
    )


def weights(megabytes: int) -> bytes:
    """OUTPUT = INPUT @ W, with so many megabytes of weights; INPUT is [batch, 256]."""
    columns = megabytes * 1024
    table = np.random.default_rng(0).random((256, columns), np.float32)
    return _model(
        [helper.make_node("MatMul", ["INPUT", "W"], ["OUTPUT"])],
        [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, ("batch", 256))],
        [helper.make_tensor_value_info("OUTPUT", TensorProto.FLOAT, ("batch", columns))],
        [numpy_helper.from_array(table, "W")],
    )


def picky() -> bytes:
    """OUTPUT = TABLE[INPUT] with TABLE = [0, 10, 20, 30]: an INPUT (INT64, [batch, 1]) beyond 3 fails the run."""
    return _model(
        [helper.make_node("Gather", ["TABLE", "INPUT"], ["OUTPUT"])],
        [helper.make_tensor_value_info("INPUT", TensorProto.INT64, ("batch", 1))],
        [helper.make_tensor_value_info("OUTPUT", TensorProto.INT64, ("batch", 1))],
        [numpy_helper.from_array(np.array([0, 10, 20, 30], np.int64), "TABLE")],
    )


def unfit() -> bytes:
    """OUTPUT = INPUT (FP32, [batch, 4]) as rows of three: no run of one row succeeds, though its shape is right."""
    kind = TensorProto.FLOAT
    return _model(
        [helper.make_node("Reshape", ["INPUT", "SHAPE"], ["OUTPUT"])],
        [helper.make_tensor_value_info("INPUT", kind, ("batch", 4))],
        [helper.make_tensor_value_info("OUTPUT", kind, ("batch", 3))],
        [numpy_helper.from_array(np.array([-1, 3], np.int64), "SHAPE")],
    )


def slow(iterations: int = 200_000) -> bytes:
    """OUTPUT = INPUT (FP32, [batch, 4]) after that many turns of a loop: about half a microsecond each, in one run."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("Add", ["value", "ONE"], ["more"]),
            helper.make_node("Sub", ["more", "ONE"], ["same"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, ()),
            helper.make_tensor_value_info("going", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ("batch", 4)),
        ],
        [
            helper.make_tensor_value_info("still_going", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, ("batch", 4)),
        ],
    )
    return _model(
        [helper.make_node("Loop", ["TURNS", "GO", "INPUT"], ["OUTPUT"], body=body)],
        [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, ("batch", 4))],
        [helper.make_tensor_value_info("OUTPUT", TensorProto.FLOAT, ("batch", 4))],
        [
            numpy_helper.from_array(np.array(iterations, np.int64), "TURNS"),
            numpy_helper.from_array(np.array(1, np.bool_), "GO"),
            numpy_helper.from_array(np.array(1, np.float32), "ONE"),
        ],
    )


def put(
    repository: pathlib.Path, name: str, model: bytes, *, version: int = 1, config: str | None = None
) -> pathlib.Path:
    """Writes `<repository>/<name>/<version>/model.onnx`, with a config.pbtxt where one is given; the model's directory."""
    directory = repository / name
    (directory / str(version)).mkdir(parents=True, exist_ok=True)
    (directory / str(version) / "model.onnx").write_bytes(model)
    if config is not None:
        (directory / "config.pbtxt").write_text(config, encoding="utf-8")
    return directory


def _model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], constants: Sequence[Any] = ()) -> bytes:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializer=list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised


def ragged() -> bytes:
    """TWICE = 2 * INPUT, a row of elements; SUMS = the sum of each part of it that BOUNDS (INT32, one more) delimit."""
    nodes = [
        helper.make_node("Add", ["INPUT", "INPUT"], ["TWICE"]),
        helper.make_node("CumSum", ["INPUT", "AXIS"], ["cumulated"]),
        helper.make_node("Concat", ["ZERO", "cumulated"], ["padded"], axis=0),
        helper.make_node("Gather", ["padded", "BOUNDS"], ["at_bounds"]),
        helper.make_node("Slice", ["at_bounds", "ONE", "LAST"], ["ends"]),
        helper.make_node("Slice", ["at_bounds", "START", "MINUS_ONE"], ["starts"]),
        helper.make_node("Sub", ["ends", "starts"], ["sums"]),
        helper.make_node("Unsqueeze", ["sums", "ONE"], ["SUMS"]),
    ]
    constants = {"ONE": [1], "LAST": [2**31], "START": [0], "MINUS_ONE": [-1]}
    return _model(
        nodes,
        [
            helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, ("elements",)),
            helper.make_tensor_value_info("BOUNDS", TensorProto.INT32, ("bounds",)),
        ],
        [
            helper.make_tensor_value_info("SUMS", TensorProto.FLOAT, ("parts", 1)),
            helper.make_tensor_value_info("TWICE", TensorProto.FLOAT, ("elements",)),
        ],
        [
            *(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()),
            numpy_helper.from_array(np.array(0, np.int64), "AXIS"),
            numpy_helper.from_array(np.array([0], np.float32), "ZERO"),
        ],
    )


def external(model: bytes, location: str) -> bytes:
    """The same, its first constant said to lie in a file."""
    loaded = onnx.load_from_string(model)
    constant = loaded.graph.initializer[0]
    size = numpy_helper.to_array(constant).nbytes
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", str(size))):
        constant.external_data.add(key=key, value=value)
    serialised: bytes = loaded.SerializeToString()
    return serialised


def put_external(repository: pathlib.Path, name: str, model: bytes) -> pathlib.Path:
    """As `put`, with a directory model.onnx whose constants lie in a file beside the graph; the model's directory."""
    inner = repository / name / "1" / "model.onnx"
    inner.mkdir(parents=True)
    loaded = onnx.load_from_string(model)
    onnx.save_model(
        loaded, str(inner / "model.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    assert (inner / "weights.bin").stat().st_size > 0
    return repository / name
