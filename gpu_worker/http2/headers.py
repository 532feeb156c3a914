"""What a request's fields say, and whether they may say so (RFC 9113 section 8). Pure.

Must never let a field through that an HTTP/1.1 peer behind this one could take for something else.
"""

from __future__ import annotations

import re
from typing import Any

from gpu_worker.http2 import codes, static_table

Field = static_table.Field

_PSEUDO = {b":method", b":scheme", b":path", b":authority"}
_CONNECTION = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
_SINGLE = {b"content-length", b"host"}
# Of the static table, so that they may come without a literal that is looked at.
_STATIC_BAD = {b":status", b"transfer-encoding"}
_LOOKED_AT = _PSEUDO | _SINGLE | _STATIC_BAD
_NAME = re.compile(rb"[a-z0-9!#$%&'*+\-.^_`|~]+").fullmatch
# No NUL, CR or LF anywhere, no blank at either end (section 8.2.1).
_VALUE = re.compile(rb"(?:[^\0\r\n\t ](?:[^\0\r\n]*[^\0\r\n\t ])?)?").fullmatch
_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch
_COLON = 0x3A
_MOST_KNOWN = 1024
_MOST_KNOWN_BYTES = 64
# Names that were looked at, of all connections.
_known = set(_PSEUDO)


class Head:
    """A request's head. `view` is what the application made of it: heads are shared by requests that look the same."""

    __slots__ = ("_values", "authority", "content_length", "fields", "method", "path", "scheme", "view")

    def __init__(self, fields: tuple[Field, ...], values: dict[bytes, bytes]) -> None:
        """`values` are as the property's."""
        self.fields = fields
        self._values: dict[bytes, bytes] | None = values
        self.method = values.get(b":method", b"")
        self.scheme = values.get(b":scheme", b"")
        self.path = values.get(b":path", b"")
        self.authority = values.get(b":authority", b"")
        self.content_length = -1
        self.view: Any = None

    @property
    def values(self) -> dict[bytes, bytes]:
        """Those of `fields` by name, the last one where a name comes again."""
        if self._values is None:
            self._values = dict(self.fields)
        return self._values

    def extended(self, fields: tuple[Field, ...], view: Any) -> Head:
        """The head of `fields`, which begin with this one's; the rest are none that `is_plain` refuses."""
        made = Head.__new__(Head)
        made.fields = fields
        made._values = None  # noqa: SLF001 - its own
        made.method = self.method
        made.scheme = self.scheme
        made.path = self.path
        made.authority = self.authority
        made.content_length = self.content_length
        made.view = view
        return made


def is_plain(name: bytes) -> bool:
    """Whether a field that is allowed says nothing that `request` looks at."""
    return name not in _LOOKED_AT


def is_allowed(name: bytes, value: bytes) -> bool:
    """Whether a field may be in a request (sections 8.2.1 and 8.2.2); where it may stand is looked at later."""
    if name in _known and value.isalnum():
        return True
    if name not in _PSEUDO:
        if name in _CONNECTION or not _NAME(name) or (name == b"te" and value != b"trailers"):
            return False
        _learn(name)
    return bool(_VALUE(value))


def request(fields: tuple[Field, ...]) -> Head:
    """The head of fields that are all allowed. StreamFault PROTOCOL_ERROR for a malformed request (section 8.1.1)."""
    values = dict(fields)
    if len(values) != len(fields):
        _check_twice(fields)
    head = Head(fields, values)
    _check_pseudo(head, values)
    if b"content-length" in values:
        _take_length(head)
    if b"host" in values and head.authority and values[b"host"] != head.authority:
        raise malformed("a host that differs from :authority")
    return head


def check_trailers(fields: tuple[Field, ...]) -> None:
    """StreamFault where `fields`, all allowed, may not be trailers (section 8.1)."""
    if any(name.startswith(b":") for name, _value in fields):
        raise malformed("a pseudo-header in trailers")


def _learn(name: bytes) -> None:
    """Most names come again and again."""
    if len(_known) < _MOST_KNOWN and len(name) <= _MOST_KNOWN_BYTES and name != b"te":
        _known.add(name)


def malformed(words: str) -> codes.StreamFault:
    return codes.StreamFault(codes.Code.PROTOCOL_ERROR, words)


def _check_pseudo(head: Head, values: dict[bytes, bytes]) -> None:
    """Section 8.3.1, and 8.5 for CONNECT."""
    if head.method == b"CONNECT":
        if b":scheme" in values or b":path" in values or not head.authority:
            raise malformed("CONNECT takes an authority, no scheme and no path")
    elif not (head.method and head.scheme and head.path):
        raise malformed("a request needs :method, :scheme and :path")
    if not _STATIC_BAD.isdisjoint(values):
        raise malformed("a request with :status or transfer-encoding")
    count = len(_PSEUDO & values.keys())
    for name, _value in head.fields[:count]:
        if name[0] != _COLON:
            raise malformed("a pseudo-header after other fields")


def _check_twice(fields: tuple[Field, ...]) -> None:
    """What may not come twice, or not with two values."""
    seen: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in seen and (name[0] == _COLON or (name in _SINGLE and seen[name] != value)):
            raise malformed("a field twice that may come once")
        seen[name] = value


def _take_length(head: Head) -> None:
    value = head.values[b"content-length"]
    if not _LENGTH(value):
        raise malformed("a content-length that is no number")
    head.content_length = int(value)
