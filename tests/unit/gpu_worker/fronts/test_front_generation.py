"""The generate extension's JSON: shapes found, keys sorted into tensors and parameters."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engine import border
from gpu_worker.http import generation, streams


def model(*inputs: border.TensorMetadata) -> generation.Model:
    return generation.Model("m", {each.name: each for each in inputs})


TEXT = border.TensorMetadata("text", "BYTES", (-1, 1))
NUMBERS = border.TensorMetadata("numbers", "INT32", (-1, 2, 2))


@pytest.mark.parametrize(
    ("shape", "value", "expected"),
    [
        ((-1, 1), 7, (1, 1)),
        ((1,), 7, (1,)),
        ((), 7, ()),
        ((-1,), [1, 2, 3], (3,)),
        ((-1, -1), [1, 2, 3], (1, 3)),
        ((-1, 4), [1, 2, 3, 4], (1, 4)),
        ((2, 2), [[1, 2], [3, 4]], (2, 2)),
        ((-1, 2, 2), [1, 2, 3, 4], (1, 2, 2)),
        ((-1,), [], (0,)),
    ],
)
def test_shapes_follow_the_model(shape: tuple[int, ...], value: Any, expected: tuple[int, ...]) -> None:
    asked = generation.decode(model(border.TensorMetadata("x", "INT32", shape)), {"x": value})
    assert asked.inputs[0].shape == expected


@pytest.mark.parametrize(
    ("shape", "value"), [((3,), 7), ((2, 2), [1, 2, 3]), ((), [1, 2]), ((0,), [1]), ((-1, 3), [1])]
)
def test_what_does_not_fit_is_told(shape: tuple[int, ...], value: Any) -> None:
    with pytest.raises(border.InferenceError, match="do not fit input 'x' of model 'm'"):
        generation.decode(model(border.TensorMetadata("x", "INT32", shape)), {"x": value})


def test_keys_are_tensors_or_parameters_wherever_they_are() -> None:
    body = {
        "id": "7",
        "text": "é",
        "stream": False,
        "temperature": 0.5,
        "parameters": {"numbers": [1, 2, 3, 4], "top": 3},
    }
    asked = generation.decode(model(TEXT, NUMBERS), body)
    assert asked.id == "7"
    assert asked.parameters == {"stream": False, "temperature": 0.5, "top": 3}
    assert asked.inputs == [
        border.Tensor("text", "BYTES", (1, 1), b"\2\0\0\0" + "é".encode()),
        border.Tensor("numbers", "INT32", (1, 2, 2), np.array([1, 2, 3, 4], "<i4").tobytes()),
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text": "a", "x": None}, "parameter 'x' has an invalid type"),
        ({"text": "a", "x": {"y": 1}}, "parameter 'x' has an invalid type"),
        ({"text": "a", "parameters": 3}, "'parameters': must be an object"),
        ({"text": "a", "id": 3}, "'id': must be a string"),
        ({"text": 3}, "expected strings for BYTES"),
        ({"text": ["a", 3]}, "do not fit|expected strings"),
        ({"text": "a", "parameters": {"text": "b"}}, "'text' is given more than once"),
        ({"text": "a", "triton_x": 1}, "reserved"),
        ({"text": "a", "priority": "x"}, "'priority' must be an integer"),
    ],
)
def test_what_is_wrong_is_refused_by_name(body: dict[str, Any], words: str) -> None:
    with pytest.raises(border.InferenceError, match=words) as caught:
        generation.decode(model(TEXT), body)
    assert caught.value.kind is border.ErrorKind.INVALID_ARGUMENT


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "numbers", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["text", "numbers", "id", "parameters", "x", "timeout"]), VALUES))
def test_any_body_is_read_or_refused_and_tensors_fit_their_shapes(body: dict[str, Any]) -> None:
    with contextlib.suppress(border.InferenceError):
        for tensor in generation.decode(model(TEXT, NUMBERS), body).inputs:
            if tensor.datatype == "INT32":
                assert len(tensor.data) == 4 * math.prod(tensor.shape)


def test_answers_are_flat() -> None:
    outputs = [
        border.Tensor("one", "FP32", (1, 1), np.array([0.5], "<f4").tobytes()),
        border.Tensor("two", "INT64", (1, 2), np.array([1, 2], "<i8").tobytes()),
        border.Tensor("text", "BYTES", (1,), b"\2\0\0\0" + "é".encode()),
    ]
    shown = json.loads(generation.encode(border.InferResponse("m", "3", "7", outputs, {"tokens": 4})))
    assert shown == {
        "model_name": "m",
        "model_version": "3",
        "id": "7",
        "tokens": 4,
        "one": 0.5,
        "two": [1, 2],
        "text": "é",
    }


def test_a_stream_gives_its_pieces_in_order_and_is_bounded() -> None:
    told: list[str] = []
    stream = streams.Stream(lambda: told.append("gone"))
    assert stream.push(b"a")
    stream.attach(lambda: told.append("wake"))
    assert stream.push(b"b")
    assert not stream.push(bytes(streams.MOST_BYTES))
    stream.end(b"c")
    assert not stream.push(b"d")
    assert (stream.take(), stream.take()) == ([b"a", b"b", b"c"], [])
    stream.abandon()
    stream.abandon()
    assert told == ["wake", "wake", "gone"]
    assert not stream.push(b"e")


@given(st.lists(st.binary(max_size=300)))
def test_chunks_can_be_read_back(pieces: list[bytes]) -> None:
    raw, read = b"".join(streams.framed(pieces)) + streams.LAST_CHUNK, b""
    while True:
        size, _, raw = raw.partition(b"\r\n")
        if not int(size, 16):
            break
        read, raw = read + raw[: int(size, 16)], raw[int(size, 16) + 2 :]
    assert (read, raw) == (b"".join(pieces), b"\r\n")
