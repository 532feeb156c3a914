"""What the server asks of the API server, by the API server's own audit log: few writes for a lease, none for the steady state."""

from __future__ import annotations

import collections
import dataclasses
import json

import pytest

from protos.tms.v1 import lease_pb2
from tests.kubernetes import clients as client_programs
from tests.kubernetes import fleet as fleets

pytestmark = pytest.mark.slow  # real pods start, load and stop
WRITES = ("create", "update", "patch", "delete", "deletecollection")
MOST_WRITES = 8


@dataclasses.dataclass
class Audit:
    """Requests of one fleet's server from now on."""

    fleet: fleets.Fleet

    def __post_init__(self) -> None:
        self._log = self.fleet.place.cluster.layout.audit_log
        self._from = self._log.stat().st_size

    def requests(self) -> collections.Counter[tuple[str, str]]:
        """Verb and resource of every request that was answered."""
        account = f"system:serviceaccount:{self.fleet.namespace}:tms"
        with self._log.open() as stream:
            stream.seek(self._from)
            events = [json.loads(line) for line in stream if line.endswith("\n")]
        return collections.Counter(
            (str(each["verb"]), str(each.get("objectRef", {}).get("resource")))
            for each in events
            if each["user"]["username"] == account and each["stage"] == "ResponseComplete"
        )


def test_a_lease_with_its_worker_costs_few_writes(fleet: fleets.Fleet) -> None:
    audit = Audit(fleet)
    lease = fleet.lease()
    made = _writes(audit)
    assert 0 < sum(made.values()) <= MOST_WRITES, made

    audit = Audit(fleet)
    shared = fleet.lease("three", pool=lease_pb2.PoolPlacement(pool="default"), served="a")
    first = _writes(audit)
    assert sum(first.values()) <= MOST_WRITES, first

    audit = Audit(fleet)
    beside = fleet.lease("five", pool=lease_pb2.PoolPlacement(pool="default"), served="b")
    assert beside.worker_group == shared.worker_group
    further = _writes(audit)
    assert sum(further.values()) <= MOST_WRITES / 2, further

    audit = Audit(fleet)
    fleet.release(lease.id)
    fleet.until_state(lease.id, lease_pb2.LEASE_STATE_RELEASED)
    ended = _writes(audit)
    assert sum(ended.values()) <= MOST_WRITES, ended


def test_nothing_is_asked_while_leases_serve(fleet: fleets.Fleet) -> None:
    leases = [
        fleet.lease("two", name="steady", dedicated=lease_pb2.DedicatedPlacement(replicas=2)),
        fleet.lease("three", pool=lease_pb2.PoolPlacement(pool="default")),
    ]
    fleet.until_serving(leases[0].id, replicas=2)
    with client_programs.running(leases[0].endpoint.host) as clients:
        clients.onward(2.0)
        audit = Audit(fleet)
        clients.onward(2.0, requests=200)
        asked = audit.requests()
    assert {verb for verb, _ in asked} <= {"watch"}, asked


def _writes(audit: Audit) -> dict[tuple[str, str], int]:
    return {each: count for each, count in audit.requests().items() if each[0] in WRITES and "reviews" not in each[1]}
