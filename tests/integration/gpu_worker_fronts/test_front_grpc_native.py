"""The own gRPC front frame by frame, on real sockets: what gRPC's clients would never do to it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gzip
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from gpu_worker.engine import border
from gpu_worker.grpc import listen
from gpu_worker.grpc.native import limits as native_limits
from gpu_worker.grpc.native import server as native
from gpu_worker.http2 import codes
from gpu_worker.wire import intake as wire_intake
from protos.inference.v2 import predict_pb2

from . import h2_client
from .conftest import WIDE_S, Serve
from .h2_client import wire

Status = grpc.StatusCode
LIVE = "/inference.GRPCInferenceService/ServerLive"
DATA = np.array([1, 2, 3, 4], "<f4").tobytes()


def infer(model: str = "ident", identifier: str = "", data: bytes = DATA) -> bytes:
    message = predict_pb2.ModelInferRequest(model_name=model, id=identifier, raw_input_contents=[data])
    message.inputs.add(name="INPUT", datatype="FP32", shape=[len(data) // 16, 4])
    return message.SerializeToString()


def letters(count: int) -> bytes:
    """Text that does not compress well."""
    return np.random.default_rng(0).integers(48, 123, count, dtype=np.uint8).tobytes()


def text(data: bytes) -> bytes:
    """A request of any size, which comes back as it is."""
    raw = len(data).to_bytes(4, "little") + data + bytes(12)
    message = predict_pb2.ModelInferRequest(model_name="text", raw_input_contents=[raw])
    message.inputs.add(name="INPUT", datatype="BYTES", shape=[1, 4])
    return message.SerializeToString()


def said(answer: h2_client.Answer) -> bytes:
    """The data of `text`."""
    return tensor(answer)[4:-12]


def tensor(answer: h2_client.Answer) -> bytes:
    ((flag, message),) = answer.messages()
    data: bytes = predict_pb2.ModelInferResponse.FromString(zlib.decompress(message, 31) if flag else message)\
        .raw_output_contents[0]  # fmt: skip
    return data


async def looked(condition: Any) -> None:
    """Waits until something on the server's side is so: no event tells."""
    async with asyncio.timeout(WIDE_S):
        while not condition():
            await _tick()


async def _tick() -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_later(0.005, done.set_result, None)
    await done


@pytest.fixture
async def front(serve: Serve) -> Any:
    return await serve()


async def test_a_call_is_answered_with_head_message_and_trailers(front: Any) -> None:
    async with h2_client.connect(front.grpc_port) as client:
        answer = await client.ask(wire(infer(identifier="7")))
    assert answer.fields == {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}
    assert tensor(answer) == DATA
    assert front.intake._held_bytes == 0


@pytest.mark.parametrize("size", [1, 3, 50])
async def test_a_message_may_come_in_any_pieces(front: Any, size: int) -> None:
    data = wire(infer())
    async with h2_client.connect(front.grpc_port) as client:
        stream = await client.open()
        for at in range(0, len(data), size):
            await client.send(stream, data[at : at + size])
        await client.send(stream, b"", ended=True)
        assert tensor(await client.answer(stream)) == DATA
    assert front.intake._held_bytes == 0
    assert front.grpc.front.gathering == {}


async def test_large_tensors_pass_both_ways(front: Any) -> None:
    big = letters(2**22)
    async with h2_client.connect(front.grpc_port, window=2**20) as client:
        answer = await client.ask(wire(text(big)))
    assert said(answer) == big
    assert front.intake._held_bytes == 0


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", Status.UNIMPLEMENTED, "no message"),
        (b"\0\0", Status.INTERNAL, "middle of its message"),
        (wire(infer())[:-1], Status.INTERNAL, "middle of its message"),
        (wire(infer()) + b"\0", Status.UNIMPLEMENTED, "more than one"),
        (wire(infer()) * 2, Status.UNIMPLEMENTED, "more than one"),
        (wire(b"\xff\xff"), Status.INTERNAL, "deserializing"),
        (wire(infer(), flag=1), Status.INVALID_ARGUMENT, "grpc-encoding"),
        (wire(infer(), flag=2), Status.INVALID_ARGUMENT, "flag"),
    ],
)
async def test_what_is_no_single_message_has_its_status(front: Any, data: bytes, status: Status, words: str) -> None:
    for path in (h2_client.INFER, LIVE):
        async with h2_client.connect(front.grpc_port) as client:
            answer = await client.ask(data, path)
            assert (await client.ask(wire(b""), LIVE)).status == 0
        if path == LIVE and words == "more than one":
            continue  # a second message may come when the answer is out
        assert answer.status == status.value[0]
        assert words in answer.fields["grpc-message"]
    await front.intake.wait_idle()
    assert front.intake._held_bytes == 0


async def test_what_is_no_call_is_answered_as_http(front: Any) -> None:
    async with h2_client.connect(front.grpc_port) as client:
        plain = await client.ask(b"{}", more=[("content-type", "application/json")])
        stream = await client.open(method="GET", ended=True)
        read = await client.answer(stream)
        unknown = await client.ask(b"", "/inference.GRPCInferenceService/Nope")
        strange = await client.ask(b"", more=[("grpc-encoding", "snappy")])
        hasty = await client.ask(b"", more=[("grpc-timeout", "soon")])
    assert (plain.fields[":status"], read.fields[":status"]) == ("415", "405")
    assert (unknown.status, strange.status, hasty.status) == (12, 12, 3)
    assert strange.fields["grpc-accept-encoding"] == "identity, deflate, gzip"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("path", [h2_client.INFER, h2_client.STREAM])
@pytest.mark.parametrize("count", [1, 300000])
async def test_compressed_messages_are_read(front: Any, encoding: str, path: str, count: int) -> None:
    data = letters(count)
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    async with h2_client.connect(front.grpc_port, window=2**22) as client:
        answer = await client.ask(wire(pack(text(data)), 1), path, [("grpc-encoding", encoding)])
        broken = await client.ask(wire(b"x" * count, 1), path, [("grpc-encoding", encoding)])
    assert answer.status == 0
    assert data in answer.body
    assert broken.status == Status.INVALID_ARGUMENT.value[0]
    assert "cannot be inflated" in broken.fields["grpc-message"]
    await front.intake.wait_idle()
    assert front.intake._held_bytes == 0


async def other(front: Any, limits: native_limits.Limits | None = None, **changes: Any) -> native.Server:
    """A second own front of the same engine, with other limits."""
    where = listen.Listen("127.0.0.1", 0, **changes)
    return native.Server(front.engine, front.intake, where, limits=limits)


async def test_messages_beyond_the_limits_are_refused(front: Any) -> None:
    limits = native_limits.Limits(message_bytes=1000, inflated_bytes=2000)
    made = await other(front, limits)
    port = await made.start()
    bomb = gzip.compress(bytes(10**6))[:-8]
    async with h2_client.connect(port) as client:
        large = await client.ask(wire(bytes(1001))[:100])
        bombed = await client.ask(wire(bomb[:1000], 1), more=[("grpc-encoding", "gzip")])
        streamed = await client.ask(wire(bomb[:1000], 1), h2_client.STREAM, [("grpc-encoding", "gzip")])
    assert [each.status for each in (large, bombed, streamed)] == [Status.RESOURCE_EXHAUSTED.value[0]] * 3
    assert front.intake._held_bytes == 0
    await made.stop(0)


async def test_answers_are_compressed_for_those_who_accept_it(front: Any) -> None:
    made = await other(front, compression=grpc.Compression.Gzip)
    port = await made.start()
    accepts = [("grpc-accept-encoding", "identity, gzip")]
    async with h2_client.connect(port, window=2**22) as client:
        for count in (1, 300000):
            data = bytes(count)
            answer = await client.ask(wire(text(data)), more=accepts)
            assert answer.fields["grpc-encoding"] == "gzip"
            assert said(answer) == data
            streamed = await client.ask(wire(text(data)), h2_client.STREAM, accepts)
            assert [flag for flag, _ in streamed.messages()] == [1]
        plain = await client.ask(wire(infer()))
        assert "grpc-encoding" not in plain.fields
        assert tensor(plain) == DATA
    await made.stop(0)


async def test_deadlines_are_kept_by_the_server(front: Any) -> None:
    async with h2_client.connect(front.grpc_port) as client:
        waiting = await client.ask(wire(infer("slow")), more=[("grpc-timeout", "1u")])
        stream = await client.open(h2_client.STREAM, [("grpc-timeout", "20m")])
        streaming = await client.answer(stream)
        unsent = await client.open(more=[("grpc-timeout", "20m")])
        unfinished = await client.answer(unsent)
    for answer in (waiting, streaming, unfinished):
        assert answer.status in (Status.DEADLINE_EXCEEDED.value[0], Status.UNAVAILABLE.value[0])
    await front.intake.wait_idle()
    assert front.grpc.front.deadlines._slots == {}
    assert front.intake._held_bytes == 0


async def test_inflating_counts_until_it_is_over_though_its_call_is(front: Any) -> None:
    packed = gzip.compress(text(letters(2**16)))
    free = threading.Event()
    threads = concurrent.futures.ThreadPoolExecutor(1)
    threads.submit(free.wait)
    front.grpc.front.turns.executor = threads
    try:
        async with h2_client.connect(front.grpc_port) as client:
            late = await client.ask(wire(packed, 1), more=[("grpc-encoding", "gzip"), ("grpc-timeout", "20m")])
            assert late.status == Status.DEADLINE_EXCEEDED.value[0]
            (connection,) = front.grpc.http2.connections
            assert connection.session._lingering == 1
            assert front.intake._held_bytes == len(packed)
            free.set()
            await looked(lambda: not connection.session._lingering)
            assert front.intake._held_bytes == 0
    finally:
        free.set()
        threads.shutdown()


async def test_a_client_with_much_to_inflate_does_not_keep_another_waiting(front: Any) -> None:
    packed = gzip.compress(text(bytes(2**25)))
    free = threading.Event()
    threads = concurrent.futures.ThreadPoolExecutor(1)
    threads.submit(free.wait)
    front.grpc.front.turns.executor = threads
    coding = [("grpc-encoding", "gzip")]
    try:
        async with h2_client.connect(front.grpc_port) as busy, h2_client.connect(front.grpc_port) as other:
            for _ in range(20):
                await busy.send(await busy.open(more=coding), wire(packed, 1), ended=True)
            connections = front.grpc.http2.connections
            await looked(lambda: front.intake._held_bytes == 20 * len(packed))
            (connection,) = (each for each in connections if each.session.streams)
            stream = await other.open(more=coding)
            await other.send(stream, wire(gzip.compress(text(letters(2**16))), 1), ended=True)
            await looked(lambda: front.intake._held_bytes > 20 * len(packed))
            free.set()
            assert (await other.answer(stream)).status == 0
            assert len(connection.session.streams) > 15
        # What nobody waits for any more is not inflated to its end.
        await looked(lambda: not front.intake._held_bytes)
    finally:
        free.set()
        threads.shutdown()


async def test_a_reset_cancels_and_frees_its_stream_only_when_the_work_is_over(front: Any) -> None:
    async with h2_client.connect(front.grpc_port) as client:
        stream = await client.open()
        await client.send(stream, wire(infer("slow")), ended=True)
        await looked(lambda: front.intake._in_flight)
        (connection,) = front.grpc.http2.connections
        client.http2.reset_stream(stream, codes.Code.CANCEL)
        await client.flush()
        await looked(lambda: not connection.session.streams)
        await front.intake.wait_idle()
        assert connection.session._lingering == 0
        half = await client.open()
        await client.send(half, wire(infer())[:20])
        await looked(lambda: front.intake._held_bytes)
        client.http2.reset_stream(half)
        await client.flush()
        await looked(lambda: not front.intake._held_bytes)
    assert front.grpc.front.gathering == {}


class Silent:
    """An engine that does not answer by itself."""

    def __init__(self) -> None:
        self.asked: list[border.InferRequest] = []

    def submit(self, requests: Sequence[border.InferRequest]) -> None:
        self.asked += requests


async def test_what_the_engine_has_of_a_call_stays_booked_though_its_client_has_gone(front: Any) -> None:
    engine = Silent()
    intake = front.grpc.front.intake = wire_intake.Intake(engine)  # type: ignore[arg-type]  # all that it asks of one
    message = wire(infer(data=bytes(2**16)))
    async with h2_client.connect(front.grpc_port) as client:
        (connection,) = front.grpc.http2.connections
        for count in (1, 2, 3):
            stream = await client.open()
            await client.send(stream, message, ended=True)
            await looked(lambda count=count: len(engine.asked) == count)
            client.http2.reset_stream(stream, codes.Code.CANCEL)
            await client.flush()
            await looked(lambda: not connection.session.streams)
            assert intake._held_bytes >= count * 2**16
        for asked in engine.asked:
            assert asked.cancelled
            asked.reply(border.InferenceError(border.ErrorKind.CANCELLED, "nobody waits"))
        assert connection.session._lingering == 0
    assert intake._held_bytes == 0
    await intake.wait_idle()


async def test_what_waits_to_be_inflated_of_a_stream_is_booked(front: Any) -> None:
    packed = gzip.compress(text(letters(2**18)))
    free = threading.Event()
    threads = concurrent.futures.ThreadPoolExecutor(1)
    threads.submit(free.wait)
    turns = front.grpc.front.turns
    turns.executor = threads
    coding = [("grpc-encoding", "gzip")]
    try:
        async with h2_client.connect(front.grpc_port) as client:
            whole, gone = await client.open(h2_client.STREAM, coding), await client.open(h2_client.STREAM, coding)
            await client.send(whole, wire(packed, 1), ended=True)
            await looked(lambda: turns._free == 1)
            await client.send(gone, wire(packed, 1))
            await looked(lambda: turns._free == 0)
            assert front.intake._held_bytes >= 2 * len(packed)
            client.http2.reset_stream(gone, codes.Code.CANCEL)
            await client.flush()
            await looked(lambda: front.intake._held_bytes < 2 * len(packed))
            free.set()
            assert len((await client.answer(whole)).messages()) == 1
        await front.intake.wait_idle()
        await looked(lambda: not front.intake._held_bytes)
    finally:
        free.set()
        threads.shutdown()


async def test_a_client_that_is_gone_takes_its_calls_with_it(front: Any) -> None:
    async with h2_client.connect(front.grpc_port) as client:
        for path in (h2_client.INFER, h2_client.STREAM):
            for _ in range(5):
                stream = await client.open(path)
                await client.send(stream, wire(infer("slow")), ended=path == h2_client.INFER)
        half = await client.open()
        await client.send(half, wire(infer())[:20])
        await looked(lambda: front.intake._in_flight == 10)
    await front.intake.wait_idle()
    await looked(lambda: not front.grpc.http2.connections)
    statistics = await _settled(front)
    assert statistics.failures["CANCELED"] > 0
    assert front.intake._held_bytes == 0


async def _settled(front: Any) -> border.ModelStatistics:
    while True:
        found: border.ModelStatistics = (await front.engine.statistics("slow", ""))[0]
        if found.success.count + found.failures["CANCELED"] == 10:
            return found
        await _tick()


async def test_a_message_that_does_not_come_is_not_waited_for(front: Any) -> None:
    async with h2_client.connect(front.grpc_port) as client:
        streams = [await client.open(path) for path in (h2_client.INFER, LIVE, h2_client.STREAM)]
        for stream in streams:
            await client.send(stream, wire(bytes(100))[:50])
        await looked(lambda: len(front.grpc.front.gathering) == 3)
        front.grpc.sweep(front.grpc.front.clock() + 59)
        assert len(front.grpc.front.gathering) == 3
        front.grpc.sweep(front.grpc.front.clock() + 61)
        for stream in streams:
            answer = await client.answer(stream)
            assert answer.status == Status.CANCELLED.value[0]
    assert front.intake._held_bytes == 0


async def test_a_stream_that_is_not_read_is_held_up_at_the_client(front: Any) -> None:
    """Neither its requests nor its answers pile up: each side waits for the other within its windows."""
    async with h2_client.connect(front.grpc_port, window=0) as client:
        stream = await client.open(h2_client.STREAM)
        message = wire(text(bytes(2**16)))
        sent = 0
        while (room := client.http2.local_flow_control_window(stream)) > len(message):
            await client.send(stream, message[: min(room, len(message))])
            sent += 1
            assert sent < 10**4
        (connection,) = front.grpc.http2.connections
        await looked(lambda: connection.session.sender.unsent_bytes)
        await front.intake.wait_idle()
        # One answer is over the bound, and no more was asked for than the window and what was taken.
        assert connection.session.sender.unsent_bytes < 3 * 2**16
        held = front.intake._held_bytes
        assert held <= connection.session.limits.stream_window_bytes
        client.http2.increment_flow_control_window(2**30, stream)
        client.http2.increment_flow_control_window(2**30)
        await client.flush()
        await client.send(stream, b"", ended=True)
        answer = await client.answer(stream)
        assert len(answer.messages()) == sent
    assert front.intake._held_bytes == 0


async def test_streams_that_are_held_up_leave_their_connection_to_the_others(front: Any) -> None:
    """Their answers are not read: each stops after its own window, not after that which they share."""
    first, small, large = (wire(text(bytes(size))) for size in (2**17, 1, 2**18))
    async with h2_client.connect(front.grpc_port, window=0) as client:
        (connection,) = front.grpc.http2.connections
        window = connection.session.limits.stream_window_bytes
        streams = []
        for _ in range(connection.session.limits.connection_window_bytes // window + 2):
            stream = await client.open(h2_client.STREAM)
            streams.append(stream)
            # The first answer holds the stream up, the next requests fill its places.
            await client.send(stream, first + small * 130)
            while (room := client.http2.local_flow_control_window(stream)) > len(large):
                await client.send(stream, large[: min(room, len(large))])
        other = await client.open()
        client.http2.increment_flow_control_window(2**24, other)
        await client.send(other, wire(text(bytes(2**22))), ended=True)
        client.http2.increment_flow_control_window(2**24)
        assert len(said(await client.answer(other))) == 2**22
        assert connection.session._unread_bytes > connection.session.limits.connection_window_bytes
        for stream in streams:
            client.http2.reset_stream(stream)
        await client.flush()
        await looked(lambda: not connection.session.streams)
    assert connection.session._unread_bytes == 0
    await front.intake.wait_idle()
    assert front.intake._held_bytes == 0


async def test_a_client_that_reads_nothing_is_cut_off(front: Any) -> None:
    big = bytes(2**22)
    async with h2_client.connect(front.grpc_port, window=2**30, small_buffers=True) as client:
        client.http2.increment_flow_control_window(2**30)
        streams = [await client.open() for _ in range(3)]
        for stream in streams:
            await client.send(stream, wire(text(big)), ended=True)
        (connection,) = front.grpc.http2.connections
        await looked(lambda: connection.session.sender.held)
        now_s = front.grpc.http2.clock()
        connection.sweep(now_s + 59)
        assert connection in front.grpc.http2.connections
        connection.sweep(now_s + 61)
        connection.sweep(now_s + 122)
        await looked(lambda: not front.grpc.http2.connections)
    await front.intake.wait_idle()


async def test_a_slow_reader_gets_all(front: Any) -> None:
    big = letters(2**22)
    async with h2_client.connect(front.grpc_port, window=2**30, small_buffers=True) as client:
        client.http2.increment_flow_control_window(2**30)
        stream = await client.open()
        await client.send(stream, wire(text(big)), ended=True)
        (connection,) = front.grpc.http2.connections
        await looked(lambda: connection.session.sender.held)
        now_s = front.grpc.http2.clock()
        for minutes in range(1, 4):
            await client.read()
            while connection._transport.get_write_buffer_size() >= connection._unsent_bytes:
                await client.read()
            connection._check_writing(now_s + 61 * minutes)
        assert said(await client.answer(stream)) == big


async def test_more_connections_than_the_limit_are_told_to_go(front: Any) -> None:
    made = await other(front)
    object.__setattr__(made.http2.limits, "connections", 1)
    port = await made.start()
    async with h2_client.connect(port) as first:
        assert (await first.ask(wire(b""), LIVE)).status == 0
        async with h2_client.connect(port) as second:
            await second.until_closed()
            assert [each.code for each in second.goodbyes] == [codes.Code.ENHANCE_YOUR_CALM]
        assert (await first.ask(wire(b""), LIVE)).status == 0
    await made.stop(0)


async def test_the_clients_of_a_leaving_model_are_told_to_go_once_served(front: Any) -> None:
    async with h2_client.connect(front.grpc_port) as going, h2_client.connect(front.grpc_port) as staying:
        assert (await going.ask(wire(infer("ident")))).status == 0
        assert (await staying.ask(wire(infer("slow")))).status == 0
        await front.engine.leave("ident")
        assert (await going.ask(wire(infer("ident")))).status == 0
        await going.until_closed()
        assert [(each.last, each.code) for each in going.goodbyes] == [(2**31 - 1, 0), (3, 0)]
        assert (await staying.ask(wire(infer("slow")))).status == 0
        assert staying.goodbyes == []


async def test_idle_clients_of_a_leaving_model_hear_of_it_too(front: Any) -> None:
    async with h2_client.connect(front.grpc_port) as client:
        assert (await client.ask(wire(infer("ident")))).status == 0
        await front.engine.leave("ident")
        await client.until_closed()
        assert len(client.goodbyes) == 2


async def test_a_stop_serves_what_came_before_the_client_knew(front: Any) -> None:
    async with h2_client.connect(front.grpc_port) as client:
        before = await client.open()
        await client.send(before, wire(infer("slow")), ended=True)
        await looked(lambda: front.intake._in_flight)
        stopping = asyncio.ensure_future(front.grpc.stop(WIDE_S))
        between = await client.open()
        await client.send(between, wire(infer("ident")), ended=True)
        for stream in (before, between):
            assert (await client.answer(stream)).status == 0
        await client.until_closed()
        await stopping


async def test_what_is_not_http2_is_turned_away(front: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.grpc_port)
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    async with asyncio.timeout(WIDE_S):
        assert b"the preface is wrong" in await reader.read()
    writer.close()


async def test_many_calls_at_once_on_many_connections_are_all_answered(front: Any) -> None:
    async def load(port: int) -> None:
        async with h2_client.connect(port, window=2**20) as client:
            streams = []
            for index in range(100):
                stream = await client.open(more=[("x-request-id", str(index))])
                await client.send(stream, wire(infer(identifier=str(index))), ended=True)
                streams.append(stream)
            for index, stream in enumerate(streams):
                ((_, message),) = (await client.answer(stream)).messages()
                assert predict_pb2.ModelInferResponse.FromString(message).id == str(index)

    await asyncio.gather(*(load(front.grpc_port) for _ in range(5)))
    assert front.intake._held_bytes == 0
