"""A lease's life over the real API: a real database and socket, simulated workers, a clock moved by hand."""

from __future__ import annotations

from protos.tms.v1 import lease_pb2
from tests.support import server as servers

MINUTE_S = 60.0


async def test_a_lease_becomes_active_with_an_endpoint_and_expires_when_it_is_idle(server: servers.Running) -> None:
    made = await server.create()
    assert made.state == lease_pb2.LEASE_STATE_PENDING

    active = await server.until_state(made.id, lease_pb2.LEASE_STATE_ACTIVE)
    assert active.endpoint.host
    assert active.expires.remaining.seconds == 10 * MINUTE_S

    server.advance(minutes=11)
    ended = await server.until_state(made.id, lease_pb2.LEASE_STATE_EXPIRED)
    assert ended.end.reason == "Idle"
    await server.idle()
    # A worker that is quick is never seen loading.
    history = [each for each in await server.events(made.id) if each != "Loading"]
    assert history == ["Created", "Placed", "Active", "Releasing", "Expired"]
