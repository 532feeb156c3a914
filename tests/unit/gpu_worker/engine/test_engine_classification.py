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
    for items in (4, 4, 1):
        counters.executed(statistics.Executed(requests=items, items=items, queue_ns=10, total_ns=100, timings=timings))
    counters.failed(statistics.BACKEND, 2, 50)
    seen = counters.snapshot("m", "1", 5, statistics.LoadCost(1.5, {("CPU", 0): 7}))
    assert (seen.inference_count, seen.execution_count) == (9, 3)
    assert (seen.success, seen.fail) == (border.Duration(9, 300), border.Duration(2, 50))
    assert (seen.queue, seen.compute_infer) == (border.Duration(9, 30), border.Duration(9, 180))
    assert [(each.batch_size, each.compute_infer) for each in seen.batches] == [
        (1, border.Duration(1, 20)),
        (4, border.Duration(2, 40)),
    ]
    assert seen.failures == {"REJECTED": 0, "CANCELED": 0, "BACKEND": 2, "OTHER": 0}
    assert (seen.pending, seen.memory_bytes, seen.load_duration_s) == (5, {("CPU", 0): 7}, 1.5)
    assert seen.last_inference_ms > 0
