"""The reader and the unit of work that closures are given: all aggregates on one connection."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import sqlalchemy as sa

from tms_server.model import ids
from tms_server.ports import store
from tms_server.store import documents, groups, images, leases, mapping, names, pools, session, tables

_INSTALLATION = sa.select(tables.INSTALLATION)
_LEADER = sa.select(tables.LEADER)
_TOUCH = sa.update(tables.INSTALLATION).values(alive_at=sa.bindparam("b_alive_at"))


class SqlReader(leases.LeaseReads, names.NameReads, pools.PoolReads, groups.GroupReads, images.ImageReads):
    """Implements `store.Reader`."""

    def installation(self) -> store.Installation:
        row = self._one(_INSTALLATION)
        assert row is not None
        return mapping.installation(row)

    def leader(self) -> store.Leader | None:
        row = self._one(_LEADER)
        return None if row is None else mapping.leader_value(row)


class SqlUnitOfWork(
    leases.LeaseWrites, names.NameWrites, pools.PoolWrites, groups.GroupWrites, images.ImageWrites, SqlReader
):
    """Implements `store.UnitOfWork`."""

    def touch(self, alive_at: dt.datetime) -> None:
        self._run(_TOUCH, b_alive_at=documents.to_us(alive_at))

    def put_leader(self, new: store.Leader) -> None:
        self._put(tables.LEADER, mapping.leader_columns(new))


def add_installation(connection: sa.Connection, new_id: Callable[[], ids.InstallationId], now: dt.datetime) -> None:
    """Writes the one row of the installation if it is not there."""
    if connection.execute(_INSTALLATION).first() is None:
        new = store.Installation(id=new_id(), epoch=1, alive_at=now)
        row = {"only": 1, "revision": 0, "forgotten_revision": 0, **mapping.installation_columns(new)}
        connection.execute(sa.insert(tables.INSTALLATION), row)


def save_revision(connection: sa.Connection, revisions: session.Revisions) -> None:
    connection.execute(sa.update(tables.INSTALLATION).values(revision=revisions.last))
