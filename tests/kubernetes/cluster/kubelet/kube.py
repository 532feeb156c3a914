"""Speaks to the API server: requests with the kubeconfig's certificate, and collections followed by watches.

A lost server is waited for without end, in short steps; only an answer that says no is an error.
"""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import ssl
import typing

import aiohttp
import orjson
import structlog
import yaml

from tests.kubernetes.cluster.kubelet import times

Json = dict[str, typing.Any]
STRATEGIC = "application/strategic-merge-patch+json"

# What happens to a request when the server is away.
AWAY = (aiohttp.ClientError, TimeoutError, OSError)

_REQUEST_LIMIT_S = 15.0
_WATCH_S = 240
_RETRY_S = 0.3
_GONE = 410

log = structlog.get_logger(__name__)


class ApiError(Exception):
    """The API server said no. `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message

    @property
    def passing(self) -> bool:
        """Whether the same request may well be answered later."""
        return self.status == 429 or self.status >= 500


class Client:
    """One session with the API server. Close it."""

    def __init__(self, server: str, context: ssl.SSLContext) -> None:
        self.server = server
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=64),
            timeout=aiohttp.ClientTimeout(total=_REQUEST_LIMIT_S),
            json_serialize=lambda value: orjson.dumps(value).decode(),
        )

    @classmethod
    def load(cls, kubeconfig: pathlib.Path) -> Client:
        """Reads server and certificates from the current context; they must be named as files."""
        content = yaml.safe_load(kubeconfig.read_text())
        context = _named(content["contexts"], content["current-context"])["context"]
        cluster = _named(content["clusters"], context["cluster"])["cluster"]
        user = _named(content["users"], context["user"])["user"]
        tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        tls.load_cert_chain(user["client-certificate"], user["client-key"])
        return cls(cluster["server"], tls)

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str, **parameters: str) -> Json:
        return await self.request("GET", path, parameters=parameters)

    async def post(self, path: str, body: Json) -> Json:
        return await self.request("POST", path, body)

    async def patch(self, path: str, body: Json) -> Json:
        """A strategic merge patch, as kubelets send it."""
        return await self.request("PATCH", path, body, content_type=STRATEGIC)

    async def delete(self, path: str, body: Json | None = None) -> Json:
        return await self.request("DELETE", path, body)

    async def request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        content_type: str = "application/json",
        parameters: collections.abc.Mapping[str, str] | None = None,
    ) -> Json:
        """Raises `ApiError` for an answer that is no success, and one of `AWAY` where there is no answer."""
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": content_type}
        async with self._session.request(
            method, self.server + path, data=data, headers=headers, params=parameters
        ) as response:
            content = await response.read()
        answer = _parse(content)
        if response.status >= 300:
            raise ApiError(response.status, str(answer.get("message", "")))
        return answer

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, parameters: collections.abc.Mapping[str, str]
    ) -> collections.abc.AsyncIterator[collections.abc.AsyncIterator[Json]]:
        """Objects of an answer that comes in lines."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_REQUEST_LIMIT_S, sock_read=_WATCH_S + 30)
        async with self._session.get(self.server + path, params=parameters, timeout=timeout) as response:
            if response.status >= 300:
                raise ApiError(response.status, str(_parse(await response.read()).get("message", "")))
            yield _lines(response.content)


class Mirror:
    """Follows a collection: `on_object` gets each object whenever it may have changed, `on_gone` each that is no more.

    `followed` tells whether the first list was answered.
    """

    def __init__(
        self,
        client: Client,
        path: str,
        on_object: collections.abc.Callable[[Json], None],
        on_gone: collections.abc.Callable[[Json], None],
        field_selector: str = "",
    ) -> None:
        self._client = client
        self._path = path
        self._selector = {"fieldSelector": field_selector} if field_selector else {}
        self._on_object = on_object
        self._on_gone = on_gone
        self._known: dict[str, Json] = {}

    async def run(self) -> None:
        """Follows for ever: the server may be away for any time, and forget what it said."""
        version: str | None = None
        while True:
            try:
                version = await self._list() if version is None else await self._watch(version)
            except (ApiError, *AWAY) as error:
                if isinstance(error, ApiError) and error.status == _GONE:
                    version = None
                log.info("kubelet.watch_interrupted", path=self._path, error=repr(error))
                await times.pause(_RETRY_S)

    async def _list(self) -> str:
        answer = await self._client.get(self._path, **self._selector)
        objects = {item["metadata"]["uid"]: item for item in answer["items"]}
        for uid in self._known.keys() - objects.keys():
            self._on_gone(self._known.pop(uid))
        for item in objects.values():
            self._see(item)
        return str(answer["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> str | None:
        """Follows until the server ends the watch, and gives the version to go on from; None: list again."""
        parameters = {
            **self._selector,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(_WATCH_S),
        }
        async with self._client.stream(self._path, parameters) as changes:
            async for change in changes:
                if change["type"] == "ERROR":
                    log.info("kubelet.watch_expired", path=self._path, error=change["object"].get("message"))
                    return None
                version = change["object"]["metadata"]["resourceVersion"]
                self._apply(change["type"], change["object"])
        return version

    def _apply(self, kind: str, item: Json) -> None:
        if kind == "DELETED":
            self._known.pop(item["metadata"]["uid"], None)
            self._on_gone(item)
        elif kind != "BOOKMARK":
            self._see(item)

    def _see(self, item: Json) -> None:
        self._known[item["metadata"]["uid"]] = {"metadata": item["metadata"], "spec": item.get("spec", {})}
        self._on_object(item)


def _named(entries: list[Json], name: str) -> Json:
    return next(entry for entry in entries if entry["name"] == name)


def _parse(content: bytes) -> Json:
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {"message": content[:200].decode(errors="replace")}
    return answer if isinstance(answer, dict) else {}


async def _lines(content: aiohttp.StreamReader) -> collections.abc.AsyncIterator[Json]:
    """Objects may be longer than any buffer of the stream, so lines are put together here."""
    rest = bytearray()
    async for piece in content.iter_any():
        rest += piece
        if b"\n" not in piece:
            continue
        *lines, last = bytes(rest).split(b"\n")
        rest = bytearray(last)
        for line in lines:
            if line:
                yield orjson.loads(line)
