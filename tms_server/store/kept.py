"""What a thread keeps of whole tables between its transactions, and how it learns which of it has changed.

Nearly every pass asks for all living leases, groups and addresses, and nearly nothing of them has changed since the pass
before. Whoever writes notes what it touches; whoever reads reads that again and nothing else. What is noted may be more
than what has changed, never less: an entry is there before its commit can be seen.
"""

from __future__ import annotations

import collections
import threading
from typing import Any, Protocol

import sqlalchemy as sa

from tms_server.model import ids, lease

LEDGER_LIMIT = 1024
"""Commits that the ledger remembers; whoever has fallen further behind reads everything again."""


class Touched:
    """Leases by their new value (None: only renewed) and tables by name."""

    __slots__ = ("leases", "tables")

    def __init__(self) -> None:
        self.leases: dict[ids.LeaseId, lease.Lease | None] = {}
        self.tables: set[str] = set()

    def lease(self, lease_id: ids.LeaseId, value: lease.Lease | None = None) -> None:
        """A lease was written; a renewal does not take away what is known of its value."""
        self.leases[lease_id] = value or self.leases.get(lease_id)

    def __bool__(self) -> bool:
        return bool(self.leases or self.tables)

    def add(self, later: Touched) -> None:
        """What was touched after this."""
        for lease_id, value in later.leases.items():
            self.lease(lease_id, value)
        self.tables |= later.tables


class Ledger:
    """What the last commits touched. One thread records, many ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: collections.deque[Touched] = collections.deque(maxlen=LEDGER_LIMIT)
        self._recorded = 0
        self._settled = 0

    def record(self, touched: Touched) -> None:
        """Comes before the commit."""
        with self._lock:
            self._entries.append(touched)
            self._recorded += 1

    def settle(self) -> None:
        """Comes after the commit, or after it failed."""
        with self._lock:
            self._settled = self._recorded

    def mark(self) -> int:
        """Take it before a snapshot: all that is behind it can be seen in the snapshot."""
        with self._lock:
            return self._settled

    def since(self, mark: int) -> Touched | None:
        """What may have changed since a mark, commits that go on now included; None when it is not known any more."""
        with self._lock:
            missing = self._recorded - mark
            if missing > len(self._entries):
                return None
            entries = [self._entries[-number] for number in range(missing, 0, -1)]
        together = Touched()
        for each in entries:
            together.add(each)
        return together


class Kept:
    """Of one thread. `tables` holds what was made of whole tables; `stale` the leases to look at again."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.leases: dict[ids.LeaseId, lease.Lease] | None = None
        self.in_order: tuple[lease.Lease, ...] = ()
        self.stale: dict[ids.LeaseId, lease.Lease | None] = {}

    def soil(self, touched: Touched | None) -> None:
        """Some of it is not as it was; None: perhaps all of it."""
        if touched is None:
            self.tables.clear()
            self.leases = None
            return
        for name in touched.tables:
            self.tables.pop(name, None)
        for lease_id, value in touched.leases.items():
            self.stale[lease_id] = value or self.stale.get(lease_id)

    def forget(self, touched: Touched) -> None:
        """What was written has not happened: even the same revision may come to mean something else."""
        self.soil(touched)
        for lease_id in touched.leases:
            self.stale[lease_id] = None
            if self.leases is not None:
                self.leases.pop(lease_id, None)


class Source(Protocol):
    """Where a session finds what is kept, as true as its transaction sees it."""

    def now(self, connection: sa.Connection) -> Kept:
        """Comes once the transaction of that connection sees its snapshot, as often as one likes."""
        ...


class OfReader:
    """For a thread that reads, one snapshot after another."""

    def __init__(self, ledger: Ledger) -> None:
        self._kept = Kept()
        self._ledger = ledger
        self._known = 0
        self._next: int | None = None

    def begin(self) -> None:
        """Comes before each snapshot."""
        self._next = self._ledger.mark()

    def now(self, _connection: sa.Connection) -> Kept:
        if self._next is not None:
            self._kept.soil(self._ledger.since(self._known))
            self._known, self._next = self._next, None
        return self._kept


class OfWriter:
    """For a unit of work, which sees what it has touched itself."""

    def __init__(self, kept: Kept, touched: Touched) -> None:
        self._kept = kept
        self._touched = touched

    def now(self, _connection: sa.Connection) -> Kept:
        self._kept.soil(self._touched)
        return self._kept
