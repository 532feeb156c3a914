"""gRPC's framing, and requests whose tensors are cut off before protobuf reads them: the same as protobuf alone."""

from __future__ import annotations

from typing import Any

from google.protobuf import message as protobuf

from gpu_worker import core
from gpu_worker.engine import border
from gpu_worker.grpc import codec
from gpu_worker.grpc.native import assembling, splitting
from gpu_worker.wire import intake as wire_intake
from protos.inference.v2 import predict_pb2

NAME = "grpc"
_MOST_BYTES = 2**11
_ENGINE = core.Core.create(core.Options(repositories=()))
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
    # Below some size nothing is cut off, since it is not worth it; here it is tried with all.
    least, splitting._LEAST_BYTES = splitting._LEAST_BYTES, 0
    try:
        head, raw = splitting.split(message)
    finally:
        splitting._LEAST_BYTES = least
    if raw is not None:
        assert _outcome(bytes(head), [bytes(each) for each in raw]) == _outcome(message, None)
    else:
        assert head is message
        _outcome(message, None)


def _outcome(message: bytes, raw: list[bytes] | None) -> Any:
    """What the engine would be asked, or why not."""
    try:
        request = _Request.FromString(message)
    except protobuf.DecodeError:
        return "no message"
    try:
        found = codec.decode(request, list(request.raw_input_contents) if raw is None else raw, _never)
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
