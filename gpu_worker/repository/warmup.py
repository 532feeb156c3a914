"""Warm-up samples of a model: what its instances run before it is ready.

Decides what is fed; reads only files of the model's `warmup` folder. A sample that no request could be is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import structlog

from gpu_worker.engine import border, execution, spec, tensors
from gpu_worker.repository import completion, layout
from protos.inference.v2 import model_config_pb2

FOLDER = "warmup"
_MAX_RUNS = 10_000
_MAX_BYTES = 2**31

_Input = model_config_pb2.ModelWarmup.Input

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """What to feed, and how often, on each instance: `size` items."""

    name: str
    feeds: Mapping[str, tensors.Array]
    runs: int
    size: int


def samples(
    config: model_config_pb2.ModelConfig, model: spec.ModelSpec, directory: layout.ModelDirectory
) -> list[Sample]:
    """The samples in their order. Raises InferenceError INVALID_ARGUMENT naming the sample that cannot be."""
    found = []
    for each in config.model_warmup:
        if each.count > _MAX_RUNS:
            raise _invalid(each.name, f"count must be at most {_MAX_RUNS}, not {each.count}")
        if each.batch_size > max(1, model.max_batch_size):
            most = max(1, model.max_batch_size)
            raise _invalid(each.name, f"batch_size must be at most {most}, not {each.batch_size}")
        if not each.batch_size:
            log.info("warmup.skipped", model=model.name, sample=each.name, reason="batch_size is 0")
            continue
        feeds = {name: _fed(each, name, wanted, model, directory) for name, wanted in sorted(each.inputs.items())}
        for wanted in model.batch_inputs:
            if wanted.source not in feeds:
                raise _invalid(each.name, f"input '{wanted.source}' must be given: other inputs are made from it")
            feeds.update(execution.made(wanted, [(each.batch_size, *each.inputs[wanted.source].dims)]))
        found.append(Sample(each.name, feeds, max(1, each.count), each.batch_size))
    return found


def _fed(
    sample: model_config_pb2.ModelWarmup,
    name: str,
    wanted: _Input,
    model: spec.ModelSpec,
    directory: layout.ModelDirectory,
) -> tensors.Array:
    tensor = model.inputs_by_name.get(name)
    if tensor is None:
        raise _invalid(sample.name, f"'{name}' is none of the model's inputs {sorted(model.inputs_by_name)}")
    if completion.datatype(wanted.data_type) != tensor.datatype:
        given = completion.datatype(wanted.data_type)
        raise _invalid(sample.name, f"data_type of input '{name}' is {given}, the model has {tensor.datatype}")
    dims = tuple(wanted.dims)
    if any(dim < 0 for dim in dims) or not tensor.admits(dims):
        raise _invalid(
            sample.name, f"dims {list(dims)} of input '{name}' must fit {list(tensor.dims)} and not be variable"
        )
    shape = ((sample.batch_size,) if model.max_batch_size else ()) + dims
    if math.prod(shape) * max(1, tensor.type.item_bytes) > _MAX_BYTES:
        raise _invalid(sample.name, f"input '{name}' of shape {list(shape)} is larger than {_MAX_BYTES} bytes")
    array = _values(sample, name, wanted, tensor.type, shape, directory)
    if tensor.ragged:
        return array.reshape(-1)
    return array if tensor.reshape is None else execution.inward(model, tensor, array)


def _values(
    sample: model_config_pb2.ModelWarmup,
    name: str,
    wanted: _Input,
    datatype: tensors.Datatype,
    shape: tuple[int, ...],
    directory: layout.ModelDirectory,
) -> tensors.Array:
    match wanted.WhichOneof("input_data_type"):
        case "zero_data":
            return _zeros(datatype, shape)
        case "random_data":
            return _random(datatype, shape)
        case "input_data_file":
            return _from_file(sample, name, wanted.input_data_file, datatype, shape, directory)
    raise _invalid(sample.name, f"input '{name}' must have zero_data, random_data or input_data_file")


def _zeros(datatype: tensors.Datatype, shape: tuple[int, ...]) -> tensors.Array:
    return np.full(shape, "", dtype=object) if datatype.name == "BYTES" else np.zeros(shape, datatype.dtype)


def _random(datatype: tensors.Datatype, shape: tuple[int, ...]) -> tensors.Array:
    """The same values at every load."""
    generator = np.random.default_rng(0)
    if datatype.name == "BYTES":
        return np.full(shape, "warm-up", dtype=object)
    if datatype.dtype.kind == "f":
        return generator.random(shape).astype(datatype.dtype)
    return generator.integers(0, 2 if datatype.name == "BOOL" else 127, shape).astype(datatype.dtype)


def _from_file(
    sample: model_config_pb2.ModelWarmup,
    name: str,
    file: str,
    datatype: tensors.Datatype,
    shape: tuple[int, ...],
    directory: layout.ModelDirectory,
) -> tensors.Array:
    """The file's tensor in its wire form: that of one item, repeated for the batch, or that of the whole batch."""
    path = layout.inside(directory.inside(FOLDER), file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _invalid(sample.name, f"input_data_file of input '{name}' cannot be read: {error}") from None
    items = sample.batch_size if len(shape) > len(sample.inputs[name].dims) else 1
    if datatype.item_bytes:
        whole_bytes = math.prod(shape) * datatype.item_bytes
        if len(data) * items == whole_bytes:
            data *= items
        if len(data) != whole_bytes:
            raise _invalid(
                sample.name,
                f"input_data_file of input '{name}' has {len(data)} bytes, expected {whole_bytes // items} for an item"
                f" or {whole_bytes} for {items}",
            )
        return tensors.view(data, datatype, shape)
    return _strings(sample, name, data, shape, items)


def _strings(
    sample: model_config_pb2.ModelWarmup, name: str, data: bytes, shape: tuple[int, ...], items: int
) -> tensors.Array:
    try:
        return tensors.decode_bytes(data, shape, name)
    except border.InferenceError as error:
        try:
            return tensors.decode_bytes(data * items, shape, name)
        except border.InferenceError:
            raise _invalid(sample.name, f"input_data_file of input '{name}': {error.message}") from None


def _invalid(sample: str, message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, f"model_warmup '{sample}': {message}")
