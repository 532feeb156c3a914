"""What each commit touched, kept in the database, where several servers write.

It does for the threads of all servers what `kept.Ledger` does in memory for those of one: whoever begins a transaction
learns from it what to read again. The row of the installation is the lock that makes one server write at a time, so that
revisions and the numbers of commits are given in the order in which they become visible.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import sqlalchemy as sa

from tms_server.model import ids
from tms_server.store import kept, session, tables

CHANNEL = "tms"
CHANGED, REPORTED = "changed", "reported"
KEPT_COMMITS = 1024
"""Whoever has fallen further behind reads everything again."""

_INSTALLATION = tables.INSTALLATION.c
_COMMITS = tables.COMMITS.c
_TAKE_TURN = sa.select(_INSTALLATION.revision, _INSTALLATION.commits).with_for_update()
_LAST = sa.select(_INSTALLATION.commits)
_SINCE = (
    sa.select(tables.COMMITS)
    .where(_COMMITS.number > sa.bindparam("b_known"), _COMMITS.number <= sa.bindparam("b_last"))
    .order_by(_COMMITS.number)
)
_SAVE = sa.update(tables.INSTALLATION).values(revision=sa.bindparam("b_revision"), commits=sa.bindparam("b_number"))
_ADD = sa.insert(tables.COMMITS)
_PRUNE = sa.delete(tables.COMMITS).where(_COMMITS.number <= sa.bindparam("b_last"))
_NOTIFY = sa.select(sa.func.pg_notify(CHANNEL, sa.bindparam("b_payload", type_=sa.Text)))


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Up to which commit a thread knows, and on which connection it learnt that.

    A new connection may lead to another copy of the database, where the same number means something else.
    """

    connection: sa.Connection
    number: int


class Book:
    """Implements `database.Book`. `mark` is this server's own, by which it knows its notifications."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._place: Place | None = None
        self._next: Place | None = None

    def begin(self, connection: sa.Connection, known: kept.Kept) -> session.Revisions:
        row = connection.execute(_TAKE_TURN).one()
        _catch_up(connection, known, self._place, row.commits)
        self._place = self._next = Place(connection, row.commits)
        return session.Revisions(row.revision)

    def end(self, connection: sa.Connection, revisions: session.Revisions, touched: kept.Touched) -> None:
        assert self._place is not None
        if not touched:
            return
        number = self._place.number + 1
        self._next = Place(connection, number)
        connection.execute(_SAVE, {"b_revision": revisions.last, "b_number": number})
        connection.execute(_ADD, {"number": number, "leases": list(touched.leases), "tables": sorted(touched.tables)})
        connection.execute(_PRUNE, {"b_last": number - KEPT_COMMITS})
        for topic in _topics(revisions, touched):
            connection.execute(_NOTIFY, {"b_payload": f"{topic} {self._mark}"})

    def settle(self) -> None:
        """After a failure too: whoever keeps something throws it all away then."""
        self._place = self._next


class Source:
    """Implements `database.Source`."""

    def __init__(self) -> None:
        self._kept = kept.Kept()
        self._place: Place | None = None
        self._fresh = False

    def begin(self) -> None:
        self._fresh = False

    def now(self, connection: sa.Connection) -> kept.Kept:
        if not self._fresh:
            number = connection.execute(_LAST).scalar_one()
            _catch_up(connection, self._kept, self._place, number)
            self._place, self._fresh = Place(connection, number), True
        return self._kept


def _catch_up(connection: sa.Connection, known: kept.Kept, place: Place | None, last: int) -> None:
    if place is None or place.connection is not connection:
        known.soil(None)
    elif place.number != last:
        known.soil(_since(connection, place.number, last))


def _since(connection: sa.Connection, number: int, last: int) -> kept.Touched | None:
    """None when it is not known any more."""
    if not 0 < last - number <= KEPT_COMMITS:
        return None
    rows = connection.execute(_SINCE, {"b_known": number, "b_last": last}).mappings().all()
    if len(rows) != last - number:
        return None
    touched = kept.Touched()
    for row in rows:
        touched.tables.update(row["tables"])
        for lease_id in row["leases"]:
            touched.lease(ids.LeaseId(lease_id))
    return touched


def _topics(revisions: session.Revisions, touched: kept.Touched) -> list[Any]:
    reported = tables.GROUP_REPORTS.name in touched.tables
    return [*([CHANGED] if revisions.raised else []), *([REPORTED] if reported else [])]
