"""A head that is read without the parser is read as the parser reads it, or left to it."""

from __future__ import annotations

from typing import Any

import httptools
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpu_worker.http import heads

NAMES = [b"Host", b"Content-Length", b"content-length", b"X-Id", b"traceparent", b"Connection", b"Transfer-Encoding"]
VALUES = st.sampled_from([b"", b"0", b"7", b"12", b"+1", b" 3", b"a", b"a, b", b"keep-alive", b"close", b"chunked"])
TEXTS = st.binary(max_size=6) | st.text("aZ09 :\t\r\n\0", max_size=6).map(str.encode)
FIELDS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES | TEXTS, st.sampled_from([b": ", b":"])), max_size=5)


class Parsed:
    """What the parser says of a head; `done` where it took it."""

    def __init__(self, raw: bytes) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.target, self.done, self.count = b"", False, 0
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(raw + b"\r\n\r\n")
        except httptools.HttpParserError:
            self.done = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count += 1
        key = name.lower()
        self.headers[key] = self.headers[key] + b", " + value if key in self.headers else value

    def on_headers_complete(self) -> None:
        self.done = True

    @property
    def length(self) -> int:
        return int(self.headers.get(b"content-length", b"0"))


def head(fields: list[tuple[bytes, bytes, bytes]], target: bytes = b"/x") -> bytes:
    lines = [b"POST " + target + b" HTTP/1.1", *(name + colon + value for name, value, colon in fields)]
    return b"\r\n".join(lines)


def template(raw: bytes) -> heads.Template | None:
    parsed = Parsed(raw)
    if not parsed.done:
        return None
    return heads.Template.of(raw, b"POST", parsed.target, parsed.headers, parallel=True)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two heads, the second made from the first by a few changes."""
    fields = [*draw(FIELDS), (b"Content-Length", b"4", b": ")]
    changed = [
        (name, draw(VALUES | TEXTS), colon) if draw(st.integers(0, 2)) == 0 else (name, value, colon)
        for name, value, colon in fields
    ]
    return head(fields), head(changed, draw(st.sampled_from([b"/x", b"/x", b"/y"])))


@given(pairs())
def test_what_is_read_quickly_is_what_the_parser_reads(heads_: tuple[bytes, bytes]) -> None:
    first, second = heads_
    known = template(first)
    assume(known is not None)
    assert known is not None
    found = known.read(second)
    if found is not None:
        parsed = Parsed(second)
        assert parsed.done
        assert (found.headers, found.body_bytes, known.target) == (parsed.headers, parsed.length, parsed.target)
        assert parsed.parser.should_keep_alive() == Parsed(first).parser.should_keep_alive()
        assert b"transfer-encoding" not in parsed.headers


def test_a_new_value_and_length_are_read() -> None:
    known = template(head([(b"Host", b"a", b": "), (b"X-Id", b"1", b": "), (b"Content-Length", b"4", b": ")]))
    assert known is not None
    found = known.read(head([(b"Host", b"a", b": "), (b"X-Id", b" two ", b": "), (b"Content-Length", b"12", b": ")]))
    assert found == heads.Head({b"host": b"a", b"x-id": b"two ", b"content-length": b"12"}, 12)


@pytest.mark.parametrize(
    "field",
    [
        (b"Host", b"b", b": "),
        (b"X-Id", b"1\r\nX-More: 2", b": "),
        (b"X-Id", b"1\n", b": "),
        (b"X-Id", b"\xff", b": "),
        (b"x-id", b"1", b": "),
        (b"X-Id", b"1", b" : "),
        (b"Content-Length", b"4, 4", b": "),
        (b"Content-Length", b"-4", b": "),
    ],
)
def test_other_changes_are_left_to_the_parser(field: tuple[bytes, bytes, bytes]) -> None:
    fields = [(b"Host", b"a", b": "), (b"X-Id", b"0", b": "), (b"Content-Length", b"4", b": ")]
    known = template(head(fields))
    assert known is not None
    changed = [field if field[0].lower() == each[0].lower() else each for each in fields]
    assert known.read(head(changed)) is None


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"Transfer-Encoding", b"chunked", b": ")],
        [(b"Expect", b"100-continue", b": "), (b"Content-Length", b"4", b": ")],
        [(b"X-Id", b"1", b": "), (b"X-Id", b"2", b": "), (b"Content-Length", b"4", b": ")],
    ],
)
def test_heads_that_are_not_simple_are_no_templates(fields: Any) -> None:
    assert template(head(fields)) is None


def test_long_heads_are_no_templates() -> None:
    fields = [(b"X-Id", b"x" * 5000, b": "), (b"Content-Length", b"4", b": ")]
    assert template(head(fields)) is None
