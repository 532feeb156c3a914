"""Leads clients to pods: carries out what `routing` plans, and remembers what proxies may not have followed yet.

What is routed is written on the pods themselves, so that a server that starts anew knows it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Mapping, Sequence

import structlog

from tms_server import clock as clock_module
from tms_server.backends.kubernetes import failures, kinds, names, objects, routing, view
from tms_server.backends.kubernetes import options as options_module
from tms_server.fleet import desired
from tms_server.model import errors, ids
from tms_server.ports import backend

log = structlog.get_logger(__name__)
_ASK_AGAIN = dt.timedelta(seconds=10)
"""Nobody tells when a name that belongs to somebody else becomes free."""
_PATCH_BOUND = dt.timedelta(minutes=1)
_NEW_AT_ONCE = 50
"""Leases and names that get their first Services in one go: whoever is ready meanwhile does not wait for all others."""


class Router:
    """One for an installation; `wake_at` is told when `routed` or `route` may answer something new by itself."""

    def __init__(
        self,
        options: options_module.Options,
        seen: view.View,
        writes: objects.Objects,
        clock: clock_module.Clock,
        wake_at: Callable[[dt.datetime], None],
    ) -> None:
        self._options = options
        self._view = seen
        self._objects = writes
        self._clock = clock
        self._wake_at = wake_at
        self._turn = asyncio.Lock()
        self._steady: dict[str, tuple[str, str, str]] = {}
        self._settling: dict[str, dict[ids.LeaseId, dt.datetime]] = {}
        self._refused: dict[str, tuple[backend.Trouble, dt.datetime]] = {}

    async def route(self, routes: Sequence[backend.Route]) -> Mapping[str, backend.Trouble]:
        """As the port says; Unavailable when a write could not be made, and then the rest has been made."""
        async with self._turn:
            now = self._clock.now()
            self._refused = {owner: each for owner, each in self._refused.items() if each[1] > now}
            live = routing.Live(
                pods=self._view.all(kinds.PODS),
                services=self._view.all(kinds.SERVICES),
                refused=self._refused.keys(),
                steady=self._is_steady,
            )
            due, more = routing.portion(routes, live, _NEW_AT_ONCE)
            plan = routing.plan(due, live, self._options)
            kept, later = routing.without_late_twins(plan, _NEW_AT_ONCE)
            await self._carry_out(kept)
            if more or later:
                self._wake_at(now)
            owners = {owner for route in routes for owner in route.owners}
            self._steady = {owner: known for owner, known in self._steady.items() if owner in owners}
            return {owner: trouble for owner, (trouble, _) in self._refused.items() if owner in owners}

    def routed(self, worker: ids.WorkerId) -> frozenset[ids.LeaseId]:
        """Leases whose Services lead to the pod, or did until a moment ago."""
        pod = self._view.find(kinds.PODS, worker.replica)
        now = self._clock.now()
        settling = self._settling.get(worker.replica, {})
        left = {lease_id for lease_id, until in settling.items() if until > now}
        if len(left) < len(settling):
            self._settling[worker.replica] = {lease_id: settling[lease_id] for lease_id in left}
        return (
            frozenset(left)
            | self._view.reached.reaching(worker.replica)
            | frozenset(filter(self._is_there, routing.serving(pod) if pod is not None else ()))
        )

    def _is_there(self, lease_id: ids.LeaseId) -> bool:
        """Whether the lease has its Service, or cannot have it: until then a label leads nobody."""
        owner = desired.lease_owner(lease_id)
        return owner in self._refused or names.service_of(owner) in self._view.all(kinds.SERVICES)

    async def _carry_out(self, plan: routing.Plan) -> None:
        # A Service made before its pods are labelled costs the cluster further writes, by everybody who follows it.
        await self._patch(plan.first)
        failed = await self._move([each for each in plan.services if each.live is None])
        _raise_first(await self._move([each for each in plan.services if each.live is not None]))
        await self._patch(plan.last)
        failed += await objects.all_of(*(self._objects.remove(kinds.SERVICES, each) for each in plan.surplus))
        _raise_first(failed)

    async def _patch(self, patches: Mapping[str, routing.Labels]) -> None:
        _raise_first(await objects.all_of(*(self._relabel(pod, labels) for pod, labels in patches.items())))

    async def _relabel(self, pod: str, labels: routing.Labels) -> None:
        lost = [ids.LeaseId(key.removeprefix(names.SERVING_PREFIX)) for key, value in labels.items() if value is None]
        # Held before the patch is sent: the watch may tell of it before the answer comes.
        self._settle(pod, lost, _PATCH_BOUND)
        try:
            await self._objects.label(pod, labels)
        except errors.TmsError:
            self._settle(pod, lost, dt.timedelta(0))
            raise
        self._settle(pod, lost, dt.timedelta(seconds=self._options.settle_s))

    def _settle(self, pod: str, leases: Sequence[ids.LeaseId], span: dt.timedelta) -> None:
        if not leases:
            return
        until = self._clock.now() + span
        present = self._view.all(kinds.PODS)
        self._settling = {name: each for name, each in self._settling.items() if name in present}
        self._settling.setdefault(pod, {}).update(dict.fromkeys(leases, until))
        self._wake_at(until)

    async def _move(self, services: Sequence[routing.Service]) -> list[BaseException]:
        due = [each for each in services if each.owner not in self._refused]
        return await objects.all_of(*(self._apply(each) for each in due))

    async def _apply(self, service: routing.Service) -> None:
        try:
            await self._objects.ensure(service.manifest, service.live)
        except objects.NameTaken as taken:
            self._refuse(service.owner, backend.Trouble("NameTaken", str(taken)))
        except failures.Exhausted as full:
            self._refuse(service.owner, backend.Trouble("QuotaExceeded", str(full)))
        except (failures.Refused, errors.PermissionDenied) as refused:
            self._refuse(service.owner, backend.Trouble("Refused", str(refused)))

    def _refuse(self, owner: str, trouble: backend.Trouble) -> None:
        until = self._clock.now() + _ASK_AGAIN
        self._refused[owner] = (trouble, until)
        self._wake_at(until)
        log.warning("route.refused", owner=owner, reason=trouble.reason, why=trouble.message)

    def _is_steady(self, owner: str, lease_id: ids.LeaseId) -> bool:
        """Compares only what has changed since the last time."""
        services = self._view.all(kinds.SERVICES)
        name = names.service_of(owner)
        found = services.get(name), services.get(name + names.HEADLESS)
        if found[0] is None or found[1] is None:
            return False
        now = (lease_id, found[0]["metadata"]["resourceVersion"], found[1]["metadata"]["resourceVersion"])
        if self._steady.get(owner) != now:
            if routing.changes(owner, lease_id, services, self._options):
                return False
            self._steady[owner] = now
        return True


def _raise_first(failed: Sequence[BaseException]) -> None:
    if failed:
        raise failed[0]
