"""Traces to files: JSON arrays, written as they come by a thread of their own.

A file is written beside its name and gets the name once it is whole. Where the disk is too slow or too full, traces are
lost, never requests; how many were is logged.
"""

from __future__ import annotations

import dataclasses
import pathlib
import queue
import threading
from typing import IO, Any

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
    empty: bool = True
    file: IO[bytes] | None = None
    final: pathlib.Path | None = None


class Writer:
    """`write` and `finish` never block; `close` waits for what is left."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Batch, trace.Trace | None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = self._bytes = self._lost = 0
        self._index = 0
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
                log.warning("trace.not_written", file=str(batch.path), reason=str(error))
                self._give_up(batch)
        for batch in tuple(self._open):
            try:
                self._end(batch)
            except OSError as error:
                log.warning("trace.not_written", file=str(batch.path), reason=str(error))

    def _append(self, batch: Batch, each: trace.Trace) -> None:
        with self._lock:
            self._waiting -= 1
            self._bytes -= each.size_bytes
            lost, self._lost = self._lost, 0
        if lost:
            log.warning("trace.lost", count=lost, reason="traces come faster than they can be written")
        content = b",".join(orjson.dumps(record) for record in records(each))
        if batch.file is None:
            self._begin(batch)
        assert batch.file is not None
        batch.file.write((b"" if batch.empty else b",") + content)
        batch.empty = False
        # The traces of steps belong to that of their ensemble.
        batch.written += not each.parent_id
        if batch.most and batch.written >= batch.most:
            self._end(batch)

    def _begin(self, batch: Batch) -> None:
        final = batch.path
        if batch.indexed:
            final = batch.path.with_name(f"{batch.path.name}.{self._index}")
            self._index += 1
        batch.final = final
        batch.file = final.with_name(f"{final.name}.part").open("wb")
        self._open[batch] = None
        batch.file.write(b"[")

    def _end(self, batch: Batch) -> None:
        file, final = batch.file, batch.final
        if file is None or final is None:
            return
        with file:
            file.write(b"]")
        pathlib.Path(file.name).replace(final)
        self._forget(batch)

    def _give_up(self, batch: Batch) -> None:
        if batch.file is not None:
            try:
                batch.file.close()
            except OSError:
                log.debug("trace.not_closed", file=str(batch.path))
        self._forget(batch)

    def _forget(self, batch: Batch) -> None:
        batch.file = batch.final = None
        batch.written = 0
        batch.empty = True
        self._open.pop(batch, None)


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
