"""How a model is to run: the framework's settings out of `parameters` and `optimization`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from gpu_worker.engine import border
from gpu_worker.repository import numbers
from gpu_worker.runtime import port
from protos.inference.v2 import model_config_pb2

_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
_MAX_THREADS = 1024
_CONVOLUTION_SEARCH = {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"}
_ARENA_GROWTH = {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"}
_KNOWN = {
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "enable_mem_arena",
    "enable_mem_pattern",
    "gpu_mem_limit",
    "cudnn_conv_algo_search",
    "arena_extend_strategy",
    _SHRINKAGE,
}


def options(config: model_config_pb2.ModelConfig, defaults: Mapping[str, str]) -> port.SessionOptions:
    """The settings of each instance; `defaults` hold where the model says nothing.

    Raises InferenceError: UNSUPPORTED for an unknown parameter, INVALID_ARGUMENT for a bad value.
    """
    given = {**defaults, **{key: parameter.string_value for key, parameter in config.parameters.items()}}
    unknown = sorted(given.keys() - _KNOWN)
    if unknown:
        raise border.InferenceError(
            border.ErrorKind.UNSUPPORTED,
            f"configuration of model '{config.name}': not supported: parameters {unknown}; known are {sorted(_KNOWN)}",
        )
    graph = config.optimization.HasField("graph")
    return port.SessionOptions(
        intra_op_threads=_threads(given, "intra_op_thread_count", _default_threads(config)),
        inter_op_threads=_threads(given, "inter_op_thread_count", 0),
        parallel=_flag(given, "execution_mode", default=False),
        graph_level=config.optimization.graph.level if graph else None,
        memory_arena=_flag(given, "enable_mem_arena", default=True),
        memory_pattern=_flag(given, "enable_mem_pattern", default=True),
        device_options=_device_options(given),
        run_options={_SHRINKAGE: given[_SHRINKAGE]} if _SHRINKAGE in given else {},
    )


def _default_threads(config: model_config_pb2.ModelConfig) -> int:
    """Several instances share the cores: each then computes in its own thread alone."""
    instances = sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)
    return 1 if instances > 1 else 0


def _device_options(given: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    if "gpu_mem_limit" in given:
        found["gpu_mem_limit"] = str(numbers.whole("parameters.gpu_mem_limit", given["gpu_mem_limit"]))
    for key, choices in (("cudnn_conv_algo_search", _CONVOLUTION_SEARCH), ("arena_extend_strategy", _ARENA_GROWTH)):
        if key in given:
            if given[key] not in choices:
                raise border.InferenceError(
                    border.ErrorKind.INVALID_ARGUMENT, f"parameters.{key} must be one of {sorted(choices)}"
                )
            found[key] = choices[given[key]]
    return found


def _threads(given: Mapping[str, str], key: str, default: int) -> int:
    count = numbers.whole(f"parameters.{key}", given[key]) if key in given else default
    if count > _MAX_THREADS:
        raise border.InferenceError(
            border.ErrorKind.INVALID_ARGUMENT, f"parameters.{key} must be at most {_MAX_THREADS}, not {count}"
        )
    return count


def _flag(given: Mapping[str, str], key: str, *, default: bool) -> bool:
    return numbers.flag(f"parameters.{key}", given[key]) if key in given else default
