"""Which pods proxies may still lead to, against the plainest possible account of it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import hypothesis
from hypothesis import strategies

from tms_server.backends.kubernetes import endpoints, names
from tms_server.model import ids
from tms_server.testing import clock as fake_clock

SETTLE = dt.timedelta(seconds=3)
PODS = ("a", "b", "c")
LEASES = tuple(ids.LeaseId(f"l-{number}") for number in range(3))

SLICES = strategies.fixed_dictionaries(
    {
        "name": strategies.sampled_from(["s-0", "s-1", "s-2", "s-3"]),
        "lease": strategies.sampled_from(LEASES),
        "pods": strategies.sets(strategies.sampled_from(PODS)),
        "present": strategies.booleans(),
    }
)
SPANS = strategies.integers(0, 5)


def written(told: dict[str, Any]) -> dict[str, Any]:
    found = [{"targetRef": {"name": each}, "conditions": {"ready": True}} for each in sorted(told["pods"])]
    return {"metadata": {"name": told["name"], "labels": {names.LEASE: told["lease"]}}, "endpoints": found}


@hypothesis.given(strategies.lists(SLICES | SPANS, max_size=40))
def test_a_pod_is_reached_while_a_slice_names_it_and_for_the_time_to_settle_after(
    steps: list[dict[str, Any] | int],
) -> None:
    clock = fake_clock.FakeClock()
    wakes: list[dt.datetime] = []
    seen = endpoints.Endpoints(clock, SETTLE, wakes.append)
    slices: dict[str, set[tuple[str, ids.LeaseId]]] = {}
    last: dict[tuple[str, ids.LeaseId], dt.datetime] = {}
    for step in steps:
        led = set().union(*slices.values())
        if isinstance(step, int):
            clock.advance(dt.timedelta(seconds=step))
        else:
            seen.saw(written(step), present=step["present"])
            slices[step["name"]] = {(pod, step["lease"]) for pod in step["pods"] if step["present"]}
            last |= dict.fromkeys(led - set().union(*slices.values()), clock.now())
        now = clock.now()
        reached = set().union(*slices.values()) | {way for way, at in last.items() if now < at + SETTLE}
        for pod in PODS:
            assert seen.reaching(pod) == {lease_id for name, lease_id in reached if name == pod}
        assert {at + SETTLE for at in last.values()} <= set(wakes)
