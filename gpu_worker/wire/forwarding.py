"""Headers that become parameters of a request, as the administrator's pattern picks them by name.

RE2 matches names in time linear in their length, whatever the pattern, since clients choose the names. Must never let a
header take the place of a parameter with a meaning of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from gpu_worker.engine import border
from gpu_worker.wire import datatypes

_RESERVED = frozenset(
    ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output")
)
_PREFIX = "triton_"


class Forwarding:
    """The rule of one front; an empty pattern forwards nothing."""

    def __init__(self, pattern: str = "") -> None:
        """The pattern must match a whole name; case does not count unless it says `(?-i)`. Raises InferenceError."""
        self._pattern = _compiled(pattern) if pattern else None
        self.is_on = self._pattern is not None

    def add(
        self, parameters: Mapping[str, border.Parameter], headers: Iterable[tuple[str, str]]
    ) -> Mapping[str, border.Parameter]:
        """`parameters` with those of the headers; a header wins over a parameter of its name.

        Raises InferenceError INVALID_ARGUMENT for a header with a reserved name.
        """
        if self._pattern is None:
            return parameters
        found = {name: value for name, value in headers if self._pattern.fullmatch(name)}
        for name in found:
            if name in _RESERVED or name.startswith(_PREFIX):
                raise datatypes.refused(f"header '{name}' cannot be forwarded as a parameter: the name is reserved")
        return {**parameters, **found} if found else parameters


def _compiled(pattern: str) -> Any:
    # Only who forwards headers needs it.
    re2 = importlib.import_module("re2")
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        told = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
        raise datatypes.refused(f"the pattern of headers '{pattern}' cannot be used: {told}") from None
