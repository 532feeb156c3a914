"""How many workers a lease should have: the arithmetic of a HorizontalPodAutoscaler, without one.

Decides from metric values, present sizes and what was recommended before; moves nothing. A metric that is missing never
shrinks a lease, and growth waits until a load that was begun before can show.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import fractions
import math
from collections.abc import Collection, Iterable

from tms_server.model import lease

TOLERANCE = fractions.Fraction(1, 10)
"""A metric that is off its target by no more than this share asks for no change."""
SCALE_UP_WINDOW = dt.timedelta(0)
SCALE_DOWN_WINDOW = dt.timedelta(minutes=5)
LONGEST_WINDOW = dt.timedelta(hours=1)
RUNS = 1024
"""Most changes of a recommendation that are remembered."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """A metric and its value now; None where it is missing."""

    metric: lease.ScalingMetric
    value_milli: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """`current` workers are wanted now, `ready` of them serve."""

    current: int
    ready: int


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """The same size was recommended again and again between two times, both included."""

    since: dt.datetime
    until: dt.datetime
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """The size was changed by so many."""

    at: dt.datetime
    by: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a decision needs of those before it. Begin with an empty one; losing it only delays."""

    runs: tuple[Run, ...] = ()
    changes: tuple[Change, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The size from now on, why, and what to remember. `size` is `current` where nothing is to be changed."""

    size: int
    reason: str
    message: str
    memory: Memory


def decide(
    rules: lease.Autoscaling,
    sizes: Sizes,
    readings: Collection[Reading],
    memory: Memory,
    now: dt.datetime,
    *,
    load: dt.timedelta = dt.timedelta(0),
) -> Decision:
    """The next size; `load` is the longest measured load of the lease's models."""
    bounded = min(max(sizes.current, rules.min_replicas), rules.max_replicas)
    if bounded != sizes.current:
        message = f"{sizes.current} is not from {rules.min_replicas} to {rules.max_replicas}"
        return _decided(bounded, ("OutOfBounds", message), sizes, memory, now)
    asked = proposal(sizes, readings)
    if asked is None:
        missing = ", ".join(sorted(each.metric.kind for each in readings if each.value_milli is None))
        return Decision(size=sizes.current, reason="MetricMissing", message=f"no value of {missing}", memory=memory)
    # An autoscaler that has just begun takes the size that it finds as recommended.
    known = memory.runs or (Run(now, now, sizes.current),)
    up_from, down_from = now - scale_up_window(rules.behavior, load), now - scale_down_window(rules.behavior)
    steady = _stabilized((sizes.current, asked), known, up_from, down_from)
    size = _stepped(rules, sizes.current, steady, memory.changes, now)
    why = _why(sizes, readings, asked=asked, steady=steady, size=size)
    remembered = dataclasses.replace(memory, runs=_recorded(known, asked, now))
    return _decided(min(max(size, rules.min_replicas), rules.max_replicas), why, sizes, remembered, now)


def proposal(sizes: Sizes, readings: Collection[Reading]) -> int | None:
    """The greatest size that any metric asks for, unbounded; None where missing metrics forbid to tell."""
    known = [asked for each in readings if (asked := _asked(sizes, each)) is not None]
    if not known or (len(known) < len(readings) and max(known) < sizes.current):
        return None
    return max(known)


def scale_up_window(behavior: lease.ScalingBehavior, load: dt.timedelta) -> dt.timedelta:
    """How long growth must have been asked for: as told, and at least one measured load."""
    told = SCALE_UP_WINDOW if behavior.scale_up_window is None else behavior.scale_up_window
    return min(LONGEST_WINDOW, max(told, load))


def scale_down_window(behavior: lease.ScalingBehavior) -> dt.timedelta:
    """How long less must have been asked for."""
    told = SCALE_DOWN_WINDOW if behavior.scale_down_window is None else behavior.scale_down_window
    return min(LONGEST_WINDOW, told)


def _asked(sizes: Sizes, reading: Reading) -> int | None:
    """What one metric asks for: a whole's value acts on the workers that serve, a sum is shared by those wanted."""
    value, target = reading.value_milli, reading.metric.target_milli
    if value is None:
        return None
    whole = reading.metric.kind.of_whole
    ratio = fractions.Fraction(value, target if whole else target * sizes.current)
    if abs(ratio - 1) <= TOLERANCE:
        return sizes.current
    return math.ceil(ratio * sizes.ready) if whole else math.ceil(fractions.Fraction(value, target))


def _stabilized(sizes: tuple[int, int], runs: Iterable[Run], up_from: dt.datetime, down_from: dt.datetime) -> int:
    """The least that was asked for of late where that is more, the most where that is less, else the present size."""
    current, asked = sizes
    seen = list(runs)
    least = min([asked, *(each.size for each in seen if each.until > up_from)])
    most = max([asked, *(each.size for each in seen if each.until > down_from)])
    return min(max(current, least), most)


def _stepped(rules: lease.Autoscaling, current: int, wanted: int, changes: Iterable[Change], now: dt.datetime) -> int:
    """As far as the greatest step of one period allows."""
    recent = [each.by for each in changes if each.at > now - rules.behavior.period]
    begun_with = current - sum(recent)
    up, down = rules.behavior.max_step_up, rules.behavior.max_step_down
    if wanted > current and up:
        return min(wanted, max(current, begun_with + up))
    if wanted < current and down:
        return max(wanted, min(current, begun_with - down))
    return wanted


def _recorded(runs: tuple[Run, ...], asked: int, now: dt.datetime) -> tuple[Run, ...]:
    last = runs[-1]
    longer = (*runs[:-1], Run(last.since, now, asked)) if last.size == asked else (*runs, Run(now, now, asked))
    return tuple(each for each in longer if each.until > now - LONGEST_WINDOW)[-RUNS:]


def _decided(size: int, why: tuple[str, str], sizes: Sizes, memory: Memory, now: dt.datetime) -> Decision:
    reason, message = why
    moved = (Change(now, size - sizes.current),) if size != sizes.current else ()
    changes = tuple(each for each in (*memory.changes, *moved) if each.at > now - LONGEST_WINDOW)[-RUNS:]
    remembered = dataclasses.replace(memory, changes=changes)
    return Decision(size=size, reason=reason, message=message, memory=remembered)


def _why(sizes: Sizes, readings: Iterable[Reading], *, asked: int, steady: int, size: int) -> tuple[str, str]:
    said = ", ".join(
        f"{each.metric.kind} {'unknown' if each.value_milli is None else each.value_milli}m of {each.metric.target_milli}m"
        for each in readings
    )
    if size != sizes.current:
        return ("ScaledUp" if size > sizes.current else "ScaledDown"), f"from {sizes.current} to {size}: {said}"
    if asked == size:
        return "Enough", said
    return ("Stabilizing" if steady == size else "StepLimited"), f"{asked} would do: {said}"
