"""One step of a lease under what its worker says of it: pure, level-triggered, at most one event.

Decides which named move of the life cycle follows; the same word heard twice moves nothing.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence

from tms_server.leases import lifecycle, progress
from tms_server.model import group, ids, lease, source
from tms_server.ports import backend, store

Shas = Mapping[tuple[ids.Digest, str], str]
ACTOR = "system"
_LOADING = (lease.LeaseState.PLACED, lease.LeaseState.LOADING)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The lease to save, or to end; `event` is None for a change without a line in its history."""

    changed: lease.Lease
    event: store.NewEvent | None = None
    end: lease.LeaseEnd | None = None
    first_active: bool = False


def shas(leases: Iterable[lease.Lease], reported: Iterable[group.ModelReport]) -> Shas:
    """What is known of files' contents, by (source digest, path); what was learnt first holds."""
    known: dict[tuple[ids.Digest, str], str] = {}
    for model in reported:
        known |= {(model.source_digest, file.path): file.sha256 for file in model.files if file.sha256}
    for each in leases:
        for found in each.sources:
            known |= {(found.digest, file.path): file.sha256 for file in found.files if file.sha256}
    return known


def step(held: lease.Lease, said: progress.Progress | None, known: Shas, now: dt.datetime) -> Step | None:
    """What changes for a living lease; `said` is None when nothing was heard of its workers yet."""
    learnt = _learn(held, known)
    moved = _moved(learnt, said, now)
    if moved is not None:
        return moved
    return Step(changed=learnt) if learnt is not held else None


def published(held: lease.Lease, troubles: Sequence[backend.Trouble], now: dt.datetime) -> Step | None:
    """What changes for a living lease whose names have no address, or have one again."""
    before = held.condition("Published")
    if troubles:
        message = "; ".join(each.message for each in troubles)
        moved = lifecycle.published(held, troubles[0].reason, message, now, status=False)
    elif before is None or before.status:
        return None
    else:
        moved = lifecycle.published(held, "Published", "its names have their addresses", now, status=True)
    if moved is held:
        return None
    after = moved.condition("Published")
    same = before is not None and after is not None and before.reason == after.reason
    event = _event("Unpublished" if troubles else "Published", _words(after), now)
    return Step(changed=moved, event=None if same else event)


def warned(held: lease.Lease, trouble: backend.Trouble | None, now: dt.datetime) -> Step | None:
    """What changes for a living lease when what stands against its worker does, or has passed."""
    before = held.condition("Warning")
    if trouble is not None:
        return _told(held, lifecycle.warned(held, trouble.reason, trouble.message, now, status=True), "Warning", now)
    if before is None or not before.status:
        return None
    return Step(changed=lifecycle.warned(held, "Passed", "nothing stands against its worker now", now, status=False))


def _moved(held: lease.Lease, said: progress.Progress | None, now: dt.datetime) -> Step | None:
    if held.state is lease.LeaseState.ACTIVE:
        return _of_active(held, said, now) if said is not None else None
    return _of_loading(held, said, now) if held.state in _LOADING else None


def _of_loading(held: lease.Lease, said: progress.Progress | None, now: dt.datetime) -> Step | None:
    match said:
        case progress.Ready():
            event = _event("Active", "all models are ready and the endpoint answers", now)
            return Step(changed=lifecycle.activate(held, now), event=event, first_active=True)
        case progress.Failed(retryable=False):
            return Step(changed=held, end=_failure(said, now))
        case progress.Troubled():
            return _told(held, lifecycle.loading(held, said.reason, said.message, now), "ModelsReady", now)
        case progress.Loading() if held.state is lease.LeaseState.PLACED:
            moved = lifecycle.load(held, now)
            return Step(changed=moved, event=_event("Loading", "its models are being fetched and loaded", now))
        case _:
            return _changed(held, _waiting(held, said, now))


def _waiting(held: lease.Lease, said: progress.Progress | None, now: dt.datetime) -> lease.Lease:
    match said:
        case progress.Failed() | progress.Lost():
            return lifecycle.loading(held, said.reason, said.message, now)
        case progress.Loading():
            return lifecycle.loading(held, "Loading", "models are being fetched and loaded", now)
        case _ if held.condition("ModelsReady") is not None:
            # What stood against it before has passed.
            return lifecycle.loading(held, "Starting", "its worker is starting", now)
        case _:
            return held


def _of_active(held: lease.Lease, said: progress.Progress, now: dt.datetime) -> Step | None:
    serving = held.condition("Serving")
    serves = serving is not None and serving.status
    match said:
        case progress.Ready():
            event = _event("Healed", "the endpoint answers again", now)
            return None if serves else Step(changed=lifecycle.activate(held, now), event=event)
        case progress.Failed() | progress.Lost() | progress.Troubled():
            reason, message = said.reason, said.message
        case _:
            reason, message = "Reloading", "its worker is loading its models again"
    moved = lifecycle.interrupt(held, reason, message, now)
    if not serves and isinstance(said, progress.Troubled):
        return _told(held, moved, "Serving", now)
    if moved == held:
        return None
    return Step(changed=moved, event=_event("Healing", f"{reason}: {message}", now) if serves else None)


def _told(held: lease.Lease, moved: lease.Lease, type_: str, now: dt.datetime) -> Step | None:
    """A trouble gets a line of history when its reason changes, not for each wording of it."""
    before, after = held.condition(type_), moved.condition(type_)
    if moved == held or after is None:
        return None
    same = before is not None and before.reason == after.reason
    return Step(changed=moved, event=None if same else _event("Trouble", _words(after), now))


def _words(condition: lease.Condition | None) -> str:
    return f"{condition.reason}: {condition.message}" if condition is not None else ""


def _changed(held: lease.Lease, moved: lease.Lease) -> Step | None:
    return None if moved == held else Step(changed=moved)


def _failure(said: progress.Failed, now: dt.datetime) -> lease.LeaseEnd:
    return lease.LeaseEnd(
        state=lease.LeaseState.FAILED,
        reason="ModelFailed",
        message=f"model {said.model}: {said.reason}: {said.message}",
        actor=ACTOR,
        at=now,
    )


def _learn(held: lease.Lease, known: Shas) -> lease.Lease:
    sources = tuple(_with_shas(found, known) for found in held.sources)
    return held if sources == held.sources else dataclasses.replace(held, sources=sources)


def _with_shas(found: source.ModelSource, known: Shas) -> source.ModelSource:
    if all(file.sha256 for file in found.files):
        return found
    digest = found.digest
    files = tuple(
        dataclasses.replace(file, sha256=file.sha256 or known.get((digest, file.path), "")) for file in found.files
    )
    return dataclasses.replace(found, files=files)


def _event(type_: str, message: str, now: dt.datetime) -> store.NewEvent:
    return store.NewEvent(type=type_, message=message, actor=ACTOR, at=now)
