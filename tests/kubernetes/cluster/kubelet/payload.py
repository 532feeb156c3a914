"""Writes the files of a configuration volume so that a reader sees all of a version or none, as kubelets do.

Files are links into `..data`, itself a link to the folder of the version that is moved into place whole.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import os
import pathlib
import shutil

_DATA = "..data"


class UnsafePathError(Exception):
    """A file of a volume would lie outside of it."""


@dataclasses.dataclass(frozen=True)
class File:
    """Content and permission bits of one file."""

    content: bytes
    mode: int


def write(folder: pathlib.Path, files: collections.abc.Mapping[str, File]) -> bool:
    """Makes `folder` hold `files` (relative path -> file) and nothing else; tells whether that changed anything.

    Raises:
        UnsafePathError: a path is absolute or leads upwards.
    """
    if unsafe := [path for path in files if not _is_safe(path)]:
        raise UnsafePathError(f"path {unsafe[0]!r} must be relative and must not lead upwards")
    folder.mkdir(parents=True, exist_ok=True)
    current = _current(folder)
    if current is not None and _read(current) == dict(files):
        return False
    version = folder / f"..{_next_number(current)}"
    shutil.rmtree(version, ignore_errors=True)
    version.mkdir()
    for path, file in files.items():
        _write_file(version / path, file)
    _point(folder / _DATA, version.name)
    _link_first_parts(folder, {pathlib.Path(path).parts[0] for path in files})
    if current is not None:
        shutil.rmtree(current)
    return True


def _is_safe(path: str) -> bool:
    parsed = pathlib.PurePosixPath(path)
    return bool(parsed.parts) and not parsed.is_absolute() and ".." not in parsed.parts and not path.startswith("..")


def _current(folder: pathlib.Path) -> pathlib.Path | None:
    link = folder / _DATA
    return folder / link.readlink() if link.is_symlink() else None


def _next_number(current: pathlib.Path | None) -> int:
    return 1 if current is None else int(current.name.removeprefix("..")) + 1


def _read(version: pathlib.Path) -> dict[str, File]:
    paths = [path for path in version.rglob("*") if path.is_file()]
    return {str(path.relative_to(version)): File(path.read_bytes(), path.stat().st_mode & 0o777) for path in paths}


def _write_file(path: pathlib.Path, file: File) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.content)
    path.chmod(file.mode & 0o777)


def _link_first_parts(folder: pathlib.Path, names: set[str]) -> None:
    for name in names:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"{_DATA}/{name}")
    for entry in os.scandir(folder):
        if not entry.name.startswith("..") and entry.name not in names:
            pathlib.Path(entry.path).unlink()


def _point(link: pathlib.Path, target: str) -> None:
    temporary = link.with_name("..data_tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
