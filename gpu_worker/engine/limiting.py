"""The rate limiter: which instance may run next, where instances of all models share resources that are only numbers.

`Allocator` is pure. Of the instances that want to run, the one goes first that has run least for its priority; no other
takes what it waits for, so nobody starves, and nobody is held up by who wants something else. An instance gets all that
it needs at once, so none waits while it holds. Stride scheduling (Waldspurger and Weihl, 1995): a run costs as many steps as
the priority's number, hence priority 2 has half the runs of priority 1. Who did not want to run saves nothing up.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

Resource = tuple[str, str]
"""A resource by its name and the device that it is one of; no device (empty) where all share it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """So many of a resource there are, on that device or (empty) on any that has no limit of its own."""

    name: str
    count: int
    device: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Demand:
    """What an instance holds while it runs."""

    needs: Mapping[Resource, int] = dataclasses.field(default_factory=dict)
    priority: int = 1


@dataclasses.dataclass(slots=True)
class _Member:
    demand: Demand
    steps: int
    wants: bool = False
    holds: bool = False


class Allocator:
    """What is there is what limits say, or else the most that any one member needs."""

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        self._limits = {(limit.name, limit.device): limit.count for limit in limits}
        self._members: dict[Hashable, _Member] = {}
        self._used: dict[Resource, int] = {}
        self._steps = 0

    def check(self, demand: Demand) -> None:
        """Raises ValueError for what can never be met."""
        for (name, device), count in demand.needs.items():
            limit = self._limit((name, device))
            if limit is not None and count > limit:
                raise ValueError(
                    f'Resource count for "{name}" is limited to {limit} which will prevent scheduling of one or more model '
                    f"instances, the minimum required count is {count}"
                )
        names = {name for name, device in demand.needs if not device}
        both = sorted(names & {name for name, device in demand.needs if device})
        if both:
            raise ValueError(f'Resource "{both[0]}" is present as both global and device-specific resource')

    def enter(self, who: Hashable, demand: Demand) -> Sequence[Hashable]:
        """A member that may want to run; there may be more of what it needs now: those that may run."""
        self._members[who] = _Member(demand, self._steps)
        return self._granted()

    def leave(self, who: Hashable) -> Sequence[Hashable]:
        """Forgets the member; those that may run now."""
        self.give(who, ran=False)
        self._members.pop(who, None)
        return self._granted()

    def want(self, who: Hashable) -> bool:
        """Whether the member, which wants to run, may."""
        member = self._members[who]
        if not member.wants and not member.holds:
            member.wants = True
            member.steps = max(member.steps, self._steps)
            self._granted()
        return member.holds

    def give(self, who: Hashable, *, ran: bool, again: bool = False) -> Sequence[Hashable]:
        """The member has run, or does not want to any more, or wants to `again`; those that may run now."""
        member = self._members.get(who)
        if member is None:
            return ()
        if member.holds:
            for resource, count in member.demand.needs.items():
                self._used[resource] -= count
        member.steps += max(1, member.demand.priority) if ran else 0
        member.wants, member.holds = again, False
        member.steps = max(member.steps, self._steps)
        return self._granted()

    def used(self, resource: Resource) -> int:
        return self._used.get(resource, 0)

    def available(self, resource: Resource) -> int:
        """How many there are in all."""
        limit = self._limit(resource)
        if limit is not None:
            return limit
        return max((member.demand.needs.get(resource, 0) for member in self._members.values()), default=0)

    def _limit(self, resource: Resource) -> int | None:
        return self._limits.get(resource, self._limits.get((resource[0], "")))

    def _granted(self) -> Sequence[Hashable]:
        """Lets everybody run who may: none takes of what somebody before it waits for."""
        granted: list[Hashable] = []
        awaited: set[Resource] = set()
        wanting = [(member.steps, who, member) for who, member in self._members.items() if member.wants]
        for steps, who, member in sorted(wanting, key=lambda each: each[0]):
            needs = member.demand.needs
            if awaited.isdisjoint(needs) and self._fits(needs):
                self._hold(member)
                self._steps = max(self._steps, steps)
                granted.append(who)
            else:
                awaited.update(needs)
        return granted

    def _fits(self, needs: Mapping[Resource, int]) -> bool:
        return all(self.used(resource) + count <= self.available(resource) for resource, count in needs.items())

    def _hold(self, member: _Member) -> None:
        for resource, count in member.demand.needs.items():
            self._used[resource] = self.used(resource) + count
        member.wants, member.holds = False, True


class Limiter:
    """The allocator of a process, for any thread. Who waits is woken by a call of its own, outside of all locks here."""

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        self._lock = threading.Lock()
        self._allocator = Allocator(limits)
        self._wakes: dict[Hashable, Callable[[], None]] = {}

    def check(self, demands: Iterable[Demand]) -> None:
        """Raises ValueError for what can never be met."""
        for demand in demands:
            self._allocator.check(demand)

    def enter(self, who: Hashable, demand: Demand, wake: Callable[[], None]) -> None:
        """Wakes others: not to be called under a lock of theirs."""
        with self._lock:
            self._wakes[who] = wake
            wakes = [self._wakes[each] for each in self._allocator.enter(who, demand)]
        for each in wakes:
            each()

    def want(self, who: Hashable) -> bool:
        """Whether it may run; if not, it is woken when it may. Never wakes another: to be called under a lock."""
        with self._lock:
            return self._allocator.want(who)

    def give(self, who: Hashable, *, ran: bool, again: bool = False) -> None:
        """It has run, or does not want to any more, or wants to `again`: else those that wait would always be before it.

        Wakes others: not to be called under a lock of theirs.
        """
        with self._lock:
            wakes = [self._wakes[each] for each in self._allocator.give(who, ran=ran, again=again)]
        for wake in wakes:
            wake()

    def leave(self, who: Hashable) -> None:
        """As `give`, for good."""
        with self._lock:
            granted = self._allocator.leave(who)
            self._wakes.pop(who, None)
            wakes = [self._wakes[each] for each in granted]
        for wake in wakes:
            wake()


@dataclasses.dataclass(frozen=True, slots=True)
class Turns:
    """The limiter as one load of a model version sees it: what each of its programs needs, by the program's `id`."""

    limiter: Limiter
    demands: Mapping[int, Demand]

    def enter(self, who: Hashable, program: object, wake: Callable[[], None]) -> None:
        """As `Limiter.enter`, with what the program needs."""
        self.limiter.enter(who, self.demands.get(id(program), Demand()), wake)
