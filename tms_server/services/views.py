"""A lease as callers see it: what is stored, and what its worker said last.

Reads in a transaction give plain values; what is known in memory is added afterwards, on the event loop.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from tms_server.fleet import desired
from tms_server.leases import expiry, progress
from tms_server.model import bundle, group, ids, lease, resources
from tms_server.placement import booking
from tms_server.ports import store
from tms_server.world import live

FEW = 32
"""Leases that are asked for one by one; more are looked up in whole tables."""
K = TypeVar("K")
V = TypeVar("V")
_S = group.ModelState
_LONGEST_S = 365 * 86400.0
_ORDER = (_S.UNLOADED, _S.PENDING, _S.DRAINING, _S.FAILED, _S.FETCHING, _S.LOADING, _S.READY)
"""How far a model is, from nothing to serving."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One model of a lease or of a worker."""

    name: str
    state: group.ModelState
    reason: str = ""
    message: str = ""
    fetched_bytes: int = 0
    total_bytes: int = 0
    fetch_bytes_per_s: int = 0
    framework: str = ""
    booked_bytes: int = 0
    source_digest: str = ""
    last_inference: dt.datetime | None = None
    inference_count: int = 0

    @property
    def fetch_remaining(self) -> dt.timedelta | None:
        """How long the rest of a fetch takes at its rate; None where there is none or it is not known."""
        if self.state is not group.ModelState.FETCHING or not self.fetch_bytes_per_s:
            return None
        left_bytes = max(self.total_bytes - self.fetched_bytes, 0)
        return dt.timedelta(seconds=min(left_bytes / self.fetch_bytes_per_s, _LONGEST_S))


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
    wanted_replicas: int = 0
    ready_replicas: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What is stored around leases, read in the same snapshot."""

    names: Mapping[ids.LeaseId, tuple[str, ...]]
    assignments: Mapping[ids.LeaseId, tuple[group.Assignment, ...]]
    endpoints: Mapping[str, resources.Endpoint]
    kinds: Mapping[ids.GroupId, str]
    measured: booking.Measured


BARE = Context(names={}, assignments={}, endpoints={}, kinds={}, measured={})
"""Around a lease that nothing points at yet."""


def context(reader: store.Reader, leases: Iterable[lease.Lease]) -> Context:
    """Reads what surrounds these leases; of few nothing else, so that a call about one costs the same in a great fleet."""
    shown = list(leases)
    read: store.Reader | _Whole = reader if len(shown) <= FEW else _Whole(reader)
    assignments = {each.id: booked for each in shown if (booked := _assignments(read, each))}
    groups = {each.group_id for booked in assignments.values() for each in booked}
    found = {each.id: each for each in map(read.get_group, sorted(groups)) if each is not None}
    owners = [desired.lease_owner(each.id) for each in shown if each.active_at is not None]
    endpoints = {owner: read.get_endpoint(owner) for owner in owners}
    digests = {model.key.source_digest for each in shown if each.id in assignments for model in bundle.models(each)}
    return Context(
        names={each.id: tuple(bound.name for bound in read.names_of(each.id)) for each in shown},
        assignments=assignments,
        endpoints={owner: endpoint for owner, endpoint in endpoints.items() if endpoint is not None},
        kinds={each.id: booking.worker_kind(each.spec) for each in found.values()},
        measured=booking.measured(one for digest in sorted(digests) for one in read.measurements(digest)),
    )


class _Whole:
    """Answers as a reader does, from whole tables: many small questions cost more than a great one."""

    def __init__(self, reader: store.Reader) -> None:
        self._endpoints = reader.endpoints()
        self._groups = {each.id: each for each in reader.groups()}
        self._assignments = _grouped(reader.assignments(), lambda each: each.lease_id)
        self._names = _grouped(reader.names(), lambda each: each.lease_id)
        self._measurements = _grouped(reader.measurements(), lambda each: each.source_digest)

    def get_group(self, group_id: ids.GroupId) -> group.WorkerGroup | None:
        return self._groups.get(group_id)

    def get_endpoint(self, owner: str) -> resources.Endpoint | None:
        return self._endpoints.get(owner)

    def assignments(self, lease_id: ids.LeaseId) -> tuple[group.Assignment, ...]:
        return tuple(self._assignments.get(lease_id, ()))

    def names_of(self, lease_id: ids.LeaseId) -> tuple[lease.NameBinding, ...]:
        return tuple(self._names.get(lease_id, ()))

    def measurements(self, source_digest: ids.Digest) -> tuple[group.Measurement, ...]:
        return tuple(self._measurements.get(source_digest, ()))


def _grouped(values: Iterable[V], key: Callable[[V], K]) -> Mapping[K, Sequence[V]]:
    found: dict[K, list[V]] = {}
    for each in values:
        found.setdefault(key(each), []).append(each)
    return found


def _assignments(reader: store.Reader | _Whole, of: lease.Lease) -> tuple[group.Assignment, ...]:
    """The lease's wanted assignments, else the draining ones."""
    if of.state is lease.LeaseState.PENDING or of.state.ended:
        return ()
    found = reader.assignments(of.id)
    return tuple(each for each in found if not each.draining) or found


def view(stored: lease.Lease, around: Context, known: live.Live, now: dt.datetime) -> LeaseView:
    """Puts a lease together; call it on the event loop."""
    shown = with_live_use(stored, known)
    booked = around.assignments.get(stored.id, ())
    reports = [report for each in booked for report in known.heard_of(each.group_id)]
    workers = [each.worker_endpoint for each in reports if not stored.state.ended]
    endpoint = around.endpoints.get(desired.lease_owner(stored.id)) if stored.active_at is not None else None
    return LeaseView(
        lease=shown,
        now=now,
        names=around.names.get(stored.id, ()),
        group_id=booked[0].group_id if booked else None,
        endpoint=endpoint,
        worker_endpoints=tuple(each for each in workers if each is not None),
        models=_models(shown, around, booked, reports),
        deadline=expiry.deadline(shown),
        wanted_replicas=_wanted(shown, booked, known),
        ready_replicas=sum(_answers(shown, each, known) for each in booked) if stored.state.living else 0,
    )


def _wanted(shown: lease.Lease, booked: Sequence[group.Assignment], known: live.Live) -> int:
    if not shown.state.living:
        return 0
    if isinstance(shown.spec.placement, lease.InPool):
        return shown.wanted_copies
    observed = [known.observed(each.group_id) for each in booked]
    return sum(each.wanted_replicas for each in observed if each is not None) or shown.spec.placement.replicas


def _answers(shown: lease.Lease, booked: group.Assignment, known: live.Live) -> int:
    """Workers of the group that are connected, have all models of the lease, and that the backend lets clients reach."""
    connected = (each for each in known.heard_of(booked.group_id) if known.gone_since(each.worker) is None)
    return sum(progress.loaded(shown, booked, each) and known.let_in(each.worker) for each in connected)


def with_live_use(stored: lease.Lease, known: live.Live) -> lease.Lease:
    """The lease with use that is not stored yet."""
    use = known.uses.get(stored.id)
    if use is None or (stored.last_activity_at is not None and stored.last_activity_at >= use):
        return stored
    return dataclasses.replace(stored, last_activity_at=use)


def _models(
    shown: lease.Lease, around: Context, booked: Sequence[group.Assignment], reports: Sequence[group.GroupReport]
) -> tuple[ModelView, ...]:
    resolved = bundle.models(shown)
    if not resolved:
        return tuple(
            ModelView(name=each.name, state=group.ModelState.PENDING, framework=each.framework or "")
            for each in shown.spec.models
        )
    kind = around.kinds.get(booked[0].group_id, "") if booked else ""
    heard: dict[bundle.ModelKey, list[group.ModelReport]] = {}
    for model in (each for report in reports for each in report.models):
        heard.setdefault(bundle.reported_key(model), []).append(model)
    return tuple(_model(each, heard.get(each.key, ()), kind, around, shown) for each in resolved)


def _model(
    model: bundle.Model, heard: Sequence[group.ModelReport], kind: str, around: Context, shown: lease.Lease
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
    return furthest(blank, heard) if heard else blank


def furthest(blank: ModelView, heard: Sequence[group.ModelReport]) -> ModelView:
    """One model in several workers: the state of the one that is furthest, the use of all."""
    best = max(heard, key=lambda each: (_ORDER.index(each.state), each.fetched_bytes))
    return dataclasses.replace(
        _reported(blank, best),
        inference_count=sum(each.inference_count for each in heard),
        last_inference=max((each.last_inference for each in heard if each.last_inference is not None), default=None),
    )


def _reported(blank: ModelView, heard: group.ModelReport) -> ModelView:
    """A model's view with what its worker said."""
    return dataclasses.replace(
        blank,
        state=heard.state,
        reason=heard.reason,
        message=heard.message,
        fetched_bytes=heard.fetched_bytes,
        total_bytes=heard.total_bytes or blank.total_bytes,
        fetch_bytes_per_s=heard.fetch_bytes_per_s,
        last_inference=heard.last_inference,
        inference_count=heard.inference_count,
    )
