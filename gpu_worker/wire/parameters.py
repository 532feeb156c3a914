"""Which parameters a request may carry, and of what type; one rule for both fronts.

Must never drop a parameter that changes the answer: what is not done is refused.
"""

from __future__ import annotations

import collections
from collections.abc import Container, Mapping

from gpu_worker.engine import border
from gpu_worker.wire import datatypes

EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
REGION, REGION_OFFSET, REGION_BYTES = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"
"""The three parameters of a tensor in shared memory."""

_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "sequence_id": ((int, str), "an integer or a string"),
    "sequence_start": ((bool,), "a boolean"),
    "sequence_end": ((bool,), "a boolean"),
    "priority": ((int,), "an integer"),
    "timeout": ((int,), "an integer"),
    "binary_data_output": ((bool,), "a boolean"),
    EMPTY_FINAL_RESPONSE: ((bool,), "a boolean"),
}
_UNSIGNED = ("priority", "timeout", "sequence_id")


def check(parameters: Mapping[str, border.Parameter], *, reserved: Container[str] = ()) -> None:
    """Raises InferenceError for a wrong type or a reserved name that is not in `reserved`."""
    for name, value in parameters.items():
        if name in _TYPES:
            _check_type(name, value)
        if name.startswith("triton_") and name not in reserved:
            raise datatypes.refused(f"parameter keys starting with 'triton_' are reserved, got '{name}'")


def region(where: str, given: Mapping[str, object]) -> border.Region | None:
    """The place in shared memory that the parameters of a tensor name; None where they name none.

    `where` names the tensor. Raises InferenceError INVALID_ARGUMENT.
    """
    name = given.get(REGION)
    if name is None:
        for key in (REGION_OFFSET, REGION_BYTES):
            if key in given:
                raise datatypes.refused(f"parameter '{key}' of {where} needs the parameter '{REGION}'")
        return None
    if not isinstance(name, str) or not name:
        raise datatypes.refused(f"parameter '{REGION}' of {where} must be the name of a region")
    if REGION_BYTES not in given:
        raise datatypes.refused(f"parameter '{REGION}' of {where} needs the parameter '{REGION_BYTES}'")
    return border.Region(name, _size(where, given, REGION_OFFSET), _size(where, given, REGION_BYTES))


def region_parameters(of: border.Region) -> dict[str, border.Parameter]:
    """The parameters that tell a client where its output is."""
    return {REGION: of.name, REGION_OFFSET: of.offset, REGION_BYTES: of.byte_size}


def requested_output(name: str, given: Mapping[str, object]) -> border.RequestedOutput:
    """An output asked for with these parameters."""
    where = f"output '{name}'"
    place = region(where, given)
    classification = given.get("classification")
    if classification is None:
        return border.RequestedOutput(name, region=place)
    if place is not None:
        raise datatypes.refused(f"{where} can't set both '{REGION}' and 'classification'")
    if not isinstance(classification, int) or isinstance(classification, bool) or classification < 0:
        raise datatypes.refused(f"parameter 'classification' of {where} must be a non-negative integer")
    return border.RequestedOutput(name, classification)


def check_version(version: str) -> str:
    """`version` itself, empty or decimal; InferenceError otherwise."""
    if version and not (version.isascii() and version.isdigit()):
        raise datatypes.refused(f"model version '{version}' must be a decimal number, or empty for the highest")
    return version


def unload_dependents(given: Mapping[str, object]) -> bool:
    """What the one parameter of a model unload says; InferenceError for any other."""
    dependents = given.get("unload_dependents", False)
    if not isinstance(dependents, bool):
        raise datatypes.refused("parameter 'unload_dependents' must be a boolean")
    for name in given:
        if name != "unload_dependents":
            raise datatypes.refused(f"unexpected parameter '{name}' for model unload")
    return dependents


def check_unique(kind: str, names: list[str]) -> None:
    """Refuses a tensor named twice."""
    if len(set(names)) != len(names):
        twice = collections.Counter(names).most_common(1)[0][0]
        raise datatypes.refused(f"{kind} '{twice}' is given more than once in the request")


def _size(where: str, given: Mapping[str, object], key: str) -> int:
    value = given.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise datatypes.refused(f"parameter '{key}' of {where} must be a non-negative integer below 2^63")
    return value


def _check_type(name: str, value: border.Parameter) -> None:
    types, words = _TYPES[name]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise datatypes.refused(f"parameter '{name}' must be {words}")
    if name in _UNSIGNED and isinstance(value, int) and not 0 <= value < 2**64:
        raise datatypes.refused(f"parameter '{name}' must be in the range of an unsigned 64-bit integer, got {value}")
