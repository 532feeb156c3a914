"""What a worker's report says of a lease that is booked there.

Decides what the report means for the lease, and when its memory is free again. It never moves the lease.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from tms_server.model import bundle, group, lease, resources

HOLDING = frozenset({group.ModelState.LOADING, group.ModelState.READY, group.ModelState.DRAINING})
"""States in which a model has, or may have, bytes on the worker."""
_BEGUN = frozenset({group.ModelState.FETCHING, group.ModelState.LOADING, group.ModelState.READY})


@dataclasses.dataclass(frozen=True, slots=True)
class Absent:
    """The worker has not said anything of the lease yet."""


@dataclasses.dataclass(frozen=True, slots=True)
class Loading:
    """At least one model is being fetched or loaded, or the endpoint does not listen yet."""

    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """All models are ready and the lease's endpoint takes connections."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """A model could not be loaded. A retryable failure passes by itself."""

    model: str
    reason: str
    message: str
    retryable: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """The sidecar is not connected (WorkerLost), or its server does not answer (ServerDown)."""

    reason: str
    message: str


Progress = Absent | Loading | Ready | Failed | Lost


def of(
    held: lease.Lease,
    booked: group.Assignment,
    endpoint: resources.Endpoint | None,
    report: group.GroupReport | None,
) -> Progress:
    """What the last report of the group says of the lease; `endpoint` is the lease's own, None if not published yet."""
    if report is None or report.generation < booked.generation:
        return Absent()
    if not report.connected:
        return Lost("WorkerLost", f"worker {booked.group_id} is not connected")
    keys = {model.key for model in bundle.models(held)}
    seen = [model for model in report.models if bundle.reported_key(model) in keys]
    if (failed := _failure(seen)) is not None:
        return failed
    states = {model.state for model in seen}
    if not report.server_ready and group.ModelState.FETCHING not in states:
        return Lost("ServerDown", f"the server of worker {booked.group_id} does not answer")
    if len(seen) == len(keys) and states == {group.ModelState.READY} and endpoint in report.endpoints:
        return Ready()
    return Loading("; ".join(_line(model) for model in seen)) if states & _BEGUN else Absent()


def drained(booked: group.Assignment, generation: int) -> group.Assignment:
    """The assignment as no longer wanted from that generation of its group on."""
    return dataclasses.replace(booked, draining=True, generation=generation)


def released(
    ended: lease.Lease, booked: group.Assignment, staying: Collection[lease.Lease], report: group.GroupReport | None
) -> bool:
    """Whether the worker has confirmed that it holds nothing for this draining assignment any more.

    `staying` are the leases still wanted on the group: models that they share with the ended one stay loaded for them.
    A server that does not answer confirms nothing.
    """
    if report is None or not booked.draining or report.generation < booked.generation or not report.server_ready:
        return False
    wanted = {model.key for other in staying if other.id != ended.id for model in bundle.models(other)}
    leaving = {model.key for model in bundle.models(ended)} - wanted
    return not any(model.state in HOLDING and bundle.reported_key(model) in leaving for model in report.models)


def _failure(seen: Collection[group.ModelReport]) -> Failed | None:
    failed = [model for model in seen if model.state is group.ModelState.FAILED]
    if not failed:
        return None
    worst = min(failed, key=lambda model: model.retryable)
    return Failed(worst.name, worst.reason or "LoadFailed", worst.message, worst.retryable)


def _line(model: group.ModelReport) -> str:
    if model.state is group.ModelState.FETCHING and model.total_bytes:
        return f"{model.name} FETCHING {model.fetched_bytes} of {model.total_bytes} bytes"
    return f"{model.name} {model.state}"
