"""Brings all files of a model into the cache, once per node.

Decides what is read at the same time: small files several at once, big ones one after the other in parallel stretches.
Checks what came: the size, and the sha256 where one is known; a first fetch learns the sha256. Must never hand on other
bytes than those that were meant, nor begin what the cache has no room for.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

from sidecar import errors, paths, spans, values
from sidecar.cache import partial as partial_file
from sidecar.cache import store as cache_store
from sidecar.fetching import archive, hashing, progress, reading, retry
from sidecar.sources import opening, port

PARALLEL = 8
_WATCH_S = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Fetched:
    """The files of the source with their sha256, and the files of the model's directory: the same but for archives."""

    learnt: tuple[values.SourceFile, ...]
    contents: tuple[values.SourceFile, ...]


def fetch(store: cache_store.Cache, model: values.Model, stop: threading.Event, told: progress.Progress) -> Fetched:
    """Blocks until all files are in the cache. Raises ModelFailed or Stopped."""
    paths.check(model)
    if stop.is_set():
        raise errors.Stopped
    with _as_failure():
        if model.layout is not values.Layout.ARCHIVE:
            learnt = _files(store, model, stop, told)
            return Fetched(learnt, learnt)
        return _archive(store, model, stop, told)


def _archive(store: cache_store.Cache, model: values.Model, stop: threading.Event, told: progress.Progress) -> Fetched:
    if len(model.files) != 1:
        raise errors.ModelFailed("InvalidPath", "a model that is an archive is one file")
    [file] = model.files
    if found := store.find_members(model.uri, file):
        told.found(file.size_bytes)
    else:
        [learnt] = _files(store, model, stop, told)
        with store.fetching(model.uri, dataclasses.replace(learnt, path=f"{file.path}/"), stop):
            found = store.find_members(model.uri, learnt) or (learnt.sha256, archive.unpack(store, learnt, stop))
    sha256, members = found
    store.forget_blob(sha256)
    contents = tuple(
        values.SourceFile(path=each.path, size_bytes=each.size_bytes, sha256=each.sha256) for each in members
    )
    return Fetched((dataclasses.replace(file, sha256=sha256),), contents)


def _files(
    store: cache_store.Cache, model: values.Model, stop: threading.Event, told: progress.Progress
) -> tuple[values.SourceFile, ...]:
    with store.admitted(model.uri, model.files) as missing:
        told.found(sum(file.size_bytes for file in model.files if file not in missing))
        if missing:
            with contextlib.closing(opening.of(model)) as source, _Fetch(store, model, source, stop, told) as under_way:
                under_way.bring([file for file in model.files if file in missing])
            store.sync()
    return tuple(dataclasses.replace(file, sha256=_found(store, model, file)) for file in model.files)


def _found(store: cache_store.Cache, model: values.Model, file: values.SourceFile) -> str:
    if sha256 := store.find(model.uri, file):
        return sha256
    raise errors.ModelFailed("CacheUnusable", f"{file.path!r} was taken out of the model cache", retryable=True)


class _Fetch:
    """One model's fetch under way; its threads end with it."""

    def __init__(
        self,
        store: cache_store.Cache,
        model: values.Model,
        source: port.Source,
        stop: threading.Event,
        told: progress.Progress,
    ) -> None:
        self._store, self._uri, self._told = store, model.uri, told
        self._halt = _Halt(stop)
        self._reader = reading.Reader(
            source, lambda: store.slot(source.place, self._halt), retry.Retries(self._halt), told, self._halt
        )
        self._pool = concurrent.futures.ThreadPoolExecutor(PARALLEL, "fetch-read")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._halt.set()
        self._pool.shutdown(cancel_futures=True)

    def bring(self, files: Sequence[values.SourceFile]) -> None:
        """All of them. The first failure calls the others off; what these have is kept if that may pass."""
        try:
            self._bring(files)
        except errors.ModelFailed as error:
            if not _is_worth_keeping(error):
                self._discard(files)
            raise

    def _discard(self, files: Sequence[values.SourceFile]) -> None:
        self._halt.set()
        for file in files:
            # Who else is about to fetch the file has it, and sees to it.
            with contextlib.suppress(errors.Stopped), self._store.fetching(self._uri, file, self._halt):
                self._store.discard(self._uri, file)

    def _bring(self, files: Sequence[values.SourceFile]) -> None:
        self._together(functools.partial(self._alone, file, self._small) for file in files if _is_small(file))
        for file in files:
            if not _is_small(file):
                self._alone(file, self._big)

    def _alone(self, file: values.SourceFile, bring: Callable[[values.SourceFile], None]) -> None:
        with _as_failure(file), self._store.fetching(self._uri, file, self._halt):
            # Somebody else may have fetched it while this one waited for the lock.
            if self._store.find(self._uri, file):
                self._told.found(file.size_bytes)
                return
            try:
                bring(file)
            except errors.ModelFailed as error:
                if not _is_worth_keeping(error):
                    self._store.discard(self._uri, file)
                raise

    def _small(self, file: values.SourceFile) -> None:
        with self._store.partial(self._uri, file) as into:
            try:
                for span in spans.missing(file.size_bytes, into.here()):
                    self._reader.read(file, into, span)
            except port.Unranged:
                self._reader.read_whole(file, into)
            self._commit(file, into, hashing.of(into.descriptor, file.size_bytes))

    def _big(self, file: values.SourceFile) -> None:
        with self._store.partial(self._uri, file) as into:
            self._told.found(sum(each.size_bytes for each in into.here()))
            follower = hashing.Follower(into)
            try:
                self._stretches(file, into)
                sha256 = follower.result()
            finally:
                follower.cancel()
            self._commit(file, into, sha256)

    def _stretches(self, file: values.SourceFile, into: partial_file.Partial) -> None:
        missing = list(spans.cut(spans.missing(file.size_bytes, into.here()), reading.SPAN_BYTES))
        if not missing:
            return
        try:
            # The first tells whether the store gives stretches at all.
            self._reader.read(file, into, missing[0])
        except port.Unranged:
            self._reader.read_whole(file, into)
            return
        self._together(functools.partial(self._reader.read, file, into, span) for span in missing[1:])

    def _commit(self, file: values.SourceFile, into: partial_file.Partial, sha256: str) -> None:
        if file.sha256 and sha256 != file.sha256:
            raise errors.ModelFailed(
                "SourceChanged", f"the bytes of {file.path!r} are not those that were first fetched"
            )
        self._store.commit(self._uri, file, into, sha256)

    def _together(self, works: Iterable[Callable[[], None]]) -> None:
        under_way = [self._pool.submit(self._unless_halted, work) for work in works]
        _done, left = concurrent.futures.wait(under_way, return_when=concurrent.futures.FIRST_EXCEPTION)
        concurrent.futures.wait(left)
        failures = [failure for each in under_way if (failure := each.exception())]
        # What the others ended with because of the first is not worth telling.
        for failure in sorted(failures, key=lambda each: isinstance(each, errors.Stopped)):
            raise failure

    def _unless_halted(self, work: Callable[[], None]) -> None:
        if self._halt.is_set():
            raise errors.Stopped
        try:
            work()
        except BaseException:
            self._halt.set()
            raise


def _is_worth_keeping(error: errors.ModelFailed) -> bool:
    """Whether what has come so far may be gone on with. On a full disk it takes the room of others."""
    return error.failure.retryable and error.failure.reason not in cache_store.NO_ROOM_REASONS


def _is_small(file: values.SourceFile) -> bool:
    return file.size_bytes <= reading.SPAN_BYTES


class _Halt(threading.Event):
    """Set by the first failure, or when the fetch is called off."""

    def __init__(self, called_off: threading.Event) -> None:
        super().__init__()
        self._called_off = called_off

    def is_set(self) -> bool:
        return super().is_set() or self._called_off.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        end_s = None if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (end_s is None or time.monotonic() < end_s):
            super().wait(_WATCH_S if end_s is None else max(min(_WATCH_S, end_s - time.monotonic()), 0.0))
        return self.is_set()


@contextlib.contextmanager
def _as_failure(file: values.SourceFile | None = None) -> Iterator[None]:
    """No error of the operating system leaves without a word that can be reported."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        what = repr(file.path) if file else "the model"
        raise errors.ModelFailed(
            "CacheUnusable", f"{what} could not be put into the model cache: {reason}", retryable=True
        ) from error
