"""Heads of requests that differ from one before in the values of some fields only, read without a parser.

Clients send nearly the same head with each request of a connection. The parser has judged the first; of a later one only
what is new needs a look: a field of the same name, with a value of plain text. Whatever is not plainly such a head is left
to the parser. Must never take for a head what the parser would refuse or read otherwise.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

# These say where a message ends or what becomes of the connection: they may be there, but not change unseen.
_FIXED = frozenset((b"connection", b"expect", b"upgrade", b"transfer-encoding", b"te", b"trailer", b"host"))
_EXCLUDING = frozenset((b"transfer-encoding", b"expect", b"upgrade"))
_LENGTH = b"content-length"
# One is kept for each connection.
_MOST_BYTES = 2**12
_PLAIN = re.compile(rb"[ -~]*")
_DIGITS = re.compile(rb" ?([0-9]{1,15})")


# Not frozen: that would double the cost of making one, for every request.
@dataclasses.dataclass(slots=True)
class Head:
    """A head's fields, names in lower case, and the bytes of the body that follows it."""

    headers: dict[bytes, bytes]
    body_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """A head that the parser has taken.

    `free` has the prefix and the key of each line whose value may change; `parallel` requests run beside each other.
    """

    lines: Sequence[bytes]
    method: bytes
    target: bytes
    head: Head
    free: Mapping[int, tuple[bytes, bytes]]
    parallel: bool

    @classmethod
    def of(
        cls, raw: bytes, method: bytes, target: bytes, headers: dict[bytes, bytes], *, parallel: bool
    ) -> Template | None:
        """From the bytes of a head up to its empty line and what the parser made of it; None where it is not simple."""
        lines = raw.split(b"\r\n")
        length = headers.get(_LENGTH, b"")
        if not length.isdigit() or not _EXCLUDING.isdisjoint(headers) or len(lines) != len(headers) + 1:
            return None
        if lines[0] != b"%b %b HTTP/1.1" % (method, target) or len(raw) > _MOST_BYTES:
            return None
        free = {}
        for index, line in enumerate(lines[1:], start=1):
            name, colon, _ = line.partition(b":")
            key = name.lower()
            if not colon or key not in headers:
                return None
            if key not in _FIXED:
                free[index] = (name + colon, key)
        return cls(lines, method, target, Head(headers, int(length)), free, parallel)

    def read(self, raw: bytes) -> Head | None:
        """What the parser would make of this head; None where only it can tell."""
        lines = raw.split(b"\r\n")
        if lines == self.lines:
            return self.head
        if len(lines) != len(self.lines):
            return None
        headers, body_bytes = self.head.headers.copy(), self.head.body_bytes
        for index, (line, known) in enumerate(zip(lines, self.lines, strict=True)):
            if line == known:
                continue
            prefix, key = self.free.get(index, (b"", b""))
            if not prefix or not line.startswith(prefix):
                return None
            if key == _LENGTH:
                if not (digits := _DIGITS.fullmatch(line, len(prefix))):
                    return None
                body_bytes = int(digits[1])
            elif not _PLAIN.fullmatch(line, len(prefix)):
                return None
            headers[key] = line[len(prefix) :].lstrip(b" ")
        return Head(headers, body_bytes)
