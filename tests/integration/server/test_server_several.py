"""Two whole servers on one database: either answers, one decides, and the other takes over."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import pathlib
from collections.abc import AsyncIterator
from typing import Any

from protos.tms.v1 import lease_pb2
from tests.support import server as servers
from tests.support import sidecars

ACTIVE = lease_pb2.LEASE_STATE_ACTIVE
RELEASED = lease_pb2.LEASE_STATE_RELEASED


@contextlib.asynccontextmanager
async def _sidecars(launcher: servers.Running, hub: servers.Running) -> AsyncIterator[None]:
    """Sidecars of what one server launches, that all speak to the other."""
    running = asyncio.create_task(sidecars.Sidecars(launcher.backend, hub.dial, hub.clock).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_a_follower_is_told_and_hears_reaches_the_one_that_leads(
    tmp_path: pathlib.Path, postgres_url: str
) -> None:
    machine = servers.Machine(tmp_path)
    async with (
        servers.running(machine, with_sidecars=False, database_url=postgres_url) as leader,
        servers.running(machine, with_sidecars=False, database_url=postgres_url) as follower,
        _sidecars(leader, follower),
    ):
        made = await follower.create()
        assert (await leader.until_state(made.id, ACTIVE)).id == made.id
        assert (await follower.until_state(made.id, ACTIVE)).id == made.id
        assert (await leader.worker(made.id)).id == (await follower.worker(made.id)).id
        await leader.release(made.id)
        await follower.until_state(made.id, RELEASED)


async def test_a_server_takes_over_from_one_that_stops(tmp_path: pathlib.Path, postgres_url: str) -> None:
    machine = servers.Machine(tmp_path)
    async with contextlib.AsyncExitStack() as stack:
        chosen: dict[str, Any] = {"database_url": postgres_url, "timing": {"lead_ttl_s": 3}}
        first = await stack.enter_async_context(servers.running(machine, with_sidecars=False, **chosen))
        async with servers.running(machine, with_sidecars=False, **chosen) as second:
            async with _sidecars(first, second):
                held = await first.active()
                await stack.aclose()
                machine.clock.advance(dt.timedelta(seconds=2))
                assert (await second.get(held.id)).state == ACTIVE
            async with _sidecars(second, second):
                made = await second.active()
                for each in (made, held):
                    await second.release(each.id)
                    await second.until_state(each.id, RELEASED)
