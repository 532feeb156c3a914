"""How fast this machine's API server takes writes: what any control plane stands on.

Once of objects that nobody cares for, and once of Services, which controllers and proxies follow with writes of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

from benchmarks.pods import calls
from tests.kubernetes.cluster.kubelet import kube

AT_ONCE = (8, 16, 32)
_WRITES = 400
_SERVICES = 300
_LOOK_S = 0.1
_MERGE = "application/merge-patch+json"


async def measure(client: kube.Client, namespace: str) -> float:
    """Writes per second, creates and patches of ConfigMaps half and half; the best of several numbers at once."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    rates = [await _rate(client, path, at_once) for at_once in AT_ONCE]
    await client.delete(f"{path}?labelSelector=bench=rate")
    return max(rates)


async def measure_followed(client: kube.Client, namespace: str) -> float:
    """Everybody's writes per second, from the first of many Services to the last EndpointSlice that follows from them."""
    path = f"/api/v1/namespaces/{namespace}/services"
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=bench=rate"
    names = [f"rate-{number}" for number in range(_SERVICES)]

    async def create(name: str) -> None:
        spec = {"selector": {"bench": name}, "ports": [{"name": "http", "port": 8000}]}
        await client.post(path, {"metadata": {"name": name, "labels": {"bench": "rate"}}, "spec": spec})

    async def remove(name: str) -> None:
        await client.delete(f"{path}/{name}")

    before, begun = calls.all_writes(), time.perf_counter()
    await _all(names, max(AT_ONCE), create)
    while len((await client.get(slices, resourceVersion="0"))["items"]) < _SERVICES:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(_LOOK_S)  # noqa: TID251 - asking without a pause would be load of its own
    rate = (calls.all_writes() - before) / (time.perf_counter() - begun)
    await _all(names, max(AT_ONCE), remove)
    return rate


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
