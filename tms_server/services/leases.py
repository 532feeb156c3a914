"""Leases after their creation: get, list, renew, release, explain, history, logs."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime as dt
import json
from collections.abc import AsyncIterator, Mapping

from tms_server.leases import expiry, validate
from tms_server.model import caller as caller_module
from tms_server.model import errors, ids, lease
from tms_server.placement import explain as explaining
from tms_server.placement import report
from tms_server.ports import backend as backend_module
from tms_server.ports import store
from tms_server.services import finding, parts, views
from tms_server.world import endings, fleet_view, sight

PAGE_DEFAULT, PAGE_MAX = 100, 1000
TAIL_DEFAULT, TAIL_MAX = 100, 10_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListLeases:
    """Filters and place of a page; 0 and empty mean the defaults."""

    namespace: ids.Namespace
    states: frozenset[lease.LeaseState] = frozenset()
    labels: Mapping[str, str] = dataclasses.field(default_factory=lambda: lease.EMPTY)
    pool: str = ""
    page_size: int = 0
    page_token: str = ""
    living_only: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Leases, newest first; `next_token` is empty on the last page."""

    leases: tuple[views.LeaseView, ...]
    next_token: str
    revision: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """Why a lease is where it is. `trouble` is what its worker or the backend says against it, if anything."""

    lease: lease.Lease
    why: report.Explanation
    trouble: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leases:
    """The use cases of existing leases."""

    parts: parts.Parts

    async def get(self, caller: caller_module.Caller, namespace: ids.Namespace, text: str) -> views.LeaseView:
        """A lease by id or name."""
        del caller  # every caller may, while there are no rights
        stored, around = await self.parts.store.read(lambda reader: _with_context(reader, namespace, text))
        return self._view(stored, around)

    async def list(self, caller: caller_module.Caller, asked: ListLeases) -> Page:
        """A page of leases, newest first."""
        del caller
        query = _query(asked)

        def work(reader: store.Reader) -> tuple[tuple[lease.Lease, ...], views.Context, int]:
            found = reader.leases(query)
            return found, views.context(reader, found), reader.revision()

        found, around, revision = await self.parts.store.read(work)
        shown = found[: query.limit - 1]
        return Page(
            leases=tuple(self._view(each, around) for each in shown),
            next_token=_token(shown[-1]) if len(found) > len(shown) else "",
            revision=revision,
        )

    async def renew(
        self,
        caller: caller_module.Caller,
        namespace: ids.Namespace,
        text: str,
        duration: dt.timedelta | None,
        *,
        allow_shorten: bool,
    ) -> views.LeaseView:
        """Moves the deadline, counted from now."""
        del caller
        if duration is not None:
            validate.span("duration", duration)

        def work(unit: store.UnitOfWork) -> tuple[lease.Lease, views.Context]:
            held = finding.a_lease(unit, namespace, text)
            renewed = expiry.renew(held, duration, self.parts.clock.now(), allow_shorten=allow_shorten)
            unit.renew_lease(held.id, renewed.renewed_until, renewed.last_activity_at)
            return renewed, views.context(unit, [renewed])

        shown = self._view(*await self.parts.store.write(work))
        if allow_shorten:
            # A renewal raises no revision, and an end may now be due before the next pass.
            self.parts.changed.notify()
        return shown

    async def keep_alive(self, caller: caller_module.Caller, namespace: ids.Namespace, text: str) -> views.LeaseView:
        """Renews by the lease's hold; a lease that has ended is answered as it is."""
        del caller

        def work(unit: store.UnitOfWork) -> lease.Lease:
            held = finding.a_lease(unit, namespace, text)
            if not held.state.living:
                return held
            renewed = expiry.keep_alive(held, self.parts.clock.now())
            unit.renew_lease(held.id, renewed.renewed_until, renewed.last_activity_at)
            return renewed

        return self._view(await self.parts.store.write(work), views.BARE)

    async def release(
        self, caller: caller_module.Caller, namespace: ids.Namespace, text: str, message: str
    ) -> views.LeaseView:
        """Ends the lease; one that has ended, or is ending, is answered as it is."""
        validate_message(message)

        def work(unit: store.UnitOfWork) -> tuple[lease.Lease, views.Context]:
            held = finding.a_lease(unit, namespace, text)
            if held.state.living:
                held = endings.end(unit, held, _released(caller, message, self.parts.clock.now()))
            return held, views.context(unit, [held])

        return self._view(*await self.parts.store.write(work))

    async def explain(self, caller: caller_module.Caller, namespace: ids.Namespace, text: str) -> Explained:
        """Each worker with the rule that refuses the lease, the nearest fit, the smallest change that would fit."""
        del caller

        def work(reader: store.Reader) -> tuple[lease.Lease, report.Explanation, tuple[ids.GroupId, ...]]:
            held = finding.a_lease(reader, namespace, text)
            fleet = fleet_view.fleet(reader, self.parts.backend.capacity_bytes)
            return held, explaining.explain(fleet, held), _groups(reader, held.id)

        held, why, groups = await self.parts.store.read(work)
        return Explained(lease=held, why=why, trouble="; ".join(filter(None, map(self._trouble, groups))))

    async def events(
        self, caller: caller_module.Caller, namespace: ids.Namespace, text: str
    ) -> tuple[lease.LeaseEvent, ...]:
        """The lease's history, oldest first; changes that nobody named are left out."""
        del caller

        def work(reader: store.Reader) -> tuple[lease.LeaseEvent, ...]:
            return reader.events(finding.a_lease(reader, namespace, text).id)

        return tuple(each for each in await self.parts.store.read(work) if each.type != "Changed")

    async def logs(
        self, caller: caller_module.Caller, namespace: ids.Namespace, text: str, tail: int, *, follow: bool
    ) -> AsyncIterator[backend_module.LogLine]:
        """Lines of the lease's workers; the last of them is followed."""
        del caller
        if not 0 <= tail <= TAIL_MAX:
            raise errors.InvalidField("tail", f"give a number of lines up to {TAIL_MAX}, or 0 for {TAIL_DEFAULT}")
        groups = await self.parts.store.read(
            lambda reader: _groups(reader, finding.a_lease(reader, namespace, text).id)
        )
        if not groups:
            raise errors.FailedPrecondition(f"lease {text} has no worker now; its history says why: ask for its events")
        for group_id in groups:
            last = group_id == groups[-1]
            async for line in self.parts.backend.logs(group_id, tail or TAIL_DEFAULT, follow=follow and last):
                yield line

    def _trouble(self, group_id: ids.GroupId) -> str:
        known = self.parts.live
        if (refused := known.troubles.get(group_id)) is not None:
            return f"worker {group_id} cannot be started: {refused.message}"
        if (trouble := sight.trouble(known, group_id)) is not None:
            return f"worker {group_id}: {trouble.reason}: {trouble.message}"
        observed = known.observed(group_id)
        if observed is None or observed.phase is not backend_module.Phase.BACKING_OFF:
            return ""
        return f"worker {group_id} died and is started anew: {observed.message}"

    def _view(self, stored: lease.Lease, around: views.Context) -> views.LeaseView:
        return views.view(stored, around, self.parts.live, self.parts.clock.now())


def validate_message(message: str) -> None:
    """Checks a text for people that is kept."""
    if len(message) > 1024:
        raise errors.InvalidField("message", "give at most 1024 characters")


def _with_context(reader: store.Reader, namespace: ids.Namespace, text: str) -> tuple[lease.Lease, views.Context]:
    stored = finding.a_lease(reader, namespace, text)
    return stored, views.context(reader, [stored])


def _released(caller: caller_module.Caller, message: str, now: dt.datetime) -> lease.LeaseEnd:
    return lease.LeaseEnd(
        state=lease.LeaseState.RELEASED,
        reason="Released",
        message=message or f"released by {caller.name}",
        actor=caller.name,
        at=now,
    )


def _groups(reader: store.Reader, lease_id: ids.LeaseId) -> tuple[ids.GroupId, ...]:
    """Groups that hold the lease, the wanted one last."""
    booked = sorted((each for each in reader.assignments(lease_id)), key=lambda each: not each.draining)
    return tuple(dict.fromkeys(each.group_id for each in booked))


def _query(asked: ListLeases) -> store.LeaseQuery:
    validate.name("namespace", asked.namespace)
    validate.labels("labels", asked.labels)
    if not 0 <= asked.page_size <= PAGE_MAX:
        raise errors.InvalidField("page_size", f"give a number from 1 to {PAGE_MAX}, or 0 for {PAGE_DEFAULT}")
    return store.LeaseQuery(
        namespace=asked.namespace,
        states=asked.states,
        labels=asked.labels,
        pool=ids.PoolName(asked.pool) if asked.pool else None,
        living_only=asked.living_only,
        before=_place(asked.page_token) if asked.page_token else None,
        # One more than the page, to know whether there is another.
        limit=(asked.page_size or PAGE_DEFAULT) + 1,
    )


def _token(last: lease.Lease) -> str:
    return base64.urlsafe_b64encode(json.dumps([last.created_at.isoformat(), last.id]).encode()).decode()


def _place(token: str) -> tuple[dt.datetime, ids.LeaseId]:
    try:
        created_at, lease_id = json.loads(base64.urlsafe_b64decode(token.encode()))
        place = dt.datetime.fromisoformat(created_at).astimezone(dt.UTC), ids.LeaseId(lease_id + "")
    except (ValueError, TypeError, OverflowError, binascii.Error, RecursionError):
        raise errors.InvalidField("page_token", "give the next_page_token of the page before, unchanged") from None
    return place
