"""Model configurations as written: read from text or JSON, with the values that need no model filled in.

Pure. What the model itself must tell is `completion`'s, what is not supported `support`'s.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable

import structlog
from google.protobuf import json_format, text_format

from gpu_worker.engine import border
from gpu_worker.wire import plain
from protos.inference.v2 import model_config_pb2

BACKEND = "onnxruntime"
PLATFORM = "onnxruntime_onnx"
DEFAULT_FILENAME = "model.onnx"
PYTHON = "python"
PYTHON_FILENAME = "model.py"
CONFIG_FILE = "config.pbtxt"
_CPU_INSTANCES = 2
FIRST_RESPONSE = "nv_inference_first_response_histogram_ms"
_MAX_INSTANCES = 256
_MAX_TOTAL_INSTANCES = 1024
_MAX_BUCKETS = 100
_MAX_WORDS = 400
MAX_BYTES = 4 * 2**20
_TAG = re.compile(r"[a-zA-Z0-9_]{1,200}")

_Group = model_config_pb2.ModelInstanceGroup

log = structlog.get_logger(__name__)


def from_text(name: str, text: str | None) -> model_config_pb2.ModelConfig:
    """The configuration in a config.pbtxt; an empty one where there is none. Raises InferenceError INVALID_ARGUMENT."""
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text or "", config)
    except (text_format.ParseError, ValueError, RecursionError) as error:
        raise _invalid(f"config.pbtxt of model '{name}' is invalid: {_short(error)}") from None
    return _named(name, config)


def from_json(name: str, text: str) -> model_config_pb2.ModelConfig:
    """The configuration that a load call brought along. Raises InferenceError INVALID_ARGUMENT."""
    if len(text) > MAX_BYTES:
        raise _invalid(f"Invalid config override: it is longer than {MAX_BYTES} characters")
    config = model_config_pb2.ModelConfig()
    try:
        written = json.loads(text)
        if not isinstance(written, dict):
            raise _invalid(f"Invalid config override: an object is wanted, not {type(written).__name__}")
        # Half a surrogate pair is no text, and protobuf does not look before it hands it on.
        json.dumps(written, ensure_ascii=False).encode()
        json_format.ParseDict(written, config)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise _invalid(f"Invalid config override: {_short(error)}") from None
    return _named(name, config)


def to_json(config: model_config_pb2.ModelConfig) -> str:
    """As models in Python are told their configuration: numbers are numbers, defaults are there."""
    return json.dumps(plain.shown(config))


def completed(config: model_config_pb2.ModelConfig, text: str) -> model_config_pb2.ModelConfig:
    """The configuration as a model's code gave it back. Raises InferenceError INVALID_ARGUMENT."""
    found = model_config_pb2.ModelConfig()
    try:
        json_format.Parse(text, found)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise _invalid(
            f"auto_complete_config of model '{config.name}' gave no configuration: {_short(error)}"
        ) from None
    found.name = config.name
    return found


def fill(config: model_config_pb2.ModelConfig, gpus: int) -> None:
    """Fills in file name, version policy, pinned memory and instance groups.

    `gpus` are the devices that can be used: KIND_AUTO means them where there are any. Raises InferenceError where a
    group or a tag cannot be.
    """
    python = config.backend == PYTHON
    filename = PYTHON_FILENAME if python else DEFAULT_FILENAME
    config.default_model_filename = config.default_model_filename or filename
    for memory in ("input_pinned_memory", "output_pinned_memory"):
        if not config.optimization.HasField(memory):
            getattr(config.optimization, memory).enable = True
    fill_common(config)
    if not config.instance_group:
        config.instance_group.add()
    for index, group in enumerate(config.instance_group):
        _fill_group(group, f"{config.name}_{index}", gpus, 1 if python else _CPU_INSTANCES)
    total = sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)
    if total > _MAX_TOTAL_INSTANCES:
        raise _invalid(
            f"instance_group of model '{config.name}' asks for {total} instances: at most {_MAX_TOTAL_INSTANCES} can be"
        )


def fill_common(config: model_config_pb2.ModelConfig) -> None:
    """Fills in what an ensemble has too: the version policy. Raises InferenceError for tags or bounds that cannot be."""
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    if config.version_policy.HasField("latest") and not config.version_policy.latest.num_versions:
        config.version_policy.latest.num_versions = 1
    wrong = sorted(tag for tag in config.metric_tags if not _TAG.fullmatch(tag))
    if wrong:
        raise _invalid(f"metric_tags {wrong} of model '{config.name}' must be letters, digits and underscores")
    first_response_bounds(config)


def datatype(data_type: model_config_pb2.DataType.ValueType) -> str:
    """The V2 name of a configuration's type; its number where there is none, which a configuration may well say."""
    known = model_config_pb2.DataType.DESCRIPTOR.values_by_number.get(data_type)
    name = known.name.removeprefix("TYPE_") if known else str(data_type)
    return "BYTES" if name == "STRING" else name


def first_response_bounds(config: model_config_pb2.ModelConfig) -> tuple[float, ...]:
    """Bounds in milliseconds that the model wants for its histogram of first responses; empty for the server's own.

    Raises InferenceError where bounds are given for something else, or are none.
    """
    found: tuple[float, ...] = ()
    for control in config.model_metrics.metric_control:
        family = control.metric_identifier.family
        if family != FIRST_RESPONSE:
            raise _invalid(
                f"model_metrics of model '{config.name}' names the family '{family}': only {FIRST_RESPONSE} has buckets"
            )
        found = tuple(control.histogram_options.buckets)
        ascending = all(one < other for one, other in itertools.pairwise((0.0, *found, math.inf)))
        if not ascending or not 0 < len(found) <= _MAX_BUCKETS:
            raise _invalid(
                f"model_metrics of model '{config.name}': buckets must be 1 to {_MAX_BUCKETS} ascending numbers above 0, "
                f"not {list(found)[:_MAX_BUCKETS]}"
            )
    return found


def served_versions(config: model_config_pb2.ModelConfig, available: Iterable[int]) -> list[int]:
    """The versions that the policy asks for, as far as they are there, ascending. Raises InferenceError for none."""
    versions = sorted(available)
    policy = config.version_policy
    if policy.HasField("latest"):
        chosen = versions[-policy.latest.num_versions :]
    elif policy.HasField("specific"):
        chosen = [version for version in versions if version in policy.specific.versions]
        missing = sorted(set(policy.specific.versions) - set(chosen))
        if missing:
            log.error("version.missing", model=config.name, versions=missing, reason="version_policy.specific")
    else:
        chosen = versions
    if not chosen:
        raise _invalid(f"at least one version must be available under the version policy of model '{config.name}'")
    return chosen


def _named(name: str, config: model_config_pb2.ModelConfig) -> model_config_pb2.ModelConfig:
    if config.name and config.name != name:
        raise _invalid(f"config name '{config.name}' is not the name of the model's directory, '{name}'")
    config.name = name
    return config


def _short(error: Exception) -> str:
    """What the parser says, without all of the line that it may quote."""
    text = str(error)
    return text if len(text) <= _MAX_WORDS else f"{text[: _MAX_WORDS // 2]} ... {text[-_MAX_WORDS // 2 :]}"


def _fill_group(group: model_config_pb2.ModelInstanceGroup, name: str, gpus: int, on_cpu: int) -> None:
    group.name = group.name or name
    if group.kind == _Group.KIND_AUTO:
        group.kind = _Group.KIND_GPU if gpus else _Group.KIND_CPU
    if not 0 <= group.count <= _MAX_INSTANCES:
        raise _invalid(f"instance_group.count of '{group.name}' must lie between 0 and {_MAX_INSTANCES}")
    if group.kind == _Group.KIND_GPU:
        _fill_gpus(group, gpus)
    elif group.gpus:
        raise _invalid(f"instance_group.gpus of '{group.name}' must be empty for instances on the CPU")
    group.count = group.count or (1 if group.kind == _Group.KIND_GPU else on_cpu)


def _fill_gpus(group: model_config_pb2.ModelInstanceGroup, gpus: int) -> None:
    if not gpus:
        raise _invalid(f"instance_group.kind of '{group.name}' is KIND_GPU, but no GPU can be used here")
    if not group.gpus:
        group.gpus.extend(range(gpus))
    beyond = [gpu for gpu in group.gpus if not 0 <= gpu < gpus]
    if beyond:
        raise _invalid(f"instance_group.gpus of '{group.name}' names {beyond}, but there are {gpus} GPU(s) here")


def _invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)
