"""Where clients are led, on backends that lead them: pure.

A worker takes clients of a lease only by its own word that all models are ready there; a worker that is silent keeps those
it has, for the silence may be ours. Nothing here decides what a worker holds; what it says holds for new connections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from tms_server.fleet import desired
from tms_server.leases import progress
from tms_server.model import group, ids, lease
from tms_server.ports import backend, store
from tms_server.world import sight


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is stored of all that can be led somewhere. `leases` are those that have not ended."""

    leases: tuple[lease.Lease, ...]
    assignments: tuple[group.Assignment, ...]
    names: tuple[lease.NameBinding, ...]


def load(reader: store.Reader) -> Stored:
    """Reads what a decision needs."""
    return Stored(leases=reader.unended_leases(), assignments=reader.assignments(), names=reader.names())


def routes(stored: Stored, seen: sight.Sight) -> tuple[backend.Route, ...]:
    """All addresses that should be there, in a stable order, each with the workers that it leads to.

    A lease has its own address from its first booking until it is over. A name keeps its address, leading nowhere, when
    what it points at serves no more.
    """
    booked = _by_lease(stored.assignments)
    names = _names(stored.names)
    leases = {each.id: each for each in stored.leases}
    return tuple(
        backend.Route(
            lease_id=lease_id,
            owners=(*((desired.lease_owner(lease_id),) if lease_id in booked else ()), *names.get(lease_id, ())),
            workers=_workers(leases.get(lease_id), booked.get(lease_id, ()), seen),
        )
        for lease_id in sorted((booked.keys() & leases.keys()) | names.keys())
    )


def led(held: Iterable[lease.Lease], report: group.GroupReport | None, routed: Collection[ids.LeaseId]) -> bool:
    """Whether clients of all these leases reach a worker; those that it can never serve do not count."""
    return all(each.id in routed or (report is not None and progress.given_up(each, report)) for each in held)


def _workers(
    held: lease.Lease | None, booked: Iterable[group.Assignment], seen: sight.Sight
) -> frozenset[ids.WorkerId]:
    if held is None or not held.state.living:
        return frozenset()
    return frozenset(
        worker.id
        for each in booked
        if not each.draining
        for worker in seen.of(each.group_id)
        if _serves(held, each, worker)
    )


def _serves(held: lease.Lease, booked: group.Assignment, worker: sight.Worker) -> bool:
    if not worker.speaking or worker.report is None:
        return held.id in (worker.routed or ())
    return progress.loaded(held, booked, worker.report)


def _by_lease(assignments: Iterable[group.Assignment]) -> Mapping[ids.LeaseId, list[group.Assignment]]:
    found: dict[ids.LeaseId, list[group.Assignment]] = {}
    for each in assignments:
        found.setdefault(each.lease_id, []).append(each)
    return found


def _names(names: Iterable[lease.NameBinding]) -> Mapping[ids.LeaseId, list[str]]:
    found: dict[ids.LeaseId, list[str]] = {}
    for each in sorted(names, key=lambda name: (name.namespace, name.name)):
        found.setdefault(each.lease_id, []).append(desired.name_owner(each.namespace, each.name))
    return found
