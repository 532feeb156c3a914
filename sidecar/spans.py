"""Stretches of a file: which are here, which are missing, and how missing ones are cut into reads. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Span:
    """Bytes from `start` to before `end` of a file."""

    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same bytes, in order, without overlaps, touches or empty spans."""
    whole: list[Span] = []
    for span in sorted(each for each in spans if each.start < each.end):
        if whole and span.start <= whole[-1].end:
            whole[-1] = Span(whole[-1].start, max(whole[-1].end, span.end))
        else:
            whole.append(span)
    return whole


def missing(size_bytes: int, here: Iterable[Span]) -> Iterator[Span]:
    """What of a file of this size is not here. An empty file that is not here at all is one empty span."""
    at = 0
    for span in merged(here):
        if at < min(span.start, size_bytes):
            yield Span(at, min(span.start, size_bytes))
        at = max(at, span.end)
    if at < size_bytes or size_bytes == 0:
        yield Span(at, size_bytes) if size_bytes else Span(0, 0)


def cut(spans: Iterable[Span], most_bytes: int) -> Iterator[Span]:
    """The same bytes in pieces of at most so many, in order."""
    for span in spans:
        yield from (
            Span(start, min(start + most_bytes, span.end))
            for start in range(span.start, max(span.end, span.start + 1), most_bytes)
        )


def prefix(here: Iterable[Span]) -> int:
    """How many bytes are here from the beginning on without a gap."""
    first = next(iter(merged(here)), Span(0, 0))
    return first.end if first.start == 0 else 0
