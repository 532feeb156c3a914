"""Anything may die at any time: leases heal, and nothing is lost or doubled."""

from __future__ import annotations

import concurrent.futures
import threading

import grpc
import pytest

from protos.tms.v1 import lease_pb2
from tests.support import system as systems

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # real programs start, load and stop

X = [1.0, 2.0, 3.0, 4.0]
TWICE = [2.0, 4.0, 6.0, 8.0]
CREATES = 60


def test_a_killed_worker_comes_back_with_its_models(system: systems.System) -> None:
    lease = system.active(systems.model("one"))
    before = system.worker_pid(lease.worker_group)

    systems.kill(before)
    system.until(lease.id, lambda now: serving(now) is False)
    healed = system.until(lease.id, lambda now: serving(now) is True)

    assert healed.state == lease_pb2.LEASE_STATE_ACTIVE
    assert healed.endpoint == lease.endpoint
    assert system.worker_pid(lease.worker_group) != before
    assert systems.infer(lease.endpoint, "one", [1, 4], X) == TWICE


def test_a_killed_server_leaves_leases_serving_and_takes_its_workers_over_again(system: systems.System) -> None:
    lease = system.active(systems.model("one"))
    pid = system.worker_pid(lease.worker_group)

    system.kill_server()
    alone = systems.infer(lease.endpoint, "one", [1, 4], X)
    system.start()
    again = system.until(lease.id, lambda now: serving(now) is True)

    assert alone == TWICE
    assert again.state == lease_pb2.LEASE_STATE_ACTIVE
    assert system.worker_pid(lease.worker_group) == pid
    assert systems.infer(again.endpoint, "one", [1, 4], X) == TWICE
    assert len(system.workers()) == 1


def test_a_server_killed_amid_creates_loses_and_doubles_nothing(system: systems.System) -> None:
    acknowledged: dict[str, str] = {}
    enough = threading.Event()

    def create(number: int) -> None:
        request_id = f"request-{number}"
        try:
            acknowledged[request_id] = system.create(systems.model("one"), request_id=request_id).id
        except grpc.RpcError:
            return
        if len(acknowledged) >= CREATES // 3:
            enough.set()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for number in range(CREATES):
            pool.submit(create, number)
        assert enough.wait(systems.PATIENCE_S)
        system.kill_server()
    before_the_crash = dict(acknowledged)
    system.start()
    after = {
        request_id: system.create(systems.model("one"), request_id=request_id).id for request_id in before_the_crash
    }
    for number in range(CREATES):
        create(number)

    listed = system.leases.List(lease_pb2.ListLeasesRequest(page_size=1000)).leases
    assert len(before_the_crash) >= CREATES // 3
    assert after == before_the_crash
    assert sorted(lease.request_id for lease in listed) == sorted(f"request-{number}" for number in range(CREATES))
    assert {lease.id for lease in listed} == set(acknowledged.values())


def test_a_server_stopped_in_the_middle_of_a_load_finishes_it_after_its_return(system: systems.System) -> None:
    lease = system.create(systems.model("one"))
    system.until(lease.id, lambda now: now.state != lease_pb2.LEASE_STATE_PENDING)

    system.kill_server()
    system.start()
    active = system.until_state(lease.id, lease_pb2.LEASE_STATE_ACTIVE)

    assert systems.infer(active.endpoint, "one", [1, 4], X) == TWICE
    assert len(system.workers()) == 1


def serving(lease: lease_pb2.Lease) -> bool | None:
    return next((condition.status for condition in lease.conditions if condition.type == "Serving"), None)
