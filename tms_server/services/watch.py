"""Follows leases: every stored change in commit order, and the progress of loads between them.

A watcher that is slow sees several changes of a lease as one; it never misses the last. Nothing is queued for it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from collections.abc import AsyncIterator, Iterator, Sequence

from tms_server.leases import validate
from tms_server.model import caller as caller_module
from tms_server.model import errors, ids, lease
from tms_server.ports import store
from tms_server.services import create, finding, parts, views
from tms_server.world import signal

BATCH = 500
WATCHED_MAX = 1000
REST = dt.timedelta(milliseconds=200)
_MOVING = (lease.LeaseState.PLACED, lease.LeaseState.LOADING, lease.LeaseState.RELEASING)
"""States in which the worker's word changes what is shown while nothing stored does."""
_Progress = tuple[tuple[str, str, str, int], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A lease as it is now, and the revision after which a watch resumes."""

    view: views.LeaseView
    revision: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Leases that changed, with the revision of their last change, in the order of these."""

    changed: tuple[tuple[lease.Lease, int], ...]
    around: views.Context
    revision: int
    more: bool = False


class Watcher:
    """The use cases of following."""

    def __init__(self, parts_: parts.Parts, creator: create.Creator) -> None:
        self._parts = parts_
        self._creator = creator

    async def watch(
        self, caller: caller_module.Caller, namespace: ids.Namespace, names: Sequence[str], after_revision: int
    ) -> AsyncIterator[Update]:
        """Changes after a revision, or the present state first (0). Ends when all the leases named have ended.

        RevisionGone when the history is no longer kept; Unavailable when the server stops.
        """
        del caller
        validate.name("namespace", namespace)
        if len(names) > WATCHED_MAX:
            raise errors.InvalidField("leases", f"name at most {WATCHED_MAX}, or none for all of the namespace")
        if after_revision < 0:
            raise errors.InvalidField("after_revision", "give the revision of an update, or 0")
        one = _Watch(self._parts, namespace, names)
        async for update in one.updates(after_revision):
            yield update

    async def acquire(self, caller: caller_module.Caller, asked: create.CreateLease) -> AsyncIterator[Update]:
        """Creates a lease and follows it until it is ACTIVE or has ended."""
        if asked.dry_run:
            raise errors.InvalidField("dry_run", "use Create for a dry run; there is nothing to follow")
        created = await self._creator.create(caller, asked)
        async for update in self.watch(caller, created.lease.namespace, [created.lease.id], 0):
            yield update
            if update.view.lease.state is lease.LeaseState.ACTIVE:
                return


class _Watch:
    """One watch: what was sent last, so that the same is not sent twice."""

    def __init__(self, parts_: parts.Parts, namespace: ids.Namespace, names: Sequence[str]) -> None:
        self._parts = parts_
        self._namespace = namespace
        self._names = names
        self._wanted: frozenset[ids.LeaseId] = frozenset()
        self._ended: frozenset[ids.LeaseId] = frozenset()
        self._sent: dict[ids.LeaseId, tuple[int, _Progress]] = {}
        self._moving: frozenset[ids.LeaseId] = frozenset()

    async def updates(self, after_revision: int) -> AsyncIterator[Update]:
        read = self._parts.store.read
        self._wanted = await read(self._find)
        signals = (self._parts.changed, self._parts.live.changed)
        counts = [each.count for each in signals]
        batch = await read(lambda reader: self._first(reader, after_revision))
        while True:
            for update in self._tell(batch):
                yield update
            if self._wanted and self._wanted <= self._ended:
                return
            if not batch.more:
                await self._rest(batch)
                await signal.any_after(signals, counts)
            counts = [each.count for each in signals]
            batch = await read(functools.partial(self._since, revision=batch.revision))

    async def _rest(self, batch: _Batch) -> None:
        """Who follows many leases on their way hears of them together; else one such watch would keep a server busy."""
        if len(batch.changed) > views.FEW:
            await self._parts.clock.sleep_until(self._parts.clock.now() + REST)

    def _find(self, reader: store.Reader) -> frozenset[ids.LeaseId]:
        return frozenset(finding.a_lease(reader, self._namespace, name).id for name in self._names)

    def _first(self, reader: store.Reader, after_revision: int) -> _Batch:
        if after_revision == 0:
            return self._present(reader)
        found = filter(None, map(reader.get_lease, self._wanted))
        # Those that ended before bring no change any more.
        self._ended = frozenset(each.id for each in found if each.state.ended and each.revision <= after_revision)
        return self._since(reader, after_revision)

    def _present(self, reader: store.Reader) -> _Batch:
        if self._wanted:
            found = [each for each in map(reader.get_lease, sorted(self._wanted)) if each is not None]
        else:
            found = [each for each in reader.unended_leases() if each.namespace == self._namespace]
        revision = reader.revision()
        changed = tuple((each, revision) for each in found)
        return _Batch(changed=changed, around=views.context(reader, found), revision=revision)

    def _since(self, reader: store.Reader, revision: int) -> _Batch:
        changes = reader.changes(revision, BATCH)
        end = changes[-1].revision if changes else revision
        last = {each.lease_id: each.revision for each in changes if self._is_mine(each)}
        places = sorted(last.items(), key=lambda item: item[1])
        # The loads and unloads of the others may have gone on without a change of what is stored.
        places += [(each, end) for each in sorted(self._moving - last.keys())]
        known = {each.id: each for each in reader.unended_leases()} if len(places) > views.FEW else {}
        found = [(known.get(lease_id) or reader.get_lease(lease_id), at) for lease_id, at in places]
        told = tuple((each, at) for each, at in found if each is not None)
        around = views.context(reader, [each for each, _ in told])
        return _Batch(changed=told, around=around, revision=end, more=len(changes) == BATCH)

    def _is_mine(self, change: lease.LeaseEvent) -> bool:
        return change.lease_id in self._wanted if self._wanted else change.namespace == self._namespace

    def _tell(self, batch: _Batch) -> Iterator[Update]:
        now = self._parts.clock.now()
        for stored, revision in batch.changed:
            view = views.view(stored, batch.around, self._parts.live, now)
            sent = stored.revision, _progress(view)
            if self._sent.get(stored.id) != sent:
                self._note(view, sent)
                yield Update(view=view, revision=revision)

    def _note(self, view: views.LeaseView, sent: tuple[int, _Progress]) -> None:
        stored = view.lease
        self._sent[stored.id] = sent
        changes = _has_replicas(stored) or view.ready_replicas != view.wanted_replicas
        moves = stored.state in _MOVING or (stored.state is lease.LeaseState.ACTIVE and changes)
        self._moving = self._moving | {stored.id} if moves else self._moving - {stored.id}
        if stored.state.ended:
            self._ended |= {stored.id}
            del self._sent[stored.id]


def _has_replicas(stored: lease.Lease) -> bool:
    """Whether the number of those that answer says something that its state does not."""
    placement = stored.spec.placement
    return stored.spec.autoscaling is not None or (isinstance(placement, lease.Dedicated) and placement.replicas > 1)


def _progress(view: views.LeaseView) -> _Progress:
    loads = tuple((each.state, each.reason, each.message, each.fetched_bytes) for each in view.models)
    return *loads, ("replicas", "", str(view.wanted_replicas), view.ready_replicas)
