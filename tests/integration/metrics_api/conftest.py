"""A small Kubernetes API over HTTP for tests of what speaks to it: objects, reviews, one watch. Not a fake of ours."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kubernetes import aio

from tms_server.metrics_api import front_proxy, kube


class Cluster:
    """Its objects by path, its users by token, and what they may read."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.users: dict[str, dict[str, Any]] = {}
        self.allowed: set[tuple[str, str]] = set()
        """(user, metric or path)."""
        self.calls: list[str] = []
        self.refuse_with = 0
        self.refused_methods: set[str] = set()
        """Methods that nobody may use."""
        self._revision = 0
        self._changed = asyncio.Condition()

    async def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self._revision += 1
        stored = copy.deepcopy(body)
        stored.setdefault("metadata", {})["resourceVersion"] = str(self._revision)
        self.objects[path] = stored
        async with self._changed:
            self._changed.notify_all()
        return stored

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(f"{request.method} {request.path}")
        if self.refuse_with:
            return refusal(self.refuse_with, "Refused")
        if request.method in self.refused_methods:
            return refusal(403, "Forbidden")
        match request.method:
            case "GET" if request.query.get("watch"):
                return await self._watch(request)
            case "GET":
                found = self.objects.get(request.path)
                return web.json_response(found) if found else refusal(404, "NotFound")
            case "POST":
                return await self._post(request.path, await request.json())
        return await self._patch(request)

    async def _post(self, path: str, body: dict[str, Any]) -> web.Response:
        if path.endswith("/tokenreviews"):
            user = self.users.get(body["spec"]["token"])
            return web.json_response({"status": {"authenticated": user is not None, "user": user or {}}}, status=201)
        if path.endswith("/subjectaccessreviews"):
            return web.json_response({"status": {"allowed": self._may(body["spec"])}}, status=201)
        where = f"{path}/{body['metadata']['name']}"
        if where in self.objects:
            return refusal(409, "AlreadyExists")
        return web.json_response(await self.put(where, body), status=201)

    def _may(self, spec: dict[str, Any]) -> bool:
        resource = spec.get("resourceAttributes") or {}
        what = resource.get("resource") or spec["nonResourceAttributes"]["path"]
        return (spec["user"], what) in self.allowed

    async def _patch(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        before = self.objects.get(request.path)
        if before is None and request.content_type != kube.APPLY_PATCH:
            return refusal(404, "NotFound")
        asked = body["metadata"].get("resourceVersion")
        if before is not None and asked not in (None, before["metadata"]["resourceVersion"]):
            return refusal(409, "Conflict")
        if before is not None and body["metadata"].get("uid") not in (None, before["metadata"].get("uid")):
            return refusal(409, "Conflict")
        return web.json_response(await self.put(request.path, merged(before or {}, body)))

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        path = f"{request.path}/{request.query['fieldSelector'].removeprefix('metadata.name=')}"
        seen = request.query["resourceVersion"]
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            found = self.objects.get(path)
            if found is not None and found["metadata"]["resourceVersion"] != seen:
                seen = found["metadata"]["resourceVersion"]
                await response.write(json.dumps({"type": "MODIFIED", "object": found}).encode() + b"\n")
            async with self._changed:
                current = self.objects.get(path)
                if current is found:
                    await self._changed.wait()


def refusal(code: int, reason: str) -> web.Response:
    return web.json_response({"kind": "Status", "reason": reason, "message": reason, "code": code}, status=code)


def merged(before: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    result = dict(before)
    for key, value in patch.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


@pytest.fixture
async def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[kube.Kube]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", cluster.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    configuration = aio.client.Configuration()
    configuration.retries = None
    configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    opened = kube.Kube(aio.client.ApiClient(configuration))
    yield opened
    await opened.close()
    await runner.cleanup()


def config_map(ca_pem: str, *, names: tuple[str, ...] = ("front-proxy-client",)) -> dict[str, Any]:
    """What kube-system publishes."""
    return {
        "metadata": {"name": front_proxy.CONFIG_MAP.rpartition("/")[2]},
        "data": {
            "client-ca-file": ca_pem,
            "requestheader-client-ca-file": ca_pem,
            "requestheader-allowed-names": json.dumps(list(names)),
            "requestheader-username-headers": '["X-Remote-User"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
            "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
        },
    }
