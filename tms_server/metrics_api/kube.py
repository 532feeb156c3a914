"""The metrics API's own access to the Kubernetes API server: plain JSON in and out, errors of this program's tree.

The only module here that knows the client library.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from kubernetes import aio
from kubernetes.aio.client import rest

from tms_server.model import errors

Json = dict[str, Any]
BOUND_S = 10.0
WATCH_S = 300
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
FIELD_MANAGER = "tms"


class Kube:
    """A connection to the API server, which it closes. Every call is bounded; Unavailable when there is no answer."""

    def __init__(self, client: aio.client.ApiClient) -> None:
        self._client = client

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]  # theirs

    async def get(self, path: str) -> Json:
        """NotFound, PermissionDenied or Unavailable."""
        return await self._call("GET", path)

    async def create(self, path: str, body: Json) -> Json:
        """AlreadyExists, PermissionDenied or Unavailable."""
        return await self._call("POST", path, body)

    async def merge(self, path: str, body: Json) -> Json:
        """A merge patch; Conflict when `body` names another resourceVersion than the present one."""
        return await self._call("PATCH", path, body, {"Content-Type": MERGE_PATCH})

    async def apply(self, path: str, body: Json) -> Json:
        """Server-side apply under our field manager; what others hold of these fields is taken over."""
        query = f"?fieldManager={FIELD_MANAGER}&force=true"
        return await self._call("PATCH", path + query, body, {"Content-Type": APPLY_PATCH})

    async def watch(self, path: str, name: str, revision: str) -> AsyncIterator[Json]:
        """Changes of one object of a collection after a resourceVersion: its events, until the API server ends them."""
        query = f"watch=true&resourceVersion={revision}&fieldSelector=metadata.name%3D{name}&timeoutSeconds={WATCH_S}"
        try:
            answer = await self._send("GET", f"{path}?{query}", None, {}, WATCH_S + BOUND_S)
            if answer.status >= 300:
                _answer(answer.status, await answer.read(), path)  # type: ignore[no-untyped-call]  # theirs
            try:
                async for line in answer.response.content:
                    yield json.loads(line)
            finally:
                _cut(answer.response)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise errors.Unavailable(f"the watch of {path}/{name} broke: {error!r}") from error

    async def _call(
        self, method: str, path: str, body: Json | None = None, headers: Mapping[str, str] | None = None
    ) -> Json:
        try:
            answer = await self._send(method, path, body, headers or {}, BOUND_S)
            text = await answer.read()  # type: ignore[no-untyped-call]  # theirs
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise errors.Unavailable(f"the Kubernetes API server does not answer: {error!r}") from error
        return _answer(answer.status, text, path)

    async def _send(
        self, method: str, path: str, body: Json | None, headers: Mapping[str, str], bound_s: float
    ) -> rest.RESTResponse:
        prepared = await self._client.param_serialize(
            method,
            path,
            query_params=[],
            header_params={"Accept": "application/json", "Content-Type": "application/json", **headers},
            body=body,
            auth_settings=["BearerToken"],
        )
        return await self._client.call_api(*prepared, _request_timeout=aiohttp.ClientTimeout(total=bound_s))


def guard(found: Json) -> Json:
    """Metadata that lets an apply change this very object, and none that took its name since it was looked at."""
    uid = found["metadata"].get("uid")
    return {"uid": uid} if uid else {}


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """What the API server said against a call."""

    code: int
    reason: str
    message: str


def _cut(response: aiohttp.ClientResponse) -> None:
    """Ends a stream at once: politely, it would wait for the other side to agree."""
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()
    response.close()


def _answer(status: int, text: bytes, path: str) -> Json:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = {}
    body: Json = found if isinstance(found, dict) else {}
    if status < 300:
        return body
    raise _error(Refusal(status, str(body.get("reason", "")), str(body.get("message", "") or status)), path)


def _error(refusal: Refusal, path: str) -> errors.TmsError:
    text = f"{path.partition('?')[0]}: {refusal.message}"
    if refusal.code == 404:
        return errors.NotFound(text)
    if refusal.code in (401, 403):
        return errors.PermissionDenied(text)
    if refusal.code == 409:
        return errors.AlreadyExists(text) if refusal.reason == "AlreadyExists" else errors.Conflict(text)
    if refusal.code == 429 or refusal.code >= 500:
        return errors.Unavailable(text)
    return errors.FailedPrecondition(text)
