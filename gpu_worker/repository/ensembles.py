"""Ensembles as their configurations write them: the steps, and what an ensemble must not say.

Pure. Whether the composing models fit is `engine.graph`'s to say, once they serve.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpu_worker.engine import border, graph, tensors
from gpu_worker.repository import completion
from protos.inference.v2 import model_config_pb2

PLATFORM = "ensemble"
_HIGHEST = -1
_MOST_STEPS = 1024
# What only models with files and instances have.
_FOREIGN = ("instance_group", "optimization", "model_warmup", "batch_input", "batch_output", "cc_model_filenames")

_Config = model_config_pb2.ModelConfig
_Declared = model_config_pb2.ModelInput | model_config_pb2.ModelOutput


def is_one(config: _Config) -> bool:
    return config.platform == PLATFORM or config.HasField("ensemble_scheduling")


def steps(config: _Config) -> graph.Graph:
    """The steps of a configuration, checked as far as they can be without the models.

    Raises InferenceError INVALID_ARGUMENT.
    """
    name = config.name
    _check(config)
    for kind, declared in (("input", config.input), ("output", config.output)):
        _check_tensors(config, kind, declared)
    made = graph.Graph(tuple(_step(name, index, step) for index, step in enumerate(config.ensemble_scheduling.step)))
    graph.check_flow(name, made, [each.name for each in config.input], [each.name for each in config.output])
    return made


def _check(config: _Config) -> None:
    name = config.name
    if config.platform != PLATFORM or config.backend:
        raise _invalid(f"ensemble scheduling cannot be set for model '{name}' whose platform is not {PLATFORM}")
    if not config.HasField("ensemble_scheduling"):
        raise _invalid(f"ensemble_scheduling must be set for ensemble '{name}'")
    for field in _FOREIGN:
        if any(descriptor.name == field for descriptor, _ in config.ListFields()):
            raise _invalid(f"{field} should not be specified for ensemble '{name}'")
    if config.max_batch_size < 0:
        raise _invalid(f"max_batch_size of ensemble '{name}' must not be negative")
    if len(config.ensemble_scheduling.step) > _MOST_STEPS:
        count = len(config.ensemble_scheduling.step)
        raise _invalid(f"ensemble '{name}' has {count} steps: at most {_MOST_STEPS} can be")


def _check_tensors(config: _Config, kind: str, declared: Sequence[_Declared]) -> None:
    name = config.name
    if not declared:
        raise _invalid(f"{kind} must be given for ensemble '{name}'")
    seen: set[str] = set()
    for each in declared:
        if not each.name or each.name in seen:
            raise _invalid(f"{kind} '{each.name}' of ensemble '{name}' must have a name of its own")
        if completion.datatype(each.data_type) not in tensors.DATATYPES:
            raise _invalid(f"{kind} '{each.name}' of ensemble '{name}' must specify 'data_type'")
        completion.check_dims(config, kind, each)
        seen.add(each.name)


def _step(name: str, index: int, step: model_config_pb2.ModelEnsembling.Step) -> graph.Step:
    if step.model_namespace:
        raise _invalid(f"model_namespace in step {index} of ensemble '{name}' is reserved: leave it out")
    if step.model_version < _HIGHEST:
        raise _invalid(f"model_version in step {index} of ensemble '{name}' must be -1 or a version")
    version = "" if step.model_version == _HIGHEST else str(step.model_version)
    return graph.Step(
        step.model_name, version, tuple(sorted(step.input_map.items())), tuple(sorted(step.output_map.items()))
    )


def _invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)
