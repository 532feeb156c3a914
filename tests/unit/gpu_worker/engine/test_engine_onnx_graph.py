"""Which ONNX graphs do the same work for the same shapes."""

from __future__ import annotations

import pathlib

import hypothesis
import numpy as np
import onnx
import pytest
from hypothesis import strategies
from onnx import helper, numpy_helper

from gpu_worker.runtime import onnx_graph, onnx_runtime, port

_FLOATS = onnx.TensorProto.FLOAT


def _model(*nodes: onnx.NodeProto, weights: int = 0) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(np.ones(weights, "<f4"), "weights")] if weights else []
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("IN", _FLOATS, [1])],
        [helper.make_tensor_value_info("OUT", _FLOATS, [1])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def _branch(name: str) -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("Identity", ["IN"], [name])], name, [], [helper.make_tensor_value_info(name, _FLOATS, [1])]
    )


PLAIN = helper.make_node("Add", ["IN", "IN"], ["OUT"])
LEARNED = helper.make_node("Scaler", ["IN"], ["OUT"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0])
CUSTOM = helper.make_node("BeamSearch", ["IN"], ["OUT"], domain="com.microsoft")
BRANCHING = helper.make_node("If", ["IN"], ["OUT"], then_branch=_branch("a"), else_branch=_branch("b"))


@pytest.mark.parametrize(
    ("model", "steady"),
    [
        (_model(PLAIN), True),
        (_model(PLAIN, weights=100_000), True),
        (_model(LEARNED), True),
        (_model(CUSTOM), False),
        (_model(PLAIN, CUSTOM), False),
        (_model(BRANCHING), False),
        (_model(PLAIN, BRANCHING, PLAIN), False),
    ],
)
def test_a_graph_is_steady_whose_operators_are(tmp_path: pathlib.Path, model: onnx.ModelProto, *, steady: bool) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert onnx_graph.is_steady(path) is steady


def _flow(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """Of IN to OUT, with constants."""
    constants = [numpy_helper.from_array(np.array([2], "<i8"), "two"), numpy_helper.from_array(np.array([0]), "zero")]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1]) for name in ("IN", "OUT")]
    graph = helper.make_graph(list(nodes), "graph", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def _node(operator: str, takes: str, makes: str) -> onnx.NodeProto:
    return helper.make_node(operator, takes.split(","), makes.split(","))


SHAPE = _node("Shape", "IN", "shape")
TWICE = _node("Add", "IN,IN", "twice")
SUM = _node("ReduceSum", "large,zero", "OUT")


@pytest.mark.parametrize(
    ("nodes", "steady"),
    [
        ([_node("ConstantOfShape", "IN", "large"), SUM], False),
        ([TWICE, _node("ConstantOfShape", "twice", "large"), SUM], False),
        ([_node("ConstantOfShape", "two", "large"), SUM], True),
        ([SHAPE, _node("ConstantOfShape", "shape", "large"), SUM], True),
        ([SHAPE, _node("Mul", "shape,IN", "asked"), _node("Tile", "two,asked", "large"), SUM], False),
        ([SHAPE, _node("Tile", "IN,shape", "large"), SUM], True),
        ([_node("Tile", "IN,two", "large"), SUM], True),
        ([_node("Tile", "two,IN", "large"), SUM], False),
        ([_node("Reshape", "two,IN", "OUT")], False),
        ([_node("NonZero", "IN", "found"), _node("Shape", "found", "large"), SUM], False),
        ([_node("NonZero", "two", "large"), SUM], True),
        ([_node("Range", "zero,IN,two", "large"), SUM], False),
        ([_node("TopK", "IN,two", "OUT,")], True),
        ([_node("TopK", "two,IN", "OUT,")], False),
        ([_node("Unique", "IN", ",large"), SUM], False),
        (
            [
                helper.make_node("RandomUniform", [], ["chance"], shape=[1]),
                _node("ConstantOfShape", "chance", "large"),
                SUM,
            ],
            False,
        ),
    ],
)
def test_a_graph_is_not_steady_where_data_say_how_large_something_is(
    tmp_path: pathlib.Path, nodes: list[onnx.NodeProto], *, steady: bool
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_flow(*nodes).SerializeToString())
    assert onnx_graph.is_steady(path) is steady


def test_a_graph_with_functions_of_its_own_is_not_steady(tmp_path: pathlib.Path) -> None:
    model = _model(PLAIN)
    inner = helper.make_function("ai.onnx", "Twice", ["x"], ["y"], [_node("Add", "x,x", "y")], model.opset_import)
    model.functions.append(inner)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert not onnx_graph.is_steady(path)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_session_whose_thread_only_waits_is_not_steady(tmp_path: pathlib.Path, *, parallel: bool) -> None:
    path = tmp_path / "model.onnx"
    model = _model(PLAIN)
    model.ir_version = 9
    path.write_bytes(model.SerializeToString())
    program = onnx_runtime.OnnxRuntime().load(path, port.Device(), port.SessionOptions(parallel=parallel))
    assert program.steady is not parallel


def test_what_is_no_file_is_not_steady(tmp_path: pathlib.Path) -> None:
    assert not onnx_graph.is_steady(tmp_path)
    assert not onnx_graph.is_steady(tmp_path / "missing")
    (tmp_path / "empty").touch()
    assert not onnx_graph.is_steady(tmp_path / "empty")


@hypothesis.given(data=strategies.binary(min_size=1, max_size=200))
def test_any_bytes_get_an_answer(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "model.onnx"
    path.write_bytes(data)
    assert onnx_graph.is_steady(path) in {True, False}


@hypothesis.given(at=strategies.integers(1, 10_000))
def test_half_a_graph_is_not_steady(tmp_path_factory: pytest.TempPathFactory, at: int) -> None:
    whole = _model(PLAIN, BRANCHING).SerializeToString()
    path = tmp_path_factory.mktemp("half") / "model.onnx"
    path.write_bytes(whole[: at % len(whole)] or b"\n")
    assert not onnx_graph.is_steady(path)
