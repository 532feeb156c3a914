"""A backend in memory, held to the same contract suite as the real ones, with knobs for what goes wrong.

`FakeWorld` is what survives the control plane: give one to a second `FakeBackend` to play a restart.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

from tms_server.backends import changes
from tms_server.model import errors, ids, resources
from tms_server.ports import backend


@dataclasses.dataclass(slots=True)
class FakeGroup:
    """A group that runs: how it was launched and what became of it."""

    spec: backend.LaunchSpec
    phase: backend.Phase = backend.Phase.RUNNING
    restarts: int = 0
    message: str = ""
    replicas: list[ids.ReplicaId] = dataclasses.field(default_factory=lambda: [ids.ONLY_REPLICA])
    trouble: backend.Trouble | None = None
    lines: list[backend.LogLine] = dataclasses.field(default_factory=list)


class FakeWorld:
    """The machine below: the groups that run, in the order of their launch."""

    def __init__(self) -> None:
        self.groups: dict[ids.GroupId, FakeGroup] = {}
        self.routes: tuple[backend.Route, ...] = ()
        self.strangers: set[str] = set()
        """Owners whose address belongs to somebody else."""


class FakeBackend:
    """Runs nothing; remembers what should run. `default_bytes` is the capacity of a worker that asks for none.

    With `routes` it leads clients to workers itself, and has replicas that `add_replica` and `lose_replica` move.
    """

    def __init__(
        self,
        world: FakeWorld | None = None,
        *,
        commands: Collection[str] = ("tms-worker",),
        default_bytes: int = 2**30,
        gpus: int = 0,
        addresses: int = 2**16,
        routes: bool = False,
    ) -> None:
        self.world = world or FakeWorld()
        self.launches: collections.Counter[ids.GroupId] = collections.Counter()
        self._commands = tuple(commands)
        self._default_bytes = default_bytes
        self._gpus = gpus
        self._addresses = addresses
        self._routes = routes
        self._failure: errors.TmsError | None = None
        self._silent = False
        self._changes = changes.Changes()

    # The port.

    @property
    def routes(self) -> bool:
        return self._routes

    @property
    def scales(self) -> bool:
        return self._routes

    def refuse_name(self, namespace: ids.Namespace, name: ids.LeaseName) -> str | None:
        too_long = self._routes and len(f"{namespace}--{name}") > 63
        return f"{name!r} is too long for an address of this backend" if too_long else None

    def warn(self, worker: resources.WorkerSpec) -> backend.Trouble | None:
        del worker
        return None

    def differs(self, spec: backend.LaunchSpec) -> bool:
        group = self.world.groups.get(spec.group_id)
        return self._routes and group is not None and group.spec != spec

    async def route(self, routes: Sequence[backend.Route]) -> Mapping[str, backend.Trouble]:
        self._answer()
        if self._routes and tuple(routes) != self.world.routes:
            self.world.routes = tuple(routes)
            self._changes.notify()
        taken = {owner for route in routes for owner in route.owners} & self.world.strangers
        return {owner: backend.Trouble("NameTaken", f"{owner} belongs to somebody else") for owner in taken}

    def routed(self, worker: ids.WorkerId) -> frozenset[ids.LeaseId]:
        return frozenset(route.lease_id for route in self.world.routes if worker in route.workers)

    def refuse(self, worker: resources.WorkerSpec) -> str | None:
        if worker.image and not self._routes:
            return "image: this backend runs no containers; name a command"
        if worker.command and worker.command not in self._commands:
            return f"command: {worker.command!r} is not allowed; one of {', '.join(self._commands)}"
        if worker.resources.gpus > self._gpus:
            return f"resources.gpus: {worker.resources.gpus} asked, the backend has {self._gpus}"
        return None

    def capacity_bytes(self, worker: resources.WorkerSpec) -> int:
        return worker.resources.memory_bytes or self._default_bytes

    async def observe(self) -> tuple[backend.Observed, ...]:
        self._answer()
        return tuple(
            backend.Observed(
                group_id=group_id,
                phase=group.phase,
                restarts=group.restarts,
                message=group.message,
                replicas=tuple(
                    backend.Replica(id=each, phase=group.phase, ready=group.phase is backend.Phase.RUNNING)
                    for each in group.replicas
                ),
                wanted_replicas=group.spec.replicas,
                trouble=group.trouble,
            )
            for group_id, group in self.world.groups.items()
        )

    async def launch(self, spec: backend.LaunchSpec) -> None:
        self._answer()
        if self._failure is not None:
            raise self._failure
        if reason := self.refuse(spec.worker):
            raise errors.FailedPrecondition(reason)
        if spec.group_id in self.world.groups:
            if self.differs(spec):
                self.launches[spec.group_id] += 1
                group = self.world.groups[spec.group_id]
                if spec.replicas != group.spec.replicas:
                    group.replicas = self._replicas(spec)
                group.spec = spec
                self._changes.notify()
            return
        self.launches[spec.group_id] += 1
        self.world.groups[spec.group_id] = FakeGroup(spec, replicas=self._replicas(spec))
        for source in ("worker", "sidecar"):
            self.say(spec.group_id, source, "started")
        self._changes.notify()

    async def retire(self, group_id: ids.GroupId) -> None:
        self._answer()
        if self.world.groups.pop(group_id, None) is not None:
            self._changes.notify()

    async def tend(self) -> None:
        self._answer()

    def publish(self, owner: str, taken: Collection[resources.Endpoint]) -> resources.Endpoint:
        for number in range(self._addresses):
            endpoint = resources.Endpoint(f"127.65.{number >> 8}.{number & 255}", 8000, 8001, 8002)
            if endpoint not in taken:
                return endpoint
        raise errors.ResourceExhausted(f"no address is left for {owner}")

    async def logs(self, group_id: ids.GroupId, tail: int, *, follow: bool) -> AsyncIterator[backend.LogLine]:
        self._answer()
        group = self._group(group_id)
        steps = self._changes.watch()
        first = set(map(id, _last(group.lines, tail)))
        shown = len(group.lines)
        for line in group.lines[:shown]:
            if id(line) in first:
                yield line
        while follow and self.world.groups.get(group_id) is group:
            for line in itertools.islice(group.lines, shown, None):
                shown += 1
                yield line
            if await anext(steps, "closed") == "closed":
                return

    def watch(self) -> AsyncIterator[None]:
        return self._changes.watch()

    async def close(self) -> None:
        self._changes.close()

    # The knobs.

    def spec(self, group_id: ids.GroupId) -> backend.LaunchSpec:
        """How a running group was launched; NotFound when it does not run."""
        return self._group(group_id).spec

    def kill(self, group_id: ids.GroupId) -> None:
        """The worker dies and comes back at once."""
        group = self._group(group_id)
        group.restarts += 1
        group.message = "worker: killed by SIGKILL"
        self.say(group_id, "worker", "started")

    def hold_down(self, group_id: ids.GroupId, message: str = "worker: exit status 1") -> None:
        """The worker dies and does not come back before `revive`."""
        group = self._group(group_id)
        group.phase, group.message = backend.Phase.BACKING_OFF, message
        self._changes.notify()

    def revive(self, group_id: ids.GroupId) -> None:
        """Ends `hold_down`."""
        group = self._group(group_id)
        group.phase, group.restarts = backend.Phase.RUNNING, group.restarts + 1
        self._changes.notify()

    def lose(self, group_id: ids.GroupId) -> None:
        """The group vanishes, as if its machine were gone."""
        self._group(group_id)
        del self.world.groups[group_id]
        self._changes.notify()

    def add_replica(self, group_id: ids.GroupId, replica: ids.ReplicaId) -> None:
        """One more worker of a group."""
        self._group(group_id).replicas.append(replica)
        self._changes.notify()

    def lose_replica(self, group_id: ids.GroupId, replica: ids.ReplicaId) -> None:
        """One worker of a group vanishes."""
        self._group(group_id).replicas.remove(replica)
        self._changes.notify()

    def trouble(self, group_id: ids.GroupId, trouble: backend.Trouble | None) -> None:
        """What stands against a group, as the backend reports it; None when it has passed."""
        self._group(group_id).trouble = trouble
        self._changes.notify()

    def fail_launches(self, failure: errors.TmsError | None) -> None:
        """Each launch raises this, until told None."""
        self._failure = failure

    def silence(self, *, silent: bool = True) -> None:
        """Every call to the outside raises Unavailable while silent."""
        self._silent = silent
        self._changes.notify()

    def say(self, group_id: ids.GroupId, source: str, text: str) -> None:
        """Adds a line to a group's output; `source` is ``worker`` or ``sidecar``."""
        self._group(group_id).lines.append(backend.LogLine(group_id=group_id, source=source, text=text))
        self._changes.notify()

    def _replicas(self, spec: backend.LaunchSpec) -> list[ids.ReplicaId]:
        if not self._routes:
            return [ids.ONLY_REPLICA]
        return [ids.ReplicaId(f"{spec.group_id}-{number}") for number in range(spec.replicas)]

    def _group(self, group_id: ids.GroupId) -> FakeGroup:
        group = self.world.groups.get(group_id)
        if group is None:
            raise errors.NotFound(f"group {group_id} does not run here")
        return group

    def _answer(self) -> None:
        if self._silent:
            raise errors.Unavailable("the backend does not answer")


def _last(lines: list[backend.LogLine], tail: int) -> list[backend.LogLine]:
    """The last `tail` lines of each source."""
    by_source: dict[str, list[backend.LogLine]] = {}
    for line in lines:
        by_source.setdefault(line.source, []).append(line)
    return [line for each in by_source.values() for line in each[max(0, len(each) - tail) :]]
