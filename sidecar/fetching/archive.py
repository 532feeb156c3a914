"""Unpacks a model that comes as one archive: tar, tar.gz or zip.

Decides what an archive may hold: plain files below the model's directory, and directories; no links, no devices, no
encryption, no name twice, and bounded numbers of files, bytes and bytes for each byte packed. An archive is read through
once and checked whole before a byte of it is kept. Must never write under a name that the archive chose: files go to the
cache by their sha256. Must never hold more than small pieces in memory, whatever its headers claim.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import threading
from collections.abc import Iterator

from sidecar import errors, paths, values
from sidecar.cache import disk, manifest
from sidecar.cache import store as cache_store
from sidecar.fetching import formats, reading


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """Of one archive. The ratio counts from the floor on: small archives of zeros are harmless."""

    most_files: int = 10_000
    most_bytes: int = 2**40
    most_ratio: int = 200
    floor_bytes: int = 64 << 20


def unpack(
    store: cache_store.Cache, file: values.SourceFile, stop: threading.Event, bounds: Bounds | None = None
) -> tuple[manifest.Member, ...]:
    """Puts what the archive holds into the cache. Raises ModelFailed or Stopped. Blocks."""
    packed = store.blob(file.sha256)
    with _refusing(file):
        planned = _plan(packed, file, bounds or Bounds(), stop)
        needed_bytes = sum(disk.rounded(size_bytes) for size_bytes in planned.values())
        strip = _common_directory(list(planned))
        with store.unpacking(file.sha256, needed_bytes) as under_way:
            for entry in formats.entries(packed, file.path):
                _keep(under_way, entry, entry.path[len(strip) :], stop)
            return under_way.finish()


def _plan(packed: pathlib.Path, file: values.SourceFile, bounds: Bounds, stop: threading.Event) -> dict[str, int]:
    """Sizes by path, with everything checked that can be before it is unpacked."""
    sizes: dict[str, int] = {}
    most_bytes = min(bounds.most_bytes, max(bounds.floor_bytes, bounds.most_ratio * file.size_bytes))
    left_bytes = most_bytes
    for entry in formats.entries(packed, file.path):
        if stop.is_set():
            raise errors.Stopped
        _check_path(entry.path, sizes)
        left_bytes -= entry.size_bytes
        if left_bytes < 0:
            raise formats.Refused(
                f"unpacks to more than {most_bytes} bytes, {bounds.most_ratio} times its size; it looks like a bomb"
            )
        sizes[entry.path] = entry.size_bytes
        if len(sizes) > bounds.most_files:
            raise formats.Refused(f"holds more than {bounds.most_files} files")
    if not sizes:
        raise formats.Refused("holds no file")
    _check_clashes(sizes)
    return sizes


def _check_path(path: str, seen: dict[str, int]) -> None:
    if not paths.is_relative(path) or not path.isprintable() or len(path.encode()) > paths.LONGEST_PATH:
        raise formats.Refused(f"holds {path!r}, which is not a plain path below the model directory")
    if path in seen:
        raise formats.Refused(f"holds {path!r} twice")


def _check_clashes(sizes: dict[str, int]) -> None:
    for path in sizes:
        for parent in pathlib.PurePosixPath(path).parents:
            if str(parent) in sizes:
                raise formats.Refused(f"holds {str(parent)!r} both as a file and as a directory")


def _common_directory(names: list[str]) -> str:
    """A directory that everything lies in is the model's own, unless it is a version's."""
    first = names[0].split("/")[0]
    shared = all(name.startswith(f"{first}/") for name in names)
    return f"{first}/" if shared and not first.isdigit() else ""


def _keep(under_way: cache_store.Unpacking, entry: formats.Entry, path: str, stop: threading.Event) -> None:
    descriptor = under_way.create()
    try:
        sha256 = _pour(entry, descriptor, stop)
        under_way.adopt(descriptor, manifest.Member(path, entry.size_bytes, sha256))
    finally:
        os.close(descriptor)


def _pour(entry: formats.Entry, descriptor: int, stop: threading.Event) -> str:
    digest, at = hashlib.sha256(), 0
    disk.reserve(descriptor, entry.size_bytes)
    for piece in entry.pieces():
        if stop.is_set():
            raise errors.Stopped
        if at + len(piece) > entry.size_bytes:
            raise formats.Refused(f"holds more of {entry.path!r} than it says")
        digest.update(piece)
        reading.write(descriptor, memoryview(piece), at)
        at += len(piece)
    if at != entry.size_bytes:
        raise formats.Refused(f"ends in the middle of {entry.path!r}")
    return digest.hexdigest()


@contextlib.contextmanager
def _refusing(file: values.SourceFile) -> Iterator[None]:
    try:
        yield
    except formats.Refused as error:
        raise errors.ModelFailed("InvalidArchive", f"{file.path!r} {error}") from error
