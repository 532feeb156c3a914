"""When a model was last used: pure reasoning over successive readings of the server's counters.

Decides what is proven. Proven: every request that the server counted between two readings of one load moves
`last_inference_ms` forward, also a failed one, also where the server gives no time. Not proven: requests that were
answered after the last reading before a reload or a crash. So a reload, a crash or counters that went back count as use
at the moment they were noticed; they never look like idleness. Requests still running are not in the counters at all:
see `sidecar.inflight`. Must never read a clock.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the server counts of one model since its load, summed over versions. Times in ms since the epoch, 0 never.

    `request_count` counts all that ended, `failure_count` those among them that ended with an error.
    """

    inference_count: int = 0
    request_count: int = 0
    failure_count: int = 0
    last_inference_ms: int = 0
    queue_ns: int = 0
    compute_ns: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            inference_count=self.inference_count + other.inference_count,
            request_count=self.request_count + other.request_count,
            failure_count=self.failure_count + other.failure_count,
            last_inference_ms=max(self.last_inference_ms, other.last_inference_ms),
            queue_ns=self.queue_ns + other.queue_ns,
            compute_ns=self.compute_ns + other.compute_ns,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Activity:
    """The last reading, and the last use that is known or cannot be excluded (ms since the epoch, 0 never)."""

    counters: Counters = Counters()
    last_inference_ms: int = 0


def advance(before: Activity | None, counters: Counters, now_ms: int) -> Activity:
    """The activity after one more reading. `before` is None at the first reading of a load that nothing is known of."""
    told_ms = min(counters.last_inference_ms, now_ms)
    if before is None:
        return Activity(counters, told_ms or (now_ms if any(_uses(counters)) else 0))
    last_ms = max(before.last_inference_ms, told_ms)
    went_back = any(now < then for now, then in zip(_uses(counters), _uses(before.counters), strict=True))
    grew = _uses(counters) != _uses(before.counters)
    if went_back or (grew and told_ms <= before.last_inference_ms):
        last_ms = max(last_ms, now_ms)
    return Activity(counters, last_ms)


def interrupted(before: Activity | None, now_ms: int) -> Activity:
    """The load ended without a last reading, by a crash or a reload: counters start anew, use cannot be excluded."""
    return Activity(Counters(), max(now_ms, before.last_inference_ms if before else 0))


def _uses(counters: Counters) -> tuple[int, int]:
    return counters.request_count, counters.inference_count
