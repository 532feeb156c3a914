"""Traces to files: JSON arrays, written as they come by a thread of their own.

A file is written beside its name and gets the name once it is full; what it holds is a whole array after each trace.
Where the disk is too slow or too full, traces are lost, never requests: what was written before stays, how many were
lost is logged, more and more rarely while it goes on.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import queue
import threading
from typing import Any

import orjson
import structlog

from gpu_worker.engine import border, tensors, trace

log = structlog.get_logger(__name__)

_MOST_WAITING = 4096
_MOST_BYTES = 256 * 2**20


@dataclasses.dataclass(slots=True, eq=False)
class Batch:
    """Traces that share a file: `most` of them, 0 for as many as come. Indexed files have their number as a suffix."""

    path: pathlib.Path
    most: int
    indexed: bool
    written: int = 0
    whole_bytes: int = 0
    file: io.FileIO | None = None
    final: pathlib.Path | None = None


class Writer:
    """`write` and `finish` never block; `close` waits for what is left."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Batch, trace.Trace | None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = self._bytes = self._lost = 0
        self._index = 0
        self._missed = self._told = 0
        self._open: dict[Batch, None] = {}
        self._thread: threading.Thread | None = None

    def write(self, batch: Batch, each: trace.Trace) -> None:
        size_bytes = each.size_bytes
        with self._lock:
            if self._waiting >= _MOST_WAITING or self._bytes + size_bytes > _MOST_BYTES:
                self._lost += 1
                return
            self._waiting += 1
            self._bytes += size_bytes
            self._start()
        self._queue.put((batch, each))

    def finish(self, batch: Batch) -> None:
        """Nothing more comes for the batch's file: it gets its name."""
        with self._lock:
            self._start()
        self._queue.put((batch, None))

    def close(self) -> None:
        with self._lock:
            thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (found := self._queue.get()) is not None:
            batch, each = found
            try:
                if each is None:
                    self._end(batch)
                else:
                    self._append(batch, each)
            except Exception as error:  # noqa: BLE001 - whatever a trace holds, the next one is written
                self._miss(1, str(error), batch)
        for batch in tuple(self._open):
            try:
                self._end(batch)
            except OSError as error:
                log.warning("trace.file_not_named", file=str(batch.path), reason=str(error))
        if self._missed > self._told:
            log.warning("trace.lost", count=self._missed)

    def _append(self, batch: Batch, each: trace.Trace) -> None:
        with self._lock:
            self._waiting -= 1
            self._bytes -= each.size_bytes
            lost, self._lost = self._lost, 0
        if lost:
            self._miss(lost, "traces come faster than they can be written", batch)
        content = b",".join(orjson.dumps(record) for record in records(each))
        file = batch.file or self._begin(batch)
        # The bracket that ends the array is written over by what follows it.
        added = (b"," if batch.whole_bytes else b"[") + content + b"]"
        _put(file, batch.whole_bytes, added)
        batch.whole_bytes += len(added) - bool(batch.whole_bytes)
        # The traces of steps belong to that of their ensemble.
        batch.written += not each.parent_id
        if batch.most and batch.written >= batch.most:
            self._end(batch)

    def _begin(self, batch: Batch) -> io.FileIO:
        final = batch.path
        if batch.indexed:
            final = batch.path.with_name(f"{batch.path.name}.{self._index}")
        file = io.FileIO(final.with_name(f"{final.name}.part"), "w")
        self._index += batch.indexed
        batch.file, batch.final = file, final
        self._open[batch] = None
        return file

    def _end(self, batch: Batch) -> None:
        file, final = batch.file, batch.final
        if file is None or final is None:
            return
        batch.file = batch.final = None
        whole_bytes, batch.whole_bytes, batch.written = batch.whole_bytes, 0, 0
        self._open.pop(batch, None)
        with file:
            part = pathlib.Path(os.fsdecode(file.name))
        if whole_bytes:
            part.replace(final)
        else:
            part.unlink(missing_ok=True)

    def _miss(self, count: int, reason: str, batch: Batch) -> None:
        self._missed += count
        if self._missed >= 2 * self._told:
            log.warning("trace.lost", count=self._missed, file=str(batch.path), reason=reason)
            self._told = self._missed


def _put(file: io.FileIO, kept_bytes: int, content: bytes) -> None:
    """Adds all of it or nothing. Its first byte takes the place of the last that is kept, once there is room for the rest."""
    at = max(0, kept_bytes - 1)
    try:
        file.seek(at + 1)
        left = memoryview(content)[1:]
        while left:
            left = left[file.write(left) :]
    except OSError:
        file.truncate(kept_bytes)
        raise
    file.seek(at)
    file.write(content[:1])


def records(each: trace.Trace) -> list[dict[str, Any]]:
    """The elements of a trace, in the form that Triton's tools read."""
    head: dict[str, Any] = {"id": each.id, "model_name": each.model, "model_version": int(each.version)}
    if each.request_id:
        head["request_id"] = each.request_id
    if each.parent_id:
        head["parent_id"] = each.parent_id
    found = [head]
    found += ({"id": each.id, "timestamps": [{"name": name, "ns": at_ns}]} for name, at_ns in each.events)
    found += ({"id": each.id, "activity": activity, "tensor": _tensor(tensor)} for activity, tensor in each.seen)
    return found


def _tensor(tensor: border.Tensor) -> dict[str, str]:
    return {
        "name": tensor.name,
        "data": ",".join(_elements(tensor)),
        "shape": ",".join(map(str, tensor.shape)),
        "dtype": tensor.datatype,
    }


def _elements(tensor: border.Tensor) -> list[str]:
    if tensor.datatype == "BYTES":
        count = tensors.element_count(tensor.shape)
        return [part.decode(errors="replace") for part in tensors.split_bytes(tensor.data, count, tensor.name)]
    array = tensors.view(tensor.data, tensors.DATATYPES[tensor.datatype], (-1,))
    if tensor.datatype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    return [str(value) for value in array.tolist()]
