"""POSIX shared memory objects that clients register.

Decides which objects may be opened, and how their bytes are moved. They are read and written through the file
descriptor and never mapped: whoever may open an object may also truncate it, at any moment, and touching a mapped page
that is gone kills the process with SIGBUS, which no check beforehand can rule out. A read of what is gone comes back
short instead, and a write at worst gives the object its registered size back. What is read is a copy, so that nobody
changes it under the model.
"""

from __future__ import annotations

import errno
import os
import pathlib
import stat
import weakref

import numpy as np

from gpu_worker.engine import border

# shm_open(3) keeps its objects here on Linux; opened by path, since Python offers no shm_open.
_DIRECTORY = pathlib.Path("/dev/shm")  # noqa: S108 - not a temporary file of ours
_RESERVED = "triton_python_backend_shm_region_"
_LONGEST = 255
_MAX_BYTES = 2**63 - 1


def room(byte_size: int, name: str) -> memoryview:
    """Memory of our own for a copy of a part of region `name`; InferenceError UNAVAILABLE where there is not so much."""
    try:
        return np.empty(byte_size, np.uint8).data
    except MemoryError:
        raise border.InferenceError(
            border.ErrorKind.UNAVAILABLE, f"no memory for {byte_size} bytes of shared memory region '{name}'"
        ) from None


class SystemMemory:
    """An object as it was when it was opened: one made anew under the same key is another."""

    def __init__(self, region: border.SystemRegion) -> None:
        """Raises InferenceError INVALID_ARGUMENT for what cannot be opened or does not hold these bytes."""
        if region.offset < 0 or region.byte_size <= 0 or region.offset + region.byte_size > _MAX_BYTES:
            raise _invalid(
                f"failed to register shared memory region '{region.name}': invalid args: offset must be 0 or more and "
                f"byte_size above 0, got {region.offset} and {region.byte_size}"
            )
        self.region = region
        self._file = _open(region)
        weakref.finalize(self, os.close, self._file).atexit = False

    def read(self, offset: int, byte_size: int) -> border.Buffer:
        copy = room(byte_size, self.region.name)
        done = 0
        while done < byte_size:
            got = os.preadv(self._file, [copy[done:]], self.region.offset + offset + done)
            if not got:
                raise self._truncated()
            done += got
        return copy

    def write(self, offset: int, data: border.Buffer) -> None:
        # Where it is truncated after this, the write grows it again, never beyond what was registered.
        _check_size(self.region, self._file)
        rest, position = memoryview(data).cast("B"), self.region.offset + offset
        try:
            while rest:
                done = os.pwrite(self._file, rest, position)
                rest, position = rest[done:], position + done
        except OSError as error:
            raise border.InferenceError(
                border.ErrorKind.INTERNAL,
                f"cannot write to shared memory region '{self.region.name}': {os.strerror(error.errno or 0)}",
            ) from None

    def _truncated(self) -> border.InferenceError:
        return _invalid(f"shared memory region '{self.region.name}' has been truncated since it was registered")


def _open(region: border.SystemRegion) -> int:
    name = _checked(region.key)
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.open(_DIRECTORY / name, flags)
    except (OSError, ValueError) as error:
        reason = os.strerror(getattr(error, "errno", None) or errno.EINVAL)
        raise _invalid(f"Unable to open shared memory region: '{region.key}': {reason}") from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise _invalid(f"Unable to open shared memory region: '{region.key}': not a shared memory object")
        _check_size(region, file)
    except border.InferenceError:
        os.close(file)
        raise
    return file


def _check_size(region: border.SystemRegion, file: int) -> None:
    size_bytes = os.fstat(file).st_size
    if region.offset + region.byte_size > size_bytes:
        raise _invalid(
            f"Invalid shared memory region '{region.name}': invalid args: offset {region.offset} + byte_size "
            f"{region.byte_size} is beyond the {size_bytes} bytes of '{region.key}'"
        )


def _checked(key: str) -> str:
    """The object's file name; the leading slash is POSIX's and may be left out."""
    name = key.removeprefix("/")
    # Bytes that are not UTF-8 cannot come in here, but lone surrogates can.
    if not 0 < len(name.encode(errors="replace")) <= _LONGEST or name in {".", ".."} or "/" in name or "\0" in name:
        raise _invalid(
            f"Unable to open shared memory region: key '{key[: _LONGEST + 1]}' must be a slash and a name without slashes"
        )
    if name.startswith(_RESERVED):
        raise _invalid(
            f"Unable to open shared memory region: key '{key}' is reserved: names must not begin with '{_RESERVED}'"
        )
    return name


def _invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)
