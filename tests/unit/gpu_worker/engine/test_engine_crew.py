"""Instances come all or not at all, and nothing is left of those that could not."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gpu_worker.engine import batching, crew, scheduler, spec, statistics
from gpu_worker.runtime import port

MODEL = spec.ModelSpec(
    name="m", version="1", platform="", max_batch_size=0, inputs=(), outputs=(), batching=batching.Config()
)


class Program(port.Program):
    inputs = outputs = ()
    shareable = True

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        raise AssertionError("nothing is asked here")


class Limited:
    """Lets so many threads begin, then none, as a container does whose processes are numbered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1000
        start = threading.Thread.start

        def limited(thread: threading.Thread) -> None:
            if self.left <= 0:
                raise RuntimeError("can't start new thread")
            self.left -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Limited:
    return Limited(monkeypatch)


def alive() -> int:
    return sum(thread.name.startswith("m_1_") for thread in threading.enumerate())


def freed(program: weakref.ref[Program]) -> bool:
    gc.collect()
    return program() is None


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_model_whose_threads_are_refused_is_not_served_by_fewer(threads: Limited, left: int) -> None:
    programs = [Program() for _ in range(3)]
    watched = [weakref.ref(each) for each in programs]
    threads.left = left

    with pytest.raises(port.LoadFailed, match=rf"instance {left + 1} of the 3 .*can't start new thread.*count"):
        scheduler.Scheduler(MODEL, programs, statistics.Statistics())

    assert alive() == 0
    programs.clear()
    assert all(freed(each) for each in watched)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_what_serves_serves_on_where_a_thread_is_refused(threads: Limited, left: int) -> None:
    kept, coming = Program(), Program()
    watched = weakref.ref(coming)
    serving = scheduler.Scheduler(MODEL, [kept], statistics.Statistics())
    threads.left = left

    with pytest.raises(port.LoadFailed):
        serving.prepare([coming] * 3)

    assert alive() == 1
    del coming
    assert freed(watched)
    threads.left = 1000
    serving.settle(serving.prepare([kept, kept]))
    assert alive() == 2
    serving.stop()
    assert serving.join(time.monotonic() + 60)


def test_what_is_prepared_takes_no_part_until_it_is_settled() -> None:
    begun: list[port.Program] = []
    first, second = Program(), Program()
    made = crew.Crew("m_1", lambda instance: begun.append(instance.program))
    made.settle(made.prepare([first], begin=True))
    assert made.join(time.monotonic() + 60)

    change = made.prepare([second], begin=True)
    assert [each.program for each in made.instances] == [first]
    made.drop(change)
    assert (alive(), begun) == (0, [first])

    left = made.settle(made.prepare([second], begin=True))
    assert made.join(time.monotonic() + 60)
    assert ([each.program for each in left], begun) == ([first], [first, second])
    assert [each.program for each in made.instances] == [second]


def test_the_last_that_serve_do_not_leave_for_nobody() -> None:
    made = crew.Crew("m_1", lambda _: None)
    program = Program()
    made.settle(made.prepare([program], begin=True))

    assert made.settle(made.prepare([Program()], begin=False)) == ()

    assert [each.program for each in made.instances] == [program]
    assert made.join(time.monotonic() + 60)
