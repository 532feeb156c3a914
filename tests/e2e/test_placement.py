"""Where leases go, seen from outside."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from protos.tms.v1 import common_pb2, lease_pb2, pool_pb2
from tests.support import system as systems
from tms_server.model import sizes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # real programs start, load and stop

GIB = 2**30
IN_SMALL = lease_pb2.PoolPlacement(pool="small")


def small_pool(system: systems.System, max_workers: int) -> None:
    worker = common_pb2.WorkerSpec(command="tms-worker", resources=common_pb2.Resources(memory_bytes=GIB))
    spec = pool_pb2.PoolSpec(worker=worker, max_workers=max_workers)
    system.pools.Create(pool_pb2.CreatePoolRequest(name="small", spec=spec))


def test_two_leases_share_a_worker_and_an_incompatible_framework_gets_its_own(system: systems.System) -> None:
    first = system.active(systems.model("one"))
    second = system.active(systems.model("two"))
    other = system.create(systems.model("torch"))
    placed = system.until(other.id, lambda lease: bool(lease.worker_group))

    assert first.worker_group == second.worker_group
    assert placed.worker_group not in ("", first.worker_group)
    system.until_state(other.id, lease_pb2.LEASE_STATE_FAILED)  # this worker runs no PyTorch, and says so
    classes = {worker.framework_class for worker in system.workers()}
    assert "shared" in classes


def test_what_can_never_fit_fails_at_once_and_says_exactly_why(system: systems.System) -> None:
    small_pool(system, 1)
    lease = system.create(systems.model("one", declared_bytes=2 * GIB), pool=IN_SMALL)

    failed = system.until_state(lease.id, lease_pb2.LEASE_STATE_FAILED)

    assert system.workers() == []
    assert failed.end.reason == "CannotFit"
    assert "needs 2.0 GiB" in failed.end.message
    assert f"holds {sizes.text(system_capacity(system))}" in failed.end.message


def test_what_has_no_room_waits_and_is_placed_when_room_appears(system: systems.System) -> None:
    small_pool(system, 1)
    large = systems.model("one", declared_bytes=600 * 2**20)
    first = system.active(large, pool=IN_SMALL)
    waiting = system.create(systems.model("two", declared_bytes=600 * 2**20), pool=IN_SMALL)
    waits = system.until(waiting.id, lambda lease: reason(lease, "Placed") == "NoCapacity")
    explained = system.leases.Explain(lease_pb2.ExplainLeaseRequest(lease=waits.id))

    system.leases.Release(lease_pb2.ReleaseLeaseRequest(lease=first.id))
    placed = system.until_state(waiting.id, lease_pb2.LEASE_STATE_ACTIVE)

    assert [verdict.rule for verdict in explained.workers] == ["Memory"]
    assert explained.workers[0].missing_bytes > 0
    assert list(explained.workers[0].held_by) == [first.id]
    assert systems.infer(placed.endpoint, "two", [1, 4], [1, 1, 1, 1]) == [2, 2, 2, 2]


def test_a_dedicated_worker_is_not_shared_and_goes_with_its_lease(system: systems.System) -> None:
    pooled = system.active(systems.model("one"))
    spec = common_pb2.WorkerSpec(command="tms-worker")
    own = system.active(systems.model("one"), dedicated=lease_pb2.DedicatedPlacement(worker=spec))
    system.leases.Release(lease_pb2.ReleaseLeaseRequest(lease=own.id))
    system.until_state(own.id, lease_pb2.LEASE_STATE_RELEASED)

    assert own.worker_group != pooled.worker_group
    left = system.until_workers(lambda workers: len(workers) == 1)
    assert left[0].id == pooled.worker_group


@pytest.mark.parametrize("verb", ["unload", "load", "index"])
def test_clients_of_one_lease_cannot_touch_the_models_of_another(system: systems.System, verb: str) -> None:
    mine = system.active(systems.model("one"))
    other = system.active(systems.model("two"))
    path = "index" if verb == "index" else f"models/two/{verb}"
    asked = [f"http://{at.host}:{at.http_port}/v2/repository/{path}" for at in (mine.endpoint, *mine.worker_endpoints)]

    refusals = []
    for url in asked:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url, data=b"{}"), timeout=systems.PATIENCE_S)
        refusals.append((refused.value.code, b"restricted" in refused.value.read()))

    assert mine.worker_group == other.worker_group
    assert refusals == [(503, True)] * len(asked)
    assert systems.infer(other.endpoint, "two", [1, 4], [1, 2, 3, 4]) == [2, 4, 6, 8]


def test_a_name_moves_from_one_lease_to_another_without_changing_its_address(system: systems.System) -> None:
    first = system.active(systems.model("one"))
    second = system.active(systems.model("two"), sharing=lease_pb2.Sharing(not_with=[first.id]))
    before = system.names.Set(lease_pb2.SetLeaseNameRequest(name="current", lease_id=first.id))
    after = system.names.Set(lease_pb2.SetLeaseNameRequest(name="current", lease_id=second.id))

    assert first.worker_group != second.worker_group
    assert before.endpoint == after.endpoint
    assert system.leases.Get(lease_pb2.GetLeaseRequest(lease="current")).id == second.id


def reason(lease: lease_pb2.Lease, type_: str) -> str:
    return next((condition.reason for condition in lease.conditions if condition.type == type_), "")


def system_capacity(system: systems.System) -> int:
    """What models may book on a worker of the small pool, as a lease that fits is told."""
    fitting = system.active(systems.model("one"), pool=IN_SMALL)
    explained = system.leases.Explain(lease_pb2.ExplainLeaseRequest(lease=fitting.id))
    capacity: int = explained.workers[0].capacity_bytes
    system.leases.Release(lease_pb2.ReleaseLeaseRequest(lease=fitting.id))
    system.until_state(fitting.id, lease_pb2.LEASE_STATE_RELEASED)
    return capacity
