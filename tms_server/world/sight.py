"""All that is known of the workers at one instant, taken on the event loop, for decisions made elsewhere.

Judges two things only: whether a worker still counts as connected, and which of the backend's troubles is a group's.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from collections.abc import Callable, Mapping

from tms_server.model import group, ids, resources
from tms_server.ports import backend as backend_module
from tms_server.world import live


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker that may exist.

    `report` is its last word (its `connected` judged anew), `previous` the one whose use was counted last. `speaking`:
    its stream is there now. `down`: the backend says that it died, and how. `begun` is False for one that cannot hold
    anything: it never spoke and does not run, or its server does not. `routed` are the leases that the backend leads to it, None where
    sidecars listen themselves. `ready`: the backend lets clients reach it.
    """

    id: ids.WorkerId
    report: group.GroupReport | None = None
    previous: group.GroupReport | None = None
    speaking: bool = False
    down: str = ""
    begun: bool = True
    routed: frozenset[ids.LeaseId] | None = None
    ready: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """`troubles` by group, `untold` by owner of an address. `observed` are the groups that the backend shows.

    `warn` answers from memory what stands against a worker that is to be.
    """

    workers: Mapping[ids.GroupId, tuple[Worker, ...]]
    observed: frozenset[ids.GroupId] = frozenset()
    troubles: Mapping[ids.GroupId, backend_module.Trouble] = dataclasses.field(default_factory=dict)
    untold: Mapping[str, backend_module.Trouble] = dataclasses.field(default_factory=dict)
    warn: Callable[[resources.WorkerSpec], backend_module.Trouble | None] = lambda _: None

    def of(self, group_id: ids.GroupId) -> tuple[Worker, ...]:
        """Workers of a group that may exist."""
        return self.workers.get(group_id, ())

    def reports(self) -> tuple[group.GroupReport, ...]:
        """All last words."""
        return tuple(each.report for found in self.workers.values() for each in found if each.report is not None)


def take(known: live.Live, backend: backend_module.Backend, lost_after: dt.timedelta, now: dt.datetime) -> Sight:
    """What is known now. A worker whose sidecar is gone for `lost_after` counts as lost, unless clients reach it."""
    groups = known.groups()
    troubles = {each: found for each in groups if (found := trouble(known, each)) is not None}
    return Sight(
        workers={
            group_id: tuple(_worker(known, backend, worker, lost_after, now) for worker in known.workers(group_id))
            for group_id in groups
        },
        observed=frozenset(each for each in groups if known.observed(each) is not None),
        troubles=troubles,
        untold=known.untold,
        warn=functools.cache(backend.warn),
    )


def trouble(known: live.Live, group_id: ids.GroupId) -> backend_module.Trouble | None:
    """What stands against a group, if anything: it cannot be launched, or the backend says what its workers lack."""
    if (refused := known.troubles.get(group_id)) is not None:
        return refused
    observed = known.observed(group_id)
    if observed is None or observed.trouble is not None:
        return observed.trouble if observed is not None else None
    return next((each.trouble for each in observed.replicas if each.trouble is not None), None)


def _worker(
    known: live.Live,
    backend: backend_module.Backend,
    worker: ids.WorkerId,
    lost_after: dt.timedelta,
    now: dt.datetime,
) -> Worker:
    report, gone_since, down = known.heard(worker), known.gone_since(worker), known.down(worker)
    replica = known.replica(worker)
    routed = backend.routed(worker) if backend.routes else None
    # Without a stream, a worker that the backend holds to be ready and leads clients to is cut off from us alone.
    reached = bool(routed) and replica is not None and replica.ready
    connected = not down and (gone_since is None or now - gone_since < lost_after or reached)
    running = replica is None or replica.phase is backend_module.Phase.RUNNING
    return Worker(
        id=worker,
        report=dataclasses.replace(report, connected=connected) if report is not None else None,
        previous=known.digested(worker),
        speaking=report is not None and gone_since is None,
        down=down,
        begun=not _halted(replica, report) and (report is not None or (running and not down)),
        routed=routed,
        ready=replica is None or replica.ready,
    )


def _halted(replica: backend_module.Replica | None, report: group.GroupReport | None) -> bool:
    """Whether its server does not run. A sidecar that has just heard its server knows better than the backend."""
    return replica is not None and replica.halted and not (report is not None and report.server_ready)
