"""Streams of a model of many responses, whose answers a test gives: final marks, empty ends, errors, refusals."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from gpu_worker.engine import border
from gpu_worker.grpc import stream
from protos.inference.v2 import predict_pb2, predict_pb2_grpc
from tests.support import scripted_engine
from tests.support.scripted_engine import text

FINAL = "triton_final_response"


def message(identifier: str, *, empty_end: bool = False) -> predict_pb2.ModelInferRequest:
    asked = predict_pb2.ModelInferRequest(model_name="many", id=identifier, raw_input_contents=[b"\1\0\0\0p"])
    asked.inputs.add(name="PROMPT", datatype="BYTES", shape=[1])
    if empty_end:
        asked.parameters["triton_enable_empty_final_response"].bool_param = True
    return asked


def shown(answer: Any) -> tuple[str, list[bytes], bool]:
    found = answer.infer_response
    return found.id, list(found.raw_output_contents), found.parameters[FINAL].bool_param


@pytest.mark.parametrize("empty_end", [False, True])
async def test_an_end_without_outputs_is_told_to_who_asks_for_it(serve: Any, *, empty_end: bool) -> None:
    engine = scripted_engine.Scripted()
    front = await serve(engine=engine)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer()
        for identifier in ("some", "none", "last"):
            await call.write(message(identifier, empty_end=empty_end))
        await call.done_writing()
        some, none, last = [await engine.next() for _ in range(3)]
        some.reply(text("a", identifier="some"), final=False)
        some.reply(text("b", identifier="some"), final=False)
        some.reply(text(identifier="some"))
        none.reply(text(identifier="none"))
        last.reply(text("c", identifier="last"))
        seen = [shown(answer) async for answer in call]
    wire = {letter: [b"\1\0\0\0" + letter.encode()] for letter in "abc"}
    expected = [("some", wire["a"], False), ("some", wire["b"], False)]
    expected += [("some", [], True), ("none", [], True)] if empty_end else []
    assert seen == [*expected, ("last", wire["c"], True)]
    await front.intake.wait_idle()


async def test_a_failed_request_is_a_message_and_the_next_ones_go_on(serve: Any) -> None:
    engine = scripted_engine.Scripted()
    front = await serve(engine=engine)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer()
        await call.write(message("1"))
        await call.write(message("2"))
        await call.done_writing()
        first, second = await engine.next(), await engine.next()
        second.reply(text("b", identifier="2"))
        first.reply(text("a", identifier="1"), final=False)
        first.reply(border.InferenceError(border.ErrorKind.INTERNAL, "broke"))
        seen = [(answer.error_message, *shown(answer)) async for answer in call]
    assert seen == [
        ("", "1", [b"\1\0\0\0a"], False),
        ("broke", "1", [], True),
        ("", "2", [b"\1\0\0\0b"], True),
    ]


async def test_a_real_status_ends_the_stream_for_who_asks_for_it(serve: Any) -> None:
    engine = scripted_engine.Scripted()
    front = await serve(engine=engine)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(metadata=(("triton_grpc_error", "true"),))
        await call.write(message("1"))
        (await engine.next()).reply(border.InferenceError(border.ErrorKind.UNAVAILABLE, "full"))
        assert (await call.code(), await call.details()) == (grpc.StatusCode.UNAVAILABLE, "full")


async def test_unary_calls_refuse_models_of_many_responses(serve: Any) -> None:
    engine = scripted_engine.Scripted()
    front = await serve(engine=engine)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelInfer(message("1"))
        request = await engine.next()
        request.reply(text("a"), final=False)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "doesn't support models with decoupled transaction policy" in await call.details()
        request.reply(text("b"))
    await front.intake.wait_idle()


async def test_requests_of_many_responses_wait_for_no_other_and_hold_none_up(serve: Any) -> None:
    engine = scripted_engine.Scripted()
    front = await serve(engine=engine)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer()
        names = ("single", "many", "more", "late")
        for identifier in names:
            await call.write(message(identifier))
        single, many, more, late = [await engine.next() for _ in names]

        async def seen() -> tuple[str, bool]:
            identifier, _, final = shown(await call.read())
            return identifier, final

        more.reply(text("1", identifier="more"), final=False)
        assert await seen() == ("more", False)
        many.reply(text("2", identifier="many"), final=False)
        assert await seen() == ("many", False)
        more.reply(text("3", identifier="more"))
        assert await seen() == ("more", True)
        late.reply(text("4", identifier="late"))
        many.reply(text("5", identifier="many"), final=False)
        assert await seen() == ("many", False)
        single.reply(text("6", identifier="single"))
        assert [await seen(), await seen()] == [("single", True), ("late", True)]
        many.reply(text("7", identifier="many"))
        assert await seen() == ("many", True)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    await front.intake.wait_idle()


async def test_responses_that_pile_up_end_their_request_alone(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_MOST_WAITING_BYTES", 16 * 2**20)
    engine = scripted_engine.Scripted()
    front = await serve(engine=engine)
    unlimited = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}", options=unlimited) as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer()
        await call.write(message("1"))
        await call.write(message("2"))
        await call.done_writing()
        first, second = await engine.next(), await engine.next()
        for _ in range(40):
            first.reply(text("x" * 2**20, identifier="1"), final=False)
        assert first.cancelled
        assert not second.cancelled
        first.reply(text(identifier="1"))
        second.reply(text("b", identifier="2"))
        answers = [answer async for answer in call]
    assert [answer.infer_response.id for answer in answers[-2:]] == ["1", "2"]
    assert "reads too slowly" in answers[-2].error_message
    assert 16 <= len(answers) <= 20
    await front.intake.wait_idle()
