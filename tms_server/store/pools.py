"""Pools in the database."""

from __future__ import annotations

import sqlalchemy as sa

from tms_server.model import ids, pool
from tms_server.store import mapping, session, tables

_POOLS = tables.POOLS.c
_ALL = sa.select(tables.POOLS).order_by(_POOLS.created_at, _POOLS.namespace, _POOLS.name)
_IN_NAMESPACE = _ALL.where(_POOLS.namespace == sa.bindparam("b_namespace"))


class PoolReads(session.ReadSession):
    """Reads of pools."""

    def get_pool(self, namespace: ids.Namespace, name: ids.PoolName) -> pool.Pool | None:
        if self._source is not None:
            # All of them are kept: the few pools of an installation are asked for with each new lease.
            return next((each for each in self.pools() if (each.namespace, each.name) == (namespace, name)), None)
        row = self._one(session.select_by_key(tables.POOLS), b_namespace=namespace, b_name=name)
        return None if row is None else mapping.pool_value(row)

    def pools(self, namespace: ids.Namespace | None = None) -> tuple[pool.Pool, ...]:
        if namespace is None:
            return self._whole(tables.POOLS, lambda: tuple(map(mapping.pool_value, self._all(_ALL))))
        return tuple(map(mapping.pool_value, self._all(_IN_NAMESPACE, b_namespace=namespace)))


class PoolWrites(session.WriteSession, PoolReads):
    """Changes of pools."""

    def put_pool(self, new: pool.Pool) -> None:
        self._put(tables.POOLS, mapping.pool_columns(new))

    def delete_pool(self, namespace: ids.Namespace, name: ids.PoolName) -> bool:
        return self._delete(tables.POOLS, namespace=namespace, name=name)
