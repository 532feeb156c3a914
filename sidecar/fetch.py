"""Brings all files of a model into the cache, once per host.

Decides from the scheme of the URI who reads, and checks what came: the size, and the sha256 where one is known. A first
fetch learns the sha256. Must never hand on other bytes than those that were meant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator

from sidecar import cache, errors, files, paths, values


class Progress:
    """Bytes of one model that are here; written by threads, read by the event loop."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._fetched_bytes = 0
        self._lock = threading.Lock()

    @property
    def fetched_bytes(self) -> int:
        return min(self._fetched_bytes, self.total_bytes)

    def set(self, fetched_bytes: int) -> None:
        with self._lock:
            self._fetched_bytes = fetched_bytes

    def add(self, more_bytes: int) -> None:
        with self._lock:
            self._fetched_bytes += more_bytes


def fetch(
    store: cache.Cache, model: values.Model, stop: threading.Event, progress: Progress
) -> tuple[values.SourceFile, ...]:
    """Blocks until all files are in the cache; answers them with their sha256. Raises ModelFailed or Stopped."""
    paths.check(model)
    learnt: list[values.SourceFile] = []
    for file in model.files:
        sha256 = _one(store, model, file, stop, progress)
        learnt.append(dataclasses.replace(file, sha256=sha256))
        progress.set(sum(each.size_bytes for each in learnt))
    return tuple(learnt)


def _one(
    store: cache.Cache, model: values.Model, file: values.SourceFile, stop: threading.Event, progress: Progress
) -> str:
    with _as_failure(file):
        return store.find(model.uri, file) or _fetched(store, model, file, stop, progress)


def _fetched(
    store: cache.Cache, model: values.Model, file: values.SourceFile, stop: threading.Event, progress: Progress
) -> str:
    with store.locked(model.uri, file, stop):
        # Somebody else may have fetched it while this one waited for the lock.
        if found := store.find(model.uri, file):
            return found
        try:
            return _bring(store, model, file, stop, progress)
        except errors.ModelFailed as error:
            # On a full disk what has come so far takes the room of others.
            if not error.failure.retryable or error.failure.reason == cache.NO_ROOM:
                store.discard(model.uri, file)
            raise


def _bring(
    store: cache.Cache, model: values.Model, file: values.SourceFile, stop: threading.Event, progress: Progress
) -> str:
    partial = store.partial(model.uri, file)
    scheme = model.uri.partition("://")[0]
    if scheme == "file":
        files.read(model.uri, file, partial, stop, progress.add)
    elif scheme == "s3":
        # Its libraries take longer to import than all the rest, and a pod with other sources would wait for them.
        from sidecar import s3  # noqa: PLC0415

        s3.Fetcher(model.uri, file, _access(model), stop).read(partial, progress.add)
    else:
        raise errors.ModelFailed("InvalidUri", f"sources of scheme {scheme!r} are not read; use file:// or s3://")
    sha256 = cache.digest(partial)
    if file.sha256 and sha256 != file.sha256:
        raise errors.ModelFailed("SourceChanged", f"the bytes of {file.path!r} are not those that were first fetched")
    with cache.room(file.size_bytes):
        store.commit(model.uri, file, sha256)
    return sha256


def _access(model: values.Model) -> values.S3Access:
    if model.access is None:
        raise errors.ModelFailed(
            "NoCredentials", "access to the store comes from the server, which was not reached yet", retryable=True
        )
    return model.access


@contextlib.contextmanager
def _as_failure(file: values.SourceFile) -> Iterator[None]:
    """No error of the operating system leaves without a word that can be reported."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise errors.ModelFailed(
            "CacheUnusable", f"{file.path!r} could not be put into the model cache: {reason}", retryable=True
        ) from error
