"""The cache as its users see it: find, make room, fetch under a lock, commit.

Decides whether bytes are there and are the right ones. Must never show a file before it is whole, checked and on the
disk: bytes are written under another name, synced, and renamed, so that a crash at any instruction leaves either nothing,
or a partial file that is gone on with or swept away, or the whole file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sidecar import clock, values
from sidecar.cache import budget, disk, layout, locks, manifest, pins, reserve, sweep
from sidecar.cache import partial as partial_file
from sidecar.cache.manifest import Member


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one node; 0 is none. Sidecars that share a cache should be given the same."""

    most_bytes: int = 0
    fetches: int = 16
    fetches_of_a_place: int = 8


class Cache:
    """Whole files by their sha256. All methods block and are safe from threads of several processes."""

    def __init__(self, root: pathlib.Path, limits: Limits | None = None) -> None:
        self._where = layout.Layout(root)
        self.limits = limits or Limits()
        self._pins = pins.Pins(self._where.pins() / secrets.token_hex(16))
        self._admitted = threading.Lock()

    def close(self) -> None:
        """Ends what this one pinned."""
        with self._alone():
            self._pins.close()

    def blob(self, sha256: str) -> pathlib.Path:
        return self._where.blob(sha256)

    def find(self, uri: str, file: values.SourceFile) -> str:
        """The sha256 of the file if its bytes are here, else empty. Notes that it was asked for."""
        sha256 = file.sha256 or self._known(layout.identity(uri, file))
        return sha256 if self.has(sha256, file.size_bytes) else ""

    def has(self, sha256: str, size_bytes: int) -> bool:
        """Whether these bytes are here, whole. Notes that they were asked for."""
        if not layout.is_sha256(sha256) or not _is_whole(self.blob(sha256), sha256, size_bytes):
            return False
        with contextlib.suppress(OSError):
            os.utime(self.blob(sha256), ns=(clock.now_ms() * 1_000_000, layout.BLOB_TIME_NS))
        return True

    # Before a fetch.

    @contextlib.contextmanager
    def admitted(self, uri: str, files: Sequence[values.SourceFile]) -> Iterator[frozenset[values.SourceFile]]:
        """Pins the files and reserves the room for those that are not here, which it answers. Raises ModelFailed."""
        names = {layout.identity(uri, file): file for file in files}
        with self._alone():
            self._pins.add([*names, *(file.sha256 for file in files if file.sha256)])
            missing = {name: file for name, file in names.items() if not self.find(uri, file)}
            sizes = {name: disk.rounded(file.size_bytes) for name, file in missing.items()}
            kept = self._reserved(sizes)
        try:
            yield frozenset(missing.values())
        finally:
            kept.close()

    def retain(self, models: Iterable[values.Model]) -> None:
        """Pins what these models need and nothing more. What a fetch under way needs must be among it."""
        words: set[str] = set()
        for model in models:
            for file in model.files:
                name = layout.identity(model.uri, file)
                sha256 = file.sha256 or self._known(name)
                words.update((name, sha256))
                if model.layout is values.Layout.ARCHIVE and sha256:
                    words.update(each.sha256 for each in manifest.read(self._where.unpacked(sha256)) or ())
        with self._alone():
            self._pins.set(words - {""})

    @contextlib.contextmanager
    def fetching(self, uri: str, file: values.SourceFile, stop: threading.Event) -> Iterator[None]:
        """Only one fetches a file at a time, on the whole node; a holder that died holds nothing. Raises Stopped."""
        with locks.held(self._where.lock(layout.identity(uri, file)), stop):
            yield

    @contextlib.contextmanager
    def slot(self, place: str, stop: threading.Event) -> Iterator[None]:
        """One of the node's fetches, and one of those of this place. Raises Stopped."""
        of_place, of_node = (functools.partial(self._where.slot, name) for name in (place, ""))
        with locks.slot(of_place, self.limits.fetches_of_a_place, stop), locks.slot(of_node, self.limits.fetches, stop):
            yield

    @contextlib.contextmanager
    def partial(self, uri: str, file: values.SourceFile) -> Iterator[partial_file.Partial]:
        """The file under way, with all its blocks taken. Only while `fetching`. Raises ModelFailed on a full disk."""
        with disk.room(file.size_bytes):
            made = partial_file.Partial(self._where.partial(layout.identity(uri, file)), file.size_bytes)
        try:
            with disk.room(file.size_bytes):
                yield made
        finally:
            made.close()

    def commit(self, uri: str, file: values.SourceFile, partial: partial_file.Partial, sha256: str) -> None:
        """Makes the file under way, whose bytes have this sha256, a blob. Only while `fetching`."""
        name = layout.identity(uri, file)
        # Learnt first: whoever makes room must see that a blob is pinned as soon as there is one.
        self._learn(name, sha256)
        settle(partial.descriptor, partial.path, self.blob(sha256))
        self.discard(uri, file)

    def discard(self, uri: str, file: values.SourceFile) -> None:
        """Removes what an unfinished fetch left. Only while `fetching`."""
        sweep.remove_partial(self._where.partial(layout.identity(uri, file)))

    def sync(self) -> None:
        """What was committed survives a loss of power under its name."""
        for name in ("blobs", "known", "unpacked"):
            disk.sync_directory(self._where.root / name)

    # What archives held.

    def find_members(self, uri: str, file: values.SourceFile) -> tuple[str, tuple[Member, ...]] | None:
        """The sha256 of an archive and what it held, if all of that is here; pinned."""
        name = layout.identity(uri, file)
        with self._alone():
            sha256 = file.sha256 or self._known(name)
            members = manifest.read(self._where.unpacked(sha256)) if sha256 else None
            if members is None or not all(self.has(member.sha256, member.size_bytes) for member in members):
                return None
            self._pins.add([name, sha256, *(member.sha256 for member in members)])
            return sha256, members

    @contextlib.contextmanager
    def unpacking(self, sha256: str, size_bytes: int) -> Iterator[Unpacking]:
        """Room for what an archive holds. Only while `fetching`. Raises ModelFailed where there is none."""
        name = f"{sha256}.members"
        with self._alone():
            kept = self._reserved({name: size_bytes})
        made = Unpacking(self, self._where, sha256)
        try:
            with disk.room(size_bytes):
                yield made
        finally:
            kept.close()
            made.clear()

    def pin(self, sha256: str) -> None:
        """Keeps these bytes as well, until the next `retain`."""
        with self._alone():
            self._pins.add((sha256,))

    def forget_blob(self, sha256: str) -> None:
        """Gives up bytes that are here in another form."""
        self.blob(sha256).unlink(missing_ok=True)

    # The whole.

    def size_bytes(self) -> int:
        """Bytes of the disk that the cache takes."""
        return budget.taken_bytes(self._where)

    def sweep(self) -> None:
        """Removes what dead processes and other boots left and nobody can go on with."""
        with self._alone():
            sweep.sweep(self._where)

    def _reserved(self, sizes: Mapping[str, int]) -> reserve.Reservation:
        budget.make_room(self._where, sizes, self.limits.most_bytes)
        kept = reserve.Reservation(self._where.reserved() / secrets.token_hex(16))
        kept.add(sizes)
        return kept

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._admitted, locks.held(self._where.budget()):
            yield

    def _known(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return layout.unpacked(str(self._where.known(name).readlink()))
        return ""

    def _learn(self, name: str, sha256: str) -> None:
        aside = self._where.known(f"{name}.{secrets.token_hex(4)}")
        aside.symlink_to(layout.packed(sha256))
        aside.replace(self._where.known(name))


class Unpacking:
    """The files of an archive on their way into the cache."""

    def __init__(self, store: Cache, where: layout.Layout, sha256: str) -> None:
        self._store, self._where, self._sha256 = store, where, sha256
        self._aside = where.partial(f"{sha256}.{secrets.token_hex(8)}.member")
        self._members: list[Member] = []

    def create(self) -> int:
        """A descriptor of a new file, to be closed by `adopt`."""
        return os.open(self._aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def adopt(self, descriptor: int, member: Member) -> None:
        """The file is whole and has these bytes."""
        self._store.pin(member.sha256)
        settle(descriptor, self._aside, self._store.blob(member.sha256))
        self._members.append(member)

    def finish(self) -> tuple[Member, ...]:
        """All is here: the archive counts as unpacked."""
        manifest.write(self._where.unpacked(self._sha256), self._members)
        self._store.sync()
        return tuple(self._members)

    def clear(self) -> None:
        self._aside.unlink(missing_ok=True)


def settle(descriptor: int, path: pathlib.Path, blob: pathlib.Path) -> None:
    """Makes a file whose bytes are whole a blob: read-only, marked, on the disk, and only then under its name."""
    os.fchmod(descriptor, 0o444)
    os.utime(descriptor, ns=(clock.now_ms() * 1_000_000, layout.BLOB_TIME_NS))
    os.fsync(descriptor)
    path.replace(blob)


def _is_whole(blob: pathlib.Path, sha256: str, size_bytes: int) -> bool:
    try:
        found = blob.stat()
    except FileNotFoundError:
        return False
    if found.st_size != size_bytes:
        return False
    # Where it is broken it is left: another sidecar may be putting whole bytes in its place at this very moment.
    return found.st_mtime_ns == layout.BLOB_TIME_NS or layout.digest(blob) == sha256


NO_ROOM_REASONS = frozenset({disk.NO_ROOM, budget.NO_ROOM_IN_CACHE, budget.TOO_SMALL})
"""Why a file could not be put here."""
