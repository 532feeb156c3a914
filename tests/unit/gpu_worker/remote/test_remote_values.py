"""Plain values cross exactly, and bytes that are none of them raise."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpu_worker.engine import border
from gpu_worker.ipc.malformed import MalformedError
from gpu_worker.remote import values
from tests.support import border_values

SCALARS = st.none() | st.booleans() | border_values.INTEGERS | st.floats(allow_nan=False) | border_values.TEXT
KEYS = SCALARS | st.binary(max_size=20)
PLAIN = st.recursive(
    SCALARS | st.binary(max_size=20) | st.sampled_from(border.ErrorKind),
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


def alike(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down."""
    return repr(one) == repr(other) and one == other


@given(PLAIN)
def test_plain_values_cross(value: Any) -> None:
    assert alike(values.decode(values.encode(value)), value)


@pytest.mark.parametrize("kind", border_values.everything())
@given(data=st.data())
def test_the_borders_values_cross(kind: type[Any], data: st.DataObject) -> None:
    value = data.draw(border_values.records(kind))
    assert alike(values.decode(values.encode(value)), value)


@given(border_values.CONFIGS)
def test_configurations_cross(config: Any) -> None:
    assert values.decode(values.encode({"found": config})) == {"found": config}


def test_what_is_no_number_crosses() -> None:
    assert math.isnan(values.decode(values.encode(math.nan)))


def test_views_cross_as_bytes() -> None:
    assert values.decode(values.encode([memoryview(b"ab")[1:], bytearray(b"c")])) == [b"b", b"c"]


def test_what_is_no_value_is_refused() -> None:
    with pytest.raises(TypeError, match="a function cannot cross"):
        values.encode({"x": border_values.unanswered})


@given(st.binary(max_size=200))
@example(b"t\xff\xff\xff\xff")
@example(b"o\xff\xff\xff\xff")
@example(b"t\x01\x00\x00\x00" * 100 + b"N")
@example(b"d\x01\x00\x00\x00l\x00\x00\x00\x00N")
def test_noise_raises(noise: bytes) -> None:
    try:
        values.decode(noise)
    except MalformedError:
        return


@given(PLAIN, st.data())
def test_what_is_cut_or_changed_raises_or_is_another_value(value: Any, data: st.DataObject) -> None:
    raw = bytearray(values.encode(value))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    test_noise_raises.hypothesis.inner_test(bytes(raw))  # type: ignore[attr-defined]  # hypothesis' own door
    with pytest.raises(MalformedError):
        values.decode(values.encode(value)[:-1])
    with pytest.raises(MalformedError):
        values.decode(values.encode(value) + b"N")
