"""What crosses the border between a front process and the engine process, as messages and back.

Decides which message says what. A request or an answer is three things: its shape (names, datatypes, dimensions, outputs
asked for), which clients repeat and which is therefore written and read once for many; the rest of its fields; and its
tensors' data, which is never touched here. Bytes that make no sense raise MalformedError.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import operator
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from gpu_worker.engine import border
from gpu_worker.ipc import link
from gpu_worker.ipc.malformed import MalformedError
from gpu_worker.remote import values

Answer = border.InferResponse | border.InferenceError

_SHAPE = struct.Struct("=I")
_REMEMBERED = 1024
_REPEATED_BYTES = 4096
_FINAL = 1


class Kind(enum.IntEnum):
    """Of a message; the first three go to the engine, the others come from it."""

    REQUEST = 1
    CANCEL = 2
    CALL = 3
    ANSWER = 4
    FAILURE = 5
    RESULT = 6
    LEAVING = 7
    LOGGING = 8


def _others(record: type[Any], apart: Sequence[str]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(record) if field.name not in apart)


# Read off the border, so that a new field needs no word here.
_TENSOR = _others(border.Tensor, ["data"])
_REQUEST = _others(
    border.InferRequest, ["model", "version", "inputs", "outputs", "reply", "cancelled", "on_cancel", "form"]
)
_RESPONSE = _others(border.InferResponse, ["model_name", "model_version", "outputs"])
_OUTPUT = _others(border.RequestedOutput, [])
_tensor_fields = operator.attrgetter(*_TENSOR)
_request_fields = operator.attrgetter(*_REQUEST)
_response_fields = operator.attrgetter(*_RESPONSE)
_output_fields = operator.attrgetter(*_OUTPUT)


def request(number: int, asked: border.InferRequest) -> link.Message:
    """The request without its reply, which stays with whoever sends it."""
    shape = (
        asked.model,
        asked.version,
        tuple([_tensor_fields(tensor) for tensor in asked.inputs]),
        tuple([_output_fields(output) for output in asked.outputs]),
    )
    buffers = [tensor.data for tensor in asked.inputs]
    return link.Message(Kind.REQUEST, number, _head(shape, _request_fields(asked)), buffers)


def read_request(message: link.Message, reply: border.Reply) -> border.InferRequest:
    """The request, to be answered through `reply`."""
    (model, version, inputs, outputs), others = _parts(message, 4, len(_REQUEST))
    try:
        return border.InferRequest(
            model=model,
            version=version,
            inputs=_tensors(inputs, message.buffers),
            outputs=[border.RequestedOutput(**dict(zip(_OUTPUT, fields, strict=True))) for fields in outputs],
            reply=reply,
            **dict(zip(_REQUEST, others, strict=True)),
        )
    except (TypeError, ValueError) as error:
        raise MalformedError(f"no request: {error}") from None


def answer(number: int, given: Answer, *, final: bool) -> link.Message:
    flags = _FINAL if final else 0
    if isinstance(given, border.InferenceError):
        return link.Message(Kind.FAILURE, number, _failure(given), flags=flags)
    shape = (given.model_name, given.model_version, tuple([_tensor_fields(tensor) for tensor in given.outputs]))
    buffers = [tensor.data for tensor in given.outputs]
    return link.Message(Kind.ANSWER, number, _head(shape, _response_fields(given)), buffers, flags)


def read_answer(message: link.Message) -> Answer:
    """The answer of an ANSWER or FAILURE."""
    if message.kind == Kind.FAILURE:
        return read_failure(message)
    (name, version, outputs), others = _parts(message, 3, len(_RESPONSE))
    try:
        return border.InferResponse(
            model_name=name,
            model_version=version,
            outputs=_tensors(outputs, message.buffers),
            **dict(zip(_RESPONSE, others, strict=True)),
        )
    except (TypeError, ValueError) as error:
        raise MalformedError(f"no answer: {error}") from None


def is_final(message: link.Message) -> bool:
    """Whether nothing more comes about its number."""
    return bool(message.flags & _FINAL)


def cancel(number: int) -> link.Message:
    """Nobody waits any more for the answer or the result of that number."""
    return link.Message(Kind.CANCEL, number)


def call(number: int, name: str, positional: Sequence[Any], named: Mapping[str, Any]) -> link.Message:
    """A method of the engine to be called. TypeError where an argument is no plain value."""
    return link.Message(Kind.CALL, number, values.encode((name, tuple(positional), dict(named))))


def read_call(message: link.Message) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Name, positional and named arguments."""
    found = values.decode(message.head)
    if not (isinstance(found, tuple) and tuple(map(type, found)) == (str, tuple, dict)):
        raise MalformedError("a call is a name and its arguments")
    name, positional, named = found
    if not all(isinstance(key, str) for key in named):
        raise MalformedError(f"an argument of '{name}' has no name")
    return name, positional, named


def result(number: int, value: Any) -> link.Message:
    """What a call returned. TypeError where that is no plain value."""
    return link.Message(Kind.RESULT, number, values.encode(value), flags=_FINAL)


def failure(number: int, error: border.InferenceError) -> link.Message:
    """What a call raised."""
    return link.Message(Kind.FAILURE, number, _failure(error), flags=_FINAL)


def read_result(message: link.Message) -> Any:
    """What the call returned; raises what it raised."""
    if message.kind == Kind.FAILURE:
        raise read_failure(message)
    return values.decode(message.head)


def leaving(model: str, leaves: bool) -> link.Message:  # noqa: FBT001 - a listener's form
    """Whether clients of the model (empty: all) are to go elsewhere."""
    return link.Message(Kind.LEAVING, 0, values.encode((model, leaves)))


def read_leaving(message: link.Message) -> tuple[str, bool]:
    found = values.decode(message.head)
    if not (isinstance(found, tuple) and tuple(map(type, found)) == (str, bool)):
        raise MalformedError("a departure is a model and whether it leaves")
    model, leaves = found
    return model, leaves


def logging(told: Mapping[str, border.LogSetting]) -> link.Message:
    """The settings of the engine's log, which the fronts follow."""
    return link.Message(Kind.LOGGING, 0, values.encode(dict(told)))


def read_logging(message: link.Message) -> dict[str, border.LogSetting]:
    found = values.decode(message.head)
    if not (isinstance(found, dict) and all(isinstance(name, str) for name in found)):
        raise MalformedError("the settings of a log have names")
    return found


def read_failure(message: link.Message) -> border.InferenceError:
    found = values.decode(message.head)
    if not (isinstance(found, tuple) and tuple(map(type, found)) == (border.ErrorKind, str)):
        raise MalformedError("a failure is a kind and a message")
    kind, words = found
    return border.InferenceError(kind, words)


def _failure(error: border.InferenceError) -> bytes:
    return values.encode((error.kind, error.message))


def _head(shape: tuple[Any, ...], others: Any) -> bytes:
    try:
        written = _written(shape) if _is_small(shape) else values.encode(shape)
    except TypeError:  # a part that has no hash
        written = values.encode(shape)
    return _SHAPE.pack(len(written)) + written + values.encode(others)


def _parts(message: link.Message, shapes: int, fields: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    head = message.head
    if len(head) < _SHAPE.size:
        raise MalformedError("a head is cut short")
    end = _SHAPE.size + _SHAPE.unpack_from(head)[0]
    raw = head[_SHAPE.size : end]
    shape = _read(raw) if len(raw) <= _REPEATED_BYTES else values.decode(raw)
    others = values.decode(memoryview(head)[end:])
    for found, length in ((shape, shapes), (others, fields)):
        if not (isinstance(found, tuple) and len(found) == length):
            raise MalformedError("a head has too many or too few parts")
    return shape, others


def _is_small(value: Any) -> bool:
    """Whether it is worth remembering: clients choose names, and how many there are."""
    return _room_left(value, _REPEATED_BYTES) >= 0


def _room_left(value: Any, room: int) -> int:
    room -= len(value) if isinstance(value, (str, bytes)) else 8
    if isinstance(value, (tuple, list)):
        for each in value:
            if room < 0:
                break
            room = _room_left(each, room)
    return room


# By equality alone True and 1 would be the same shape; no dimension is a boolean.
_written = functools.lru_cache(_REMEMBERED)(values.encode)
_read = functools.lru_cache(_REMEMBERED)(values.decode)


def _tensors(shapes: Any, buffers: Sequence[border.Buffer]) -> list[border.Tensor]:
    return [
        border.Tensor(**dict(zip(_TENSOR, fields, strict=True)), data=data)
        for fields, data in zip(shapes, buffers, strict=True)
    ]
