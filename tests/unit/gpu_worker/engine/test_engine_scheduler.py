"""What a scheduler has counted by the time it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from gpu_worker.engine import batching, border, regions, scheduler, spec, statistics
from gpu_worker.runtime import port

MODEL = spec.ModelSpec(
    name="m",
    version="1",
    platform="",
    max_batch_size=0,
    inputs=(spec.TensorSpec("IN", "FP32", (1,)),),
    outputs=(spec.TensorSpec("OUT", "FP32", (1,)),),
    batching=batching.Config(),
)


class AtOnce(asyncio.SelectorEventLoop):
    """Answers arrive in the very moment they are posted."""

    def call_soon_threadsafe(  # type: ignore[override]  # the arguments are whatever the callback takes
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        callback(*args)
        return super().call_soon_threadsafe(lambda: None, context=context)


class Double(port.Program):
    inputs = outputs = ()
    shareable = True

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        return [feeds["IN"] * 2]


@pytest.mark.parametrize(("deadline_s", "reason"), [(None, "CANCELED"), (0.0, "REJECTED"), (None, "")])
def test_a_request_is_counted_before_it_is_answered(deadline_s: float | None, reason: str) -> None:
    seen: list[border.ModelStatistics] = []
    counters = statistics.Statistics()

    def reply(answer: object, *, final: bool = True) -> None:
        assert final
        assert answer
        seen.append(counters.snapshot("m", "1", statistics.Waiting(), statistics.LoadCost()))

    tensor = border.Tensor("IN", "FP32", (1,), np.ones(1, "<f4").tobytes())
    asked = border.InferRequest("m", "", "r", [tensor], [], {}, reply, deadline_s, reason == "CANCELED")
    loop = AtOnce()
    try:
        serving = scheduler.Scheduler(MODEL, [Double()], counters)
        assert serving.submit([asked], loop, time.monotonic_ns(), regions.Regions()) == []
        serving.stop()
        assert serving.join(time.monotonic() + 60)
    finally:
        loop.close()
    (found,) = seen
    assert (found.success.count, found.fail.count) == ((0, 1) if reason else (1, 0))
    assert not reason or found.failures[reason] == 1
