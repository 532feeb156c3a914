"""From the body of an infer request to tensors: V2 JSON, binary tensor data, and the raw binary request.

Pure. Must never accept what it does not understand, nor loop over numbers in Python where numpy can.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson

from gpu_worker.engine import border
from gpu_worker.http import jsondata, messages
from gpu_worker.wire import datatypes, parameters

_MAX_DEPTH = 100
_SOURCES = ("data", "binary_data_size", "shared_memory_region")


@dataclasses.dataclass(slots=True)
class Wishes:
    """Which outputs are to be binary: by name, and in general."""

    binary: bool = False
    by_name: dict[str, bool] = dataclasses.field(default_factory=dict)

    def wants_binary(self, name: str) -> bool:
        return self.by_name.get(name, self.binary)


@dataclasses.dataclass(slots=True)
class Inference:
    """What an infer body says; `form` as in the request that it becomes."""

    id: str
    inputs: list[border.Tensor]
    outputs: list[border.RequestedOutput]
    parameters: dict[str, border.Parameter]
    wishes: Wishes
    form: object | None = None


def decode(model: str, body: border.Buffer, json_bytes: int | None) -> Inference:
    """Reads an infer body whose first `json_bytes` (None: all) are JSON and whose rest are binary tensors.

    Raises InferenceError INVALID_ARGUMENT or UNSUPPORTED, naming the member at fault.
    """
    view = memoryview(body)
    if json_bytes is None:
        json_bytes = len(view)
    if not 0 <= json_bytes <= len(view):
        raise datatypes.refused(
            f"Inference-Header-Content-Length must be between 0 and the body's {len(view)} bytes, got {json_bytes}"
        )
    header = parse(bytes(view[:json_bytes]))
    given = _parameters(header, "request")
    parameters.check(given)
    binary = bool(given.pop("binary_data_output", False))
    outputs, wishes = _outputs(header, binary)
    return Inference(_id(header), _inputs(model, header, view[json_bytes:]), outputs, given, wishes)


def decode_raw(metadata: border.ModelMetadata, body: border.Buffer, *, batched: bool) -> Inference:
    """Takes the whole body as the single input of a model; every output is wished for in binary."""
    if len(metadata.inputs) != 1:
        raise datatypes.refused(
            f"raw binary request needs a model with one input, but '{metadata.name}' has {len(metadata.inputs)}"
        )
    spec = metadata.inputs[0]
    dims = spec.shape[1:] if batched else spec.shape
    batch = (1,) if batched else ()
    if spec.datatype == "BYTES":
        if dims != (1,):
            raise datatypes.refused(f"raw binary request needs BYTES input '{spec.name}' to have shape [1]")
        tensor = border.Tensor(spec.name, spec.datatype, (*batch, 1), datatypes.pack_bytes([bytes(body)]))
    else:
        tensor = border.Tensor(spec.name, spec.datatype, (*batch, *_deduce(spec, dims, len(body))), body)
    return Inference("", [tensor], [], {}, Wishes(binary=True))


def body(request: messages.Request) -> dict[str, Any]:
    """The JSON object that a request other than infer carries; an empty body is an empty object."""
    return parse(bytes(request.body)) if request.body else {}


def parse(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`; InferenceError for anything else."""
    if jsondata.deeper_than(text, _MAX_DEPTH):
        raise datatypes.refused(f"failed to parse the request JSON buffer: nested deeper than {_MAX_DEPTH} levels")
    try:
        header = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise datatypes.refused(f"failed to parse the request JSON buffer: {error}") from error
    if not isinstance(header, dict):
        raise datatypes.refused("failed to parse the request JSON buffer: it must be an object")
    return header


def _id(header: dict[str, Any]) -> str:
    value = header.get("id", "")
    if not isinstance(value, str):
        raise datatypes.refused("Unable to parse 'id': must be a string")
    return value


def _inputs(model: str, header: dict[str, Any], binary: memoryview) -> list[border.Tensor]:
    entries = _objects(header, "inputs")
    if entries is None:
        raise datatypes.refused(f"Unable to find 'inputs' in the request for model '{model}'")
    tensors, offset = [], 0
    for entry in entries:
        tensor, used = _input(entry, binary[offset:])
        tensors.append(tensor)
        offset += used
    parameters.check_unique("input", [tensor.name for tensor in tensors])
    if offset != len(binary):
        raise datatypes.refused(
            f"unexpected additional input data for model '{model}': {len(binary) - offset} bytes after the last input"
        )
    return tensors


def _input(entry: dict[str, Any], binary: memoryview) -> tuple[border.Tensor, int]:
    """The tensor, and how many bytes of `binary` it took."""
    name = _name(entry, "input")
    datatype = entry.get("datatype")
    if not isinstance(datatype, str):
        raise datatypes.refused(f"Unable to parse 'datatype' of input '{name}': must be a string")
    shape = _shape(name, entry.get("shape"))
    count = datatypes.element_count(name, datatype, shape)
    given = entry.get("parameters", {})
    _check_source(name, entry, given)
    place = parameters.region(f"input '{name}'", given)
    if place is not None:
        return border.Tensor(name, datatype, shape, b"", place), 0
    if "data" in entry:
        data: border.Buffer = jsondata.to_wire(jsondata.Spec(name, datatype, shape, count), entry["data"])
        return border.Tensor(name, datatype, shape, data), 0
    size = given["binary_data_size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise datatypes.refused(f"parameter 'binary_data_size' of input '{name}' must be a non-negative integer")
    if size > len(binary):
        raise datatypes.refused(
            f"not enough binary data for input '{name}': binary_data_size is {size}, {len(binary)} bytes are left"
        )
    return border.Tensor(name, datatype, shape, binary[:size]), size


def _check_source(name: str, entry: dict[str, Any], given: Any) -> None:
    if not isinstance(given, dict):
        raise datatypes.refused(f"Unable to parse 'parameters' of input '{name}': must be an object")
    if ("data" in entry) + ("binary_data_size" in given) + ("shared_memory_region" in given) != 1:
        found = [key for key in _SOURCES if key in entry or key in given]
        raise datatypes.refused(
            f"input '{name}' must have exactly one of 'data', 'binary_data_size' and 'shared_memory_region', "
            f"but has {' and '.join(found) or 'none'}"
        )


def _outputs(header: dict[str, Any], binary: bool) -> tuple[list[border.RequestedOutput], Wishes]:  # noqa: FBT001 - the request-wide default
    wishes = Wishes(binary)
    outputs = []
    for entry in _objects(header, "outputs") or []:
        name = _name(entry, "output")
        given = _parameters(entry, f"output '{name}'")
        output = parameters.requested_output(name, given)
        outputs.append(output)
        if "binary_data" in given:
            wishes.by_name[name] = _wish(output, given["binary_data"])
    parameters.check_unique("output", [output.name for output in outputs])
    return outputs, wishes


def _wish(output: border.RequestedOutput, wish: border.Parameter) -> bool:
    if not isinstance(wish, bool):
        raise datatypes.refused(f"parameter 'binary_data' of output '{output.name}' must be a boolean")
    # Clients say `binary_data` false beside a region, which only says that the message carries no data.
    if output.region is not None and wish:
        raise datatypes.refused(f"output '{output.name}' can't set both '{parameters.REGION}' and 'binary_data'")
    return wish


def _objects(header: dict[str, Any], key: str) -> list[dict[str, Any]] | None:
    entries = header.get(key)
    if entries is None:
        return None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise datatypes.refused(f"Unable to parse '{key}': must be an array of objects")
    return entries


def _name(entry: dict[str, Any], kind: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str):
        raise datatypes.refused(f"Unable to parse 'name' of an {kind}: must be a string")
    return name


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not set(map(type, shape)) <= {int} or min(shape, default=0) < 0:
        raise datatypes.refused(f"Unable to parse 'shape' of input '{name}': must be an array of non-negative integers")
    return tuple(shape)


def _parameters(entry: dict[str, Any], where: str) -> dict[str, border.Parameter]:
    given = entry.get("parameters", {})
    if not isinstance(given, dict):
        raise datatypes.refused(f"Unable to parse 'parameters' of {where}: must be an object")
    for key, value in given.items():
        if not isinstance(value, (bool, int, float, str)):
            raise datatypes.refused(
                f"parameter '{key}' of {where} has an invalid type: must be a boolean, a number or a string"
            )
    return given


def _deduce(spec: border.TensorMetadata, dims: tuple[int, ...], size_bytes: int) -> list[int]:
    """`dims` with its one variable dimension found from the body's size; the engine checks the size."""
    variable = [index for index, dim in enumerate(dims) if dim < 0]
    if len(variable) > 1:
        raise datatypes.refused(
            f"raw binary request needs input '{spec.name}' to have at most one variable dimension, it has {len(variable)}"
        )
    found = list(dims)
    for index in variable:
        found[index] = 1
        item_bytes = datatypes.element_count(spec.name, spec.datatype, found) * datatypes.SIZES[spec.datatype]
        if not item_bytes or size_bytes % item_bytes:
            raise datatypes.refused(f"{size_bytes} bytes do not fill the variable dimension of input '{spec.name}'")
        found[index] = size_bytes // item_bytes
    return found
