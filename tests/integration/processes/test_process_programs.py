"""The programs that really stand in a pair, started as the defaults say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.error
import urllib.request

from tests.integration.processes import place
from tms_server.backends.processes import options
from tms_server.model import ids
from tms_server.ports import backend

GROUP = ids.GroupId("g-1")


async def test_the_sidecar_takes_its_command_line_and_waits_for_its_server(site: place.Site) -> None:
    site.set(sidecar_command=options.SIDECAR_COMMAND)
    runs = await site.open()
    await runs.launch(site.spec())
    events = []
    async with asyncio.timeout(place.BOUND_S):
        async for line in runs.logs(GROUP, 100, follow=True):
            if line.source == "sidecar":
                events.append(json.loads(line.text)["event"])
            if "stream.broken" in events:
                break
    assert events[0] == "sidecar.started"
    (observed,) = await runs.observe()
    assert observed.phase is backend.Phase.RUNNING
    assert observed.message == ""
    await runs.retire(GROUP)


async def test_the_worker_is_ready_at_its_address_and_again_after_a_crash(site: place.Site) -> None:
    site.set(commands={"tms-worker": options.WORKER_COMMAND})
    runs = await site.open()
    endpoint = runs.publish(f"group/{GROUP}", ())
    await runs.launch(site.spec(endpoint=endpoint))
    url = f"http://{endpoint.host}:{endpoint.http_port}/v2/health/ready"

    def ready() -> bool:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=5) as got:
            return bool(got.status == 200)
        return False

    await place.eventually(ready)
    site.kill()
    await place.running(runs, restarts=1)
    await place.eventually(ready)
    await runs.retire(GROUP)
    assert not ready()
    assert runs.publish(f"group/{GROUP}", ()) == endpoint
