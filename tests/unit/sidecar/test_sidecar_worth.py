from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

from sidecar.cache import worth

MIB = 1 << 20
entries = st.lists(
    st.builds(worth.Entry, st.uuids().map(str), st.integers(0, 100 * MIB), st.floats(0, 1e6, allow_nan=False)),
    max_size=20,
    unique_by=lambda each: each.name,
)


@hypothesis.given(entries, st.integers(-MIB, 1000 * MIB))
def test_what_goes_is_enough_and_nothing_of_it_is_needless(there: list[worth.Entry], needed_bytes: int) -> None:
    gone = worth.choose(there, needed_bytes)
    freed_bytes = sum(each.disk_bytes for each in gone)

    assert set(gone) <= set(there)
    if needed_bytes <= 0 or sum(each.disk_bytes for each in there) < needed_bytes:
        assert gone == ()
    else:
        assert freed_bytes >= needed_bytes
        assert all(freed_bytes - each.disk_bytes < needed_bytes for each in gone)


def test_of_two_alike_the_longer_idle_goes() -> None:
    old, new = worth.Entry("old", MIB, 100.0), worth.Entry("new", MIB, 10.0)

    assert worth.choose([new, old], 1) == (old,)


def test_of_two_of_one_age_the_bigger_goes() -> None:
    """Which frees the same room for fewer requests."""
    big, small = worth.Entry("big", 100 * MIB, 10.0), worth.Entry("small", MIB, 10.0)

    assert worth.choose([small, big], 1) == (big,)


def test_a_small_file_stays_where_a_big_one_frees_enough_after_all() -> None:
    old, big = worth.Entry("old", MIB, 1e6), worth.Entry("big", 100 * MIB, 1.0)

    assert worth.choose([old, big], 50 * MIB) == (big,)
