"""What all workers of a lease, and the backend, say of it together: pure.

Decides which word counts. It never decides what follows from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from tms_server.leases import progress
from tms_server.model import group, lease, resources
from tms_server.ports import backend
from tms_server.world import sight

_OUTWEIGHED = (progress.Absent, progress.Lost, progress.Troubled)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A living lease with its wanted assignments, the `owner` of its own address and that address, if it has one."""

    held: lease.Lease
    booked: Sequence[group.Assignment]
    owner: str
    endpoint: resources.Endpoint | None


def said(case: Case, seen: sight.Sight) -> progress.Progress | None:
    """What is to be made of the lease; None while nobody said anything of it."""
    found = _of_workers(case, seen)
    untold = seen.untold.get(case.owner)
    if untold is not None and not isinstance(found, progress.Ready | progress.Failed):
        return progress.Troubled(untold.reason, untold.message)
    against = trouble(case.booked, seen)
    idle = isinstance(found, progress.Loading) and not _any_server(case, seen)
    if against is not None and (found is None or idle or isinstance(found, _OUTWEIGHED)):
        return progress.Troubled(against.reason, against.message)
    return found


def trouble(booked: Collection[group.Assignment], seen: sight.Sight) -> backend.Trouble | None:
    """What stands against any of these groups."""
    found = (seen.troubles.get(each.group_id) for each in booked)
    return next((each for each in found if each is not None), None)


def _any_server(case: Case, seen: sight.Sight) -> bool:
    """Whether any server answers its sidecar. Without one a sidecar can fetch models, and nothing follows from it."""
    workers = (worker for booked in case.booked for worker in seen.of(booked.group_id))
    return any(worker.report is not None and worker.report.server_ready for worker in workers)


def _of_workers(case: Case, seen: sight.Sight) -> progress.Progress | None:
    pairs = [(booked, worker) for booked in case.booked for worker in seen.of(booked.group_id)]
    served = case.held.active_at is not None
    if served and not pairs and any(booked.group_id in seen.observed for booked in case.booked):
        return progress.Lost("WorkerLost", "none of its workers is there")
    down = [worker for _, worker in pairs if worker.down]
    if down and len(down) == len(pairs) and any(worker.report is not None for worker in down):
        return progress.Lost("WorkerLost", f"worker {down[0].id.group_id} died and is started anew: {down[0].down}")
    if all(worker.report is None and _unknown(case, worker) for _, worker in pairs):
        return None
    return progress.best(
        progress.of(case.held, booked, worker.report, reachable=_reachable(case, worker)) for booked, worker in pairs
    )


def _unknown(case: Case, worker: sight.Worker) -> bool:
    """Whether a worker that never spoke to this server may serve all the same."""
    return worker.routed is None or case.held.id in worker.routed


def _reachable(case: Case, worker: sight.Worker) -> bool:
    if worker.routed is not None:
        return worker.ready and case.held.id in worker.routed
    return worker.report is not None and case.endpoint in worker.report.endpoints
