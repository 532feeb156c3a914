"""Names of leases, and the addresses that leases, names and groups are published under."""

from __future__ import annotations

import types
from collections.abc import Mapping

import sqlalchemy as sa

from tms_server.model import errors, ids, lease, resources
from tms_server.store import mapping, session, tables

_NAMES = tables.NAMES.c
_ALL = sa.select(tables.NAMES).order_by(_NAMES.namespace, _NAMES.name)
_IN_NAMESPACE = _ALL.where(_NAMES.namespace == sa.bindparam("b_namespace"))
_OF_LEASE = _ALL.where(_NAMES.lease_id == sa.bindparam("b_lease_id"))
_ENDPOINTS = sa.select(tables.ENDPOINTS).order_by(tables.ENDPOINTS.c.owner)


class NameReads(session.ReadSession):
    """Reads of names and endpoints."""

    def get_name(self, namespace: ids.Namespace, name: ids.LeaseName) -> lease.NameBinding | None:
        row = self._one(session.select_by_key(tables.NAMES), b_namespace=namespace, b_name=name)
        return None if row is None else mapping.name_value(row)

    def names(self, namespace: ids.Namespace | None = None) -> tuple[lease.NameBinding, ...]:
        if namespace is None:
            return self._whole(tables.NAMES, lambda: tuple(map(mapping.name_value, self._all(_ALL))))
        return tuple(map(mapping.name_value, self._all(_IN_NAMESPACE, b_namespace=namespace)))

    def names_of(self, lease_id: ids.LeaseId) -> tuple[lease.NameBinding, ...]:
        return tuple(map(mapping.name_value, self._all(_OF_LEASE, b_lease_id=lease_id)))

    def get_endpoint(self, owner: str) -> resources.Endpoint | None:
        row = self._one(session.select_by_key(tables.ENDPOINTS), b_owner=owner)
        return None if row is None else mapping.endpoint_value(row)

    def endpoints(self) -> Mapping[str, resources.Endpoint]:
        return self._whole(tables.ENDPOINTS, self._read_endpoints)

    def _read_endpoints(self) -> Mapping[str, resources.Endpoint]:
        found = {row["owner"]: mapping.endpoint_value(row) for row in self._all(_ENDPOINTS)}
        return types.MappingProxyType(found)


class NameWrites(session.WriteSession, NameReads):
    """Changes of names and endpoints."""

    def set_name(self, binding: lease.NameBinding) -> None:
        """NotFound if there is no such lease."""
        try:
            with self._attempt():
                self._put(tables.NAMES, mapping.name_columns(binding))
        except sa.exc.IntegrityError:
            raise errors.NotFound(f"there is no lease {binding.lease_id!r}") from None

    def delete_name(self, namespace: ids.Namespace, name: ids.LeaseName) -> bool:
        return self._delete(tables.NAMES, namespace=namespace, name=name)

    def put_endpoint(self, owner: str, endpoint: resources.Endpoint) -> None:
        self._put(tables.ENDPOINTS, mapping.endpoint_columns(owner, endpoint))

    def delete_endpoint(self, owner: str) -> None:
        self._delete(tables.ENDPOINTS, owner=owner)
