"""What must be launched and retired so that the backend runs what is stored.

Compares only; whether a group should be stored is decided elsewhere. Launch and retire are idempotent in the backend, so
an action that is repeated does no harm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from tms_server.model import group, ids


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """Stored, and not in the backend as it should be."""

    group: group.WorkerGroup


@dataclasses.dataclass(frozen=True, slots=True)
class Retire:
    """In the backend, and not stored."""

    group_id: ids.GroupId


Action = Launch | Retire


def actions(
    stored: Iterable[group.WorkerGroup], observed: Iterable[ids.GroupId], differing: Collection[ids.GroupId] = ()
) -> tuple[Action, ...]:
    """Retirements first (they free what launches need), each in a stable order.

    `differing` are groups that are there, but not as they would be launched now.
    """
    wanted = {each.id: each for each in stored}
    seen = set(observed)
    missing = sorted(
        (each for each in wanted.values() if each.id not in seen or each.id in differing),
        key=lambda each: (each.created_at, each.id),
    )
    return (*(Retire(group_id) for group_id in sorted(seen - wanted.keys())), *(Launch(each) for each in missing))
