"""Exports GPU memory as a client of the CUDA shared memory extension does; a process of its own, as CUDA asks.

Usage: python cuda_exporter.py BYTES. Fills its memory with 0, 1, 2, ..., prints the handle in hexadecimal, and for each
line that it reads prints the memory's content in hexadecimal. Ends with its input.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from cuda.bindings import runtime


def must(returned: tuple[Any, ...]) -> Any:
    status, *values = returned
    assert int(status) == 0, status
    return values[0] if values else None


def main() -> None:
    size_bytes = int(sys.argv[1])
    must(runtime.cudaSetDevice(0))
    address = must(runtime.cudaMalloc(size_bytes))
    host = (ctypes.c_ubyte * size_bytes)(*(index % 256 for index in range(size_bytes)))
    kinds = runtime.cudaMemcpyKind
    must(runtime.cudaMemcpy(address, ctypes.addressof(host), size_bytes, kinds.cudaMemcpyHostToDevice))
    must(runtime.cudaDeviceSynchronize())
    handle = must(runtime.cudaIpcGetMemHandle(address))
    sys.stdout.write(bytes(handle.reserved).hex() + "\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        must(runtime.cudaMemcpy(ctypes.addressof(host), address, size_bytes, kinds.cudaMemcpyDeviceToHost))
        sys.stdout.write(bytes(host).hex() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
