"""Shows the workers: what is stored of them, what the backend sees, what their sidecars said last."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from collections.abc import Iterable, Sequence

from tms_server.fleet import desired
from tms_server.leases import validate
from tms_server.model import bundle, group, ids, resources
from tms_server.model import caller as caller_module
from tms_server.placement import index as fleet_index
from tms_server.ports import backend as backend_module
from tms_server.services import parts, views
from tms_server.world import fleet_view


class WorkerState(enum.StrEnum):
    """How a worker is."""

    STARTING = "STARTING"
    READY = "READY"
    LOST = "LOST"
    DRAINING = "DRAINING"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """One worker of a group; `trouble` says why it is not ready, if the backend knows."""

    id: ids.ReplicaId
    state: WorkerState
    report: group.GroupReport | None = None
    seen: backend_module.Replica | None = None

    @property
    def trouble(self) -> backend_module.Trouble | None:
        """Why it is not ready, by the backend or else by its own sidecar."""
        if self.seen is not None and self.seen.trouble is not None:
            return self.seen.trouble
        stuck = self.report.worker_trouble if self.report is not None else ""
        return backend_module.Trouble("WorkerStuck", stuck) if stuck else None

    @property
    def endpoint(self) -> resources.Endpoint | None:
        """Where the worker itself answers."""
        if self.report is not None and self.report.worker_endpoint is not None:
            return self.report.worker_endpoint
        return self.seen.endpoint if self.seen is not None else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker group."""

    stored: group.WorkerGroup
    state: WorkerState
    booked_bytes: int
    lease_ids: tuple[ids.LeaseId, ...]
    endpoint: resources.Endpoint | None
    restarts: int
    models: tuple[views.ModelView, ...]
    replicas: tuple[ReplicaView, ...]
    wanted_replicas: int

    @property
    def measured_bytes(self) -> int:
        """The most that any of its workers holds."""
        return max((each.report.used_bytes for each in self.replicas if each.report is not None), default=0)

    @property
    def last_report_at(self) -> dt.datetime | None:
        return max((each.report.received_at for each in self.replicas if each.report is not None), default=None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The use case of looking at workers."""

    parts: parts.Parts

    async def list(self, caller: caller_module.Caller, namespace: ids.Namespace, pool: str) -> tuple[WorkerView, ...]:
        """Workers of a namespace, of one pool if named, oldest first."""
        del caller  # every caller may, while there are no rights
        validate.name("namespace", namespace)
        fleet, endpoints = await self.parts.store.read(
            lambda reader: (
                fleet_view.fleet(reader, self.parts.backend.capacity_bytes),
                reader.endpoints(),
            )
        )
        books = fleet_index.of(fleet).books
        shown = [each for each in fleet.groups if each.namespace == namespace and (not pool or each.pool == pool)]
        held: dict[ids.GroupId, list[ids.LeaseId]] = {}
        for assignment in fleet.assignments:
            held.setdefault(assignment.group_id, []).append(assignment.lease_id)
        return tuple(
            self._view(
                each,
                books[each.id].booked_bytes,
                tuple(dict.fromkeys(held.get(each.id, ()))),
                endpoints.get(desired.group_owner(each.id)),
            )
            for each in shown
        )

    def _view(
        self,
        of: group.WorkerGroup,
        booked_bytes: int,
        lease_ids: tuple[ids.LeaseId, ...],
        endpoint: resources.Endpoint | None,
    ) -> WorkerView:
        known = self.parts.live
        observed = known.observed(of.id)
        replicas = tuple(self._replica(of, each) for each in known.workers(of.id))
        reports = known.heard_of(of.id)
        return WorkerView(
            stored=of,
            state=_worst(of, replicas),
            booked_bytes=booked_bytes,
            lease_ids=lease_ids,
            endpoint=endpoint,
            restarts=observed.restarts if observed is not None else 0,
            models=_models(reports),
            replicas=replicas,
            wanted_replicas=observed.wanted_replicas if observed is not None else of.replicas,
        )

    def _replica(self, of: group.WorkerGroup, worker: ids.WorkerId) -> ReplicaView:
        known = self.parts.live
        report = known.heard(worker)
        return ReplicaView(
            id=worker.replica, state=self._state(of, worker, report), report=report, seen=known.replica(worker)
        )

    def _state(self, of: group.WorkerGroup, worker: ids.WorkerId, report: group.GroupReport | None) -> WorkerState:
        if of.phase is group.GroupPhase.DRAINING:
            return WorkerState.DRAINING
        known = self.parts.live
        gone_since = known.gone_since(worker)
        if known.down(worker) and report is not None:
            return WorkerState.LOST
        if report is None:
            return WorkerState.STARTING
        if gone_since is not None and not self._warming(gone_since):
            return WorkerState.LOST
        return WorkerState.READY if report.server_ready else WorkerState.STARTING

    def _warming(self, gone_since: dt.datetime) -> bool:
        """It has only been gone since this server took over, and its sidecar may still be on its way back."""
        known, now = self.parts.live, self.parts.clock.now()
        return known.warm_from == gone_since and now - gone_since < self.parts.lost_after


def _worst(of: group.WorkerGroup, replicas: Sequence[ReplicaView]) -> WorkerState:
    """Of the group: ready once one worker is, else as far as its workers are."""
    if of.phase is group.GroupPhase.DRAINING:
        return WorkerState.DRAINING
    order = (WorkerState.READY, WorkerState.LOST, WorkerState.STARTING)
    return next((each for each in order if any(one.state is each for one in replicas)), WorkerState.STARTING)


def _models(reports: Iterable[group.GroupReport]) -> tuple[views.ModelView, ...]:
    """Each model once, as it is in the worker where it is furthest."""
    heard: dict[bundle.ModelKey, list[group.ModelReport]] = {}
    for model in (each for report in reports for each in report.models):
        heard.setdefault(bundle.reported_key(model), []).append(model)
    return tuple(views.furthest(_model(each[0]), each) for each in heard.values())


def _model(heard: group.ModelReport) -> views.ModelView:
    return views.ModelView(
        name=heard.name,
        state=heard.state,
        booked_bytes=max(0, heard.bytes_after_load - heard.bytes_before_load),
        source_digest=heard.source_digest,
    )
