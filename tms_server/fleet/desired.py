"""What a worker group should hold.

Decides the models and endpoints that a sidecar is told, from what is booked there. Always whole, never a difference, and
the same for the same store. It never decides what is booked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from tms_server.model import bundle, group, ids, lease, resources, source


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WantedModel:
    """One model to be loaded; `override` is the JSON of its configuration override, empty without one."""

    key: bundle.ModelKey
    source: source.ModelSource
    override: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WantedEndpoint:
    """One address to listen on while all `models` (served names) are ready; `owner` as in the store."""

    owner: str
    endpoint: resources.Endpoint
    models: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """All that a group should hold at this generation. Models in the order they are loaded."""

    generation: int
    models: tuple[WantedModel, ...]
    endpoints: tuple[WantedEndpoint, ...]


def lease_owner(lease_id: ids.LeaseId) -> str:
    """Owner of a lease's own endpoint."""
    return f"lease/{lease_id}"


def name_owner(namespace: ids.Namespace, name: ids.LeaseName) -> str:
    """Owner of a stable name's endpoint."""
    return f"name/{namespace}/{name}"


def group_owner(group_id: ids.GroupId) -> str:
    """Owner of the endpoint where a group's worker itself listens."""
    return f"group/{group_id}"


def wanted(
    target: group.WorkerGroup,
    assignments: Iterable[group.Assignment],
    leases: Mapping[ids.LeaseId, lease.Lease],
    names: Iterable[lease.NameBinding],
    endpoints: Mapping[str, resources.Endpoint],
) -> Wanted:
    """What the group should hold: models of its non-draining assignments, oldest first; endpoints of leases and names.

    Assignments of other groups are passed over, so are endpoints that are not published yet.
    """
    owners = held(target.id, assignments, leases)
    models = {model.key: model for owner in owners for model in bundle.models(owner)}
    return Wanted(
        generation=target.generation,
        models=tuple(
            WantedModel(key=key, source=model.source, override=model.reference.config_override)
            for key, model in models.items()
        ),
        endpoints=_endpoints(owners, names, endpoints),
    )


def held(
    group_id: ids.GroupId,
    assignments: Iterable[group.Assignment],
    leases: Mapping[ids.LeaseId, lease.Lease],
) -> tuple[lease.Lease, ...]:
    """Living leases that are wanted on a group, oldest booking first."""
    booked = sorted(
        (each for each in assignments if each.group_id == group_id and not each.draining),
        key=lambda each: (each.assigned_at, each.lease_id, each.copy),
    )
    distinct = dict.fromkeys(each.lease_id for each in booked)
    return tuple(leases[lease_id] for lease_id in distinct if lease_id in leases and leases[lease_id].state.living)


def _endpoints(
    held: Collection[lease.Lease],
    names: Iterable[lease.NameBinding],
    endpoints: Mapping[str, resources.Endpoint],
) -> tuple[WantedEndpoint, ...]:
    owners = {lease_owner(owner.id): owner for owner in held}
    by_id = {owner.id: owner for owner in held}
    bound = sorted(names, key=lambda name: (name.namespace, name.name))
    owners |= {name_owner(name.namespace, name.name): by_id[name.lease_id] for name in bound if name.lease_id in by_id}
    return tuple(
        WantedEndpoint(owner=key, endpoint=endpoints[key], models=tuple(model.name for model in owner.spec.models))
        for key, owner in owners.items()
        if key in endpoints
    )
