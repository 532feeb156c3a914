"""Which pods and Services must change so that clients are led where they should be. Pure.

A pod is led to by a Service of the lease while it carries the lease's label. Labels are set before a Service is moved to
them and taken away after, so that a moving name always leads somewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from tms_server.backends.kubernetes import covers, manifests, names
from tms_server.backends.kubernetes import options as options_module
from tms_server.model import ids
from tms_server.ports import backend

Json = dict[str, Any]
Labels = dict[str, str | None]
"""A patch: None takes a label away."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A Service to be applied, and for whom."""

    owner: str
    manifest: Json
    live: Json | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps in their order; `first` and `last` are patches by pod. Where no Service moves, one patch a pod is enough."""

    first: Mapping[str, Labels]
    services: tuple[Service, ...]
    last: Mapping[str, Labels]
    surplus: tuple[Json, ...]
    """Services that nobody wants any more."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Pods and Services as they are. `steady`: owners whose Services are known to be as wanted for that lease.

    `refused`: owners who cannot have Services for now.
    """

    pods: Mapping[str, Json]
    services: Mapping[str, Json]
    refused: Collection[str] = frozenset()
    steady: Callable[[str, ids.LeaseId], bool] = lambda _owner, _lease_id: False


def plan(routes: Sequence[backend.Route], live: Live, options: options_module.Options) -> Plan:
    """What differs between the routes and what lives."""
    gains, losses = _labels(routes, live.pods.values())
    moved = tuple(
        each
        for route in routes
        for owner in route.owners
        if not live.steady(owner, route.lease_id)
        for each in changes(owner, route.lease_id, live.services, options)
    )
    kept = {names.service_of(owner) + end for route in routes for owner in route.owners for end in ("", names.HEADLESS)}
    surplus = tuple(each for name, each in live.services.items() if name not in kept and not _leaving(each))
    if moved:
        return Plan(first=gains, services=moved, last=losses, surplus=surplus)
    both = {name: {**gains.get(name, {}), **losses.get(name, {})} for name in {**gains, **losses}}
    return Plan(first=both, services=(), last={}, surplus=surplus)


def without_late_twins(whole: Plan, most: int) -> tuple[Plan, bool]:
    """At most so many new Services; where there are more, headless ones wait. Whether any do.

    What everybody reaches a lease by comes first, so that in a rush no lease waits for another one's twin.
    """
    new = [each for each in whole.services if each.live is None]
    twins = [each for each in new if each.manifest["metadata"]["name"].endswith(names.HEADLESS)]
    late = {id(each) for each in twins[max(0, most - len(new) + len(twins)) :]}
    services = tuple(each for each in whole.services if id(each) not in late)
    return dataclasses.replace(whole, services=services), bool(late)


def portion(routes: Sequence[backend.Route], live: Live, most: int) -> tuple[Sequence[backend.Route], bool]:
    """The routes, of which `most` get their first Services, and whether others could have theirs at once afterwards.

    Where more are new, only those get theirs that lead somewhere: Services without pods would cost the cluster another
    write each, by everybody who follows them, once pods come. What has to wait stays as it is.
    """
    new = [route for route in routes if any(_is_new(owner, live) for owner in route.owners)]
    if len(new) <= most:
        return routes, False
    ready = [each for each in new if each.workers]
    later = {each.lease_id for each in new} - {each.lease_id for each in ready[:most]}
    return tuple(_as_it_is(each, live) if each.lease_id in later else each for each in routes), len(ready) > most


def changes(
    owner: str, lease_id: ids.LeaseId, services: Mapping[str, Json], options: options_module.Options
) -> tuple[Service, ...]:
    """The Services of an owner that are not as they should be."""
    wanted = manifests.of_owner(owner, lease_id, options)
    pairs = ((manifest, services.get(manifest["metadata"]["name"])) for manifest in wanted)
    return tuple(
        Service(owner=owner, manifest=manifest, live=live)
        for manifest, live in pairs
        if live is None or _leaving(live) or not covers.covers(manifest, live)
    )


def serving(pod: Json) -> frozenset[ids.LeaseId]:
    """Leases whose Services lead to the pod."""
    labels: Mapping[str, str] = pod["metadata"].get("labels") or {}
    prefix = names.SERVING_PREFIX
    return frozenset(ids.LeaseId(key.removeprefix(prefix)) for key in labels if key.startswith(prefix))


def _labels(routes: Sequence[backend.Route], pods: Iterable[Json]) -> tuple[dict[str, Labels], dict[str, Labels]]:
    wanted: dict[str, set[ids.LeaseId]] = {}
    for route in routes:
        for worker in route.workers:
            wanted.setdefault(worker.replica, set()).add(route.lease_id)
    gains: dict[str, Labels] = {}
    losses: dict[str, Labels] = {}
    for pod in pods:
        name, has = pod["metadata"]["name"], serving(pod)
        should = wanted.get(name, set())
        gained, lost = sorted(should - has), sorted(has - should)
        # What leaves is out of every Service already, and its labels go with it.
        if gained and not _leaving(pod):
            gains[name] = {names.serving_label(lease_id): names.SERVING for lease_id in gained}
        if lost:
            losses[name] = {names.serving_label(lease_id): None for lease_id in lost}
    return gains, losses


def _is_new(owner: str, live: Live) -> bool:
    """Whether it gets its first Services now; who is refused takes no turn from others."""
    name = names.service_of(owner)
    known = owner in live.refused or name in live.services or name + names.HEADLESS in live.services
    return not known


def _as_it_is(route: backend.Route, live: Live) -> backend.Route:
    """Nothing that is there is taken away, and nobody is told of a way that does not lead there yet."""
    return backend.Route(
        lease_id=route.lease_id,
        owners=tuple(owner for owner in route.owners if not _is_new(owner, live)),
        workers=frozenset(
            worker
            for worker in route.workers
            if worker.replica in live.pods and route.lease_id in serving(live.pods[worker.replica])
        ),
    )


def _leaving(found: Json) -> bool:
    return bool(found["metadata"].get("deletionTimestamp"))
