"""ONNX Runtime behind the port; the only module that imports it.

A session that was asked to run on CUDA and does not is a failed load, never a slow model.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from gpu_worker.runtime import devices, onnx_graph, port

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_ONNX_BFLOAT16 = 16
# Every failure comes back as an exception; lines written beside it would break up the log.
_FATAL = 4

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
    "tensor(bfloat16)": "BF16",
}
_GRAPH_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

Array = npt.NDArray[Any]

onnxruntime.set_default_logger_severity(_FATAL)


class OnnxRuntime:
    """Loads ONNX models on the CPU and on CUDA devices."""

    def gpus(self) -> int:
        return devices.cuda_devices() if _CUDA in onnxruntime.get_available_providers() else 0

    def load(self, model: pathlib.Path, device: port.Device, options: port.SessionOptions) -> port.Program:
        if device.kind == "GPU" and device.ordinal >= self.gpus():
            raise port.LoadFailed(f"GPU {device.ordinal} was asked for, but CUDA can use {self.gpus()} GPU(s) here")
        if device.kind == "GPU":
            _find_cuda_libraries()
        try:
            session = onnxruntime.InferenceSession(
                str(_graph_file(model)), _session_options(options), providers=_providers(device, options)
            )
        except Exception as error:
            raise port.LoadFailed(f"onnx runtime error: {error}") from error
        _require_provider(session, device)
        program: type[_Session] = _Bfloat16Session if _uses_bfloat16(session) else _Session
        # With operators side by side the caller only waits: what its thread takes tells nothing.
        steady = device.kind == "CPU" and not options.parallel and onnx_graph.is_steady(_graph_file(model))
        return program(session, device, options, steady=steady)

    def uuid(self, device: port.Device) -> str:
        return devices.gpu_uuid(device.ordinal) if device.kind == "GPU" else ""

    def capability(self, device: port.Device) -> str:
        return devices.compute_capability(device.ordinal) if device.kind == "GPU" else ""

    def complete(self, model: pathlib.Path, options: port.SessionOptions) -> str | None:  # noqa: ARG002 - a graph is no code
        return None


class _Session:
    """A session and the names of its tensors."""

    def __init__(self, session: Any, device: port.Device, options: port.SessionOptions, *, steady: bool) -> None:
        self._session = session
        self.steady = steady
        self.inputs = tuple(_info(each, optional=False) for each in session.get_inputs()) + tuple(
            _info(each, optional=True) for each in session.get_overridable_initializers()
        )
        self.outputs = tuple(_info(each, optional=False) for each in session.get_outputs())
        # A CUDA session has one stream of its own: sharing it lines the instances up, but saves memory.
        self.shareable = device.kind == "CPU" or options.share
        self._run_options = _run_options(options.run_options)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        try:
            arrays = self._session.run(outputs, feeds, self._run_options)
        except Exception as error:
            raise port.RunFailed(f"onnx runtime error: {error}") from error
        return [_contiguous(name, array) for name, array in zip(outputs, arrays, strict=True)]


class _Bfloat16Session(_Session):
    """A session some of whose tensors numpy has no type for: they go in and out as raw uint16."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        bfloat16 = {info.name for info in self.inputs if info.datatype == "BF16"}
        values = {name: _value(array, bfloat16=name in bfloat16) for name, array in feeds.items()}
        try:
            results = self._session.run_with_ort_values(outputs, values, self._run_options)
        except Exception as error:
            raise port.RunFailed(f"onnx runtime error: {error}") from error
        return [_contiguous(name, _array(result)) for name, result in zip(outputs, results, strict=True)]


@functools.cache
def _find_cuda_libraries() -> None:
    """Loads CUDA and cuDNN from their Python wheels where they came that way; what it cannot find it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _graph_file(model: pathlib.Path) -> pathlib.Path:
    """A directory holds the graph under its own name's default, beside its external data."""
    return model / "model.onnx" if model.is_dir() else model


def _session_options(options: port.SessionOptions) -> Any:
    if options.graph_level is not None and options.graph_level not in _GRAPH_LEVELS:
        raise port.LoadFailed(f"optimization.graph.level {options.graph_level} is not one of {sorted(_GRAPH_LEVELS)}")
    session = onnxruntime.SessionOptions()
    session.log_severity_level = _FATAL
    session.intra_op_num_threads = options.intra_op_threads
    session.inter_op_num_threads = options.inter_op_threads
    session.enable_cpu_mem_arena = options.memory_arena
    session.enable_mem_pattern = options.memory_pattern
    for key, value in options.session_entries.items():
        session.add_session_config_entry(key, value)
    if options.parallel:
        session.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    if options.graph_level is not None:
        session.graph_optimization_level = _GRAPH_LEVELS[options.graph_level]
    # Threads that spin for work starve the other models of this process.
    session.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return session


def _providers(device: port.Device, options: port.SessionOptions) -> list[Any]:
    if device.kind == "CPU":
        return [_CPU]
    # Nodes without a CUDA kernel may still run on the CPU; that CUDA is in force is checked on the session.
    return [(_CUDA, {**options.device_options, "device_id": str(device.ordinal)}), _CPU]


def _require_provider(session: Any, device: port.Device) -> None:
    if device.kind == "GPU" and _CUDA not in session.get_providers():
        raise port.LoadFailed(
            f"GPU {device.ordinal} was asked for, but ONNX Runtime could not use CUDA and fell back to "
            f"{session.get_providers()}"
        )


def _run_options(entries: Mapping[str, str]) -> Any:
    if not entries:
        return None
    options = onnxruntime.RunOptions()
    for key, value in entries.items():
        options.add_run_config_entry(key, value)
    return options


def _uses_bfloat16(session: Any) -> bool:
    tensors = [*session.get_inputs(), *session.get_outputs(), *session.get_overridable_initializers()]
    return any(each.type == "tensor(bfloat16)" for each in tensors)


def _info(node: Any, *, optional: bool) -> port.TensorInfo:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise port.LoadFailed(f"'{node.name}' is of type {node.type}, which the inference protocol cannot carry")
    shape = node.shape
    if shape is not None:
        shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in shape)
    return port.TensorInfo(node.name, datatype, shape, optional)


def _contiguous(name: str, array: Any) -> Array:
    if not isinstance(array, np.ndarray):
        raise port.RunFailed(f"output '{name}' is no tensor but a {type(array).__name__}")
    return np.ascontiguousarray(array) if array.ndim else array


def _value(array: Array, *, bfloat16: bool) -> Any:
    if bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _ONNX_BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _array(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        found: Array = value.numpy()
        return found
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if value.tensor_size_in_bytes() else b""
    return np.frombuffer(raw, np.dtype("<u2")).reshape(value.shape())
