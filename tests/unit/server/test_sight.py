"""What a worker may hold, by what its sidecar and the backend say of it."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from tms_server.model import group, ids
from tms_server.ports import backend
from tms_server.testing import backend as fake
from tms_server.world import live, sight

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
WORKER = ids.WorkerId(ids.GroupId("w-1"), ids.ReplicaId("w-1-a"))
SAID = group.GroupReport(
    group_id=WORKER.group_id,
    replica=WORKER.replica,
    incarnation="sidecar",
    epoch=1,
    generation=1,
    server_ready=False,
    activity_known=False,
    received_at=NOW,
)


def begun(replica: backend.Replica, *said: group.GroupReport) -> bool:
    known = live.Live()
    known.observe([backend.Observed(group_id=WORKER.group_id, phase=replica.phase, restarts=0, replicas=(replica,))])
    for each in said:
        known.hear(each)
    (found,) = sight.take(known, fake.FakeBackend(), dt.timedelta(seconds=10), NOW).of(WORKER.group_id)
    return found.begun


def replica(phase: backend.Phase, *, halted: bool) -> backend.Replica:
    return backend.Replica(id=WORKER.replica, phase=phase, halted=halted)


@pytest.mark.parametrize("phase", [backend.Phase.STARTING, backend.Phase.BACKING_OFF])
def test_a_worker_whose_server_does_not_run_holds_nothing_though_its_sidecar_speaks(phase: backend.Phase) -> None:
    assert not begun(replica(phase, halted=True), SAID)
    assert begun(replica(phase, halted=False), SAID)


def test_a_sidecar_that_hears_its_server_knows_better_than_the_backend() -> None:
    ready = dataclasses.replace(SAID, server_ready=True)
    assert begun(replica(backend.Phase.STARTING, halted=True), ready)


def test_one_that_runs_may_hold_something_before_it_speaks() -> None:
    assert begun(replica(backend.Phase.RUNNING, halted=False))
    assert not begun(replica(backend.Phase.STARTING, halted=False))
