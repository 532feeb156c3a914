"""The output of groups: last lines, lines to come, and turning files over so that they never fill the disk.

The programs append to their files themselves, so that output outlives the server. A file is turned over by copying it
aside and cutting it; a line written between the two is lost, which is the price of never holding the programs' output.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import os
import pathlib
import shutil
from collections.abc import AsyncIterator, Callable, Mapping

from tms_server import clock as clock_module

MOST_LINES = 10_000
_TAIL_BYTES = 4 * 2**20
_BLOCK_BYTES = 64 * 1024
_LONGEST_LINE_BYTES = 64 * 1024
_POLL = dt.timedelta(milliseconds=250)


@dataclasses.dataclass(slots=True)
class Reader:
    """Reads the complete lines of one log: its end first, then what is added. Blocks; a file not there is empty."""

    path: pathlib.Path
    offset: int = 0
    rest: bytes = b""

    def tail(self, lines: int) -> list[str]:
        """The last lines, at most `MOST_LINES`; those in the file turned over before included."""
        lines = min(max(lines, 0), MOST_LINES)
        start = max(0, _size(self.path) - _TAIL_BYTES)
        data = _read(self.path, start, _TAIL_BYTES)
        self.offset = start + len(data)
        if data.count(b"\n") < lines:
            older = turned(self.path)
            data = _read(older, max(0, _size(older) - _TAIL_BYTES), _TAIL_BYTES) + data
        *found, self.rest = data.split(b"\n")
        return _decode(found[len(found) - min(lines, len(found)) :])

    def more(self) -> list[str]:
        """Lines added since; starts anew where the file was turned over."""
        if _size(self.path) < self.offset:
            self.offset, self.rest = 0, b""
        block = _read(self.path, self.offset, _BLOCK_BYTES)
        self.offset += len(block)
        *found, self.rest = (self.rest + block).split(b"\n")
        if len(self.rest) > _LONGEST_LINE_BYTES:
            found, self.rest = [*found, self.rest], b""
        return _decode(found)


@dataclasses.dataclass(frozen=True, slots=True)
class Until:
    """How long to follow: while `present` says so, asked at each step of the clock."""

    present: Callable[[], bool]
    clock: clock_module.Clock


async def follow(readers: Mapping[str, Reader], until: Until) -> AsyncIterator[tuple[str, str]]:
    """Name of the reader and line, as lines come, while the logs are present."""
    while until.present():
        quiet = True
        for name, reader in readers.items():
            for line in await asyncio.to_thread(reader.more):
                quiet = False
                yield name, line
        if quiet:
            await until.clock.sleep_until(until.clock.now() + _POLL)


def turn_over(log: pathlib.Path, most_bytes: int) -> bool:
    """Moves the content of a log that has grown too big aside, in place of what was there before."""
    if _size(log) <= most_bytes:
        return False
    aside = log.with_name(f"{log.name}.new")
    shutil.copyfile(log, aside)
    aside.chmod(0o600)
    aside.rename(turned(log))
    os.truncate(log, 0)
    return True


def turned(log: pathlib.Path) -> pathlib.Path:
    """Where the older part of a log is."""
    return log.with_name(f"{log.name}.1")


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: pathlib.Path, offset: int, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(count)
    except FileNotFoundError:
        return b""


def _decode(lines: list[bytes]) -> list[str]:
    return [line.decode(errors="replace") for line in lines]
