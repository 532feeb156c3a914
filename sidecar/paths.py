"""Which names and paths are safe, and how a file is opened without leaving its directory.

Decides that a path of the wire is relative, plain and below its root. Must never follow a link that leads outside, also
when somebody changes the directory at that very moment.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence

from sidecar import errors, values

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def is_name(name: str) -> bool:
    """Whether a served name may be a directory of the model repository."""
    return _NAME.fullmatch(name) is not None


def is_relative(path: str) -> bool:
    """Whether a file's path is relative and plain: no empty, ``.`` or ``..`` part, no backslash, no NUL."""
    parts = path.split("/")
    return not any(part in {"", ".", ".."} or "\\" in part or "\0" in part for part in parts)


def check(model: values.Model) -> None:
    """Raises ModelFailed (definite) where the model's name or files could leave their directories or clash."""
    if not is_name(model.name):
        raise errors.ModelFailed("InvalidName", f"{model.name!r} cannot be the name of a model directory")
    for file in model.files:
        if not is_relative(file.path) or len(file.path.encode(errors="replace")) > LONGEST_PATH:
            raise errors.ModelFailed("InvalidPath", f"{file.path!r} is not a plain path below the model directory")
        if file.size_bytes < 0:
            raise errors.ModelFailed("InvalidPath", f"{file.path!r} has a negative size")
    _check_clashes([file.path for file in model.files])


def open_beneath(root: pathlib.Path, path: str) -> int:
    """A descriptor for reading the file `path` below `root`; links are followed only where they stay below it.

    Raises ModelFailed (InvalidPath) for one that leads outside, OSError as open does.
    """
    real_root = root.resolve(strict=True)
    real = real_root.joinpath(path).resolve(strict=True)
    if not real.is_relative_to(real_root) or real == real_root:
        raise errors.ModelFailed("InvalidPath", f"{path!r} is a link that leads outside the model directory")
    return _walk(real_root, real.relative_to(real_root).parts)


LONGEST_PATH = 1024


def _check_clashes(paths: Sequence[str]) -> None:
    files = set(paths)
    if len(files) != len(paths):
        raise errors.ModelFailed("InvalidPath", "a file is listed twice")
    for path in paths:
        parents = pathlib.PurePosixPath(path).parents
        if clash := files.intersection(str(parent) for parent in parents):
            raise errors.ModelFailed("InvalidPath", f"{min(clash)!r} is listed both as a file and as a directory")


def _walk(root: pathlib.Path, parts: Sequence[str]) -> int:
    """Opens part by part and follows no link, so that what was resolved is what is opened."""
    here = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = below
        # A FIFO in the place of a file must not block.
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
