"""What a request's fields say, and whether they may say so (RFC 9113 section 8). Pure.

Must never let a field through that an HTTP/1.1 peer behind this one could take for something else.
"""

from __future__ import annotations

import re
from typing import Any

from gpu_worker.http2 import codes
from gpu_worker.http2.hpack import Field

_PSEUDO = {b":method", b":scheme", b":path", b":authority"}
_CONNECTION = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
_NAME = re.compile(rb"[a-z0-9!#$%&'*+\-.^_`|~]+").fullmatch
# No NUL, CR or LF anywhere, no blank at either end (section 8.2.1).
_VALUE = re.compile(rb"(?:[^\0\r\n\t ](?:[^\0\r\n]*[^\0\r\n\t ])?)?").fullmatch
_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch
_KNOWN = 1024
_KNOWN_BYTES = 128


class Head:
    """A request's head. `view` is what the application made of it: heads are shared by requests that look the same."""

    __slots__ = ("authority", "content_length", "fields", "method", "path", "scheme", "view")

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self.fields = fields
        self.method = self.scheme = self.path = self.authority = b""
        self.content_length = -1
        self.view: Any = None


class Reader:
    """Reads heads; remembers fields that it found good, since most come again."""

    def __init__(self) -> None:
        self._known: set[Field] = set()

    def request(self, fields: tuple[Field, ...]) -> Head:
        """StreamFault PROTOCOL_ERROR for a malformed request (section 8.1.1)."""
        if not self._known.issuperset(fields):
            self._check(fields)
        head = Head(fields)
        pseudo = self._pseudo(head, fields)
        _check_pseudo(head, pseudo)
        for name, value in fields[len(pseudo) :]:
            if name[0] == 0x3A:
                raise _malformed("a pseudo-header after other fields")
            if name in _SPECIAL:
                _SPECIAL[name](head, value)
        return head

    def trailers(self, fields: tuple[Field, ...]) -> None:
        """StreamFault where `fields` may not be trailers (section 8.1)."""
        if not self._known.issuperset(fields):
            self._check(fields)
        for name, _value in fields:
            if name.startswith(b":"):
                raise _malformed("a pseudo-header in trailers")

    def _check(self, fields: tuple[Field, ...]) -> None:
        for field in fields:
            if field in self._known:
                continue
            _check_field(field)
            if len(field[0]) + len(field[1]) <= _KNOWN_BYTES:
                self._remember(field)

    def _remember(self, field: Field) -> None:
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known.add(field)

    def _pseudo(self, head: Head, fields: tuple[Field, ...]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for name, value in fields:
            if name[0] != 0x3A:
                break
            if name in found:
                raise _malformed("a pseudo-header twice")
            found[name] = value
        head.method, head.scheme = found.get(b":method", b""), found.get(b":scheme", b"")
        head.path, head.authority = found.get(b":path", b""), found.get(b":authority", b"")
        return found


def _check_pseudo(head: Head, found: dict[bytes, bytes]) -> None:
    """Section 8.3.1, and 8.5 for CONNECT."""
    if head.method == b"CONNECT":
        if b":scheme" in found or b":path" in found or not head.authority:
            raise _malformed("CONNECT takes an authority, no scheme and no path")
    elif not (head.method and head.scheme and head.path):
        raise _malformed("a request needs :method, :scheme and :path")


def _check_field(field: Field) -> None:
    name, value = field
    if name in _PSEUDO:
        pass
    elif name in _CONNECTION or name.startswith(b":") or not _NAME(name):
        raise _malformed("a field name that is not allowed")
    if not _VALUE(value):
        raise _malformed("a field value with characters that are not allowed")
    if name == b"te" and value != b"trailers":
        raise _malformed("te may only be trailers")


def _take_length(head: Head, value: bytes) -> None:
    if not _LENGTH(value) or head.content_length not in (-1, int(value)):
        raise _malformed("a content-length that is no number, or two that differ")
    head.content_length = int(value)


def _take_host(head: Head, value: bytes) -> None:
    if head.authority and value != head.authority:
        raise _malformed("a host that differs from :authority")


def _malformed(words: str) -> codes.StreamFault:
    return codes.StreamFault(codes.Code.PROTOCOL_ERROR, words)


_SPECIAL = {b"content-length": _take_length, b"host": _take_host}
