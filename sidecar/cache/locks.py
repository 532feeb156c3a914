"""Locks and slots that hold between processes and end with the process that holds them.

Decides that waiting ends when the work is called off. Must never leave a lock behind: all are flocks, which the system
ends with their holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pathlib
import threading
from collections.abc import Callable, Iterator

from sidecar import errors

_POLL_S = 0.05


@contextlib.contextmanager
def held(path: pathlib.Path, stop: threading.Event | None = None) -> Iterator[None]:
    """Alone under this path, on the whole node. Raises Stopped; without `stop` waits for what others do briefly.

    With `stop` the file goes with the lock, for such paths are many.
    """
    if stop is None:
        lock = _open(path)
        fcntl.flock(lock, fcntl.LOCK_EX)
    else:
        lock = _wait_for(path, stop)
    try:
        yield
        if stop is not None:
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


@contextlib.contextmanager
def slot(paths: Callable[[int], pathlib.Path], most: int, stop: threading.Event) -> Iterator[None]:
    """One of `most` slots named by `paths`. Raises Stopped. A `most` of 0 is no bound."""
    taken: list[int] = []
    try:
        if most:
            _wait(lambda: _take_one(paths, most, taken), stop)
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Whether the lock was free; it is held then."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: pathlib.Path) -> bool:
    """Whether anybody, this process included, holds the lock. What is not there is held by nobody."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _wait_for(path: pathlib.Path, stop: threading.Event) -> int:
    while True:
        lock = _open(path)
        try:
            _wait(functools.partial(try_lock, lock), stop)
            # Whoever held it before took the name away: others may hold another file of this name by now.
            if os.fstat(lock).st_nlink:
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _open(path: pathlib.Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _take_one(paths: Callable[[int], pathlib.Path], most: int, taken: list[int]) -> bool:
    for number in range(most):
        descriptor = _open(paths(number))
        if try_lock(descriptor):
            taken.append(descriptor)
            return True
        os.close(descriptor)
    return False


def _wait(attempt: Callable[[], bool], stop: threading.Event) -> None:
    while not attempt():
        if stop.wait(_POLL_S):
            raise errors.Stopped
