"""The scripted fleet on a backend that leads clients to replicas: the real decisions, a virtual clock, simulated pods.

Streams can be cut, reports come when a test delivers them, pods die and come, the control plane starts anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, TypeVar

from tests.simulation import workers
from tests.simulation import world as worlds
from tests.unit.core import builders as b
from tms_server.fleet import desired
from tms_server.leases import lifecycle, progress
from tms_server.model import bundle, group, ids, lease, resources
from tms_server.ports import backend as backend_module
from tms_server.reconcilers import reports
from tms_server.testing import backend as fake
from tms_server.world import live, routing, sight

T = TypeVar("T")
LOST_AFTER = b.s(10)


class Led(worlds.World):
    """Everything there is. `told` is what each pod's sidecar was told last; `stale` are pods changed since their word."""

    def __init__(self) -> None:
        self.backend = fake.FakeBackend(routes=True)
        self.live = live.Live()
        self.pods: dict[ids.WorkerId, workers.Worker] = {}
        self.told: dict[ids.WorkerId, desired.Wanted] = {}
        self.connected: set[ids.WorkerId] = set()
        self.stale: set[ids.WorkerId] = set()
        self._made = 0
        super().__init__()

    # What the control plane does.

    def settle(self) -> None:
        """Passes until nothing is left to do without a word from a worker."""
        for _ in range(3):
            self.observe()
            self.lead()
            self.digest()
            self.push()

    def observe(self) -> None:
        self.live.observe(now(self.backend.observe()))

    def sight(self) -> sight.Sight:
        return sight.take(self.live, self.backend, LOST_AFTER, self.now)

    def lead(self) -> None:
        """One pass of the router."""
        self.observe()
        stored = routing.Stored(leases=self.unended(), assignments=tuple(self.assignments.values()), names=())
        now(self.backend.route(routing.routes(stored, self.sight())))

    def digest(self) -> None:
        """One pass over the reports."""
        seen = self.sight()
        changes = reports.decide(self._stored(), seen, self.now)
        for step in changes.steps:
            if step.end is not None:
                self.end(step.changed.id, step.end.state, step.end.reason, step.end.message)
            else:
                self._move(step.changed)
        for booked in changes.gone:
            self._confirm(booked)
        self.live.digest(seen.reports())

    def push(self) -> None:
        """Tells every connected sidecar what to hold, unless clients of what it should drop are still led there."""
        for worker in sorted(self.connected):
            if worker.group_id in self.groups and not self.live.let_go(worker):
                wanted = self.wish(worker.group_id)
                keeps = {each.id for each in self.held(worker.group_id)}
                if self.backend.routed(worker) <= keeps:
                    self.told[worker] = dataclasses.replace(wanted, endpoints=())

    def restart(self, remembered: Collection[ids.WorkerId]) -> None:
        """The control plane starts anew, and remembers the last words of some workers only."""
        kept = [each for each in self.live.reports() if each.worker in remembered]
        self.live = live.Live()
        self.live.restore(kept, self.now)
        self.connected.clear()

    # What the world does.

    def step(self, worker: ids.WorkerId) -> None:
        """The pod does one step towards what it was told."""
        if worker in self.told:
            self.pods[worker].step(self.told[worker])
            self.stale.add(worker)

    def deliver(self, worker: ids.WorkerId) -> None:
        """Its sidecar connects, if it is not, and says how it is now."""
        self.connected.add(worker)
        report = dataclasses.replace(self.pods[worker].report(), received_at=self.now, replica=worker.replica)
        self.live.hear(report)
        self.stale.discard(worker)

    def cut(self, worker: ids.WorkerId) -> None:
        if worker in self.connected:
            self.connected.discard(worker)
            self.live.lose(worker, self.now)

    def kill(self, worker: ids.WorkerId) -> None:
        """The worker's process starts anew and is empty; nobody knows yet."""
        self.pods[worker].kill()
        self.stale.add(worker)

    def add_pod(self, group_id: ids.GroupId) -> None:
        self._made += 1
        replica = ids.ReplicaId(f"{group_id}-more-{self._made}")
        self.backend.add_replica(group_id, replica)
        self._start(ids.WorkerId(group_id, replica))

    def lose_pod(self, worker: ids.WorkerId) -> None:
        self.backend.lose_replica(worker.group_id, worker.replica)
        self.cut(worker)
        del self.pods[worker]
        self.told.pop(worker, None)

    # What tests look at.

    def routed(self) -> Mapping[tuple[ids.LeaseId, ids.WorkerId], lease.Lease]:
        """Every pair that clients are led over."""
        pairs = ((each.lease_id, worker) for each in self.backend.world.routes for worker in each.workers)
        return {pair: self.leases[pair[0]] for pair in pairs}

    def answers(self, held: lease.Lease, worker: ids.WorkerId) -> bool:
        """Whether the pod really has all models of the lease."""
        pod = self.pods.get(worker)
        loaded = {} if pod is None else pod.models
        found = [loaded.get(each.key) for each in bundle.models(held)]
        return all(each is not None and each.state is group.ModelState.READY for each in found)

    def held(self, group_id: ids.GroupId) -> tuple[lease.Lease, ...]:
        return desired.held(group_id, self.assignments.values(), self.leases)

    def unended(self) -> tuple[lease.Lease, ...]:
        return tuple(each for each in self.leases.values() if not each.state.ended)

    def _stored(self) -> reports.Stored:
        return reports.Stored(
            leases={each.id: each for each in self.unended()},
            groups=self.groups,
            assignments=tuple(self.assignments.values()),
            endpoints=self.endpoints,
            names=(),
            pools={(each.namespace, each.name): each for each in self.pools.values()},
            measured={},
        )

    def _confirm(self, booked: group.Assignment) -> None:
        del self.assignments[booked.lease_id, booked.group_id]
        left = any(each.lease_id == booked.lease_id for each in self.assignments.values())
        if not left and self.leases[booked.lease_id].state is lease.LeaseState.RELEASING:
            self._move(lifecycle.finish(self.leases[booked.lease_id], self.now))

    def _launch(self) -> None:
        for group_id, stored in self.groups.items():
            if group_id not in self.backend.world.groups:
                now(self.backend.launch(_spec(stored)))
                for replica in self.backend.world.groups[group_id].replicas:
                    self._start(ids.WorkerId(group_id, replica))

    def _start(self, worker: ids.WorkerId) -> None:
        self.pods[worker] = workers.Worker(worker.group_id)


def holding(pod: workers.Worker) -> bool:
    """Whether it has bytes of any model."""
    return any(each.state in progress.HOLDING for each in pod.models.values())


def now(work: Coroutine[Any, Any, T]) -> T:
    """The answer of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    raise AssertionError("it waits")


def _spec(stored: group.WorkerGroup) -> backend_module.LaunchSpec:
    return backend_module.LaunchSpec(
        group_id=stored.id,
        namespace=stored.namespace,
        worker=stored.spec,
        endpoint=resources.Endpoint("127.0.0.1", 8000, 8001, 8002),
        token=stored.token,
    )
