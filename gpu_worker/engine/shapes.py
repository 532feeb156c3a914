"""How the shape that clients see becomes the shape that the model has, and back.

Pure. A reshape moves no element: the variable dimensions keep their order, and what lies between two of them keeps its
size. The batch dimension is left out on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

VARIABLE = -1


def agree(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether tensors of one of these shapes can always be given the other."""
    return _fixed_parts(first) == _fixed_parts(second)


def carried(pattern: Sequence[int], actual: Sequence[int], target: Sequence[int]) -> tuple[int, ...] | None:
    """`target` with its variable dimensions filled in from `actual`, which should be of the shape `pattern`; else None.

    `pattern` and `target` must `agree`.
    """
    fits = len(pattern) == len(actual) and all(
        want in (VARIABLE, got) for want, got in zip(pattern, actual, strict=True)
    )
    if not fits:
        return None
    free = (got for want, got in zip(pattern, actual, strict=True) if want == VARIABLE)
    return tuple(next(free) if dim == VARIABLE else dim for dim in target)


def _fixed_parts(shape: Iterable[int]) -> list[int]:
    """Elements before, between and after the variable dimensions."""
    parts = [1]
    for dim in shape:
        if dim == VARIABLE:
            parts.append(1)
        else:
            parts[-1] *= dim
    return parts
