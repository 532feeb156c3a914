"""Worker groups in the database: what should run where, what was seen and measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from tms_server.model import errors, group, ids
from tms_server.store import mapping, session, tables

_GROUPS = tables.WORKER_GROUPS.c
_ASSIGNMENTS = tables.ASSIGNMENTS.c
_MEASUREMENTS = tables.MEASUREMENTS.c

_ALL_GROUPS = sa.select(tables.WORKER_GROUPS).order_by(_GROUPS.created_at, _GROUPS.id)
_GROUP_IDS = sa.select(_GROUPS.id)
_ALL_ASSIGNMENTS = sa.select(tables.ASSIGNMENTS).order_by(
    _ASSIGNMENTS.assigned_at, _ASSIGNMENTS.lease_id, _ASSIGNMENTS.copy, _ASSIGNMENTS.group_id
)
_OF_LEASE = _ALL_ASSIGNMENTS.where(_ASSIGNMENTS.lease_id == sa.bindparam("b_lease_id"))
_ALL_REPORTS = sa.select(tables.GROUP_REPORTS).order_by(*tables.GROUP_REPORTS.primary_key.columns)
_ALL_MEASUREMENTS = sa.select(tables.MEASUREMENTS).order_by(*tables.MEASUREMENTS.primary_key.columns)
_OF_SOURCE = _ALL_MEASUREMENTS.where(_MEASUREMENTS.source_digest == sa.bindparam("b_source_digest"))
_REPLACE_GROUP = session.update_by_key(tables.WORKER_GROUPS).where(_GROUPS.generation == sa.bindparam("b_expected"))


class GroupReads(session.ReadSession):
    """Reads of groups and what belongs to them."""

    def get_group(self, group_id: ids.GroupId) -> group.WorkerGroup | None:
        row = self._one(session.select_by_key(tables.WORKER_GROUPS), b_id=group_id)
        return None if row is None else mapping.group_value(row)

    def groups(self) -> tuple[group.WorkerGroup, ...]:
        return self._whole(tables.WORKER_GROUPS, lambda: tuple(map(mapping.group_value, self._all(_ALL_GROUPS))))

    def assignments(self, lease_id: ids.LeaseId | None = None) -> tuple[group.Assignment, ...]:
        if lease_id is None:
            return self._whole(tables.ASSIGNMENTS, lambda: _assignments(self._all(_ALL_ASSIGNMENTS)))
        return _assignments(self._all(_OF_LEASE, b_lease_id=lease_id))

    def reports(self) -> tuple[group.GroupReport, ...]:
        return tuple(map(mapping.report_value, self._all(_ALL_REPORTS)))

    def measurements(self, source_digest: ids.Digest | None = None) -> tuple[group.Measurement, ...]:
        if source_digest is None:
            return self._whole(tables.MEASUREMENTS, lambda: _measurements(self._all(_ALL_MEASUREMENTS)))
        return _measurements(self._all(_OF_SOURCE, b_source_digest=source_digest))


class GroupWrites(session.WriteSession, GroupReads):
    """Changes of groups and what belongs to them."""

    def put_group(self, new: group.WorkerGroup, expected_generation: int | None) -> None:
        self._touch(tables.WORKER_GROUPS)
        if expected_generation is None:
            self._add_group(new)
            return
        row = {f"b_{name}": value for name, value in mapping.group_columns(new).items()}
        if not self._run(_REPLACE_GROUP, b_expected=expected_generation, **row):
            raise errors.Conflict(
                f"the group {new.id!r} is not at generation {expected_generation} any more: read it again"
            )

    def _add_group(self, new: group.WorkerGroup) -> None:
        try:
            with self._attempt():
                self._connection.execute(sa.insert(tables.WORKER_GROUPS), mapping.group_columns(new))
        except sa.exc.IntegrityError:
            raise errors.Conflict(f"the group {new.id!r} is there already") from None

    def delete_group(self, group_id: ids.GroupId) -> None:
        """FailedPrecondition while assignments are on it."""
        try:
            with self._attempt():
                self._delete(tables.WORKER_GROUPS, id=group_id)
        except sa.exc.IntegrityError:
            raise errors.FailedPrecondition(
                f"the group {group_id!r} still has assignments: delete them first"
            ) from None

    def put_assignment(self, new: group.Assignment) -> None:
        """NotFound if there is no such lease or group."""
        try:
            with self._attempt():
                self._put(tables.ASSIGNMENTS, mapping.assignment_columns(new))
        except sa.exc.IntegrityError:
            raise errors.NotFound(f"there is no lease {new.lease_id!r}, or no group {new.group_id!r}") from None

    def delete_assignment(self, lease_id: ids.LeaseId, group_id: ids.GroupId, copy: int) -> None:
        self._delete(tables.ASSIGNMENTS, lease_id=lease_id, copy=copy, group_id=group_id)

    def put_reports(self, reports: Sequence[group.GroupReport]) -> None:
        """Drops the report of a group that is gone: it comes late, and nothing would ever delete it."""
        known = {row["id"] for row in self._all(_GROUP_IDS)}
        for report in reports:
            if report.group_id in known:
                self._put(tables.GROUP_REPORTS, mapping.report_columns(report))

    def delete_report(self, worker: ids.WorkerId) -> None:
        self._delete(tables.GROUP_REPORTS, group_id=worker.group_id, replica=worker.replica)

    def put_measurement(self, new: group.Measurement) -> None:
        row = mapping.measurement_columns(new)
        key = {f"b_{column.name}": row[column.name] for column in tables.MEASUREMENTS.primary_key.columns}
        stored = self._one(session.select_by_key(tables.MEASUREMENTS), **key)
        if stored is None or stored["bytes"] < new.bytes:
            self._put(tables.MEASUREMENTS, row)


def _assignments(rows: Iterable[session.Row]) -> tuple[group.Assignment, ...]:
    return tuple(map(mapping.assignment_value, rows))


def _measurements(rows: Iterable[session.Row]) -> tuple[group.Measurement, ...]:
    return tuple(map(mapping.measurement_value, rows))
