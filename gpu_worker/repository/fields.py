"""Every field of a model's configuration, and what becomes of it: done, without effect here, or refused with the reason.

The table is what `support` refuses by and what the reference page is made from. Pure. No field may be missing from it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from typing import Any

from google.protobuf import message


class Standing(enum.Enum):
    """What becomes of a field that is given."""

    HONOURED = "honoured"
    WITHOUT_EFFECT = "accepted, without effect"
    LATER = "refused, not yet done"
    REFUSED = "refused"


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """A field by its path, all below it included; `only` narrows it to one value of an enumeration.

    `words` tell what the field does, or why it does nothing or is refused.
    """

    path: str
    standing: Standing
    words: str
    only: str = ""

    @property
    def shown(self) -> str:
        return f"{self.path} {self.only}" if self.only else self.path

    @property
    def refused(self) -> bool:
        return self.standing in {Standing.LATER, Standing.REFUSED}


def _done(path: str, words: str) -> Field:
    return Field(path, Standing.HONOURED, words)


def _idle(path: str, words: str) -> Field:
    return Field(path, Standing.WITHOUT_EFFECT, words)


def _later(path: str, words: str, only: str = "") -> Field:
    return Field(path, Standing.LATER, words, only)


def _no(path: str, words: str, only: str = "") -> Field:
    return Field(path, Standing.REFUSED, words, only)


_TENSORRT = "only TensorRT engines know it, and models are ONNX"
_GRAPHS = "ONNX Runtime captures no graphs for batches of changing sizes"

FIELDS = (
    _done("name", "must be the name of the model's directory where given"),
    _done(
        "platform",
        "`onnxruntime_onnx` or `ensemble`, empty for Python; found from backend, files or directory's name where absent",
    ),
    _done("backend", "`onnxruntime` or `python`; found from platform, files or directory's name where absent"),
    _no("runtime", "backends are built in and cannot be replaced by a library or a script"),
    _done("version_policy.latest.num_versions", "serves so many of the highest versions; 1 where no policy is given"),
    _done("version_policy.all", "serves every version"),
    _done("version_policy.specific.versions", "serves these versions; those that are missing are logged"),
    _done("max_batch_size", "0: shapes are literal; above: `dims` leave a leading batch dimension out"),
    _done("input.name", "must be one of the model's inputs"),
    _done("input.data_type", "must be the model's own"),
    _idle("input.format", "a hint about the layout of images; tensors are passed on as they come"),
    _done("input.dims", "must fit the model's own shape, or its reshape's; -1 is variable"),
    _done("input.reshape.shape", "the shape that the model gets; empty for a scalar"),
    _no("input.is_shape_tensor", _TENSORRT),
    _done(
        "input.allow_ragged_batch",
        "requests may differ in shape within a batch; the model gets one row of all elements",
    ),
    _done("input.optional", "requests may leave the input out where the model has a default for it"),
    _no("input.is_non_linear_format_io", _TENSORRT),
    _done("output.name", "must be one of the model's outputs; those left out are not computed for answers"),
    _done("output.data_type", "must be the model's own"),
    _done("output.dims", "must fit the model's own shape, or its reshape's; -1 is variable"),
    _done("output.reshape.shape", "the shape that the model gives, answered as `dims`"),
    _done("output.label_filename", "a file in the model's directory with a line for each class"),
    _no("output.is_shape_tensor", _TENSORRT),
    _no("output.is_non_linear_format_io", _TENSORRT),
    _done("batch_input", "inputs made for each batch from the shapes of `source_input`, `TYPE_INT32` or `TYPE_FP32`"),
    _done("batch_output", "outputs in one row, shared out by the shapes of `source_input`"),
    _done("optimization.graph.level", "-1: basic; 0: all; 1: extended; 2: none"),
    _no("optimization.priority", "ONNX Runtime's streams and threads have no priorities"),
    _no("optimization.cuda.graphs", _GRAPHS),
    _no("optimization.cuda.graph_spec", _GRAPHS),
    _no("optimization.cuda.busy_wait_events", _TENSORRT),
    _no("optimization.cuda.output_copy_stream", _TENSORRT),
    _done(
        "optimization.execution_accelerators.gpu_execution_accelerator",
        "`cuda` with ONNX Runtime's provider options as its parameters; any other is refused",
    ),
    _no(
        "optimization.execution_accelerators.cpu_execution_accelerator",
        "the build of ONNX Runtime has none for the CPU (`openvino` is another build)",
    ),
    _idle("optimization.input_pinned_memory.enable", "copies to a GPU are ONNX Runtime's own"),
    _idle("optimization.output_pinned_memory.enable", "copies from a GPU are ONNX Runtime's own"),
    _idle("optimization.gather_kernel_buffer_threshold", "batches are gathered in the host's memory"),
    _idle("optimization.eager_batching", "a batch is gathered when an instance is free for it"),
    _done("dynamic_batching.preferred_batch_size", "sizes that run as soon as they can be formed"),
    _done("dynamic_batching.max_queue_delay_microseconds", "longest wait for company"),
    _done("dynamic_batching.preserve_ordering", "answers leave in the order of arrival"),
    _done("dynamic_batching.priority_levels", "levels that requests may ask for (`priority`): 1 is served first"),
    _done(
        "dynamic_batching.default_priority_level", "the level of requests that ask for none, or for one there is not"
    ),
    _done(
        "dynamic_batching.default_queue_policy.timeout_action",
        "`REJECT`: answers with an error; `DELAY`: goes behind all others of its level",
    ),
    _done("dynamic_batching.default_queue_policy.default_timeout_microseconds", "longest wait in the queue; 0: none"),
    _done(
        "dynamic_batching.default_queue_policy.allow_timeout_override",
        "requests may ask for less (`timeout`), where there is a time-out",
    ),
    _done("dynamic_batching.default_queue_policy.max_queue_size", "requests that may wait in a level; 0: no bound"),
    _done("dynamic_batching.priority_queue_policy", "the same of single levels"),
    _done("sequence_batching.direct.max_queue_delay_microseconds", "longest wait for `minimum_slot_utilization`"),
    _done("sequence_batching.direct.minimum_slot_utilization", "share of the slots that is to be ready; 0: any"),
    _done(
        "sequence_batching.direct",
        "each sequence has a slot of an instance, a row of its batches; without any strategy",
    ),
    _done("sequence_batching.oldest.max_candidate_sequences", "sequences that an instance serves at a time"),
    _done("sequence_batching.oldest.preferred_batch_size", "sizes that run as soon as they can be formed"),
    _done("sequence_batching.oldest.max_queue_delay_microseconds", "longest wait for company"),
    _done("sequence_batching.oldest.preserve_ordering", "answers leave in the order in which batches were formed"),
    _done("sequence_batching.oldest", "dense batches of the sequences that have a request ready"),
    _done(
        "sequence_batching.max_sequence_idle_microseconds",
        "sequences without a request for so long are forgotten; a second where absent",
    ),
    _done("sequence_batching.control_input.name", "an input of the model that is not in `input`"),
    _done("sequence_batching.control_input.control.kind", "what it tells: start, end, ready, or the sequence's id"),
    _done("sequence_batching.control_input.control.int32_false_true", "the two values"),
    _done("sequence_batching.control_input.control.fp32_false_true", "the two values"),
    _done("sequence_batching.control_input.control.bool_false_true", "the two values"),
    _done("sequence_batching.control_input.control.data_type", "of the id: 32 or 64 bit integers, or strings"),
    _done("sequence_batching.state.input_name", "an input of the model that is not in `input`"),
    _done("sequence_batching.state.output_name", "the output that is this input of the sequence's next request"),
    _done("sequence_batching.state.data_type", "must be the model's own"),
    _done("sequence_batching.state.dims", "must fit the model's own shape; a variable one is 1 at first"),
    _done("sequence_batching.state.initial_state.name", "names it for people"),
    _done("sequence_batching.state.initial_state.data_type", "must be the state's"),
    _done("sequence_batching.state.initial_state.dims", "its shape, without variable dimensions"),
    _done("sequence_batching.state.initial_state.zero_data", "zeros; empty strings"),
    _done("sequence_batching.state.initial_state.data_file", "a file of `initial_state/` in the model's directory"),
    _idle("sequence_batching.state.use_same_buffer_for_input_output", "every run gets states in memory of their own"),
    _idle("sequence_batching.state.use_growable_memory", "states are held in the host's memory"),
    _no("sequence_batching.iterative_sequence", "every request has exactly one answer, and runs once"),
    _done("sequence_batching", "requests of a sequence run one after the other: see [sequences](../sequences.md)"),
    _done("ensemble_scheduling.step.model_name", "a composing model; it is loaded with the ensemble"),
    _done("ensemble_scheduling.step.model_version", "-1: the highest that serves"),
    _done("ensemble_scheduling.step.input_map", "input of the composing model by tensor of the ensemble"),
    _done("ensemble_scheduling.step.output_map", "output of the composing model to tensor of the ensemble"),
    _no("ensemble_scheduling.step.model_namespace", "names are unique over all repositories"),
    _idle(
        "ensemble_scheduling.max_inflight_requests",
        "bounds how many requests of one step a request may have under way; each step has one, as none may be decoupled",
    ),
    _done("instance_group.name", "`<model>_<index>` where absent"),
    _done("instance_group.kind", "`KIND_CPU`, `KIND_GPU`; `KIND_AUTO` takes GPUs where there are any"),
    _no("instance_group.kind", "an ONNX model does not choose its devices by itself", "KIND_MODEL"),
    _done("instance_group.count", "instances, on each GPU of the group; where absent 1, or 2 for ONNX on a CPU"),
    _done(
        "instance_group.rate_limiter.resources",
        "what an instance holds while it runs, of each device or (`global`) of all, where the rate limiter is on "
        "(`--rate-limit=execution_count`); not for sequences",
    ),
    _done(
        "instance_group.rate_limiter.priority", "2: half the runs of 1 where instances wait for each other's resources"
    ),
    _done("instance_group.gpus", "devices by number; all where absent"),
    _no("instance_group.secondary_devices", _TENSORRT),
    _no("instance_group.profile", _TENSORRT),
    _no("instance_group.passive", "an instance that gets no requests would hold memory for nothing"),
    _no("instance_group.host_policy", "instances are not bound to NUMA nodes or cores (`--host-policy`)"),
    _done(
        "default_model_filename",
        "`model.onnx` or `model.py` where absent; a directory of that name holds `model.onnx` with its data",
    ),
    _done("cc_model_filenames", "the file for GPUs of a compute capability (`8.0`), in place of the default one"),
    _done("metric_tags", "labels of the model's metrics, `_` before each name"),
    _done("parameters", "see below"),
    _done("model_warmup.name", "names the sample in errors"),
    _done("model_warmup.batch_size", "items in each run; 0 skips the sample"),
    _done("model_warmup.inputs.data_type", "must be the input's own"),
    _done("model_warmup.inputs.dims", "shape of one item, without variable dimensions"),
    _done("model_warmup.inputs.zero_data", "zeros; empty strings"),
    _done("model_warmup.inputs.random_data", "the same random values at every load"),
    _done(
        "model_warmup.inputs.input_data_file",
        "a file of `warmup/` in the model's directory: one item, or a whole batch",
    ),
    _done("model_warmup.count", "runs on each instance before the model is ready; 0 is 1"),
    _no("model_operations.op_library_filename", "a library of custom operators would run any code in the server"),
    _done("model_transaction_policy.decoupled", "any number of responses to a request; models in Python only"),
    _no("model_repository_agents", "no agents are loaded: what is in the repository is served as it is"),
    _done(
        "response_cache.enable",
        "answers are kept and given again where the server has a cache (`--cache-config`), but for sequences, ensembles, "
        "decoupled models and what is in shared memory",
    ),
    _done("model_metrics.metric_control.metric_identifier.family", "`nv_inference_first_response_histogram_ms`"),
    _done(
        "model_metrics.metric_control.histogram_options.buckets",
        "bounds in milliseconds, where the histogram is on (`--metrics-config=histogram_latencies=true`)",
    ),
)

_BY_KEY = {(field.path, field.only): field for field in FIELDS}


def row(path: str, only: str = "") -> Field | None:
    """What is said of that path, or else of the nearest one above it."""
    exact = _BY_KEY.get((path, only)) or _BY_KEY.get((path, ""))
    if exact is not None or "." not in path:
        return exact
    return row(path.rpartition(".")[0])


def given(config: message.Message) -> Iterator[Field]:
    """The rows of all that the message sets to something, in its order, each once."""
    seen: dict[tuple[str, str], Field] = {}
    for path, only in _set(config, ""):
        field = row(path, only)
        if field is not None:
            seen.setdefault((field.path, field.only), field)
    yield from seen.values()


def _set(value: message.Message, prefix: str) -> Iterator[tuple[str, str]]:
    for field, content in value.ListFields():
        path = prefix + field.name
        for each in _members(field, content):
            if isinstance(each, message.Message):
                yield path, ""
                yield from _set(each, f"{path}.")
            else:
                yield path, _enum_name(field, each)


def _members(field: Any, content: Any) -> list[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return list(content.values())
    return list(content) if field.is_repeated else [content]


def _enum_name(field: Any, number: Any) -> str:
    known = field.enum_type.values_by_number.get(number) if field.enum_type is not None else None
    return known.name if known is not None else ""
