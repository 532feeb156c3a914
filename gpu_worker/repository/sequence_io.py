"""Sequence batching of a configuration: completed, checked and in the engine's words. Pure but for files of states.

Completed as Triton does: a second of idleness, the largest batch as the preferred one. No strategy is the direct one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gpu_worker.engine import batching, border, controls, sequences, shapes, tensors
from gpu_worker.repository import configuration, layout
from gpu_worker.runtime import port
from protos.inference.v2 import model_config_pb2

FOLDER = "initial_state"
_IDLE_US = 1_000_000
_MAX_BYTES = 2**31

_Config = model_config_pb2.ModelConfig
_Sequence = model_config_pb2.ModelSequenceBatching
_Values = Mapping[str, tuple[str, Sequence[float | bool]]]

_CORRELATION_TYPES = {"UINT64", "INT64", "UINT32", "INT32", "BYTES"}


def fill(config: _Config) -> None:
    """Fills in what the scheduler takes where nothing is said."""
    if not config.HasField("sequence_batching"):
        return
    given = config.sequence_batching
    given.max_sequence_idle_microseconds = given.max_sequence_idle_microseconds or _IDLE_US
    if given.HasField("oldest") and not given.oldest.preferred_batch_size:
        given.oldest.preferred_batch_size.append(max(1, config.max_batch_size))


def targets(config: _Config) -> set[str]:
    """The model's inputs that are made, not sent."""
    given = config.sequence_batching
    return {each.name for each in given.control_input} | {each.input_name for each in given.state}


def kept(config: _Config) -> set[str]:
    """The model's outputs that are states: no answers unless they are declared."""
    return {each.output_name for each in config.sequence_batching.state}


def check(config: _Config, inputs: Sequence[port.TensorInfo], outputs: Sequence[port.TensorInfo]) -> None:
    """Raises InferenceError INVALID_ARGUMENT naming the field that cannot be."""
    if not config.HasField("sequence_batching"):
        return
    if config.backend == configuration.PYTHON:
        raise _invalid(config, "models in Python get no controls yet: serve it without, or as an ONNX model")
    given = config.sequence_batching
    known = {info.name: info for info in inputs}
    _check_names(config, known)
    kinds = [control.kind for each in given.control_input for control in each.control]
    if len(set(kinds)) != len(kinds):
        raise _invalid(config, "control_input must not repeat a kind of control")
    for each in given.control_input:
        _check_control(config, each, known[each.name])
    made = {info.name: info for info in outputs}
    for state in given.state:
        _check_state(config, state, known[state.input_name], made)
    _check_strategy(config)


def sequencing(config: _Config, directory: layout.ModelDirectory) -> controls.Sequencing | None:
    """How the engine is to take sequences; None for a model without. Raises InferenceError INVALID_ARGUMENT."""
    if not config.HasField("sequence_batching"):
        return None
    states = tuple(_state(config, each, directory) for each in config.sequence_batching.state)
    return controls.Sequencing(
        policy=_policy(config, controls.fresh(states)),
        controls=tuple(_control(config, each) for each in config.sequence_batching.control_input),
        states=states,
        batched=config.max_batch_size > 0,
    )


def _policy(config: _Config, fresh: tuple[tuple[int, ...], ...]) -> sequences.Config:
    given = config.sequence_batching
    direct = not given.HasField("oldest")
    delay_us = (given.direct if direct else given.oldest).max_queue_delay_microseconds
    return sequences.Config(
        slots=max(1, config.max_batch_size) if direct else given.oldest.max_candidate_sequences,
        direct=direct,
        max_idle_ns=given.max_sequence_idle_microseconds * 1000,
        utilization=given.direct.minimum_slot_utilization,
        batching=batching.Config(
            max_batch_size=config.max_batch_size,
            dynamic=config.max_batch_size > 0,
            preferred_sizes=frozenset(given.oldest.preferred_batch_size),
            max_delay_ns=delay_us * 1000,
        ),
        fresh=fresh,
    )


def _check_names(config: _Config, known: Mapping[str, port.TensorInfo]) -> None:
    given = config.sequence_batching
    names = [each.name for each in given.control_input] + [each.input_name for each in given.state]
    declared = {each.name for each in config.input}
    for name in names:
        if name not in known:
            raise _invalid(config, f"control_input or state '{name}' is not one of the model's inputs {sorted(known)}")
        if name in declared or names.count(name) > 1:
            raise _invalid(config, f"'{name}' of sequence_batching must be named once, and not in input")


def _check_control(config: _Config, given: _Sequence.ControlInput, info: port.TensorInfo) -> None:
    if len(given.control) != 1:
        raise _invalid(config, f"control_input '{given.name}' must have one control, not {len(given.control)}")
    made = _control(config, given)
    if made.datatype != info.datatype:
        raise _invalid(config, f"control_input '{given.name}' is {made.datatype}, the model has {info.datatype}")
    expected = 2 if config.max_batch_size else 1
    if info.shape and (len(info.shape) != expected or info.shape[-1] not in (-1, 1)):
        wanted = [-1, 1] if config.max_batch_size else [1]
        raise _invalid(config, f"control_input '{given.name}' has shape {list(info.shape)} in the model, not {wanted}")


def _control(config: _Config, given: _Sequence.ControlInput) -> controls.Control:
    control = given.control[0]
    if control.kind not in _Sequence.Control.Kind.values():
        raise _invalid(config, f"control.kind {control.kind} of control_input '{given.name}' is none")
    kind = _Sequence.Control.Kind.Name(control.kind)
    values: _Values = {
        "int32_false_true": ("INT32", control.int32_false_true),
        "fp32_false_true": ("FP32", control.fp32_false_true),
        "bool_false_true": ("BOOL", control.bool_false_true),
    }
    told = {field: pair for field, pair in values.items() if pair[1]}
    if kind == controls.CORRID:
        return _correlation(config, given, sorted(told))
    if len(told) != 1 or any(len(pair[1]) != 2 for pair in told.values()):
        raise _invalid(config, f"control_input '{given.name}' must have one of {sorted(values)}, with two values")
    datatype, (off, on) = next(iter(told.values()))
    return controls.Control(kind, given.name, datatype, off, on)


def _correlation(config: _Config, given: _Sequence.ControlInput, told: Sequence[str]) -> controls.Control:
    datatype = configuration.datatype(given.control[0].data_type)
    if told or datatype not in _CORRELATION_TYPES:
        raise _invalid(
            config,
            f"control_input '{given.name}' for the correlation id must have a data_type of 32 or 64 bit integers or "
            "strings, and no values",
        )
    return controls.Control(controls.CORRID, given.name, datatype)


def _check_state(
    config: _Config, given: _Sequence.State, info: port.TensorInfo, outputs: Mapping[str, port.TensorInfo]
) -> None:
    made = outputs.get(given.output_name)
    if made is None:
        raise _invalid(config, f"state.output_name '{given.output_name}' is not one of the model's outputs")
    if not configuration.datatype(given.data_type) == info.datatype == made.datatype:
        raise _invalid(
            config,
            f"state '{given.input_name}' is {configuration.datatype(given.data_type)}, the model has {info.datatype} as the input and "
            f"{made.datatype} as the output",
        )
    if any(dim < shapes.VARIABLE for dim in given.dims):
        raise _invalid(config, f"dims of state '{given.input_name}' must be -1 or more, not {list(given.dims)}")
    shape = [*([-1] if config.max_batch_size else []), *given.dims]
    for each in (info, made):
        fits = not each.shape or (
            len(shape) == len(each.shape)
            and all(there in (-1, here) for here, there in zip(shape, each.shape, strict=True))
        )
        if not fits:
            raise _invalid(config, f"state '{each.name}' has shape {shape}, the model has {list(each.shape or ())}")


def _check_strategy(config: _Config) -> None:
    given = config.sequence_batching
    if config.response_cache.enable:
        raise _invalid(config, "response_cache must not be enabled: an answer depends on the requests before")
    if not 0 <= given.direct.minimum_slot_utilization <= 1:
        raise _invalid(config, "direct.minimum_slot_utilization must lie between 0 and 1")
    if given.HasField("oldest") and given.oldest.max_candidate_sequences < 1:
        raise _invalid(config, "oldest.max_candidate_sequences must be 1 or more")
    sizes = list(given.oldest.preferred_batch_size)
    most = max(1, config.max_batch_size)
    if any(not 1 <= size <= most for size in sizes):
        raise _invalid(config, f"oldest.preferred_batch_size {sizes} must lie between 1 and {most}")


def _state(config: _Config, given: _Sequence.State, directory: layout.ModelDirectory) -> controls.State:
    if len(given.initial_state) > 1:
        raise _invalid(config, f"state '{given.input_name}' must have one initial_state at most")
    # Variable dimensions are 1 until the model says otherwise.
    dims = tuple(max(1, dim) if dim < 0 else dim for dim in given.dims)
    datatype = tensors.DATATYPES[configuration.datatype(given.data_type)]
    if given.initial_state:
        first = given.initial_state[0]
        dims = _initial_dims(config, given, first)
        array = _initial(config, given.input_name, first, datatype, dims, directory)
    else:
        array = _zeros(config, given.input_name, datatype, dims)
    return controls.State(given.input_name, given.output_name, array[np.newaxis] if config.max_batch_size else array)


def _initial_dims(config: _Config, given: _Sequence.State, first: _Sequence.InitialState) -> tuple[int, ...]:
    if first.data_type != given.data_type:
        raise _invalid(config, f"initial_state of '{given.input_name}' must have the data_type of the state")
    fits = len(first.dims) == len(given.dims) and all(
        there >= 0 and here in (-1, there) for here, there in zip(given.dims, first.dims, strict=True)
    )
    if not fits:
        raise _invalid(
            config,
            f"dims {list(first.dims)} of initial_state of '{given.input_name}' must fit {list(given.dims)} and not be variable",
        )
    return tuple(first.dims)


def _initial(
    config: _Config,
    name: str,
    first: _Sequence.InitialState,
    datatype: tensors.Datatype,
    dims: tuple[int, ...],
    directory: layout.ModelDirectory,
) -> tensors.Array:
    match first.WhichOneof("state_data"):
        case "zero_data":
            return _zeros(config, name, datatype, dims)
        case "data_file":
            return _from_file(config, name, first.data_file, datatype, dims, directory)
    raise _invalid(config, f"initial_state of '{name}' must have zero_data or data_file")


def _zeros(config: _Config, name: str, datatype: tensors.Datatype, dims: tuple[int, ...]) -> tensors.Array:
    if math.prod(dims) * max(1, datatype.item_bytes) > _MAX_BYTES:
        raise _invalid(config, f"state '{name}' of shape {list(dims)} is larger than {_MAX_BYTES} bytes")
    return np.full(dims, "" if datatype.name == "BYTES" else 0, datatype.dtype)


def _from_file(
    config: _Config,
    name: str,
    file: str,
    datatype: tensors.Datatype,
    dims: tuple[int, ...],
    directory: layout.ModelDirectory,
) -> tensors.Array:
    """The file's tensor in its wire form."""
    path = layout.inside(directory.inside(FOLDER), file)
    try:
        with path.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _invalid(config, f"data_file of initial_state of '{name}' cannot be read: {error}") from None
    if not datatype.item_bytes:
        return tensors.decode_bytes(data, dims, name)
    expected_bytes = math.prod(dims) * datatype.item_bytes
    if len(data) != expected_bytes:
        raise _invalid(
            config, f"data_file of initial_state of '{name}' has {len(data)} bytes or more, expected {expected_bytes}"
        )
    return tensors.view(data, datatype, dims)


def _invalid(config: _Config, message: str) -> border.InferenceError:
    return border.InferenceError(
        border.ErrorKind.INVALID_ARGUMENT,
        f"configuration of model '{config.name}' is invalid: sequence_batching: {message}",
    )
