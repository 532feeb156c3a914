"""Asks containers how they are: HTTP, TCP, gRPC or a command inside, as their probes and hooks say."""

from __future__ import annotations

import asyncio
import collections.abc
import dataclasses

import aiohttp
import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.kubernetes.cluster.kubelet import kube, processes, times

_HEADERS = {"User-Agent": "kube-probe/1.36", "Accept": "*/*"}
_MESSAGE_BYTES = 500


@dataclasses.dataclass(frozen=True)
class Target:
    """Who is asked."""

    container: kube.Json
    process: processes.Process
    pod_ip: str

    def port(self, named: str | int) -> int:
        for port in self.container.get("ports") or []:
            if port.get("name") == named:
                return int(port["containerPort"])
        return int(named)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A probe's times and thresholds, with Kubernetes' own defaults."""

    handler: kube.Json
    initial_delay_s: float
    period_s: float
    timeout_s: float
    success_threshold: int
    failure_threshold: int

    @classmethod
    def parse(cls, spec: kube.Json) -> Probe:
        return cls(
            handler=spec,
            initial_delay_s=float(spec.get("initialDelaySeconds") or 0),
            period_s=float(spec.get("periodSeconds") or 10),
            timeout_s=float(spec.get("timeoutSeconds") or 1),
            success_threshold=int(spec.get("successThreshold") or 1),
            failure_threshold=int(spec.get("failureThreshold") or 3),
        )


class Judge:
    """Counts a probe's answers and says when they amount to a verdict."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._run = 0
        self._last: bool | None = None

    def count(self, *, passed: bool) -> bool | None:
        """The verdict after one more answer, None where there are too few alike in a row."""
        self._run = self._run + 1 if passed == self._last else 1
        self._last = passed
        needed = self._probe.success_threshold if passed else self._probe.failure_threshold
        return passed if self._run >= needed else None


async def follow(
    probe: Probe, target: Target, present: asyncio.Event
) -> collections.abc.AsyncIterator[tuple[bool | None, str]]:
    """Asks again and again, while the node is present; gives each verdict (None: not yet one) and what was said."""
    judge = Judge(probe)
    await times.pause(probe.initial_delay_s)
    while True:
        await present.wait()
        complaint = await check(probe.handler, target, probe.timeout_s)
        yield judge.count(passed=complaint is None), complaint or ""
        await times.pause(probe.period_s)


async def check(handler: kube.Json, target: Target, limit_s: float) -> str | None:
    """Asks once; gives what is wrong, or None."""
    try:
        async with asyncio.timeout(limit_s):
            return await _ask(handler, target, limit_s)
    except TimeoutError:
        return "context deadline exceeded: it did not answer in time"
    except (aiohttp.ClientError, OSError, ValueError, grpc.aio.AioRpcError) as error:
        return f"{type(error).__name__}: {error}"[:_MESSAGE_BYTES]


async def _ask(handler: kube.Json, target: Target, limit_s: float) -> str | None:
    if "httpGet" in handler:
        return await _get(handler["httpGet"], target)
    if "tcpSocket" in handler:
        return await _connect(handler["tcpSocket"], target)
    if "grpc" in handler:
        return await _call(handler["grpc"], target)
    if "sleep" in handler:
        await times.pause(float(handler["sleep"]["seconds"]))
        return None
    status, output = await target.process.run_beside(handler["exec"]["command"], limit_s)
    return None if status == 0 else output or f"command exited with {status}"


async def _get(action: kube.Json, target: Target) -> str | None:
    host = action.get("host") or target.pod_ip
    scheme = action.get("scheme", "HTTP").lower()
    url = f"{scheme}://{host}:{target.port(action['port'])}/{action.get('path', '').removeprefix('/')}"
    headers = _HEADERS | {one["name"]: one["value"] for one in action.get("httpHeaders") or []}
    connector = aiohttp.TCPConnector(ssl=False, force_close=True)  # kubelets look at no certificate
    no_limit = aiohttp.ClientTimeout(total=None)  # the caller's is
    session = aiohttp.ClientSession(connector=connector, timeout=no_limit)
    async with session, session.get(url, headers=headers) as response:
        if response.status < 400:
            return None
        body = (await response.content.read(_MESSAGE_BYTES)).decode(errors="replace")
        return f"HTTP probe failed with statuscode: {response.status}" + (f" {body}" if body else "")


async def _connect(action: kube.Json, target: Target) -> str | None:
    _, writer = await asyncio.open_connection(action.get("host") or target.pod_ip, target.port(action["port"]))
    writer.close()
    return None


async def _call(action: kube.Json, target: Target) -> str | None:
    async with grpc.aio.insecure_channel(f"{target.pod_ip}:{target.port(action['port'])}") as channel:
        request = health_pb2.HealthCheckRequest(service=action.get("service") or "")
        answer = await health_pb2_grpc.HealthStub(channel).Check(request)  # type: ignore[attr-defined]  # theirs
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return f"service unhealthy (responded with {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)!r})"
