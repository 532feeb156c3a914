"""What the backend keeps on disk, and in which order, so that a server killed at any point finds its way.

A group's directory appears whole (made aside, then renamed) before its first process starts, and disappears whole
(renamed aside, then removed) after its last one is gone. Names with a leading dot are leftovers of either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from tms_server.backends.processes import proc
from tms_server.model import errors, ids, resources
from tms_server.ports import backend

_GROUP_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RETIRING = "retiring"


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """A group as launched: what was wanted, and the devices it holds."""

    spec: backend.LaunchSpec
    devices: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """What is remembered of a process: who it is, how it was started, how often before."""

    identity: proc.Identity
    argv: tuple[str, ...]
    restarts: int


class Layout:
    """The data directory. All calls block; OSError when the disk refuses."""

    def __init__(self, data_dir: pathlib.Path) -> None:
        self.root = data_dir.resolve()
        self.groups = self.root / "groups"
        self.cache = self.root / "cache"

    def open(self) -> int:
        """Makes the directories and takes the lock that only one server can hold; answers its descriptor."""
        for directory in (self.root, self.groups, self.cache):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise errors.FailedPrecondition(f"data_dir: another server uses {self.root}; give each its own") from None
        return lock

    def directory(self, group_id: ids.GroupId) -> pathlib.Path:
        """Where a group lives; InvalidField if the id could lead elsewhere."""
        if not _GROUP_ID.fullmatch(group_id):
            raise errors.InvalidField("group_id", "1 to 100 of [A-Za-z0-9._-], first a letter or digit")
        return self.groups / group_id

    def create(self, stored: Stored) -> None:
        """Makes a group's directory, durable before it returns, in place of what an interrupted call left."""
        directory = self.directory(stored.spec.group_id)
        self.remove(stored.spec.group_id)
        aside = directory.with_name(f".{directory.name}.new")
        shutil.rmtree(aside, ignore_errors=True)
        for each in (aside, aside / "models", aside / "sidecar"):
            each.mkdir(mode=0o700)
        _write(aside / "token", stored.spec.token)
        _write(aside / "spec.json", json.dumps(_encode(stored), indent=1))
        aside.rename(directory)
        _sync(self.groups)

    def load(self) -> tuple[tuple[Stored, ...], tuple[ids.GroupId, ...]]:
        """The groups on disk, and the ids of directories whose spec cannot be read; clears leftovers away."""
        found, broken = [], []
        for directory in sorted(self.groups.iterdir()):
            if directory.name.startswith("."):
                shutil.rmtree(directory, ignore_errors=True)
            if not directory.is_dir() or not _GROUP_ID.fullmatch(directory.name):
                continue
            try:
                found.append(_decode(directory))
            except (OSError, ValueError, KeyError, TypeError):
                broken.append(ids.GroupId(directory.name))
        return tuple(found), tuple(broken)

    def mark_retiring(self, group_id: ids.GroupId) -> None:
        """Notes that the group goes, so that a later server finishes it."""
        _write(self.directory(group_id) / _RETIRING, "")

    def retiring(self, group_id: ids.GroupId) -> bool:
        return (self.directory(group_id) / _RETIRING).exists()

    def remove(self, group_id: ids.GroupId) -> None:
        """Removes a group's directory; one that is not there is a success."""
        directory = self.directory(group_id)
        aside = directory.with_name(f".{directory.name}.gone")
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            directory.rename(aside)
            _sync(self.groups)
            shutil.rmtree(aside)


def read_note(directory: pathlib.Path, role: str) -> Note | None:
    """The note of a role's process, if there is one to rely on."""
    try:
        data = json.loads(_note_path(directory, role).read_text())
        identity = proc.Identity(int(data["pid"]), int(data["start_ticks"]), str(data["boot_id"]))
        return Note(identity, tuple(map(str, data["argv"])), int(data["restarts"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_note(directory: pathlib.Path, role: str, note: Note) -> None:
    data = {**dataclasses.asdict(note.identity), "argv": note.argv, "restarts": note.restarts}
    _write(_note_path(directory, role), json.dumps(data))


def _note_path(directory: pathlib.Path, role: str) -> pathlib.Path:
    return directory / f"{role}.pid.json"


def _encode(stored: Stored) -> dict[str, object]:
    # The token has a file of its own that nobody else may read.
    return {"devices": stored.devices, **dataclasses.asdict(dataclasses.replace(stored.spec, token=""))}


def _decode(directory: pathlib.Path) -> Stored:
    data = json.loads((directory / "spec.json").read_text())
    worker = data["worker"]
    spec = backend.LaunchSpec(
        group_id=ids.GroupId(directory.name),
        namespace=ids.Namespace(data["namespace"]),
        worker=resources.WorkerSpec(**{**worker, "resources": resources.Resources(**worker["resources"])}),
        endpoint=resources.Endpoint(**data["endpoint"]),
        token=(directory / "token").read_text(),
    )
    return Stored(spec, tuple(data["devices"]))


def _write(path: pathlib.Path, text: str) -> None:
    """Replaces a file as a whole, readable by its owner only."""
    aside = path.with_name(f"{path.name}.new")
    with _private(aside) as descriptor:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    aside.rename(path)
    _sync(path.parent)


@contextlib.contextmanager
def _private(path: pathlib.Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(directory: pathlib.Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
