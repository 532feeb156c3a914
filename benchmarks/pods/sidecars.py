"""Sidecars without workers, all in one process: each speaks to the server as a real one does and says READY at once."""

from __future__ import annotations

import asyncio
import base64
import pathlib
import time
from typing import Any

from protos.tms.v1 import agent_pb2, common_pb2
from sidecar import control, wire
from tests.kubernetes.cluster.kubelet import kube

Json = dict[str, Any]
_GROUP = "tms.dev/group"
_INTERVAL_S = 2.0


class Sidecars:
    """Follows the pods of one namespace; a sidecar for each that runs on an instant node."""

    def __init__(self, client: kube.Client, namespace: str, target: str, folder: pathlib.Path) -> None:
        self._client = client
        self._namespace = namespace
        self._target = target
        self._folder = folder
        self._stop = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        try:
            await kube.Mirror(self._client, path, self._see, self._forget).run()
        finally:
            self._stop.set()
            for each in self._tasks.values():
                each.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _see(self, pod: Json) -> None:
        name, group = pod["metadata"]["name"], (pod["metadata"].get("labels") or {}).get(_GROUP)
        address = (pod.get("status") or {}).get("podIP")
        if group and address and name not in self._tasks and not pod["metadata"].get("deletionTimestamp"):
            self._tasks[name] = asyncio.create_task(self._follow(group, name, address))

    def _forget(self, pod: Json) -> None:
        task = self._tasks.pop(pod["metadata"]["name"], None)
        if task is not None:
            task.cancel()

    async def _follow(self, group: str, pod: str, address: str) -> None:
        token = self._folder / group
        secret = await self._client.get(f"/api/v1/namespaces/{self._namespace}/secrets/{group}")
        token.write_bytes(base64.b64decode(secret["data"]["token"]))
        link = control.Link(target=self._target, worker_id=group, token_file=token, replica_id=pod)
        await control.follow(link, _Agent(pod, address), self._stop)


class _Agent:
    """Holds whatever is desired, at once."""

    def __init__(self, incarnation: str, address: str) -> None:
        self.changed = asyncio.Event()
        self._incarnation = incarnation
        self._endpoint = common_pb2.Endpoint(host=address, http_port=8000, grpc_port=8001, metrics_port=8002)
        self._desired = agent_pb2.Desired()

    def hello(self) -> agent_pb2.Hello:
        return agent_pb2.Hello(incarnation=self._incarnation, version="benchmark")

    def accept(self, desired: agent_pb2.Desired) -> None:
        self._desired = desired
        self.changed.set()

    async def report(self) -> agent_pb2.Report:
        desired = self._desired
        return agent_pb2.Report(
            epoch=desired.epoch,
            generation=desired.generation,
            server_ready=True,
            models=[_ready(each) for each in desired.models],
            at=wire.timestamp(time.time_ns() // 10**6),
            activity_known=True,
            worker_endpoint=self._endpoint,
            in_flight_known=True,
        )

    def reported(self, sent: agent_pb2.Report) -> None:
        """Nothing is remembered of what was sent."""

    def report_interval_s(self) -> float:
        return self._desired.report_interval.ToTimedelta().total_seconds() or _INTERVAL_S


def _ready(wanted: agent_pb2.DesiredModel) -> agent_pb2.ReportedModel:
    desired = wire.desired(agent_pb2.Desired(models=[wanted])).models[0]
    return agent_pb2.ReportedModel(
        name=desired.key.name,
        source_digest=desired.key.source_digest,
        config_digest=desired.key.config_digest,
        state=common_pb2.MODEL_STATE_READY,
        fetched_bytes=desired.size_bytes,
        total_bytes=desired.size_bytes,
    )
