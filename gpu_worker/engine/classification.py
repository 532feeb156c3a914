"""The best classes of an output, as clients of the classification extension read them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpu_worker.engine import border, tensors

_MAX_ELEMENTS = 1_000_000


def best(array: tensors.Array, count: int, labels: Sequence[str], *, batched: bool) -> tensors.Array:
    """The `count` highest elements as strings `value:index[:label]`, highest first.

    Shape [batch, k] where `batched`, else [k]; k is capped at the number of elements. Raises InferenceError UNSUPPORTED
    for very large outputs.
    """
    if array.size > _MAX_ELEMENTS:
        raise border.InferenceError(
            border.ErrorKind.UNSUPPORTED, f"classification of more than {_MAX_ELEMENTS} elements is not supported"
        )
    rows = array.reshape(array.shape[0], -1) if batched and array.size else array.reshape(1, -1)
    found = np.array([_strings(row, count, labels) for row in rows], dtype=object)
    return found if batched else found[0]


def _strings(row: tensors.Array, count: int, labels: Sequence[str]) -> list[str]:
    # Sorted from behind and turned around: of equal values the lower index comes first.
    order = (row.size - 1 - np.argsort(row[::-1], kind="stable"))[::-1][:count]
    return [_string(row[index].item(), int(index), labels) for index in order]


def _string(value: object, index: int, labels: Sequence[str]) -> str:
    shown = f"{value:.6f}" if isinstance(value, float) else str(value)
    label = f":{labels[index]}" if index < len(labels) and labels[index] else ""
    return f"{shown}:{index}{label}"
