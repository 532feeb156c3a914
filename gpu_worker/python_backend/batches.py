"""The batches and requests that are with one process, and what becomes of them.

Decides how a process's messages become responses. What is with a process is answered once, whether by it or because it
ended. Must never trust what a process says more than it must: a message that names nothing that is there is passed over.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpu_worker.ipc import link
from gpu_worker.python_backend import asking, wire
from gpu_worker.runtime import port

Done = Callable[[port.Performed], None]


@dataclasses.dataclass(slots=True, eq=False)
class Batch:
    """Requests that were given together, under `numbers`."""

    number: int
    numbers: range
    queries: Sequence[port.Query]
    done: Done


class Batches:
    """`begin` is called from any thread, the others on the event loop."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._lock = threading.Lock()
        self._last = 0
        self._running: dict[int, Batch] = {}
        self._open: dict[int, port.Query] = {}

    @property
    def idle(self) -> bool:
        return not (self._running or self._open)

    def begin(self, queries: Sequence[port.Query], done: Done) -> Batch:
        """Takes a batch in; it is to be sent."""
        with self._lock:
            first, self._last = self._last + 1, self._last + len(queries)
            batch = Batch(first, range(first, self._last + 1), queries, done)
            self._open.update(zip(batch.numbers, queries, strict=True))
            self._running[first] = batch
            return batch

    def forget(self, batch: Batch) -> bool:
        """Takes back a batch that was not sent; False where it was lost meanwhile."""
        for number in batch.numbers:
            self._closed(number)
        return self._running.pop(batch.number, None) is not None

    def is_running(self, number: int) -> bool:
        return number in self._running

    def executed(self, message: link.Message) -> None:
        """The model has returned from a batch."""
        batch = self._running.pop(message.number, None)
        if batch is None:
            return
        performed = self._performed(message, len(batch.queries))
        if performed.failure is not None:
            for number in batch.numbers:
                self._closed(number)
        for number, response in zip(batch.numbers, performed.responses, strict=False):
            if response is not None:
                self._closed(number)
        batch.done(performed)

    def responded(self, message: link.Message) -> None:
        """The model has told a response of one request."""
        query = self._open.get(message.number)
        if query is None:
            return
        final = bool(message.flags & wire.FINAL)
        head = wire.unpack(message.head)
        response: port.Response | None = _response(head, message.buffers)
        if final:
            self._closed(message.number)
            if isinstance(response, port.Outputs) and not response.tensors:
                response = None
        query.answer(response, final=final)

    def lost(self, reason: port.Refused) -> None:
        """The process has ended: whatever is with it fails."""
        with self._lock:
            batches, self._running = self._running, {}
            queries, self._open = self._open, {}
        for query in queries.values():
            query.heed(None)
        inside = {number for batch in batches.values() for number in batch.numbers}
        for batch in batches.values():
            batch.done(port.Performed(failure=reason))
        for number, query in queries.items():
            if number not in inside:
                query.answer(reason, final=True)

    def _closed(self, number: int) -> None:
        query = self._open.pop(number, None)
        if query is not None:
            query.heed(None)

    def _performed(self, message: link.Message, count: int) -> port.Performed:
        head = wire.unpack(message.head)
        if "error" in head:
            words = f"Failed to process the request(s) for model '{self._instance}', message: {head['error']}"
            return port.Performed(failure=port.Refused(words))
        responses: list[port.Response | None] = []
        at = 0
        for answer in head["answers"][:count]:
            if answer is None:
                responses.append(None)
                continue
            end = at + len(answer.get("outputs", ()))
            responses.append(_response(answer, message.buffers[at:end]))
            at = end
        return port.Performed(responses)


def message(batch: Batch, cancel: Callable[[int], None]) -> link.Message:
    """The batch as the process gets it; `cancel` is called with the number of a request that nobody waits for any more."""
    heads: list[dict[str, Any]] = []
    buffers: list[wire.Buffer] = []
    for number, query in zip(batch.numbers, batch.queries, strict=True):
        heads.append(
            {
                "number": number,
                "id": query.id,
                "parameters": dict(query.parameters),
                "outputs": query.outputs,
                "inputs": [(each.name, each.datatype, each.shape) for each in query.inputs],
            }
        )
        buffers += [each.data for each in query.inputs]
        query.heed(functools.partial(cancel, number))
    return link.Message(wire.Kind.EXECUTE, batch.number, wire.pack(heads), buffers)


def _response(head: Mapping[str, Any], buffers: Sequence[wire.Buffer]) -> port.Response:
    if "error" in head:
        code, words = head["error"]
        kind = asking.KINDS[code] if 0 <= code < len(asking.KINDS) else asking.KINDS[1]
        return port.Refused(words, kind.value)
    outputs = [
        port.Given(name, datatype, tuple(shape), data)
        for (name, datatype, shape), data in zip(head["outputs"], buffers, strict=True)
    ]
    return port.Outputs(outputs, head.get("parameters") or {})
