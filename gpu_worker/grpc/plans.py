"""What messages of inferences said before: clients send the same again and again, but for the id and the tensors.

A request's raw_input_contents (field 7) are its last fields and an answer's raw_output_contents (field 6) are its, as
every known serialiser writes fields in their order. So tensors are cut off a request before protobuf sees it, and put
behind an answer after it, without a copy; and what is left is read once for all requests that are the same but for
their id. What is not of that form is left to protobuf, whole. Must never find anything else than protobuf would have,
nor remember more than its bounds.
"""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

from gpu_worker.engine import border
from gpu_worker.grpc import codec
from protos.inference.v2 import predict_pb2

_MOST_PLANS = 1024
_MOST_KEY_BYTES = 2**12
_MOST_PARTS = 64
# Tags of length-delimited fields. All of ModelInferRequest's are; others are left to protobuf.
_ID, _RAW = 3 << 3 | 2, 7 << 3 | 2
_PLAIN = frozenset(field << 3 | 2 for field in (1, 2, 4, 5, 6))
_RAW_OUTPUT = bytes((6 << 3 | 2,))
_ID_TAG = bytes((_ID,))
_STREAMED = bytes((2 << 3 | 2,))
_MOST_SHIFT = 28
# The longest length of one byte.
_SHORT = 0x7F
# Of smaller messages tensors are copied: that costs less than a view.
_COPIED_BYTES = 2**12


class _Request(NamedTuple):
    """What requests with the same bytes say, but for id and data."""

    model: str
    version: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: list[border.RequestedOutput]
    parameters: dict[str, border.Parameter]


class Plans:
    """Of one front."""

    def __init__(self) -> None:
        self._requests: dict[bytes, _Request] = {}
        self._answers: dict[object, tuple[bytes, bytes]] = {}

    def decode(self, message: border.Buffer, reply: border.Reply) -> border.InferRequest:
        """The request in `message`; its tensors share the message's memory where that is large.

        Raises protobuf's DecodeError, and InferenceError as `codec.decode`. What it returns is shared but for its
        inputs, and must not be changed otherwise.
        """
        began_ns = time.monotonic_ns()
        scan = _scan(message)
        if scan is None:
            return _whole(message, reply)
        id_tag, id_start, id_stop, head_end, raw = scan
        key = bytes(message[:head_end])
        identifier = ""
        if id_stop:
            try:
                identifier = str(message[id_start:id_stop], "utf-8")
            except UnicodeDecodeError:
                return _whole(message, reply)
            key = key[:id_tag] + key[id_stop:]
        plan = self._requests.get(key)
        if plan is None:
            return self._read(key, identifier, raw, reply)
        if len(raw) != len(plan.inputs):
            return _whole(message, reply)
        inputs = [
            border.Tensor(name, datatype, shape, data)
            for (name, datatype, shape), data in zip(plan.inputs, raw, strict=True)
        ]
        return border.InferRequest(
            *(plan.model, plan.version, identifier, inputs, plan.outputs, plan.parameters, reply),
            received=border.Received("GRPC", began_ns, time.monotonic_ns()),
        )

    def encode(self, answer: border.InferResponse) -> list[border.Buffer]:
        """The answer's message in pieces, which share the tensors' memory; all tensors are raw."""
        pieces = self._head(answer)
        for tensor in answer.outputs:
            data = tensor.data
            pieces += (_raw_output(len(data)), data)
        return pieces

    def encode_streamed(self, answer: border.InferResponse, *, final: bool) -> list[border.Buffer]:
        """The same as a message of ModelStreamInfer, which says whether it is the last one to its request."""
        pieces = self._head(answer, final=final)
        for tensor in answer.outputs:
            data = tensor.data
            pieces += (_raw_output(len(data)), data)
        pieces.insert(0, _STREAMED + _varint(sum(map(len, pieces))))
        return pieces

    def _head(self, answer: border.InferResponse, *, final: bool | None = None) -> list[border.Buffer]:
        """The answer's message without its tensors; with `final` that is told in it."""
        key = None if answer.parameters else _answer_key(answer)
        if key is None:
            whole = codec.describe(answer)
            if final is not None:
                whole.parameters[codec.FINAL].bool_param = final
            return [whole.SerializeToString()]
        found = self._answers.get(key)
        if found is None:
            found = self._describe(key, answer)
        if final is not None:
            found = found[0], _FINAL[final] + found[1]
        if not answer.id:
            return list(found)
        identifier = answer.id.encode()
        return [found[0], _ID_TAG + _varint(len(identifier)), identifier, found[1]]

    def _read(self, key: bytes, identifier: str, raw: list[border.Buffer], reply: border.Reply) -> border.InferRequest:
        found = codec.decode(predict_pb2.ModelInferRequest.FromString(key), raw, reply)
        found.id = identifier
        self._remember(key, found)
        return found

    def _remember(self, key: bytes, found: border.InferRequest) -> None:
        """Not what lies in shared memory, or in the message itself: it would be kept with the plan."""
        shared = any(tensor.region for tensor in found.inputs) or any(output.region for output in found.outputs)
        parts = len(found.inputs) + len(found.outputs) + len(found.parameters)
        if shared or len(key) > _MOST_KEY_BYTES or parts > _MOST_PARTS:
            return
        if len(self._requests) >= _MOST_PLANS:
            self._requests.clear()
        inputs = tuple((tensor.name, tensor.datatype, tensor.shape) for tensor in found.inputs)
        self._requests[key] = _Request(found.model, found.version, inputs, found.outputs, dict(found.parameters))

    def _describe(self, key: object, answer: border.InferResponse) -> tuple[bytes, bytes]:
        """What comes before the id, and after it."""
        before = predict_pb2.ModelInferResponse(model_name=answer.model_name, model_version=answer.model_version)
        after = codec.describe(border.InferResponse("", "", "", answer.outputs))
        found = before.SerializeToString(), after.SerializeToString()
        if sum(map(len, found)) <= _MOST_KEY_BYTES:
            if len(self._answers) >= _MOST_PLANS:
                self._answers.clear()
            self._answers[key] = found
        return found


def _final(final: bool) -> bytes:  # noqa: FBT001 - what it tells
    described = predict_pb2.ModelInferResponse()
    described.parameters[codec.FINAL].bool_param = final
    return described.SerializeToString()


_FINAL = {final: _final(final) for final in (False, True)}


def _whole(message: border.Buffer, reply: border.Reply) -> border.InferRequest:
    found = predict_pb2.ModelInferRequest.FromString(bytes(message))
    return codec.decode(found, found.raw_input_contents, reply)


def _scan(message: border.Buffer) -> tuple[int, int, int, int, list[border.Buffer]] | None:
    """Where the id's field begins, where its text starts and stops (0 without one), where the tensors begin, and these.

    None for a message that is not as expected, or has no tensors.
    """
    at, end = 0, len(message)
    id_tag = id_start = id_stop = 0
    try:
        while at < end:
            tag = message[at]
            if tag == _RAW:
                raw = _tensors(message, at, end)
                return (id_tag, id_start, id_stop, at, raw) if raw else None
            start = at + 2
            stop = start + message[at + 1]
            if stop - start > _SHORT:
                start, stop = _extent(message, at + 1)
            if stop > end or (tag not in _PLAIN and (tag != _ID or id_stop)):
                return None
            if tag == _ID:
                id_tag, id_start, id_stop = at, start, stop
            at = stop
    except IndexError:
        pass
    return None


def _tensors(message: border.Buffer, at: int, end: int) -> list[border.Buffer]:
    """The raw_input_contents from `at` to the end; empty where something else comes between or after."""
    found: list[border.Buffer] = []
    view = memoryview(message) if end > _COPIED_BYTES else message
    while at < end:
        if message[at] != _RAW:
            return []
        start = at + 2
        stop = start + message[at + 1]
        if stop - start > _SHORT:
            start, stop = _extent(message, at + 1)
        if stop > end:
            return []
        found.append(view[start:stop])
        at = stop
    return found


def _extent(message: border.Buffer, at: int) -> tuple[int, int]:
    """Where a field's bytes start and stop, whose length is at `at`. IndexError for a length of more than 5 bytes."""
    value = message[at]
    at += 1
    if value < 0x80:
        return at, at + value
    value &= 0x7F
    shift = 7
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return at, at + value
        shift += 7
        if shift > _MOST_SHIFT:
            raise IndexError


def _answer_key(answer: border.InferResponse) -> tuple[object, ...] | None:
    """What the head of an answer depends on but its id; None where that is in shared memory."""
    if len(answer.outputs) == 1:
        only = answer.outputs[0]
        if only.region is not None:
            return None
        return answer.model_name, answer.model_version, only.name, only.datatype, only.shape
    found: list[object] = [answer.model_name, answer.model_version]
    for tensor in answer.outputs:
        if tensor.region is not None:
            return None
        found += (tensor.name, tensor.datatype, tensor.shape)
    return tuple(found)


@functools.lru_cache(maxsize=1024)
def _raw_output(size: int) -> bytes:
    """What stands before one of the raw_output_contents."""
    return _RAW_OUTPUT + _varint(size)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
