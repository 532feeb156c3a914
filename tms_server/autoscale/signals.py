"""What growth follows: each metric of one lease, worked out from what its workers did within the window.

A metric that the workers cannot tell is None and never 0, so that nobody shrinks a lease for want of news. A lease counts
the models that it holds, shared or not. Times and ratios are of all its requests together; sums are over its workers.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from tms_server.autoscale import window as window_module
from tms_server.model import bundle, lease

DEFAULT_QUANTILE_PERMILLE = 950
_MILLI = 1000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The workers that serve a lease's models at `now`; `expected` are as many as should be heard.

    Where some are not heard, sums take them to be as busy as those that are.
    """

    keys: frozenset[bundle.ModelKey]
    tracks: tuple[window_module.Track, ...]
    now: dt.datetime
    window: dt.timedelta
    expected: int

    @property
    def start(self) -> dt.datetime:
        return self.now - self.window

    @property
    def idle(self) -> bool:
        """No request is known to be in the workers now."""
        reports = (each.last for each in self.tracks)
        models = (model for report in reports for model in report.models)
        return not any(model.in_flight for model in models if bundle.reported_key(model) in self.keys)

    def counts(self) -> Iterator[window_module.Counts]:
        """Increments within the window."""
        for track in self.tracks:
            for step in track.steps:
                share = step.share_after(self.start)
                if share and step.counts is not None:
                    yield from (each.scaled(share) for key, each in step.counts.items() if key in self.keys)


def serving(
    keys: Collection[bundle.ModelKey],
    tracks: Iterable[window_module.Track],
    now: dt.datetime,
    *,
    expected: int = 0,
    window: dt.timedelta = window_module.WINDOW,
) -> Serving:
    """The lease's workers among `tracks`: those heard within the window that serve any of its models."""
    wanted = frozenset(keys)
    found = tuple(each for each in tracks if each.last.received_at > now - window and each.ready & wanted)
    return Serving(keys=wanted, tracks=found, now=now, window=window, expected=max(expected, len(found)))


def value_milli(of: Serving, metric: lease.ScalingMetric) -> int | None:
    """The metric in thousandths of its unit; None where the workers cannot tell."""
    if not of.tracks:
        return None
    if metric.kind is lease.MetricKind.LATENCY:
        found = _latency(of, metric.quantile_permille or DEFAULT_QUANTILE_PERMILLE)
    else:
        found = _READERS[metric.kind](of)
    return None if found is None else round(found)


def quantile_us(buckets: Mapping[int, float], permille: int) -> float | None:
    """The time that so many thousandths of the requests stay below, taken as evenly spread within a bucket.

    In the bucket without a bound it is that bucket's beginning. None without requests, or without any bound.
    """
    rank = sum(buckets.values()) * permille / 1000
    below, lower = 0.0, 0
    for upper in sorted(buckets, key=lambda each: each or math.inf):
        count = buckets[upper]
        if count and below + count >= rank:
            return lower + (upper - lower) * max(0.0, rank - below) / count if upper else lower or None
        below, lower = below + count, upper
    return None


def _latency(of: Serving, permille: int) -> float | None:
    merged: dict[int, float] = {}
    known = [each.latency for each in of.counts() if each.latency is not None]
    for buckets in known:
        for upper, count in buckets.items():
            merged[upper] = merged.get(upper, 0) + count
    if known and not any(merged.values()):
        return _nothing(of)
    return quantile_us(merged, permille)


def _queue_time(of: Serving) -> float | None:
    found = _total(of)
    if found is None or not found.requests:
        return None if found is None else _nothing(of, found)
    # Thousandths of a millisecond are microseconds.
    return found.queue_ns / found.requests / 1000


def _queue_ratio(of: Serving) -> float | None:
    found = _total(of)
    if found is None or not found.compute_ns:
        return None if found is None else _nothing(of, found)
    return _MILLI * found.queue_ns / found.compute_ns


def _nothing(of: Serving, found: window_module.Counts | None = None) -> float | None:
    """Nobody waits where nobody asks; but where requests only fail or hang nothing can be told."""
    ended = found is not None and bool(found.requests or found.failures or found.queue_ns)
    return 0 if of.idle and not ended else None


def _in_flight(of: Serving) -> float | None:
    def mean(track: window_module.Track) -> float | None:
        known = [(each, each.in_flight) for each in track.steps if each.in_flight is not None]
        return _mean_in_time(of, [(step, sum(seen.get(key, 0) for key in of.keys)) for step, seen in known])

    found = _sum(of, mean)
    return None if found is None else _MILLI * found


def _request_rate(of: Serving) -> float | None:
    def rate(track: window_module.Track) -> float | None:
        known = [each for each in track.steps if each.counts is not None and each.share_after(of.start)]
        covered_s = sum(each.share_after(of.start) * (each.ended_at - each.began_at).total_seconds() for each in known)
        ended = sum(
            each.share_after(of.start) * (counts.requests + counts.failures)
            for each in known
            for key, counts in (each.counts or {}).items()
            if key in of.keys
        )
        return ended / covered_s if covered_s else None

    found = _sum(of, rate)
    return None if found is None else _MILLI * found


def _gpu_utilization(of: Serving) -> float | None:
    means = [
        _mean_in_time(of, [(s, s.gpu_permille) for s in each.steps if s.gpu_permille is not None]) for each in of.tracks
    ]
    known = [each for each in means if each is not None]
    return sum(known) / len(known) if known else None


def _model_memory(of: Serving) -> float | None:
    found = _sum(of, lambda track: track.last.used_bytes or None)
    return None if found is None else _MILLI * found


def _sum(of: Serving, each: Callable[[window_module.Track], float | None]) -> float | None:
    known = [found for track in of.tracks if (found := each(track)) is not None]
    return sum(known) * of.expected / len(known) if known else None


def _mean_in_time(of: Serving, values: list[tuple[window_module.Step, int]]) -> float | None:
    """Mean of what was seen at the ends of steps, each weighing as much as its part within the window."""
    weighed = [(_weight_s(of, step), value) for step, value in values if step.share_after(of.start)]
    total_s = sum(weight_s for weight_s, _ in weighed)
    return sum(weight_s * value for weight_s, value in weighed) / total_s if weighed else None


def _weight_s(of: Serving, step: window_module.Step) -> float:
    # The first word of a worker covers no time, and is all that is known then.
    return max(1e-6, step.share_after(of.start) * (step.ended_at - step.began_at).total_seconds())


def _total(of: Serving) -> window_module.Counts | None:
    found = list(of.counts())
    return sum(found, window_module.Counts()) if found else None


_READERS: Mapping[lease.MetricKind, Callable[[Serving], float | None]] = {
    lease.MetricKind.QUEUE_TIME: _queue_time,
    lease.MetricKind.QUEUE_RATIO: _queue_ratio,
    lease.MetricKind.IN_FLIGHT: _in_flight,
    lease.MetricKind.REQUEST_RATE: _request_rate,
    lease.MetricKind.GPU_UTILIZATION: _gpu_utilization,
    lease.MetricKind.MODEL_MEMORY: _model_memory,
}
