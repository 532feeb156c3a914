"""Turns into a container's process. A program of its own, run by path with a bare interpreter, never imported.

`sandbox.py start FILE`: makes namespaces of its own for processes, mounts and the host name, lays out a root (a tmpfs
with the top-level folders of the machine, the pod's volumes over it), and runs the command there as process 1, so
that the kernel ends all of a container with its first process. `sandbox.py enter FILE` runs a command beside it.
It says `started PID` or `failed MESSAGE` on standard output, dies with its parent, and ends as the command ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import socket
import sys
import typing

Json = dict[str, typing.Any]

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWPID = 0x00020000, 0x04000000, 0x08000000, 0x20000000
_MS_BIND, _MS_MOVE, _MS_REC, _MS_PRIVATE = 4096, 8192, 16384, 1 << 18
_PR_SET_PDEATHSIG = 1
_SYS_MOUNT_SETATTR = 442  # the same on every architecture that Linux added since
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY = 1
_START_ERROR = 128


class _Attributes(ctypes.Structure):
    _fields_: typing.ClassVar = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def main() -> None:
    _die_with_parent()
    action, order = sys.argv[1], json.loads(pathlib.Path(sys.argv[2]).read_text())
    try:
        {"start": _leave, "enter": _join}[action](order)
    except OSError as error:
        _say(f"failed {error}")
        os._exit(_START_ERROR)
    _run(order, prepare=_lay_out if action == "start" else _do_nothing)


def _leave(_order: Json) -> None:
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID), "unshare")


def _join(order: Json) -> None:
    names = ("pid", "uts", "ipc", "mnt")
    opened = [os.open(f"/proc/{order['pid']}/ns/{name}", os.O_RDONLY) for name in names]
    for name, descriptor in zip(names, opened, strict=True):
        _check(_libc.setns(descriptor, 0), f"setns {name}")


def _run(order: Json, prepare: typing.Callable[[Json], None]) -> None:
    """Starts the command in a child, which is the first that the new process namespace holds."""
    told, tell = os.pipe()  # closed by exec: silence means that the command runs
    pid = os.fork()
    if pid == 0:
        os.close(told)
        _become(order, prepare, tell)
    os.close(tell)
    complaint = os.read(told, 4096).decode(errors="replace")
    _say(f"failed {complaint}" if complaint else f"started {pid}")
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(128 - code if code < 0 else code)


def _become(order: Json, prepare: typing.Callable[[Json], None], tell: int) -> typing.NoReturn:
    try:
        _die_with_parent()
        _redirect(order.get("log"))
        prepare(order)
        os.chdir(order.get("working_directory") or "/")
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(order["command"][0], order["command"], order["environment"])
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent tells it
        os.write(tell, f"{type(error).__name__}: {error}".encode())
    os._exit(_START_ERROR)


def _redirect(path: str | None) -> None:
    """A container writes to its log; a command beside it writes where its caller listens, on standard error."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if path else 2
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _do_nothing(_order: Json) -> None:
    pass


def _lay_out(order: Json) -> None:
    socket.sethostname(order["hostname"])
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    root = _Root(pathlib.Path(order["root"]))
    root.cover_with_machine()
    for mount in order["mounts"]:
        root.make_place(mount["target"], is_folder=pathlib.Path(mount["source"]).is_dir())
    if order["read_only_root"]:
        _make_read_only(root.path, recursive=True)
    for mount in order["mounts"]:
        root.mount(mount)
    root.keep(order["keep"], order["mounts"])
    root.enter()
    with contextlib.suppress(OSError):  # where the machine hides parts of its own, it stays as the machine has it
        _mount("proc", "/proc", "proc", 0)


class _Root:
    """The new root while it is being made, below `path`."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._shadowed: set[pathlib.Path] = set()

    def cover_with_machine(self) -> None:
        self._cover(self.path, pathlib.Path("/"))

    def make_place(self, target: str, *, is_folder: bool) -> None:
        """Makes a place to mount on, without writing to the machine: a folder that lacks it is covered first."""
        place = self.path
        parts = self._resolved(target).parts[1:]
        for position, part in enumerate(parts):
            if not (place / part).exists() and place not in self._shadowed:
                self._cover(place, pathlib.Path("/") / place.relative_to(self.path))
            place /= part
            if position < len(parts) - 1 or is_folder:
                self._make_folder(place)
            elif not place.exists():
                place.touch()

    def mount(self, mount: Json) -> None:
        place = self.path / self._resolved(mount["target"]).relative_to("/")
        if not place.exists():  # below another volume, which was empty when places were made
            self._make_in_volume(place, is_folder=pathlib.Path(mount["source"]).is_dir())
        _mount(mount["source"], str(place), None, _MS_BIND | _MS_REC)
        if mount["read_only"]:
            _make_read_only(place, recursive=True)

    def keep(self, paths: list[str], mounts: list[Json]) -> None:
        """Puts what an image would bring back where a volume hides it."""
        targets = [pathlib.Path(mount["target"]) for mount in mounts]
        for path in map(pathlib.Path, paths):
            if any(path.is_relative_to(target) for target in targets):
                place = self.path / path.relative_to("/")
                place.mkdir(parents=True, exist_ok=True)
                _mount(str(path), str(place), None, _MS_BIND | _MS_REC)

    def enter(self) -> None:
        os.chdir(self.path)
        _mount(".", "/", None, _MS_MOVE)
        os.chroot(".")
        os.chdir("/")

    def _cover(self, place: pathlib.Path, original: pathlib.Path) -> None:
        """Mounts a tmpfs on `place` that shows all that `original` holds, and where more can be put."""
        entries = list(os.scandir(original))
        _mount("tmpfs", str(place), "tmpfs", 0)
        self._shadowed.add(place)
        for entry in entries:
            with contextlib.suppress(OSError):  # what this user may not see is not there
                self._show(entry, place / entry.name)

    def _show(self, entry: os.DirEntry[str], place: pathlib.Path) -> None:
        if entry.is_symlink():
            place.symlink_to(pathlib.Path(entry.path).readlink())
            return
        place.mkdir() if entry.is_dir() else place.touch()
        _mount(entry.path, str(place), None, _MS_BIND | _MS_REC)

    def _make_folder(self, place: pathlib.Path) -> None:
        if not place.exists():
            place.mkdir()
            self._shadowed.add(place)  # of the tmpfs: more can be put there too

    @staticmethod
    def _make_in_volume(place: pathlib.Path, *, is_folder: bool) -> None:
        folder = place if is_folder else place.parent
        folder.mkdir(parents=True, exist_ok=True)
        if not is_folder:
            place.touch()

    def _resolved(self, target: str) -> pathlib.Path:
        """Where `target` leads in the new root: symbolic links of it lead within it."""
        place = pathlib.Path("/")
        for part in pathlib.Path(os.path.normpath(target)).parts[1:]:
            link = self.path / (place / part).relative_to("/")
            if link.is_symlink():
                place = self._resolved(str(place / link.readlink()))
            else:
                place /= part
        return place


def _make_read_only(path: pathlib.Path, *, recursive: bool) -> None:
    attributes = _Attributes(attr_set=_MOUNT_ATTR_RDONLY)
    flags = _AT_RECURSIVE if recursive else 0
    arguments = (_AT_FDCWD, str(path).encode(), flags, ctypes.byref(attributes), ctypes.sizeof(attributes))
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, *arguments), f"mount_setattr {path}")


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    texts = [text.encode() if text else None for text in (source, target, kind)]
    _check(_libc.mount(*texts, ctypes.c_ulong(flags), None), f"mount {source} on {target}")


def _die_with_parent() -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _say(text: str) -> None:
    os.write(1, text.replace("\n", " ").encode() + b"\n")


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
