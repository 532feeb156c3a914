"""What is taken of a sidecar's report, and how far its clock is believed."""

from __future__ import annotations

import datetime as dt

import pytest

from protos.tms.v1 import agent_pb2
from tms_server.api import convert_fleet, fields
from tms_server.model import ids
from tms_server.services import agents

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SESSION = agents.Session(ids.WorkerId(ids.GroupId("g1")))


@pytest.mark.parametrize(("said_s", "believed_s"), [(-3, -3), (0, 0), (3600, 0)])
def test_a_sidecars_clock_is_believed_but_for_the_future(said_s: int, believed_s: int) -> None:
    message = agent_pb2.Report(at=fields.timestamp(NOW + dt.timedelta(seconds=said_s)))
    heard = convert_fleet.report(message, SESSION, NOW)
    assert (heard.received_at, heard.true_at) == (NOW, NOW + dt.timedelta(seconds=believed_s))


def test_a_report_without_a_time_is_as_old_as_its_coming() -> None:
    heard = convert_fleet.report(agent_pb2.Report(), SESSION, NOW)
    assert (heard.sampled_at, heard.true_at) == (None, NOW)
