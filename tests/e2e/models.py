"""Small ONNX models that the tests of the whole system lease: FP32 ``x`` [n, 4] in, ``y`` of the same shape out."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SLOW_SIDE, SLOW_STEPS = 700, 80


def double(repository: pathlib.Path, name: str) -> None:
    """y = x + x."""
    _write(repository, name, [helper.make_node("Add", ["x", "x"], ["y"])], [])


def slow(repository: pathlib.Path, name: str) -> None:
    """y = x, after about a second of matrix products that depend on x."""
    side = np.eye(SLOW_SIDE, dtype=np.float32)
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["seed"], keepdims=0),
        helper.make_node("Mul", ["eye", "seed"], ["p0"]),
        *(helper.make_node("MatMul", [f"p{step}", "eye"], [f"p{step + 1}"]) for step in range(SLOW_STEPS)),
        helper.make_node("ReduceSum", [f"p{SLOW_STEPS}"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    _write(
        repository,
        name,
        nodes,
        [numpy_helper.from_array(side, "eye"), numpy_helper.from_array(np.zeros((), np.float32), "zero")],
    )


def torch(repository: pathlib.Path, name: str) -> None:
    """By its file a PyTorch model; its bytes are none."""
    path = repository / name / "1" / "model.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no archive of weights")


def broken(repository: pathlib.Path, name: str) -> None:
    """Not a model at all."""
    path = repository / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is no ONNX graph")


def _write(repository: pathlib.Path, name: str, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> None:
    value = {side: helper.make_tensor_value_info(side, TensorProto.FLOAT, ["n", 4]) for side in ("x", "y")}
    graph = helper.make_graph(nodes, name, [value["x"]], [value["y"]], constants)
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(built)
    path = repository / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(built.SerializeToString())
