"""The pure parts of the own gRPC front: heads, statuses, the assembling of messages, deadlines, flags to limits."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import math
import urllib.parse
from collections.abc import Generator
from typing import Any

import grpc
import hpack as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engine import border
from gpu_worker.grpc import calls
from gpu_worker.grpc.native import assembling, deadlines, heads, server, statuses, turns
from gpu_worker.grpc.native import limits as native_limits
from gpu_worker.http2 import frames, headers
from gpu_worker.http2 import limits as http2_limits
from gpu_worker.wire import intake as wire_intake

METHOD = calls.Unary(server.INFER.request, server.INFER.handle)
PATH = (b":path", b"/s/m")
PSEUDO = ((b":method", b"POST"), (b":scheme", b"http"), PATH)
TYPE = (b"content-type", b"application/grpc")


def view(*fields: tuple[bytes, bytes], kind: tuple[bytes, bytes] = TYPE) -> heads.View:
    head = headers.request((*PSEUDO, *((kind,) if kind[1] else ()), *fields))
    return heads.Views({b"/s/m": METHOD}).view(head)


def shown(block: frames.Block | None) -> dict[str, str]:
    assert block is not None
    return {str(name): str(value) for name, value in oracle.Decoder().decode(block.body)}


def refused(found: heads.View) -> str:
    """The HTTP status that a request gets which is no call."""
    assert found.refusal is not None
    assert found.failure is None
    return shown(found.refusal.head)[":status"]


# -- heads


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"99999999m", 99999.999), (b"5u", 5e-6), (b"0n", 0), (b"7n", 7e-9)],
)
def test_timeouts_are_read(text: bytes, seconds: float) -> None:
    assert view((b"grpc-timeout", text)).timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"1", b"S", b"-1S", b"1.5S", b"123456789S", b"1s", b"1S1S", b"1 S", b"\xb2S"])
def test_malformed_timeouts_are_told(text: bytes) -> None:
    told = shown(view((b"grpc-timeout", text)).failure)
    assert told["grpc-status"] == str(grpc.StatusCode.INVALID_ARGUMENT.value[0])
    assert "grpc-timeout" in told["grpc-message"]


@pytest.mark.parametrize(
    "kind", [b"application/grpc", b"application/grpc+proto", b"application/grpc;x=y", b"Application/gRPC"]
)
def test_content_types_of_grpc_are_taken(kind: bytes) -> None:
    assert view(kind=(b"content-type", kind)).failure is None


@pytest.mark.parametrize("kind", [b"", b"application/json", b"application/grpcx", b"application/grpc-web"])
def test_other_content_types_are_unsupported_media(kind: bytes) -> None:
    assert refused(view(kind=(b"content-type", kind))) == "415"


def test_only_posts_to_known_methods_are_calls() -> None:
    views = heads.Views({b"/s/m": METHOD})
    get = headers.request(((b":method", b"GET"), *PSEUDO[1:], TYPE))
    assert refused(views.view(get)) == "405"
    other = headers.request((*PSEUDO[:2], (b":path", b"/s/\xff"), TYPE))
    told = shown(views.view(other).failure)
    assert (told["grpc-status"], told["grpc-message"]) == ("12", "Method not found: /s/%C3%BF")


def test_unknown_encodings_are_told_with_the_known_ones() -> None:
    told = shown(view((b"grpc-encoding", b"snappy")).failure)
    assert told["grpc-status"] == "12"
    assert told["grpc-accept-encoding"] == "identity, deflate, gzip"
    assert view((b"grpc-encoding", b"gzip")).encoding == "gzip"


@pytest.mark.parametrize(
    ("accepted", "expected"), [(b"identity,gzip", True), (b"deflate, gzip", True), (b"gzipx", False)]
)
def test_what_a_client_accepts_is_read(accepted: bytes, *, expected: bool) -> None:
    assert view((b"grpc-accept-encoding", accepted)).accepts_gzip is expected


@given(st.binary(max_size=30))
def test_binary_metadata_is_decoded_padded_or_not(value: bytes) -> None:
    text = base64.b64encode(value)
    for form in (text, text.rstrip(b"=")):
        assert view((b"x-bin", form)).metadata() == (("x-bin", value),)


def test_metadata_is_what_is_not_grpcs_own_in_order() -> None:
    fields = (
        (b"te", b"trailers"), (b"a", b"1"), (b"grpc-timeout", b"1S"), (b"a", b"2"), (b"user-agent", b"me"),
        (b"b-bin", b"AQ,Ag=="), (b"c-bin", b"*"), (b"grpc-encoding", b"gzip"), (b"d", b"\xff"),
    )  # fmt: skip
    assert view(*fields).metadata() == (
        ("a", "1"), ("a", "2"), ("user-agent", "me"), ("b-bin", b"\x01,\x02"), ("c-bin", b"*"), ("d", "\ufffd"),
    )  # fmt: skip


@pytest.mark.parametrize(
    "base", [(), ((b"grpc-timeout", b"5S"),), ((b"grpc-encoding", b"gzip"),), ((b"te", b"trailers"),)]
)
@pytest.mark.parametrize(
    "more",
    [
        ((b"a", b"1"),),
        ((b"grpc-timeout", b"2S"), (b"a-bin", b"AQ==")),
        ((b"grpc-timeout", b"never"),),
        ((b"content-type", b"application/grpc"),),
        ((b"grpc-accept-encoding", b"gzip"),),
    ],
)
def test_a_view_of_more_fields_is_as_if_it_were_the_first(
    base: tuple[tuple[bytes, bytes], ...], more: tuple[tuple[bytes, bytes], ...]
) -> None:
    views = heads.Views({b"/s/m": METHOD})
    fields = (*PSEUDO, TYPE, *base)
    found = views.view_like(views.view(headers.request(fields)), (*fields, *more), len(fields))
    expected = views.view(headers.request((*fields, *more)))
    if more[0][0] in (b"content-type", b"grpc-accept-encoding"):
        assert found is None
        return
    assert found is not None
    assert found.metadata() == expected.metadata()
    assert (found.timeout_s, found.encoding, found.method) == (expected.timeout_s, expected.encoding, expected.method)
    assert (found.failure is None) == (expected.failure is None)


def test_what_is_remembered_of_heads_is_bounded() -> None:
    views = heads.Views({})
    for index in range(1000):
        views.view(headers.request((*PSEUDO[:2], (b":path", b"/%d" % index), TYPE)))
    views.view(headers.request((*PSEUDO[:2], (b":path", b"/" + b"x" * 5000), TYPE)))
    assert len(views._kinds) <= 256
    assert all(len(own.path) < 1024 for own in views._kinds)


# -- statuses


@given(st.text(max_size=200))
def test_messages_come_back_as_they_were(message: str) -> None:
    message = message.encode("utf-8", "replace").decode()
    encoded = statuses.percent_encoded(message).decode("ascii")
    assert all(" " <= letter <= "~" for letter in encoded)
    assert urllib.parse.unquote(encoded) == message.strip()
    told = shown(statuses.trailers(grpc.StatusCode.INTERNAL, message))
    assert told["grpc-status"] == "13"


def test_long_messages_are_cut_between_letters() -> None:
    for start in range(4):
        encoded = statuses.percent_encoded("x" * start + "\u20ac" * 3000)
        assert len(encoded) <= 6000
        assert len(encoded) > 5980
        urllib.parse.unquote(encoded.decode(), errors="replace")
        assert encoded[encoded.rfind(b"%") :][:3] == encoded[-3:]


def test_an_answer_without_messages_has_one_block() -> None:
    block = statuses.only_trailers(grpc.StatusCode.NOT_FOUND, "50% of a\n\u00e4")
    assert block.last
    assert shown(block) == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "5",
        "grpc-message": "50%25 of a%0A%C3%A4",
    }


# -- messages


class Engine:
    """Bounds need no engine."""

    def submit(self, requests: object) -> None:
        raise AssertionError(requests)


def intake(body_bytes: int = 2**30) -> wire_intake.Intake:
    return wire_intake.Intake(Engine(), wire_intake.Bounds(body_bytes=body_bytes))  # type: ignore[arg-type]  # see there


def wire(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4) + message


messages = st.lists(st.tuples(st.binary(max_size=40) | st.just(bytes(3000)), st.integers(0, 1)), max_size=5)


@given(messages, st.lists(st.integers(1, 2000), max_size=20))
async def test_messages_are_found_however_they_are_cut(
    given_messages: list[tuple[bytes, int]], cuts: list[int]
) -> None:
    data = b"".join(wire(*each) for each in given_messages)
    bounds = intake()
    made = assembling.Assembler(bounds, 10**6)
    found: list[tuple[bool, bytes]] = []
    while data:
        size = cuts.pop() if cuts else len(data)
        found += [(flag, bytes(message)) for flag, message in made.add(memoryview(data)[:size])]
        data = data[size:]
        assert bounds._held_bytes < 3000 + assembling.PREFIX_BYTES
    assert found == [(bool(flag), message) for message, flag in given_messages]
    assert not made.incomplete
    made.close()
    assert bounds._held_bytes == 0


async def test_what_is_kept_of_a_message_is_booked() -> None:
    bounds = intake(100)
    made = assembling.Assembler(bounds, 10**6)
    made.add(wire(bytes(200))[:90])
    assert made.incomplete
    assert bounds._held_bytes == 90
    with pytest.raises(border.InferenceError) as caught:
        made.add(bytes(11))
    assert caught.value.message == wire_intake.FULL
    made.close()
    assert bounds._held_bytes == 0


async def test_a_message_in_tiny_pieces_is_kept_in_one() -> None:
    made = assembling.Assembler(intake(), 10**6)
    made.add(wire(bytes(5000))[:5])
    for _ in range(4999):
        assert made.add(b"x") == []
    assert len(made._parts) == 1
    assert made.add(b"y") == [(False, b"x" * 4999 + b"y")]


async def test_pieces_in_the_midst_of_a_message_need_no_closer_look() -> None:
    bounds = intake(2**20)
    made = assembling.Assembler(bounds, 2**21)
    assert not made.grew(bytes(2**14))
    data = wire(bytes(range(256)) * 2**12)
    assert made.add(data[:5000]) == []
    assert made.grew(data[5000:20000])
    assert bounds._held_bytes == 20000
    # Neither what is small, nor what is the last, nor what there is no room for.
    assert not made.grew(data[20000:20500])
    assert not made.grew(data[20000:])
    assert bounds.hold(2**20 - 30000)
    assert not made.grew(data[20000:40000])
    bounds.let_go(2**20 - 30000)
    ((_, message),) = made.add(data[20000:])
    assert message == data[5:]


async def test_bad_prefixes_are_refused() -> None:
    with pytest.raises(border.InferenceError, match="compressed flag"):
        assembling.Assembler(intake(), 10).add(b"\x02\0\0\0\0")
    with pytest.raises(assembling.TooLarge, match="larger than max"):
        assembling.Assembler(intake(), 10).add(b"\0\0\0\0\x0b")


# -- deadlines


class Call:
    def __init__(self) -> None:
        self.expired = asyncio.Event()

    def expire(self) -> None:
        self.expired.set()


async def test_calls_expire_at_their_deadline_and_not_before() -> None:
    loop = asyncio.get_running_loop()
    made = deadlines.Deadlines(loop.time)
    late, soon, gone = Call(), Call(), Call()
    made.add(late, loop.time() + 1000)
    until_s = loop.time() + 0.01
    made.add(soon, until_s)
    made.remove(gone, made.add(gone, until_s))
    async with asyncio.timeout(60):
        await soon.expired.wait()
    assert loop.time() >= until_s
    assert not late.expired.is_set()
    assert not gone.expired.is_set()
    past = Call()
    made.add(past, 0.0)
    async with asyncio.timeout(60):
        await past.expired.wait()
    made.close()
    assert made._slots == {}


# -- turns


class Threads(concurrent.futures.Executor):
    """Runs each step at once, in the event loop."""

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            done.set_result(work(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - as an executor does
            done.set_exception(error)
        return done


def steps(log: list[str], name: str, count: int, grows: int = 0) -> Generator[int, None, str]:
    for _ in range(count):
        log.append(name)
        yield grows
    return name


def busy(bounds: wire_intake.Intake) -> turns.Turns:
    """One thread's worth."""
    made = turns.Turns(bounds)
    made.executor = Threads()
    made._free = 1
    return made


async def test_connections_take_turns_step_by_step() -> None:
    made = busy(intake())
    log: list[str] = []
    work = [made.begin("a", steps(log, f"a{index}", 3)) for index in range(2)]
    work.append(made.begin("b", steps(log, "b", 4)))
    assert [await each.done for each in work] == ["a0", "a1", "b"]
    between = " ".join(log).split("b")
    # "a" began when nobody else was there, and its next turn came before that of "b".
    assert between[0] == "a0 a0 "
    assert all(len(each.split()) <= 1 for each in between[1:-1])
    assert made._queues == {}
    made.close()


async def test_what_work_holds_is_booked_until_it_is_over() -> None:
    bounds = intake(100)
    made = busy(bounds)
    log: list[str] = []
    few, many = made.begin("a", steps(log, "few", 3, 20)), made.begin("b", steps(log, "many", 30, 20))
    with pytest.raises(border.InferenceError, match="holds too many bytes"):
        await many.done
    assert await few.done == "few"
    assert len(log) < 10
    assert bounds._held_bytes == 0
    made.close()


@pytest.mark.parametrize("how", ["drop", "cancel", "close"])
async def test_work_that_nobody_waits_for_stops(how: str) -> None:
    bounds = intake()
    made = busy(bounds)
    log: list[str] = []
    work = [made.begin("a", steps(log, "a", 10**9, 1)), made.begin("a", steps(log, "b", 10**9, 1))]
    while len(log) < 5:
        await one_turn()
    for each in work:
        if how == "drop":
            each.drop()
        elif how == "cancel":
            each.done.cancel()
        else:
            made.close()
    await asyncio.wait([each.done for each in work])
    assert all(each.done.cancelled() for each in work)
    async with asyncio.timeout(60):
        while bounds._held_bytes:
            await one_turn()
    made.close()


async def one_turn() -> None:
    """Of the event loop."""
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(done.set_result, None)
    await done


class Moment(float):
    """A time that counts how often slots are compared with it."""

    looked = 0

    def __truediv__(self, other: float) -> Moment:
        return Moment(float(self) / other)

    def __ge__(self, other: float) -> bool:
        Moment.looked += 1
        return float(self) >= other


async def test_an_expiry_looks_at_no_deadline_that_has_not_come() -> None:
    now_s = 100.0
    made = deadlines.Deadlines(lambda: Moment(now_s))
    far = [(call, made.add(call, 1000.0 + index)) for index, call in enumerate([Call() for _ in range(1000)])]
    due = Call()
    made.add(due, 100.0)
    now_s = 100.1
    Moment.looked = 0
    async with asyncio.timeout(60):
        await due.expired.wait()
    assert Moment.looked < 5
    for call, slot in far:
        made.remove(call, slot)
    assert made._slots == {}
    made.close()


async def test_what_is_left_of_deadlines_that_did_not_pass_is_bounded() -> None:
    made = deadlines.Deadlines(asyncio.get_running_loop().time)
    lasting = Call()
    made.add(lasting, 2e9)
    for index in range(10000):
        call = Call()
        made.remove(call, made.add(call, 1e9 + index))
        assert len(made._order) < 100
    assert len(made._slots) == 1
    made.close()


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=60), st.lists(st.integers(0, 60), max_size=8))
async def test_whatever_is_added_and_removed_only_what_is_due_expires(
    plan: list[tuple[int, bool]], looks: list[int]
) -> None:
    now_s = 0.0
    made = deadlines.Deadlines(lambda: now_s)
    pending: dict[Call, float] = {}
    for at, (deadline, stays) in enumerate(plan):
        call = Call()
        slot = made.add(call, deadline / 100)
        if stays:
            pending[call] = deadline / 100
        else:
            made.remove(call, slot)
        if at % 7 == 0 and looks:
            now_s = max(now_s, looks.pop() / 100)
            made._expire()
    now_s = max(now_s, 0.2)
    made._expire()
    for call, deadline_s in pending.items():
        assert call.expired.is_set() == (deadline_s < now_s - 0.01) or abs(deadline_s - now_s) <= 0.011
    assert all(made._slots.values())
    assert set(made._slots) <= set(made._order)
    made.close()


# -- limits


def test_channel_arguments_become_limits() -> None:
    found = server.limits_of({
        "grpc.keepalive_time_ms": 5000,
        "grpc.keepalive_timeout_ms": 700,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.http2.min_ping_interval_without_data_ms": 10,
        "grpc.http2.max_ping_strikes": 9,
        "grpc.max_connection_age_ms": 100,
        "grpc.max_connection_age_grace_ms": 200,
    })  # fmt: skip
    assert found == http2_limits.Limits(
        keepalive_time_s=5, keepalive_timeout_s=0.7, keepalive_without_calls=True, keepalive_pings=0,
        ping_interval_s=0.01, ping_strikes=9, age_s=0.1, age_grace_s=0.2,
    )  # fmt: skip
    assert server.limits_of({}) == http2_limits.Limits()
    never = server.limits_of({"grpc.keepalive_time_ms": 2**31 - 1, "grpc.max_connection_age_ms": 2**31 - 1})
    assert (never.keepalive_time_s, never.age_s) == (math.inf, 0)


def test_every_limit_of_calls_is_explained() -> None:
    for field in native_limits.Limits.__dataclass_fields__.values():
        assert field.metadata["words"]
