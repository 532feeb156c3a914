"""A lease as callers see it: what is stored, and what its worker said last.

Reads in a transaction give plain values; what is known in memory is added afterwards, on the event loop.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping

from tms_server.fleet import desired
from tms_server.leases import expiry
from tms_server.model import bundle, group, ids, lease, resources
from tms_server.placement import booking
from tms_server.ports import store
from tms_server.world import live


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One model of a lease or of a worker."""

    name: str
    state: group.ModelState
    reason: str = ""
    message: str = ""
    fetched_bytes: int = 0
    total_bytes: int = 0
    framework: str = ""
    booked_bytes: int = 0
    source_digest: str = ""
    last_inference: dt.datetime | None = None
    inference_count: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """A lease with everything that is known of it at `now`; `deadline` is None while none runs."""

    lease: lease.Lease
    now: dt.datetime
    names: tuple[str, ...] = ()
    group_id: ids.GroupId | None = None
    endpoint: resources.Endpoint | None = None
    worker_endpoints: tuple[resources.Endpoint, ...] = ()
    models: tuple[ModelView, ...] = ()
    deadline: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What is stored around leases, read in the same snapshot."""

    names: Mapping[ids.LeaseId, tuple[str, ...]]
    assignments: Mapping[ids.LeaseId, group.Assignment]
    endpoints: Mapping[str, resources.Endpoint]
    kinds: Mapping[ids.GroupId, str]
    measured: booking.Measured


BARE = Context(names={}, assignments={}, endpoints={}, kinds={}, measured={})
"""Around a lease that nothing points at yet."""


def context(reader: store.Reader, leases: Iterable[lease.Lease]) -> Context:
    """Reads what surrounds these leases, and nothing else: a call about one lease costs the same in a great fleet."""
    shown = list(leases)
    assignments = {each.id: booked for each in shown if (booked := _assignment(reader, each)) is not None}
    groups = {each.group_id for each in assignments.values()}
    found = {each.id: each for each in map(reader.get_group, sorted(groups)) if each is not None}
    owners = [desired.lease_owner(each.id) for each in shown if each.active_at is not None]
    endpoints = {owner: reader.get_endpoint(owner) for owner in owners}
    digests = {model.key.source_digest for each in shown if each.id in assignments for model in bundle.models(each)}
    return Context(
        names={each.id: tuple(bound.name for bound in reader.names_of(each.id)) for each in shown},
        assignments=assignments,
        endpoints={owner: endpoint for owner, endpoint in endpoints.items() if endpoint is not None},
        kinds={each.id: booking.worker_kind(each.spec) for each in found.values()},
        measured=booking.measured(one for digest in sorted(digests) for one in reader.measurements(digest)),
    )


def _assignment(reader: store.Reader, of: lease.Lease) -> group.Assignment | None:
    """The lease's wanted assignment, else a draining one."""
    if of.state is lease.LeaseState.PENDING or of.state.ended:
        return None
    return min(reader.assignments(of.id), key=lambda each: each.draining, default=None)


def view(stored: lease.Lease, around: Context, known: live.Live, now: dt.datetime) -> LeaseView:
    """Puts a lease together; call it on the event loop."""
    shown = with_live_use(stored, known)
    assignment = around.assignments.get(stored.id)
    report = known.heard(assignment.group_id) if assignment is not None else None
    worker = report.worker_endpoint if report is not None and not stored.state.ended else None
    endpoint = around.endpoints.get(desired.lease_owner(stored.id)) if stored.active_at is not None else None
    return LeaseView(
        lease=shown,
        now=now,
        names=around.names.get(stored.id, ()),
        group_id=assignment.group_id if assignment is not None else None,
        endpoint=endpoint,
        worker_endpoints=(worker,) if worker is not None else (),
        models=_models(shown, around, assignment, report),
        deadline=expiry.deadline(shown),
    )


def with_live_use(stored: lease.Lease, known: live.Live) -> lease.Lease:
    """The lease with use that is not stored yet."""
    use = known.uses.get(stored.id)
    if use is None or (stored.last_activity_at is not None and stored.last_activity_at >= use):
        return stored
    return dataclasses.replace(stored, last_activity_at=use)


def _models(
    shown: lease.Lease, around: Context, assignment: group.Assignment | None, report: group.GroupReport | None
) -> tuple[ModelView, ...]:
    resolved = bundle.models(shown)
    if not resolved:
        return tuple(
            ModelView(name=each.name, state=group.ModelState.PENDING, framework=each.framework or "")
            for each in shown.spec.models
        )
    kind = around.kinds.get(assignment.group_id, "") if assignment is not None else ""
    heard = {_key(each): each for each in report.models} if report is not None else {}
    nothing = assignment is None
    return tuple(_model(each, None if nothing else heard.get(each.key), kind, around, shown) for each in resolved)


def _model(
    model: bundle.Model, heard: group.ModelReport | None, kind: str, around: Context, shown: lease.Lease
) -> ModelView:
    booked = booking.model_bytes(model, kind, around.measured)[0] if kind else 0
    blank = ModelView(
        name=model.key.name,
        state=group.ModelState.UNLOADED if shown.state.ended else group.ModelState.PENDING,
        framework=model.source.framework,
        booked_bytes=booked,
        total_bytes=model.source.size_bytes,
        source_digest=model.key.source_digest,
    )
    return blank if heard is None else reported(blank, heard)


def reported(blank: ModelView, heard: group.ModelReport) -> ModelView:
    """A model's view with what its worker said."""
    return dataclasses.replace(
        blank,
        state=heard.state,
        reason=heard.reason,
        message=heard.message,
        fetched_bytes=heard.fetched_bytes,
        total_bytes=heard.total_bytes or blank.total_bytes,
        last_inference=heard.last_inference,
        inference_count=heard.inference_count,
    )


def _key(model: group.ModelReport) -> bundle.ModelKey:
    return bundle.ModelKey(model.name, model.source_digest, model.config_digest)
