"""Which of several servers runs the reconcilers: one row in the database, held for as long as it is renewed.

For economy only: whatever a server does that wrongly believes to lead is refused by generations and revisions. No clock is
compared with that of another machine. A follower waits until it has seen no beat of the leader for the whole time to live,
by its own clock; a leader counts from before it wrote its last beat and stops after two thirds of that time, so the next
one begins later than it ends, whether it was stopped, cut off from the database, or not told what became of its write.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Awaitable, Callable

import structlog

from tms_server import clock as clock_module
from tms_server.ports import store as store_module

TIME_TO_LIVE = dt.timedelta(seconds=12)

log = structlog.get_logger(__name__)

Pass = Callable[[], Awaitable[dt.datetime | None]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What one server knows of the leader. `row` is what it saw last, so since `since` by its own clock.

    `held` is the last row that it wrote itself and knows to be written, `began` when it began to write it.
    """

    me: str
    ttl: dt.timedelta
    row: store_module.Leader | None = None
    since: dt.datetime | None = None
    held: store_module.Leader | None = None
    began: dt.datetime | None = None

    def saw(self, row: store_module.Leader | None, now: dt.datetime) -> Standing:
        """The row is so now."""
        if row == self.row and self.since is not None:
            return self
        return dataclasses.replace(self, row=row, since=now)

    def wrote(self, row: store_module.Leader, began: dt.datetime, now: dt.datetime) -> Standing:
        """This server's own row is in the database; it did not begin to write it before `began`."""
        return dataclasses.replace(self.saw(row, now), held=row, began=began)

    def leads_until(self) -> dt.datetime | None:
        """None for a follower."""
        if self.held is None or self.began is None or self.held != self.row:
            return None
        return self.began + self.ttl * 2 / 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do now: write that row, if the one seen is still there; and when to look again."""

    write: store_module.Leader | None
    look_at: dt.datetime


def decide(standing: Standing, now: dt.datetime) -> Verdict:
    """Lead on, follow, or take over. Pure."""
    row, soon = standing.row, now + standing.ttl / 3
    if row is not None and row.holder == standing.me:
        if standing.held == row and standing.began is not None and now < standing.began + standing.ttl / 3:
            return Verdict(write=None, look_at=standing.began + standing.ttl / 3)
        # Also when it is not known when this was written: only a new beat says from when to count.
        return Verdict(write=dataclasses.replace(row, beat=row.beat + 1), look_at=soon)
    if row is not None and row.holder and standing.since is not None and now < standing.since + standing.ttl:
        return Verdict(write=None, look_at=min(soon, standing.since + standing.ttl))
    return Verdict(write=store_module.Leader(term=row.term + 1 if row else 1, holder=standing.me), look_at=soon)


class Election:
    """One server's part in it; a pass of a loop. `me` is unlike that of any server before or beside it.

    `changed` is called on the event loop when the server begins to lead, and when it has found out that it no longer does.
    """

    def __init__(
        self,
        store: store_module.Store,
        clock: clock_module.Clock,
        me: str,
        changed: Callable[[], None],
        ttl: dt.timedelta = TIME_TO_LIVE,
    ) -> None:
        self._store = store
        self._clock = clock
        self._changed = changed
        self._standing = Standing(me=me, ttl=ttl)
        self._led = False

    @property
    def leads(self) -> bool:
        """Whether this server may decide now."""
        until = self._standing.leads_until()
        return until is not None and self._clock.now() < until

    def gate(self, work: Pass) -> Pass:
        """The same pass, which does nothing while another server leads."""

        async def gated() -> dt.datetime | None:
            return await work() if self.leads else None

        return gated

    async def __call__(self) -> dt.datetime | None:
        try:
            return await self._look()
        finally:
            self._tell()

    async def resign(self) -> None:
        """Another server may take over at once. Comes last, when nothing decides here any more."""
        held = self._standing.held
        if not self.leads or held is None:
            return
        given = dataclasses.replace(held, holder="")
        self._standing = dataclasses.replace(self._standing, held=None)
        await self._store.write(lambda unit: _replace(unit, held, given))
        self._tell()

    async def _look(self) -> dt.datetime:
        row = await self._store.read(lambda reader: reader.leader())
        self._standing = self._standing.saw(row, self._clock.now())
        began = self._clock.now()
        verdict = decide(self._standing, began)
        wanted = verdict.write
        if wanted is None:
            return verdict.look_at
        found = await self._store.write(lambda unit: _replace(unit, row, wanted))
        if found == wanted:
            self._standing = self._standing.wrote(wanted, began, self._clock.now())
        else:
            self._standing = self._standing.saw(found, self._clock.now())
        return verdict.look_at

    def _tell(self) -> None:
        if self.leads == self._led:
            return
        self._led = self.leads
        row = self._standing.row
        log.info("leader.won" if self._led else "leader.lost", term=row.term if row else 0)
        self._changed()


def _replace(
    unit: store_module.UnitOfWork, expected: store_module.Leader | None, new: store_module.Leader
) -> store_module.Leader | None:
    """Writes the new row if the expected one is there; answers the row that is there now."""
    found = unit.leader()
    if found != expected:
        return found
    unit.put_leader(new)
    return new
