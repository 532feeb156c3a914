"""What a decision is made from: one frozen view of the fleet.

Holds values only, in any order; `plan` and `explain` answer the same whatever the order is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from tms_server.model import group, lease, pool, resources


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All leases that have not ended (RELEASING included), and all pools, groups, assignments, measurements and names.

    `capacities` says how many bytes models may book on an empty worker of a spec; it must know every spec that
    `worker_specs` names.
    """

    leases: tuple[lease.Lease, ...] = ()
    pools: tuple[pool.Pool, ...] = ()
    groups: tuple[group.WorkerGroup, ...] = ()
    assignments: tuple[group.Assignment, ...] = ()
    measurements: tuple[group.Measurement, ...] = ()
    names: tuple[lease.NameBinding, ...] = ()
    capacities: Mapping[resources.WorkerSpec, int] = dataclasses.field(default_factory=dict)


def worker_specs(leases: Iterable[lease.Lease], pools: Iterable[pool.Pool]) -> frozenset[resources.WorkerSpec]:
    """Every worker spec that a decision may start: of the pools, and of the leases that ask for a worker of their own."""
    own = (each.spec.placement for each in leases)
    return frozenset(
        [
            *(each.spec.worker for each in pools),
            *(placement.worker for placement in own if isinstance(placement, lease.Dedicated)),
        ]
    )
