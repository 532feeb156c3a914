"""A lease from end to end: it becomes ACTIVE, serves, is renewed by use, drains when released, expires when idle."""

from __future__ import annotations

import concurrent.futures
import datetime as dt

import grpc
import pytest

from protos.tms.v1 import lease_pb2
from tests.support import system as systems

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # real programs start, load and stop

X = [1.0, 2.0, 3.0, 4.0]
LONG = lease_pb2.LeaseTimes()
LONG.hold.FromTimedelta(dt.timedelta(minutes=5))


def times(hold_s: float, window_s: float) -> lease_pb2.LeaseTimes:
    clocks = lease_pb2.LeaseTimes()
    clocks.hold.FromTimedelta(dt.timedelta(seconds=hold_s))
    clocks.activity_window.FromTimedelta(dt.timedelta(seconds=window_s))
    return clocks


def test_a_lease_serves_at_its_own_endpoint_and_at_its_workers(system: systems.System) -> None:
    lease = system.active(systems.model("one"), systems.model("two"), times=LONG)

    for endpoint in (lease.endpoint, *lease.worker_endpoints):
        assert systems.infer(endpoint, "one", [1, 4], X) == [2.0, 4.0, 6.0, 8.0]
        assert systems.infer(endpoint, "two", [1, 4], X) == [2.0, 4.0, 6.0, 8.0]


def test_a_released_lease_lets_the_request_in_flight_finish(system: systems.System) -> None:
    lease = system.active(systems.model("slow"), times=LONG)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(systems.infer, lease.endpoint, "slow", [1, 4], X)
        system.until(lease.id, lambda now: _in_flight(system, now))
        system.leases.Release(lease_pb2.ReleaseLeaseRequest(lease=lease.id))
        assert answer.result() == X
    ended = system.until_state(lease.id, lease_pb2.LEASE_STATE_RELEASED)
    assert ended.end.reason == "Released"
    assert system.leases.Release(lease_pb2.ReleaseLeaseRequest(lease=lease.id)).state == ended.state
    with pytest.raises(OSError, match="refused"):
        systems.infer(lease.endpoint, "slow", [1, 4], X)


def test_use_renews_and_idleness_expires(system: systems.System) -> None:
    lease = system.active(systems.model("one"), times=times(1, 3))
    past_hold = lease.active_at.ToDatetime() + dt.timedelta(seconds=2)

    def used(now: lease_pb2.Lease) -> bool:
        if now.state == lease_pb2.LEASE_STATE_ACTIVE:
            systems.infer(lease.endpoint, "one", [1, 4], X)
        return now.last_activity_at.ToDatetime() > past_hold

    kept = system.until(lease.id, used)
    ended = system.until_state(lease.id, lease_pb2.LEASE_STATE_EXPIRED)

    assert kept.state == lease_pb2.LEASE_STATE_ACTIVE
    assert ended.end.reason == "Idle"
    assert ended.end.at.ToDatetime() - ended.last_activity_at.ToDatetime() >= dt.timedelta(seconds=3)
    events = [event.type for event in system.leases.ListEvents(lease_pb2.ListEventsRequest(lease=lease.id)).events]
    assert "Renewed" in events
    assert events[-1] == "Expired"


def test_a_model_that_cannot_load_fails_the_lease_with_the_servers_words(system: systems.System) -> None:
    lease = system.create(systems.model("one"), systems.model("broken"))

    failed = system.until_state(lease.id, lease_pb2.LEASE_STATE_FAILED)

    assert failed.end.reason == "ModelFailed"
    assert "broken" in failed.end.message


def test_a_missing_model_is_refused_and_nothing_is_stored(system: systems.System) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        system.create(systems.model("absent"))

    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert "absent" in (refused.value.details() or "")
    assert list(system.leases.List(lease_pb2.ListLeasesRequest()).leases) == []


def _in_flight(system: systems.System, lease: lease_pb2.Lease) -> bool:
    """The worker says that it works, which it reports while the request is still open."""
    return lease.last_activity_at.ToDatetime() > lease.active_at.ToDatetime()
