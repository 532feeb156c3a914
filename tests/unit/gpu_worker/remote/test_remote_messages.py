"""What is remembered of messages is small, whatever clients name."""

from __future__ import annotations

import pytest

from gpu_worker.engine import border
from gpu_worker.remote import messages

LARGE = {
    "names": [border.Tensor("x" * 5000, "FP32", (1,), b"")],
    "tensors": [border.Tensor(f"t{index}", "FP32", (1,), b"") for index in range(1000)],
    "dimensions": [border.Tensor("x", "FP32", (1,) * 1000, b"")],
}


@pytest.mark.parametrize("inputs", LARGE.values(), ids=LARGE)
def test_large_shapes_are_not_remembered(inputs: list[border.Tensor]) -> None:
    shape = ("m", "", tuple((each.name, each.datatype, each.shape, None) for each in inputs), ())
    before = messages._written.cache_info().misses
    first = messages._head(shape, ())
    assert first == messages._head(shape, ())
    assert messages._written.cache_info().misses == before


def test_small_shapes_are() -> None:
    shape = ("model-of-this-test", "", (("x", "FP32", (1, 16), None),), ())
    before = messages._written.cache_info()
    assert messages._head(shape, ()) == messages._head(shape, ())
    after = messages._written.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)
