"""The identity model in the form that each server takes. OUTPUT = INPUT, FP32, any number of columns."""

from __future__ import annotations

import json
import pathlib

import onnx
from onnx import TensorProto, helper

NAME = "identity"
MAX_BATCH = 64
_CONFIG = f"""name: "{NAME}"
max_batch_size: {MAX_BATCH}
input [{{name: "INPUT" data_type: TYPE_FP32 dims: [-1]}}]
output [{{name: "OUTPUT" data_type: TYPE_FP32 dims: [-1]}}]
dynamic_batching {{}}
"""
_TRITON = """import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        return [
            backend.InferenceResponse(
                [backend.Tensor("OUTPUT", backend.get_input_tensor_by_name(request, "INPUT").as_numpy())]
            )
            for request in requests
        ]
"""
_MLSERVER = """from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput


class Identity(MLModel):
    async def predict(self, payload):
        given = payload.inputs[0]
        output = ResponseOutput(
            name="OUTPUT", shape=given.shape, datatype=given.datatype, data=given.data, parameters=given.parameters
        )
        return InferenceResponse(model_name=self.name, outputs=[output])
"""


def ours(folder: pathlib.Path, instances: int) -> pathlib.Path:
    """A repository with an ONNX model."""
    repository = folder / f"ours-{instances}"
    version = _configured(repository, instances)
    (version / "model.onnx").write_bytes(onnx_identity())
    return repository


def triton(folder: pathlib.Path, instances: int) -> pathlib.Path:
    """A repository with a model of Triton's Python backend."""
    repository = folder / f"triton-{instances}"
    version = _configured(repository, instances)
    (version / "model.py").write_text(_TRITON)
    return repository


def mlserver(folder: pathlib.Path) -> pathlib.Path:
    """A folder that MLServer is started in."""
    repository = folder / "mlserver"
    repository.mkdir()
    (repository / "identity.py").write_text(_MLSERVER)
    settings = {"name": NAME, "implementation": "identity.Identity"}
    (repository / "model-settings.json").write_text(json.dumps(settings))
    return repository


def onnx_identity() -> bytes:
    """The ONNX graph: one Identity node."""
    kind, dims = TensorProto.FLOAT, ("batch", "columns")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["INPUT"], ["OUTPUT"])],
        NAME,
        [helper.make_tensor_value_info("INPUT", kind, dims)],
        [helper.make_tensor_value_info("OUTPUT", kind, dims)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _configured(repository: pathlib.Path, instances: int) -> pathlib.Path:
    version = repository / NAME / "1"
    version.mkdir(parents=True)
    group = f"instance_group [{{kind: KIND_CPU count: {instances}}}]\n"
    (repository / NAME / "config.pbtxt").write_text(_CONFIG + group)
    return version
