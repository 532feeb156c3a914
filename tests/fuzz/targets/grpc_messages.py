"""gRPC's framing, and requests whose tensors are cut off before protobuf reads them: the same as protobuf alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from google.protobuf import message as protobuf

from gpu_worker import core
from gpu_worker.engine import border
from gpu_worker.grpc import codec, plans
from gpu_worker.grpc.native import assembling
from gpu_worker.wire import intake as wire_intake
from protos.inference.v2 import predict_pb2

NAME = "grpc"
_MOST_BYTES = 2**11
_ENGINE = core.Core.create(core.Options(repositories=()))
_PLANS = plans.Plans()
_Request = predict_pb2.ModelInferRequest


def fuzz(data: bytes) -> None:
    """The first byte is how long the pieces are."""
    size, data = (data[0] + 1, data[1:]) if data else (1, b"")
    intake = wire_intake.Intake(_ENGINE, wire_intake.Bounds(body_bytes=2**12))
    assembler = assembling.Assembler(intake, _MOST_BYTES)
    found: list[tuple[bool, bytes]] = []
    try:
        for at in range(0, len(data), size):
            for compressed, message in assembler.add(data[at : at + size]):
                found.append((compressed, bytes(message)))
                _check_request(bytes(message))
        refused = False
    except (border.InferenceError, assembling.TooLarge):
        refused = True
    assembler.close()
    assert intake._held_bytes == 0
    want, broken = _messages(data)
    assert found == want[: len(found)]
    assert broken or not refused
    assert refused or found == want


def _messages(data: bytes) -> tuple[list[tuple[bool, bytes]], bool]:
    """Whole messages as the protocol has them, and whether something comes that is refused."""
    found: list[tuple[bool, bytes]] = []
    while len(data) >= assembling.PREFIX_BYTES:
        length = int.from_bytes(data[1:5])
        if data[0] > 1 or length > _MOST_BYTES:
            return found, True
        if len(data) < assembling.PREFIX_BYTES + length:
            break
        found.append((bool(data[0]), data[5 : 5 + length]))
        data = data[5 + length :]
    return found, False


def _check_request(message: bytes) -> None:
    # Twice: the second time with what is remembered of the first.
    whole = _outcome(functools.partial(_whole, message))
    assert _outcome(functools.partial(_PLANS.decode, message, _never)) == whole
    assert _outcome(functools.partial(_PLANS.decode, memoryview(message), _never)) == whole


def _whole(message: bytes) -> border.InferRequest:
    request = _Request.FromString(message)
    return codec.decode(request, list(request.raw_input_contents), _never)


def _outcome(decode: Callable[[], border.InferRequest]) -> Any:
    """What the engine would be asked, or why not."""
    try:
        found = decode()
    except protobuf.DecodeError:
        return "no message"
    except border.InferenceError as error:
        return error.kind, error.message
    tensors = [(each.name, each.datatype, each.shape, bytes(each.data), each.region) for each in found.inputs]
    return found.model, found.version, found.id, tensors, found.outputs, repr(found.parameters)


def _never(answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
    raise AssertionError(f"nothing was asked, but {answer} came, final: {final}")


def seeds() -> list[bytes]:
    full = _Request(model_name="m", model_version="1", id="i", raw_input_contents=[b"abcd", b""])
    full.inputs.add(name="A", datatype="FP32", shape=[1]).parameters["binary_data_size"].int64_param = 4
    full.inputs.add(name="B", datatype="BYTES", shape=[0])
    full.outputs.add(name="Y").parameters["classification"].int64_param = 2
    full.parameters["priority"].uint64_param = 1
    typed = _Request(model_name="m")
    typed.inputs.add(name="A", datatype="INT64", shape=[2]).contents.int64_contents.extend([1, -1])
    shared = _Request(model_name="m")
    place = shared.inputs.add(name="A", datatype="UINT8", shape=[4])
    for name, value in (("shared_memory_region", "r"), ("shared_memory_byte_size", 4), ("shared_memory_offset", 1)):
        codec.set_parameter(place.parameters[name], value)
    messages = [message.SerializeToString() for message in (full, typed, shared, _Request())]
    framed = [b"\0" + len(message).to_bytes(4) + message for message in messages]
    return [b"\xff" + each for each in framed] + [
        b"\x02" + b"".join(framed),
        b"\0\x01\0\0\0\x01x",
        b"\0\0\xff\xff\xff\xff",
    ]
