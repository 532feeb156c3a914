"""Models behind plain HTTP and HTTPS, and the client that other stores over HTTP use.

Decides which answers hold the bytes that were asked for, by RFC 9110: ranges (section 14), validators (8.8) and
preconditions (13.1). Redirects are followed a few times, never from https to http, and credentials never to another
origin. Must never try again itself, and must never put an address or a credential into a message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import urllib.parse
from collections.abc import Iterator, Mapping

import urllib3
import urllib3.exceptions
import urllib3.util

from sidecar import errors, spans, values
from sidecar.sources import port

_CONNECTIONS = 16
_REDIRECTS = 5
_MOVED = {301, 302, 303, 307, 308}


class Client:
    """Reads spans of what URLs name. Safe in threads."""

    def __init__(self) -> None:
        self._pools = urllib3.PoolManager(
            num_pools=8,
            maxsize=_CONNECTIONS,
            timeout=urllib3.Timeout(connect=port.CONNECT_S, read=port.READ_S),
            retries=False,
        )

    @contextlib.contextmanager
    def open(
        self, url: str, headers: Mapping[str, str], file: values.SourceFile, span: spans.Span
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """An answer that holds the span of the file. Raises ModelFailed, also while its body is read, or Unranged."""
        asked = {**headers, "Accept-Encoding": "identity"}
        if span.size_bytes:
            asked["Range"] = f"bytes={span.start}-{span.end - 1}"
        try:
            answer = self._ask(url, asked, file)
            try:
                _check(answer, file, span)
                yield answer
            finally:
                # What was not read to its end is not worth reading.
                answer.close()
        except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            raise port.unavailable(file, f"the store did not answer ({type(error).__name__})") from error

    def close(self) -> None:
        self._pools.clear()

    def _ask(self, url: str, headers: dict[str, str], file: values.SourceFile) -> urllib3.BaseHTTPResponse:
        for _ in range(_REDIRECTS):
            answer = self._pools.request(
                "GET", url, headers=headers, redirect=False, preload_content=False, decode_content=False
            )
            if answer.status not in _MOVED:
                return answer
            answer.close()
            url, headers = _follow(url, answer.headers.get("Location", ""), headers, file)
        raise errors.ModelFailed("FetchFailed", f"the store sends from place to place for {file.path!r}")


class Site:
    """What is at or below the URI."""

    def __init__(self, uri: str, access: values.HttpAccess, layout: values.Layout = values.Layout.TREE) -> None:
        parts = urllib.parse.urlsplit(uri)
        if not parts.hostname or parts.query or parts.fragment or parts.username:
            raise errors.ModelFailed("InvalidUri", "an http URI must be http(s)://<host>/<path>, without a query")
        self.place = f"{parts.scheme}://{parts.netloc}"
        self._base = f"{self.place}{_quoted(parts.path)}"
        self._below = layout is values.Layout.TREE
        self._headers = {"Authorization": access.authorization} if access.authorization else {}
        self._client = Client()

    @contextlib.contextmanager
    def open(self, file: values.SourceFile, span: spans.Span) -> Iterator[port.Body]:
        url = f"{self._base.rstrip('/')}/{_quoted(file.path)}" if self._below else self._base
        headers = {**self._headers, **_condition(file.version)}
        with self._client.open(url, headers, file, span) as answer:
            _check_version(answer, file)
            yield Reading(answer)

    def close(self) -> None:
        self._client.close()


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """The body of an answer."""

    _answer: urllib3.BaseHTTPResponse

    def readinto(self, buffer: memoryview, /) -> int:
        piece = self._answer.read(len(buffer), decode_content=False)
        buffer[: len(piece)] = piece
        return len(piece)


def _quoted(path: str) -> str:
    return urllib.parse.quote(path, safe="/~!$&'()*+,;=:@")


def _follow(url: str, location: str, headers: Mapping[str, str], file: values.SourceFile) -> tuple[str, dict[str, str]]:
    there = urllib.parse.urljoin(url, location)
    here, new = urllib.parse.urlsplit(url), urllib.parse.urlsplit(there)
    if new.scheme not in {"http", "https"} or (here.scheme == "https" and new.scheme == "http") or not location:
        raise errors.ModelFailed("FetchFailed", f"the store sends to a place that is not followed for {file.path!r}")
    same = (here.scheme, here.netloc) == (new.scheme, new.netloc)
    return there, {name: value for name, value in headers.items() if same or name != "Authorization"}


def _condition(version: str) -> dict[str, str]:
    """A weak validator fits no precondition for ranges (RFC 9110 section 13.1.1): it is only compared."""
    return {"If-Match": version} if version.startswith('"') else {}


def _check(answer: urllib3.BaseHTTPResponse, file: values.SourceFile, span: spans.Span) -> None:
    if answer.status not in {200, 206}:
        raise port.refused(file, answer.status, port.retry_after_s(answer.headers.get("Retry-After", "")))
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise errors.ModelFailed("FetchFailed", f"the store sends {file.path!r} in a coding that was not asked for")
    length = answer.headers.get("Content-Length", "")
    content_range = answer.headers.get("Content-Range", "") if answer.status == 206 else ""
    port.check_range(file, span, content_range, int(length) if length.isdigit() else None)


def _check_version(answer: urllib3.BaseHTTPResponse, file: values.SourceFile) -> None:
    name = "ETag" if file.version.startswith(('"', "W/")) else "Last-Modified"
    if file.version and answer.headers.get(name, "") != file.version:
        raise port.changed(file)
