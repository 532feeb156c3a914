"""ModelStreamInfer without a socket: the same in protobuf's messages and in bytes, and tensors that are not copied."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from gpu_worker.engine import border
from gpu_worker.grpc import plans, stream
from gpu_worker.wire import intake as wire_intake
from gpu_worker.wire import rules as wire_rules
from protos.inference.v2 import predict_pb2

LARGE = bytes(2**16)


class Engine:
    """Answers with what it was asked; a model "two" answers twice, "none" has one answer without outputs, "bad" fails."""

    def __init__(self) -> None:
        self.asked: list[border.InferRequest] = []

    def submit(self, requests: Sequence[border.InferRequest]) -> None:
        for request in requests:
            self.asked.append(request)
            answer = border.InferResponse(request.model, "1", request.id, request.inputs)
            if request.model == "two":
                request.reply(answer, final=False)
            if request.model == "none":
                answer = dataclasses.replace(answer, outputs=[])
            if request.model == "bad":
                request.reply(border.InferenceError(border.ErrorKind.INTERNAL, "it failed"))
            else:
                request.reply(answer)


class Call:
    """One whose answers are kept."""

    deadline_s = None

    def __init__(self) -> None:
        self.written: list[Any] = []

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return ()

    async def write(self, message: Any) -> None:
        self.written.append(message)

    async def write_parts(self, parts: list[border.Buffer]) -> None:
        self.written.append(parts)


def request(model: str, identifier: str, data: bytes = b"abcd", **more: Any) -> predict_pb2.ModelInferRequest:
    message = predict_pb2.ModelInferRequest(model_name=model, id=identifier, raw_input_contents=[data])
    message.inputs.add(name="x", datatype="UINT8", shape=[len(data)])
    for name, value in more.items():
        message.parameters[name].bool_param = value
    return message


async def each(items: Sequence[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def run(items: Sequence[Any], form: stream.Form) -> tuple[Engine, Call]:
    engine, call = Engine(), Call()
    intake = wire_intake.Intake(engine)  # type: ignore[arg-type]  # all that it asks of one
    try:
        await stream.Stream(intake, wire_rules.OPEN, each(items), call, form).run()
    finally:
        await intake.wait_idle()
        assert intake._held_bytes == 0
    return engine, call


REQUESTS = [
    request("one", "1"),
    request("two", "2", LARGE),
    request("none", "3"),
    request("none", "4", triton_enable_empty_final_response=True),
    request("bad", "5"),
    request("", "\u00e4", priority=True),
    predict_pb2.ModelInferRequest(model_name="one", model_version="x", id="7", raw_input_contents=[b"a", b"b"]),
    request("one", "8"),
]


async def test_bytes_are_answered_as_messages_are() -> None:
    _, plain = await run(REQUESTS, stream.MESSAGES)
    for form in (bytes, bytearray, memoryview):
        data = [form(each.SerializeToString()) for each in REQUESTS]
        _, told = await run(data, stream.Parts(plans.Plans()))
        read = [predict_pb2.ModelStreamInferResponse.FromString(b"".join(parts)) for parts in told.written]
        assert read == plain.written
    assert [(each.infer_response.id, bool(each.error_message)) for each in plain.written] == [
        ("1", False), ("2", False), ("2", False), ("4", False), ("5", True), ("\u00e4", True), ("7", True), ("8", False),
    ]  # fmt: skip


async def test_tensors_of_streams_are_not_copied() -> None:
    message = request("one", "1", LARGE).SerializeToString()
    engine, call = await run([message], stream.Parts(plans.Plans()))
    ((tensor,),) = (each.inputs for each in engine.asked)
    assert isinstance(tensor.data, memoryview)
    assert tensor.data.obj is message
    assert call.written[0][-1] is tensor.data


@pytest.mark.parametrize("broken", [b"\xff\xff", request("one", "1").SerializeToString() + b"\x1a\x01\xff"])
async def test_what_is_no_message_ends_the_stream_once_the_others_are_answered(broken: bytes) -> None:
    first = request("one", "1").SerializeToString()
    call = Call()
    intake = wire_intake.Intake(Engine())  # type: ignore[arg-type]  # as above
    made = stream.Stream(intake, wire_rules.OPEN, each([first, broken]), call, stream.Parts(plans.Plans()))
    with pytest.raises(border.InferenceError, match="deserializing"):
        await made.run()
    assert len(call.written) == 1


class Held(Engine):
    """Answers nothing until `go_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.has_some = asyncio.Event()
        self._held: list[border.InferRequest] | None = []

    def submit(self, requests: Sequence[border.InferRequest]) -> None:
        if self._held is None:
            super().submit(requests)
        else:
            self._held += requests
            self.has_some.set()

    def go_on(self) -> None:
        held, self._held = self._held, None
        super().submit(held or [])


async def test_no_more_requests_are_asked_for_than_there_is_room_for() -> None:
    """What a stream took and cannot hand on would be held unbooked, be it ever so large."""
    taken: list[str] = []

    async def requests() -> AsyncIterator[Any]:
        for number in map(str, range(300)):
            taken.append(number)
            yield request("one", number)

    engine, call = Held(), Call()
    intake = wire_intake.Intake(engine)  # type: ignore[arg-type]  # as above
    running = asyncio.create_task(stream.Stream(intake, wire_rules.OPEN, requests(), call).run())
    await engine.has_some.wait()
    assert len(taken) == 128
    engine.go_on()
    await running
    assert [each.infer_response.id for each in call.written] == taken
    assert len(taken) == 300
