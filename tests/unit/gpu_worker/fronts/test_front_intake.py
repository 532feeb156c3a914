"""The way to the engine: gathered, bounded, and refused once stopped."""

from __future__ import annotations

import pathlib

import pytest

from gpu_worker import core
from gpu_worker.engine import border
from gpu_worker.wire import intake as wire_intake


class Replies:
    def __init__(self, intake: wire_intake.Intake) -> None:
        self.intake = intake
        self.answers: list[border.InferResponse | border.InferenceError] = []

    def __call__(self, answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
        self.intake.finished()
        self.answers.append(answer)

    def request(self) -> border.InferRequest:
        return border.InferRequest("missing", "", "", [], [], {}, self)


@pytest.fixture
def intake(tmp_path: pathlib.Path) -> wire_intake.Intake:
    engine = core.Core.create(core.Options(repositories=(tmp_path,)))
    return wire_intake.Intake(engine, wire_intake.Bounds(requests=2, body_bytes=10))


async def test_every_request_is_answered_and_counted(intake: wire_intake.Intake) -> None:
    replies = Replies(intake)
    intake.submit(replies.request())
    intake.submit(replies.request())
    with pytest.raises(border.InferenceError, match="in flight") as caught:
        intake.submit(replies.request())
    assert caught.value.kind is border.ErrorKind.UNAVAILABLE
    await intake.wait_idle()
    assert len(replies.answers) == 2
    intake.submit(replies.request())
    await intake.wait_idle()
    assert len(replies.answers) == 3


async def test_nothing_is_taken_once_stopped(intake: wire_intake.Intake) -> None:
    intake.stop()
    with pytest.raises(border.InferenceError, match="Server is stopping"):
        intake.submit(Replies(intake).request())
    await intake.wait_idle()


def test_bytes_are_bounded(intake: wire_intake.Intake) -> None:
    assert intake.hold(10)
    assert not intake.hold(1)
    intake.let_go(10)
    assert intake.hold(1)


async def test_bytes_are_booked_with_their_request_and_let_go_with_it(intake: wire_intake.Intake) -> None:
    replies = Replies(intake)
    intake.submit(replies.request(), 10)
    with pytest.raises(border.InferenceError, match="holds too many bytes"):
        intake.submit(replies.request(), 1)
    assert not intake.hold(1)
    await intake.wait_idle()
    assert len(replies.answers) == 1
    intake.let_go(10)
    assert intake._held_bytes == 0
    last = border.InferRequest("missing", "", "", [], [], {}, lambda _answer, final=True: intake.finished(final * 10))
    intake.submit(last, 10)
    await intake.wait_idle()
    assert intake._held_bytes == 0
