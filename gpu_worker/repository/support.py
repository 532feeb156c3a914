"""What a configuration may ask that this server does not do: refused by name, never accepted and ignored.

Pure. Fields that can change neither results nor behaviour here (pinned memory, gather threshold, eager batching, the
layout hint of an input, the rate limiter's resources while no rate limit is on) are let through.
"""

from __future__ import annotations

from collections.abc import Callable

from gpu_worker.engine import border
from gpu_worker.repository import configuration
from protos.inference.v2 import model_config_pb2

_Config = model_config_pb2.ModelConfig
_Asks = Callable[[_Config], object]

_UNSUPPORTED: tuple[tuple[str, _Asks], ...] = (
    ("ensemble_scheduling", lambda config: config.HasField("ensemble_scheduling") or config.platform == "ensemble"),
    ("sequence_batching", lambda config: config.HasField("sequence_batching")),
    ("batch_input", lambda config: config.batch_input),
    ("batch_output", lambda config: config.batch_output),
    ("response_cache.enable", lambda config: config.response_cache.enable),
    ("model_transaction_policy.decoupled", lambda config: config.model_transaction_policy.decoupled),
    ("model_operations.op_library_filename", lambda config: config.model_operations.op_library_filename),
    ("model_repository_agents", lambda config: config.model_repository_agents.agents),
    ("model_metrics", lambda config: config.model_metrics.metric_control),
    ("metric_tags", lambda config: config.metric_tags),
    ("cc_model_filenames", lambda config: config.cc_model_filenames),
    ("runtime", lambda config: config.runtime),
    ("input.reshape", lambda config: any(each.HasField("reshape") for each in config.input)),
    ("input.allow_ragged_batch", lambda config: any(each.allow_ragged_batch for each in config.input)),
    ("input.is_shape_tensor", lambda config: any(each.is_shape_tensor for each in config.input)),
    ("input.is_non_linear_format_io", lambda config: any(each.is_non_linear_format_io for each in config.input)),
    ("output.reshape", lambda config: any(each.HasField("reshape") for each in config.output)),
    ("output.is_shape_tensor", lambda config: any(each.is_shape_tensor for each in config.output)),
    ("output.is_non_linear_format_io", lambda config: any(each.is_non_linear_format_io for each in config.output)),
    ("instance_group.kind KIND_MODEL", lambda config: _any_group(config, lambda group: group.kind == group.KIND_MODEL)),
    ("instance_group.profile", lambda config: _any_group(config, lambda group: group.profile)),
    ("instance_group.passive", lambda config: _any_group(config, lambda group: group.passive)),
    ("instance_group.host_policy", lambda config: _any_group(config, lambda group: group.host_policy)),
    ("instance_group.secondary_devices", lambda config: _any_group(config, lambda group: group.secondary_devices)),
    ("optimization.priority", lambda config: config.optimization.priority),
    ("optimization.cuda.graphs", lambda config: config.optimization.cuda.graphs),
    ("optimization.cuda.busy_wait_events", lambda config: config.optimization.cuda.busy_wait_events),
    ("optimization.cuda.graph_spec", lambda config: config.optimization.cuda.graph_spec),
    ("optimization.cuda.output_copy_stream", lambda config: config.optimization.cuda.output_copy_stream),
    ("optimization.execution_accelerators", lambda config: config.optimization.HasField("execution_accelerators")),
    ("dynamic_batching.priority_levels", lambda config: config.dynamic_batching.priority_levels),
    ("dynamic_batching.default_priority_level", lambda config: config.dynamic_batching.default_priority_level),
    ("dynamic_batching.priority_queue_policy", lambda config: config.dynamic_batching.priority_queue_policy),
    (
        "dynamic_batching.default_queue_policy.timeout_action DELAY",
        lambda config: (
            config.dynamic_batching.default_queue_policy.timeout_action == model_config_pb2.ModelQueuePolicy.DELAY
        ),
    ),
    (
        "model_warmup.inputs.input_data_file",
        lambda config: any(
            each.HasField("input_data_file") for warmup in config.model_warmup for each in warmup.inputs.values()
        ),
    ),
)


def check(config: model_config_pb2.ModelConfig) -> None:
    """Raises InferenceError UNSUPPORTED naming every field that asks for what is not done here."""
    if config.backend not in {"", configuration.BACKEND}:
        raise _unsupported(config, f"backend '{config.backend}' (only '{configuration.BACKEND}' is)")
    if config.platform not in {"", configuration.PLATFORM, "ensemble"}:
        raise _unsupported(config, f"platform '{config.platform}' (only '{configuration.PLATFORM}' is)")
    asked = [field for field, asks in _UNSUPPORTED if asks(config)]
    if asked:
        raise _unsupported(config, ", ".join(asked))


def _any_group(config: _Config, asks: Callable[[model_config_pb2.ModelInstanceGroup], object]) -> bool:
    return any(asks(group) for group in config.instance_group)


def _unsupported(config: _Config, what: str) -> border.InferenceError:
    return border.InferenceError(
        border.ErrorKind.UNSUPPORTED, f"configuration of model '{config.name}': not supported: {what}; remove it"
    )
