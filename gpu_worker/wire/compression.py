"""gzip and deflate of infer bodies: inflating under a bound, and choosing what a client accepts.

Must never inflate beyond its bound, whatever a stream promises.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from gpu_worker.engine import border
from gpu_worker.wire import datatypes

_T = TypeVar("_T")

# By content coding: window bits that zlib reads as gzip, and as its own format.
_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_CHOICES = ("gzip", "deflate")
_LEVEL = 1
# What follows a member is copied by zlib, so that many tiny members in one long piece would cost the square of it.
_FEED_BYTES = 2**14
_MOST_MEMBERS = 2**16
# What comes out of one step, or goes into it: a few milliseconds.
_STEP_BYTES = 2**20
_DEFLATED_BYTES = 2**18


def inflate(body: border.Buffer, encoding: str, most_bytes: int) -> border.Buffer:
    """`body` without its content coding. InferenceError for an unknown coding (unsupported) or a broken stream.

    OverflowError when there would be more than `most_bytes`.
    """
    return finished(inflating(body, encoding, most_bytes))


def inflating(body: border.Buffer, encoding: str, most_bytes: int) -> Generator[int, None, border.Buffer]:
    """As `inflate`, in steps of a few milliseconds, each of which yields the bytes that came out of it."""
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW:
        raise border.InferenceError(
            border.ErrorKind.UNSUPPORTED, f"Unsupported Content-Encoding '{encoding}': use gzip, deflate or none"
        )
    try:
        return (yield from _inflating(body, _WINDOW[encoding], most_bytes))
    except zlib.error as error:
        raise datatypes.refused(f"the {encoding} body cannot be inflated: {error}") from error


def deflate(parts: Sequence[border.Buffer], encoding: str) -> list[border.Buffer]:
    """`parts` under the content coding, gzip or deflate."""
    return finished(deflating(parts, encoding))


def deflating(parts: Sequence[border.Buffer], encoding: str) -> Generator[int, None, list[border.Buffer]]:
    """As `deflate`, in steps of a few milliseconds, each of which yields the bytes that came out of it."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[encoding])
    pieces = []
    for part in parts:
        view = memoryview(part)
        for at in range(0, len(view), _DEFLATED_BYTES):
            pieces.append(stream.compress(view[at : at + _DEFLATED_BYTES]))
            if len(view) > _DEFLATED_BYTES:
                yield len(pieces[-1])
    return [b"".join([*pieces, stream.flush()])]


def finished(steps: Generator[Any, None, _T]) -> _T:
    """The result of all steps, at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result


def choose(accepted: str) -> str:
    """What an Accept-Encoding header prefers of gzip, deflate and identity; `*` means identity, shown as empty."""
    best, best_quality = "", _quality(accepted, "identity")
    for encoding in _CHOICES:
        quality = _quality(accepted, encoding)
        if quality and (best_quality is None or quality > best_quality):
            best, best_quality = encoding, quality
    return best


def _inflating(body: border.Buffer, window: int, most_bytes: int) -> Generator[int, None, bytes]:
    """All members of a gzip file, or the one stream of zlib."""
    pieces: list[bytes] = []
    rest, room, members, stepped = memoryview(body), most_bytes, 0, most_bytes
    while rest:
        members += 1
        if members > (_MOST_MEMBERS if window == _WINDOW["gzip"] else 1):
            raise zlib.error("bytes after the end of the stream")
        stream = zlib.decompressobj(window)
        more = False
        while not stream.eof:
            if not rest and not more:
                raise zlib.error("the stream ends early")
            most = min(room + 1, _STEP_BYTES)
            piece = stream.decompress(rest[:_FEED_BYTES], most)
            # What fills its bound may leave something behind, though nothing is to be fed any more.
            more = len(piece) == most
            room -= len(piece)
            if room < 0:
                raise OverflowError
            pieces.append(piece)
            rest = rest[min(len(rest), _FEED_BYTES) - _unread_bytes(stream) :]
            if stepped - room >= _STEP_BYTES:
                yield stepped - room
                stepped = room
    return b"".join(pieces)


def _unread_bytes(stream: Any) -> int:
    """Of what was fed last; at the end of the stream its `unconsumed_tail` may say the same once more."""
    return len(stream.unused_data if stream.eof else stream.unconsumed_tail)


def _quality(accepted: str, encoding: str) -> float | None:
    """The quality given to `encoding`; None where it is not named."""
    for entry in accepted.split(","):
        name, *settings = (part.strip() for part in entry.lower().split(";"))
        if name != encoding:
            continue
        for setting in settings:
            key, _, value = setting.partition("=")
            if key.strip() == "q":
                return _number(value)
        return 1.0
    return None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
