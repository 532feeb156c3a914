"""The API server, as far as the backend needs it: plain trees in and out, errors of the control plane.

One thin layer over the connection of the official client; its models are never used. Nobody else's object is ever changed:
an object is created only where there is none, and changed only while it is the one that was looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import json
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import aiohttp
import kubernetes.aio.client
import kubernetes.aio.config

from tms_server import clock as clock_module
from tms_server.backends.kubernetes import failures, kinds, names
from tms_server.model import errors

Json = dict[str, Any]
JSON = "application/json"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
BUSY = 429

_REQUEST_BOUND_S = 30.0
_SILENCE_BOUND_S = 150.0
"""A watch that says nothing for so long is dead: bookmarks come every minute."""
_CLOSE_BOUND_S = 2.0
_PAGE = 500
_TRIES = 4
_LONGEST_LOG_LINE = 64 * 1024
"""A container may write for ever without ending a line: what is longer comes in pieces."""
_NEVER_STORED = "1"
"""No object has this revision, so an apply that names it creates or conflicts."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request."""

    method: str
    path: str
    query: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: Json | None = None
    content: str = JSON
    bound_s: float | None = _REQUEST_BOUND_S
    silence_s: float | None = _SILENCE_BOUND_S


class Api:
    """One namespace of one cluster. Every call: Unavailable, PermissionDenied or what `failures` tells."""

    def __init__(
        self,
        connection: kubernetes.aio.client.ApiClient,
        namespace: str,
        clock: clock_module.Clock,
        *,
        at_once: int = 32,
        writes_per_s: float = 0.0,
    ) -> None:
        self.namespace = namespace
        self.writes = 0
        """Requests that change something, as sent so far."""
        self._connection = connection
        self._clock = clock
        self._at_once = asyncio.Semaphore(at_once)
        self._pause = dt.timedelta(seconds=1 / writes_per_s if writes_per_s else 0)
        self._next_write = clock.now()
        self._sending: set[asyncio.Task[aiohttp.ClientResponse]] = set()

    async def get(self, kind: kinds.Kind, name: str) -> Json | None:
        """The object, None if there is none."""
        try:
            return await self._json(Call(method="GET", path=kind.path(self.namespace, name)))
        except errors.NotFound:
            return None

    async def list(self, kind: kinds.Kind, query: Mapping[str, str]) -> tuple[list[Json], str]:
        """All objects, and the revision that a watch begins after."""
        found: list[Json] = []
        more: dict[str, str] = {}
        while True:
            asked = {**query, "limit": str(_PAGE), **more}
            page = await self._json(Call(method="GET", path=kind.path(self.namespace), query=asked))
            # The API server leaves out of a list what is the same for all of it.
            found += [{"apiVersion": kind.api_version, "kind": kind.kind, **each} for each in page.get("items") or []]
            meta = page["metadata"]
            if not meta.get("continue"):
                return found, meta["resourceVersion"]
            more = {"continue": meta["continue"]}

    async def watch(
        self, kind: kinds.Kind, query: Mapping[str, str], revision: str, bound_s: int
    ) -> AsyncGenerator[Json, None]:
        """Events after a revision, bookmarks included; RevisionGone when they are no longer known.

        Ends when the API server ends it, `bound_s` later at most.
        """
        asked = {
            **query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": revision,
            "timeoutSeconds": str(bound_s),
        }
        call = Call(method="GET", path=kind.path(self.namespace), query=asked, bound_s=None)
        async for line in self._lines(call):
            if line:
                yield _event(line, f"watch {kind.plural}")

    async def create(self, manifest: Json) -> Json:
        """Applies a manifest where there is no object of its name; Conflict when there is one."""
        return await self._apply(manifest, resourceVersion=_NEVER_STORED)

    async def change(self, manifest: Json, live: Json, *, unseen: bool) -> Json:
        """Applies a manifest to the very object that was looked at; Conflict when it is gone.

        Without `unseen` it is a Conflict too when the object has changed since.
        """
        guard = {"uid": live["metadata"]["uid"]}
        if not unseen:
            guard["resourceVersion"] = live["metadata"]["resourceVersion"]
        try:
            return await self._apply(manifest, **guard)
        except failures.Refused as refused:
            if "metadata.uid" in str(refused):
                raise errors.Conflict(str(refused)) from refused
            raise

    async def merge(self, kind: kinds.Kind, name: str, patch: Json, manager: str = names.MANAGER) -> Json:
        """Merges a patch into an object; NotFound, or Conflict where the patch names another uid."""
        return await self._write(
            Call(
                method="PATCH",
                path=kind.path(self.namespace, name),
                query={"fieldManager": manager},
                body=patch,
                content=MERGE,
            )
        )

    async def delete(self, kind: kinds.Kind, name: str, uid: str) -> None:
        """Deletes that very object; one that is gone or was replaced is a success. What it owns follows."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        with contextlib.suppress(errors.NotFound, errors.Conflict):
            await self._write(Call(method="DELETE", path=kind.path(self.namespace, name), body=body))

    async def review(self, body: Json) -> Json:
        """Asks the authorizer about ourselves."""
        path = f"/apis/authorization.k8s.io/v1/{body['kind'].lower()}s"
        return await self._json(Call(method="POST", path=path, body=body))

    async def log_lines(self, pod: str, query: Mapping[str, str]) -> AsyncGenerator[str, None]:
        """Lines of a container, long ones in pieces; Refused while it has not started."""
        call = Call(
            method="GET", path=f"{kinds.PODS.path(self.namespace, pod)}/log", query=query, bound_s=None, silence_s=None
        )
        async for line in self._lines(call, _LONGEST_LOG_LINE):
            yield line.decode("utf-8", "replace")

    async def close(self) -> None:
        if self._sending:
            await asyncio.wait(self._sending, timeout=_CLOSE_BOUND_S)
        await self._connection.close()  # type: ignore[no-untyped-call]  # ships no types

    async def _apply(self, manifest: Json, **guard: str) -> Json:
        path = kinds.of(manifest["kind"]).path(self.namespace, manifest["metadata"]["name"])
        guarded = {**manifest, "metadata": {**manifest["metadata"], **guard}}
        query = {"fieldManager": names.MANAGER, "force": "true"}
        return await self._write(Call(method="PATCH", path=path, query=query, body=guarded, content=APPLY))

    async def _write(self, call: Call) -> Json:
        await self._wait_for_turn()
        self.writes += 1
        return await self._json(call)

    async def _wait_for_turn(self) -> None:
        if self._pause:
            turn = max(self._next_write, self._clock.now())
            self._next_write = turn + self._pause
            await self._clock.sleep_until(turn)

    async def _json(self, call: Call) -> Json:
        """Tries again only where the API server said that it did nothing because it is busy."""
        for _ in range(_TRIES):
            async with self._at_once, self._answer(call) as answer:
                if answer.status != BUSY:
                    body: Json = await answer.json(content_type=None)
                    return body
                pause = dt.timedelta(seconds=_retry_after_s(answer))
            await self._clock.sleep_until(self._clock.now() + pause)
        raise errors.Unavailable(f"{call.method} {call.path}: the API server is busy")

    @contextlib.asynccontextmanager
    async def _answer(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        asked = f"{call.method} {call.path}"
        try:
            response = await self._sent(call)
            try:
                if response.status >= 400 and response.status != BUSY:
                    raise failures.of_answer(response.status, await response.text(), asked)
                yield response
            finally:
                _let_go(response, call)
        except (
            aiohttp.ClientError,
            TimeoutError,
            OSError,
            ValueError,
            kubernetes.aio.config.ConfigException,
        ) as failure:
            raise errors.Unavailable(f"{asked}: the API server does not answer: {failure!r}") from failure

    async def _sent(self, call: Call) -> aiohttp.ClientResponse:
        """Sends to the end even where the caller gives up: a connection cut while it is asked is closed by nobody."""
        task = asyncio.create_task(self._send(call))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_forget)
            raise

    async def _send(self, call: Call) -> aiohttp.ClientResponse:
        headers = {"Accept": JSON, "Content-Type": call.content, "User-Agent": "tms-server"}
        await self._connection.update_params_for_auth(headers, None, ["BearerToken"], call.path, call.method, call.body)
        query = f"?{urllib.parse.urlencode(call.query)}" if call.query else ""
        response = await self._connection.rest_client.request(  # type: ignore[no-untyped-call]  # ships no types
            call.method,
            f"{self._connection.configuration.host}{call.path}{query}",
            headers=headers,
            body=call.body,
            _request_timeout=aiohttp.ClientTimeout(
                total=call.bound_s, sock_connect=_REQUEST_BOUND_S, sock_read=call.silence_s
            ),
        )
        answer: aiohttp.ClientResponse = response.response
        return answer

    async def _lines(self, call: Call, longest: int = 0) -> AsyncGenerator[bytes, None]:
        """Lines of a stream; of any length where no longest is given, else in pieces of about that many bytes."""
        async with self._answer(call) as answer:
            if answer.status == BUSY:
                raise errors.Unavailable(f"{call.method} {call.path}: the API server is busy")
            rest = b""
            async for chunk in answer.content.iter_any():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line
                if longest and len(rest) >= longest:
                    yield rest
                    rest = b""
            if rest:
                yield rest


def _event(line: bytes, asked: str) -> Json:
    """One event of a watch. A stream may be cut in the middle of one."""
    try:
        event: Json = json.loads(line)
    except ValueError as failure:
        raise errors.Unavailable(f"{asked}: the API server's stream broke off: {failure}") from failure
    if event["type"] == "ERROR":
        status = event["object"]
        raise failures.of_answer(int(status.get("code") or 500), json.dumps(status), asked)
    return event


def _retry_after_s(answer: aiohttp.ClientResponse) -> float:
    said = answer.headers.get("Retry-After") or "1"
    return min(10.0, float(said)) if said.isdecimal() else 1.0


def _let_go(response: aiohttp.ClientResponse, call: Call) -> None:
    """A stream's connection is of no further use, and would wait for the other side to agree to its end."""
    if call.bound_s is not None:
        response.release()
    else:
        _cut(response)


def _forget(task: asyncio.Task[aiohttp.ClientResponse]) -> None:
    """Nobody waits for the answer any more."""
    if not task.cancelled() and task.exception() is None:
        _cut(task.result())


def _cut(response: aiohttp.ClientResponse) -> None:
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()
    response.close()
