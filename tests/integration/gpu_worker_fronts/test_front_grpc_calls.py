"""The gRPC front over a real channel: statuses, streams, cancellation, health, reflection, what is not served."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gpu_worker.engine import border
from gpu_worker.wire import intake as wire_intake
from protos.inference.v2 import predict_pb2, predict_pb2_grpc

# More than the machine can answer while a cancellation is under way.
MANY = 24
DATA = np.array([1, 2, 3, 4], "<f4").tobytes()


def request(model: str = "ident", identifier: str = "", **more: Any) -> predict_pb2.ModelInferRequest:
    message = predict_pb2.ModelInferRequest(model_name=model, id=identifier, raw_input_contents=[DATA], **more)
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, 4])
    return message


@pytest.fixture(params=["native", "grpcio"])
def frontend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def front(serve: Any) -> Any:
    return await serve()


@pytest.fixture
async def channel(front: Any) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return predict_pb2_grpc.GRPCInferenceServiceStub(channel)


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_typed_contents_come_back_raw(stub: Any) -> None:
    message = predict_pb2.ModelInferRequest(model_name="ident", id="7")
    tensor = message.inputs.add(name="INPUT", datatype="FP32", shape=[1, 4])
    tensor.contents.fp32_contents.extend([1, 2, 3, 4])
    answer = await stub.ModelInfer(message)
    assert (answer.model_name, answer.model_version, answer.id) == ("ident", "1", "7")
    assert list(answer.raw_output_contents) == [DATA]
    assert not answer.outputs[0].HasField("contents")


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (request("nope"), grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'nope' is not found"),
        (request(model_version="9"), grpc.StatusCode.NOT_FOUND, "version 9"),
        (request(model_version="x"), grpc.StatusCode.INVALID_ARGUMENT, "'x' must be a decimal number"),
        (request(outputs=[{"name": "X"}]), grpc.StatusCode.INVALID_ARGUMENT, "unexpected inference output 'X'"),
        (
            predict_pb2.ModelInferRequest(model_name="ident"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "expected 1 inputs but got 0 inputs for model",
        ),
        (
            request(parameters={"triton_x": predict_pb2.InferParameter(bool_param=True)}),
            grpc.StatusCode.INVALID_ARGUMENT,
            "reserved",
        ),
        (
            request(outputs=[{"name": "OUTPUT", "parameters": {"shared_memory_region": {"string_param": "r"}}}]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "needs the parameter 'shared_memory_byte_size'",
        ),
    ],
)
async def test_failures_have_their_status(stub: Any, message: Any, code: grpc.StatusCode, words: str) -> None:
    found, details = await status_of(stub.ModelInfer(message))
    assert found is code
    assert words in details


async def test_long_failures_are_cut_to_what_a_trailer_holds(stub: Any) -> None:
    message = request()
    message.inputs[0].shape[:] = [1] * 10_000
    code, details = await status_of(stub.ModelInfer(message))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(details) <= 2000


async def test_messages_of_any_size_pass(front: Any, stub: Any) -> None:
    big = b"x" * 8 * 2**20
    wire = (len(big)).to_bytes(4, "little") + big
    message = predict_pb2.ModelInferRequest(model_name="text", raw_input_contents=[wire + bytes(12)])
    message.inputs.add(name="INPUT", datatype="BYTES", shape=[1, 4])
    channel_options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}", options=channel_options) as channel:
        answer = await predict_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message)
    assert answer.raw_output_contents[0] == wire + bytes(12)


async def test_cancelled_calls_cancel_their_requests(front: Any, stub: Any) -> None:
    calls = [stub.ModelInfer(request("slow")) for _ in range(MANY)]
    while front.intake._in_flight < MANY:
        await stub.ServerLive(predict_pb2.ServerLiveRequest())
    for call in calls:
        call.cancel()
    await asyncio.gather(*(_swallow(call) for call in calls))
    await front.intake.wait_idle()
    assert await _cancelled(front, stub) > MANY // 2
    assert front.intake._held_bytes == 0


async def test_a_deadline_ends_what_waits(front: Any, stub: Any) -> None:
    running = [asyncio.ensure_future(stub.ModelInfer(request("slow"))) for _ in range(3)]
    while front.intake._in_flight < len(running):
        await stub.ServerLive(predict_pb2.ServerLiveRequest())  # calls may overtake one another on their way
    code, _ = await status_of(stub.ModelInfer(request("slow"), timeout=0.02))
    assert code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    await asyncio.gather(*running)
    await front.intake.wait_idle()
    assert (await front.engine.statistics("slow", ""))[0].success.count == 3


async def test_a_stream_answers_in_order_and_survives_failures(front: Any, stub: Any) -> None:
    asked = [request("slow", "0"), request(identifier="1"), request("nope", "2"), request(identifier="3")]
    answers = [answer async for answer in stub.ModelStreamInfer(_each(asked))]
    assert [answer.infer_response.id for answer in answers] == ["0", "1", "2", "3"]
    assert [bool(answer.error_message) for answer in answers] == [False, False, True, False]
    assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)
    assert front.intake._held_bytes == 0


async def test_a_stream_carries_more_than_may_be_in_flight(stub: Any) -> None:
    asked = [request(identifier=str(index)) for index in range(1000)]
    answers = [answer.infer_response.id async for answer in stub.ModelStreamInfer(_each(asked))]
    assert answers == [message.id for message in asked]


async def test_a_stream_ends_with_a_real_status_when_asked_to(stub: Any) -> None:
    call = stub.ModelStreamInfer(
        _each([request(identifier="0"), request("nope"), request()]), metadata=[("triton_grpc_error", "true")]
    )
    assert (await call.read()).infer_response.id == "0"
    assert (await status_of(call.read()))[0] is grpc.StatusCode.NOT_FOUND


async def test_a_cancelled_stream_cancels_its_requests(front: Any, stub: Any) -> None:
    call = stub.ModelStreamInfer(_each([request("slow", str(index)) for index in range(MANY)], end=False))
    while front.intake._in_flight < MANY:
        await stub.ServerLive(predict_pb2.ServerLiveRequest())
    call.cancel()
    await front.intake.wait_idle()
    assert await _cancelled(front, stub) > MANY // 2
    assert front.intake._held_bytes == 0


async def test_too_much_in_flight_is_unavailable(serve: Any) -> None:
    front = await serve(bounds=wire_intake.Bounds(body_bytes=8))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await status_of(stub.ModelInfer(request())))[0] is grpc.StatusCode.UNAVAILABLE
        (answer,) = [answer async for answer in stub.ModelStreamInfer(_each([request()]))]
    assert answer.error_message == wire_intake.FULL
    assert front.intake._held_bytes == 0


async def test_all_of_a_message_counts_while_the_engine_has_it(serve: Any) -> None:
    front = await serve(bounds=wire_intake.Bounds(body_bytes=1000))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ModelInfer(request(identifier="x" * 100))).id == "x" * 100
        long = request(identifier="x" * 1000)
        assert (await status_of(stub.ModelInfer(long)))[0] is grpc.StatusCode.UNAVAILABLE
        (answer,) = [answer async for answer in stub.ModelStreamInfer(_each([long]))]
    assert answer.error_message == wire_intake.FULL
    assert front.intake._held_bytes == 0


async def test_models_are_controlled(stub: Any) -> None:
    ready = predict_pb2.ModelReadyRequest(name="addsub")
    assert not (await stub.ModelReady(ready)).ready
    await stub.RepositoryModelLoad(predict_pb2.RepositoryModelLoadRequest(model_name="addsub"))
    assert (await stub.ModelReady(ready)).ready
    index = await stub.RepositoryIndex(predict_pb2.RepositoryIndexRequest(ready=True))
    assert {model.name for model in index.models} == {"addsub", "ident", "slow", "text"}
    await stub.RepositoryModelUnload(predict_pb2.RepositoryModelUnloadRequest(model_name="addsub"))
    assert not (await stub.ModelReady(ready)).ready
    named = predict_pb2.RepositoryIndexRequest(repository_name="mine")
    assert (await status_of(stub.RepositoryIndex(named)))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_health_follows_the_engine(front: Any, channel: grpc.aio.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "inference.GRPCInferenceService"):
        assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == serving
    unknown = health_pb2.HealthCheckRequest(service="nope")
    assert (await status_of(health.Check(unknown)))[0] is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == serving
    await front.engine.drain(1)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    opened: Any = channel  # the stubs of this package know no asyncio
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(opened)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = [answer async for answer in stub.ServerReflectionInfo(_each([asked]))]
    names = {service.name for service in answer.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    # Its first version has the same messages under another name.
    newer: Any = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    described = reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService")
    listed, found = [answer async for answer in newer(_each([asked, described]))]
    assert {service.name for service in listed.list_services_response.service} == names
    assert found.file_descriptor_response.file_descriptor_proto


async def _each(messages: Sequence[Any], *, end: bool = True) -> AsyncIterator[Any]:
    for message in messages:
        yield message
    if not end:
        await asyncio.Event().wait()


async def _swallow(call: Any) -> None:
    with pytest.raises(asyncio.CancelledError):
        await call


async def _cancelled(front: Any, stub: Any) -> int:
    """How many requests were cancelled, once all are counted: an answer may come before its count."""
    async with asyncio.timeout(60):
        while True:
            (statistics,) = await front.engine.statistics("slow", "")
            cancelled: int = statistics.failures["CANCELED"]
            if statistics.success.count + cancelled == MANY:
                return cancelled
            await stub.ServerLive(predict_pb2.ServerLiveRequest())


async def test_refused_requests_are_freed_without_a_search_for_garbage(stub: Any) -> None:
    gc.collect()
    gc.disable()
    try:
        code, _ = await status_of(stub.ModelInfer(request("nowhere")))
        assert code is grpc.StatusCode.NOT_FOUND
        answers = [answer async for answer in stub.ModelStreamInfer(iter([request(), request("nowhere")]))]
        assert len(answers) == 2
        async with asyncio.timeout(60):
            # The call is over for the client a moment before it is for the server.
            while any(type(each) is border.InferRequest for each in gc.get_objects()):
                await stub.ServerLive(predict_pb2.ServerLiveRequest())
    finally:
        gc.enable()
