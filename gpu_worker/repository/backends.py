"""Which backend a model is for: what its configuration says, else its files, else its directory's name.

Pure. Only ONNX Runtime is built in: models of other backends are recognised to be refused by name.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from gpu_worker.engine import border
from gpu_worker.repository import configuration, support
from protos.inference.v2 import model_config_pb2

_ONNX = ".onnx"
_FILES = {
    configuration.DEFAULT_FILENAME: configuration.BACKEND,
    "model.plan": "tensorrt",
    "model.pt": "pytorch",
    "model.savedmodel": "tensorflow",
    "model.graphdef": "tensorflow",
    "model.xml": "openvino",
    "model.py": "python",
}


def settle(config: model_config_pb2.ModelConfig, contents: Iterable[str]) -> None:
    """Fills in backend and platform; `contents` are the names that lie in the model's version directories.

    Raises InferenceError: UNSUPPORTED for another backend, INVALID_ARGUMENT where none can be told.
    """
    if not (config.backend or config.platform):
        backend = _found(config, set(contents))
        if backend != configuration.BACKEND:
            told = f"backend '{backend}', which its files or its name tell of (only '{configuration.BACKEND}' is)"
            raise support.unsupported(config.name, told)
    config.backend = configuration.BACKEND
    config.platform = configuration.PLATFORM


def _found(config: model_config_pb2.ModelConfig, contents: set[str]) -> str:
    if config.default_model_filename.endswith(_ONNX):
        return configuration.BACKEND
    for name, backend in _FILES.items():
        if name in contents:
            return backend
    suffix = pathlib.PurePosixPath(config.name).suffix.removeprefix(".")
    if suffix:
        return suffix
    raise border.InferenceError(
        border.ErrorKind.INVALID_ARGUMENT,
        f"could not determine the backend of model '{config.name}': no version has a file "
        f"'{configuration.DEFAULT_FILENAME}'; give backend in {configuration.CONFIG_FILE}, or name the directory "
        f"{config.name}.<backend>",
    )
