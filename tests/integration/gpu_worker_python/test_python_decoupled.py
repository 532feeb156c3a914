"""Models of many responses, responses after `execute`, cancellation, and what models ask of other models."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import numpy as np
import pytest

from gpu_worker.engine import border
from tests.support import engine_client as client
from tests.support import python_models as models

pytestmark = pytest.mark.slow  # each model is a process that imports numpy

DECOUPLED = "model_transaction_policy { decoupled: true }"
COUNT = """
def execute(self, requests):
    for each in requests:
        threading.Thread(target=self.answer, args=(each,)).start()

def answer(self, request):
    sender = request.get_response_sender()
    for value in range(int(array(request)[0, 0])):
        sender.send(response(np.array([[value]], np.float32)))
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


class Listening:
    """All that one request is told."""

    def __init__(self) -> None:
        self.told: list[client.Answer] = []
        self.over = asyncio.Event()
        self.some = asyncio.Event()

    def __call__(self, answer: client.Answer, *, final: bool = True) -> None:
        assert not self.over.is_set()
        self.told.append(answer)
        self.some.set()
        if final:
            self.over.set()

    async def all(self) -> list[client.Answer]:
        async with asyncio.timeout(client.WIDE_S):
            await self.over.wait()
        return self.told

    async def values(self) -> list[float]:
        """Of the responses that hold something."""
        answers = [each for each in await self.all() if isinstance(each, border.InferenceError) or each.outputs]
        return [float(client.array(each)[0, 0]) for each in answers]


def ask(asking: client.Client, model: str, value: Any) -> tuple[border.InferRequest, Listening]:
    request, _ = asking.prepare(model, [[value]])
    request.reply = listening = Listening()
    asking.engine.submit([request])
    return request, listening


async def test_many_or_no_responses_after_execute_returned(repository: pathlib.Path) -> None:
    models.put(repository, "count", COUNT, models.config(more=DECOUPLED))
    async with client.running(repository) as asking:
        asked = [ask(asking, "count", count)[1] for count in (3, 0, 1, 200)]
        assert [await each.values() for each in asked] == [list(range(count)) for count in (3, 0, 1, 200)]
        # The last responses may come before `execute` has returned.
        await asking.until(lambda: _counted(asking, "count", 4))


async def test_the_last_response_may_hold_something(repository: pathlib.Path) -> None:
    code = """
    def execute(self, requests):
        for each in requests:
            each.get_response_sender().send(response(array(each)), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    """
    models.put(repository, "one", code, models.config(more=DECOUPLED))
    async with client.running(repository) as asking:
        (told,) = await ask(asking, "one", 5)[1].all()
        assert client.array(told).tolist() == [[5]]


async def test_a_sender_may_answer_where_one_response_is_wanted(repository: pathlib.Path) -> None:
    code = """
    def execute(self, requests):
        for each in requests:
            threading.Thread(target=self.answer, args=(each,)).start()
        return [None for _ in requests]

    def answer(self, request):
        sender = request.get_response_sender()
        sender.send(response(array(request)), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        try:
            sender.send(response(array(request)))
        except pb_utils.TritonModelException:
            pass
    """
    models.put(repository, "late", code)
    async with client.running(repository) as asking:
        assert client.array(await asking.ask("late", [[6]])).tolist() == [[6]]


async def test_what_a_decoupled_model_returns_is_refused(repository: pathlib.Path) -> None:
    models.put(repository, "wrong", models.ECHO, models.config(more=DECOUPLED))
    async with client.running(repository) as asking:
        (told,) = await ask(asking, "wrong", 5)[1].all()
        assert "is using the decoupled mode and the execute function must return None." in client.refusal(told).message


async def test_a_crash_ends_streams(repository: pathlib.Path) -> None:
    code = """
    def execute(self, requests):
        for each in requests:
            each.get_response_sender().send(response(array(each)))
        threading.Timer(0.05, os._exit, [9]).start()
    """
    models.put(repository, "dies", code, models.config(more=DECOUPLED))
    async with client.running(repository) as asking:
        first, last = await ask(asking, "dies", 5)[1].all()
        assert client.array(first).tolist() == [[5]]
        assert "exit status 9" in client.refusal(last).message


async def test_a_model_sees_that_nobody_waits_any_more(repository: pathlib.Path) -> None:
    code = """
    def execute(self, requests):
        for each in requests:
            threading.Thread(target=self.answer, args=(each,)).start()

    def answer(self, request):
        sender = request.get_response_sender()
        sender.send(response(array(request)))
        while not request.is_cancelled():
            threading.Event().wait(0.01)
        sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("gone", pb_utils.TritonError.CANCELLED)),
                    flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    """
    models.put(repository, "waits", code, models.config(more=DECOUPLED))
    async with client.running(repository) as asking:
        request, listening = ask(asking, "waits", 5)
        async with asyncio.timeout(client.WIDE_S):
            await listening.some.wait()
        request.cancel()
        assert client.refusal((await listening.all())[-1]).kind is border.ErrorKind.CANCELLED


async def test_a_model_asks_other_models(repository: pathlib.Path) -> None:
    models.put(repository, "count", COUNT, models.config(more=DECOUPLED))
    models.put(repository, "echo")
    code = """
    async def execute(self, requests):
        import asyncio
        return await asyncio.gather(*(self.answer(each) for each in requests))

    async def answer(self, request):
        given = pb_utils.get_input_tensor_by_name(request, "INPUT")
        made = lambda model, names=("OUTPUT",): pb_utils.InferenceRequest(
            model_name=model, requested_output_names=list(names), inputs=[given])
        echoed = pb_utils.get_output_tensor_by_name(made("echo").exec(), "OUTPUT").as_numpy()
        again = await made("echo").async_exec()
        counted = sum(len(each.output_tensors()) for each in made("count").exec(decoupled=True))
        first = next(iter(made("count").exec(decoupled=True)))
        missing, wrong, many = made("nobody").exec(), made("echo", ["WHAT"]).exec(), made("count").exec()
        assert missing.has_error() and "'nobody'" in missing.error().message(), missing.error()
        assert missing.error().code() == pb_utils.TritonError.NOT_FOUND
        assert wrong.has_error() and "WHAT" in wrong.error().message()
        assert many.has_error() and "decoupled" in many.error().message()
        del first
        return response(np.array([[echoed[0, 0] + again.output_tensors()[0].as_numpy()[0, 0] + counted]], np.float32))
    """
    models.put(repository, "asks", code)
    async with client.running(repository) as asking:
        assert client.array(await asking.ask("asks", [[50]])).tolist() == [[150]]
        large = await asking.ask("echo", np.ones((1, 500_000)))
        assert isinstance(large, border.InferResponse)
        await asking.until(lambda: _idle(asking, "count"))


async def _counted(asking: client.Client, model: str, count: int) -> bool:
    (found,) = await asking.engine.statistics(model, "")
    return (found.success.count, found.inference_count, found.in_flight) == (count, count, 0)


async def _idle(asking: client.Client, model: str) -> bool:
    (found,) = await asking.engine.statistics(model, "")
    return found.in_flight == 0
