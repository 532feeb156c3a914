"""Writes events about pods as kubelets do: one object for equal ones, with a count. Events may get lost, never wait."""

from __future__ import annotations

import asyncio
import hashlib
import typing

import structlog

from tests.kubernetes.cluster.kubelet import kube, times

_QUEUE = 2_000
_REMEMBERED = 4_000

log = structlog.get_logger(__name__)


class Recorder:
    """Events of all nodes, written in order by `run`."""

    def __init__(self, client: kube.Client) -> None:
        self._client = client
        self._queue: asyncio.Queue[kube.Json] = asyncio.Queue(_QUEUE)
        self._counts: dict[str, int] = {}

    def normal(self, pod: kube.Json, reason: str, message: str, field_path: str = "") -> None:
        self._put(pod, "Normal", (reason, message, field_path))

    def warn(self, pod: kube.Json, reason: str, message: str, field_path: str = "") -> None:
        self._put(pod, "Warning", (reason, message, field_path))

    async def run(self) -> None:
        while True:
            event = await self._queue.get()
            try:
                await self._write(event)
            except (kube.ApiError, *kube.AWAY) as error:
                log.info("kubelet.event_lost", reason=event["reason"], error=repr(error))

    def _put(self, pod: kube.Json, kind: str, said: tuple[str, str, str]) -> None:
        if not self._queue.full():
            self._queue.put_nowait(_event(pod, kind, said))

    async def _write(self, event: kube.Json) -> None:
        name = event["metadata"]["name"]
        path = f"/api/v1/namespaces/{event['metadata']['namespace']}/events"
        count = self._counts.pop(name, 0) + 1
        if count > 1:
            await self._client.patch(f"{path}/{name}", {"count": count, "lastTimestamp": event["lastTimestamp"]})
        else:
            await self._client.post(path, event)
        self._counts[name] = count
        while len(self._counts) > _REMEMBERED:
            self._counts.pop(next(iter(self._counts)))


def _event(pod: kube.Json, kind: str, said: tuple[str, str, str]) -> kube.Json:
    reason, message, field_path = said
    metadata, node = pod["metadata"], pod["spec"].get("nodeName", "")
    identity = "\0".join((metadata["uid"], kind, *said))
    now = times.stamp()
    involved: dict[str, typing.Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        **{key: metadata[key] for key in ("name", "namespace", "uid")},
    }
    return {
        "metadata": {
            "name": f"{metadata['name']}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": involved | ({"fieldPath": field_path} if field_path else {}),
        "type": kind,
        "reason": reason,
        "message": message[:1000],
        "source": {"component": "kubelet", "host": node},
        "reportingComponent": "kubelet",
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
