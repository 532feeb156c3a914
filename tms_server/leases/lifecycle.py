"""How a lease moves: one table of states, and one named function for each move.

Decides which state follows which event and what is recorded with it. It never decides when a move is due, and no other
module may write a lease's state.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tms_server.model import errors, ids, lease, sizes, source


class Event(enum.StrEnum):
    """What can happen to a lease."""

    RESOLVE = "resolve"
    PLACE = "place"
    LOAD = "load"
    ACTIVATE = "activate"
    INTERRUPT = "interrupt"
    DISPLACE = "displace"
    DRAIN = "drain"
    RELEASE = "release"
    EXPIRE = "expire"
    FAIL = "fail"
    REVOKE = "revoke"


_S = lease.LeaseState
_LIVING = (_S.PENDING, _S.PLACED, _S.LOADING, _S.ACTIVE)
_FINAL = {
    _S.RELEASED: Event.RELEASE,
    _S.EXPIRED: Event.EXPIRE,
    _S.FAILED: Event.FAIL,
    _S.REVOKED: Event.REVOKE,
}

TRANSITIONS: Mapping[tuple[lease.LeaseState, Event], lease.LeaseState] = MappingProxyType(
    {
        (_S.PENDING, Event.RESOLVE): _S.PENDING,
        (_S.PENDING, Event.PLACE): _S.PLACED,
        (_S.PLACED, Event.PLACE): _S.PLACED,
        (_S.LOADING, Event.PLACE): _S.PLACED,
        (_S.ACTIVE, Event.PLACE): _S.ACTIVE,
        (_S.PLACED, Event.LOAD): _S.LOADING,
        (_S.PLACED, Event.ACTIVATE): _S.ACTIVE,
        (_S.LOADING, Event.ACTIVATE): _S.ACTIVE,
        (_S.ACTIVE, Event.ACTIVATE): _S.ACTIVE,
        (_S.ACTIVE, Event.INTERRUPT): _S.ACTIVE,
        (_S.PLACED, Event.DISPLACE): _S.PENDING,
        (_S.LOADING, Event.DISPLACE): _S.PENDING,
        **{(state, Event.DRAIN): _S.RELEASING for state in _LIVING},
        **{(state, event): final for final, event in _FINAL.items() for state in (*_LIVING, _S.RELEASING)},
    }
)
"""Everything a lease can do; what is absent here is illegal."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a new lease is and who asked for it."""

    id: ids.LeaseId
    namespace: ids.Namespace
    request_id: str
    actor: str


def request(identity: Identity, spec: lease.LeaseSpec, now: dt.datetime) -> lease.Lease:
    """Makes a PENDING lease whose models are not looked up yet. The spec must be valid already."""
    new = lease.Lease(
        id=identity.id,
        namespace=identity.namespace,
        spec=spec,
        request_id=identity.request_id,
        actor=identity.actor,
        state=lease.LeaseState.PENDING,
        created_at=now,
    )
    new = _say(new, "Resolved", (False, "Resolving", "the models are being looked up"), now)
    return _say(new, "Placed", (False, "Resolving", "waits for its models to be looked up"), now)


def resolve(old: lease.Lease, sources: Sequence[source.ModelSource], now: dt.datetime) -> lease.Lease:
    """Pins the files of every model, in the order of the spec. ValueError unless there is one source for each model."""
    if len(sources) != len(old.spec.models):
        raise ValueError(f"{len(old.spec.models)} models need as many sources, not {len(sources)}")
    moved = dataclasses.replace(_move(old, Event.RESOLVE, wanted_changes=True), sources=tuple(sources))
    total_bytes = sum(each.size_bytes for each in sources)
    message = f"{len(sources)} model(s), {sizes.text(total_bytes)} in their repositories"
    moved = _say(moved, "Resolved", (True, "Resolved", message), now)
    return _say(moved, "Placed", (False, "Unplaced", "waits for the placer"), now)


def unresolved(old: lease.Lease, reason: str, message: str, now: dt.datetime) -> lease.Lease:
    """Says why the models of a PENDING lease could not be looked up yet; no move."""
    return _say(old, "Resolved", (False, reason, message), now)


def wait(old: lease.Lease, reason: str, message: str, now: dt.datetime) -> lease.Lease:
    """Says why a lease has no place (such as NoCapacity); no move."""
    return _say(old, "Placed", (False, reason, message), now)


def place(old: lease.Lease, now: dt.datetime, message: str) -> lease.Lease:
    """A worker group was chosen. An ACTIVE lease that lost its group stays ACTIVE and goes on healing there."""
    moved = _move(old, Event.PLACE, wanted_changes=True)
    return _say(moved, "Placed", (True, "Placed", message), now)


def load(old: lease.Lease, now: dt.datetime, message: str = "models are being fetched and loaded") -> lease.Lease:
    """The worker began to fetch or load a model."""
    return _say(_move(old, Event.LOAD), "ModelsReady", (False, "Loading", message), now)


def loading(old: lease.Lease, reason: str, message: str, now: dt.datetime) -> lease.Lease:
    """Says how the load goes (or which passing failure delays it); no move."""
    return _say(old, "ModelsReady", (False, reason, message), now)


def activate(old: lease.Lease, now: dt.datetime) -> lease.Lease:
    """All models are ready and the endpoint answers; the clocks start at the first time, later times end a healing."""
    moved = dataclasses.replace(_move(old, Event.ACTIVATE), active_at=old.active_at or now)
    moved = _say(moved, "ModelsReady", (True, "Ready", "all models are ready"), now)
    return _say(moved, "Serving", (True, "Serving", "the endpoint answers"), now)


def interrupt(old: lease.Lease, reason: str, message: str, now: dt.datetime) -> lease.Lease:
    """An ACTIVE lease does not serve for a while (WorkerLost, ServerDown, ModelFailed ...); it keeps its state and heals."""
    moved = _say(_move(old, Event.INTERRUPT), "ModelsReady", (False, reason, message), now)
    return _say(moved, "Serving", (False, reason, message), now)


def published(old: lease.Lease, reason: str, message: str, now: dt.datetime, *, status: bool) -> lease.Lease:
    """Says whether the addresses of the lease's names could be had (or why not, such as NameTaken); no move."""
    return _say(old, "Published", (status, reason, message), now)


def warned(old: lease.Lease, reason: str, message: str, now: dt.datetime, *, status: bool) -> lease.Lease:
    """Says what stands against the lease now but may pass (`status` True), or that it has passed; no move."""
    return _say(old, "Warning", (status, reason, message), now)


def resized(old: lease.Lease, reason: str, message: str, now: dt.datetime, *, status: bool) -> lease.Lease:
    """Says whether the lease has as many copies as it should (or why not, such as NoCapacity); no move."""
    return _say(old, "Sized", (status, reason, message), now)


def resize(old: lease.Lease, copies: int) -> lease.Lease:
    """Other many copies are wanted from now on. IllegalTransition once the lease is ending."""
    if not old.state.living:
        raise errors.IllegalTransition(f"lease {old.id} is {old.state}: it cannot be resized")
    return dataclasses.replace(old, wanted_copies=copies, generation=old.generation + 1)


def displace(old: lease.Lease, reason: str, message: str, now: dt.datetime) -> lease.Lease:
    """The place was lost before the first ACTIVE: back to PENDING, to be placed anew."""
    moved = _move(old, Event.DISPLACE, wanted_changes=True)
    moved = _say(moved, "ModelsReady", (False, reason, message), now)
    return _say(moved, "Placed", (False, reason, message), now)


def end(old: lease.Lease, why: lease.LeaseEnd, *, holds_bytes: bool) -> lease.Lease:
    """Ends a living lease: RELEASING while a worker still holds bytes for it, else directly the state of `why`."""
    event = Event.DRAIN if holds_bytes else _final(why.state)
    moved = dataclasses.replace(_move(old, event, wanted_changes=True), end=why)
    if old.active_at is None:
        return moved
    return _say(moved, "Serving", (False, why.reason, why.message), why.at)


def finish(old: lease.Lease, now: dt.datetime) -> lease.Lease:
    """The last worker has confirmed the unload: RELEASING becomes the state that its end names."""
    if old.end is None or old.state is not lease.LeaseState.RELEASING:
        raise errors.IllegalTransition(f"lease {old.id} is {old.state}, not on its way out: nothing to finish")
    moved = _move(old, _final(old.end.state))
    return _say(moved, "Placed", (False, old.end.reason, "its memory is free again"), now)


def mermaid() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> PENDING"]
    for (before, after), events in _edges().items():
        lines.append(f"    {before} --> {after}: {', '.join(events)}")
    lines += [f"    {state} --> [*]" for state in _FINAL]
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """The table as a Markdown table, one row for each pair of states."""
    lines = ["| from | on | to |", "| --- | --- | --- |"]
    lines += [f"| {before} | {', '.join(events)} | {after} |" for (before, after), events in _edges().items()]
    return "\n".join(lines) + "\n"


def _edges() -> dict[tuple[lease.LeaseState, lease.LeaseState], list[Event]]:
    edges: dict[tuple[lease.LeaseState, lease.LeaseState], list[Event]] = {}
    order = list(lease.LeaseState)
    for (before, event), after in sorted(
        TRANSITIONS.items(), key=lambda item: (order.index(item[0][0]), order.index(item[1]), item[0][1])
    ):
        edges.setdefault((before, after), []).append(event)
    return edges


def _final(state: lease.LeaseState) -> Event:
    if state not in _FINAL:
        raise errors.IllegalTransition(f"{state} is not an end of a lease")
    return _FINAL[state]


def _move(old: lease.Lease, event: Event, *, wanted_changes: bool = False) -> lease.Lease:
    after = TRANSITIONS.get((old.state, event))
    if after is None:
        raise errors.IllegalTransition(f"lease {old.id} is {old.state}: it cannot {event}")
    return dataclasses.replace(old, state=after, generation=old.generation + wanted_changes)


def _say(old: lease.Lease, type_: str, what: tuple[bool, str, str], now: dt.datetime) -> lease.Lease:
    status, reason, message = what
    return old.with_condition(
        lease.Condition(type=type_, status=status, reason=reason, message=message, changed_at=now)
    )
