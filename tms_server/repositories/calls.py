"""Calls to stores over HTTP. Block, for a bounded time; errors never carry a secret or an address."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping

import urllib3
from urllib3 import exceptions

from tms_server.model import errors
from tms_server.repositories import options

_REDIRECTS = 5
_MOVED = frozenset({301, 302, 303, 307, 308})


class Caller:
    """Asks one kind of store. Safe in threads."""

    def __init__(self, limits: options.Limits) -> None:
        timeout = urllib3.Timeout(connect=limits.connect_timeout_s, read=limits.read_timeout_s)
        self._pools = urllib3.PoolManager(maxsize=limits.lookups_at_once, timeout=timeout, retries=False)

    def ask(self, method: str, url: str, headers: Mapping[str, str], name: str, most_bytes: int) -> Answer:
        """The whole answer of the repository `name`. NotFound, PermissionDenied, Unavailable; InvalidField (``uri``)."""
        try:
            return self._follow(method, url, dict(headers), name, most_bytes)
        except (exceptions.HTTPError, OSError) as failure:
            raise errors.Unavailable(f"repository {name!r} does not answer: {type(failure).__name__}") from failure

    def _follow(self, method: str, url: str, headers: dict[str, str], name: str, most_bytes: int) -> Answer:
        for _ in range(_REDIRECTS):
            answer = self._pools.request(method, url, headers=headers, redirect=False, preload_content=False)
            try:
                if answer.status not in _MOVED:
                    return _read(answer, name, most_bytes)
                url, headers = _next(url, answer.headers.get("Location", ""), headers, name)
            finally:
                answer.close()
        raise errors.Unavailable(f"repository {name!r} sends from place to place")


class Answer:
    """Headers and body of a good answer."""

    def __init__(self, headers: Mapping[str, str], body: bytes) -> None:
        self.headers, self.body = headers, body


def _read(answer: urllib3.BaseHTTPResponse, name: str, most_bytes: int) -> Answer:
    if answer.status in {404, 410}:
        raise errors.NotFound(f"uri: repository {name!r} has nothing there ({answer.status})")
    if answer.status in {401, 403}:
        raise errors.PermissionDenied(f"uri: repository {name!r} gives the server no access ({answer.status})")
    if answer.status != 200:
        raise errors.Unavailable(f"repository {name!r} answers with an error ({answer.status})")
    body = answer.read(most_bytes + 1)
    if len(body) > most_bytes:
        raise errors.InvalidField("uri", f"repository {name!r} answers with more than {most_bytes} bytes")
    return Answer(answer.headers, body)


def _next(url: str, location: str, headers: Mapping[str, str], name: str) -> tuple[str, dict[str, str]]:
    """Where a redirect leads: never from https to http, and with credentials only within one origin."""
    there = urllib.parse.urljoin(url, location)
    here, new = urllib.parse.urlsplit(url), urllib.parse.urlsplit(there)
    if not location or new.scheme not in {"http", "https"} or (here.scheme, new.scheme) == ("https", "http"):
        raise errors.Unavailable(f"repository {name!r} sends to a place that is not followed")
    same = (here.scheme, here.netloc) == (new.scheme, new.netloc)
    return there, {key: value for key, value in headers.items() if same or key != "Authorization"}
