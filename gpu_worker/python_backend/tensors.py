"""Tensors as a model's code sees them: numpy arrays over the memory they came in.

Decides which numpy type stands for which datatype. An input is never copied before somebody asks for its array.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from gpu_worker.python_backend import wire
from gpu_worker.python_backend.errors import TritonModelException

_NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "STRING": np.object_,
}
TRITON_STRING_TO_NUMPY = types.MappingProxyType({f"TYPE_{name}": kind for name, kind in _NUMPY.items()})
_DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(kind) for name, kind in _NUMPY.items() if name != "STRING"} | {
    "BYTES": np.dtype(object)
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CPU = 1


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """The numpy type of `TYPE_...`, as configurations write datatypes."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: str) -> Any:
    """The numpy type of a datatype such as `FP32`, or of `TYPE_FP32`."""
    return TRITON_STRING_TO_NUMPY["TYPE_" + data_type.removeprefix("TYPE_").replace("BYTES", "STRING")]


def numpy_to_triton_type(data_type: Any) -> str:
    """`TYPE_...` of a numpy type."""
    name: str = _NAMES[np.dtype(data_type)]
    return "TYPE_" + ("STRING" if name == "BYTES" else name)


def serialize_byte_tensor(input_tensor: wire.Array) -> wire.Array | None:
    """The wire form of an array of strings, as an array of one `bytes`; None where it is empty."""
    return np.array(wire.encode_strings(input_tensor.ravel()), dtype=object) if input_tensor.size else None


def deserialize_bytes_tensor(encoded_tensor: wire.Buffer) -> wire.Array:
    """The strings behind a wire form, in one row."""
    return wire.decode_strings(encoded_tensor, (-1,))


class Tensor:
    """A named tensor in the memory of the CPU."""

    def __init__(self, name: str, array: wire.Array) -> None:
        """`array` has a type that the protocol knows; strings come as objects, `bytes` or `str`."""
        if not isinstance(array, np.ndarray):
            raise TritonModelException(f"tensor '{name}' must be made of a numpy array, not {type(array).__name__}")
        self._name = name
        self._datatype = _datatype(name, array)
        self._array: wire.Array | None = array
        self._shape = array.shape
        self._data: memoryview | None = None

    @classmethod
    def _received(cls, name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
        made = cls.__new__(cls)
        made._name, made._datatype, made._shape, made._data, made._array = name, datatype, shape, data, None
        return made

    def name(self) -> str:
        return self._name

    def triton_dtype(self) -> str:
        return self._datatype

    def shape(self) -> list[int]:
        return list(self._shape)

    def is_cpu(self) -> bool:
        return True

    def as_numpy(self) -> wire.Array:
        """The array, writeable; BYTES as objects of `bytes`. Raises TritonModelException for BF16."""
        if self._array is None:
            self._array = self._read()
        return self._array

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """A tensor over the memory of whatever speaks DLPack, or of its capsule; it must be the CPU's."""
        source = tensor if hasattr(tensor, "__dlpack__") else _Capsule(tensor)
        return Tensor(name, np.from_dlpack(source))

    def to_dlpack(self) -> Any:
        return self.as_numpy().__dlpack__()

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.as_numpy().__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU, 0

    def _wire(self) -> wire.Buffer:
        """The bytes that travel."""
        if self._data is not None and self._datatype not in _DTYPES:
            return self._data
        array = self.as_numpy()
        if array.dtype.kind in "OSU":
            return wire.encode_strings(array.ravel())
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b""

    def _read(self) -> wire.Array:
        data = self._data
        assert data is not None
        if self._datatype == "BYTES":
            return wire.decode_strings(data, self._shape)
        dtype = _DTYPES.get(self._datatype)
        if dtype is None:
            raise TritonModelException(f"tensor '{self._name}' is {self._datatype}, which numpy has no type for")
        # What came in a message small enough to be copied anyway cannot be written to where it lies.
        return np.frombuffer(bytearray(data) if data.readonly else data, dtype).reshape(self._shape)


class _Capsule:
    """What numpy asks of an object around a bare capsule."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_asked: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU, 0


def _datatype(name: str, array: wire.Array) -> str:
    if array.dtype.kind in "SU":
        return "BYTES"
    found = _NAMES.get(array.dtype.newbyteorder("="))
    if found is None:
        raise TritonModelException(f"tensor '{name}' has the numpy type {array.dtype}, which the protocol cannot carry")
    return found
