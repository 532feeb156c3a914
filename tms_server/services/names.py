"""Stable names: set, point elsewhere, list, delete. Both groups concerned are told, in the same write."""

from __future__ import annotations

import dataclasses
import datetime as dt

from tms_server.fleet import desired
from tms_server.leases import validate
from tms_server.model import caller as caller_module
from tms_server.model import errors, ids, lease, resources
from tms_server.ports import store
from tms_server.services import finding, parts
from tms_server.world import addresses, endings


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NameView:
    """A name and the address that it has; None until one is given."""

    binding: lease.NameBinding
    endpoint: resources.Endpoint | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The use cases of names."""

    parts: parts.Parts

    async def set(
        self, caller: caller_module.Caller, namespace: ids.Namespace, name: ids.LeaseName, lease_id: ids.LeaseId
    ) -> NameView:
        """Creates the name, or points it at another living lease."""
        del caller  # every caller may, while there are no rights
        validate.name("namespace", namespace)
        validate.name("name", name)
        parts.refuse_name(self.parts.backend, namespace, name)
        now = self.parts.clock.now()

        def work(unit: store.UnitOfWork) -> lease.NameBinding:
            target = finding.a_lease(unit, namespace, lease_id)
            if not target.state.living:
                raise errors.FailedPrecondition(f"lease {target.id} is {target.state}; name a living lease")
            return bind(unit, target, name, now)

        binding = await self.parts.store.write(work)
        await addresses.publish(self.parts.store, self.parts.backend, [desired.name_owner(namespace, name)])
        self.parts.changed.notify()
        return await self.parts.store.read(lambda reader: _view(reader, binding))

    async def list(self, caller: caller_module.Caller, namespace: ids.Namespace) -> tuple[NameView, ...]:
        """All names of a namespace."""
        del caller
        validate.name("namespace", namespace)
        return await self.parts.store.read(
            lambda reader: tuple(_view(reader, binding) for binding in reader.names(namespace))
        )

    async def delete(self, caller: caller_module.Caller, namespace: ids.Namespace, name: ids.LeaseName) -> None:
        """Takes the name and its address away; the lease stays."""
        del caller
        validate.name("namespace", namespace)

        def work(unit: store.UnitOfWork) -> None:
            bound = unit.get_name(namespace, name)
            if bound is None:
                raise errors.NotFound(f"no lease name {name!r} in namespace {namespace}")
            unit.delete_name(namespace, name)
            unit.delete_endpoint(desired.name_owner(namespace, name))
            _tell_groups(unit, {bound.lease_id})

        await self.parts.store.write(work)
        self.parts.changed.notify()


def check_free(reader: store.Reader, namespace: ids.Namespace, name: ids.LeaseName) -> None:
    """AlreadyExists when the name points at a living lease."""
    bound = reader.get_name(namespace, name)
    if bound is None:
        return
    holder = reader.get_lease(bound.lease_id)
    if holder is not None and holder.state.living:
        raise errors.AlreadyExists(f"name: {name!r} points at the living lease {holder.id}; point it elsewhere first")


def bind(unit: store.UnitOfWork, target: lease.Lease, name: ids.LeaseName, now: dt.datetime) -> lease.NameBinding:
    """Points a name at a lease; nothing changes when it does already."""
    before = unit.get_name(target.namespace, name)
    if before is not None and before.lease_id == target.id:
        return before
    binding = lease.NameBinding(namespace=target.namespace, name=name, lease_id=target.id, changed_at=now)
    unit.set_name(binding)
    _tell_groups(unit, {target.id} if before is None else {target.id, before.lease_id})
    return binding


def _tell_groups(unit: store.UnitOfWork, leases: set[ids.LeaseId]) -> None:
    booked = (each for lease_id in leases for each in unit.assignments(lease_id))
    groups = {each.group_id for each in booked if not each.draining}
    for group_id in sorted(groups):
        endings.bump(unit, group_id)


def _view(reader: store.Reader, binding: lease.NameBinding) -> NameView:
    owner = desired.name_owner(binding.namespace, binding.name)
    return NameView(binding=binding, endpoint=reader.get_endpoint(owner))
