"""The HTTP codec: what goes in comes out, and what does not fit is refused in words that name it."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from gpu_worker.engine import border
from gpu_worker.http import decoding, encoding, jsondata, messages
from gpu_worker.wire import datatypes

NUMBERS = sorted(datatypes.NUMPY)
SHAPES = st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn, kinds: list[str]) -> border.Tensor:
    datatype = draw(st.sampled_from(kinds))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        count = math.prod(shape)
        texts = draw(st.lists(st.text(max_size=8), min_size=count, max_size=count))
        return border.Tensor("T", datatype, shape, datatypes.pack_bytes([text.encode() for text in texts]))
    dtype = np.dtype(datatypes.NUMPY.get(datatype, "<u2"))
    array = draw(
        st_numpy.arrays(dtype, shape, elements=st_numpy.from_dtype(dtype, allow_nan=False, allow_infinity=False))
    )
    return border.Tensor("T", datatype, shape, array.tobytes())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


def body(**entry: Any) -> bytes:
    entry = {"name": "IN", "shape": [2], "datatype": "FP32"} | entry
    return orjson.dumps({"inputs": [entry]})


def decode(raw: bytes, json_bytes: int | None = None) -> decoding.Inference:
    return decoding.decode("m", raw, json_bytes)


def refusal(raw: bytes, json_bytes: int | None = None) -> border.InferenceError:
    with pytest.raises(border.InferenceError) as caught:
        decode(raw, json_bytes)
    return caught.value


def answer(*outputs: border.Tensor) -> border.InferResponse:
    return border.InferResponse("m", "1", "", list(outputs))


def whole(response: messages.Response) -> tuple[dict[str, Any], bytes]:
    raw = b"".join(map(bytes, response.parts))
    if b"Inference-Header-Content-Length" not in response.headers:
        return json.loads(raw), b""
    length = int(response.headers.split(b":")[1])
    return json.loads(raw[:length]), raw[length:]


@pytest.mark.parametrize("form", ["flat", "nested"])
@given(tensor=tensors([*NUMBERS, "BYTES"]))
def test_json_carries_every_datatype_and_shape(form: str, tensor: border.Tensor) -> None:
    shown, _ = whole(encoding.encode(answer(tensor), decoding.Wishes()))
    data = shown["outputs"][0]["data"]
    if form == "nested" and tensor.shape and len(data):
        data = np.array(data, dtype=object).reshape(tensor.shape).tolist()
    raw = orjson.dumps({"inputs": [{"name": "T", "shape": tensor.shape, "datatype": tensor.datatype, "data": data}]})
    (found,) = decode(raw).inputs
    assert (found.shape, found.datatype, bytes(found.data)) == (tensor.shape, tensor.datatype, bytes(tensor.data))


@given(st.lists(tensors([*datatypes.SIZES]), max_size=4))
def test_binary_carries_every_datatype_and_shape(given_tensors: list[border.Tensor]) -> None:
    for index, tensor in enumerate(given_tensors):
        tensor.name = f"T{index}"
    response = encoding.encode(answer(*given_tensors), decoding.Wishes(binary=True))
    shown, binary = whole(response)
    header = orjson.dumps({"inputs": shown["outputs"]})
    found = decode(header + binary, len(header)).inputs
    assert [(t.name, t.datatype, t.shape, bytes(t.data)) for t in found] == [
        (t.name, t.datatype, t.shape, bytes(t.data)) for t in given_tensors
    ]


def test_binary_inputs_are_views_of_the_body() -> None:
    header = body(parameters={"binary_data_size": 8})
    raw = header + bytes(8)
    (tensor,) = decode(raw, len(header)).inputs
    assert isinstance(tensor.data, memoryview)
    assert tensor.data.obj is raw


def test_json_and_binary_outputs_mix_and_the_output_wins_over_the_request() -> None:
    raw = orjson.dumps(
        {
            "inputs": [],
            "outputs": [{"name": "A", "parameters": {"binary_data": False}}, {"name": "B"}],
            "parameters": {"binary_data_output": True, "mine": 1.5},
        }
    )
    inference = decode(raw)
    assert inference.parameters == {"mine": 1.5}
    a = border.Tensor("A", "UINT8", (2,), b"\x01\x02")
    b = border.Tensor("B", "UINT8", (2,), b"\x03\x04")
    response = encoding.encode(answer(a, b), inference.wishes)
    shown, binary = whole(response)
    assert response.content_type == messages.OCTETS
    assert shown["outputs"][0]["data"] == [1, 2]
    assert shown["outputs"][1]["parameters"] == {"binary_data_size": 2}
    assert binary == b"\x03\x04"


def test_id_and_parameters_are_echoed_only_where_there_are_any() -> None:
    plain, _ = whole(encoding.encode(answer(), decoding.Wishes()))
    assert plain == {"model_name": "m", "model_version": "1", "outputs": []}
    rich = border.InferResponse("m", "1", "7", [], {"k": True})
    assert whole(encoding.encode(rich, decoding.Wishes()))[0] == plain | {"id": "7", "parameters": {"k": True}}


@pytest.mark.parametrize(
    ("raw", "fragment"),
    [
        (b"", "failed to parse the request JSON buffer"),
        (b"[]", "must be an object"),
        (b"{", "failed to parse the request JSON buffer"),
        (b"{}", "Unable to find 'inputs'"),
        (b'{"id":7,"inputs":[]}', "'id'"),
        (b'{"inputs":[1]}', "'inputs'"),
        (b'{"inputs":[{}]}', "'name'"),
        (b'{"inputs":[],"parameters":{"triton_x":1}}', "reserved"),
        (b'{"inputs":[],"parameters":{"x":[1]}}', "invalid type"),
        (b'{"inputs":[],"parameters":{"x":null}}', "invalid type"),
        (b'{"inputs":[],"parameters":{"sequence_start":1}}', "sequence_start"),
        (b'{"inputs":[],"parameters":{"timeout":-1}}', "timeout"),
        (b'{"inputs":[],"parameters":{"priority":true}}', "priority"),
        (b'{"inputs":[],"outputs":[{"name":"A"},{"name":"A"}]}', "'A' is given more than once"),
        (b'{"inputs":[],"outputs":[{"name":"A","parameters":{"binary_data":1}}]}', "binary_data"),
        (b'{"inputs":[],"outputs":[{"name":"A","parameters":{"classification":-1}}]}', "classification"),
        (body(), "none"),
        (body(data=[1, 2], parameters={"binary_data_size": 8}), "data and binary_data_size"),
        (body(shape=[-1], data=[]), "'shape'"),
        (body(shape=[True], data=[1]), "'shape'"),
        (body(shape=[2**40, 2**40], data=[]), "more bytes than can be counted"),
        (body(datatype="FP33", data=[1, 2]), "unknown data-type 'FP33'"),
        (body(datatype="FP16", data=[1, 2]), "binary data"),
        (body(datatype="BF16", data=[1, 2]), "binary data"),
        (body(data=[1]), "Shape does not match true shape of 'data' field"),
        (body(data=[[1], [2]]), "Shape does not match"),
        (body(shape=[2, 2], data=[[1, 2], [3]]), "Shape does not match"),
        (body(shape=[2, 2], data=[[1, 2], 3, 4]), "Shape does not match"),
        (body(shape=[2, 3], data=[[1, 2], [3, 4], [5, 6]]), "Shape does not match"),
        (body(data=[1, None]), "'IN'"),
        (body(data=[1, "2"]), "strings"),
        (body(data=[1, True]), "booleans"),
        (body(data=[1, 1e300]), "out of the range of FP32"),
        (body(datatype="INT8", data=[1, 128]), "out of the range of INT8"),
        (body(datatype="UINT8", data=[1, -1]), "out of the range of UINT8"),
        (body(datatype="INT32", data=[1, 1.5]), "integers"),
        (body(datatype="BOOL", data=[1, 2]), "BOOL takes"),
        (body(datatype="BYTES", data=["a", 1]), "strings"),
        (b'{"inputs":[{"name":"IN","shape":[1],"datatype":"FP32","data":[NaN]}]}', "failed to parse"),
        (body(parameters={"binary_data_size": "8"}), "binary_data_size"),
        (body(parameters={"binary_data_size": 8}), "not enough binary data for input 'IN'"),
    ],
)
def test_what_is_wrong_is_refused_by_name(raw: bytes, fragment: str) -> None:
    error = refusal(raw)
    assert error.kind is border.ErrorKind.INVALID_ARGUMENT
    assert fragment in error.message


REGION = {"shared_memory_region": "r", "shared_memory_offset": 4, "shared_memory_byte_size": 8}


def test_tensors_in_shared_memory_are_named_by_their_place() -> None:
    outputs = [{"name": "O", "parameters": {**REGION, "binary_data": False}}, {"name": "P"}]
    raw = orjson.loads(body(parameters=REGION)) | {"outputs": outputs, "parameters": {"binary_data_output": True}}
    found = decode(orjson.dumps(raw))
    assert found.inputs == [border.Tensor("IN", "FP32", (2,), b"", border.Region("r", 4, 8))]
    assert found.outputs[0].region == border.Region("r", 4, 8)
    told = answer(
        border.Tensor("O", "FP32", (2,), b"", border.Region("r", 4, 8)), border.Tensor("P", "FP32", (1,), bytes(4))
    )
    shown, binary = whole(encoding.encode(told, found.wishes))
    assert shown["outputs"][0] == {"name": "O", "datatype": "FP32", "shape": [2], "parameters": REGION}
    assert binary == bytes(4)
    only = encoding.encode(answer(told.outputs[0]), found.wishes)
    assert only.content_type == messages.JSON


@pytest.mark.parametrize(
    ("parameters", "fragment"),
    [
        ({"shared_memory_region": 1, "shared_memory_byte_size": 8}, "must be the name of a region"),
        ({"shared_memory_region": "r"}, "needs the parameter 'shared_memory_byte_size'"),
        ({**REGION, "shared_memory_offset": -1}, "'shared_memory_offset' of input 'IN' must be a non-negative integer"),
        ({**REGION, "shared_memory_offset": True}, "must be a non-negative integer"),
        ({**REGION, "shared_memory_byte_size": 2**63}, "below 2^63"),
        ({**REGION, "binary_data_size": 8}, "binary_data_size and shared_memory_region"),
        ({"shared_memory_offset": 4}, "has none"),
    ],
)
def test_places_that_are_none_are_refused(parameters: dict[str, Any], fragment: str) -> None:
    error = refusal(body(parameters=parameters))
    assert error.kind is border.ErrorKind.INVALID_ARGUMENT
    assert fragment in error.message


@pytest.mark.parametrize("other", [{"binary_data": True}, {"classification": 1}])
def test_an_output_in_shared_memory_is_nothing_else(other: dict[str, Any]) -> None:
    raw = orjson.loads(body(data=[1, 2])) | {"outputs": [{"name": "O", "parameters": REGION | other}]}
    assert f"can't set both 'shared_memory_region' and '{next(iter(other))}'" in refusal(orjson.dumps(raw)).message


@given(
    st.dictionaries(st.sampled_from([*REGION, "binary_data", "binary_data_size", "classification", "x"]), JSON_VALUES)
)
def test_any_parameters_of_tensors_are_decoded_or_refused(parameters: dict[str, Any]) -> None:
    entry = {"name": "IN", "shape": [2], "datatype": "FP32", "parameters": parameters}
    with contextlib.suppress(border.InferenceError):
        decode(orjson.dumps({"inputs": [entry], "outputs": [{"name": "O", "parameters": parameters}]}))


def test_leftover_bytes_are_refused() -> None:
    header = body(parameters={"binary_data_size": 8})
    assert "unexpected additional input data for model 'm'" in refusal(header + bytes(9), len(header)).message


@pytest.mark.parametrize("json_bytes", [-1, 3])
def test_a_header_length_out_of_range_is_refused(json_bytes: int) -> None:
    assert "Inference-Header-Content-Length" in refusal(b"{}", json_bytes).message


def test_bool_takes_zero_and_one() -> None:
    (tensor,) = decode(body(datatype="BOOL", shape=[3], data=[True, 0, 1])).inputs
    assert bytes(tensor.data) == b"\x01\x00\x01"


@pytest.mark.parametrize(
    ("datatype", "data"),
    [("FP32", np.array([np.nan], "<f4").tobytes()), ("FP16", b"\0\0"), ("BYTES", b"\x01\0\0\0\xff")],
)
def test_what_json_cannot_carry_is_to_be_asked_for_in_binary(datatype: str, data: bytes) -> None:
    with pytest.raises(border.InferenceError, match="binary_data"):
        encoding.encode(answer(border.Tensor("O", datatype, (1,), data)), decoding.Wishes())


def test_nesting_is_bounded_outside_strings_only() -> None:
    deep = b'{"a":' + b"[" * 100 + b"]" * 100 + b"}"
    assert "nested deeper than 100" in refusal(deep).message
    texts = body(datatype="BYTES", data=["[" * 200, '"' + "{" * 200])
    assert len(decode(texts).inputs) == 1
    rows = body(shape=[300, 1], data=[[1]] * 300)
    assert len(decode(rows).inputs[0].data) == 1200


@given(st.recursive(st.none() | st.text('[]{}\\"a'), lambda inner: st.lists(inner, max_size=3), max_leaves=60))
def test_depth_is_that_of_the_brackets(value: Any) -> None:
    def depth(of: Any) -> int:
        return 1 + max(map(depth, of), default=0) if isinstance(of, list) else 0

    text = orjson.dumps([value] + [[]] * 8)
    for limit in range(8):
        assert jsondata.deeper_than(text, limit) is (depth([value, []]) > limit)


def test_the_depth_of_a_string_without_end_is_found_in_linear_time() -> None:
    assert not jsondata.deeper_than(b'[["' + b'\\"[' * 500_000, 5)


@given(st.binary(max_size=200), st.none() | st.integers(-1, 200))
def test_any_body_is_read_or_refused(raw: bytes, json_bytes: int | None) -> None:
    with contextlib.suppress(border.InferenceError):
        assert decode(raw, json_bytes).inputs is not None


def metadata(datatype: str, *shapes: tuple[int, ...]) -> border.ModelMetadata:
    inputs = tuple(border.TensorMetadata(f"I{index}", datatype, shape) for index, shape in enumerate(shapes))
    return border.ModelMetadata("m", ("1",), "p", inputs, ())


def test_a_raw_body_becomes_the_single_input_with_its_variable_dimension() -> None:
    inference = decoding.decode_raw(metadata("FP32", (-1, 2, -1)), bytes(24), batched=True)
    assert inference.inputs == [border.Tensor("I0", "FP32", (1, 2, 3), bytes(24))]
    assert inference.wishes.wants_binary("any")


def test_a_raw_body_of_bytes_is_one_element() -> None:
    (tensor,) = decoding.decode_raw(metadata("BYTES", (-1, 1)), b"abc", batched=True).inputs
    assert (tensor.shape, bytes(tensor.data)) == ((1, 1), b"\x03\0\0\0abc")


@pytest.mark.parametrize(
    ("spec", "fragment"),
    [
        (metadata("FP32", (1,), (1,)), "one input"),
        (metadata("FP32", (-1, -1)), "at most one variable dimension"),
        (metadata("FP32", (-1, 7)), "do not fill"),
        (metadata("FP32", (-1, 0)), "do not fill"),
        (metadata("BYTES", (2,)), "shape [1]"),
    ],
)
def test_a_raw_body_that_cannot_be_placed_is_refused(spec: border.ModelMetadata, fragment: str) -> None:
    with pytest.raises(border.InferenceError) as caught:
        decoding.decode_raw(spec, bytes(12), batched=False)
    assert fragment in caught.value.message


def test_a_shape_of_very_many_dimensions_is_refused_before_it_is_multiplied() -> None:
    with pytest.raises(border.InferenceError, match="has 100000 dimensions, at most 64"):
        decode(body(shape=[2**62] * 100_000, data=[]))
