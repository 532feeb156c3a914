"""Which backend a model is for: what its configuration says, else its files, else its directory's name.

Pure. ONNX Runtime and Python are built in: models of other backends are recognised to be refused by name.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from gpu_worker.engine import border
from gpu_worker.repository import configuration, support
from protos.inference.v2 import model_config_pb2

_ENDINGS = {".onnx": configuration.BACKEND, ".py": configuration.PYTHON}
_FILES = {
    configuration.DEFAULT_FILENAME: configuration.BACKEND,
    "model.plan": "tensorrt",
    "model.pt": "pytorch",
    "model.savedmodel": "tensorflow",
    "model.graphdef": "tensorflow",
    "model.xml": "openvino",
    configuration.PYTHON_FILENAME: configuration.PYTHON,
}
BACKENDS = (configuration.BACKEND, configuration.PYTHON)


def settle(config: model_config_pb2.ModelConfig, contents: Iterable[str]) -> None:
    """Fills in backend and platform; `contents` are the names that lie in the model's version directories.

    Raises InferenceError: UNSUPPORTED for another backend, INVALID_ARGUMENT where none can be told.
    """
    backend = config.backend or (configuration.BACKEND if config.platform else _found(config, set(contents)))
    if backend not in BACKENDS:
        told = f"backend '{backend}', which its files or its name tell of (known are {', '.join(BACKENDS)})"
        raise support.unsupported(config.name, told)
    support.check_backend(config, backend)
    config.backend = backend
    config.platform = configuration.PLATFORM if backend == configuration.BACKEND else ""


def _found(config: model_config_pb2.ModelConfig, contents: set[str]) -> str:
    for ending, backend in _ENDINGS.items():
        if config.default_model_filename.endswith(ending):
            return backend
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
