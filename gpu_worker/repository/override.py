"""Models that came with their load call: their files, written to a directory of this process's own.

Only the given files exist in a model's directory, and it is gone when the model is. No path leaves it. What a process
that died has left is removed when the next one starts: each holds a lock on its directory for as long as it lives, so no
living one's is ever taken, whatever its number and whichever container it is in.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Mapping

import structlog

from gpu_worker.engine import border
from gpu_worker.repository import layout

_PREFIX = "tms-models-"
_MAX_FILES = 1000
_MAX_BYTES = 2**31

log = structlog.get_logger(__name__)


class Store:
    """The directory of one process, made with the first model; `close` removes it."""

    def __init__(self) -> None:
        self._base = pathlib.Path(tempfile.gettempdir())
        self._root: pathlib.Path | None = None
        self._lock = threading.Lock()
        self._held = -1

    def write(self, name: str, files: Mapping[str, bytes]) -> layout.ModelDirectory:
        """The files by relative path, in a new directory. Raises InferenceError for bad paths, or too much."""
        _check(name, files)
        directory = pathlib.Path(tempfile.mkdtemp(prefix="model-", dir=self._opened()))
        try:
            for relative, content in files.items():
                _write(layout.inside(directory, relative), name, relative, content)
        except border.InferenceError:
            remove(directory)
            raise
        return layout.ModelDirectory(name, directory)

    def sweep(self) -> None:
        """Removes what processes of this user have left that live no more."""
        for root in self._base.glob(f"{_PREFIX}*"):
            number = _taken(root)
            if number is not None:
                remove(root)
                os.close(number)
                log.info("models.swept", directory=str(root))

    def close(self) -> None:
        with self._lock:
            if self._root is not None:
                remove(self._root)
                os.close(self._held)
                self._root = None

    def _opened(self) -> pathlib.Path:
        with self._lock:
            while self._root is None:
                root = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._base))
                number = _taken(root)
                # Somebody who swept may have been faster: then it is gone, and another one is made.
                if number is not None:
                    self._root, self._held = root, number
            return self._root


def remove(directory: pathlib.Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _taken(root: pathlib.Path) -> int | None:
    """The descriptor that holds the lock on a directory of this user; None where another process does, or it is gone."""
    try:
        number = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(number).st_uid == os.geteuid() and os.path.samestat(os.fstat(number), root.lstat()):
            return number
    except OSError:
        # Held by a process that lives, or removed in this moment.
        log.debug("models.not_taken", directory=str(root))
    os.close(number)
    return None


def _write(path: pathlib.Path, name: str, relative: str, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(content)
    except OSError as error:
        # Without the path: where it lies here is nothing for a client.
        raise _invalid(f"file '{relative}' of model '{name}' cannot be written: {error.strerror}") from None


def _check(name: str, files: Mapping[str, bytes]) -> None:
    if len(files) > _MAX_FILES:
        raise _invalid(f"{len(files)} files of model '{name}' are too many: send at most {_MAX_FILES}")
    size = sum(map(len, files.values()))
    if size > _MAX_BYTES:
        raise _invalid(f"files of model '{name}' have {size} bytes: send at most {_MAX_BYTES}")


def _invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)
