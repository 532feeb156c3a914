"""Who may put how much into the cache, and what goes to make room.

Decides, alone on the node, whether a fetch may begin: what is on the disk (counted each time, never remembered), what
was promised to others and what is asked for must fit into the budget and onto the disk together. Must never give up what
a living sidecar pinned, nor what a worker has linked, for that would free nothing; nor give anything up where the room
could not be made anyway.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Collection, Iterator, Mapping

import structlog

from sidecar import clock, errors
from sidecar.cache import disk, layout, pins, reserve, worth

log = structlog.get_logger()

NO_ROOM_IN_CACHE = "NoRoomInCache"
TOO_SMALL = "CacheTooSmall"
_COUNTED = ("blobs", "known", "partial", "unpacked")


@dataclasses.dataclass(frozen=True, slots=True)
class _Count:
    """What there is, in bytes of the disk."""

    taken_bytes: int
    promised_bytes: int
    free_bytes: int


def taken_bytes(where: layout.Layout) -> int:
    """Bytes of the disk that the cache takes."""
    return sum(disk.taken_bytes(found) for name in _COUNTED for _, found in disk.scan(where.root / name))


def make_room(where: layout.Layout, sizes: Mapping[str, int], most_bytes: int) -> None:
    """Room for these files, given by identity, within `most_bytes` (0: the disk is the bound). Raises ModelFailed.

    Only under the budget's lock.
    """
    promised = reserve.promised(where)
    needed_bytes = sum(
        size for name, size in sizes.items() if name not in promised and not reserve.is_on_disk(where, name)
    )
    count = _Count(taken_bytes(where), sum(promised.values()), disk.free_bytes(where.root))
    if (short_bytes := _short(count, needed_bytes, most_bytes)) <= 0:
        return
    kept = _pinned(where)
    chosen = () if most_bytes and needed_bytes > most_bytes else worth.choose(_loose(where, kept), short_bytes)
    if not chosen:
        raise _refusal(where, count, needed_bytes, most_bytes)
    for entry in chosen:
        _give_up(pathlib.Path(entry.name))
    log.info("cache.evicted", files=len(chosen), freed_bytes=sum(each.disk_bytes for each in chosen))


def _short(count: _Count, needed_bytes: int, most_bytes: int) -> int:
    wanted_bytes = needed_bytes + count.promised_bytes
    short_bytes = wanted_bytes - count.free_bytes
    return max(short_bytes, count.taken_bytes + wanted_bytes - most_bytes) if most_bytes else short_bytes


def _pinned(where: layout.Layout) -> Collection[str]:
    """Names of blobs and identities of partial files that somebody needs."""
    words = pins.living(where.pins())
    learnt = {layout.unpacked(str(link.readlink())) for word in words if (link := where.known(word)).is_symlink()}
    return words | learnt


def _loose(where: layout.Layout, kept: Collection[str]) -> Iterator[worth.Entry]:
    now_s = clock.now_ms() / 1000
    for name, found in disk.scan(where.root / "blobs"):
        if name not in kept and found.st_nlink == 1:
            yield worth.Entry(str(where.blob(name)), disk.taken_bytes(found), now_s - found.st_atime)
    for name, found in disk.scan(where.root / "partial"):
        if name.partition(".")[0] not in kept:
            # Half of what nobody waits for goes first.
            yield worth.Entry(str(where.partial(name)), disk.taken_bytes(found), math.inf)


def _give_up(path: pathlib.Path) -> None:
    path.unlink(missing_ok=True)
    if path.parent.name == "partial":
        for journal in path.parent.glob(f"{path.name}.*"):
            journal.unlink(missing_ok=True)


def _refusal(where: layout.Layout, count: _Count, needed_bytes: int, most_bytes: int) -> errors.ModelFailed:
    if most_bytes and needed_bytes > most_bytes:
        return errors.ModelFailed(
            TOO_SMALL,
            f"the model takes {needed_bytes} bytes and the model cache of this node may hold {most_bytes}; "
            "raise --cache-budget",
        )
    if needed_bytes + count.promised_bytes > count.free_bytes:
        return errors.ModelFailed(
            disk.NO_ROOM,
            f"the model cache has no room for {needed_bytes} bytes more: its disk has {count.free_bytes} free, of which "
            f"{count.promised_bytes} are promised to other fetches, and nothing else in it can go; free space on it",
            retryable=True,
        )
    return errors.ModelFailed(
        NO_ROOM_IN_CACHE,
        f"the model cache has no room for {needed_bytes} bytes more: {count.taken_bytes} of {most_bytes} are taken, "
        f"{_bound_bytes(where)} of them by models that leases on this node need, and {count.promised_bytes} are promised "
        "to other fetches; end a lease or raise --cache-budget",
        retryable=True,
    )


def _bound_bytes(where: layout.Layout) -> int:
    kept = _pinned(where)
    held = itertools.chain(disk.scan(where.root / "blobs"), disk.scan(where.root / "partial"))
    return sum(disk.taken_bytes(found) for name, found in held if found.st_nlink > 1 or name.partition(".")[0] in kept)
