"""A worker that died and runs again is not believed by what was said of it before."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from tms_server.model import group, ids
from tms_server.ports import backend
from tms_server.world import live

WORKER = ids.WorkerId(ids.GroupId("w-1"))
SAID = group.GroupReport(
    group_id=WORKER.group_id,
    incarnation="sidecar",
    epoch=1,
    generation=1,
    server_ready=True,
    activity_known=True,
    received_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
)


def shown(phase: backend.Phase) -> backend.Observed:
    replica = backend.Replica(id=ids.ONLY_REPLICA, phase=phase)
    return backend.Observed(group_id=WORKER.group_id, phase=phase, restarts=0, message="killed", replicas=(replica,))


@pytest.fixture
def known() -> live.Live:
    """Spoke, died, and was started anew."""
    made = live.Live()
    made.observe([shown(backend.Phase.RUNNING)])
    made.hear(SAID)
    assert not made.down(WORKER)
    made.observe([shown(backend.Phase.BACKING_OFF)])
    assert made.down(WORKER) == "killed"
    made.observe([shown(backend.Phase.RUNNING)])
    return made


def test_what_was_said_before_its_death_does_not_make_it_well(known: live.Live) -> None:
    assert known.down(WORKER)
    known.hear(SAID)
    assert known.down(WORKER)


@pytest.mark.parametrize("change", [{"server_ready": False}, {"server_restarts": 1}, {"incarnation": "another"}])
def test_a_sidecar_that_noticed_is_believed_at_once(known: live.Live, change: dict[str, object]) -> None:
    known.hear(dataclasses.replace(SAID, **change))  # type: ignore[arg-type]  # the table names the fields
    assert not known.down(WORKER)


def test_a_sidecar_that_never_notices_is_believed_in_the_end(known: live.Live) -> None:
    for _ in range(3):
        assert known.down(WORKER)
        known.hear(SAID)
    assert not known.down(WORKER)


def test_one_that_never_spoke_is_not_doubted() -> None:
    made = live.Live()
    made.observe([shown(backend.Phase.BACKING_OFF)])
    made.observe([shown(backend.Phase.RUNNING)])
    assert not made.down(WORKER)
