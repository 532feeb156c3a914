"""What a model is told about a ragged batch, by the examples of the configuration's own words."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from gpu_worker.engine import ragged

SHAPES = [(2, 3, 1), (1, 2, 2)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ragged.ELEMENT_COUNT, [6, 4]),
        (ragged.ACCUMULATED, [6, 10]),
        (ragged.ACCUMULATED_WITH_ZERO, [0, 6, 10]),
        (ragged.ITEM_SHAPE, [[3, 1], [3, 1], [2, 2]]),
        (ragged.ITEM_SHAPE_FLAT, [3, 1, 3, 1, 2, 2]),
        (ragged.MAX_AS_SHAPE, [0] * 6),
    ],
)
@pytest.mark.parametrize(("datatype", "dtype"), [("INT32", np.int32), ("FP32", np.float32)])
def test_each_kind_tells_its_own(kind: str, expected: list[Any], datatype: str, dtype: type) -> None:
    found = ragged.made(ragged.BatchInput(kind, ("B",), datatype, "X"), SHAPES)
    assert (found.dtype, found.tolist()) == (np.dtype(dtype), expected)


@hypothesis.given(strategies.lists(strategies.lists(strategies.integers(0, 4), min_size=2, max_size=2), min_size=1))
def test_bounds_take_a_row_apart(dims: list[list[int]]) -> None:
    shapes = [(1, *each) for each in dims]
    bounds = ragged.made(ragged.BatchInput(ragged.ACCUMULATED_WITH_ZERO, ("B",), "INT32", "X"), shapes).tolist()
    row = np.arange(bounds[-1])
    parts = [row[begin:end] for begin, end in itertools.pairwise(bounds)]
    assert [len(part) for part in parts] == [int(np.prod(shape)) for shape in shapes]
    assert [each for part in parts for each in part] == row.tolist()


def test_a_share_has_the_dims_of_its_source_where_they_vary() -> None:
    assert ragged.scattered((-1, 7, -1), (2, 3, 4, 5)) == (2, 3, 7, 5)
