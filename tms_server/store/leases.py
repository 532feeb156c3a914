"""Leases and their history in the database.

Each stored change of a lease takes one revision and writes one event with it. Renewals take none, so they may pass
between a caller's read and its save: saving never moves the times of renewal back.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import sqlalchemy as sa

from tms_server.model import errors, ids, lease
from tms_server.ports import store
from tms_server.store import documents, kept, mapping, session, tables

FORGET_AT_ONCE = 1_000
"""Leases that one call forgets at most, so that the writer is never held for long."""

_LEASES = tables.LEASES.c
_EVENTS = tables.LEASE_EVENTS.c
_LABELS = tables.LEASE_LABELS.c

_ENDED = sorted(state.value for state in lease.ENDED)
_UNENDED = sorted(state.value for state in lease.LeaseState if not state.ended)
_LIVING = sorted(state.value for state in lease.LeaseState if state.living)

_GET = sa.select(tables.LEASES).where(_LEASES.id == sa.bindparam("b_id"))
_UNENDED_LEASES = sa.select(tables.LEASES).where(_LEASES.state.in_(_UNENDED)).order_by(_LEASES.created_at, _LEASES.id)
_UNENDED_MARKS = sa.select(_LEASES.id, _LEASES.revision, _LEASES.renewed_until, _LEASES.last_activity_at).where(
    _LEASES.state.in_(_UNENDED), _LEASES.id.in_(sa.bindparam("b_ids", expanding=True))
)
_GET_MANY = sa.select(tables.LEASES).where(_LEASES.id.in_(sa.bindparam("b_ids", expanding=True)))
_FIND_REQUEST = sa.select(_LEASES.id, _LEASES.body_digest).where(
    _LEASES.namespace == sa.bindparam("b_namespace"),
    _LEASES.actor == sa.bindparam("b_actor"),
    _LEASES.request_id == sa.bindparam("b_request_id"),
)
_HISTORY = sa.select(tables.LEASE_EVENTS).where(_EVENTS.lease_id == sa.bindparam("b_id")).order_by(_EVENTS.revision)
_CHANGES = (
    sa.select(tables.LEASE_EVENTS)
    .where(_EVENTS.revision > sa.bindparam("b_after"))
    .order_by(_EVENTS.revision)
    .limit(sa.bindparam("b_limit", type_=sa.Integer))
)
_FORGOTTEN = sa.select(tables.INSTALLATION.c.forgotten_revision)

_ADD = sa.insert(tables.LEASES)
_ADD_LABELS = sa.insert(tables.LEASE_LABELS)
_ADD_EVENT = sa.insert(tables.LEASE_EVENTS)
_RENEW = (
    sa.update(tables.LEASES)
    .where(_LEASES.id == sa.bindparam("b_id"))
    .values(
        renewed_until=sa.func.coalesce(sa.bindparam("b_renewed_until", type_=sa.BigInteger), _LEASES.renewed_until),
        last_activity_at=sa.func.coalesce(sa.bindparam("b_activity", type_=sa.BigInteger), _LEASES.last_activity_at),
    )
)


def _later(column: sa.Column[Any], parameter: str) -> sa.ColumnElement[Any]:
    given = sa.bindparam(parameter, type_=sa.BigInteger)
    return sa.case((sa.or_(column.is_(None), column < given), given), else_=column)


# Columns without a value here are parameters by their own name.
_SAVE = (
    sa.update(tables.LEASES)
    .where(_LEASES.id == sa.bindparam("b_id"), _LEASES.revision == sa.bindparam("b_revision"))
    .values(
        renewed_until=_later(_LEASES.renewed_until, "b_renewed_until"),
        last_activity_at=_later(_LEASES.last_activity_at, "b_activity"),
    )
    .returning(_LEASES.renewed_until, _LEASES.last_activity_at)
)

_HAS_ASSIGNMENT = sa.exists().where(tables.ASSIGNMENTS.c.lease_id == _LEASES.id)
_FORGETTABLE = (
    sa.select(_LEASES.id)
    .where(_LEASES.state.in_(_ENDED), _LEASES.end_at < sa.bindparam("b_before"), ~_HAS_ASSIGNMENT)
    .order_by(_LEASES.end_at)
    .limit(FORGET_AT_ONCE)
)


GET_AT_ONCE = 500


class LeaseReads(session.ReadSession):
    """Reads of leases."""

    def get_lease(self, lease_id: ids.LeaseId) -> lease.Lease | None:
        row = self._one(_GET, b_id=lease_id)
        return None if row is None else mapping.lease_value(row)

    def leases(self, query: store.LeaseQuery) -> tuple[lease.Lease, ...]:
        """Newest first; InvalidField for a limit below 1."""
        if query.limit < 1:
            raise errors.InvalidField("limit", "send at least 1")
        newest_first = sa.select(tables.LEASES).order_by(_LEASES.created_at.desc(), _LEASES.id.desc())
        return _values(self._all(newest_first.where(*_filters(query)).limit(query.limit)))

    def unended_leases(self) -> tuple[lease.Lease, ...]:
        found = self._kept()
        if found is None:
            return _values(self._all(_UNENDED_LEASES))
        if found.leases is None:
            found.in_order = _values(self._all(_UNENDED_LEASES))
            found.leases = {each.id: each for each in found.in_order}
            found.stale.clear()
        elif found.stale:
            self._look_again(found, found.leases)
        return found.in_order

    def _look_again(self, found: kept.Kept, leases: dict[ids.LeaseId, lease.Lease]) -> None:
        """Brings the leases up to date that somebody has touched; what a writer noted of them spares the decoding."""
        marks = {row["id"]: row for row in self._many(_UNENDED_MARKS, list(found.stale))}
        known = {key: found.stale[key] or leases.get(key) for key in marks}
        new = {key: _renewed(value, marks[key]) for key, value in known.items() if _same(value, marks[key])}
        new |= {each.id: each for each in _values(self._many(_GET_MANY, [key for key in marks if key not in new]))}
        for lease_id in found.stale.keys() - marks.keys():
            leases.pop(lease_id, None)
        more = new.keys() - leases.keys()
        leases.update(new)
        if more:
            ordered = sorted(leases.values(), key=lambda each: (each.created_at, each.id))
            found.leases = leases = {each.id: each for each in ordered}
        found.in_order = tuple(leases.values())
        found.stale.clear()

    def _many(self, statement: sa.Select[Any], lease_ids: Sequence[ids.LeaseId]) -> Iterator[session.Row]:
        for start in range(0, len(lease_ids), GET_AT_ONCE):
            yield from self._all(statement, b_ids=lease_ids[start : start + GET_AT_ONCE])

    def find_request(self, namespace: ids.Namespace, actor: str, request_id: str) -> tuple[ids.LeaseId, str] | None:
        row = self._one(_FIND_REQUEST, b_namespace=namespace, b_actor=actor, b_request_id=request_id)
        return None if row is None else (ids.LeaseId(row["id"]), row["body_digest"])

    def events(self, lease_id: ids.LeaseId) -> tuple[lease.LeaseEvent, ...]:
        return tuple(map(mapping.event_value, self._all(_HISTORY, b_id=lease_id)))

    def changes(self, after_revision: int, limit: int) -> tuple[lease.LeaseEvent, ...]:
        """RevisionGone below what was forgotten, and above what was ever given (an older copy was restored)."""
        if limit < 1:
            raise errors.InvalidField("limit", "send at least 1")
        forgotten = self._connection.execute(_FORGOTTEN).scalar_one()
        if not forgotten <= after_revision <= self.revision():
            raise errors.RevisionGone(
                f"changes after revision {after_revision} are not kept: list again and watch from there"
            )
        return tuple(map(mapping.event_value, self._all(_CHANGES, b_after=after_revision, b_limit=limit)))


class LeaseWrites(session.WriteSession, LeaseReads):
    """Changes of leases."""

    def add_lease(self, new: lease.Lease, body_digest: str, event: store.NewEvent) -> lease.Lease:
        stored = dataclasses.replace(new, revision=self._revisions.next())
        try:
            with self._attempt():
                self._run(_ADD, **mapping.lease_columns(stored, body_digest))
        except sa.exc.IntegrityError:
            raise errors.AlreadyExists(
                f"the lease {new.id!r} or the request {new.request_id!r} is there already"
            ) from None
        if labels := mapping.label_rows(stored):
            self._connection.execute(_ADD_LABELS, labels)
        self._add_event(stored, event)
        self._revisions.touched.lease(stored.id, stored)
        return stored

    def save_lease(self, changed: lease.Lease, event: store.NewEvent | None = None) -> lease.Lease:
        saved = dataclasses.replace(changed, revision=self._revisions.next())
        times = self._one(
            _SAVE,
            b_id=changed.id,
            b_revision=changed.revision,
            b_renewed_until=mapping.optional_us(changed.renewed_until),
            b_activity=mapping.optional_us(changed.last_activity_at),
            **mapping.lease_changes(saved),
        )
        if times is None:
            raise errors.Conflict(
                f"the lease {changed.id!r} has changed since revision {changed.revision}: read it again"
            )
        self._add_event(saved, event or store.NewEvent(type="Changed", message="", actor="", at=self._clock.now()))
        stored = dataclasses.replace(saved, **mapping.renewal_times(times))
        self._revisions.touched.lease(stored.id, stored)
        return stored

    def renew_lease(
        self, lease_id: ids.LeaseId, renewed_until: dt.datetime | None, last_activity_at: dt.datetime | None
    ) -> None:
        """None leaves a time as it is. NotFound if there is no such lease."""
        found = self._run(
            _RENEW,
            b_id=lease_id,
            b_renewed_until=mapping.optional_us(renewed_until),
            b_activity=mapping.optional_us(last_activity_at),
        )
        if not found:
            raise errors.NotFound(f"there is no lease {lease_id!r}")
        self._revisions.touched.lease(lease_id)

    def forget_before(self, instant: dt.datetime) -> int:
        """At most `FORGET_AT_ONCE` a call, those that ended first; their names and endpoints go with them."""
        ended = [row["id"] for row in self._all(_FORGETTABLE, b_before=documents.to_us(instant))]
        if ended:
            self._forget(ended)
        return len(ended)

    def _forget(self, lease_ids: list[str]) -> None:
        last = self._connection.execute(
            sa.select(sa.func.max(_EVENTS.revision)).where(_EVENTS.lease_id.in_(lease_ids))
        ).scalar_one()
        forgotten = tables.INSTALLATION.c.forgotten_revision
        self._run(sa.update(tables.INSTALLATION).where(forgotten < last).values(forgotten_revision=last))
        self._touch(tables.ENDPOINTS)
        self._touch(tables.NAMES)
        self._run(sa.delete(tables.ENDPOINTS).where(tables.ENDPOINTS.c.owner.in_(self._owners(lease_ids))))
        self._run(sa.delete(tables.LEASES).where(_LEASES.id.in_(lease_ids)))

    def _owners(self, lease_ids: list[str]) -> list[str]:
        names = self._all(sa.select(tables.NAMES).where(tables.NAMES.c.lease_id.in_(lease_ids)))
        return [f"lease/{lease_id}" for lease_id in lease_ids] + [
            f"name/{row['namespace']}/{row['name']}" for row in names
        ]

    def _add_event(self, changed: lease.Lease, event: store.NewEvent) -> None:
        stored = lease.LeaseEvent(
            revision=changed.revision,
            lease_id=changed.id,
            namespace=changed.namespace,
            at=event.at,
            type=event.type,
            message=event.message,
            actor=event.actor,
            state=changed.state,
        )
        self._run(_ADD_EVENT, **mapping.event_columns(stored))


def _same(known: lease.Lease | None, mark: session.Row) -> TypeGuard[lease.Lease]:
    return known is not None and bool(known.revision == mark["revision"])


def _renewed(old: lease.Lease, mark: session.Row) -> lease.Lease:
    """Renewals raise no revision."""
    times = mapping.renewal_times(mark)
    same = old.renewed_until == times["renewed_until"] and old.last_activity_at == times["last_activity_at"]
    return old if same else dataclasses.replace(old, **times)


def _values(rows: Any) -> tuple[lease.Lease, ...]:
    return tuple(map(mapping.lease_value, rows))


def _filters(query: store.LeaseQuery) -> list[sa.ColumnElement[bool]]:
    filters = [_has_label(key, value) for key, value in sorted(query.labels.items())]
    if query.namespace is not None:
        filters.append(_LEASES.namespace == query.namespace)
    if query.states:
        filters.append(_LEASES.state.in_(sorted(state.value for state in query.states)))
    if query.living_only:
        filters.append(_LEASES.state.in_(_LIVING))
    if query.pool is not None:
        filters.append(_LEASES.pool == query.pool)
    if query.parent_id is not None:
        filters.append(_LEASES.parent_id == query.parent_id)
    if query.before is not None:
        created_at, lease_id = query.before
        place = sa.tuple_(sa.literal(documents.to_us(created_at), sa.BigInteger), sa.literal(lease_id))
        filters.append(sa.tuple_(_LEASES.created_at, _LEASES.id) < place)
    return filters


def _has_label(key: str, value: str) -> sa.ColumnElement[bool]:
    labelled = sa.select(_LABELS.lease_id).where(_LABELS.key == key, _LABELS.value == value)
    return _LEASES.id.in_(labelled)
