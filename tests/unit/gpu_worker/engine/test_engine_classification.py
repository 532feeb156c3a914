from __future__ import annotations

import numpy as np
import pytest

from gpu_worker.engine import border, classification, statistics


def test_the_best_classes_come_first_with_their_labels() -> None:
    array = np.array([[0.5, 8, 1], [2, 1, 2]], np.float32)
    found = classification.best(array, 2, ("a", "b"), batched=True)
    assert found.tolist() == [["8.000000:1:b", "1.000000:2"], ["2.000000:0:a", "2.000000:2"]]


def test_more_classes_than_there_are_give_all_of_them() -> None:
    found = classification.best(np.array([[3], [250]], np.uint8), 9, (), batched=False)
    assert found.tolist() == ["250:1", "3:0"]


def test_very_large_outputs_are_refused() -> None:
    with pytest.raises(border.InferenceError) as refused:
        classification.best(np.zeros(1_000_001, np.int8), 1, (), batched=False)
    assert refused.value.kind is border.ErrorKind.UNSUPPORTED


def test_statistics_count_requests_items_and_executions() -> None:
    counters = statistics.Statistics()
    timings = statistics.Timings(1, 20, 3)
    for lives_ns in ([25, 25, 25, 25], [10, 20, 30, 40], [100]):
        counters.executed(statistics.Executed(items=len(lives_ns), waits_ns=[10], lives_ns=lives_ns, timings=timings))
    counters.failed(statistics.BACKEND, 2, 50)
    seen = counters.snapshot("m", "1", statistics.Waiting(5, 8), statistics.LoadCost(1.5, {("CPU", 0): 7}))
    assert (seen.inference_count, seen.execution_count) == (9, 3)
    assert (seen.success, seen.fail) == (border.Duration(9, 300), border.Duration(2, 50))
    assert (seen.queue, seen.compute_infer) == (border.Duration(9, 30), border.Duration(9, 180))
    assert [(each.batch_size, each.compute_infer) for each in seen.batches] == [
        (1, border.Duration(1, 20)),
        (4, border.Duration(2, 40)),
    ]
    assert seen.failures == {"REJECTED": 0, "CANCELED": 0, "BACKEND": 2, "OTHER": 0}
    assert (seen.pending, seen.in_flight) == (5, 8)
    assert (seen.memory_bytes, seen.load_duration_s) == ({("CPU", 0): 7}, 1.5)
    assert seen.last_inference_ms > 0


def test_each_time_is_counted_in_the_first_bucket_that_holds_it() -> None:
    bounds_ns = [bound * 1000 for bound in statistics.LATENCY_BOUNDS_US]
    counters = statistics.Statistics()
    lives_ns = [0, bounds_ns[0], bounds_ns[0] + 1, bounds_ns[-1], bounds_ns[-1] + 1]
    counters.executed(
        statistics.Executed(items=5, waits_ns=[0] * len(lives_ns), lives_ns=lives_ns, timings=statistics.Timings())
    )
    seen = counters.snapshot("m", "1", statistics.Waiting(), statistics.LoadCost())
    assert seen.latency == (2, 1, *[0] * (len(bounds_ns) - 3), 1, 1)
