"""The models of the suite: each as an ONNX model that our worker serves and as its twin for Triton's Python backend.

Each server gets a repository of its own. The configurations are the same bytes: they name no backend, and each server
takes the one of the file that it finds.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence

from onnx import TensorProto, helper

from tests.conformance import ensembles
from tests.support import onnx_models

_TWIN = """import numpy
import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensor = lambda name: backend.get_input_tensor_by_name(request, name)
        array = lambda name: tensor(name).as_numpy()
        made = lambda name, value: backend.Tensor(name, value)
        return backend.InferenceResponse({outputs})
"""
_DECOUPLED = """import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            wanted = backend.get_input_tensor_by_name(request, "INPUT").as_numpy()
            for value in wanted:
                sender.send(backend.InferenceResponse([backend.Tensor("OUTPUT", value.reshape(1))]))
            sender.send(flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
_SCRIPTED = """import numpy
import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        given = backend.get_input_tensor_by_name(requests[0], "INPUT").as_numpy()
        order, *rest = given
        if order == b"number":
            return [7]
        if order == b"error":
            return [backend.InferenceResponse(error=backend.TritonError("as asked", getattr(backend.TritonError, rest[0].decode())))]
        if order == b"plain":
            return [backend.InferenceResponse(error=backend.TritonError("as asked"))]
        if order == b"ask":
            return [self.asked(rest[0].decode(), rest[1].decode())]
        if order == b"request":
            told = [requests[0].request_id(), requests[0].correlation_id(), requests[0].flags(), requests[0].timeout()]
            told += [requests[0].requested_output_names(), requests[0].parameters()]
            given = numpy.array([repr(each).encode() for each in told], numpy.object_)
        return [backend.InferenceResponse([backend.Tensor("OUTPUT", given)])]

    def asked(self, model, output):
        value = backend.Tensor("INPUT", numpy.arange(4, dtype=numpy.float32))
        asked = backend.InferenceRequest(model_name=model, requested_output_names=[output], inputs=[value])
        response = asked.exec()
        if response.has_error():
            return backend.InferenceResponse(error=response.error())
        array = backend.get_output_tensor_by_name(response, output).as_numpy()
        given = numpy.array([repr(each).encode() for each in array.ravel().tolist()], numpy.object_)
        return backend.InferenceResponse([backend.Tensor("OUTPUT", given)])
"""
_BROKEN = "raise RuntimeError('this model cannot be loaded')\n"
_COPY = '[backend.Tensor.from_dlpack("OUTPUT", tensor("INPUT").to_dlpack())]'
_SAME = '[made("OUTPUT", array("INPUT"))]'
_ADD_SUB = '[made("OUTPUT0", array("INPUT0") + array("INPUT1")), made("OUTPUT1", array("INPUT0") - array("INPUT1"))]'
_PICKY = '[made("OUTPUT", numpy.array([0, 10, 20, 30])[array("INPUT")])]'

DATATYPES = tuple(onnx_models.ONNX_TYPES)
LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")


@dataclasses.dataclass(frozen=True)
class Model:
    """One model; `versions` maps each version to its ONNX form and the source of its twin, or None: both run that source."""

    name: str
    config: str
    versions: Mapping[int, tuple[bytes | None, str]]
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    at_start: bool = True

    def write(self, into: Repositories) -> None:
        for version, (graph, twin) in self.versions.items():
            code = "model.py", twin.encode()
            ours = code if graph is None else ("model.onnx", graph)
            for repository, (name, content) in ((into.ours, ours), (into.triton, code)):
                directory = repository / self.name / str(version)
                directory.mkdir(parents=True)
                (directory / name).write_bytes(content)
        for name, text in {"config.pbtxt": self.config, **self.files}.items():
            for repository in (into.ours, into.triton):
                (repository / self.name / name).write_text(text)


@dataclasses.dataclass(frozen=True)
class Repositories:
    """Where the models lie for each server."""

    ours: pathlib.Path
    triton: pathlib.Path

    @classmethod
    def make(cls, folder: pathlib.Path, names: Collection[str] = ()) -> Repositories:
        """Writes the models of these names, or all, to two repositories below `folder`."""
        made = cls(folder / "ours", folder / "triton")
        for model in MODELS:
            if not names or model.name in names:
                model.write(made)
        return made


def at_start() -> tuple[str, ...]:
    return tuple(model.name for model in MODELS if model.at_start)


def config(
    inputs: Mapping[str, tuple[str, Sequence[int]]],
    outputs: Mapping[str, tuple[str, Sequence[int]]],
    batch: int = 0,
    more: str = "",
) -> str:
    """A config.pbtxt; tensors are given by name as datatype and dims."""
    return (
        f"max_batch_size: {batch}\ninput [{_tensors(inputs)}]\noutput [{_tensors(outputs)}]\n"
        f"instance_group [{{count: 1 kind: KIND_CPU}}]\n{more}\n"
    )


def twin(outputs: str) -> str:
    """The source of a Python model that answers with the given list of tensors."""
    return _TWIN.format(outputs=outputs)


def same(datatype: str, dims: Sequence[int], batch: int = 0, more: str = "") -> str:
    """The configuration of a model with one INPUT and one OUTPUT alike."""
    return config({"INPUT": (datatype, dims)}, {"OUTPUT": (datatype, dims)}, batch, more)


def identity(
    name: str, datatype: str, dims: Sequence[int], batch: int = 0, more: str = "", *, at_start: bool = True
) -> Model:
    """OUTPUT = INPUT."""
    graph = onnx_models.identity(datatype, _dims(dims, batch))
    source = twin(_COPY if datatype == "BF16" else _SAME)
    return Model(name, same(datatype, dims, batch, more), {1: (graph, source)}, at_start=at_start)


def _tensors(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> str:
    return ", ".join(
        f'{{name: "{name}" data_type: TYPE_{"STRING" if datatype == "BYTES" else datatype} dims: {list(dims)}}}'
        for name, (datatype, dims) in tensors.items()
    )


def _dims(dims: Sequence[int], batch: int) -> list[int | str]:
    found: list[int | str] = [f"d{index}" if dim < 0 else dim for index, dim in enumerate(dims)]
    return ["batch", *found] if batch else found


def _add_sub(name: str, datatype: str, dims: Sequence[int], batch: int) -> Model:
    tensors = (
        dict.fromkeys(("INPUT0", "INPUT1"), (datatype, dims)),
        dict.fromkeys(("OUTPUT0", "OUTPUT1"), (datatype, dims)),
    )
    graph = onnx_models.add_sub(datatype, _dims(dims, batch))
    return Model(name, config(*tensors, batch), {1: (graph, twin(_ADD_SUB))})


def _classes(name: str, datatype: str, batch: int, labels: Sequence[str]) -> Model:
    model = identity(name, datatype, [8], batch)
    text = model.config.replace("output [{", 'output [{label_filename: "labels.txt" ') if labels else model.config
    files = {"labels.txt": "".join(f"{label}\n" for label in labels)} if labels else {}
    return dataclasses.replace(model, config=text, files=files)


def _scaled(name: str, versions: Sequence[int], more: str) -> Model:
    """OUTPUT = INPUT times the version's number."""
    made = {
        version: (
            onnx_models.scale(version, ["d0"]),
            twin(f'[made("OUTPUT", array("INPUT") * numpy.float32({version}))]'),
        )
        for version in versions
    }
    return Model(name, same("FP32", [-1], more=more), made)


def _broken(name: str, text: str) -> Model:
    return Model(name, text, {1: (b"this is no graph", _BROKEN)}, at_start=False)


def _decoupled() -> Model:
    """OUTPUT = each element of INPUT in a response of its own."""
    text = config(
        {"INPUT": ("INT32", [-1])}, {"OUTPUT": ("INT32", [1])}, more="model_transaction_policy {decoupled: true}"
    )
    return Model("decoupled", text, {1: (None, _DECOUPLED)}, at_start=False)


def _scripted() -> Model:
    """Does what INPUT says."""
    return Model("scripted", config({"INPUT": ("STRING", [-1])}, {"OUTPUT": ("STRING", [-1])}), {1: (None, _SCRIPTED)})


def _ensemble() -> Model:
    text = """platform: "ensemble"
max_batch_size: 0
input [{name: "IN" data_type: TYPE_FP32 dims: [-1]}]
output [{name: "OUT" data_type: TYPE_FP32 dims: [-1]}]
ensemble_scheduling {step [
  {model_name: "id_fp32" model_version: -1 input_map {key: "INPUT" value: "IN"} output_map {key: "OUTPUT" value: "MID"}},
  {model_name: "versioned" model_version: -1 input_map {key: "INPUT" value: "MID"} output_map {key: "OUTPUT" value: "OUT"}}
]}
"""
    return Model("ensemble", text, {1: (b"", "")}, at_start=False)


def _sequence() -> Model:
    """OUTPUT = INPUT; the start flag is a control input that the server fills in."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["INPUT", "START"], ["OUTPUT"])],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 1)) for name in ("INPUT", "START")],
        [helper.make_tensor_value_info("OUTPUT", TensorProto.FLOAT, ("batch", 1))],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    control = '{name: "START" control {kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1]}}'
    text = same("FP32", [1], 4, f"sequence_batching {{control_input [{control}]}}")
    return Model(
        "sequence",
        text,
        {1: (made.SerializeToString(), twin('[made("OUTPUT", array("INPUT") + array("START"))]'))},
        at_start=False,
    )


def _candidates() -> Model:
    """OUTPUT = INPUT + 10 * START + 100 * END + 1000 * READY, ID the sequence's; one sequence at a time."""
    controls = {"START": 10, "END": 100, "READY": 1000}
    nodes = [helper.make_node("Identity", ["CORRID"], ["ID"])]
    total = "INPUT"
    for name in controls:
        nodes.append(helper.make_node("Mul", [name, f"TIMES_{name}"], [f"SCALED_{name}"]))
        nodes.append(
            helper.make_node("Add", [total, f"SCALED_{name}"], [f"WITH_{name}" if name != "READY" else "OUTPUT"])
        )
        total = f"WITH_{name}"
    row: list[str | int] = ["batch", 1]
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, row) for name in ("INPUT", *controls)]
    graph = helper.make_graph(
        nodes,
        "graph",
        [*floats, helper.make_tensor_value_info("CORRID", TensorProto.UINT64, row)],
        [
            helper.make_tensor_value_info("OUTPUT", TensorProto.FLOAT, row),
            helper.make_tensor_value_info("ID", TensorProto.UINT64, row),
        ],
        [helper.make_tensor(f"TIMES_{name}", TensorProto.FLOAT, [], [times]) for name, times in controls.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    told = " ".join(
        f'control_input [{{name: "{name}" control {{kind: CONTROL_SEQUENCE_{name} fp32_false_true: [0, 1]}}}}]'
        for name in controls
    )
    told += ' control_input [{name: "CORRID" control {kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64}}]'
    more = (
        f"sequence_batching {{max_sequence_idle_microseconds: 60000000 oldest {{max_candidate_sequences: 1}} {told}}}"
    )
    text = config({"INPUT": ("FP32", [1])}, {"OUTPUT": ("FP32", [1]), "ID": ("UINT64", [1])}, 4, more)
    sums = 'array("INPUT") + 10 * array("START") + 100 * array("END") + 1000 * array("READY")'
    answer = f'[made("OUTPUT", ({sums}).astype(numpy.float32)), made("ID", array("CORRID"))]'
    return Model("candidates", text, {1: (made.SerializeToString(), twin(answer))}, at_start=False)


def _slow() -> Model:
    """OUTPUT = INPUT after a second or so; what a client gives up meanwhile is never answered."""
    source = (
        twin(_SAME)
        .replace("import numpy", "import numpy\nimport time")
        .replace("return backend.Inf", "time.sleep(1)\n        return backend.Inf")
    )
    return Model("slow", same("FP32", [-1, 4]), {1: (onnx_models.slow(), source)})


_PATIENCE = """max_queue_delay_microseconds: 200000 preferred_batch_size: 8
  priority_levels: 2 default_priority_level: 2
  default_queue_policy {default_timeout_microseconds: 20000 allow_timeout_override: true}
  priority_queue_policy {key: 1 value {timeout_action: DELAY default_timeout_microseconds: 1000}}"""
_WRONG_QUEUES = {
    "levels": "priority_levels: 2 default_priority_level: 3",
    "policy": "priority_levels: 1 default_priority_level: 1 priority_queue_policy {key: 2 value {}}",
    "order": "priority_levels: 2 default_priority_level: 1 preserve_ordering: true",
    "delay": "preserve_ordering: true default_queue_policy {timeout_action: DELAY default_timeout_microseconds: 1}",
}


def _queued() -> Iterator[Model]:
    """Models whose requests wait for company, until their queue has no more patience or no more room."""
    queues = {
        "impatient": _PATIENCE,
        "unbounded": "max_queue_delay_microseconds: 200000 preferred_batch_size: 8 "
        "default_queue_policy {allow_timeout_override: true}",
        "strict": "max_queue_delay_microseconds: 200000 preferred_batch_size: 8 "
        "default_queue_policy {default_timeout_microseconds: 60000000}",
        "narrow": "max_queue_delay_microseconds: 200000 preferred_batch_size: 8 default_queue_policy {max_queue_size: 1}",
        "levelled": "max_queue_delay_microseconds: 200000 preferred_batch_size: 8 priority_levels: 2 "
        "default_priority_level: 2 priority_queue_policy {key: 2 value {max_queue_size: 1}}",
    }
    for name, queue in queues.items():
        yield identity(name, "FP32", [4], 8, f"dynamic_batching {{{queue}}}")
    for name, queue in _WRONG_QUEUES.items():
        yield identity(f"wrong_{name}", "FP32", [4], 8, f"dynamic_batching {{{queue}}}", at_start=False)


MODELS = (
    *(identity(f"id_{datatype.lower()}", datatype, [-1]) for datatype in DATATYPES),
    identity("batched", "FP32", [4], 8, "dynamic_batching {}"),
    identity("fixed", "FP32", [2, 3]),
    identity("matrix", "FP32", [-1, -1]),
    identity("text", "BYTES", [1]),
    identity("batched_text", "BYTES", [1], 8),
    _add_sub("add_sub", "FP32", [4], 8),
    _add_sub("add_sub_int", "INT32", [-1], 0),
    _classes("classes", "FP32", 8, LABELS),
    _classes("classes_int", "INT32", 0, LABELS[:3]),
    _classes("classes_plain", "FP64", 0, ()),
    Model(
        "picky",
        config({"INPUT": ("INT64", [1])}, {"OUTPUT": ("INT64", [1])}, 8),
        {1: (onnx_models.picky(), twin(_PICKY))},
    ),
    _scaled("versioned", (1, 3, 7), "version_policy {specific {versions: [1, 3]}}"),
    _scaled("latest", (1, 2), ""),
    _slow(),
    identity("idle", "FP32", [-1], at_start=False),
    *_queued(),
    *(
        identity(
            name,
            "FP32",
            [4],
            8,
            f'instance_group [{{count: 2 kind: KIND_CPU rate_limiter {{resources [{{name: "R" count: {count}}}] priority: 2}}}}]',
            at_start=False,
        )
        for name, count in (("limited", 1), ("greedy", 4))
    ),
    identity("cached", "FP32", [4], 8, "response_cache {enable: true}", at_start=False),
    # Nobody ever loads it.
    identity("untouched", "FP32", [-1], at_start=False),
    # Each for one case: Triton's loads with a configuration depend on what was loaded before.
    identity("forgotten_http", "FP32", [-1], at_start=False),
    identity("forgotten_grpc", "FP32", [-1], at_start=False),
    identity("counted", "FP32", [4], 8, at_start=False),
    _broken("broken", same("FP32", [-1])),
    _broken("misnamed", 'name: "other"\n' + same("FP32", [-1])),
    _broken("unreadable", "max_batch_size: many\n"),
    _decoupled(),
    _scripted(),
    _ensemble(),
    *(Model(name, text, {1: (b"", "")}, at_start=False) for name, text in ensembles.TEXTS.items()),
    _sequence(),
    _candidates(),
)
