"""Which parameters a request may carry, and of what type; one rule for both fronts.

Must never drop a parameter that changes the answer: what is not done is refused.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Container, Mapping

from gpu_worker.engine import border
from gpu_worker.wire import datatypes

EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
SHARED_MEMORY = frozenset(("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"))

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


def check_unshared(kind: str, name: str, parameters: Collection[str]) -> None:
    """Refuses a tensor whose data is, or should go, in shared memory."""
    if parameters and not SHARED_MEMORY.isdisjoint(parameters):
        raise border.InferenceError(
            border.ErrorKind.UNSUPPORTED,
            f"{kind} '{name}' uses shared memory, which this server does not support; send the data in the message",
        )


def requested_output(name: str, classification: object) -> border.RequestedOutput:
    """An output asked for; `classification` is None where the request has none."""
    if classification is None:
        return border.RequestedOutput(name)
    if not isinstance(classification, int) or isinstance(classification, bool) or classification < 0:
        raise datatypes.refused(f"parameter 'classification' of output '{name}' must be a non-negative integer")
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


def _check_type(name: str, value: border.Parameter) -> None:
    types, words = _TYPES[name]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise datatypes.refused(f"parameter '{name}' must be {words}")
    if name in _UNSIGNED and isinstance(value, int) and not 0 <= value < 2**64:
        raise datatypes.refused(f"parameter '{name}' must be in the range of an unsigned 64-bit integer, got {value}")
