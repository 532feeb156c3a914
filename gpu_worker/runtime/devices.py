"""What this machine has to run models on, and how much memory is in use there.

A build that knows CUDA proves nothing: only the driver's own answer counts as a device. Libraries that are missing and
drivers that are too old fail in different ways; both mean that there is none.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pathlib
import uuid
from typing import Any

import structlog

from gpu_worker.runtime import port

log = structlog.get_logger(__name__)

_STATM = pathlib.Path("/proc/self/statm")


def cuda_devices() -> int:
    """GPUs that the CUDA driver reports; 0 where there is no driver."""
    runtime = _cuda_runtime()
    if runtime is None:
        return 0
    try:
        status, count = runtime.cudaGetDeviceCount()
    except Exception as error:  # noqa: BLE001 - a missing library surfaces as one of several unrelated types
        log.info("cuda.unusable", error=str(error))
        return 0
    return int(count) if int(status) == 0 else 0


def memory_in_use_bytes(device: port.Device) -> int:
    """Resident bytes of this process, or bytes taken on the GPU by anyone."""
    return _gpu_in_use_bytes(device.ordinal) if device.kind == "GPU" else _resident_bytes()


def compute_capability(ordinal: int) -> str:
    """`major.minor` of a GPU, empty where the driver does not tell."""
    runtime = _cuda_runtime()
    if runtime is None:
        return ""
    parts = []
    for name in ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor"):
        status, value = runtime.cudaDeviceGetAttribute(getattr(runtime.cudaDeviceAttr, name), ordinal)
        if int(status) != 0:
            return ""
        parts.append(str(value))
    return ".".join(parts)


def gpu_uuid(ordinal: int) -> str:
    """The name that NVML knows a GPU by, empty where the driver does not tell."""
    runtime = _cuda_runtime()
    if runtime is None:
        return ""
    status, properties = runtime.cudaGetDeviceProperties(ordinal)
    return f"GPU-{uuid.UUID(bytes=bytes(properties.uuid.bytes))}" if int(status) == 0 else ""


def reclaim() -> None:
    """Gives freed memory back to the operating system, as far as it can be."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident_bytes() -> int:
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _gpu_in_use_bytes(ordinal: int) -> int:
    runtime = _cuda_runtime()
    if runtime is None:
        return 0
    (status,) = runtime.cudaSetDevice(ordinal)
    if int(status) != 0:
        return 0
    status, free_bytes, total_bytes = runtime.cudaMemGetInfo()
    return int(total_bytes) - int(free_bytes) if int(status) == 0 else 0


def _cuda_runtime() -> Any:
    # Only the GPU distribution brings it.
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return None
