"""Numbers of bytes as people read them, and those that they may write back."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from tms_server.model import sizes
from tmsctl import values

GIB = 2**30


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (47788, "46.7 KiB"),
        (300 << 20, "300 MiB"),
        (3 << 60, "3145728 TiB"),
    ],
)
def test_messages_say_sizes_as_people_do(size_bytes: int, said: str) -> None:
    assert sizes.text(size_bytes) == said


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [(0, "0 B"), (1000, "1000 B"), (4 * GIB, "4GiB"), (4 * GIB + 1, "4097MiB"), (1025, "1025 B")],
)
def test_a_remedy_is_never_less_than_what_is_missing(size_bytes: int, said: str) -> None:
    assert sizes.enough(size_bytes) == said


@hypothesis.given(st.integers(0, 2**60))
def test_a_remedy_can_be_written_back_and_suffices(size_bytes: int) -> None:
    written = values.parse_size(sizes.enough(size_bytes).removesuffix(" B"))
    assert size_bytes <= written <= size_bytes * 1025 / 1024 + 1
