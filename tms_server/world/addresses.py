"""Gives owners their stable addresses. An address once given stays until its owner is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tms_server.model import resources
from tms_server.ports import backend as backend_module
from tms_server.ports import store as store_module


async def publish(store: store_module.Store, backend: backend_module.Backend, owners: Sequence[str]) -> bool:
    """Gives an address to those of the owners that have none; answers whether any was given.

    An owner that lost the race for its address to another stays without one until the next call.
    """
    stored = await store.read(lambda reader: reader.endpoints())
    taken = set(stored.values())
    found: dict[str, resources.Endpoint] = {}
    for owner in owners:
        if owner not in stored:
            found[owner] = backend.publish(owner, taken)
            taken.add(found[owner])
    if found:
        await store.write(lambda unit: _put(unit, found))
    return bool(found)


def _put(unit: store_module.UnitOfWork, found: Mapping[str, resources.Endpoint]) -> None:
    stored = unit.endpoints()
    taken = set(stored.values())
    for owner, endpoint in found.items():
        if owner not in stored and endpoint not in taken:
            unit.put_endpoint(owner, endpoint)
