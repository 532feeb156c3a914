"""GPU memory that clients export with cudaIpcGetMemHandle and register.

Decides which handles may be opened, and moves bytes between the device and this process. The driver keeps an opened
allocation alive while its exporter does; a copy of what the exporter has freed fails and never ends the process. CUDA is
loaded at the first use and never without need: a server without a GPU answers as one that was built without.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from gpu_worker.engine import border
from gpu_worker.memory import system

HANDLE_BYTES = 64


class CudaMemory:
    """An opened allocation. Blocks where it is made, read and written; the first use of a device takes seconds."""

    def __init__(self, region: border.CudaRegion, handle: bytes) -> None:
        """Raises InferenceError INVALID_ARGUMENT for what cannot be opened, UNSUPPORTED where there are no GPUs."""
        self.region = region
        _check(region, handle)
        self._runtime = runtime = _runtime()
        self._select()
        self._address = self._open(handle)
        weakref.finalize(self, _close, runtime, region.device_id, self._address).atexit = False
        self._check_size()

    def read(self, offset: int, byte_size: int) -> border.Buffer:
        copy = system.room(byte_size, self.region.name)
        if byte_size:
            kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self._copy(_address_of(copy), self._address + offset, byte_size, kind)
        return copy

    def write(self, offset: int, data: border.Buffer) -> None:
        view = memoryview(data)
        if view.nbytes:
            kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
            self._copy(self._address + offset, _address_of(view), view.nbytes, kind)

    def _copy(self, target: int, source: int, byte_size: int, kind: Any) -> None:
        self._select()
        self._must(self._runtime.cudaMemcpy(target, source, byte_size, kind), border.ErrorKind.INTERNAL)
        # A copy from pageable memory may return before the device has all of it.
        self._must(self._runtime.cudaStreamSynchronize(0), border.ErrorKind.INTERNAL)

    def _open(self, handle: bytes) -> int:
        opened = self._runtime.cudaIpcMemHandle_t()
        opened.reserved = handle
        flags = self._runtime.cudaIpcMemLazyEnablePeerAccess
        return int(self._must(self._runtime.cudaIpcOpenMemHandle(opened, flags), border.ErrorKind.INVALID_ARGUMENT))

    def _check_size(self) -> None:
        """Refuses more bytes than the exported allocation has after the address that the handle leads to."""
        driver = importlib.import_module("cuda.bindings.driver")
        status, base, size_bytes = driver.cuMemGetAddressRange(self._address)
        if int(status) != 0:
            raise self._failed(f"its size cannot be read (CUDA error {int(status)})", border.ErrorKind.INVALID_ARGUMENT)
        available = int(base) + int(size_bytes) - self._address
        if self.region.byte_size > available:
            raise self._failed(
                f"byte_size {self.region.byte_size} is beyond the {available} bytes of the exported allocation",
                border.ErrorKind.INVALID_ARGUMENT,
            )

    def _select(self) -> None:
        self._must(self._runtime.cudaSetDevice(self.region.device_id), border.ErrorKind.INVALID_ARGUMENT)

    def _must(self, returned: tuple[Any, ...], kind: border.ErrorKind) -> Any:
        """What a call returned beside its status."""
        status, *values = returned
        if int(status) != 0:
            raise self._failed(_words(self._runtime, status), kind)
        return values[0] if values else None

    def _failed(self, reason: str, kind: border.ErrorKind) -> border.InferenceError:
        return border.InferenceError(kind, f"CUDA shared memory region '{self.region.name}' cannot be used: {reason}")


def gpus() -> int:
    """How many GPUs can be used; 0 where CUDA is not installed or has no driver."""
    try:
        status, count = _runtime().cudaGetDeviceCount()
    except Exception:  # noqa: BLE001 - a missing library surfaces as one of several unrelated types
        return 0
    return int(count) if int(status) == 0 else 0


def _check(region: border.CudaRegion, handle: bytes) -> None:
    count = gpus()
    if not count:
        raise _no_gpus()
    if not 0 <= region.device_id < count:
        raise _invalid(region, f"device_id {region.device_id} is not one of the {count} GPUs")
    if len(handle) != HANDLE_BYTES:
        raise _invalid(region, f"its raw_handle must have {HANDLE_BYTES} bytes, got {len(handle)}")
    if region.byte_size <= 0:
        raise _invalid(region, f"byte_size must be above 0, got {region.byte_size}")


def _runtime() -> Any:
    return importlib.import_module("cuda.bindings.runtime")


def _close(runtime: Any, device_id: int, address: int) -> None:
    runtime.cudaSetDevice(device_id)
    runtime.cudaIpcCloseMemHandle(address)


def _address_of(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def _words(runtime: Any, status: Any) -> str:
    told: Callable[[Any], tuple[Any, Any]] = runtime.cudaGetErrorString
    _, words = told(status)
    return words.decode(errors="replace") if isinstance(words, bytes) else str(words)


def _no_gpus() -> border.InferenceError:
    return border.InferenceError(
        border.ErrorKind.UNSUPPORTED, "GPUs not supported: this server has none that shared memory could be on"
    )


def _invalid(region: border.CudaRegion, reason: str) -> border.InferenceError:
    return border.InferenceError(
        border.ErrorKind.INVALID_ARGUMENT, f"failed to register CUDA shared memory region '{region.name}': {reason}"
    )
