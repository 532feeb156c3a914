"""Which ONNX graphs do the same work for the same shapes."""

from __future__ import annotations

import pathlib

import hypothesis
import numpy as np
import onnx
import pytest
from hypothesis import strategies
from onnx import helper, numpy_helper

from gpu_worker.runtime import onnx_graph

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
