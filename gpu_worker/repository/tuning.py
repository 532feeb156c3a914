"""How a model is to run: the framework's settings out of `parameters` and `optimization`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from gpu_worker.engine import border
from gpu_worker.repository import configuration, numbers, support
from gpu_worker.runtime import port
from protos.inference.v2 import model_config_pb2

_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
_INITIALIZERS = "session.use_device_allocator_for_initializers"
_MAX_THREADS = 1024
_CONVOLUTION_SEARCH = {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"}
_ARENA_GROWTH = {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"}
_ACCELERATOR = "optimization.execution_accelerators.gpu_execution_accelerator"

PARAMETERS = {
    "intra_op_thread_count": "threads within an operator; 0: as many as cores, or one where there are several instances",
    "inter_op_thread_count": "threads across operators where they run in parallel; 0: as many as cores",
    "execution_mode": "0: one operator after the other; 1: in parallel",
    "enable_mem_arena": "0: memory of the CPU is not pooled",
    "enable_mem_pattern": "0: memory is not planned ahead for shapes seen before",
    _SHRINKAGE: "devices (`cpu:0;gpu:0`) whose pools shrink after each run",
    _INITIALIZERS: "1: weights lie outside of the pool",
    "share_session_between_instances": "1: the instances on a GPU share one session; those on a CPU do so anyway",
    "gpu_mem_limit": "most bytes of a GPU that a session's pool takes",
    "arena_extend_strategy": "0: the pool of a GPU grows by powers of two; 1: as asked",
    "cudnn_conv_algo_search": "0: exhaustive; 1: heuristic; 2: default",
    "do_copy_in_default_stream": "0: copies to and from a GPU have a stream of their own",
}
"""What `parameters` of a model may hold, and what that does."""

CUDA_OPTIONS = (
    "arena_extend_strategy",
    "cudnn_conv1d_pad_to_nc1d",
    "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace",
    "do_copy_in_default_stream",
    "enable_skip_layer_norm_strict_mode",
    "fuse_conv_bias",
    "gpu_mem_limit",
    "prefer_nhwc",
    "sdpa_kernel",
    "tunable_op_enable",
    "tunable_op_max_tuning_duration_ms",
    "tunable_op_tuning_enable",
    "use_ep_level_unified_stream",
    "use_tf32",
)
"""Options of ONNX Runtime's CUDA provider that the accelerator `cuda` may set."""


def options(config: model_config_pb2.ModelConfig, defaults: Mapping[str, str]) -> port.SessionOptions:
    """The settings of each instance; `defaults` hold where the model says nothing.

    Raises InferenceError: UNSUPPORTED for an unknown parameter, INVALID_ARGUMENT for a bad value.
    """
    if config.backend == configuration.PYTHON:
        # They are the model's own, and what the backend looks at of them its runtime reads.
        return port.SessionOptions()
    given = {**defaults, **{key: parameter.string_value for key, parameter in config.parameters.items()}}
    unknown = sorted(given.keys() - PARAMETERS.keys())
    if unknown:
        raise support.unsupported(config.name, f"parameters {unknown}; known are {sorted(PARAMETERS)}")
    graph = config.optimization.HasField("graph")
    initializers = _flag(given, _INITIALIZERS, default=False)
    return port.SessionOptions(
        intra_op_threads=_threads(given, "intra_op_thread_count", _default_threads(config)),
        inter_op_threads=_threads(given, "inter_op_thread_count", 0),
        parallel=_flag(given, "execution_mode", default=False),
        graph_level=config.optimization.graph.level if graph else None,
        memory_arena=_flag(given, "enable_mem_arena", default=True),
        memory_pattern=_flag(given, "enable_mem_pattern", default=True),
        share=_flag(given, "share_session_between_instances", default=False),
        device_options={**_accelerated(config), **_device_options(given)},
        session_entries={_INITIALIZERS: "1"} if initializers else {},
        run_options={_SHRINKAGE: given[_SHRINKAGE]} if _SHRINKAGE in given else {},
    )


def _default_threads(config: model_config_pb2.ModelConfig) -> int:
    """Several instances share the cores: each then computes in its own thread alone."""
    instances = sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)
    return 1 if instances > 1 else 0


def _accelerated(config: model_config_pb2.ModelConfig) -> dict[str, str]:
    found: dict[str, str] = {}
    for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
        if accelerator.name != "cuda":
            raise support.unsupported(config.name, f"{_ACCELERATOR} '{accelerator.name}' (only 'cuda' is); remove it")
        unknown = sorted(accelerator.parameters.keys() - set(CUDA_OPTIONS))
        if unknown:
            raise support.unsupported(
                config.name, f"{_ACCELERATOR}.parameters {unknown} of 'cuda'; known are {list(CUDA_OPTIONS)}"
            )
        found.update(accelerator.parameters)
    return found


def _device_options(given: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    if "gpu_mem_limit" in given:
        found["gpu_mem_limit"] = str(numbers.whole("parameters.gpu_mem_limit", given["gpu_mem_limit"]))
    if "do_copy_in_default_stream" in given:
        found["do_copy_in_default_stream"] = str(int(_flag(given, "do_copy_in_default_stream", default=True)))
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
