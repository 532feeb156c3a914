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
from collections.abc import Sequence
from typing import NamedTuple

from gpu_worker.engine import border
from gpu_worker.grpc import codec
from protos.inference.v2 import predict_pb2

_MOST_PLANS = 1024
_MOST_KEY_BYTES = 2**12
_MOST_PARTS = 64
# Sizes of messages that templates are kept of, and how many of each; of those that find no room one in so many does.
_MOST_SIZES = 256
_MOST_TEMPLATES = 4
_RELEARNED = 64
_PREFIX_BYTES = 5
_Scan = tuple[int, int, int, int, list[border.Buffer]]
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


class _Template(NamedTuple):
    """A message of one size, with the five bytes before it, that was read before: where others are the same, and differ.

    `rest` are places and bytes behind `head`. `tensors` are name, datatype, shape and place of each.
    """

    head: bytes
    rest: tuple[tuple[int, bytes], ...]
    identifier: slice | None
    tensors: tuple[tuple[str, str, tuple[int, ...], slice], ...]
    request: _Request
    form: object


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
        self._templates: dict[int, list[_Template]] = {}
        self._framed: dict[object, tuple[bytes, int]] = {}
        self._unknown = 0

    def known(self, framed: bytes, reply: border.Reply) -> border.InferRequest | None:
        """As `decode`, of a message with its five bytes; None for what `decode` has to look at, be it well or not."""
        for template in self._templates.get(len(framed), ()):
            if not framed.startswith(template.head):
                continue
            for at, part in template.rest:
                if not framed.startswith(part, at):
                    break
            else:
                return _filled(template, framed, reply)
        return None

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
        if type(message) is bytes and len(message) <= _COPIED_BYTES:
            self._learn(message, scan, plan)
        inputs = [
            border.Tensor(name, datatype, shape, data)
            for (name, datatype, shape), data in zip(plan.inputs, raw, strict=True)
        ]
        return border.InferRequest(
            *(plan.model, plan.version, identifier, inputs, plan.outputs, plan.parameters, reply),
            received=border.Received("GRPC", began_ns, time.monotonic_ns()),
        )

    def frame(self, answer: border.InferResponse) -> tuple[Sequence[border.Buffer], int]:
        """As `encode`, with the five bytes before the message; and how many bytes these are in all."""
        outputs = answer.outputs
        if len(outputs) != 1 or answer.id or answer.parameters or outputs[0].region is not None:
            pieces = self.encode(answer)
            size = sum(map(len, pieces))
            pieces.insert(0, b"\0" + size.to_bytes(4))
            return pieces, _PREFIX_BYTES + size
        only = outputs[0]
        data = only.data
        key = (answer.model_name, answer.model_version, only.name, only.datatype, only.shape, len(data))
        found = self._framed.get(key)
        if found is None:
            found = self._remember_framed(key, answer)
        return (found[0], data), found[1]

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

    def _learn(self, message: bytes, scan: _Scan, plan: _Request) -> None:
        """How to know the next message that differs from this one in id and tensors only."""
        known = self._templates.setdefault(len(message) + _PREFIX_BYTES, [])
        if len(known) >= _MOST_TEMPLATES:
            # Of one size there are too many: to learn each anew would cost more than it saves.
            self._unknown += 1
            if self._unknown % _RELEARNED:
                return
            del known[0]
        known.append(_template(message, scan, plan))
        if len(self._templates) > _MOST_SIZES:
            self._templates.clear()

    def _remember_framed(self, key: object, answer: border.InferResponse) -> tuple[bytes, int]:
        (only,) = answer.outputs
        head = b"".join((*self._head(answer), _raw_output(len(only.data))))
        size = len(head) + len(only.data)
        found = b"\0" + size.to_bytes(4) + head, _PREFIX_BYTES + size
        if len(head) <= _MOST_KEY_BYTES:
            if len(self._framed) >= _MOST_PLANS:
                self._framed.clear()
            self._framed[key] = found
        return found

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


def _filled(template: _Template, framed: bytes, reply: border.Reply) -> border.InferRequest | None:
    now_ns = time.monotonic_ns()
    request, tensors = template.request, template.tensors
    identifier = ""
    if template.identifier is not None:
        try:
            identifier = str(framed[template.identifier], "utf-8")
        except UnicodeDecodeError:
            return None
    if len(tensors) == 1:
        # Without the call that a comprehension is.
        ((name, datatype, shape, place),) = tensors
        inputs = [border.Tensor(name, datatype, shape, framed[place])]
    else:
        inputs = [border.Tensor(name, datatype, shape, framed[place]) for name, datatype, shape, place in tensors]
    return border.InferRequest(
        request.model,
        request.version,
        identifier,
        inputs,
        request.outputs,
        request.parameters,
        reply,
        received=border.Received("GRPC", now_ns, now_ns),
        form=template.form,
    )


def _template(message: bytes, scan: _Scan, plan: _Request) -> _Template:
    """What `message` is made of, around its id and its tensors."""
    _id_tag, id_start, id_stop, head_end, raw = scan
    framed = bytes(1) + len(message).to_bytes(4) + message
    places = []
    at = head_end
    for data in raw:
        at += _extent(message, at + 1)[0] - at
        places.append(slice(at + _PREFIX_BYTES, at + len(data) + _PREFIX_BYTES))
        at += len(data)
    identifier = slice(id_start + _PREFIX_BYTES, id_stop + _PREFIX_BYTES) if id_stop else None
    holes = sorted([*places, *([identifier] if identifier else [])], key=lambda hole: (hole.start, hole.stop))
    starts, stops = [0, *(hole.stop for hole in holes)], [*(hole.start for hole in holes), len(framed)]
    parts = [(start, framed[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    return _Template(
        parts[0][1],
        tuple((at, part) for at, part in parts[1:] if part),
        identifier,
        tuple((*named, place) for named, place in zip(plan.inputs, places, strict=True)),
        plan,
        object(),
    )


def _final(final: bool) -> bytes:  # noqa: FBT001 - what it tells
    described = predict_pb2.ModelInferResponse()
    described.parameters[codec.FINAL].bool_param = final
    return described.SerializeToString()


_FINAL = {final: _final(final) for final in (False, True)}


def _whole(message: border.Buffer, reply: border.Reply) -> border.InferRequest:
    found = predict_pb2.ModelInferRequest.FromString(bytes(message))
    return codec.decode(found, found.raw_input_contents, reply)


def _scan(message: border.Buffer) -> _Scan | None:
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
