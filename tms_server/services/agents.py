"""The sidecars' side: who may connect, what each is told, what each says.

One living session for each worker; a second one replaces the first. What is told is always whole and computed from the
store, so a push that comes twice or late does no harm. A worker is not told to let go of a lease whose clients are still
led to it. What is said is only kept here; a reconciler works out its meaning.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import hmac
from collections.abc import AsyncIterator, Collection, Mapping

import structlog

from tms_server.fleet import desired
from tms_server.model import errors, group, ids, lease
from tms_server.ports import resolver as resolver_module
from tms_server.ports import store
from tms_server.services import parts
from tms_server.world import routing

log = structlog.get_logger(__name__)
REPLICA_MAX = 253
WITHHELD_BOUND = dt.timedelta(seconds=30)
"""How long a worker keeps what it should let go of, because clients may still be led to it."""
WITHHELD_RECHECK = dt.timedelta(seconds=1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DesiredState:
    """What a sidecar is told. `access` holds what it needs to read a source, by URI."""

    epoch: int
    wanted: desired.Wanted
    access: Mapping[str, resolver_module.Access]
    report_interval: dt.timedelta
    routed: bool = False


class Session:
    """One connected sidecar. Holds the latest desired state only, never a queue of them."""

    def __init__(self, worker: ids.WorkerId) -> None:
        self.worker = worker
        self.incarnation = ""
        self.withheld_since: dt.datetime | None = None
        """Set while it must not be told yet what it should hold."""
        self._next: DesiredState | None = None
        self._told: DesiredState | None = None
        self._failure: errors.TmsError | None = None
        self._stirred = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Nothing is taken from it and nothing told any more."""
        return self._failure is not None

    def offer(self, state: DesiredState) -> None:
        """Tells it, unless it knows already."""
        if state != self._told:
            self._next = self._told = state
            self._stirred.set()

    def close(self, failure: errors.TmsError) -> None:
        """Ends the session with that error; the first counts."""
        self._failure = self._failure or failure
        self._stirred.set()

    async def desired(self) -> AsyncIterator[DesiredState]:
        """What to tell, as it changes; raises what the session was closed with."""
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            if self._failure is not None:
                raise self._failure
            if self._next is not None:
                told, self._next = self._next, None
                yield told


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What is stored that sidecars are told from."""

    epoch: int
    wanted: Mapping[ids.GroupId, desired.Wanted]
    held: Mapping[ids.GroupId, tuple[lease.Lease, ...]]


class Agents:
    """The hub of all sidecars of this server."""

    def __init__(self, parts_: parts.Parts, report_interval: dt.timedelta) -> None:
        self._parts = parts_
        self._report_interval = report_interval
        self._sessions: dict[ids.WorkerId, Session] = {}
        self._epoch = 0

    async def connect(self, worker_id: str, replica_id: str, token: str) -> Session:
        """Opens the session of a worker; NotFound when it is not wanted, Unauthenticated for another token."""
        worker = ids.WorkerId(ids.GroupId(worker_id), _replica(replica_id))
        known = await self._parts.store.read(lambda reader: reader.get_group(worker.group_id))
        if known is None or self._parts.live.let_go(worker):
            raise errors.NotFound(f"worker {_name(worker)!r} is not wanted")
        if not hmac.compare_digest(known.token.encode(), token.encode()):
            raise errors.Unauthenticated(f"this is not the token of worker {worker_id!r}")
        session = Session(worker)
        before = self._sessions.get(worker)
        self._sessions[worker] = session
        if before is not None:
            before.close(errors.Unavailable("another connection of this worker took over"))
        self._parts.metrics.sidecars.set(len(self._sessions))
        log.info("sidecar.connected", group=worker.group_id, replica=worker.replica)
        await self._tell({worker: session})
        return session

    def disconnect(self, session: Session) -> None:
        """The stream is over; the worker counts as gone unless another session has taken over."""
        session.close(errors.Unavailable("the stream has ended"))
        worker = session.worker
        if self._sessions.get(worker) is session:
            del self._sessions[worker]
            self._parts.live.lose(worker, self._parts.clock.now())
            self._parts.metrics.sidecars.set(len(self._sessions))
            log.info("sidecar.disconnected", group=worker.group_id, replica=worker.replica)

    def now(self) -> dt.datetime:
        """The control plane's clock, for what is received."""
        return self._parts.clock.now()

    def report(self, session: Session, report: group.GroupReport) -> None:
        """Keeps what a sidecar says. What it holds of another epoch is of no generation known here."""
        if session.closed:
            return
        if report.epoch != self._epoch:
            report = dataclasses.replace(report, generation=0)
        self._parts.live.hear(report)

    async def push(self) -> dt.datetime | None:
        """One pass: tells every connected sidecar what its worker should hold now; answers when to look again."""
        await self._look()
        await self._tell(dict(self._sessions))
        waiting = any(each.withheld_since is not None for each in self._sessions.values())
        return self._parts.clock.now() + WITHHELD_RECHECK if waiting else None

    async def _tell(self, sessions: Mapping[ids.WorkerId, Session]) -> None:
        if not sessions:
            return
        groups = {each.group_id for each in sessions}
        leads = self._parts.backend.routes
        told = await self._parts.store.read(lambda reader: _told(reader, groups, leads=leads))
        self._epoch = told.epoch
        for worker, session in sessions.items():
            if worker.group_id not in told.wanted or self._parts.live.let_go(worker):
                session.close(errors.NotFound(f"worker {_name(worker)!r} is not wanted any more"))
            elif not self._withheld(session, told.held[worker.group_id]):
                session.offer(self._state(told, worker))

    async def _look(self) -> None:
        """Which workers exist is known to every server, whether it decides anything or not."""
        with contextlib.suppress(errors.Unavailable):
            self._parts.live.observe(await self._parts.backend.observe())

    def _withheld(self, session: Session, held: Collection[lease.Lease]) -> bool:
        """Whether clients of leases that the worker should let go of are still led there; for a bounded time."""
        left = self._parts.backend.routed(session.worker) - {each.id for each in held}
        if not left:
            session.withheld_since = None
            return False
        now = self._parts.clock.now()
        session.withheld_since = session.withheld_since or now
        return now - session.withheld_since < WITHHELD_BOUND

    def close(self) -> None:
        """Ends all sessions because the server stops."""
        for session in list(self._sessions.values()):
            session.close(errors.Unavailable("the server is stopping"))

    def _state(self, told: _Told, worker: ids.WorkerId) -> DesiredState:
        wanted, backend = told.wanted[worker.group_id], self._parts.backend
        found = {model.source.uri: self._parts.resolver.access(model.source.uri) for model in wanted.models}
        report = self._parts.live.heard(worker)
        return DesiredState(
            epoch=told.epoch,
            wanted=wanted,
            access={uri: access for uri, access in found.items() if access is not None},
            report_interval=self._report_interval,
            routed=backend.routes and routing.led(told.held[worker.group_id], report, backend.routed(worker)),
        )


def _replica(text: str) -> ids.ReplicaId:
    if len(text) > REPLICA_MAX or not all(each.isalnum() or each in "-." for each in text):
        raise errors.InvalidField("tms-replica-id", f"give the pod's name, at most {REPLICA_MAX} characters")
    return ids.ReplicaId(text)


def _name(worker: ids.WorkerId) -> str:
    return "/".join(filter(None, worker))


def _told(reader: store.Reader, groups: Collection[ids.GroupId], *, leads: bool) -> _Told:
    """With `leads` the backend has the addresses, and no sidecar listens on any."""
    booked: dict[ids.GroupId, list[group.Assignment]] = {each: [] for each in groups}
    for each in reader.assignments():
        if each.group_id in booked:
            booked[each.group_id].append(each)
    leases = {each.id: each for each in reader.unended_leases()}
    names, endpoints = ((), {}) if leads else (reader.names(), reader.endpoints())
    found = [each for each in reader.groups() if each.id in booked]
    return _Told(
        epoch=reader.installation().epoch,
        wanted={each.id: desired.wanted(each, booked[each.id], leases, names, endpoints) for each in found},
        held={each.id: desired.held(each.id, booked[each.id], leases) for each in found},
    )
