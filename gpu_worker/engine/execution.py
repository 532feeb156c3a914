"""One execution: requests become feeds, the model runs, its outputs become answers.

A single request is never copied on its way in; several are joined in one copy. On the way out every answer is a slice
of the batch's memory. What lies in shared memory is copied from there before the model runs, and written there before
the answer leaves. A failing model fails its batch, a request that cannot be read or answered fails alone.
"""

from __future__ import annotations

import dataclasses
import math
import time
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


@dataclasses.dataclass(slots=True)
class Beside:
    """What goes into the model and comes out of it beside the requests' own tensors.

    `found` are the arrays of `outputs` once it has run. `fillers` are works that fill rows and that nobody waits for.
    """

    feeds: Mapping[str, tensors.Array]
    outputs: Sequence[str] = ()
    fillers: frozenset[work.Work] = frozenset()
    found: Sequence[tensors.Array] = ()


@dataclasses.dataclass(slots=True)
class Outcome:
    """The answers in the order of the requests, and what they took."""

    answers: list[delivery.Answer]
    timings: statistics.Timings
    cost: pace.Cost


def readable(
    model: spec.ModelSpec, works: Sequence[work.Work]
) -> tuple[Sequence[work.Work], list[tuple[work.Work, delivery.Answer]]]:
    """Reads what is not read yet: gives the requests that can run, and the others with what is wrong with them."""
    if not model.strings and not any([each.shared_inputs for each in works]):  # noqa: C419 - a list costs half
        return works, []
    found: list[work.Work] = []
    refused: list[tuple[work.Work, delivery.Answer]] = []
    for each in works:
        try:
            _read(model, each)
            found.append(each)
        except border.InferenceError as error:
            refused.append((each, validation.with_id(error, each.request.id)))
    return found, refused


def run(
    program: port.Program,
    model: spec.ModelSpec,
    works: Sequence[work.Work],
    started_ns: int,
    beside: Beside | None = None,
) -> Outcome:
    """Runs the requests, which began to be read at `started_ns` of the monotonic clock.

    Raises RunFailed where the model fails.
    """
    feeds = dict(_feeds(model, works))
    names = asked = _wanted(model, works)
    if beside is not None:
        feeds.update(beside.feeds)
        asked = list(dict.fromkeys((*names, *beside.outputs)))
    gathered_ns, busy_ns = time.monotonic_ns(), time.thread_time_ns()
    arrays = program.run(feeds, asked)
    ran_ns, busy_ns = time.monotonic_ns(), time.thread_time_ns() - busy_ns
    columns = {name: _column(model, name, array, works) for name, array in zip(names, arrays, strict=False)}
    if beside is not None:
        beside.found = _beside(model, dict(zip(asked, arrays, strict=True)), beside.outputs, len(works))
    answers = list(_answers(model, columns, works))
    timings = statistics.Timings(gathered_ns - started_ns, ran_ns - gathered_ns, time.monotonic_ns() - ran_ns)
    moved_bytes = sum(array.nbytes for array in feeds.values()) + sum(array.nbytes for array in arrays)
    return Outcome(answers, timings, pace.Cost(busy_ns, moved_bytes))


def filler(model: spec.ModelSpec, like: work.Work) -> work.Work:
    """A work of the same shapes that is all zeros and asks for nothing."""
    zeros = [
        None if each is None else _zeros(wanted, each) for wanted, each in zip(model.inputs, like.inputs, strict=True)
    ]
    strings = {
        index: np.full(each.shape, "", object) for index, each in enumerate(zeros) if each and index in model.strings
    }
    return dataclasses.replace(
        like,
        inputs=tuple(zeros),
        outputs=(),
        shared_inputs=work.NOTHING,
        shared_outputs=work.NOTHING,
        trace=None,
        copied=None,
        strings=strings,
    )


def _zeros(wanted: spec.TensorSpec, like: border.Tensor) -> border.Tensor:
    size_bytes = tensors.element_count(like.shape) * wanted.type.item_bytes
    return border.Tensor(like.name, like.datatype, like.shape, bytes(size_bytes))


def _beside(
    model: spec.ModelSpec, arrays: Mapping[str, tensors.Array], names: Sequence[str], rows: int
) -> Sequence[tensors.Array]:
    """What the model gave under these names. Raises RunFailed where that is not a row for each work."""
    for name in names:
        shape = arrays[name].shape
        if model.max_batch_size and shape[:1] != (rows,):
            raise port.RunFailed(f"output '{name}' has shape {list(shape)}, but the batch has {rows} items")
    return [arrays[name] for name in names]


def _read(model: spec.ModelSpec, each: work.Work) -> None:
    """Copies what lies in shared memory, and takes the BYTES inputs apart. Raises InferenceError."""
    if each.shared_inputs:
        each.copied = {index: part.read() for index, part in each.shared_inputs.items()}
    each.strings = {
        index: tensors.decode_bytes(each.bytes_of(index), tensor.shape, tensor.name)
        for index in model.strings
        if (tensor := each.inputs[index]) is not None
    }


def _feeds(model: spec.ModelSpec, works: Sequence[work.Work]) -> Iterator[tuple[str, tensors.Array]]:
    for index, tensor in enumerate(model.inputs):
        givers = works if not tensor.optional else [each for each in works if each.inputs[index] is not None]
        if not givers:
            continue
        array = _strings(tensor, index, givers) if tensor.datatype == "BYTES" else _joined(tensor, index, givers)
        yield tensor.name, array if tensor.reshape is None else inward(model, tensor, array)
    for wanted in model.batch_inputs:
        yield from made(wanted, [_shape(each, wanted.source) for each in works])


def _strings(tensor: spec.TensorSpec, index: int, works: Sequence[work.Work]) -> tensors.Array:
    """A BYTES input of all of these requests, which have it."""
    strings = [each.strings[index] for each in works if each.strings is not None]
    if tensor.ragged:
        strings = [each.reshape(-1) for each in strings]
    return strings[0] if len(strings) == 1 else np.concatenate(strings)


def _joined(tensor: spec.TensorSpec, index: int, works: Sequence[work.Work]) -> tensors.Array:
    """An input of fixed-size elements of all of these requests, which have it."""
    shapes = [part.shape for each in works if (part := each.inputs[index]) is not None]
    if tensor.ragged:
        shapes = [(math.prod(shape),) for shape in shapes]
    if len(works) == 1:
        return tensors.view(works[0].bytes_of(index), tensor.type, shapes[0])
    # Row-major tensors of equal item shape follow each other byte for byte: one join does for all.
    data = b"".join([each.bytes_of(index) for each in works])
    return tensors.view(data, tensor.type, (sum([shape[0] for shape in shapes]), *shapes[0][1:]))


def made(wanted: ragged.BatchInput, shapes: Sequence[tuple[int, ...]]) -> Iterator[tuple[str, tensors.Array]]:
    """A batch input under each of its names."""
    array = ragged.made(wanted, shapes)
    for name in wanted.names:
        yield name, array


def _shape(each: work.Work, name: str) -> tuple[int, ...]:
    """Of an input that no request leaves out."""
    return next(part.shape for part in each.inputs if part is not None and part.name == name)


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


def _wanted(model: spec.ModelSpec, works: Sequence[work.Work]) -> list[str]:
    """The outputs that any of the requests asks for, in the model's order."""
    wanted: set[str] = set()
    for each in works:
        if each.outputs is None:
            return list(model.outputs_by_name)
        wanted.update(output.name for output in each.outputs)
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
        cls, model: spec.ModelSpec, tensor: spec.TensorSpec, array: tensors.Array, works: Sequence[work.Work]
    ) -> _Column:
        items = sum([each.size for each in works])
        if model.max_batch_size and (not array.shape or array.shape[0] != items):
            raise port.RunFailed(
                f"output '{tensor.name}' has shape {list(array.shape)}, but the batch has {items} items"
            )
        if tensor.reshape is not None or not array.shape:
            array = _outward(model, tensor, array)
        wire = None if array.dtype == object else tensors.to_wire(array)
        item_bytes = 0 if wire is None else tensors.size_bytes(wire) // items
        return cls(tensor, array, wire, item_bytes, alone=len(works) == 1)

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
    def of(cls, tensor: spec.TensorSpec, array: tensors.Array, works: Sequence[work.Work]) -> _Scattered:
        places: dict[int, tuple[int, tuple[int, ...]]] = {}
        begin = start = 0
        for each in works:
            shape = ragged.scattered(tensor.dims, _shape(each, tensor.source))
            places[start] = begin, shape
            begin += math.prod(shape)
            start += each.size
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


def _column(model: spec.ModelSpec, name: str, array: tensors.Array, works: Sequence[work.Work]) -> _Column | _Scattered:
    tensor = model.outputs_by_name[name]
    if array.dtype != tensor.type.dtype:
        raise port.RunFailed(f"output '{name}' has data-type {array.dtype}, expected {tensor.datatype}")
    if tensor.source:
        return _Scattered.of(tensor, array, works)
    return _Column.of(model, tensor, array, works)


def _answers(
    model: spec.ModelSpec, columns: Mapping[str, _Column | _Scattered], works: Sequence[work.Work]
) -> Iterator[delivery.Answer]:
    start = 0
    everything = list(columns.values())
    for each in works:
        stop = start + each.size
        try:
            if each.outputs is None:
                outputs = [column.part(start, stop) for column in everything]
            else:
                outputs = [_output(model, columns[output.name], output, each, start) for output in each.outputs]
            yield border.InferResponse(model.name, model.version, each.request.id, outputs, border.NO_PARAMETERS)
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
