"""Which batches are so brief that handing them to another thread would take longer than to run them.

Pure: learns from what batches cost, and predicts from those alike: of the same key and about the same size. For a steady
program that is all its cost depends on. Batches of a kind are expected to be brief once several in a row were; after one
that was not, it takes more of them than before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

BRIEF_NS = 100_000
"""A hand-over to a thread and back takes about as long, and an event loop that sits still so long is hardly noticed."""

BRIEF_BYTES = 2**20
"""What can be copied in that time."""

_FEW = 4
_MANY = 512
_FORGIVEN = 4096
_MOST_KINDS = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What a batch cost: processor time of its run, bytes of all that went in and came out."""

    busy_ns: int
    moved_bytes: int

    @property
    def brief(self) -> bool:
        return self.busy_ns <= BRIEF_NS and self.moved_bytes <= BRIEF_BYTES


@dataclasses.dataclass(slots=True)
class _Record:
    """How many in a row were brief, and how many it takes to expect that of the next."""

    brief: int = 0
    enough: int = _FEW


class Pace:
    """Of one model version. Not safe for several threads at once."""

    def __init__(self) -> None:
        self._records: dict[tuple[Hashable, int], _Record] = {}

    def is_brief(self, key: Hashable, items: int) -> bool:
        """Whether a batch of so many items that share this key is expected to be brief."""
        record = self._records.get((key, items.bit_length()))
        return record is not None and record.brief >= record.enough

    def note(self, key: Hashable, items: int, cost: Cost) -> None:
        """Learns what such a batch cost."""
        record = self._records.get((key, items.bit_length())) or self._begin(key, items)
        if cost.brief:
            record.brief += 1
            if record.brief >= _FORGIVEN:
                record.enough = _FEW
        else:
            if record.brief >= record.enough:
                record.enough = min(2 * record.enough, _MANY)
            record.brief = 0

    def _begin(self, key: Hashable, items: int) -> _Record:
        if len(self._records) >= _MOST_KINDS:
            self._records.clear()
        return self._records.setdefault((key, items.bit_length()), _Record())
