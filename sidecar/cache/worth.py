"""Which files to give up first. Pure.

A file is worth the time that it saves: what it would take to bring it back, times how likely it is wanted again. The
likelihood falls with the time since its last use (a file that lay for an hour is expected to lie for another), and what
counts is the worth of each byte that it holds, as in GreedyDual-Size (Cao and Irani, 1997). So of two files of one age
the bigger goes first, for the small one costs a whole request for few bytes; of two of one size the older goes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

_REQUEST_S = 0.05
_BYTES_PER_S = 100e6


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A file that may be given up: the bytes its going frees, and how long nobody asked for it."""

    name: str
    disk_bytes: int
    idle_s: float


def choose(entries: Iterable[Entry], needed_bytes: int) -> tuple[Entry, ...]:
    """The files of least worth that free at least so much together; empty when all of them do not, or none need go."""
    chosen: list[Entry] = []
    freed_bytes = 0
    for entry in sorted(entries, key=lambda each: (worth(each), each.name)):
        if freed_bytes >= needed_bytes:
            break
        chosen.append(entry)
        freed_bytes += entry.disk_bytes
    return tuple(_without_needless(chosen, freed_bytes - needed_bytes)) if freed_bytes >= needed_bytes else ()


def worth(entry: Entry) -> float:
    """Seconds saved for each byte held, with the chance of use taken as one over the idle time."""
    back_s = _REQUEST_S + entry.disk_bytes / _BYTES_PER_S
    return back_s / max(entry.disk_bytes, 1) / max(entry.idle_s, 1.0)


def _without_needless(chosen: Sequence[Entry], spare_bytes: int) -> Iterable[Entry]:
    """The last one chosen may free so much that earlier ones can stay; those worth most stay first."""
    for entry in reversed(chosen):
        if entry.disk_bytes <= spare_bytes:
            spare_bytes -= entry.disk_bytes
        else:
            yield entry
