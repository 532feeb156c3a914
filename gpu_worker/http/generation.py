"""The generate extension's JSON: a flat object to tensors and parameters, an answer to a flat object.

Pure. Must never guess between readings: what fits a model's input in no way is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gpu_worker.engine import border
from gpu_worker.http import jsondata
from gpu_worker.wire import datatypes, parameters

_PARAMETERS = "parameters"


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """What a body is read against: inputs by name, the batch dimension as -1."""

    name: str
    inputs: Mapping[str, border.TensorMetadata]


@dataclasses.dataclass(slots=True)
class Asked:
    """What a generate body says."""

    id: str
    inputs: list[border.Tensor]
    parameters: dict[str, border.Parameter]


def decode(model: Model, body: Mapping[str, Any]) -> Asked:
    """Keys that are inputs become tensors, the others parameters; `parameters` is read in the same way.

    Raises InferenceError naming the key at fault; inputs that are missing are for the engine to tell.
    """
    asked = Asked(_id(body), [], {})
    nested = body.get(_PARAMETERS, {}) if _PARAMETERS not in model.inputs else {}
    if not isinstance(nested, dict):
        raise datatypes.refused("Unable to parse 'parameters': must be an object")
    own = {key: value for key, value in body.items() if key != "id" and (key != _PARAMETERS or key in model.inputs)}
    for found in (own, nested):
        _read(model, found, asked)
    parameters.check(asked.parameters)
    parameters.check_unique("input", [tensor.name for tensor in asked.inputs])
    return asked


def encode(answer: border.InferResponse) -> bytes:
    """One response: scalars where an output has one element, else flat arrays. Raises InferenceError."""
    shown: dict[str, Any] = {"model_name": answer.model_name, "model_version": answer.model_version}
    if answer.id:
        shown["id"] = answer.id
    shown |= answer.parameters
    for tensor in answer.outputs:
        values = jsondata.from_wire(tensor)
        shown[tensor.name] = values[0] if len(values) == 1 else values
    return jsondata.dump(shown)


def _id(body: Mapping[str, Any]) -> str:
    value = body.get("id", "")
    if not isinstance(value, str):
        raise datatypes.refused("Unable to parse 'id': must be a string")
    return value


def _read(model: Model, found: Mapping[str, Any], asked: Asked) -> None:
    for key, value in found.items():
        expected = model.inputs.get(key)
        if expected is not None:
            asked.inputs.append(_tensor(model, expected, value))
        elif isinstance(value, (bool, int, float, str)):
            asked.parameters[key] = value
        else:
            raise datatypes.refused(
                f"parameter '{key}' has an invalid type: must be a boolean, a number or a string, since model "
                f"'{model.name}' has no input of that name"
            )


def _tensor(model: Model, expected: border.TensorMetadata, value: Any) -> border.Tensor:
    flat = _flattened(value)
    shape = _shape(model, expected, len(flat))
    spec = jsondata.Spec(expected.name, expected.datatype, shape, len(flat))
    return border.Tensor(expected.name, expected.datatype, shape, jsondata.to_wire(spec, flat))


def _flattened(value: Any) -> list[Any]:
    level = value if isinstance(value, list) else [value]
    # The parser bounds how deep arrays nest.
    while any(isinstance(each, list) for each in level):
        level = [part for each in level for part in (each if isinstance(each, list) else [each])]
    return level


def _shape(model: Model, expected: border.TensorMetadata, count: int) -> tuple[int, ...]:
    """The model's shape: its fixed dimensions as they are, its last variable one with what is left, the others 1."""
    rest = count
    for dim in expected.shape:
        if dim >= 0:
            if not dim or rest % dim:
                raise _misfit(model, expected, count)
            rest //= dim
    shape = list(expected.shape)
    for index in reversed(range(len(shape))):
        if shape[index] < 0:
            shape[index], rest = rest, 1
    if rest != 1:
        raise _misfit(model, expected, count)
    return tuple(shape)


def _misfit(model: Model, expected: border.TensorMetadata, count: int) -> border.InferenceError:
    return datatypes.refused(
        f"{count} elements do not fit input '{expected.name}' of model '{model.name}', whose shape is "
        f"{list(expected.shape)}"
    )
