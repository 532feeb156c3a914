"""Finds what a caller names, or says that it is not there."""

from __future__ import annotations

from tms_server.model import errors, ids, lease, pool
from tms_server.ports import store


def a_lease(reader: store.Reader, namespace: ids.Namespace, text: str) -> lease.Lease:
    """A lease of the namespace by its id or by a stable name that points at it."""
    if not text:
        raise errors.InvalidField("lease", "give a lease id or a lease name")
    found = reader.get_lease(ids.LeaseId(text))
    if found is None and (bound := reader.get_name(namespace, ids.LeaseName(text))) is not None:
        found = reader.get_lease(bound.lease_id)
    if found is None or found.namespace != namespace:
        raise errors.NotFound(f"no lease has the id or name {text!r} in namespace {namespace}")
    return found


def a_pool(reader: store.Reader, namespace: ids.Namespace, name: ids.PoolName) -> pool.Pool:
    """A pool that is not being deleted."""
    found = reader.get_pool(namespace, name)
    if found is None or found.deleted_at is not None:
        raise errors.NotFound(f"no pool is named {name!r} in namespace {namespace}")
    return found
