"""Carries the sidecars' reports between servers, over the table in which they are stored anyway.

Each server stores what its own sidecars say, and takes up what the others have stored; so the one that leads hears of all,
and any of them can answer for all. What a worker can do is passed on at once; counters that moved are passed on together,
once in a while. The clock of another server is believed only as far as it can be right, and a worker of which nothing new
is stored for a while counts as gone from when its last word was seen.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping, Sequence

from tms_server import clock as clock_module
from tms_server.model import group, ids
from tms_server.ports import store as store_module
from tms_server.world import live

REST = dt.timedelta(seconds=1)
"""At least so long between two writes in which only counters have moved."""
SILENCE = dt.timedelta(seconds=6)
"""Several report intervals, and several times `REST`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Reports to store now, and when to look again."""

    now: tuple[group.GroupReport, ...]
    later: dt.datetime | None


def plan(
    own: Sequence[group.GroupReport],
    sent: Mapping[ids.WorkerId, group.GroupReport],
    last: dt.datetime | None,
    now: dt.datetime,
) -> Plan:
    """What of a server's own reports goes out. `last` is when counters went out; news takes all the others along."""
    fresh = tuple(each for each in own if sent.get(each.worker) != each)
    if not fresh:
        return Plan((), None)
    urgent = any(_gist(each) != _gist(sent.get(each.worker)) for each in fresh)
    if urgent or last is None or now - last >= REST:
        return Plan(fresh, None)
    return Plan((), last + REST)


class Sender:
    """A pass: stores this server's own reports, for the one that leads. Who `leads` itself need not hurry."""

    def __init__(
        self, store: store_module.Store, clock: clock_module.Clock, heard: live.Live, leads: Callable[[], bool]
    ) -> None:
        self._store = store
        self._clock = clock
        self._live = heard
        self._leads = leads
        self._sent: dict[ids.WorkerId, group.GroupReport] = {}
        self._last: dt.datetime | None = None

    async def __call__(self) -> dt.datetime | None:
        if self._leads():
            return None
        now, own = self._clock.now(), self._live.own()
        decided = plan(own, self._sent, self._last, now)
        if decided.now:
            await self._store.write(lambda unit: unit.put_reports(decided.now))
            self._last = now
        known = {each.worker for each in own}
        self._sent |= {each.worker: each for each in decided.now}
        self._sent = {worker: each for worker, each in self._sent.items() if worker in known}
        return decided.later


@dataclasses.dataclass(frozen=True, slots=True)
class _Word:
    """The last word of a worker that another server stored, and when it was seen here."""

    report: group.GroupReport
    seen_at: dt.datetime
    lost: bool = False


class Receiver:
    """A pass: takes up the reports that other servers have stored."""

    def __init__(self, store: store_module.Store, clock: clock_module.Clock, heard: live.Live) -> None:
        self._store = store
        self._clock = clock
        self._live = heard
        self._words: dict[ids.WorkerId, _Word] | None = None

    async def __call__(self) -> dt.datetime | None:
        stored = await self._store.read(lambda reader: reader.reports())
        now, own = self._clock.now(), self._connected()
        before = self._words
        # The first look only says where the others are.
        known = {each.worker: _Word(each, now, lost=True) for each in stored} if before is None else before
        self._words = {each.worker: self._follow(known.get(each.worker), each, own, now) for each in stored}
        waiting = (each.seen_at + SILENCE for each in self._words.values() if not each.lost)
        return min(waiting, default=None)

    def _connected(self) -> frozenset[ids.WorkerId]:
        """Workers that speak to this server."""
        return frozenset(each.worker for each in self._live.own() if self._live.gone_since(each.worker) is None)

    def _follow(
        self, before: _Word | None, report: group.GroupReport, own: frozenset[ids.WorkerId], now: dt.datetime
    ) -> _Word:
        worker = report.worker
        if before is None or before.report != report:
            if worker in own or _same(self._live.heard(worker), report):
                # It speaks here, or was heard here last.
                return _Word(report, now, lost=True)
            self._live.overhear(dataclasses.replace(report, received_at=_plausible(report.received_at, now)))
            return _Word(report, now)
        if worker not in own and not before.lost and now - before.seen_at >= SILENCE:
            self._live.lose(worker, before.seen_at)
            return dataclasses.replace(before, lost=True)
        return before


def _plausible(received_at: dt.datetime, now: dt.datetime) -> dt.datetime:
    """What is seen now has come in lately."""
    return min(now, max(received_at, now - SILENCE))


def _same(known: group.GroupReport | None, stored: group.GroupReport) -> bool:
    """But for whether it is connected, which whoever stores it judges anew."""
    return known is not None and dataclasses.replace(known, connected=stored.connected) == stored


def _gist(report: group.GroupReport | None) -> tuple[object, ...]:
    """What a report says beside counters, memory and times."""
    if report is None:
        return ()
    models = tuple(
        (each.name, each.source_digest, each.config_digest, each.state, each.reason, each.in_flight > 0)
        for each in report.models
    )
    worker = (report.incarnation, report.epoch, report.generation, report.server_ready, report.worker_trouble)
    return (*worker, report.endpoints, report.worker_endpoint, report.server_restarts, report.connected, models)
