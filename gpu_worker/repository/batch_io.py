"""Ragged inputs, batch inputs and batch outputs of a configuration, checked and in the engine's words. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_worker.engine import border, ragged, shapes
from gpu_worker.runtime import port
from protos.inference.v2 import model_config_pb2

_Config = model_config_pb2.ModelConfig
_TYPES = {model_config_pb2.TYPE_INT32: "INT32", model_config_pb2.TYPE_FP32: "FP32"}


def inputs(config: _Config) -> tuple[ragged.BatchInput, ...]:
    """The batch inputs of a checked configuration."""
    return tuple(
        ragged.BatchInput(
            model_config_pb2.BatchInput.Kind.Name(each.kind),
            tuple(each.target_name),
            _TYPES[each.data_type],
            each.source_input[0],
        )
        for each in config.batch_input
    )


def targets(config: _Config) -> set[str]:
    """The model's inputs that are made, not sent."""
    return {name for each in config.batch_input for name in each.target_name}


def sources(config: _Config) -> dict[str, str]:
    """The input that each scattered output is scattered by."""
    return {name: each.source_input[0] for each in config.batch_output for name in each.target_name}


def check(config: _Config, model_inputs: Sequence[port.TensorInfo]) -> None:
    """Raises InferenceError INVALID_ARGUMENT naming the field that cannot be."""
    for given in config.input:
        if given.allow_ragged_batch:
            _check_ragged(config, given, model_inputs)
    known = {info.name: info.datatype for info in model_inputs}
    for each in config.batch_input:
        _require_batching(config, "batch_input")
        _check_source(config, "batch_input", each.source_input)
        if each.kind not in model_config_pb2.BatchInput.Kind.values():
            raise _invalid(config, f"batch_input.kind {each.kind} is none")
        if each.data_type not in _TYPES:
            raise _invalid(config, "batch_input.data_type must be TYPE_INT32 or TYPE_FP32")
        for name in each.target_name:
            if known.get(name) != _TYPES[each.data_type] or name in {given.name for given in config.input}:
                raise _invalid(
                    config,
                    f"batch_input.target_name '{name}' must be an input of the model of type "
                    f"{_TYPES[each.data_type]} that is not in input",
                )
    names = [name for each in config.batch_input for name in each.target_name]
    if len(names) != len(set(names)):
        raise _invalid(config, f"batch_input.target_name {names} must not repeat a name")
    _check_outputs(config)


def _check_ragged(config: _Config, given: model_config_pb2.ModelInput, model_inputs: Sequence[port.TensorInfo]) -> None:
    _require_batching(config, f"allow_ragged_batch of input '{given.name}'")
    if given.optional or given.HasField("reshape"):
        raise _invalid(config, f"input '{given.name}' cannot be ragged and optional, or ragged and reshaped")
    for info in model_inputs:
        if info.name == given.name and info.shape and info.shape != (shapes.VARIABLE,):
            raise _invalid(
                config,
                f"input '{given.name}' is ragged, so the model must take it in shape [-1]; it has {list(info.shape)}",
            )


def _check_outputs(config: _Config) -> None:
    outputs = {given.name: given for given in config.output}
    dims = {given.name: given.dims for given in config.input}
    names = [name for each in config.batch_output for name in each.target_name]
    if len(names) != len(set(names)):
        raise _invalid(config, f"batch_output.target_name {names} must not repeat a name")
    for each in config.batch_output:
        _require_batching(config, "batch_output")
        _check_source(config, "batch_output", each.source_input)
        for name in each.target_name:
            output = outputs.get(name)
            if output is None or output.HasField("reshape"):
                raise _invalid(config, f"batch_output.target_name '{name}' must be in output, without a reshape")
            source = each.source_input[0]
            if any(dim < 0 and index >= len(dims[source]) for index, dim in enumerate(output.dims)):
                raise _invalid(config, f"dims of output '{name}' vary where input '{source}' has no dimension")


def _require_batching(config: _Config, what: str) -> None:
    if config.max_batch_size < 1:
        raise _invalid(config, f"{what} needs max_batch_size >= 1")


def _check_source(config: _Config, field: str, names: Sequence[str]) -> None:
    if len(names) != 1 or names[0] not in {given.name for given in config.input if not given.optional}:
        raise _invalid(config, f"{field}.source_input {list(names)} must name one input that is not optional")


def _invalid(config: _Config, message: str) -> border.InferenceError:
    return border.InferenceError(
        border.ErrorKind.INVALID_ARGUMENT, f"configuration of model '{config.name}' is invalid: {message}"
    )
