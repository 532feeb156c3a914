"""Configurations completed from the model itself, and checked against it.

Pure: the model's own inputs and outputs come as values. What is completed is what Triton completes for ONNX models:
nothing in strict mode, nor where both inputs and outputs are written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from gpu_worker.engine import border, shapes
from gpu_worker.repository import batch_io, configuration, numbers, sequence_io
from gpu_worker.runtime import port
from protos.inference.v2 import model_config_pb2

_Declared = model_config_pb2.ModelInput | model_config_pb2.ModelOutput
_DELAY = model_config_pb2.ModelQueuePolicy.DELAY

_PYTHON_SILENT = "the model's auto_complete_config does not add them"
datatype = configuration.datatype
_BACKEND_KEYS = {"default-max-batch-size", "intra_op_thread_count", "inter_op_thread_count"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What holds for every model that does not say otherwise."""

    max_batch_size: int = 4
    auto_complete: bool = True
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, backend_config: Mapping[str, str], max_batch_size: int, *, auto_complete: bool) -> Defaults:
        """Raises InferenceError for a setting that is not known or not a number."""
        unknown = sorted(backend_config.keys() - _BACKEND_KEYS)
        if unknown:
            raise border.InferenceError(
                border.ErrorKind.UNSUPPORTED,
                f"backend config {unknown} is not supported: known are {sorted(_BACKEND_KEYS)}",
            )
        parameters = dict(backend_config)
        size = parameters.pop("default-max-batch-size", str(max_batch_size))
        for key, value in parameters.items():
            numbers.whole(f"backend config {key}", value)
        return cls(
            max_batch_size=numbers.whole("default-max-batch-size", size),
            auto_complete=auto_complete,
            parameters=parameters,
        )


def complete(
    config: model_config_pb2.ModelConfig,
    inputs: Sequence[port.TensorInfo],
    outputs: Sequence[port.TensorInfo],
    defaults: Defaults,
) -> None:
    """Fills in batch size, inputs, outputs and the scheduler where inputs or outputs are not given.

    Raises InferenceError where they are wanted, and where the model cannot tell them.
    """
    python = config.backend == configuration.PYTHON
    if python or not defaults.auto_complete:
        # What a model in Python knows of itself it has told.
        _require_complete(config, "automatic completion is off" if not defaults.auto_complete else _PYTHON_SILENT)
    elif not (config.input and config.output):
        _complete(config, inputs, outputs, defaults)
    dynamic = config.HasField("dynamic_batching")
    if dynamic and config.max_batch_size > 0 and not config.dynamic_batching.preferred_batch_size:
        config.dynamic_batching.preferred_batch_size.append(config.max_batch_size)
    sequence_io.fill(config)


def _complete(
    config: model_config_pb2.ModelConfig,
    inputs: Sequence[port.TensorInfo],
    outputs: Sequence[port.TensorInfo],
    defaults: Defaults,
) -> None:
    if not config.max_batch_size and _could_batch(config, inputs, outputs):
        config.max_batch_size = defaults.max_batch_size
    if not config.input:
        made = sequence_io.targets(config)
        for info in inputs:
            if not info.optional and info.name not in made:
                _declare(config, config.input.add(name=info.name, data_type=_type(info)), info)
    if not config.output:
        kept = sequence_io.kept(config)
        for info in [info for info in outputs if info.name not in kept]:
            _declare(config, config.output.add(name=info.name, data_type=_type(info)), info)
    if config.max_batch_size > 1 and config.WhichOneof("scheduling_choice") is None:
        config.dynamic_batching.SetInParent()


def _declare(config: model_config_pb2.ModelConfig, declared: _Declared, info: port.TensorInfo) -> None:
    """Fills in the dims; clients know no scalars, so one becomes a tensor of one element."""
    if info.shape is None:
        raise _invalid(
            config, f"the model does not tell the rank of '{info.name}': give it in {configuration.CONFIG_FILE}"
        )
    if config.max_batch_size and (not info.shape or info.shape[0] != shapes.VARIABLE):
        raise _invalid(
            config,
            f"max_batch_size is {config.max_batch_size}, but the model cannot batch: '{info.name}' has shape "
            f"{list(info.shape)}, whose first dimension is not variable",
        )
    declared.dims.extend(info.shape[1:] if config.max_batch_size else info.shape)
    if not declared.dims:
        declared.dims.append(1)
        if config.max_batch_size:
            declared.reshape.SetInParent()


def check(
    config: model_config_pb2.ModelConfig, inputs: Sequence[port.TensorInfo], outputs: Sequence[port.TensorInfo]
) -> None:
    """Raises InferenceError INVALID_ARGUMENT where the configuration contradicts itself or the model."""
    _check_batching(config)
    batch_io.check(config, inputs)
    sequence_io.check(config, inputs, outputs)
    _check_tensors(config, "input", config.input, inputs)
    _check_tensors(config, "output", config.output, outputs)
    _check_inputs(config, inputs)


def _require_complete(config: model_config_pb2.ModelConfig, why: str) -> None:
    missing = [field for field, given in (("input", config.input), ("output", config.output)) if not given]
    if missing:
        raise _invalid(config, f"{' and '.join(missing)} must be given, since {why}")


def _could_batch(
    config: model_config_pb2.ModelConfig, inputs: Iterable[port.TensorInfo], outputs: Iterable[port.TensorInfo]
) -> bool:
    """Whether every tensor has a variable first dimension that the configuration does not spell out.

    Where it does spell it out for some, shapes are meant to be literal for all.
    """
    ranks = {each.name: len(each.dims) for each in config.input} | {each.name: len(each.dims) for each in config.output}
    tensors = [info for info in (*inputs, *outputs) if not info.optional]
    for info in tensors:
        if not info.shape or info.shape[0] != -1:
            return False
        if ranks.get(info.name) == len(info.shape):
            return False
    return bool(tensors)


def _check_batching(config: model_config_pb2.ModelConfig) -> None:
    if config.max_batch_size < 0:
        raise _invalid(config, "max_batch_size must not be negative")
    if config.HasField("dynamic_batching") and not config.max_batch_size:
        raise _invalid(config, "dynamic_batching needs max_batch_size >= 1")
    sizes = list(config.dynamic_batching.preferred_batch_size)
    if any(not 1 <= size <= config.max_batch_size for size in sizes):
        raise _invalid(config, f"preferred_batch_size {sizes} must lie between 1 and {config.max_batch_size}")
    _check_queue(config)


def _check_queue(config: model_config_pb2.ModelConfig) -> None:
    """Who has no level of its own to go to, or whose order is kept, cannot be overtaken."""
    dynamic = config.dynamic_batching
    levels = dynamic.priority_levels
    if levels and not 1 <= dynamic.default_priority_level <= levels:
        raise _invalid(config, f"default priority level must be in range [1, {levels}]")
    for level in sorted(dynamic.priority_queue_policy) if levels else ():
        if not 1 <= level <= levels:
            raise _invalid(
                config, f"priority queue policy must have priority level in range [1, {levels}], not {level}"
            )
    if not dynamic.preserve_ordering:
        return
    if levels > 1:
        raise _invalid(config, "Only one priority level is allowed when 'preserve_ordering' is true")
    for policy in (dynamic.default_queue_policy, *dynamic.priority_queue_policy.values()):
        if policy.default_timeout_microseconds and policy.timeout_action == _DELAY:
            raise _invalid(config, "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true")


def _check_inputs(config: model_config_pb2.ModelConfig, inputs: Iterable[port.TensorInfo]) -> None:
    declared = {each.name: each for each in config.input}
    made = batch_io.targets(config) | sequence_io.targets(config)
    for info in inputs:
        given = declared.get(info.name)
        if given is None and not info.optional and info.name not in made:
            raise _invalid(config, f"the model's input '{info.name}' is missing")
        if given is not None and given.optional and not info.optional:
            raise _invalid(config, f"input '{info.name}' is optional, but the model cannot run without it")


def _check_tensors(
    config: model_config_pb2.ModelConfig, kind: str, declared: Iterable[_Declared], actual: Iterable[port.TensorInfo]
) -> None:
    known = {info.name: info for info in actual}
    seen: set[str] = set()
    for each in declared:
        if each.name in seen:
            raise _invalid(config, f"{kind} '{each.name}' is given twice")
        if each.name not in known:
            raise _invalid(config, f"{kind} '{each.name}' is not one of the model's {kind}s {sorted(known)}")
        seen.add(each.name)
        _check_tensor(config, kind, each, known[each.name])


def _check_tensor(
    config: model_config_pb2.ModelConfig, kind: str, declared: _Declared, actual: port.TensorInfo
) -> None:
    if declared.data_type != _type(actual):
        raise _invalid(
            config,
            f"data_type of {kind} '{actual.name}' is {datatype(declared.data_type)}, the model has {actual.datatype}",
        )
    check_dims(config, kind, declared)
    ragged = isinstance(declared, model_config_pb2.ModelInput) and declared.allow_ragged_batch
    if not actual.shape or ragged or (kind == "output" and declared.name in batch_io.sources(config)):
        # ONNX Runtime tells an unknown rank and a scalar alike: the configuration knows better. What is ragged is one row.
        return
    dims = declared.reshape.shape if declared.HasField("reshape") else declared.dims
    shape = [-1, *dims] if config.max_batch_size else list(dims)
    fits = len(shape) == len(actual.shape) and all(
        there in (-1, here) for here, there in zip(shape, actual.shape, strict=True)
    )
    if not fits:
        raise _invalid(config, f"{kind} '{actual.name}' has shape {shape}, the model has {list(actual.shape)}")


def check_dims(config: model_config_pb2.ModelConfig, kind: str, declared: _Declared) -> None:
    """Raises InferenceError INVALID_ARGUMENT where dims, or a reshape of them, cannot be."""
    for field, dims in (("dims", declared.dims), ("reshape.shape", declared.reshape.shape)):
        if any(dim < shapes.VARIABLE for dim in dims):
            raise _invalid(config, f"{field} of {kind} '{declared.name}' must be -1 or more, not {list(dims)}")
    if declared.HasField("reshape") and not shapes.agree(declared.dims, declared.reshape.shape):
        raise _invalid(
            config,
            f"reshape of {kind} '{declared.name}' turns {list(declared.dims)} into {list(declared.reshape.shape)}: "
            "elements and variable dimensions must stay as many and in their order",
        )


def _type(info: port.TensorInfo) -> model_config_pb2.DataType.ValueType:
    return model_config_pb2.DataType.Value("TYPE_" + ("STRING" if info.datatype == "BYTES" else info.datatype))


def _invalid(config: model_config_pb2.ModelConfig, message: str) -> border.InferenceError:
    return border.InferenceError(
        border.ErrorKind.INVALID_ARGUMENT, f"configuration of model '{config.name}' is invalid: {message}"
    )
