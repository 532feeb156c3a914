"""One execution: requests become feeds, the model runs, its outputs become answers.

A single request is never copied on its way in; several are joined in one copy. On the way out every answer is a slice
of the batch's memory. What lies in shared memory is copied from there before the model runs, and written there before
the answer leaves. A failing model fails its batch, a request that cannot be read or answered fails alone.
"""

from __future__ import annotations

import dataclasses
import math
import time
import types
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gpu_worker.engine import (
    border,
    classification,
    delivery,
    pace,
    ragged,
    spec,
    statistics,
    tensors,
    validation,
    work,
)
from gpu_worker.runtime import port

_NO_DATA: Mapping[int, border.Buffer] = types.MappingProxyType({})


@dataclasses.dataclass(slots=True)
class Request:
    """A request that has been read: `data` is what lay in shared memory, `strings` each BYTES input, by position."""

    work: work.Work
    data: Mapping[int, border.Buffer]
    strings: dict[int, tensors.Array]

    def bytes_of(self, index: int, tensor: border.Tensor) -> border.Buffer:
        return self.data[index] if tensor.region is not None else tensor.data


@dataclasses.dataclass(slots=True)
class Outcome:
    """The answers in the order of the requests, and what they took."""

    answers: list[delivery.Answer]
    timings: statistics.Timings
    cost: pace.Cost


def readable(
    model: spec.ModelSpec, works: Sequence[work.Work]
) -> tuple[list[Request], list[tuple[work.Work, delivery.Answer]]]:
    """The requests that can run, and the others with what is wrong with them."""
    positions = [index for index, tensor in enumerate(model.inputs) if tensor.datatype == "BYTES"]
    requests: list[Request] = []
    refused: list[tuple[work.Work, delivery.Answer]] = []
    for each in works:
        try:
            requests.append(_read(each, positions))
        except border.InferenceError as error:
            refused.append((each, validation.with_id(error, each.request.id)))
    return requests, refused


def run(program: port.Program, model: spec.ModelSpec, requests: Sequence[Request], started_ns: int) -> Outcome:
    """Runs the requests, which began to be read at `started_ns` of the monotonic clock.

    Raises RunFailed where the model fails.
    """
    feeds = dict(_feeds(model, requests))
    names = _wanted(model, requests)
    gathered_ns, busy_ns = time.monotonic_ns(), time.thread_time_ns()
    arrays = program.run(feeds, names)
    ran_ns, busy_ns = time.monotonic_ns(), time.thread_time_ns() - busy_ns
    columns = {name: _column(model, name, array, requests) for name, array in zip(names, arrays, strict=True)}
    answers = list(_answers(model, columns, requests))
    timings = statistics.Timings(gathered_ns - started_ns, ran_ns - gathered_ns, time.monotonic_ns() - ran_ns)
    moved_bytes = sum(array.nbytes for array in feeds.values()) + sum(array.nbytes for array in arrays)
    return Outcome(answers, timings, pace.Cost(busy_ns, moved_bytes))


def _read(each: work.Work, positions: Sequence[int]) -> Request:
    """Takes the BYTES inputs apart, which are at `positions`. Raises InferenceError."""
    shared = each.shared_inputs
    data = {index: part.read() for index, part in shared.items()} if shared else _NO_DATA
    return Request(each, data, _strings(each, data, positions))


def _strings(each: work.Work, data: Mapping[int, border.Buffer], positions: Sequence[int]) -> dict[int, tensors.Array]:
    found = {}
    for index in positions:
        tensor = each.inputs[index]
        if tensor is not None:
            raw = tensor.data if tensor.region is None else data[index]
            found[index] = tensors.decode_bytes(raw, tensor.shape, tensor.name)
    return found


def _feeds(model: spec.ModelSpec, requests: Sequence[Request]) -> Iterator[tuple[str, tensors.Array]]:
    for index, tensor in enumerate(model.inputs):
        parts = [(each, part) for each in requests if (part := each.work.inputs[index]) is not None]
        if not parts:
            continue
        if tensor.datatype == "BYTES":
            strings = [request.strings[index] for request in requests]
            if tensor.ragged:
                strings = [each.reshape(-1) for each in strings]
            array = strings[0] if len(strings) == 1 else np.concatenate(strings)
        else:
            shapes = [(math.prod(part.shape),) if tensor.ragged else part.shape for _, part in parts]
            array = _joined([each.bytes_of(index, part) for each, part in parts], shapes, tensor.type)
        yield tensor.name, array if tensor.reshape is None else inward(model, tensor, array)
    for wanted in model.batch_inputs:
        yield from made(wanted, [_shape(each, wanted.source) for each in requests])


def made(wanted: ragged.BatchInput, shapes: Sequence[tuple[int, ...]]) -> Iterator[tuple[str, tensors.Array]]:
    """A batch input under each of its names."""
    array = ragged.made(wanted, shapes)
    for name in wanted.names:
        yield name, array


def _shape(request: Request, name: str) -> tuple[int, ...]:
    """Of an input that no request leaves out."""
    return next(each.shape for each in request.work.inputs if each is not None and each.name == name)


def inward(model: spec.ModelSpec, tensor: spec.TensorSpec, array: tensors.Array) -> tensors.Array:
    """The input in the model's own shape; shares its memory."""
    batch, dims = _split(model, array.shape)
    return array.reshape((*batch, *tensor.inward(dims)))


def _outward(model: spec.ModelSpec, tensor: spec.TensorSpec, array: tensors.Array) -> tensors.Array:
    """The output in the shape that clients see; shares its memory."""
    batch, dims = _split(model, array.shape)
    shape = tensor.outward(dims)
    if shape is None:
        expected = [*(-1 for _ in batch), *(tensor.reshape or ())]
        raise port.RunFailed(f"output '{tensor.name}' has shape {list(array.shape)}, but its reshape is {expected}")
    # Clients know no scalars: one is a tensor of one element.
    return array.reshape((*batch, *shape) or (1,))


def _split(model: spec.ModelSpec, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The batch dimension, where there is one, and the others."""
    return (shape[:1], shape[1:]) if model.max_batch_size else ((), shape)


def _joined(
    data: Sequence[border.Buffer], shapes: Sequence[tuple[int, ...]], datatype: tensors.Datatype
) -> tensors.Array:
    if len(data) == 1:
        return tensors.view(data[0], datatype, shapes[0])
    items = sum(shape[0] for shape in shapes)
    # Row-major tensors of equal item shape follow each other byte for byte: one join does for all.
    return tensors.view(b"".join(data), datatype, (items, *shapes[0][1:]))


def _wanted(model: spec.ModelSpec, requests: Sequence[Request]) -> list[str]:
    """The outputs that any of the requests asks for, in the model's order."""
    wanted: set[str] = set()
    for request in requests:
        if request.work.outputs is None:
            return list(model.outputs_by_name)
        wanted.update(output.name for output in request.work.outputs)
    return [name for name in model.outputs_by_name if name in wanted]


@dataclasses.dataclass(slots=True)
class _Column:
    """One output of the whole batch; `wire` is its memory, None for strings."""

    tensor: spec.TensorSpec
    array: tensors.Array
    wire: border.Buffer | None
    item_bytes: int
    alone: bool

    @classmethod
    def of(
        cls, model: spec.ModelSpec, tensor: spec.TensorSpec, array: tensors.Array, requests: Sequence[Request]
    ) -> _Column:
        items = sum(request.work.size for request in requests)
        if model.max_batch_size and (not array.shape or array.shape[0] != items):
            raise port.RunFailed(
                f"output '{tensor.name}' has shape {list(array.shape)}, but the batch has {items} items"
            )
        if tensor.reshape is not None or not array.shape:
            array = _outward(model, tensor, array)
        wire = None if array.dtype == object else tensors.to_wire(array)
        item_bytes = 0 if wire is None else tensors.size_bytes(wire) // items
        return cls(tensor, array, wire, item_bytes, alone=len(requests) == 1)

    def part(self, start: int, stop: int) -> border.Tensor:
        """The answer to a request that holds these items."""
        if self.alone:
            data = tensors.to_wire(self.array) if self.wire is None else self.wire
            return border.Tensor(self.tensor.name, self.tensor.datatype, self.array.shape, data)
        shape = (stop - start, *self.array.shape[1:])
        if self.wire is None:
            data = tensors.to_wire(self.array[start:stop])
        else:
            data = self.wire[start * self.item_bytes : stop * self.item_bytes]
        return border.Tensor(self.tensor.name, self.tensor.datatype, shape, data)

    def classes(self, start: int, stop: int, count: int, *, batched: bool) -> border.Tensor:
        array = self.array if self.alone else self.array[start:stop]
        found = classification.best(array, count, self.tensor.labels, batched=batched)
        return border.Tensor(self.tensor.name, "BYTES", found.shape, tensors.encode_bytes(found))


@dataclasses.dataclass(slots=True)
class _Scattered:
    """An output of all elements in a row; `places` tell by a request's first item where its share begins, and its shape."""

    tensor: spec.TensorSpec
    array: tensors.Array
    places: Mapping[int, tuple[int, tuple[int, ...]]]

    @classmethod
    def of(cls, tensor: spec.TensorSpec, array: tensors.Array, requests: Sequence[Request]) -> _Scattered:
        places: dict[int, tuple[int, tuple[int, ...]]] = {}
        begin = start = 0
        for each in requests:
            shape = ragged.scattered(tensor.dims, _shape(each, tensor.source))
            places[start] = begin, shape
            begin += math.prod(shape)
            start += each.work.size
        if array.size != begin:
            raise port.RunFailed(
                f"output '{tensor.name}' has {array.size} elements, but '{tensor.source}' asks for {begin}"
            )
        return cls(tensor, array.reshape(-1), places)

    def part(self, start: int, stop: int) -> border.Tensor:  # noqa: ARG002 - as of any other column
        share = self._share(start)
        return border.Tensor(self.tensor.name, self.tensor.datatype, share.shape, tensors.to_wire(share))

    def classes(self, start: int, stop: int, count: int, *, batched: bool) -> border.Tensor:  # noqa: ARG002 - the same
        found = classification.best(self._share(start), count, self.tensor.labels, batched=batched)
        return border.Tensor(self.tensor.name, "BYTES", found.shape, tensors.encode_bytes(found))

    def _share(self, start: int) -> tensors.Array:
        begin, shape = self.places[start]
        return self.array[begin : begin + math.prod(shape)].reshape(shape)


def _column(
    model: spec.ModelSpec, name: str, array: tensors.Array, requests: Sequence[Request]
) -> _Column | _Scattered:
    tensor = model.outputs_by_name[name]
    if array.dtype != tensor.type.dtype:
        raise port.RunFailed(f"output '{name}' has data-type {array.dtype}, expected {tensor.datatype}")
    if tensor.source:
        return _Scattered.of(tensor, array, requests)
    return _Column.of(model, tensor, array, requests)


def _answers(
    model: spec.ModelSpec, columns: Mapping[str, _Column | _Scattered], requests: Sequence[Request]
) -> Iterator[delivery.Answer]:
    start = 0
    everything = list(columns.values())
    for request in requests:
        each = request.work
        stop = start + each.size
        try:
            if each.outputs is None:
                outputs = [column.part(start, stop) for column in everything]
            else:
                outputs = [_output(model, columns[output.name], output, each, start) for output in each.outputs]
            yield border.InferResponse(model.name, model.version, each.request.id, outputs)
        except border.InferenceError as error:
            yield validation.with_id(error, each.request.id)
        start = stop


def _output(
    model: spec.ModelSpec, column: _Column | _Scattered, wanted: border.RequestedOutput, each: work.Work, start: int
) -> border.Tensor:
    """The output of the request whose items begin at `start`; one that goes to shared memory is there afterwards."""
    stop = start + each.size
    if wanted.classification:
        return column.classes(start, stop, wanted.classification, batched=bool(model.max_batch_size))
    tensor = column.part(start, stop)
    target = each.shared_outputs.get(wanted.name)
    if target is None:
        return tensor
    target.write(tensor.name, tensor.data)
    return border.Tensor(tensor.name, tensor.datatype, tensor.shape, b"", target.place)
