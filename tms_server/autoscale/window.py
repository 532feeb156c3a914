"""What one worker did of late, from its successive reports.

Counters become increments here: those that a reload or a crash began anew count from zero, a worker heard for the first
time counts from where it stands. Holds no more than a window of increments, in a bounded number of steps. It never reads
a clock and never says what an increment means.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import math
from collections.abc import Iterator, Mapping

from tms_server.model import bundle, group

WINDOW = dt.timedelta(seconds=15)
STEPS = 32
"""Into how many parts a window is cut at most; nearer reports become one step."""

_COMING = frozenset({group.ModelState.PENDING, group.ModelState.FETCHING, group.ModelState.LOADING})

Buckets = Mapping[int, float]
"""Requests by the upper bound of their time in microseconds (0: no bound), each counted in one bucket only."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Requests of one model that ended, with their times; `latency` is None where the worker keeps no histogram."""

    requests: float = 0
    failures: float = 0
    queue_ns: float = 0
    compute_ns: float = 0
    latency: Buckets | None = None

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            requests=self.requests + other.requests,
            failures=self.failures + other.failures,
            queue_ns=self.queue_ns + other.queue_ns,
            compute_ns=self.compute_ns + other.compute_ns,
            latency=_added(self.latency, other.latency),
        )

    def scaled(self, share: float) -> Counts:
        """That part of the counts."""
        return Counts(
            requests=self.requests * share,
            failures=self.failures * share,
            queue_ns=self.queue_ns * share,
            compute_ns=self.compute_ns * share,
            latency=None if self.latency is None else {key: each * share for key, each in self.latency.items()},
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What passed between two reports, and how the worker stood at the second.

    `counts` is None where the worker could not say; a model without an entry was not there at both ends.
    `in_flight` is None where it is not known of all requests, `used_bytes` and `gpu_permille` where nothing is known.
    """

    began_at: dt.datetime
    ended_at: dt.datetime
    counts: Mapping[bundle.ModelKey, Counts] | None
    in_flight: Mapping[bundle.ModelKey, int] | None
    used_bytes: int | None
    gpu_permille: int | None

    def share_after(self, start: dt.datetime) -> float:
        """Which part of the step lies after that time."""
        span = self.ended_at - self.began_at
        if not span:
            return float(self.ended_at > start)
        return min(1.0, max(0.0, (self.ended_at - start) / span))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A worker's steps within the window before its last report; `counted` is the last report that had counters.

    `begun` says since when models are on their way, `loads` how long those took that it was seen to load.
    """

    last: group.GroupReport
    counted: group.GroupReport | None
    steps: tuple[Step, ...]
    begun: Mapping[bundle.ModelKey, dt.datetime] = dataclasses.field(default_factory=dict)
    loads: Mapping[bundle.ModelKey, dt.timedelta] = dataclasses.field(default_factory=dict)

    @property
    def ready(self) -> frozenset[bundle.ModelKey]:
        """Models that the worker serves as of its last report."""
        if not self.last.server_ready or not self.last.connected:
            return frozenset()
        models = self.last.models
        return frozenset(bundle.reported_key(each) for each in models if each.state is group.ModelState.READY)


def follow(track: Track | None, report: group.GroupReport, window: dt.timedelta = WINDOW) -> Track:
    """The track with one more report of the same worker; reports that are not newer change nothing but the last word."""
    if track is None:
        first = _step(None, report, report.received_at)
        counted = report if report.activity_known else None
        return Track(last=report, counted=counted, steps=(first,), begun=_begun({}, report))
    if report.received_at <= track.last.received_at:
        same = report.received_at == track.last.received_at
        return dataclasses.replace(track, last=report) if same else track
    known = report.activity_known
    began_at = track.last.received_at if track.counted is None or not known else track.counted.received_at
    step = _step(track.counted, report, began_at)
    start = report.received_at - window
    kept = tuple(each for each in track.steps if each.ended_at > start)
    return Track(
        last=report,
        counted=report if known else track.counted,
        steps=_joined(kept, step, window / STEPS),
        begun=_begun(track.begun, report),
        loads=_loads(track, report),
    )


def _step(before: group.GroupReport | None, report: group.GroupReport, began_at: dt.datetime) -> Step:
    counts = dict(_counts(before, report)) if before is not None and report.activity_known else None
    models = report.models if report.in_flight_known else None
    return Step(
        began_at=began_at,
        ended_at=report.received_at,
        counts=counts,
        in_flight=None if models is None else {bundle.reported_key(each): each.in_flight for each in models},
        used_bytes=report.used_bytes or None,
        gpu_permille=report.gpu_utilization_permille,
    )


def _begun(
    before: Mapping[bundle.ModelKey, dt.datetime], report: group.GroupReport
) -> dict[bundle.ModelKey, dt.datetime]:
    coming = (bundle.reported_key(each) for each in report.models if each.state in _COMING)
    return {key: before.get(key, report.received_at) for key in coming}


def _loads(track: Track, report: group.GroupReport) -> dict[bundle.ModelKey, dt.timedelta]:
    """Those known of the models that are there still, and those of models that have just come."""
    ready = {bundle.reported_key(each) for each in report.models if each.state is group.ModelState.READY}
    came = {key: report.received_at - since for key, since in track.begun.items() if key in ready}
    present = {bundle.reported_key(each) for each in report.models}
    return {key: took for key, took in track.loads.items() if key in present} | came


def _joined(steps: tuple[Step, ...], new: Step, least: dt.timedelta) -> tuple[Step, ...]:
    """The steps with a new one, which takes the last along where that is short and says the same things."""
    last = steps[-1] if steps else None
    # What is known changes at most a few times in a window; alternating reports are kept from piling up by the cut.
    if last is None or last.ended_at - last.began_at >= least or (last.counts is None) != (new.counts is None):
        return (*steps, new)[-2 * STEPS :]
    return (*steps[:-1], dataclasses.replace(new, began_at=min(last.began_at, new.began_at), counts=_both(last, new)))


def _both(last: Step, new: Step) -> Mapping[bundle.ModelKey, Counts] | None:
    if last.counts is None or new.counts is None:
        return new.counts
    keys = last.counts.keys() | new.counts.keys()
    return {key: last.counts.get(key, Counts()) + new.counts.get(key, Counts()) for key in keys}


def _counts(before: group.GroupReport, report: group.GroupReport) -> Iterator[tuple[bundle.ModelKey, Counts]]:
    known = {bundle.reported_key(each): each for each in before.models}
    anew = before.incarnation == report.incarnation and before.server_restarts != report.server_restarts
    for each in report.models:
        key = bundle.reported_key(each)
        # A sidecar that was started beside a busy worker first shows its models with all that they ever did.
        if (old := known.get(key)) is not None:
            yield key, _increment(None if anew or _began_anew(old, each) else old, each)


def _began_anew(old: group.ModelReport, new: group.ModelReport) -> bool:
    pairs = (
        (old.request_count, new.request_count),
        (old.failure_count, new.failure_count),
        (old.inference_count, new.inference_count),
        (old.queue_ns, new.queue_ns),
        (old.compute_ns, new.compute_ns),
    )
    return any(now < then for then, now in pairs)


def _increment(old: group.ModelReport | None, new: group.ModelReport) -> Counts:
    if old is None:
        return Counts(
            requests=new.request_count,
            failures=new.failure_count,
            queue_ns=new.queue_ns,
            compute_ns=new.compute_ns,
            latency=_buckets((), new.latency),
        )
    return Counts(
        requests=new.request_count - old.request_count,
        failures=new.failure_count - old.failure_count,
        queue_ns=new.queue_ns - old.queue_ns,
        compute_ns=new.compute_ns - old.compute_ns,
        latency=_buckets(old.latency, new.latency),
    )


def _buckets(old: tuple[group.LatencyBucket, ...], new: tuple[group.LatencyBucket, ...]) -> Buckets | None:
    """Increments of each bucket by itself, from two cumulative histograms."""
    if not new:
        return None
    before = {each.upper_us: each.count for each in old}
    ordered = sorted(new, key=lambda each: each.upper_us or math.inf)
    grown = [max(0, each.count - before.get(each.upper_us, 0)) for each in ordered]
    single = [max(0, above - below) for below, above in itertools.pairwise((0, *grown))]
    return {each.upper_us: count for each, count in zip(ordered, single, strict=True)}


def _added(one: Buckets | None, other: Buckets | None) -> Buckets | None:
    if one is None or other is None:
        return one if other is None else other
    return {key: one.get(key, 0) + other.get(key, 0) for key in one.keys() | other.keys()}
