"""When a server stores what its sidecars say, for the others."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from tests.support import stores
from tms_server.model import group, ids, resources
from tms_server.reconcilers import relay

NOW = stores.NOW
SECOND = dt.timedelta(seconds=1)
MODEL = group.ModelReport(
    name="m", source_digest=ids.Digest("d"), config_digest="c", state=group.ModelState.READY, inference_count=3
)
FIRST = dataclasses.replace(stores.new_report("g1"), models=(MODEL,))
OTHER = stores.new_report("g2", "replica")


def heard(report: group.GroupReport, **model: object) -> group.GroupReport:
    """The same worker a little later."""
    changed = dataclasses.replace(MODEL, **model)  # type: ignore[arg-type] # names and values from the test
    return dataclasses.replace(report, received_at=report.received_at + SECOND / 4, models=(changed,))


SENT = {each.worker: each for each in (FIRST, OTHER)}


def test_nothing_new_is_not_stored() -> None:
    assert relay.plan((FIRST, OTHER), SENT, None, NOW) == relay.Plan((), None)


def test_counters_rest_between_writes() -> None:
    moved = heard(FIRST, inference_count=9)
    assert relay.plan((moved, OTHER), SENT, NOW, NOW + SECOND / 4) == relay.Plan((), NOW + relay.REST)
    assert relay.plan((moved, OTHER), SENT, NOW, NOW + relay.REST) == relay.Plan((moved,), None)


@pytest.mark.parametrize(
    "news",
    [
        heard(FIRST, state=group.ModelState.FAILED),
        heard(FIRST, in_flight=1),
        dataclasses.replace(FIRST, incarnation="new"),
        dataclasses.replace(FIRST, generation=2),
        dataclasses.replace(FIRST, server_ready=False),
        dataclasses.replace(FIRST, endpoints=()),
        dataclasses.replace(FIRST, worker_endpoint=resources.Endpoint("127.0.0.1", 1, 2, 3)),
        dataclasses.replace(FIRST, worker_trouble="CrashLoop"),
    ],
)
def test_news_is_stored_at_once_and_takes_the_others_along(news: group.GroupReport) -> None:
    other = dataclasses.replace(OTHER, used_bytes=7)
    assert relay.plan((news, other), SENT, NOW, NOW) == relay.Plan((news, other), None)
    assert relay.plan((news,), {}, NOW, NOW) == relay.Plan((news,), None)
