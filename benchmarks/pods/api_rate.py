"""How fast this machine's API server takes writes when nobody else wants anything: what any control plane stands on."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

from tests.kubernetes.cluster.kubelet import kube

AT_ONCE = (8, 16, 32)
_WRITES = 400
_MERGE = "application/merge-patch+json"


async def measure(client: kube.Client, namespace: str) -> float:
    """Writes per second, creates and patches of ConfigMaps half and half; the best of several numbers at once."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    rates = [await _rate(client, path, at_once) for at_once in AT_ONCE]
    await client.delete(f"{path}?labelSelector=bench=rate")
    return max(rates)


async def _rate(client: kube.Client, path: str, at_once: int) -> float:
    names = [f"rate-{at_once}-{number}" for number in range(_WRITES // 2)]

    async def create(name: str) -> None:
        await client.post(path, {"metadata": {"name": name, "labels": {"bench": "rate"}}, "data": {"key": "x" * 1000}})

    async def patch(name: str) -> None:
        await client.request("PATCH", f"{path}/{name}", {"metadata": {"labels": {"to": "b"}}}, content_type=_MERGE)

    begun = time.perf_counter()
    for write in (create, patch):
        await _all(names, at_once, write)
    return _WRITES / (time.perf_counter() - begun)


async def _all(names: list[str], at_once: int, write: Callable[[str], Awaitable[None]]) -> None:
    left = iter(names)

    async def work() -> None:
        for name in left:
            await write(name)

    await asyncio.gather(*(work() for _ in itertools.repeat(None, at_once)))
