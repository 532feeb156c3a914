"""Batches of requests whose items differ in shape: what a model is told about where each request's elements lie.

Pure. A ragged input reaches the model as one row of all elements, request after request; batch inputs tell how to take it
apart. Shapes include the batch dimension.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from gpu_worker.engine import tensors

ELEMENT_COUNT = "BATCH_ELEMENT_COUNT"
ACCUMULATED = "BATCH_ACCUMULATED_ELEMENT_COUNT"
ACCUMULATED_WITH_ZERO = "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
MAX_AS_SHAPE = "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE"
ITEM_SHAPE = "BATCH_ITEM_SHAPE"
ITEM_SHAPE_FLAT = "BATCH_ITEM_SHAPE_FLATTEN"


@dataclasses.dataclass(frozen=True, slots=True)
class BatchInput:
    """Inputs `names` of the model, made for each batch from the shapes of the input `source`."""

    kind: str
    names: tuple[str, ...]
    datatype: str
    source: str


def made(wanted: BatchInput, shapes: Sequence[tuple[int, ...]]) -> tensors.Array:
    """The tensor for requests whose source input has these shapes."""
    dtype = tensors.DATATYPES[wanted.datatype].dtype
    if wanted.kind in {ITEM_SHAPE, ITEM_SHAPE_FLAT}:
        rows = np.array([shape[1:] for shape in shapes for _ in range(shape[0])], dtype)
        return rows.reshape(-1) if wanted.kind == ITEM_SHAPE_FLAT else rows
    counts = [math.prod(shape) for shape in shapes]
    if wanted.kind == MAX_AS_SHAPE:
        return np.zeros(max(counts), dtype)
    if wanted.kind == ELEMENT_COUNT:
        return np.array(counts, dtype)
    sums = list(itertools.accumulate(counts))
    return np.array([0, *sums] if wanted.kind == ACCUMULATED_WITH_ZERO else sums, dtype)


def scattered(dims: Sequence[int], source: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a request's share of an output: its variable dims are those of the input `source` at their place."""
    return (source[0], *(source[1 + index] if dim < 0 else dim for index, dim in enumerate(dims)))
