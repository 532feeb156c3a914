"""What a worker's report says of a lease that is booked there.

Decides what the report means for the lease, and when its memory is free again. It never moves the lease.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from tms_server.model import bundle, group, lease, sizes

HOLDING = frozenset({group.ModelState.LOADING, group.ModelState.READY, group.ModelState.DRAINING})
"""States in which a model has, or may have, bytes on the worker."""
_BEGUN = frozenset({group.ModelState.FETCHING, group.ModelState.LOADING, group.ModelState.READY})


@dataclasses.dataclass(frozen=True, slots=True)
class Absent:
    """The worker has not said anything of the lease yet."""


@dataclasses.dataclass(frozen=True, slots=True)
class Loading:
    """At least one model is being fetched or loaded, or no client is led there yet."""

    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """All models are ready and clients of the lease are led there."""


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


@dataclasses.dataclass(frozen=True, slots=True)
class Troubled:
    """No worker can serve for a reason that is not theirs: the backend cannot run them, or has no address."""

    reason: str
    message: str


Progress = Absent | Loading | Ready | Failed | Lost | Troubled


def of(held: lease.Lease, booked: group.Assignment, report: group.GroupReport | None, *, reachable: bool) -> Progress:
    """What the last report of one worker says of the lease; `reachable`: clients of the lease are led there."""
    if report is None or report.generation < booked.generation:
        return Absent()
    if not report.connected:
        return Lost("WorkerLost", f"worker {_name(report)} is not connected")
    keys, seen = _seen(held, report)
    if (failed := _failure(seen)) is not None:
        return failed
    states = {model.state for model in seen}
    if not report.server_ready and group.ModelState.FETCHING not in states:
        message = report.worker_trouble or f"the server of worker {_name(report)} does not answer"
        return Lost("ServerDown", message)
    if _complete(keys, seen) and reachable:
        return Ready()
    return Loading("; ".join(_line(model) for model in seen)) if states & _BEGUN else Absent()


def loaded(held: lease.Lease, booked: group.Assignment, report: group.GroupReport) -> bool:
    """Whether that worker can answer for all models of the lease, clients led there or not."""
    return report.generation >= booked.generation and report.server_ready and _complete(*_seen(held, report))


def given_up(held: lease.Lease, report: group.GroupReport) -> bool:
    """Whether a model of the lease can never be ready on that worker."""
    failed = _failure(_seen(held, report)[1])
    return failed is not None and not failed.retryable


def best(said: Iterable[Progress]) -> Progress:
    """What several workers together say: the furthest; a definite failure only where every one has failed so."""
    return max(said, key=_rank, default=Absent())


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


def _seen(held: lease.Lease, report: group.GroupReport) -> tuple[set[bundle.ModelKey], list[group.ModelReport]]:
    keys = {model.key for model in bundle.models(held)}
    return keys, [model for model in report.models if bundle.reported_key(model) in keys]


def _complete(keys: Collection[bundle.ModelKey], seen: Collection[group.ModelReport]) -> bool:
    return bool(keys) and len(seen) == len(keys) and all(model.state is group.ModelState.READY for model in seen)


def _rank(said: Progress) -> int:
    if isinstance(said, Failed):
        return 3 if said.retryable else 0
    return {Absent: 1, Lost: 2, Troubled: 2, Loading: 4, Ready: 5}[type(said)]


def _name(report: group.GroupReport) -> str:
    return "/".join(filter(None, report.worker))


def _failure(seen: Collection[group.ModelReport]) -> Failed | None:
    failed = [model for model in seen if model.state is group.ModelState.FAILED]
    if not failed:
        return None
    worst = min(failed, key=lambda model: model.retryable)
    return Failed(worst.name, worst.reason or "LoadFailed", worst.message, worst.retryable)


def _line(model: group.ModelReport) -> str:
    if model.state is group.ModelState.FETCHING and model.total_bytes:
        return f"{model.name} FETCHING {sizes.text(model.fetched_bytes)} of {sizes.text(model.total_bytes)}"
    return f"{model.name} {model.state}"
