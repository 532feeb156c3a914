from __future__ import annotations

import itertools

import hypothesis
from hypothesis import strategies as st

from sidecar import spans

SIZE = 64
some = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda ends: spans.Span(min(ends), max(ends))), max_size=8
)


def bytes_of(many: list[spans.Span]) -> set[int]:
    return {byte for span in many for byte in range(span.start, span.end)}


@hypothesis.given(some)
def test_merged_spans_are_the_same_bytes_apart_and_in_order(here: list[spans.Span]) -> None:
    merged = spans.merged(here)

    assert bytes_of(merged) == bytes_of(here)
    assert all(before.end < after.start for before, after in itertools.pairwise(merged))
    assert all(span.size_bytes > 0 for span in merged)


@hypothesis.given(some, st.integers(1, 20))
def test_what_is_missing_and_what_is_here_are_the_file(here: list[spans.Span], most_bytes: int) -> None:
    missing = list(spans.cut(spans.missing(SIZE, here), most_bytes))

    assert bytes_of(missing) == set(range(SIZE)) - bytes_of(here)
    assert sum(span.size_bytes for span in missing) == len(bytes_of(missing))
    assert all(0 < span.size_bytes <= most_bytes for span in missing)


@hypothesis.given(some)
def test_the_prefix_ends_at_the_first_gap(here: list[spans.Span]) -> None:
    end = spans.prefix(here)

    assert set(range(end)) <= bytes_of(here)
    assert end not in bytes_of(here)


def test_an_empty_file_is_one_empty_read() -> None:
    assert list(spans.cut(spans.missing(0, []), 8)) == [spans.Span(0, 0)]
