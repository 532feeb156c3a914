"""A reshape keeps every element where it is, both ways."""

from __future__ import annotations

import math
from collections.abc import Sequence

import hypothesis
from hypothesis import strategies

from gpu_worker.engine import shapes

_PART = strategies.lists(strategies.integers(1, 4), max_size=3)


def _refactored(part: Sequence[int], data: strategies.DataObject) -> list[int]:
    """Other dims of as many elements."""
    left, dims = math.prod(part), []
    for _ in range(data.draw(strategies.integers(0, 2))):
        dims.append(data.draw(strategies.sampled_from([each for each in range(1, left + 1) if left % each == 0])))
        left //= dims[-1]
    return [*dims, left] if left > 1 or data.draw(strategies.booleans()) else dims


def _joined(parts: Sequence[Sequence[int]]) -> list[int]:
    return [dim for index, part in enumerate(parts) for dim in ([-1] if index else []) + list(part)]


@hypothesis.given(strategies.lists(_PART, min_size=1, max_size=3), strategies.data())
def test_what_agrees_is_carried_there_and_back(parts: list[list[int]], data: strategies.DataObject) -> None:
    dims = _joined(parts)
    reshape = _joined([_refactored(part, data) for part in parts])
    assert shapes.agree(dims, reshape)
    actual = tuple(data.draw(strategies.integers(0, 3)) if dim == -1 else dim for dim in dims)
    inward = shapes.carried(dims, actual, reshape)
    assert inward is not None
    assert math.prod(inward) == math.prod(actual)
    assert shapes.carried(reshape, inward, dims) == actual


def test_what_is_of_another_shape_is_not_carried() -> None:
    assert shapes.carried((-1, 2), (3, 3), (-1, 1, 2)) is None
    assert shapes.carried((-1, 2), (3,), (-1, 1, 2)) is None
