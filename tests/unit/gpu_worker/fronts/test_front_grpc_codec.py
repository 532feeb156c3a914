"""The gRPC codec: typed and raw contents, parameters, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from gpu_worker.engine import border
from gpu_worker.grpc import codec
from gpu_worker.wire import datatypes
from protos.inference.v2 import predict_pb2

SHAPES = st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def reply(answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
    raise AssertionError("nothing is answered here")


def message(**tensor: Any) -> predict_pb2.ModelInferRequest:
    request = predict_pb2.ModelInferRequest(model_name="m", model_version="3", id="7")
    request.inputs.add(name="IN", **({"datatype": "FP32", "shape": [2]} | tensor))
    return request


def refusal(request: predict_pb2.ModelInferRequest) -> border.InferenceError:
    with pytest.raises(border.InferenceError) as caught:
        codec.decode(request, request.raw_input_contents, reply)
    return caught.value


@given(st.data(), st.sampled_from(sorted(codec._FIELDS)), SHAPES)
def test_typed_contents_carry_every_datatype_and_shape(data: st.DataObject, datatype: str, shape: Any) -> None:
    if datatype == "BYTES":
        count = math.prod(shape)
        values: Any = data.draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
        wire = datatypes.pack_bytes(values)
    else:
        array = data.draw(st_numpy.arrays(datatypes.NUMPY[datatype], shape))
        values, wire = array.ravel().tolist(), array.tobytes()
    request = message(datatype=datatype, shape=shape)
    getattr(request.inputs[0].contents, codec._FIELDS[datatype]).extend(values)
    (tensor,) = codec.decode(request, request.raw_input_contents, reply).inputs
    found, expected = bytes(tensor.data), wire
    if datatype in ("FP32", "FP64"):
        # The payload of a not-a-number may change on its way through a float.
        np.testing.assert_array_equal(
            np.frombuffer(found, datatypes.NUMPY[datatype]), np.frombuffer(expected, datatypes.NUMPY[datatype])
        )
    else:
        assert found == expected
    assert tensor.shape == tuple(shape)


@given(st.sampled_from(sorted(datatypes.SIZES)), st.binary(max_size=64))
def test_raw_contents_pass_untouched_both_ways(datatype: str, data: bytes) -> None:
    request = message(datatype=datatype, shape=[len(data)])
    request.raw_input_contents.append(data)
    found = codec.decode(request, request.raw_input_contents, reply)
    assert (found.model, found.version, found.id) == ("m", "3", "7")
    response = codec.encode(border.InferResponse("m", "3", "7", found.inputs, {"a": 1, "b": True, "c": "x", "d": 0.5}))
    assert list(response.raw_output_contents) == [data]
    assert response.outputs[0].datatype == datatype
    assert list(response.outputs[0].shape) == [len(data)]
    assert {key: value.WhichOneof("parameter_choice") for key, value in response.parameters.items()} == {
        "a": "int64_param",
        "b": "bool_param",
        "c": "string_param",
        "d": "double_param",
    }


def test_raw_and_typed_contents_exclude_each_other() -> None:
    request = message()
    request.inputs[0].contents.fp32_contents.extend([1, 2])
    request.raw_input_contents.append(bytes(8))
    assert "contents field must not be specified" in refusal(request).message


def test_the_typed_field_must_fit() -> None:
    request = message()
    request.inputs[0].contents.int_contents.extend([1, 2])
    assert "FP32 takes fp32_contents, got int_contents" in refusal(request).message


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_is_raw_only(datatype: str) -> None:
    assert "raw_input_contents" in refusal(message(datatype=datatype)).message


def test_counts_must_match() -> None:
    request = message()
    request.inputs[0].contents.fp32_contents.append(1)
    assert "expected 2 elements" in refusal(request).message
    request = message()
    request.raw_input_contents.extend([b"", b""])
    assert "one raw_input_contents entry" in refusal(request).message


def test_values_must_be_in_range() -> None:
    request = message(datatype="INT8")
    request.inputs[0].contents.int_contents.extend([1, 128])
    assert "out of the range of INT8" in refusal(request).message


@pytest.mark.parametrize(
    ("name", "value", "fragment"),
    [
        ("triton_x", predict_pb2.InferParameter(bool_param=True), "reserved"),
        ("x", predict_pb2.InferParameter(), "invalid type"),
        ("timeout", predict_pb2.InferParameter(string_param="1"), "timeout"),
        ("sequence_end", predict_pb2.InferParameter(int64_param=1), "sequence_end"),
    ],
)
def test_parameters_are_checked(name: str, value: predict_pb2.InferParameter, fragment: str) -> None:
    request = message(shape=[0])
    request.parameters[name].CopyFrom(value)
    assert fragment in refusal(request).message


def test_the_one_reserved_parameter_of_grpc_is_taken() -> None:
    request = message(shape=[0])
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    assert codec.decode(request, request.raw_input_contents, reply).parameters == {
        "triton_enable_empty_final_response": True
    }


def place(of: Any, name: str = "r", offset: int = 8, byte_size: int = 16) -> None:
    of.parameters["shared_memory_region"].string_param = name
    of.parameters["shared_memory_offset"].int64_param = offset
    of.parameters["shared_memory_byte_size"].int64_param = byte_size


def test_inputs_in_shared_memory_take_no_raw_entry_and_outputs_there_leave_it_empty() -> None:
    request = message(shape=[4])
    request.inputs.insert(0, predict_pb2.ModelInferRequest.InferInputTensor(name="S", datatype="FP32", shape=[4]))
    place(request.inputs[0])
    place(request.outputs.add(name="O"), offset=0)
    request.raw_input_contents.append(bytes(16))
    found = codec.decode(request, request.raw_input_contents, reply)
    assert [(each.name, each.region, bytes(each.data)) for each in found.inputs] == [
        ("S", border.Region("r", 8, 16), b""),
        (request.inputs[1].name, None, bytes(16)),
    ]
    assert found.outputs == [border.RequestedOutput("O", 0, border.Region("r", 0, 16))]
    told = codec.encode(
        border.InferResponse("m", "1", "", [border.Tensor("O", "FP32", (4,), b"", found.outputs[0].region)])
    )
    assert list(told.raw_output_contents) == [b""]
    shown = {
        name: getattr(each, each.WhichOneof("parameter_choice") or "")
        for name, each in told.outputs[0].parameters.items()
    }
    assert shown == {"shared_memory_region": "r", "shared_memory_offset": 0, "shared_memory_byte_size": 16}


def test_shared_memory_excludes_contents_raw_entries_and_classification() -> None:
    request = message(shape=[0])
    place(request.inputs[0])
    request.raw_input_contents.append(b"")
    assert "expected one raw_input_contents entry for each of 0 inputs, got 1" in refusal(request).message
    request = message(shape=[0])
    place(request.inputs[0])
    request.inputs[0].contents.fp32_contents.append(1)
    assert "contents field must not be specified when using shared memory" in refusal(request).message
    request = message(shape=[0])
    place(request.outputs.add(name="O"))
    request.outputs[0].parameters["classification"].int64_param = 1
    assert "'shared_memory_region' and 'classification'" in refusal(request).message


def test_classification_must_be_a_count() -> None:
    request = message(shape=[0])
    request.outputs.add(name="O").parameters["classification"].string_param = "3"
    assert "classification" in refusal(request).message


def test_a_version_must_be_a_number() -> None:
    request = message(shape=[0])
    request.model_version = "latest"
    assert "'latest' must be a decimal number" in refusal(request).message
