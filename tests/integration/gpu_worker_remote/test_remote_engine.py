"""The border through shared memory: a real engine on one end, what a front process holds on the other."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from gpu_worker import core, logs
from gpu_worker.engine import border
from gpu_worker.ipc import link, memory
from gpu_worker.remote import client, messages, server
from tests.support import engine_client, onnx_models, shared_objects

SIZES = memory.Sizes(ring_bytes=2**16, handles=4096, arena_bytes=2**24)
ONE = """
max_batch_size: 0
input [{name: "INPUT" data_type: TYPE_FP32 dims: [-1, 4]}]
output [{name: "OUTPUT" data_type: TYPE_FP32 dims: [-1, 4]}]
instance_group [{count: 1 kind: KIND_CPU}]
"""
WIDE_S = 60.0


class Wire:
    """Both directions between an engine and a front, in one process."""

    def __init__(self, sizes: memory.Sizes) -> None:
        self.bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
        descriptors = [memory.create("tms-test", sizes) for _ in range(2)]
        up, down = ([memory.Area(each, sizes) for _ in range(2)] for each in descriptors)
        self.front = link.Sender(up[0], self.bells[0]), link.Receiver(down[0], self.bells[1])
        self.engine = link.Sender(down[1], self.bells[1]), link.Receiver(up[1], self.bells[0])
        for each in descriptors:
            os.close(each)

    def close(self) -> None:
        for bell in self.bells:
            os.close(bell)


class Pair:
    """An engine and its client across the wire."""

    def __init__(self, engine: core.Core, sizes: memory.Sizes = SIZES) -> None:
        self.engine = engine
        self.wire = Wire(sizes)
        self.given_up: list[str] = []
        self.broken: list[str] = []
        self.served = server.Front(engine, engine.departures, *self.wire.engine, self.given_up.append)
        self.remote = client.RemoteEngine(*self.wire.front, self.broken.append)
        self.asking = engine_client.Client(self.remote)  # type: ignore[arg-type]  # it asks what the border has

    def close(self) -> None:
        self.remote.close()
        self.served.close()
        self.wire.close()


@pytest.fixture
async def pair(tmp_path: pathlib.Path) -> AsyncIterator[Pair]:
    models = tmp_path / "models"
    onnx_models.put(models, "ident", onnx_models.identity())
    onnx_models.put(models, "text", onnx_models.identity("BYTES"))
    onnx_models.put(models, "slow", onnx_models.slow(), config=ONE)
    onnx_models.put(models, "wide", onnx_models.identity(), config=ONE)
    async with engine_client.running(models, control=engine_client.EXPLICIT) as asking:
        for name in ("ident", "text", "slow", "wide"):
            await asking.engine.load(name, {})
        found = Pair(asking.engine)
        yield found
        found.close()


def methods() -> list[str]:
    return [name for name, found in vars(border.Engine).items() if inspect.isfunction(found) and name[0] != "_"]


@pytest.mark.parametrize("name", methods())
def test_the_remote_engine_has_every_method_of_the_border(name: str) -> None:
    assert name in vars(client.RemoteEngine), f"add one line to RemoteEngine: {name} = _called(border.Engine.{name})"
    own, other = getattr(client.RemoteEngine, name), getattr(border.Engine, name)
    assert inspect.iscoroutinefunction(own) == inspect.iscoroutinefunction(other)
    assert list(inspect.signature(own).parameters) == list(inspect.signature(other).parameters)


def test_the_engine_answers_what_the_border_awaits_and_nothing_else() -> None:
    awaited = {name for name in methods() if inspect.iscoroutinefunction(getattr(border.Engine, name))}
    assert awaited == server.CALLS
    assert set(methods()) - awaited == {"submit", "leaving"}


async def test_lookups_are_as_the_engine_has_them(pair: Pair) -> None:
    remote, engine = pair.remote, pair.engine
    assert (await remote.live(), await remote.ready()) == (True, True)
    assert await remote.server_metadata() == await engine.server_metadata()
    assert await remote.model_metadata("ident", "") == await engine.model_metadata("ident", "")
    assert await remote.model_config("ident", "1") == await engine.model_config("ident", "1")
    assert await remote.statistics("", "") == await engine.statistics("", "")
    assert await remote.index(ready=True) == await engine.index(ready=True)
    with pytest.raises(border.InferenceError, match=r"^Request for unknown model: 'nope' is not found$") as refused:
        await remote.model_metadata("nope", "")
    assert refused.value.kind is border.ErrorKind.NOT_FOUND


async def test_inferences_of_every_size_are_answered_rightly(pair: Pair) -> None:
    rng = np.random.default_rng(7)
    batches = [rng.random((4, 4), np.float32) for _ in range(200)]
    answers = await pair.asking.ask_all([pair.asking.prepare("ident", batch) for batch in batches])
    for batch, answer in zip(batches, answers, strict=True):
        assert (engine_client.array(answer) == batch).all()
    words = np.array([["x" * 100_000, "", "é", "y" * 17_000]], object)
    answer = await pair.asking.ask("text", words, datatype="BYTES")
    assert engine_client.array(answer).tolist() == words.tolist()
    large = rng.random((50_000, 4), np.float32)
    assert (engine_client.array(await pair.asking.ask("wide", large)) == large).all()


async def test_errors_cross_with_their_kind(pair: Pair) -> None:
    refused = engine_client.refusal(await pair.asking.ask("nope", np.ones((1, 4))))
    assert (refused.kind, refused.message) == (
        border.ErrorKind.NOT_FOUND,
        "Request for unknown model: 'nope' is not found",
    )
    refused = engine_client.refusal(await pair.asking.ask("ident", np.ones((9, 4))))
    assert refused.kind is border.ErrorKind.INVALID_ARGUMENT


async def test_departures_are_known_without_asking(pair: Pair) -> None:
    assert not pair.remote.leaving("ident")
    await pair.remote.unload("ident", unload_dependents=False)
    assert pair.remote.leaving("ident"), "known before the call is answered"
    await pair.remote.load("ident", {})
    assert not pair.remote.leaving("ident")
    late = Pair(pair.engine)
    await pair.remote.leave("text")
    await late.remote.live()
    assert (late.remote.leaving("text"), late.remote.leaving("ident")) == (True, False)
    await pair.remote.leave("")
    assert pair.remote.leaving("ident")
    late.close()


async def test_a_cancelled_request_does_not_run(pair: Pair) -> None:
    gone = [pair.asking.prepare("slow", np.ones((1, 4))) for _ in range(4)]
    answers = asyncio.ensure_future(pair.asking.ask_all(gone))
    await pair.remote.live()
    for request, _ in gone[1:]:
        request.cancel()
    kinds = [getattr(answer, "kind", None) for answer in await answers]
    assert kinds == [None, *[border.ErrorKind.CANCELLED] * 3]
    (counted,) = await pair.remote.statistics("slow", "")
    assert (counted.success.count, counted.failures["CANCELED"]) == (1, 3)


async def test_more_than_the_link_holds_is_refused_and_the_rest_answered(pair: Pair) -> None:
    big = np.ones((2**16, 4), np.float32)
    answers = await pair.asking.ask_all([pair.asking.prepare("wide", big) for _ in range(40)])
    refused = [answer for answer in answers if isinstance(answer, border.InferenceError)]
    assert 0 < len(refused) < 40
    assert {(error.kind, error.message) for error in refused} == {(border.ErrorKind.UNAVAILABLE, client.FULL)}
    assert (engine_client.array(await pair.asking.ask("wide", big)) == big).all(), "room came back"


async def test_what_can_never_be_sent_is_an_error_of_the_request(pair: Pair) -> None:
    answer = await pair.asking.ask("wide", np.ones((2**20, 4), np.float32))
    assert engine_client.refusal(answer).kind is border.ErrorKind.INVALID_ARGUMENT
    assert "more than can be sent" in engine_client.refusal(answer).message


async def test_a_front_that_takes_no_answers_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.Bounds, "answers", 8)
    silent = Wire(SIZES)
    given_up = asyncio.Event()
    front = server.Front(pair.engine, pair.engine.departures, *silent.engine, lambda _reason: given_up.set())
    sender, _ = silent.front
    async with asyncio.timeout(WIDE_S):
        while not given_up.is_set():
            sender.send(messages.call(1, "server_metadata", (), {}))
            sender.publish()
            await pair.remote.live()
    assert front.in_flight == 0
    assert await pair.remote.ready(), "the others are served"
    silent.close()


async def test_a_front_that_makes_no_sense_is_given_up(pair: Pair) -> None:
    other = Wire(SIZES)
    given_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server.Front(pair.engine, pair.engine.departures, *other.engine, given_up.set_result)
    sender, _ = other.front
    sender.send(link.Message(messages.Kind.REQUEST, 1, b"nonsense"))
    sender.publish()
    async with asyncio.timeout(WIDE_S):
        assert await given_up
    assert await pair.remote.ready()
    other.close()


async def test_only_the_border_can_be_called(pair: Pair) -> None:
    for name in ("close", "start", "drain", "submit", "__init__", "_require_control"):
        with pytest.raises(border.InferenceError, match="the engine has no call") as refused:
            await pair.remote.call(name, (), {})
        assert refused.value.kind is border.ErrorKind.UNSUPPORTED


async def test_a_front_that_goes_takes_its_requests_along(pair: Pair) -> None:
    other = Pair(pair.engine)
    waiting = [other.asking.prepare("slow", np.ones((1, 4))) for _ in range(5)]
    answers = asyncio.ensure_future(other.asking.ask_all(waiting))
    await other.remote.live()
    assert other.served.in_flight >= 5
    other.served.close()
    answers.cancel()
    await pair.asking.until(lambda: _nothing_in_flight(pair.remote))
    (counted,) = await pair.remote.statistics("slow", "")
    assert counted.failures["CANCELED"] >= 3
    other.close()


async def _nothing_in_flight(engine: border.Engine) -> bool:
    return (await engine.statistics("slow", ""))[0].in_flight == 0


async def test_an_engine_that_goes_is_told_to_all_that_wait(pair: Pair) -> None:
    answers = asyncio.ensure_future(pair.asking.ask_all([pair.asking.prepare("slow", np.ones((1, 4)))]))
    call = asyncio.ensure_future(pair.remote.live())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    pair.remote.lost()
    (answer,) = await answers
    assert engine_client.refusal(answer).kind is border.ErrorKind.UNAVAILABLE
    with pytest.raises(border.InferenceError, match="engine of this server has ended"):
        await call
    with pytest.raises(border.InferenceError, match="engine of this server has ended"):
        await pair.remote.ready()
    late = engine_client.refusal(await pair.asking.ask("ident", np.ones((1, 4))))
    assert late.kind is border.ErrorKind.UNAVAILABLE


async def test_nothing_is_kept_of_what_was_answered(pair: Pair) -> None:
    await pair.asking.ask_all([pair.asking.prepare("wide", np.ones((5000, 4))) for _ in range(20)])
    sender, receiver = pair.wire.front
    await pair.asking.until(lambda: (sender.lent_bytes, receiver.borrowed, pair.served.in_flight) == (0, 0, 0))
    assert not pair.remote._requests


async def test_results_of_any_kind_of_call_are_plain(pair: Pair) -> None:
    """Every call of the border that needs no argument crosses."""
    for name in sorted(server.CALLS):
        parameters: Any = list(inspect.signature(getattr(border.Engine, name)).parameters.values())[1:]
        if all(parameter.default is not inspect.Parameter.empty for parameter in parameters):
            assert await pair.remote.call(name, (), {}) == await getattr(pair.engine, name)()


async def test_fronts_follow_the_settings_of_the_engines_log(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(logs, "follow", heard.append)
    try:
        await pair.remote.log_settings({"log_verbose_level": 3})
        await pair.asking.until(lambda: any(each["log_verbose_level"] == 3 for each in heard))
    finally:
        await pair.remote.log_settings({"log_verbose_level": 0})


async def test_tensors_in_shared_memory_are_the_engines_to_read_and_write(pair: Pair) -> None:
    row = np.array([[1, 2, 3, 4]], np.float32)
    with shared_objects.made(32) as path:
        path.write_bytes(row.tobytes() + bytes(16))
        await pair.remote.register_system_region(border.SystemRegion("r", shared_objects.key(path), 0, 32))
        output = border.RequestedOutput("OUTPUT", region=border.Region("r", 16, 16))
        request, answered = pair.asking.prepare("ident", row, outputs=[output])
        request.inputs[0].data, request.inputs[0].region = b"", border.Region("r", 0, 16)
        (answer,) = await pair.asking.ask_all([(request, answered)])
        assert isinstance(answer, border.InferResponse)
        assert answer.outputs[0].region == output.region
        assert path.read_bytes() == row.tobytes() * 2
        assert await pair.remote.system_regions("") == await pair.engine.system_regions("")
