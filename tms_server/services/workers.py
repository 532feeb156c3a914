"""Shows the workers: what is stored of them, what the backend sees, what their sidecars said last."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum

from tms_server.fleet import desired
from tms_server.leases import validate
from tms_server.model import caller as caller_module
from tms_server.model import group, ids, resources
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
class WorkerView:
    """One worker group."""

    stored: group.WorkerGroup
    state: WorkerState
    booked_bytes: int
    lease_ids: tuple[ids.LeaseId, ...]
    endpoint: resources.Endpoint | None
    report: group.GroupReport | None
    restarts: int
    models: tuple[views.ModelView, ...]

    @property
    def last_report_at(self) -> dt.datetime | None:
        return self.report.received_at if self.report is not None else None


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
        held = {each.id: [a.lease_id for a in fleet.assignments if a.group_id == each.id] for each in shown}
        return tuple(
            self._view(
                each,
                books[each.id].booked_bytes,
                tuple(dict.fromkeys(held[each.id])),
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
        report, observed = self.parts.live.heard(of.id), self.parts.live.observed(of.id)
        return WorkerView(
            stored=of,
            state=self._state(of, report, observed),
            booked_bytes=booked_bytes,
            lease_ids=lease_ids,
            endpoint=endpoint,
            report=report,
            restarts=observed.restarts if observed is not None else 0,
            models=tuple(map(_model, report.models)) if report is not None else (),
        )

    def _state(
        self, of: group.WorkerGroup, report: group.GroupReport | None, observed: backend_module.Observed | None
    ) -> WorkerState:
        if of.phase is group.GroupPhase.DRAINING:
            return WorkerState.DRAINING
        if report is None:
            return WorkerState.STARTING
        backing_off = observed is not None and observed.phase is backend_module.Phase.BACKING_OFF
        if self.parts.live.gone_since(of.id) is not None or backing_off:
            return WorkerState.LOST
        return WorkerState.READY if report.server_ready else WorkerState.STARTING


def _model(heard: group.ModelReport) -> views.ModelView:
    blank = views.ModelView(
        name=heard.name,
        state=heard.state,
        booked_bytes=max(0, heard.bytes_after_load - heard.bytes_before_load),
        source_digest=heard.source_digest,
    )
    return views.reported(blank, heard)
