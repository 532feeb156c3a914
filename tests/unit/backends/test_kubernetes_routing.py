"""Which of many new addresses are made first, and that nothing is lost by waiting."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.support import kubernetes_backend as support
from tms_server.backends.kubernetes import manifests, names, routing
from tms_server.model import ids
from tms_server.ports import backend

OPTIONS = support.options()
WORKER = ids.WorkerId(ids.GroupId("w-0"), ids.ReplicaId("pod"))


def _lease(number: int) -> ids.LeaseId:
    return ids.LeaseId(f"l-{number:016x}")


def _route(number: int, *, ready: bool) -> backend.Route:
    workers = frozenset({WORKER}) if ready else frozenset()
    return backend.Route(lease_id=_lease(number), owners=(f"lease/{_lease(number)}",), workers=workers)


def _carried_out(plan: routing.Plan, live: routing.Live) -> routing.Live:
    """The world after the plan."""
    services = {**live.services, **{each.manifest["metadata"]["name"]: each.manifest for each in plan.services}}
    pods: dict[str, Any] = {name: {"metadata": {"name": name, "labels": {}}} for name in live.pods}
    for name, pod in live.pods.items():
        changed = {**pod["metadata"]["labels"], **plan.first.get(name, {}), **plan.last.get(name, {})}
        pods[name]["metadata"]["labels"] = {key: value for key, value in changed.items() if value is not None}
    gone = {each["metadata"]["name"] for each in plan.surplus}
    return routing.Live(pods=pods, services={key: each for key, each in services.items() if key not in gone})


def _live(existing: set[int]) -> routing.Live:
    made = (manifests.of_owner(f"lease/{_lease(each)}", _lease(each), OPTIONS) for each in existing)
    labels = {names.serving_label(_lease(each)): names.SERVING for each in existing}
    return routing.Live(
        pods={"pod": {"metadata": {"name": "pod", "labels": labels}}},
        services={each["metadata"]["name"]: each for pair in made for each in pair},
    )


@given(st.lists(st.booleans(), max_size=12), st.sets(st.integers(min_value=0, max_value=11)), st.integers(1, 4))
def test_portions_take_nothing_away_and_end_where_one_plan_would(
    ready: list[bool], existing: set[int], most: int
) -> None:
    routes = tuple(_route(number, ready=each or number in existing) for number, each in enumerate(ready))
    live = begun = _live({each for each in existing if each < len(ready)})
    more = True
    while more:
        due, more = routing.portion(routes, live, most)
        plan, late = routing.without_late_twins(routing.plan(due, live, OPTIONS), most)
        more = more or late
        assert len(plan.services) <= most
        assert not plan.surplus
        assert not plan.last
        assert all(value is not None for labels in plan.first.values() for value in labels.values())
        live = _carried_out(plan, live)
        told = {key.removeprefix(names.SERVING_PREFIX) for key in live.pods["pod"]["metadata"]["labels"]}
        assert told <= set(live.services)
    whole = _carried_out(routing.plan(routes, begun, OPTIONS), begun)
    assert live.pods == whole.pods
    served = {name for route in routes if route.workers for name in (route.lease_id, f"{route.lease_id}-headless")}
    assert live.services.keys() & served == whole.services.keys() & served


def test_those_who_serve_already_get_their_services_first() -> None:
    routes = tuple(_route(number, ready=number == 7) for number in range(10))
    live = _live(set())
    due, more = routing.portion(routes, live, 1)
    assert not more
    plan = routing.plan(due, live, OPTIONS)
    assert {each.owner for each in plan.services} == {f"lease/{_lease(7)}"}
