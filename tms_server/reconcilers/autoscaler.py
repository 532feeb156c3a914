"""Sizes leases that grow: copies of those in pools, replicas of dedicated ones where no HorizontalPodAutoscaler does.

Samples what workers do, decides with `autoscale.policy`, writes the size wanted. Placing copies and running replicas is
others' work. It never shrinks a lease for want of news, nor below the last copy that serves.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Mapping

import structlog

from tms_server import clock as clock_module
from tms_server.autoscale import policy, signals
from tms_server.leases import lifecycle
from tms_server.model import bundle, errors, group, ids, lease
from tms_server.placement import copies
from tms_server.ports import backend as backend_module
from tms_server.ports import store as store_module
from tms_server.world import live as live_module
from tms_server.world import usage as usage_module

log = structlog.get_logger(__name__)
ACTOR = "autoscaler"
SAMPLE = dt.timedelta(seconds=1)
DECIDE = dt.timedelta(seconds=5)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One lease that grows: what is booked for it (the oldest first), and its own group where it has one."""

    held: lease.Lease
    rules: lease.Autoscaling
    booked: tuple[group.Assignment, ...]
    own: group.WorkerGroup | None

    @property
    def size(self) -> int:
        return self.held.wanted_copies if self.own is None else self.own.replicas


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is stored of leases that grow. `groups` are all that there are; `reports` only where other servers hear some."""

    cases: tuple[Case, ...]
    groups: frozenset[ids.GroupId]
    reports: tuple[group.GroupReport, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """A case and the decision to give it another size."""

    case: Case
    decision: policy.Decision


@dataclasses.dataclass(slots=True, kw_only=True)
class Autoscaler:
    """One pass samples; every `DECIDE` it decides too. `sizes_replicas`: no autoscaler of the backend sizes groups."""

    store: store_module.Store
    backend: backend_module.Backend
    clock: clock_module.Clock
    live: live_module.Live
    usage: usage_module.Usage
    sizes_replicas: Callable[[], bool]
    _memory: dict[ids.LeaseId, policy.Memory] = dataclasses.field(default_factory=dict, init=False)
    _decided_at: dt.datetime | None = dataclasses.field(default=None, init=False)
    _any: bool = dataclasses.field(default=True, init=False)

    async def __call__(self) -> dt.datetime | None:
        now = self.clock.now()
        if self._any:
            self.usage.take(self.live.reports())
        if self._decided_at is None or now - self._decided_at >= DECIDE:
            await self._decide(now)
            self._decided_at = now
        return now + SAMPLE if self._any else self._decided_at + DECIDE

    async def _decide(self, now: dt.datetime) -> None:
        stored = await self.store.read(lambda reader: _load(reader, self.live))
        self._any = bool(stored.cases)
        self.usage.take((*stored.reports, *self.live.reports()) if self._any else ())
        decided = {each.held.id: Move(each, self._decision(each, now)) for each in stored.cases if self._sizes(each)}
        moves = [each for each in decided.values() if each.decision.size != each.case.size]
        if moves:
            await self.store.write(lambda unit: _apply(unit, moves, now))
        for move in moves:
            log.info("autoscaler.resized", lease=move.case.held.id, size=move.decision.size, why=move.decision.message)
        # Remembered only once it is written: what was void is decided anew.
        self._memory = {key: each.decision.memory for key, each in decided.items()}
        self.usage.keep_only(stored.groups, now)

    def _sizes(self, case: Case) -> bool:
        return case.own is None if isinstance(case.held.spec.placement, lease.InPool) else self.sizes_replicas()

    def _decision(self, case: Case, now: dt.datetime) -> policy.Decision:
        keys = frozenset(model.key for model in bundle.models(case.held))
        groups = {each.group_id for each in case.booked}
        expected = usage_module.led_to(self.live, self.backend, groups, case.held.id)
        of = signals.serving(keys, self.usage.of(groups), now, expected=expected)
        serving = {each.last.worker for each in of.tracks if each.ready >= keys}
        memory = self._memory.get(case.held.id, policy.Memory())
        decision = policy.decide(
            case.rules,
            policy.Sizes(current=case.size, ready=len(serving)),
            [policy.Reading(each, signals.value_milli(of, each)) for each in case.rules.metrics],
            memory,
            now,
            load=self.usage.load(keys),
        )
        return decision if self._keeps_serving(case, decision, serving) else _held(case, decision, memory)

    def _keeps_serving(self, case: Case, decision: policy.Decision, serving: Iterable[ids.WorkerId]) -> bool:
        """Whether one of the copies that would stay serves, or none serves now anyway."""
        if case.own is not None or decision.size >= case.size:
            return True
        staying = {each.group_id for each in case.booked[: decision.size]}
        serves = {each.group_id for each in serving}
        return not serves or bool(staying & serves)


def _held(case: Case, decision: policy.Decision, memory: policy.Memory) -> policy.Decision:
    message = f"only newer copies serve: {decision.message}"
    return policy.Decision(size=case.size, reason="Unready", message=message, memory=memory)


def _load(reader: store_module.Reader, known: live_module.Live) -> Stored:
    growing = [each for each in reader.unended_leases() if each.state.living and each.spec.autoscaling is not None]
    if not growing:
        return Stored(cases=(), groups=frozenset(), reports=())
    groups = {each.id: each for each in reader.groups()}
    booked: dict[ids.LeaseId, list[group.Assignment]] = {}
    for each in reader.assignments():
        if not each.draining and each.group_id in groups:
            booked.setdefault(each.lease_id, []).append(each)
    found = (_case(each, copies.in_age(booked.get(each.id, ())), groups) for each in growing)
    cases = tuple(each for each in found if each is not None)
    here = usage_module.heard_here(known, {each.group_id for case in cases for each in case.booked})
    return Stored(cases=cases, groups=frozenset(groups), reports=() if here else reader.reports())


def _case(
    growing: lease.Lease, booked: tuple[group.Assignment, ...], groups: Mapping[ids.GroupId, group.WorkerGroup]
) -> Case | None:
    """None for a dedicated lease that has no worker yet."""
    rules = growing.spec.autoscaling
    own = None
    if isinstance(growing.spec.placement, lease.Dedicated):
        own = groups[booked[0].group_id] if booked else None
    if rules is None or (own is None and isinstance(growing.spec.placement, lease.Dedicated)):
        return None
    return Case(held=growing, rules=rules, booked=booked, own=own)


def _apply(unit: store_module.UnitOfWork, moves: Iterable[Move], now: dt.datetime) -> None:
    for move in moves:
        planned, decision = move.case.held, move.decision
        stored = unit.get_lease(planned.id)
        if stored is None or stored.revision != planned.revision:
            raise errors.Conflict(f"lease {planned.id} has changed since its size was decided")
        if move.case.own is not None:
            resized = dataclasses.replace(move.case.own, replicas=decision.size)
            unit.put_group(resized, move.case.own.generation)
        changed = lifecycle.resize(stored, decision.size) if move.case.own is None else stored
        event = store_module.NewEvent(type=decision.reason, message=decision.message, actor=ACTOR, at=now)
        unit.save_lease(changed, event)
