"""Creates leases: checks, looks models up, stores once.

The same request id with the same body answers the same lease, whatever happens in between. Models are looked up before
the transaction, for a bounded time; placement comes later, elsewhere.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json

from tms_server.leases import lifecycle, validate
from tms_server.model import caller as caller_module
from tms_server.model import errors, ids, lease, source
from tms_server.placement import explain as explaining
from tms_server.ports import store
from tms_server.services import finding, images, names, parts, views
from tms_server.world import fleet_view, resolving


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CreateLease:
    """What a caller asks for. `request_id` and `name` may be empty."""

    namespace: ids.Namespace
    spec: lease.LeaseSpec
    request_id: str = ""
    name: str = ""
    dry_run: bool = False

    @property
    def digest(self) -> str:
        """sha256 of all that was asked for: two requests with the same digest are one."""
        plain = dataclasses.replace(self.spec, labels=dict(sorted(self.spec.labels.items())))
        body = [self.namespace, type(plain.placement).__name__, dataclasses.asdict(plain), self.name]
        return hashlib.sha256(json.dumps(body, default=str, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Creator:
    """The use case of creating."""

    parts: parts.Parts

    @property
    def times(self) -> lease.Times:
        """Those of a lease that does not say its own."""
        return self.parts.times

    async def create(self, caller: caller_module.Caller, asked: CreateLease) -> views.LeaseView:
        """Stores a lease and answers it PENDING; for a dry run, answers what placement would say and stores nothing."""
        self._validate(asked)
        request_id = asked.request_id or self.parts.ids.request()
        if (earlier := await self.parts.store.read(lambda reader: self._before(reader, caller, asked))) is not None:
            return self._view(*earlier)
        sources, silence = await self._resolve(asked)
        identity = lifecycle.Identity(
            id=self.parts.ids.lease(), namespace=asked.namespace, request_id=request_id, actor=caller.name
        )
        new = _new(identity, asked, sources, silence, self.parts.clock.now())
        if asked.dry_run:
            return await self._dry_run(new)
        stored, around = await self.parts.store.write(lambda unit: self._store(unit, caller, asked, new))
        if stored.id == new.id:
            self.parts.metrics.created.inc()
        return self._view(stored, around)

    def _validate(self, asked: CreateLease) -> None:
        validate.name("namespace", asked.namespace)
        if asked.request_id:
            validate.request_id("request_id", asked.request_id)
        if asked.name:
            validate.name("name", asked.name)
            parts.refuse_name(self.parts.backend, asked.namespace, ids.LeaseName(asked.name))
        validate.lease_spec(asked.spec)
        if isinstance(asked.spec.placement, lease.Dedicated):
            parts.refuse_worker(self.parts.backend, "dedicated.worker", asked.spec.placement.worker)
        if not self.parts.backend.scales:
            _refuse_growth(asked.spec)

    def _before(
        self, reader: store.Reader, caller: caller_module.Caller, asked: CreateLease
    ) -> tuple[lease.Lease, views.Context] | None:
        """The lease that this request has made already; None when it may be looked up and stored."""
        if asked.request_id and not asked.dry_run:
            earlier = _earlier(reader, caller, asked, asked.request_id)
            if earlier is not None:
                return earlier, views.context(reader, [earlier])
        self._check(reader, asked)
        return None

    def _check(self, reader: store.Reader, asked: CreateLease) -> None:
        """What must exist and be free."""
        if isinstance(asked.spec.placement, lease.InPool):
            finding.a_pool(reader, asked.namespace, asked.spec.placement.pool)
        else:
            images.check(reader, self.parts.images, "dedicated.worker", asked.spec.placement.worker)
        if asked.spec.parent_id is not None:
            parent = reader.get_lease(asked.spec.parent_id)
            if parent is None or parent.namespace != asked.namespace:
                raise errors.NotFound(f"parent_id: no lease {asked.spec.parent_id!r} in namespace {asked.namespace}")
            if not parent.state.living:
                raise errors.FailedPrecondition(f"parent_id: lease {parent.id} is {parent.state}; name a living lease")
        if asked.name:
            names.check_free(reader, asked.namespace, ids.LeaseName(asked.name))

    async def _resolve(self, asked: CreateLease) -> tuple[tuple[source.ModelSource, ...], str]:
        bound_s = self.parts.resolve_bound.total_seconds()
        try:
            return await resolving.resolve(self.parts.resolver, asked.spec.models, bound_s), ""
        except errors.Retryable as silence:
            return (), str(silence)

    def _store(
        self, unit: store.UnitOfWork, caller: caller_module.Caller, asked: CreateLease, new: lease.Lease
    ) -> tuple[lease.Lease, views.Context]:
        earlier = _earlier(unit, caller, asked, new.request_id)
        if earlier is not None:
            return earlier, views.context(unit, [earlier])
        self._check(unit, asked)
        event = store.NewEvent(
            type="Created", message=f"asked for by {caller.name}", actor=caller.name, at=new.created_at
        )
        stored = unit.add_lease(self._warned(unit, new), asked.digest, event)
        if asked.name:
            names.bind(unit, stored, ids.LeaseName(asked.name), new.created_at)
        return stored, views.context(unit, [stored])

    def _warned(self, reader: store.Reader, new: lease.Lease) -> lease.Lease:
        """With a condition that tells what stands against its worker now, if anything does."""
        placement = new.spec.placement
        if isinstance(placement, lease.Dedicated):
            worker = placement.worker
        else:
            worker = finding.a_pool(reader, new.namespace, placement.pool).spec.worker
        trouble = self.parts.backend.warn(worker)
        if trouble is None:
            return new
        return lifecycle.warned(new, trouble.reason, trouble.message, new.created_at, status=True)

    async def _dry_run(self, new: lease.Lease) -> views.LeaseView:
        fleet, new = await self.parts.store.read(
            lambda reader: (
                fleet_view.fleet(reader, self.parts.backend.capacity_bytes, new),
                self._warned(reader, new),
            )
        )
        said = explaining.explain(fleet, new)
        condition = lease.Condition(
            type="Placed", status=said.fits, reason=said.outcome, message=said.summary, changed_at=new.created_at
        )
        shown = dataclasses.replace(new.with_condition(condition), id=ids.LeaseId(""))
        return views.view(shown, views.BARE, self.parts.live, new.created_at)

    def _view(self, stored: lease.Lease, around: views.Context) -> views.LeaseView:
        return views.view(stored, around, self.parts.live, self.parts.clock.now())


def _refuse_growth(spec: lease.LeaseSpec) -> None:
    if isinstance(spec.placement, lease.Dedicated) and spec.placement.replicas > 1:
        raise errors.Unimplemented("dedicated.replicas: this server runs one copy of a worker; give 1, or leave it out")
    if spec.autoscaling is not None:
        raise errors.Unimplemented("autoscaling: this server does not scale leases; leave it out")


def _new(
    identity: lifecycle.Identity,
    asked: CreateLease,
    sources: tuple[source.ModelSource, ...],
    silence: str,
    now: dt.datetime,
) -> lease.Lease:
    new = lifecycle.request(identity, asked.spec, now)
    if sources:
        new = lifecycle.resolve(new, sources, now)
    return lifecycle.unresolved(new, "RepositorySilent", silence, now) if silence else new


def _earlier(
    reader: store.Reader, caller: caller_module.Caller, asked: CreateLease, request_id: str
) -> lease.Lease | None:
    """The lease that the same request made before; AlreadyExists when the request was another one."""
    found = reader.find_request(asked.namespace, caller.name, request_id)
    if found is None:
        return None
    lease_id, digest = found
    if digest != asked.digest:
        raise errors.AlreadyExists(f"request_id: {request_id!r} was used for another request; choose a new one")
    return reader.get_lease(lease_id)
